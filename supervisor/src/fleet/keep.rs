//! Keeps systemd's descriptor store in step with the fleet: a little late, so that a storm of changes is one wish.

use super::Fleet;
use crate::handover::Estate;
use crate::handover::names::Name;
use crate::systemd::Notifier;
use crate::systemd::store::{Choice, Store, There};
use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// From a change to the store, at least and at most. Who is killed in between leaves less than everything; locks say the
/// rest.
const LATE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));
/// Orders wait no longer for systemd to close a socket that is not wanted any more.
const CONFIRMED: Duration = Duration::from_secs(5);
/// Looking at everything takes no more than this part of the loop's time, however many tenants there are.
const PART: u32 = 20;

/// What is needed to keep the store.
pub(crate) struct Keeping {
    /// The way to systemd.
    pub(crate) notifier: Notifier,
    /// How many descriptors it keeps for our unit.
    pub(crate) most: u32,
    /// Descriptors of the embedded server, as of now.
    pub(crate) embedded: Box<dyn Fn() -> Vec<(Name, Arc<OwnedFd>)> + Send>,
}

/// The store, as the fleet keeps it.
pub(super) struct Kept {
    store: Store,
    choice: Choice,
    embedded: Box<dyn Fn() -> Vec<(Name, Arc<OwnedFd>)> + Send>,
    due: Option<Instant>,
    late: Duration,
    /// Number of the last release, and when it was asked for.
    released: (u64, Instant),
    /// Number of the last release that is not waited for any more.
    given_up: u64,
}

impl Kept {
    fn is_released(&self, release: u64) -> bool {
        release <= self.given_up.max(self.store.confirmed())
    }
}

/// Waits until another release is over. Cancel-safe.
pub(super) async fn released(store: &mut Option<Kept>) {
    let Some(kept) = store else {
        return std::future::pending().await;
    };
    let (last, asked) = kept.released;
    if kept.is_released(last) {
        return kept.store.confirms().await;
    }
    if tokio::time::timeout_at(asked + CONFIRMED, kept.store.confirms())
        .await
        .is_err()
    {
        kept.given_up = last;
    }
}

impl Fleet {
    /// Begins to keep the store; what is in it, and what of that is in use.
    pub(super) fn begin_to_keep(
        &mut self,
        keeping: Keeping,
        there: There,
        claimed: &BTreeSet<Name>,
    ) {
        let now = self.estate(&BTreeMap::new());
        match Store::start(&keeping.notifier, there, claimed, &now) {
            Ok(Some(store)) => {
                self.store = Some(Kept {
                    store,
                    choice: Choice::new(keeping.most),
                    embedded: keeping.embedded,
                    due: Some(Instant::now()),
                    late: LATE.0,
                    released: (0, Instant::now()),
                    given_up: 0,
                });
            }
            Ok(None) => {}
            Err(error) => {
                tracing::error!(%error, "systemd's descriptor store cannot be kept: after a crash, brokers are taken over by their locks");
            }
        }
    }

    /// Something that belongs into the store may have changed.
    pub(super) fn keep_soon(&mut self) {
        if let Some(kept) = &mut self.store {
            let late = kept.late;
            kept.due.get_or_insert_with(|| Instant::now() + late);
        }
    }

    /// Numbers the release of a socket that was just closed here: its address is free once systemd has closed its copy too.
    pub(super) fn release(&mut self) -> u64 {
        let Some(kept) = &mut self.store else {
            return 0;
        };
        // At once, unless there are so many tenants that looking at all of them takes its time.
        let soon = Instant::now() + (kept.late - LATE.0);
        kept.due = Some(kept.due.map_or(soon, |due| due.min(soon)));
        kept.released = (kept.released.0 + 1, Instant::now());
        kept.released.0
    }

    /// Whether the sockets of this release are closed everywhere.
    pub(super) fn is_released(&self, release: u64) -> bool {
        self.store
            .as_ref()
            .is_none_or(|kept| kept.is_released(release))
    }

    /// Whether the sockets of every release are closed everywhere.
    pub(super) fn all_released(&self) -> bool {
        self.store
            .as_ref()
            .is_none_or(|kept| kept.is_released(kept.released.0))
    }

    /// When the store is to be brought in step.
    pub(super) fn keep_at(&self) -> Option<Instant> {
        self.store.as_ref()?.due
    }

    /// Brings the store in step, if that is due.
    pub(super) fn keep(&mut self) {
        if self.keep_at().is_none_or(|due| due > Instant::now()) {
            return;
        }
        let began = Instant::now();
        let estate = self.whole_estate(self.estate(&BTreeMap::new()));
        if let Some(kept) = &mut self.store {
            kept.due = None;
            let before = kept.choice.left_out().len();
            let mut wanted = kept.choice.choose(estate);
            wanted.released = kept.released.0;
            kept.store.want(wanted);
            self.stale |= kept.choice.left_out().len() != before;
            kept.late = (began.elapsed() * PART).clamp(LATE.0, LATE.1);
        }
    }

    fn whole_estate(&self, mut estate: Estate) -> Estate {
        if let Some(kept) = &self.store {
            let embedded = (kept.embedded)();
            estate.index.embedded = !embedded.is_empty();
            estate.descriptors.extend(embedded);
        }
        estate
    }

    /// Brings the store in step for the last time, waits until systemd has heard it, and notes what is there then.
    pub(super) async fn keep_last(&mut self, estate: &mut Estate) {
        let copy = Estate {
            index: estate.index.clone(),
            descriptors: estate.descriptors.clone(),
        };
        let copy = self.whole_estate(copy);
        if let Some(mut kept) = self.store.take() {
            let mut wanted = kept.choice.choose(copy);
            wanted.released = kept.released.0;
            kept.store.want(wanted);
            let There { names, serial } = kept.store.finish().await;
            (estate.index.stored, estate.index.serial) = (names, serial);
        }
    }

    /// What `status` says of tenants that are not stored.
    pub(super) fn unstored(&self) -> Option<String> {
        let left_out = self.store.as_ref()?.choice.left_out();
        let first = left_out.first()?;
        let more = match left_out.len() {
            1 => String::new(),
            n => format!(" and {} more", n - 1),
        };
        Some(format!(
            "tenant {first}{more}: unstored, because systemd keeps no more descriptors (FileDescriptorStoreMax=): after a crash of the supervisor its socket is taken back from its broker where that is permitted, else it is drained and started again"
        ))
    }
}
