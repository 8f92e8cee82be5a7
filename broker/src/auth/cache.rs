//! Who held which hash a moment ago: positive answers only, for a bounded time, in bounded space.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::Principal;
use crate::pak::PakHash;

/// Most entries held.
const CAPACITY: usize = 10_000;

/// Shared by every request of the process. When full, the older half is dropped.
#[derive(Clone, Debug)]
pub struct Cache {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    lifetime: Duration,
    /// Raised by every invalidation; see [`Cache::insert`].
    epoch: AtomicU64,
    entries: Mutex<Generations>,
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
    expires: Instant,
}

impl Cache {
    /// A cache whose entries live this long. Zero switches it off.
    pub fn new(lifetime: Duration) -> Self {
        Self {
            inner: Arc::new(Inner {
                lifetime,
                epoch: AtomicU64::new(0),
                entries: Mutex::default(),
            }),
        }
    }

    /// Who holds this hash, if that was found out recently.
    pub fn get(&self, hash: &PakHash) -> Option<Principal> {
        let entries = self.entries();
        let entry = entries.young.get(hash).or_else(|| entries.old.get(hash))?;
        (entry.expires > Instant::now()).then_some(entry.principal)
    }

    /// The number of invalidations so far. To be read before the schema is asked, and given to [`Cache::insert`].
    pub fn epoch(&self) -> u64 {
        self.inner.epoch.load(Ordering::SeqCst)
    }

    /// Remembers who holds a hash, unless something was invalidated since `epoch`.
    ///
    /// The race this prevents: a request reads the old holder, a rotation commits and invalidates, the request stores what
    /// it read, and the rotated PAK lives on for one more lifetime.
    pub fn insert(&self, hash: PakHash, principal: Principal, epoch: u64) {
        if self.inner.lifetime.is_zero() {
            return;
        }
        let mut entries = self.entries();
        // Under the lock that invalidation takes as well, so that it cannot slip in between this check and the insert.
        if self.epoch() != epoch {
            return;
        }
        if entries.young.len() >= CAPACITY / 2 {
            entries.old = std::mem::take(&mut entries.young);
        }
        let expires = Instant::now() + self.inner.lifetime;
        entries.young.insert(hash, Entry { principal, expires });
    }

    /// Forgets everything known of this principal. Call it after the change has been committed.
    pub fn forget(&self, principal: Principal) {
        let mut entries = self.entries();
        self.inner.epoch.fetch_add(1, Ordering::SeqCst);
        entries
            .young
            .retain(|_, entry| entry.principal != principal);
        entries.old.retain(|_, entry| entry.principal != principal);
    }

    /// Nothing under this lock can panic half-way, so a poisoned map is still whole.
    fn entries(&self) -> MutexGuard<'_, Generations> {
        self.inner
            .entries
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

    #[test]
    fn what_was_read_before_an_invalidation_is_not_remembered() {
        let cache = Cache::new(Duration::from_secs(60));
        let epoch = cache.epoch();
        cache.forget(Principal::Admin);
        cache.insert(hash(1), Principal::Admin, epoch);
        assert_eq!(cache.get(&hash(1)), None);
    }

    #[test]
    fn a_forgotten_principal_is_asked_for_again_and_others_stay() {
        let cache = Cache::new(Duration::from_secs(60));
        let agent = Principal::Agent(uuid::Uuid::new_v4());
        cache.insert(hash(1), agent, cache.epoch());
        cache.insert(hash(2), Principal::Admin, cache.epoch());
        cache.forget(agent);
        assert_eq!(cache.get(&hash(1)), None);
        assert_eq!(cache.get(&hash(2)), Some(Principal::Admin));
    }

    #[test]
    fn it_never_holds_more_than_its_capacity_and_keeps_the_newest() {
        let cache = Cache::new(Duration::from_secs(60));
        for n in 0..25_000 {
            cache.insert(hash(n), Principal::Admin, cache.epoch());
            let entries = cache.entries();
            assert!(entries.young.len() + entries.old.len() <= CAPACITY);
        }
        assert_eq!(cache.get(&hash(24_999)), Some(Principal::Admin));
        assert_eq!(cache.get(&hash(0)), None);
    }

    #[test]
    fn a_lifetime_of_zero_remembers_nothing() {
        let cache = Cache::new(Duration::ZERO);
        cache.insert(hash(1), Principal::Admin, cache.epoch());
        assert_eq!(cache.get(&hash(1)), None);
    }
}
