//! Finds running instances from fewer and fewer sources.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use super::*;
use crate::handover::inherited::HandoverSource;
use crate::handover::{ListenerRecord, PartialLine, VERSION};
use crate::sys::{self, SpawnPlan};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::fs::File;
use std::io::Write;
use std::net::TcpListener;
use std::os::fd::AsFd;

/// A process like a broker's: socket at descriptor 3, log pipe, lock file.
struct Broker {
    folder: tempfile::TempDir,
    spawned: sys::Spawned,
    start_time: u64,
    socket: TcpListener,
    log: OwnedFd,
    what: ConfigSummary,
}

impl Broker {
    fn start(id: u64) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let socket = TcpListener::bind("127.0.0.1:0").unwrap();
        let what = ConfigSummary::listening(Listen::Tcp(socket.local_addr().unwrap()));
        let files = InstanceFiles::new(folder.path(), &acme(), InstanceId(id));
        let lock_file = lock::create(&files.lock()).unwrap();
        std::fs::write(files.private(), "").unwrap();
        let (log, write) = nix::unistd::pipe().unwrap();
        let null = File::open("/dev/null").unwrap();
        let plan = SpawnPlan {
            program: c"/bin/sh".into(),
            arguments: ["sh", "-c", "echo said >&2; exec sleep 1000"]
                .map(|a| std::ffi::CString::new(a).unwrap())
                .to_vec(),
            environment: vec![c"PATH=/usr/bin:/bin".into()],
            standard: [null.as_fd(), write.as_fd(), write.as_fd()],
            passed: vec![
                socket.as_fd(),
                null.as_fd(),
                null.as_fd(),
                lock_file.as_fd(),
            ],
            open_files: (256, 1024),
            user: None,
        };
        let mut start_time = 0;
        let spawned = sys::spawn(&plan, |pid| {
            let holder = LockHolder::of(pid)?;
            start_time = holder.start_time;
            lock::sign(&files.lock(), &holder, &what)
        })
        .unwrap();
        Self {
            folder,
            spawned,
            start_time,
            socket,
            log,
            what,
        }
    }

    /// Returns its three descriptors: the socket under the id `listener`, the others under `short`.
    fn descriptors(&self, listener: u32, short: u32) -> BTreeMap<FdName, OwnedFd> {
        [
            (FdName::new(listener, FdKind::Listener), self.socket.as_fd()),
            (FdName::new(short, FdKind::Log), self.log.as_fd()),
            (
                FdName::new(short, FdKind::Death),
                self.spawned.pidfd.as_fd(),
            ),
        ]
        .into_iter()
        .map(|(name, fd)| (name, fd.try_clone_to_owned().unwrap()))
        .collect()
    }

    fn record(&self, short: u32) -> InstanceRecord {
        InstanceRecord {
            id: Some(short),
            tenant: acme(),
            instance: 3,
            pid: self.spawned.pid,
            start_time: self.start_time,
            files: self.folder.path().join("acme.3"),
            what: Some(self.what.clone()),
            config: None,
            phase: RecordedPhase::Serving,
            connections: 5,
            outdated: false,
            log: PartialLine {
                bytes: b"half ".to_vec(),
                beyond: 0,
            },
        }
    }

    fn find(
        &self,
        index: Option<HandoverIndex>,
        descriptors: BTreeMap<FdName, OwnedFd>,
    ) -> Discovery {
        let inherited = InheritedFds {
            handover_source: HandoverSource::Systemd,
            problem: index.is_none().then(|| "it is of version 2".into()),
            index,
            descriptors,
            ..InheritedFds::default()
        };
        find(
            self.folder.path(),
            inherited,
            Path::new("/no/such/program"),
            None,
        )
        .unwrap()
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        let _ = sys::pidfd_send_signal(self.spawned.pidfd.as_fd(), 9);
        let _ = nix::sys::wait::waitpid(nix::unistd::Pid::from_raw(self.spawned.pid), None);
    }
}

fn acme() -> TenantName {
    TenantName::parse("acme").unwrap()
}

fn index(listener: u32, record: InstanceRecord, listen: &Listen) -> HandoverIndex {
    let mut index =
        HandoverIndex::decode(format!(r#"{{"version":{VERSION}}}"#).as_bytes()).unwrap();
    index.serial = 9;
    index.listeners.push(ListenerRecord {
        id: listener,
        tenant: acme(),
        listen: listen.clone(),
    });
    index.instances.push(record);
    index
}

fn one(finds: &Discovery) -> &FoundInstance {
    assert!(finds.left.is_empty(), "{:?}", finds.left);
    let [found] = &finds.instances[&acme()][..] else {
        panic!("not one")
    };
    found
}

#[test]
fn with_an_index_everything_is_as_it_says() {
    let broker = Broker::start(3);
    let index = index(16, broker.record(17), &broker.what.listen);
    let finds = broker.find(Some(index), broker.descriptors(16, 17));
    let found = one(&finds);
    assert_eq!(
        (found.id, found.short, found.keeps_address, found.outdated),
        (InstanceId(3), Some(17), false, false)
    );
    assert_eq!(
        (found.adoption.stage, found.adoption.connections),
        (AdoptedStage::Serving, 5)
    );
    assert_eq!(found.adoption.partial_line.bytes, b"half ");
    assert_eq!(finds.listeners[0].short, Some(16));
    assert_eq!((finds.claimed.len(), finds.stored.serial), (3, 9));
    assert_eq!(finds.first_free[&acme()], 4);
    assert!(finds.remarks.is_empty(), "{:?}", finds.remarks);
}

#[test]
fn without_an_index_that_can_be_read_names_and_lock_files_are_enough() {
    let broker = Broker::start(3);
    let finds = broker.find(None, broker.descriptors(16, 17));
    let found = one(&finds);
    assert_eq!(
        (found.short, found.keeps_address, found.outdated),
        (Some(17), false, false)
    );
    assert_eq!(
        (found.adoption.stage, found.adoption.connections),
        (AdoptedStage::Unsure, 7)
    );
    assert_eq!(finds.listeners[0].short, Some(16));
    assert_eq!(finds.claimed.len(), 3);
    assert!(finds.remarks[0].contains("version 2") && finds.remarks.len() == 1);
}

#[test]
fn with_nothing_left_but_the_process_its_socket_and_its_log_come_from_there() {
    let broker = Broker::start(3);
    let finds = broker.find(None, BTreeMap::new());
    let found = one(&finds);
    assert_eq!(
        (found.short, found.keeps_address, found.outdated),
        (None, false, false)
    );
    assert!(found.descriptors.log.is_some() && finds.listeners.len() == 1);
    assert!(finds.claimed.is_empty());
}

#[test]
fn an_id_that_is_another_instances_by_now_is_not_believed() {
    let (broker, other) = (Broker::start(3), Broker::start(4));
    // The index is older than the store: id 17 has passed to the other instance.
    let index = index(16, broker.record(17), &broker.what.listen);
    let mut descriptors = other.descriptors(20, 17);
    descriptors.extend(
        broker
            .descriptors(16, 30)
            .into_iter()
            .filter(|(name, _)| name.id == 16),
    );
    let finds = broker.find(Some(index), descriptors);
    let found = one(&finds);
    assert_eq!(
        (found.short, found.descriptors.pid),
        (None, broker.spawned.pid)
    );
    assert_eq!(
        finds.claimed,
        BTreeSet::from([FdName::new(16, FdKind::Listener)])
    );
}

#[test]
fn one_that_ended_meanwhile_is_found_with_its_last_words_and_nothing_is_taken_back_from_it() {
    let broker = Broker::start(3);
    let (record, listen) = (broker.record(17), broker.what.listen.clone());
    let descriptors = broker.descriptors(16, 17);
    let folder = broker.folder.path().to_owned();
    sys::pidfd_send_signal(broker.spawned.pidfd.as_fd(), 9).unwrap();
    let mut fds = [PollFd::new(broker.spawned.pidfd.as_fd(), PollFlags::POLLIN)];
    poll(&mut fds, PollTimeout::from(5000u16)).unwrap();
    let finds = broker.find(Some(index(16, record, &listen)), descriptors);
    let found = one(&finds);
    assert!(found.descriptors.log.is_some() && !found.keeps_address);
    assert!(finds.remarks.is_empty(), "{:?}", finds.remarks);
    drop(finds);
    assert!(!folder.join("acme.3.lock").exists());
}

#[test]
fn a_lock_that_names_no_process_bars_its_tenant() {
    let broker = Broker::start(3);
    let lock = broker.folder.path().join("acme.3.lock");
    File::options()
        .write(true)
        .truncate(true)
        .open(&lock)
        .unwrap()
        .write_all(b"x")
        .unwrap();
    let finds = broker.find(None, broker.descriptors(16, 17));
    assert!(finds.instances.is_empty());
    assert_eq!(finds.left.len(), 1);
    assert!(finds.left[0].to_string().contains("acme"));
}
