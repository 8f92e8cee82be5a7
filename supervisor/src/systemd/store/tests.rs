//! Checks the datagrams and descriptors that systemd is sent, and their order.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use super::*;
use crate::handover::{InstanceRecord, ListenerRecord, RecordedPhase, VERSION};
use brokkr_tenant::Listen;
use nix::sys::socket::{ControlMessageOwned, recvmsg};
use std::fs::File;
use std::io::IoSliceMut;
use std::os::unix::net::UnixDatagram;

fn tenant(n: u32) -> TenantName {
    TenantName::parse(&format!("t{n:04}")).unwrap()
}

fn descriptor() -> Arc<OwnedFd> {
    Arc::new(memfd::sealed("any", b"").unwrap())
}

/// Returns tenants 1 to `n`, each with a socket of id 2n-1 and an instance of id 2n.
fn handover_state(n: u32) -> HandoverState {
    let json = format!(r#"{{"version":{VERSION}}}"#);
    let mut handover_state = HandoverState {
        index: HandoverIndex::decode(json.as_bytes()).unwrap(),
        descriptors: BTreeMap::new(),
    };
    for i in 1..=n {
        let (listens, runs) = (2 * i - 1, 2 * i);
        handover_state.index.listeners.push(ListenerRecord {
            id: listens,
            tenant: tenant(i),
            listen: Listen::parse(&format!("127.0.0.1:{}", 2000 + i)).unwrap(),
        });
        handover_state.index.instances.push(InstanceRecord {
            id: Some(runs),
            tenant: tenant(i),
            instance: 1,
            pid: 1,
            start_time: 1,
            files: "/x".into(),
            what: None,
            config: None,
            phase: RecordedPhase::Serving,
            connections: 5,
            outdated: false,
            log: Default::default(),
        });
        let kinds = [
            (listens, FdKind::Listener),
            (runs, FdKind::Log),
            (runs, FdKind::Death),
            (runs, FdKind::Notify),
        ];
        for (id, kind) in kinds {
            handover_state
                .descriptors
                .insert(FdName::new(id, kind), descriptor());
        }
    }
    handover_state
}

struct Systemd {
    _folder: tempfile::TempDir,
    socket: UnixDatagram,
    notifier: Notifier,
    /// Content of the store.
    store: BTreeMap<String, OwnedFd>,
    most: usize,
    /// Pipes of barriers not yet answered.
    barriers: Vec<File>,
}

impl Systemd {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        let notifier = Notifier::new(Some(path.into()), |_| None).unwrap();
        Self {
            _folder: folder,
            socket,
            notifier,
            store: BTreeMap::new(),
            most: 0,
            barriers: Vec::new(),
        }
    }

    fn read(&mut self) -> String {
        let mut buffer = [0; 1024];
        let mut control = nix::cmsg_space!([RawFd; 4]);
        let mut parts = [IoSliceMut::new(&mut buffer)];
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        let message = recvmsg::<()>(
            self.socket.as_raw_fd(),
            &mut parts,
            Some(&mut control),
            flags,
        )
        .unwrap();
        let mut fds: Vec<OwnedFd> = Vec::new();
        let held = self.barriers.len();
        for control in message.cmsgs().unwrap() {
            if let ControlMessageOwned::ScmRights(passed) = control {
                for fd in passed {
                    let mut end = File::options();
                    let end = end.write(true);
                    self.barriers
                        .extend(end.open(format!("/proc/self/fd/{fd}")).ok());
                    fds.push(File::open(format!("/proc/self/fd/{fd}")).unwrap().into());
                    nix::unistd::close(fd).unwrap();
                }
            }
        }
        let length = message.bytes;
        let text = String::from_utf8(buffer[..length].to_vec()).unwrap();
        let name = text
            .lines()
            .find_map(|line| line.strip_prefix("FDNAME="))
            .map(str::to_owned);
        if text != "BARRIER=1" {
            self.barriers.truncate(held);
        }
        if text.starts_with("FDSTORE=1") {
            let name = name.unwrap();
            assert_eq!(!text.contains("FDPOLL=0"), name.ends_with('l'), "{text}");
            let taken = self.store.insert(name, fds.pop().unwrap());
            assert!(taken.is_none(), "{text}: the name was taken");
            self.most = self.most.max(self.store.len());
        } else if text.starts_with("FDSTOREREMOVE=1") {
            assert!(
                self.store.remove(&name.unwrap()).is_some(),
                "{text}: was not there"
            );
        }
        text
    }

    /// Reads up to the barrier and answers it.
    fn read_all(mut self) -> Self {
        while self.read() != "BARRIER=1" {}
        self.barriers.clear();
        self
    }

    fn names(&self) -> Vec<String> {
        self.store.keys().cloned().collect()
    }

    fn index(&self) -> HandoverIndex {
        let mut indexes = INDEX_NAMES.iter().filter_map(|name| self.store.get(*name));
        let index = crate::handover::inherited::read(indexes.next().unwrap()).unwrap();
        assert!(indexes.next().is_none(), "one index");
        index
    }
}

async fn told(systemd: Systemd, store: FdStoreClient, wanted: StoreContents) -> Systemd {
    store.want(wanted);
    let reading = tokio::task::spawn_blocking(|| systemd.read_all());
    store.finish().await;
    reading.await.unwrap()
}

/// Starts the client of a store that holds nothing yet.
fn empty_store(systemd: &Systemd, wanted: &HandoverState) -> FdStoreClient {
    let none = StoredEntries::default();
    FdStoreClient::start(&systemd.notifier, none, &BTreeSet::new(), wanted)
        .unwrap()
        .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_instances_are_stored_and_the_next_supervisor_keeps_what_is_there() {
    let systemd = Systemd::new();
    let all = handover_state(1000);
    let (index, descriptors) = (all.index.clone(), all.descriptors.clone());
    let again = || HandoverState {
        index: index.clone(),
        descriptors: descriptors.clone(),
    };
    let store = empty_store(&systemd, &all);
    let mut choice = StoreSelection::new(16_384);
    let systemd = told(systemd, store, choice.choose(all)).await;
    assert_eq!(systemd.store.len(), 3001);
    let read = systemd.index();
    assert_eq!(
        (read.instances.len(), read.listeners.len(), read.serial),
        (1000, 1000, 1)
    );
    let names = systemd.names();
    assert!(
        names.join(":").len() < 32 << 10,
        "{}",
        names.join(":").len()
    );

    // The next supervisor claims all its descriptors except those of one instance.
    let unknown = [FdName::new(8, FdKind::Death), FdName::new(8, FdKind::Log)];
    let claimed: BTreeSet<FdName> = names
        .iter()
        .filter_map(|name| FdName::parse(name))
        .filter(|name| !unknown.contains(name))
        .collect();
    let there = StoredEntries { names, serial: 1 };
    let store = FdStoreClient::start(&systemd.notifier, there, &claimed, &again())
        .unwrap()
        .unwrap();
    let mut wish = again();
    wish.index.instances[5].phase = RecordedPhase::Stopping;
    let before: Vec<RawFd> = systemd.store.values().map(AsRawFd::as_raw_fd).collect();
    let systemd = told(systemd, store, StoreSelection::new(16_384).choose(wish)).await;
    assert_eq!(systemd.store.len(), 3001);
    let after: BTreeSet<RawFd> = systemd.store.values().map(AsRawFd::as_raw_fd).collect();
    let kept = before.iter().filter(|fd| after.contains(fd)).count();
    assert!(kept >= 2998, "{kept}: what was right was not sent again");
    let index = systemd.index();
    assert_eq!(
        (index.instances[5].phase, index.serial),
        (RecordedPhase::Stopping, 2)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_ends_is_removed_before_its_name_is_used_again() {
    let systemd = Systemd::new();
    let first = handover_state(2);
    let store = empty_store(&systemd, &first);
    let mut choice = StoreSelection::new(100);
    let mut second = handover_state(2);
    for (name, fd) in &first.descriptors {
        // Keeps all descriptors except those of the instance of tenant 2.
        if name.id != 4 {
            second.descriptors.insert(*name, fd.clone());
        }
    }
    store.want(choice.choose(first));
    let reading = tokio::task::spawn_blocking(|| {
        let mut systemd = systemd;
        while !(systemd.store.len() == 7 && systemd.store.contains_key("ia")) {
            systemd.read();
        }
        systemd
    });
    let systemd = reading.await.unwrap();
    let systemd = told(systemd, store, choice.choose(second)).await;
    assert_eq!(systemd.names(), ["1l", "2d", "2p", "3l", "4d", "4p", "ia"]);
    // Two descriptors are removed before two are added, and a second index exists for a moment.
    assert_eq!(systemd.most, 7);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_release_is_confirmed_when_systemd_has_let_go_and_holds_nothing_up() {
    let mut systemd = Systemd::new();
    let all = handover_state(2);
    let mut store = empty_store(&systemd, &all);
    let mut without = HandoverState {
        index: all.index.clone(),
        descriptors: all.descriptors.clone(),
    };
    without.index.listeners.retain(|l| l.tenant != tenant(1));
    without
        .descriptors
        .remove(&FdName::new(1, FdKind::Listener));
    let mut choice = StoreSelection::new(100);
    store.want(choice.choose(all));
    let reading = tokio::task::spawn_blocking(move || {
        while !systemd.store.contains_key("ia") {
            systemd.read();
        }
        systemd
    });
    let mut systemd = reading.await.unwrap();
    let mut wanted = choice.choose(without);
    wanted.released = 1;
    store.want(wanted.clone());
    let reading = tokio::task::spawn_blocking(move || {
        let mut removed = false;
        loop {
            let text = systemd.read();
            removed |= text == "FDSTOREREMOVE=1\nFDNAME=1l";
            if text == "BARRIER=1" {
                assert!(removed, "what goes is removed before");
                return systemd;
            }
        }
    });
    let mut systemd = reading.await.unwrap();
    assert_eq!(store.confirmed(), 0, "systemd is not done yet");
    // The wish of another tenant is fulfilled meanwhile.
    let mut index = (*wanted.index.unwrap()).clone();
    index.instances[1].phase = RecordedPhase::Stopping;
    wanted.index = Some(Arc::new(index));
    store.want(wanted.clone());
    let reading = tokio::task::spawn_blocking(move || {
        while !systemd.read().starts_with("FDSTOREREMOVE=1\nFDNAME=i") {}
        systemd
    });
    systemd = reading.await.unwrap();
    assert_eq!(systemd.index().instances[1].phase, RecordedPhase::Stopping);
    assert_eq!(store.confirmed(), 0, "systemd is not done yet");
    systemd.barriers.clear();
    let confirmed = async {
        while store.confirmed() < 1 {
            store.confirms().await;
        }
    };
    let in_time = tokio::time::timeout(Duration::from_secs(10), confirmed).await;
    in_time.unwrap();
}

#[test]
fn who_does_not_fit_is_left_out_whole_and_who_is_stored_stays() {
    let mut choice = StoreSelection::new(4 + 3 * 2);
    let wanted = choice.choose(handover_state(3));
    assert_eq!(choice.left_out(), [tenant(3)]);
    assert_eq!(wanted.descriptors.len(), 6);
    let index = wanted.index.unwrap();
    let ids: Vec<Option<u32>> = index.instances.iter().map(|record| record.id).collect();
    assert_eq!(ids, [Some(2), Some(4), None], "known, though not stored");
    // Tenant 1 goes. Tenant 3 takes its place and keeps it when a tenant with a smaller name comes.
    let without = |gone: u32| {
        let mut handover_state = handover_state(3);
        handover_state
            .index
            .instances
            .retain(|record| record.tenant != tenant(gone));
        handover_state
            .index
            .listeners
            .retain(|listener| listener.tenant != tenant(gone));
        handover_state
    };
    choice.choose(without(1));
    assert!(choice.left_out().is_empty());
    choice.choose(handover_state(3));
    assert_eq!(choice.left_out(), [tenant(1)]);

    let mut none = StoreSelection::new(0);
    assert!(none.choose(handover_state(2)).index.is_none());
    assert_eq!(none.left_out().len(), 2);
}
