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
            kept.store.want(kept.choice.choose(estate));
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
            kept.store.want(kept.choice.choose(copy));
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
