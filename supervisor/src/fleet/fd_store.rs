//! Keeps systemd's descriptor store in step with the fleet. Updates are delayed, so that many changes make one update.

use super::Fleet;
use crate::handover::HandoverState;
use crate::handover::fd_names::FdName;
use crate::systemd::Notifier;
use crate::systemd::store::{FdStoreClient, StoreSelection, StoredEntries};
use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// The shortest and the longest delay between a change and the update of the store. After a crash within the delay the
/// next supervisor finds the newest brokers by their locks.
const LATE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));
/// The longest time that orders wait for systemd to close a released socket.
const CONFIRMED: Duration = Duration::from_secs(5);
/// The delay grows with the time an update takes, so that updates take at most 1/20 of the loop's time.
const PART: u32 = 20;

/// Parts needed to keep the store.
pub(crate) struct FdStoreInputs {
    pub(crate) notifier: Notifier,
    /// The number of descriptors that systemd keeps for the unit.
    pub(crate) most: u32,
    /// Returns the current descriptors of the embedded server.
    pub(crate) embedded: Box<dyn Fn() -> Vec<(FdName, Arc<OwnedFd>)> + Send>,
}

/// State of the store.
pub(super) struct FdStore {
    store: FdStoreClient,
    choice: StoreSelection,
    embedded: Box<dyn Fn() -> Vec<(FdName, Arc<OwnedFd>)> + Send>,
    due: Option<Instant>,
    late: Duration,
    /// Number of the last release, and the time it was requested.
    released: (u64, Instant),
    /// Releases up to this number are no longer waited for.
    given_up: u64,
}

impl FdStore {
    fn is_released(&self, release: u64) -> bool {
        release <= self.given_up.max(self.store.confirmed())
    }
}

/// Waits until another release is confirmed, or until the wait for the last release times out. Cancel-safe.
pub(super) async fn released(store: &mut Option<FdStore>) {
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
    /// Begins to keep the store. `there` lists the store's content, `claimed` the descriptors of it that are in use.
    pub(super) fn begin_to_keep(
        &mut self,
        keeping: FdStoreInputs,
        there: StoredEntries,
        claimed: &BTreeSet<FdName>,
    ) {
        let now = self.handover_state(&BTreeMap::new());
        match FdStoreClient::start(&keeping.notifier, there, claimed, &now) {
            Ok(Some(store)) => {
                self.store = Some(FdStore {
                    store,
                    choice: StoreSelection::new(keeping.most),
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

    /// Schedules an update of the store.
    pub(super) fn keep_soon(&mut self) {
        if let Some(kept) = &mut self.store {
            let late = kept.late;
            kept.due.get_or_insert_with(|| Instant::now() + late);
        }
    }

    /// Numbers the release of a socket just closed here: its address is free once systemd has closed its copy too.
    pub(super) fn release(&mut self) -> u64 {
        let Some(kept) = &mut self.store else {
            return 0;
        };
        // Update at once, except with so many tenants that an update itself takes long.
        let soon = Instant::now() + (kept.late - LATE.0);
        kept.due = Some(kept.due.map_or(soon, |due| due.min(soon)));
        kept.released = (kept.released.0 + 1, Instant::now());
        kept.released.0
    }

    /// Returns true when every copy of this release's sockets is closed.
    pub(super) fn is_released(&self, release: u64) -> bool {
        self.store
            .as_ref()
            .is_none_or(|kept| kept.is_released(release))
    }

    /// Returns true when every copy of all released sockets is closed.
    pub(super) fn all_released(&self) -> bool {
        self.store
            .as_ref()
            .is_none_or(|kept| kept.is_released(kept.released.0))
    }

    /// Returns the time of the next update.
    pub(super) fn keep_at(&self) -> Option<Instant> {
        self.store.as_ref()?.due
    }

    /// Updates the store if an update is due.
    pub(super) fn keep(&mut self) {
        if self.keep_at().is_none_or(|due| due > Instant::now()) {
            return;
        }
        let began = Instant::now();
        let handover_state = self.whole_handover_state(self.handover_state(&BTreeMap::new()));
        if let Some(kept) = &mut self.store {
            kept.due = None;
            let before = kept.choice.left_out().len();
            let mut wanted = kept.choice.choose(handover_state);
            wanted.released = kept.released.0;
            kept.store.want(wanted);
            self.stale |= kept.choice.left_out().len() != before;
            kept.late = (began.elapsed() * PART).clamp(LATE.0, LATE.1);
        }
    }

    fn whole_handover_state(&self, mut handover_state: HandoverState) -> HandoverState {
        if let Some(kept) = &self.store {
            let embedded = (kept.embedded)();
            handover_state.index.embedded = !embedded.is_empty();
            handover_state.descriptors.extend(embedded);
        }
        handover_state
    }

    /// Updates the store a last time, waits until systemd has read it, and notes the store's content in `handover_state`.
    pub(super) async fn keep_last(&mut self, handover_state: &mut HandoverState) {
        let copy = HandoverState {
            index: handover_state.index.clone(),
            descriptors: handover_state.descriptors.clone(),
        };
        let copy = self.whole_handover_state(copy);
        if let Some(mut kept) = self.store.take() {
            let mut wanted = kept.choice.choose(copy);
            wanted.released = kept.released.0;
            kept.store.want(wanted);
            let StoredEntries { names, serial } = kept.store.finish().await;
            (handover_state.index.stored, handover_state.index.serial) = (names, serial);
        }
    }

    /// Returns the notice for `status` about tenants that are not stored.
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
