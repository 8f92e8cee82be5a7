//! Keeps systemd's descriptor store in step with the running instances, for the next supervisor.
//!
//! One task receives the wanted content and knows the present content; only the latest wish counts. Datagrams to
//! systemd keep their order. A descriptor is removed before its name is used again and added before the index names it,
//! and the old index is removed only after the new index was added. So the store is correct whenever the supervisor is
//! killed, though it may be incomplete.

use super::Notifier;
use crate::handover::fd_names::{FdKind, FdName, MOST_STORED, fitting};
use crate::handover::inherited::INDEX_NAMES;
use crate::handover::{HandoverIndex, HandoverState};
use crate::{memfd, sys};
use brokkr_tenant::TenantName;
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, IoSlice};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::unix::AsyncFd;
use tokio::sync::{mpsc, oneshot, watch};

/// The longest wait for systemd to confirm that it has read everything.
const BARRIER: Duration = Duration::from_secs(2);
/// Number of names reserved for the index.
const INDEXES: usize = INDEX_NAMES.len();

/// The wanted content of the store.
#[derive(Debug, Clone, Default)]
pub(crate) struct StoreContents {
    /// Descriptors by name.
    descriptors: BTreeMap<String, Arc<OwnedFd>>,
    /// The index that says which tenant each descriptor belongs to.
    index: Option<Arc<HandoverIndex>>,
    /// Number of the last release, which is confirmed once systemd has closed its copies of unwanted descriptors.
    pub(crate) released: u64,
}

/// Selects the tenants to store when not all fit. A tenant is stored whole or not at all, and keeps its place.
#[derive(Debug)]
pub(crate) struct StoreSelection {
    most: usize,
    kept: BTreeSet<TenantName>,
    left_out: Vec<TenantName>,
}

impl StoreSelection {
    /// Starts a choice among at most as many descriptors as systemd keeps for the unit.
    pub(crate) fn new(most: u32) -> Self {
        let most = usize::try_from(most).unwrap_or(usize::MAX);
        Self {
            most: most.min(MOST_STORED),
            kept: BTreeSet::new(),
            left_out: Vec::new(),
        }
    }

    /// Returns the tenants that are not stored because not all fit.
    pub(crate) fn left_out(&self) -> &[TenantName] {
        &self.left_out
    }

    /// Selects the descriptors to store and returns the wish.
    pub(crate) fn choose(&mut self, mut handover_state: HandoverState) -> StoreContents {
        let mut groups: BTreeMap<(bool, TenantName), Vec<FdName>> = BTreeMap::new();
        let listeners = handover_state.index.listeners.iter();
        let listeners = listeners.map(|l| (&l.tenant, FdName::new(l.id, FdKind::Listener)));
        let instances = handover_state.index.instances.iter().flat_map(|record| {
            let kinds = record
                .id
                .into_iter()
                .flat_map(|id| [FdKind::Log, FdKind::Death].map(|kind| FdName::new(id, kind)));
            kinds.map(move |name| (&record.tenant, name))
        });
        for (tenant, name) in listeners.chain(instances) {
            if handover_state.descriptors.contains_key(&name) {
                let newcomer = !self.kept.contains(tenant);
                let group = groups.entry((newcomer, tenant.clone())).or_default();
                group.push(name);
            }
        }
        // Places for the index and for the embedded server's two descriptors are reserved.
        let fitting = fitting(&groups, self.most.saturating_sub(INDEXES + 2));
        self.kept = fitting.iter().map(|(_, tenant)| tenant.clone()).collect();
        self.left_out = groups
            .keys()
            .filter(|group| !fitting.contains(*group))
            .map(|(_, tenant)| tenant.clone())
            .collect();
        for record in &mut handover_state.index.instances {
            record.id = record.id.filter(|_| self.kept.contains(&record.tenant));
        }
        handover_state
            .index
            .listeners
            .retain(|l| self.kept.contains(&l.tenant));
        let stored: BTreeSet<FdName> = groups
            .iter()
            .filter(|(group, _)| fitting.contains(*group))
            .flat_map(|(_, names)| names.iter().copied())
            .collect();
        let embedded = |name: &FdName| name.id == crate::handover::fd_names::EMBEDDED;
        let descriptors = handover_state
            .descriptors
            .into_iter()
            .filter(|(name, _)| embedded(name) || stored.contains(name))
            .map(|(name, fd)| (name.to_string(), fd))
            .collect();
        StoreContents {
            descriptors: if self.most > 0 {
                descriptors
            } else {
                BTreeMap::new()
            },
            index: (self.most > 0).then(|| Arc::new(handover_state.index)),
            released: 0,
        }
    }
}

/// Handle of the task, which ends when this is dropped.
#[derive(Debug)]
pub(crate) struct FdStoreClient {
    wanted: watch::Sender<StoreContents>,
    /// Requests for a final confirmation.
    finish: mpsc::Sender<oneshot::Sender<()>>,
    there: watch::Receiver<StoredEntries>,
    confirmed: watch::Receiver<u64>,
}

/// Content of the store.
#[derive(Debug, Clone, Default)]
pub(crate) struct StoredEntries {
    pub(crate) names: Vec<String>,
    /// Serial number of the last index.
    pub(crate) serial: u64,
}

impl FdStoreClient {
    /// Starts the task. `there` is the present content. `claimed` lists those of its names whose descriptors `now` has
    /// under the same name. `None` when there is no systemd to notify.
    ///
    /// # Errors
    /// When the event loop cannot take the socket.
    pub(crate) fn start(
        notifier: &Notifier,
        there: StoredEntries,
        claimed: &BTreeSet<FdName>,
        now: &HandoverState,
    ) -> io::Result<Option<Self>> {
        let StoredEntries { names, serial } = there;
        let Some(socket) = notifier.connected()? else {
            return Ok(None);
        };
        let known = |name: &String| {
            let name = FdName::parse(name).filter(|name| claimed.contains(name))?;
            now.descriptors.get(&name).cloned()
        };
        let stored: BTreeMap<String, Option<Arc<OwnedFd>>> = names
            .into_iter()
            .map(|name| {
                let known = known(&name);
                (name, known)
            })
            .collect();
        let (wanted, wishes) = watch::channel(StoreContents::default());
        let (there_now, there) = watch::channel(StoredEntries::default());
        let (confirm, confirmed) = watch::channel(0);
        let (finish, finishes) = mpsc::channel(1);
        let keeper = Keeper {
            socket: sys::writable(socket)?,
            stored,
            there: there_now,
            serial,
            index: None,
            released: 0,
            confirm,
        };
        tokio::spawn(keeper.run(wishes, finishes));
        Ok(Some(Self {
            wanted,
            finish,
            there,
            confirmed,
        }))
    }

    /// Sets the wanted content of the store.
    pub(crate) fn want(&self, wanted: StoreContents) {
        self.wanted.send_replace(wanted);
    }

    /// Returns the number of the last release that systemd has confirmed.
    pub(crate) fn confirmed(&self) -> u64 {
        *self.confirmed.borrow()
    }

    /// Waits until systemd has confirmed another release. Cancel-safe.
    pub(crate) async fn confirms(&mut self) {
        if self.confirmed.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Waits, for a limited time, until systemd has read everything, and returns the content of the store.
    pub(crate) async fn finish(self) -> StoredEntries {
        let (done, finished) = oneshot::channel();
        if self.finish.send(done).await.is_ok() {
            // After a timeout the next supervisor finds the stored descriptors, and other instances by their locks.
            let _ = tokio::time::timeout(BARRIER, finished).await;
        }
        self.there.borrow().clone()
    }
}

struct Keeper {
    socket: AsyncFd<OwnedFd>,
    /// Content of the store; `None` for a descriptor of an earlier supervisor that is not used.
    stored: BTreeMap<String, Option<Arc<OwnedFd>>>,
    there: watch::Sender<StoredEntries>,
    serial: u64,
    /// The last index written.
    index: Option<Arc<HandoverIndex>>,
    /// Number of the last release that systemd was asked to confirm.
    released: u64,
    confirm: watch::Sender<u64>,
}

impl Keeper {
    async fn run(
        mut self,
        mut wishes: watch::Receiver<StoreContents>,
        mut finishes: mpsc::Receiver<oneshot::Sender<()>>,
    ) {
        let mut failing = false;
        loop {
            // Cancel-safe: the next `changed` sees a wish that this call missed.
            let finish = tokio::select! {
                biased;
                changed = wishes.changed() => match changed {
                    Ok(()) => None,
                    Err(_) => return,
                },
                finish = finishes.recv() => match finish {
                    Some(finish) => Some(finish),
                    None => return,
                },
            };
            let wanted = wishes.borrow_and_update().clone();
            let released = wanted.released;
            let outcome = self.sync(wanted).await;
            if released > self.released {
                self.released = released;
                self.confirm(released, &outcome).await;
            }
            if let Err(error) = &outcome
                && !failing
            {
                tracing::error!(%error, "systemd's descriptor store is not in step: after a crash, brokers are taken over by their locks");
            }
            failing = outcome.is_err();
            self.there.send_replace(StoredEntries {
                names: self.stored.keys().cloned().collect(),
                serial: self.serial,
            });
            if let Some(finish) = finish {
                if let Err(error) = self.barrier().await {
                    tracing::warn!(%error, "systemd was not heard to have read everything");
                }
                let _ = finish.send(());
            }
        }
    }

    async fn sync(&mut self, wanted: StoreContents) -> io::Result<()> {
        let Some(index) = wanted.index else {
            return Ok(());
        };
        let is_right = |name: &String, fd: &Option<Arc<OwnedFd>>| {
            let ours = wanted.descriptors.get(name);
            ours.zip(fd.as_ref())
                .is_some_and(|(ours, fd)| Arc::ptr_eq(ours, fd))
        };
        let is_index = |name: &String| INDEX_NAMES.contains(&name.as_str());
        let wrong: Vec<String> = self
            .stored
            .iter()
            .filter(|(name, fd)| !is_index(name) && !is_right(name, fd))
            .map(|(name, _)| name.clone())
            .collect();
        for name in wrong {
            self.remove(&name).await?;
        }
        for (name, fd) in &wanted.descriptors {
            if !self.stored.contains_key(name) {
                self.add(name, fd).await?;
            }
        }
        if self.index.as_ref() != Some(&index) {
            self.write_index(index).await?;
        }
        Ok(())
    }

    async fn write_index(&mut self, index: Arc<HandoverIndex>) -> io::Result<()> {
        self.serial += 1;
        let mut numbered = (*index).clone();
        numbered.serial = self.serial;
        // Takes a few milliseconds for a thousand tenants, so it must not run on the event loop.
        let state = move || memfd::sealed("brokkr-state", &numbered.encode());
        let state = tokio::task::spawn_blocking(state).await;
        let state = Arc::new(state.map_err(io::Error::other)??);
        let old = self
            .stored
            .keys()
            .find(|name| INDEX_NAMES.contains(&name.as_str()));
        let (old, new) = match old.map(String::as_str) {
            Some(old) if old == INDEX_NAMES[0] => (INDEX_NAMES[0], INDEX_NAMES[1]),
            _ => (INDEX_NAMES[1], INDEX_NAMES[0]),
        };
        // An earlier supervisor that was killed between adding and removing has left two indexes.
        if self.stored.contains_key(new) {
            self.remove(new).await?;
        }
        self.add(new, &state).await?;
        if self.stored.contains_key(old) {
            self.remove(old).await?;
        }
        self.index = Some(index);
        Ok(())
    }

    async fn add(&mut self, name: &str, fd: &Arc<OwnedFd>) -> io::Result<()> {
        // systemd must drop a listening socket that no longer listens, but keep the others when they hang up.
        let poll = match FdName::parse(name).map(|name| name.kind) {
            Some(FdKind::Listener) => "",
            _ => "\nFDPOLL=0",
        };
        let text = format!("FDSTORE=1\nFDNAME={name}{poll}");
        self.send(&text, &[fd.as_raw_fd()]).await?;
        self.stored.insert(name.to_owned(), Some(Arc::clone(fd)));
        Ok(())
    }

    async fn remove(&mut self, name: &str) -> io::Result<()> {
        self.send(&format!("FDSTOREREMOVE=1\nFDNAME={name}"), &[])
            .await?;
        self.stored.remove(name);
        Ok(())
    }

    async fn barrier(&self) -> io::Result<()> {
        let _ = self.ask_barrier().await?.readable().await?;
        Ok(())
    }

    /// Sends a barrier: systemd closes its copy of the pipe's write end once it has processed everything sent before.
    /// The returned read end is readable then.
    async fn ask_barrier(&self) -> io::Result<AsyncFd<OwnedFd>> {
        let (read, write) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
        self.send("BARRIER=1", &[write.as_raw_fd()]).await?;
        drop(write);
        sys::readable(read)
    }

    /// Confirms a release when systemd has processed everything sent. Another task waits for that, because the store
    /// must be kept up to date for other tenants meanwhile.
    async fn confirm(&self, released: u64, outcome: &io::Result<()>) {
        let confirm = self.confirm.clone();
        let confirmed = move || {
            confirm.send_modify(|last| *last = released.max(*last));
        };
        // When systemd could not be told, there is no confirmation to wait for.
        let barrier = match outcome {
            Ok(()) => self.ask_barrier().await.ok(),
            Err(_) => None,
        };
        let Some(barrier) = barrier else {
            return confirmed();
        };
        tokio::spawn(async move {
            let _ = tokio::time::timeout(BARRIER, barrier.readable()).await;
            confirmed();
        });
    }

    async fn send(&self, text: &str, fds: &[RawFd]) -> io::Result<()> {
        loop {
            let mut ready = self.socket.writable().await?;
            let rights = [ControlMessage::ScmRights(fds)];
            let control: &[ControlMessage<'_>] = if fds.is_empty() { &[] } else { &rights };
            let sent = ready.try_io(|socket| {
                let parts = [IoSlice::new(text.as_bytes())];
                let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
                let sent = sendmsg::<()>(socket.as_raw_fd(), &parts, control, flags, None)?;
                Ok(sent)
            });
            if let Ok(sent) = sent {
                return sent.map(drop);
            }
        }
    }
}

#[cfg(test)]
mod tests;
