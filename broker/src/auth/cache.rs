//! Cache of the principal behind each PAK hash. Only valid PAKs are cached, for a bounded time and in bounded space.
//!
//! Each entry stores the schema's epoch of credentials at its reading, and is valid only while that epoch is the
//! current one. The current epoch is the epoch read less than [`CONFIRMED_FOR`] ago; after that, the next request reads
//! the schema and confirms the epoch for all entries.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::principal::Principal;
use crate::pak::PakHash;

/// Largest number of entries.
const CAPACITY: usize = 10_000;

/// Time for which an epoch counts as current after its reading. A PAK that another process revoked stays valid here no
/// longer than this.
pub const CONFIRMED_FOR: Duration = Duration::from_secs(1);

/// Cache shared by every request of the process. When full, the older half is dropped.
#[derive(Clone, Debug)]
pub struct Cache {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    lifetime: Duration,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    entries: Generations,
    confirmed: Option<Confirmed>,
    /// Moment of the latest invalidation; an epoch asked for before it is ignored.
    forgot: Option<Instant>,
}

/// The epoch, and the moment at which the schema was asked for it.
#[derive(Clone, Copy, Debug)]
struct Confirmed {
    epoch: i64,
    asked: Instant,
}

/// The entries in two maps, instead of an order by age. New entries go to `young`; when it holds half the capacity it
/// becomes `old` and the previous `old` is dropped. Every operation takes constant time, except an invalidation.
#[derive(Debug, Default)]
struct Generations {
    young: HashMap<PakHash, Entry>,
    old: HashMap<PakHash, Entry>,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    principal: Principal,
    epoch: i64,
    expires: Instant,
}

impl Cache {
    /// Creates a cache whose entries live for `lifetime`. Zero switches the cache off.
    pub fn new(lifetime: Duration) -> Self {
        Self {
            inner: Arc::new(Inner {
                lifetime,
                state: Mutex::default(),
            }),
        }
    }

    /// Returns the principal that holds this hash, if the entry is fresh and no PAK has been revoked since its reading.
    pub fn get(&self, hash: &PakHash) -> Option<Principal> {
        self.get_at(hash, Instant::now())
    }

    fn get_at(&self, hash: &PakHash, now: Instant) -> Option<Principal> {
        let state = self.state();
        let confirmed = state.confirmed?;
        if now.saturating_duration_since(confirmed.asked) >= CONFIRMED_FOR {
            return None;
        }
        let entries = &state.entries;
        let entry = entries.young.get(hash).or_else(|| entries.old.get(hash))?;
        (entry.epoch == confirmed.epoch && entry.expires > now).then_some(entry.principal)
    }

    /// Returns true when the hash was that of a valid PAK at its last look-up here. It may have been revoked since.
    pub fn has_held(&self, hash: &PakHash) -> bool {
        let entries = &self.state().entries;
        entries.young.contains_key(hash) || entries.old.contains_key(hash)
    }

    /// Sets the current epoch; `asked` is the moment at which the schema was asked for it.
    pub fn confirm(&self, epoch: i64, asked: Instant) {
        let mut state = self.state();
        // An answer is ignored when a later question or an invalidation overtook it.
        let overtaken = state.confirmed.is_some_and(|known| known.asked > asked)
            || state.forgot.is_some_and(|forgot| forgot > asked);
        if !overtaken {
            state.confirmed = Some(Confirmed { epoch, asked });
        }
    }

    /// Returns the epoch read last, if it was read since the latest invalidation.
    pub fn epoch(&self) -> Option<i64> {
        self.state().confirmed.map(|confirmed| confirmed.epoch)
    }

    /// Stores the principal that holds a hash, as read in one snapshot with this epoch.
    pub fn insert(&self, hash: PakHash, principal: Principal, epoch: i64) {
        if self.inner.lifetime.is_zero() {
            return;
        }
        let mut state = self.state();
        let entries = &mut state.entries;
        if entries.young.len() >= CAPACITY / 2 {
            entries.old = std::mem::take(&mut entries.young);
        }
        let entry = Entry {
            principal,
            epoch,
            expires: Instant::now() + self.inner.lifetime,
        };
        entries.young.insert(hash, entry);
    }

    /// Removes the entry of a hash that has no holder.
    pub fn remove(&self, hash: &PakHash) {
        let entries = &mut self.state().entries;
        entries.young.remove(hash);
        entries.old.remove(hash);
    }

    /// Removes the entries of this principal, and trusts no other entry until the epoch has been read again. Call it
    /// after the revocation of the PAK has been committed: this process then refuses the PAK at once, and ignores an
    /// epoch that a concurrent request read before the commit.
    pub fn forget(&self, principal: Principal) {
        let mut state = self.state();
        let of_another = |_: &PakHash, entry: &mut Entry| entry.principal != principal;
        state.entries.young.retain(of_another);
        state.entries.old.retain(of_another);
        state.confirmed = None;
        state.forgot = Some(Instant::now());
    }

    /// A poisoned state is consistent, because nothing under this lock can panic half-way.
    fn state(&self) -> MutexGuard<'_, State> {
        self.inner
            .state
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    fn hash(n: u32) -> PakHash {
        PakHash::of(&format!("a_b_{n}")).unwrap()
    }

    fn cache() -> Cache {
        Cache::new(Duration::from_secs(60))
    }

    #[test]
    fn an_entry_is_believed_only_under_its_epoch_and_while_that_is_known_to_be_the_epoch_now() {
        let (cache, began) = (cache(), Instant::now());
        cache.insert(hash(1), Principal::Admin, 7);
        assert_eq!(cache.get(&hash(1)), None, "no epoch is known");
        cache.confirm(7, began);
        let just = began + CONFIRMED_FOR - Duration::from_millis(1);
        assert_eq!(cache.get_at(&hash(1), just), Some(Principal::Admin));
        assert_eq!(cache.get_at(&hash(1), began + CONFIRMED_FOR), None);
        cache.confirm(8, began + CONFIRMED_FOR);
        assert_eq!(
            cache.get_at(&hash(1), began + CONFIRMED_FOR),
            None,
            "the PAK of another caller is dead"
        );
        cache.insert(hash(1), Principal::Admin, 8);
        let now = began + CONFIRMED_FOR;
        assert_eq!(cache.get_at(&hash(1), now), Some(Principal::Admin));
    }

    #[test]
    fn an_answer_overtaken_by_a_later_one_or_by_an_invalidation_confirms_nothing() {
        let (cache, began) = (cache(), Instant::now());
        cache.insert(hash(1), Principal::Admin, 7);
        cache.confirm(8, began + Duration::from_millis(2));
        cache.confirm(7, began + Duration::from_millis(1));
        assert_eq!(cache.get(&hash(1)), None);
        let asked = Instant::now();
        cache.forget(Principal::Agent(uuid::Uuid::nil()));
        cache.confirm(7, asked.checked_sub(Duration::from_millis(1)).unwrap());
        assert_eq!(cache.get(&hash(1)), None);
        cache.confirm(7, Instant::now());
        assert_eq!(cache.get(&hash(1)), Some(Principal::Admin));
    }

    #[test]
    fn a_forgotten_principal_is_asked_for_again_and_others_stay() {
        let cache = cache();
        let agent = Principal::Agent(uuid::Uuid::new_v4());
        cache.insert(hash(1), agent, 0);
        cache.insert(hash(2), Principal::Admin, 0);
        cache.forget(agent);
        cache.confirm(0, Instant::now());
        assert_eq!(cache.get(&hash(1)), None);
        assert_eq!(cache.get(&hash(2)), Some(Principal::Admin));
    }

    #[test]
    fn a_hash_has_been_held_until_it_is_removed_also_when_its_entry_is_not_trusted() {
        let cache = cache();
        cache.insert(hash(1), Principal::Admin, 0);
        assert_eq!(cache.get(&hash(1)), None);
        assert!(cache.has_held(&hash(1)) && !cache.has_held(&hash(2)));
        cache.remove(&hash(1));
        assert!(!cache.has_held(&hash(1)));
    }

    #[test]
    fn it_never_holds_more_than_its_capacity_and_keeps_the_newest() {
        let cache = cache();
        for n in 0..25_000 {
            cache.insert(hash(n), Principal::Admin, 0);
            let entries = &cache.state().entries;
            assert!(entries.young.len() + entries.old.len() <= CAPACITY);
        }
        cache.confirm(0, Instant::now());
        assert_eq!(cache.get(&hash(24_999)), Some(Principal::Admin));
        assert_eq!(cache.get(&hash(0)), None);
    }

    #[test]
    fn a_lifetime_of_zero_remembers_nothing() {
        let cache = Cache::new(Duration::ZERO);
        cache.insert(hash(1), Principal::Admin, 0);
        cache.confirm(0, Instant::now());
        assert_eq!(cache.get(&hash(1)), None);
    }
}
