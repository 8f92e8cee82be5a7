//! One tenant's life, as a pure state machine: events in, actions out. No clock, no I/O, no async.
//!
//! Time is a [`Time`] that comes with each event; everything else is a fact somebody reports. The machine is
//! level-triggered: an event only records a fact, then [`Lifecycle::settle`] compares what is wanted with what is
//! and emits the actions that bring the two together. A lost or repeated event therefore delays, never derails.
//!
//! A tenant has a `current` instance, perhaps a `next` (a replacement that is not ready yet), perhaps one
//! `draining`: never more than two processes at once. Tables of states and of what leaves them are in the book
//! ("States").

mod adopt;
mod backoff;
mod connections;
mod hang;
mod instance;
mod settle;
#[cfg(test)]
mod tests;
mod view;
mod words;

pub(crate) use adopt::{Adopted, Inheritance, Stage};
pub(crate) use backoff::Backoff;
use connections::Leftovers;
pub(crate) use hang::{Hang, Hangs, Pulse};
pub(crate) use instance::{Instance, Phase};
pub(crate) use view::View;
pub(crate) use words::{
    Action, Event, InstanceId, Policy, Revision, SlotKind, Spec, Time, Urgency, Want,
};

use std::time::Duration;

/// Nothing accepts for so long: the supervisor answers 503 in the tenant's place.
const STAND_IN_AFTER: Duration = Duration::from_secs(2);
/// A configuration error is tried again so often, in case what it hangs on is out of our sight.
const CONFIGURATION_RETRY: Duration = Duration::from_secs(300);
/// Ready or degraded for so long: the next failure counts as the first.
const GOOD_RUN: Duration = Duration::from_secs(60);
/// The most time a start may ask for at once; it may ask again.
const LONGEST_EXTENSION: Duration = Duration::from_secs(600);
/// What a hung instance gets to leave a core.
const CORE_WITHIN: Duration = Duration::from_secs(10);
/// A start that takes longer waits for something (a lock, a large migration), and those behind it are not to wait with it:
/// it goes on without a start slot.
pub(crate) const SLOT_FOR: Duration = Duration::from_secs(10);
/// An instance that must go before it was ready has nothing in flight; it gets this long, not the whole grace.
const SHORT_GRACE: Duration = Duration::from_secs(2);
/// Connections a replacement starts with, and what a tenant may hold above its pool while two instances overlap.
pub(crate) const REPLACEMENT_CONNECTIONS: u32 = 2;

/// A process that is still there so long after SIGKILL waits in the kernel for something that may never come.
const UNKILLABLE_AFTER: Duration = Duration::from_secs(5);
/// A tenant's processes at any time: one that serves and one that comes or goes.
const MOST_PROCESSES: usize = 2;

#[derive(Debug, Clone, PartialEq)]
enum Bind {
    No,
    Asked(Revision),
    Yes(Revision),
    Failed {
        revision: Revision,
        reason: String,
        retry_at: Time,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Slot {
    No,
    Asked(SlotKind),
    Held(SlotKind),
    /// What was started is done with starting, and the tenant holds more than its pool until the other one has let go.
    Overlap,
}

/// Why nothing runs, when nothing does and something should.
#[derive(Debug, Clone, PartialEq)]
struct Hold {
    until: Time,
    reason: String,
    /// Ended by a change of configuration, `start`, `restart` or `reload` before its time.
    configuration: bool,
}

/// The whole state of one tenant's life.
#[derive(Debug, Clone)]
pub(crate) struct Lifecycle {
    policy: Policy,
    /// Of starts and crashes; the other two of what fails beside a broker that may be well.
    backoff: Backoff,
    bind_backoff: Backoff,
    replace_backoff: Backoff,
    next_id: u64,
    want: Want,
    /// The configuration of the latest instance, while nothing else than to run has been wanted since.
    begun: Option<Revision>,
    /// Whether anybody has said yet what is wanted: until then nothing is begun, ended or closed.
    judged: bool,
    asked_pending: Option<String>,
    /// Raised by `restart` and by a new program: instances of an older generation are to be replaced.
    generation: u64,
    /// The first generation of the newest program: wanted whatever becomes of an order.
    program: u64,
    server: Result<(), String>,
    may_overlap: bool,
    bind: Bind,
    /// A socket of an earlier address may still be open.
    old_address: bool,
    slot: Slot,
    current: Option<Instance>,
    next: Option<Instance>,
    draining: Option<Instance>,
    /// After a failed start or crash: not before then.
    hold: Option<Hold>,
    /// After a failed replacement: not before then.
    replace_hold: Option<Hold>,
    /// Connections of an instance that has gone may linger on the server; they are counted then.
    lingering: Option<Leftovers>,
    unserved_since: Option<Time>,
    standing_in: bool,
    restarts: u64,
    last_failure: Option<String>,
    /// How its last start went.
    record: Urgency,
}

impl Lifecycle {
    /// A tenant nothing is known of yet. `first_id` is the first free instance number; `seed` feeds the jitter.
    pub(crate) fn new(policy: Policy, first_id: u64, seed: u64) -> Self {
        Self {
            policy,
            backoff: Backoff::new(seed),
            bind_backoff: Backoff::new(seed.wrapping_add(1)),
            replace_backoff: Backoff::new(seed.wrapping_add(2)),
            next_id: first_id,
            begun: None,
            want: Want::Refused("not judged yet".into()),
            judged: false,
            asked_pending: None,
            generation: 0,
            program: 0,
            server: Err("not asked yet".into()),
            may_overlap: true,
            bind: Bind::No,
            old_address: false,
            slot: Slot::No,
            current: None,
            next: None,
            draining: None,
            hold: None,
            replace_hold: None,
            // What there was before it, if anything, was somebody else's to see off.
            lingering: Some(Leftovers::unknown()),
            unserved_since: None,
            standing_in: false,
            restarts: 0,
            last_failure: None,
            record: Urgency::New,
        }
    }

    /// Changes the timing; running deadlines stay as they were set.
    pub(crate) fn set_policy(&mut self, policy: Policy) {
        self.policy = policy;
    }

    /// Takes one fact, and says what is to be done.
    pub(crate) fn on(&mut self, now: Time, event: Event) -> Vec<Action> {
        let mut actions = Vec::new();
        self.record(now, event, &mut actions);
        self.settle(now, &mut actions);
        actions
    }

    fn record(&mut self, now: Time, event: Event, actions: &mut Vec<Action>) {
        match event {
            Event::Wanted { want, pending } => {
                if want != self.want {
                    // A different wish is worth a try at once, whatever the last one came to.
                    self.hold = None;
                    self.replace_hold = None;
                    self.backoff.reset();
                    self.bind_backoff.reset();
                    self.replace_backoff.reset();
                    self.forgive();
                }
                if !matches!(want, Want::Run(_)) {
                    self.record = Urgency::New;
                    self.begun = None;
                }
                self.want = want;
                self.judged = true;
                self.asked_pending = pending;
            }
            Event::Adopted(inheritance) => self.adopt(now, inheritance),
            Event::Learned {
                id,
                stage,
                connections,
            } => self.learn(now, id, stage, connections, actions),
            Event::Unanswered(id) => self.unanswered(id),
            Event::Server(state) => self.server = state,
            Event::MayOverlap(may) => self.may_overlap = may,
            Event::SlotGranted => {
                if let Slot::Asked(kind) = self.slot {
                    self.slot = Slot::Held(kind);
                }
            }
            Event::Bound(revision) => {
                if self.bind == Bind::Asked(revision) {
                    self.bind = Bind::Yes(revision);
                    self.bind_backoff.reset();
                }
            }
            Event::BindFailed(revision, reason) => {
                if self.bind == Bind::Asked(revision) {
                    let retry_at = now + self.bind_backoff.delay_at_least_once();
                    self.bind = Bind::Failed {
                        revision,
                        reason,
                        retry_at,
                    };
                }
            }
            Event::Spawned { id, pid } => {
                if let Some(instance) = self.instance_mut(id) {
                    instance.pid = Some(pid);
                }
            }
            Event::SpawnFailed { id, reason } => self.gone(now, id, reason, false, actions),
            Event::Exited {
                id,
                reason,
                configuration,
            } => {
                self.gone(now, id, reason, configuration, actions);
            }
            Event::Ready(id) => self.ready(now, id, actions),
            Event::Extend(id, more) => {
                if let Some(instance) = self.instance_mut(id) {
                    instance.extend(now + more.min(LONGEST_EXTENSION));
                }
            }
            Event::Says(id, text) => {
                if let Some(instance) = self.instance_mut(id) {
                    instance.says = Some(text);
                }
            }
            Event::ProbeAnswered { id, not_ready } => {
                if let Some(instance) = self.instance_mut(id) {
                    instance.answered(not_ready);
                }
            }
            Event::ProbeMissed { id, on_time } => {
                if let Some(instance) = self.instance_mut(id)
                    && on_time
                {
                    instance.missed += 1;
                }
            }
            Event::OutOfReach(id) => {
                if let Some(instance) = self.instance_mut(id) {
                    instance.deaf = true;
                }
            }
            Event::StallEnded => {
                for instance in [&mut self.current, &mut self.next, &mut self.draining]
                    .into_iter()
                    .flatten()
                {
                    instance.missed = 0;
                }
            }
            Event::ReplaceHung { id, detail } => {
                let core = self.policy.core;
                if let Some(instance) = self.instance_mut(id)
                    && instance.must_answer()
                {
                    instance.verdict = Some(detail);
                    // It says no more how many it holds, and until it has gone that may be all it was allowed.
                    instance.held = instance.connections;
                    instance.phase = Phase::Stopping {
                        kill_at: if core { now + CORE_WITHIN } else { now },
                        killed: !core,
                    };
                    actions.push(if core {
                        Action::Abort(id)
                    } else {
                        Action::Kill(id)
                    });
                }
            }
            Event::Connections(id, held) => {
                if let Some(instance) = self.instance_mut(id) {
                    // What a broker says may be nonsense; more than a pool none can have.
                    instance.held = held.min(instance.pool);
                }
                self.share_connections(actions);
            }
            Event::LeftOver { since, count } => {
                self.counted(now, since, count);
                self.share_connections(actions);
            }
            Event::Start => self.begin_anew(now),
            Event::Restart => {
                self.begin_anew(now);
                self.generation += 1;
            }
            Event::NewProgram => {
                self.begin_anew(now);
                self.generation += 1;
                self.program = self.generation;
            }
            Event::Reload => {
                if self.hold.as_ref().is_some_and(|h| h.configuration) {
                    self.hold = None;
                }
                if self.replace_hold.as_ref().is_some_and(|h| h.configuration) {
                    self.replace_hold = None;
                    // What had asked for it was given up with it: it is asked for once more.
                    self.generation += u64::from(!self.outdated());
                }
            }
            Event::Tick => {}
        }
    }

    fn ready(&mut self, now: Time, id: InstanceId, actions: &mut Vec<Action>) {
        let Some(instance) = self.instance_mut(id) else {
            return;
        };
        if !matches!(instance.phase, Phase::Starting { .. }) {
            return;
        }
        instance.phase = Phase::Ready;
        instance.ready_at = Some(now);
        instance.unsure = false;
        instance.silent = false;
        self.begun = Some(instance.revision);
        if self.next.as_ref().is_some_and(|n| n.id == id) {
            let old = self.current.take();
            self.current = self.next.take();
            if let Some(old) = old {
                self.drain(now, old, self.policy.grace, actions);
            }
        }
        self.last_failure = None;
        self.record = Urgency::Down;
        self.replace_hold = None;
        self.replace_backoff.reset();
        self.count_now(now);
        self.share_connections(actions);
        self.release_slot(actions);
    }

    /// A process has ended, or never came to be.
    fn gone(
        &mut self,
        now: Time,
        id: InstanceId,
        reason: String,
        configuration: bool,
        actions: &mut Vec<Action>,
    ) {
        if let Some(old) = self.draining.take_if(|i| i.id == id) {
            self.note_leftovers(now, &old);
            self.share_connections(actions);
            return;
        }
        if let Some(next) = self.next.take_if(|i| i.id == id) {
            self.note_leftovers(now, &next);
            self.release_slot(actions);
            if next.planned {
                return;
            }
            let reason = next.verdict.unwrap_or(reason);
            self.replacement_failed(now, next.generation, reason, configuration);
            return;
        }
        let Some(instance) = self.current.take_if(|i| i.id == id) else {
            return;
        };
        let starting = instance.ready_at.is_none();
        // Whoever waits for a replacement waits for more than that now, and asks anew.
        if starting || matches!(self.slot, Slot::Asked(_)) {
            self.release_slot(actions);
        }
        self.note_leftovers(now, &instance);
        if instance.planned {
            return;
        }
        if starting && self.server.is_err() {
            // Its server went away under it: nobody's failure. It waits like the others.
            return;
        }
        if starting {
            self.record = Urgency::Failed;
        }
        // What was to replace it is to be started in any case.
        self.replace_hold = None;
        let reason = instance.verdict.unwrap_or(reason);
        self.restarts += 1;
        if instance
            .ready_at
            .is_some_and(|at| now.saturating_sub(at) >= GOOD_RUN)
        {
            self.backoff.reset();
        }
        let delay = if configuration {
            CONFIGURATION_RETRY
        } else {
            self.backoff.next_delay()
        };
        self.last_failure = Some(reason.clone());
        self.hold = (!delay.is_zero()).then(|| Hold {
            until: now + delay,
            reason,
            configuration,
        });
        // A replacement that is under way is the quickest way back.
        self.current = self.next.take();
    }

    /// Somebody wants it tried now: what has failed before does not count.
    fn begin_anew(&mut self, now: Time) {
        self.forgive();
        self.hold = None;
        self.replace_hold = None;
        self.backoff.reset();
        self.bind_backoff.reset();
        self.replace_backoff.reset();
        if let Bind::Failed { retry_at, .. } = &mut self.bind {
            *retry_at = now;
        }
    }

    fn forgive(&mut self) {
        if self.record == Urgency::Failed {
            self.record = Urgency::New;
        }
    }

    fn replacement_failed(
        &mut self,
        now: Time,
        generation: u64,
        reason: String,
        configuration: bool,
    ) {
        let Some(current) = &self.current else { return };
        if matches!(self.want, Want::Run(spec) if spec.revision == current.revision)
            && generation == self.generation
        {
            // If `restart` asked for it, it came to nothing: the running one stays, and the order has failed.
            self.generation = current.generation.max(self.program);
        }
        if self.server.is_err() {
            return;
        }
        let delay = if configuration {
            CONFIGURATION_RETRY
        } else {
            self.replace_backoff.delay_at_least_once()
        };
        self.replace_hold = Some(Hold {
            until: now + delay,
            reason,
            configuration,
        });
    }

    fn instance_mut(&mut self, id: InstanceId) -> Option<&mut Instance> {
        [&mut self.current, &mut self.next, &mut self.draining]
            .into_iter()
            .flatten()
            .find(|i| i.id == id)
    }

    fn processes(&self) -> usize {
        [&self.current, &self.next, &self.draining]
            .into_iter()
            .flatten()
            .count()
    }
}
