//! Keeps systemd's descriptor store in step with what runs, so that the next supervisor finds it all.
//!
//! One task, told what should be in the store and knowing what is: the latest wish counts. Datagrams to systemd keep their
//! order. What goes is removed before its name is used again, what comes is added before the index speaks of it, and the
//! old index is removed only when the new one is there: whenever we are killed, what is found is true, if perhaps not all.

use super::Notifier;
use crate::handover::inherited::INDEX_NAMES;
use crate::handover::names::{Kind, MOST_STORED, Name, fitting};
use crate::handover::{Estate, Index};
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

/// systemd's answer that it has read everything we sent.
const BARRIER: Duration = Duration::from_secs(2);
/// The two names of the index are not given to anything else.
const INDEXES: usize = INDEX_NAMES.len();

/// What should be in the store.
#[derive(Debug, Clone, Default)]
pub(crate) struct Wanted {
    /// Descriptors by name.
    descriptors: BTreeMap<String, Arc<OwnedFd>>,
    /// What says whose they are.
    index: Option<Arc<Index>>,
    /// Number of the last release to be confirmed: once systemd has closed its copy of what is not wanted any more.
    pub(crate) released: u64,
}

/// Chooses what is stored when not all fits: a tenant whole or not at all, and who has a place keeps it.
#[derive(Debug)]
pub(crate) struct Choice {
    most: usize,
    kept: BTreeSet<TenantName>,
    left_out: Vec<TenantName>,
}

impl Choice {
    /// A choice among as many descriptors as systemd keeps for the unit.
    pub(crate) fn new(most: u32) -> Self {
        let most = usize::try_from(most).unwrap_or(usize::MAX);
        Self {
            most: most.min(MOST_STORED),
            kept: BTreeSet::new(),
            left_out: Vec::new(),
        }
    }

    /// Tenants that are not stored because not all fit.
    pub(crate) fn left_out(&self) -> &[TenantName] {
        &self.left_out
    }

    /// Makes the wish of what there is.
    pub(crate) fn choose(&mut self, mut estate: Estate) -> Wanted {
        let mut groups: BTreeMap<(bool, TenantName), Vec<Name>> = BTreeMap::new();
        let listeners = estate.index.listeners.iter();
        let listeners = listeners.map(|l| (&l.tenant, Name::new(l.id, Kind::Listener)));
        let instances = estate.index.instances.iter().flat_map(|record| {
            let kinds = record
                .id
                .into_iter()
                .flat_map(|id| [Kind::Log, Kind::Death].map(|kind| Name::new(id, kind)));
            kinds.map(move |name| (&record.tenant, name))
        });
        for (tenant, name) in listeners.chain(instances) {
            if estate.descriptors.contains_key(&name) {
                let newcomer = !self.kept.contains(tenant);
                let group = groups.entry((newcomer, tenant.clone())).or_default();
                group.push(name);
            }
        }
        // The index, and the embedded server's two, come first.
        let fitting = fitting(&groups, self.most.saturating_sub(INDEXES + 2));
        self.kept = fitting.iter().map(|(_, tenant)| tenant.clone()).collect();
        self.left_out = groups
            .keys()
            .filter(|group| !fitting.contains(*group))
            .map(|(_, tenant)| tenant.clone())
            .collect();
        for record in &mut estate.index.instances {
            record.id = record.id.filter(|_| self.kept.contains(&record.tenant));
        }
        estate
            .index
            .listeners
            .retain(|l| self.kept.contains(&l.tenant));
        let stored: BTreeSet<Name> = groups
            .iter()
            .filter(|(group, _)| fitting.contains(*group))
            .flat_map(|(_, names)| names.iter().copied())
            .collect();
        let embedded = |name: &Name| name.id == crate::handover::names::EMBEDDED;
        let descriptors = estate
            .descriptors
            .into_iter()
            .filter(|(name, _)| embedded(name) || stored.contains(name))
            .map(|(name, fd)| (name.to_string(), fd))
            .collect();
        Wanted {
            descriptors: if self.most > 0 {
                descriptors
            } else {
                BTreeMap::new()
            },
            index: (self.most > 0).then(|| Arc::new(estate.index)),
            released: 0,
        }
    }
}

/// The way to the task. It ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Store {
    wanted: watch::Sender<Wanted>,
    /// Full when more wait for the end than ever will.
    finish: mpsc::Sender<oneshot::Sender<()>>,
    there: watch::Receiver<There>,
    confirmed: watch::Receiver<u64>,
}

/// What is in the store.
#[derive(Debug, Clone, Default)]
pub(crate) struct There {
    /// Every name.
    pub(crate) names: Vec<String>,
    /// Of the last index.
    pub(crate) serial: u64,
}

impl Store {
    /// Starts the task. `there` is what is in the store now; `claimed`, of its names, those that stand for what `now` has
    /// under the same name. `None` where systemd cannot be told.
    ///
    /// # Errors
    /// When the event loop cannot take the socket.
    pub(crate) fn start(
        notifier: &Notifier,
        there: There,
        claimed: &BTreeSet<Name>,
        now: &Estate,
    ) -> io::Result<Option<Self>> {
        let There { names, serial } = there;
        let Some(socket) = notifier.connected()? else {
            return Ok(None);
        };
        let known = |name: &String| {
            let name = Name::parse(name).filter(|name| claimed.contains(name))?;
            now.descriptors.get(&name).cloned()
        };
        let stored: BTreeMap<String, Option<Arc<OwnedFd>>> = names
            .into_iter()
            .map(|name| {
                let known = known(&name);
                (name, known)
            })
            .collect();
        let (wanted, wishes) = watch::channel(Wanted::default());
        let (there_now, there) = watch::channel(There::default());
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

    /// What should be in the store from now on.
    pub(crate) fn want(&self, wanted: Wanted) {
        self.wanted.send_replace(wanted);
    }

    /// Number of the last release that systemd has confirmed.
    pub(crate) fn confirmed(&self) -> u64 {
        *self.confirmed.borrow()
    }

    /// Waits until systemd has confirmed another release. Cancel-safe.
    pub(crate) async fn confirms(&mut self) {
        if self.confirmed.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Waits until systemd has read all that was sent, what was wanted last included; a little while at most. Says what is
    /// in the store then.
    pub(crate) async fn finish(self) -> There {
        let (done, finished) = oneshot::channel();
        if self.finish.send(done).await.is_ok() {
            // Late or never: the next supervisor finds what is there, and the rest by its locks.
            let _ = tokio::time::timeout(BARRIER, finished).await;
        }
        self.there.borrow().clone()
    }
}

struct Keeper {
    socket: AsyncFd<OwnedFd>,
    /// What is in the store; `None` what was there before us and is of no use.
    stored: BTreeMap<String, Option<Arc<OwnedFd>>>,
    there: watch::Sender<There>,
    serial: u64,
    /// The last index written.
    index: Option<Arc<Index>>,
    /// Number of the last release that systemd was asked to confirm.
    released: u64,
    confirm: watch::Sender<u64>,
}

impl Keeper {
    async fn run(
        mut self,
        mut wishes: watch::Receiver<Wanted>,
        mut finishes: mpsc::Receiver<oneshot::Sender<()>>,
    ) {
        let mut failing = false;
        loop {
            // Cancel-safe: a wish not seen now is seen by the next `changed`.
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
            self.there.send_replace(There {
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

    async fn sync(&mut self, wanted: Wanted) -> io::Result<()> {
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

    async fn write_index(&mut self, index: Arc<Index>) -> io::Result<()> {
        self.serial += 1;
        let mut numbered = (*index).clone();
        numbered.serial = self.serial;
        // A few milliseconds for a thousand tenants: not for the event loop.
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
        // Two of them were left, by one who was killed between the two halves of this.
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
        // A listening socket is worth keeping only as long as it listens; the others say more when they hang up.
        let poll = match Name::parse(name).map(|name| name.kind) {
            Some(Kind::Listener) => "",
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

    /// Asks systemd to close its copy of the pipe's end once it has done all that was sent before: then the other end,
    /// which this returns, is readable.
    async fn ask_barrier(&self) -> io::Result<AsyncFd<OwnedFd>> {
        let (read, write) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
        self.send("BARRIER=1", &[write.as_raw_fd()]).await?;
        drop(write);
        sys::readable(read)
    }

    /// Confirms a release when systemd has done what was sent. Another task waits for that, because the store must be kept
    /// for other tenants meanwhile.
    async fn confirm(&self, released: u64, outcome: &io::Result<()>) {
        let confirm = self.confirm.clone();
        let confirmed = move || {
            confirm.send_modify(|last| *last = released.max(*last));
        };
        // A systemd that cannot be told closes nothing: there is nothing to wait for.
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
