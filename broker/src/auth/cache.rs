//! Who held which hash a moment ago: positive answers only, for a bounded time, in bounded space.
//!
//! Every answer is kept with the schema's epoch of credentials at that moment, and believed only while that is the epoch
//! now. "Now" is what somebody read less than [`CONFIRMED_FOR`] ago; after that, the next to ask goes to the schema, and
//! confirms the epoch for all.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::Principal;
use crate::pak::PakHash;

/// Most entries held.
const CAPACITY: usize = 10_000;

/// How long the epoch read last is taken for the epoch now: as long may a PAK that died elsewhere live on here.
pub const CONFIRMED_FOR: Duration = Duration::from_secs(1);

/// Shared by every request of the process. When full, the older half is dropped.
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
    /// What was asked before this moment confirms nothing.
    forgot: Option<Instant>,
}

/// The epoch, and a moment at which it was that.
#[derive(Clone, Copy, Debug)]
struct Confirmed {
    epoch: i64,
    asked: Instant,
}

/// Two maps instead of an order of age: new entries go to `young`; when that holds half the capacity it becomes `old` and
/// the previous `old` is dropped. Every operation is constant in time and nothing is ever scanned.
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
    /// A cache whose entries live this long. Zero switches it off.
    pub fn new(lifetime: Duration) -> Self {
        Self {
            inner: Arc::new(Inner {
                lifetime,
                state: Mutex::default(),
            }),
        }
    }

    /// Who holds this hash, if that was found out recently and no PAK has died since.
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

    /// Takes this for the epoch of a moment after `asked`, which is when the schema was asked for it.
    pub fn confirm(&self, epoch: i64, asked: Instant) {
        let mut state = self.state();
        // An answer that was overtaken by a later question, or by an invalidation, says nothing about now.
        let overtaken = state.confirmed.is_some_and(|known| known.asked > asked)
            || state.forgot.is_some_and(|forgot| forgot > asked);
        if !overtaken {
            state.confirmed = Some(Confirmed { epoch, asked });
        }
    }

    /// The epoch read last, if it has been read since something was forgotten.
    pub fn epoch(&self) -> Option<i64> {
        self.state().confirmed.map(|confirmed| confirmed.epoch)
    }

    /// Remembers who holds a hash, as read in one snapshot with this epoch.
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

    /// Forgets what is known of this principal, and believes nothing of others until the schema has been asked again. Call
    /// it after the death of its PAK has been committed: in this process it is dead from then on, and what a request that
    /// runs beside this one has read before the commit is not believed either.
    pub fn forget(&self, principal: Principal) {
        let mut state = self.state();
        let of_another = |_: &PakHash, entry: &mut Entry| entry.principal != principal;
        state.entries.young.retain(of_another);
        state.entries.old.retain(of_another);
        state.confirmed = None;
        state.forgot = Some(Instant::now());
    }

    /// Nothing under this lock can panic half-way, so a poisoned state is still whole.
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
            "somebody's PAK has died"
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
