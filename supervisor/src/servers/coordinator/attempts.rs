//! Schedules the looks at each URL and the knocks at each address.
//!
//! Every URL has its own schedule and verdict, because a login fails by its role, database, password, pooler or
//! certificate. Only the results of knocks, and answers that a server gives to every login, are shared between the URLs
//! of an address: its *door* is closed then, and opens at the first knock that is answered. Behind a newly opened door
//! a single look goes first, in case the server is still starting.
//!
//! Looks at one address take few connections: a few run at once, and each slow look makes room for the next, so that a
//! hundred hanging logins do not delay a working login. A look that met a connection limit is repeated once with no
//! other look beside it, because another look may have taken the last connection.

use super::*;

/// Range in ms of the first wait after a failure. Random, so that URLs which failed together do not retry together;
/// short, so that a server's return is seen well within a second. The wait doubles each time.
const RETRY: std::ops::Range<u64> = 250..500;
/// The longest wait. It is longer after a timeout, because a login that hangs may leave a connection behind each time.
const RETRY_AT_MOST: Duration = Duration::from_secs(2);
const RETRY_LATE_AT_MOST: Duration = Duration::from_secs(60);
/// Time until a refused URL is tried again; only a change on the server can mend it.
const RETRY_REFUSED: Duration = Duration::from_secs(5);
/// Range in ms of the wait for a server that has become read-only. Its return must be seen within a second, but every
/// try costs it two logins.
const RETRY_READ_ONLY: std::ops::Range<u64> = 500..1000;

/// Largest numbers of looks at one address at once: of recently started looks, and of all looks.
const FRESH: usize = 4;
const MOST: usize = 32;
/// A look that takes longer makes room for another.
const SLOW: Duration = Duration::from_millis(250);

/// The planned and the running look at one URL.
#[derive(Default)]
pub(super) struct UrlAttempt {
    due: Option<Instant>,
    running: Option<Running>,
    /// Number of consecutive looks that failed for a reason of the URL's own.
    failures: u32,
    /// True when the next look must run with no other look beside it.
    alone: bool,
}

struct Running {
    number: u64,
    task: AbortHandle,
    since: Instant,
}

impl UrlAttempt {
    pub(super) fn due(at: Instant) -> Self {
        Self {
            due: Some(at),
            ..Self::default()
        }
    }

    pub(super) fn stop(&mut self) {
        if let Some(running) = self.running.take() {
            running.task.abort();
        }
    }

    fn backoff(&self, at_most: Duration) -> Duration {
        let first = Duration::from_millis(fastrand::u64(RETRY));
        first
            .saturating_mul(1 << self.failures.saturating_sub(1).min(16))
            .min(at_most)
    }
}

/// State of an address.
#[derive(Default)]
pub(super) struct AddressState {
    state: DoorState,
    knocking: Option<(u64, AbortHandle)>,
}

#[derive(Default, PartialEq)]
enum DoorState {
    /// The address must be knocked at before any look.
    #[default]
    Unknown,
    /// A knock was answered, and no login has been tried since.
    Ajar,
    /// A login was tried, and the server did not refuse every login.
    Open,
    /// The door was open, then a connection was silent: the address must be knocked at again.
    Doubted,
    /// No server answers, or it refuses every login; the next knock is at this time.
    Closed(Instant),
}

impl AddressState {
    pub(super) fn stop(&mut self) {
        if let Some((_, task)) = self.knocking.take() {
            task.abort();
        }
    }
}

impl Coordinator {
    /// Starts the looks and knocks that are due and permitted.
    pub(super) fn attempt(&mut self) {
        let now = Instant::now();
        let mut waiting: BTreeMap<Address, Vec<(Instant, DatabaseUrl)>> = BTreeMap::new();
        for (url, attempt) in &self.attempts {
            if let Some(due) = attempt.due.filter(|due| *due <= now)
                && attempt.running.is_none()
            {
                let queue = waiting.entry(address_of(url)).or_default();
                queue.push((due, url.clone()));
            }
        }
        for (address, mut queue) in waiting {
            queue.sort();
            match self.doors.get(&address).map(|door| &door.state) {
                Some(DoorState::Unknown | DoorState::Doubted) | None => self.begin_knock(&address),
                Some(DoorState::Closed(until)) if *until <= now => self.begin_knock(&address),
                Some(DoorState::Closed(_)) => {}
                Some(DoorState::Ajar | DoorState::Open) => {
                    self.open_behind_slow_look(&address, now);
                    for (_, url) in queue {
                        if !self.may_look(&address, &url, now) {
                            break;
                        }
                        self.begin_look(url, now);
                    }
                }
            }
        }
    }

    /// Returns the next time at which a look or knock may become possible.
    pub(super) fn next_attempt(&self) -> Option<Instant> {
        let now = Instant::now();
        let dues = self.attempts.values().filter_map(|attempt| attempt.due);
        let slow = self.attempts.values().filter_map(|attempt| {
            let running = attempt.running.as_ref()?;
            Some(running.since + SLOW)
        });
        let doors = self.doors.values().filter_map(|door| match door.state {
            DoorState::Closed(until) => Some(until),
            _ => None,
        });
        dues.chain(slow).chain(doors).filter(|at| *at > now).min()
    }

    fn may_look(&self, address: &Address, url: &DatabaseUrl, now: Instant) -> bool {
        let (mut fresh, mut all, mut one_alone) = (0, 0, false);
        for (other, attempt) in &self.attempts {
            if let Some(running) = &attempt.running
                && address_of(other) == *address
            {
                let is_fresh = running.since + SLOW > now;
                fresh += usize::from(is_fresh);
                all += 1;
                one_alone |= is_fresh && attempt.alone;
            }
        }
        let alone = self.attempts.get(url).is_some_and(|attempt| attempt.alone);
        let ajar = self
            .doors
            .get(address)
            .is_some_and(|door| door.state == DoorState::Ajar);
        let most = if alone || ajar { 1 } else { FRESH };
        fresh < most && all < MOST && !one_alone
    }

    /// Opens an ajar door when the first look is slow, because a server that refuses every login is quick.
    fn open_behind_slow_look(&mut self, address: &Address, now: Instant) {
        let slow = self.attempts.iter().any(|(url, attempt)| {
            let running = attempt.running.as_ref();
            address_of(url) == *address && running.is_some_and(|r| r.since + SLOW <= now)
        });
        if slow {
            self.answered(address);
        }
    }

    fn begin_knock(&mut self, address: &Address) {
        // A server whose probe is silent has been waited for already.
        let in_doubt = self.endpoints.iter().any(|(url, endpoint)| {
            address_of(url) == *address && self.doubted_server(endpoint).is_some()
        });
        let deadline = if in_doubt { DEADLINE / 2 } else { DEADLINE };
        let number = self.number();
        let door = self.doors.entry(address.clone()).or_default();
        if door.knocking.is_some() {
            return;
        }
        let (events, address) = (self.events.clone(), address.clone());
        let task = spawn_local(async move {
            let result = knock(&address.0, address.1, deadline).await;
            // An error means that the coordinator has ended.
            let _ = events.send(Event::Knocked {
                address,
                number,
                result,
            });
        });
        door.knocking = Some((number, task.abort_handle()));
    }

    pub(super) fn knocked(
        &mut self,
        address: &Address,
        number: u64,
        result: Result<(), ProbeFailure>,
    ) {
        let Some(door) = self.doors.get_mut(address) else {
            return;
        };
        if door.knocking.as_ref().is_none_or(|(n, _)| *n != number) {
            return; // outdated result
        }
        door.knocking = None;
        match result {
            Ok(()) if door.state == DoorState::Doubted => door.state = DoorState::Open,
            Ok(()) => door.state = DoorState::Ajar,
            Err(failure) => self.close_door(address, &failure),
        }
    }

    /// Closes the door and records the failure for every URL of the address.
    fn close_door(&mut self, address: &Address, failure: &ProbeFailure) {
        let until = Instant::now() + Duration::from_millis(fastrand::u64(RETRY));
        self.doors.entry(address.clone()).or_default().state = DoorState::Closed(until);
        let here = self.endpoints.keys().filter(|u| address_of(u) == *address);
        for url in here.cloned().collect::<Vec<_>>() {
            if let Some(attempt) = self.attempts.get_mut(&url) {
                attempt.stop();
                attempt.failures = 0;
                attempt.due = None;
            }
            self.missed(&url, failure);
            if !matches!(self.endpoints.get(&url), Some(Endpoint::Ready(_)))
                && let Some(attempt) = self.attempts.get_mut(&url)
            {
                attempt.due = Some(until);
            }
            self.judged(&url);
        }
    }

    fn begin_look(&mut self, url: DatabaseUrl, now: Instant) {
        let number = self.number();
        let events = self.events.clone();
        let name = format!("{}{OWN_NAME}", self.prefix);
        let Some(attempt) = self.attempts.get_mut(&url) else {
            return;
        };
        let task = spawn_local(async move {
            let result = look(&url, &name).await;
            // An error means that the coordinator has ended.
            let _ = events.send(Event::Tried {
                url: Box::new(url),
                number,
                result,
            });
        });
        attempt.due = None;
        attempt.running = Some(Running {
            number,
            task: task.abort_handle(),
            since: now,
        });
    }

    pub(super) fn tried(
        &mut self,
        url: DatabaseUrl,
        number: u64,
        result: Result<Box<Found>, ProbeFailure>,
    ) {
        let address = address_of(&url);
        let Some(attempt) = self.attempts.get_mut(&url) else {
            return;
        };
        if attempt.running.as_ref().is_none_or(|r| r.number != number) {
            return; // outdated result
        }
        attempt.running = None;
        let failure = match result {
            Ok(found) => {
                *attempt = UrlAttempt::default();
                self.answered(&address);
                self.found(url.clone(), *found);
                return self.judged(&url);
            }
            Err(failure) => failure,
        };
        match failure.kind {
            FailureKind::Address | FailureKind::Full if !attempt.alone => {
                attempt.alone = true;
                attempt.due = Some(Instant::now());
                return;
            }
            FailureKind::Address => return self.close_door(&address, &failure),
            FailureKind::Silent | FailureKind::Late => {
                let door = self.doors.entry(address.clone()).or_default();
                door.state = match door.state {
                    DoorState::Ajar | DoorState::Open => DoorState::Doubted,
                    _ => DoorState::Unknown,
                };
            }
            FailureKind::Full
            | FailureKind::Unavailable
            | FailureKind::Cancelled
            | FailureKind::Refused
            | FailureKind::ReadOnly => {
                self.answered(&address);
            }
        }
        self.missed(&url, &failure);
        self.plan(&url, failure.kind);
        self.judged(&url);
    }

    /// Opens an ajar door, because a login was answered or hangs for a reason of its own.
    fn answered(&mut self, address: &Address) {
        if let Some(door) = self.doors.get_mut(address)
            && door.state == DoorState::Ajar
        {
            door.state = DoorState::Open;
        }
    }

    /// Plans the next look at a URL that has failed for a reason of its own.
    fn plan(&mut self, url: &DatabaseUrl, kind: FailureKind) {
        let ready = matches!(self.endpoints.get(url), Some(Endpoint::Ready(_)));
        let passing = self
            .endpoints
            .get(url)
            .is_some_and(Endpoint::takes_no_writes);
        let Some(attempt) = self.attempts.get_mut(url) else {
            return;
        };
        attempt.failures += 1;
        let wait = match kind {
            FailureKind::Late => attempt.backoff(RETRY_LATE_AT_MOST),
            FailureKind::ReadOnly if passing => {
                Duration::from_millis(fastrand::u64(RETRY_READ_ONLY))
            }
            FailureKind::Refused | FailureKind::ReadOnly => RETRY_REFUSED,
            FailureKind::Address
            | FailureKind::Silent
            | FailureKind::Full
            | FailureKind::Unavailable
            | FailureKind::Cancelled => attempt.backoff(RETRY_AT_MOST),
        };
        attempt.due = (!ready).then(|| Instant::now() + wait);
    }

    /// Plans a look at a URL whose server has just gone down.
    pub(super) fn plan_soon(&mut self, url: &DatabaseUrl) {
        let wait = Duration::from_millis(fastrand::u64(RETRY));
        if let Some(attempt) = self.attempts.get_mut(url) {
            attempt.due = Some(Instant::now() + wait);
        }
    }

    /// Plans a look at a URL now, after a new knock, because its server may be down.
    pub(super) fn doubt(&mut self, url: &DatabaseUrl) {
        if let Some(attempt) = self.attempts.get_mut(url) {
            attempt.due = Some(Instant::now());
        }
        let door = self.doors.entry(address_of(url)).or_default();
        if door.state != DoorState::Ajar {
            door.state = DoorState::Doubted;
        }
    }

    /// Cancels a look that was planned only because the server was in doubt.
    pub(super) fn trust(&mut self, url: &DatabaseUrl) {
        if let Some(attempt) = self.attempts.get_mut(url)
            && !self.refreshes.iter().any(|(waits, _)| waits.contains(url))
        {
            attempt.due = None;
        }
    }

    /// Removes the URL from the reloads that wait for it.
    fn judged(&mut self, url: &DatabaseUrl) {
        for (waits, _) in &mut self.refreshes {
            waits.remove(url);
        }
    }
}
