//! One tenant's life as a pure state machine: events in, actions out. No clock, no I/O, no async.
//!
//! Each event carries its [`Time`]. The machine is level-triggered: an event only records a fact, then
//! [`Lifecycle::settle`] compares the wanted with the actual state and emits the actions that reconcile them. A lost or
//! repeated event therefore causes a delay and never a wrong state.
//!
//! A tenant has a `current` instance, possibly a `next` (a replacement that is not ready yet), and possibly a
//! `draining` instance: never more than two processes at once. The book lists the states and their transitions
//! ("States").

mod adoption;
mod backoff;
mod connection_quota;
mod hang_detector;
mod instance;
mod messages;
mod reconcile;
mod status;
#[cfg(test)]
mod tests;

pub(crate) use adoption::{AdoptedInstance, AdoptedStage, Inheritance};
pub(crate) use backoff::Backoff;
use connection_quota::Leftovers;
pub(crate) use hang_detector::{HangDetector, HangVerdict, ProbeHealth};
pub(crate) use instance::{Instance, Phase};
pub(crate) use messages::{
    Action, Event, InstanceId, Policy, Revision, SlotKind, Spec, Time, Urgency, Want,
};
pub(crate) use status::LifecycleStatus;

use std::time::Duration;

/// The time without a listening instance after which the supervisor answers 503 for the tenant.
const STAND_IN_AFTER: Duration = Duration::from_secs(2);
/// The time between retries after a configuration error, because its cause may be outside the watched files.
const CONFIGURATION_RETRY: Duration = Duration::from_secs(300);
/// The time of being ready or degraded after which the next failure counts as the first.
const GOOD_RUN: Duration = Duration::from_secs(60);
/// The longest extension that a start may request at once; it may request more later.
const LONGEST_EXTENSION: Duration = Duration::from_secs(600);
/// The time that a hung instance gets to write a core.
const CORE_WITHIN: Duration = Duration::from_secs(10);
/// The time after which a start gives up its start slot. It probably waits for a lock or a large migration, and other
/// starts must not wait with it.
pub(crate) const SLOT_FOR: Duration = Duration::from_secs(10);
/// The grace of an instance that was not ready yet, shorter because it has no requests in flight.
const SHORT_GRACE: Duration = Duration::from_secs(2);
/// The connections that a replacement starts with, and that a tenant may hold above its pool during an overlap.
pub(crate) const REPLACEMENT_CONNECTIONS: u32 = 2;

/// The time after SIGKILL after which a process counts as unkillable: it waits in the kernel, perhaps for ever.
const UNKILLABLE_AFTER: Duration = Duration::from_secs(5);
/// The largest number of a tenant's processes: one serves, and one is starting or draining.
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
enum SlotState {
    No,
    Asked(SlotKind),
    Held(SlotKind),
    /// The start of a replacement is over, and the tenant exceeds its pool until the other instance releases its
    /// connections.
    Overlap,
}

/// A pause before the next start, with its reason.
#[derive(Debug, Clone, PartialEq)]
struct StartHold {
    until: Time,
    reason: String,
    /// True after a configuration error; a reload ends such a pause early.
    configuration: bool,
}

/// The state of one tenant's life.
#[derive(Debug, Clone)]
pub(crate) struct Lifecycle {
    policy: Policy,
    /// The backoff after failed starts and crashes. The next two are separate, because there the broker itself may be
    /// well.
    backoff: Backoff,
    bind_backoff: Backoff,
    replace_backoff: Backoff,
    next_id: u64,
    want: Want,
    /// The configuration of the latest instance; `None` once the tenant is not wanted to run.
    begun: Option<Revision>,
    /// False until the fleet has judged the tenant; until then nothing is started, ended or closed.
    judged: bool,
    asked_pending: Option<String>,
    /// Raised by `restart` and by a new program. Instances of an older generation must be replaced.
    generation: u64,
    /// The first generation of the newest program, which stays wanted when an order fails.
    program: u64,
    server: Result<(), String>,
    may_overlap: bool,
    bind: Bind,
    /// True when a socket of an earlier address may still be open.
    old_address: bool,
    slot: SlotState,
    current: Option<Instance>,
    next: Option<Instance>,
    draining: Option<Instance>,
    /// The pause after a failed start or crash.
    hold: Option<StartHold>,
    /// The pause after a failed replacement.
    replace_hold: Option<StartHold>,
    /// Connections of ended instances that may still exist on the server.
    lingering: Option<Leftovers>,
    unserved_since: Option<Time>,
    standing_in: bool,
    restarts: u64,
    last_failure: Option<String>,
    /// The result of the last start.
    record: Urgency,
}

impl Lifecycle {
    /// Makes the state of an unknown tenant. `first_id` is the first free instance number; `seed` feeds the jitter.
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
            slot: SlotState::No,
            current: None,
            next: None,
            draining: None,
            hold: None,
            replace_hold: None,
            // Connections of unknown instances may still exist from before this supervisor.
            lingering: Some(Leftovers::unknown()),
            unserved_since: None,
            standing_in: false,
            restarts: 0,
            last_failure: None,
            record: Urgency::New,
        }
    }

    /// Changes the timing; running deadlines stay.
    pub(crate) fn set_policy(&mut self, policy: Policy) {
        self.policy = policy;
    }

    /// Records an event and returns the resulting actions.
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
                    // A changed wish is tried at once, regardless of earlier failures.
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
                if let SlotState::Asked(kind) = self.slot {
                    self.slot = SlotState::Held(kind);
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
                    // A hung instance reports no count, so it may hold all of its connections until it ends.
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
                    // A broker cannot hold more than its pool, so a larger report is wrong.
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
                    // The failed replacement gave up its generation, so the replacement is requested again.
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

    /// Handles the end of a process, or a failed spawn.
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
        // Releases the slot: a tenant that lost its instance must queue again as a start.
        if starting || matches!(self.slot, SlotState::Asked(_)) {
            self.release_slot(actions);
        }
        self.note_leftovers(now, &instance);
        if instance.planned {
            return;
        }
        if starting && self.server.is_err() {
            // The instance ended because its server went away, which does not count as a failure.
            return;
        }
        if starting {
            self.record = Urgency::Failed;
        }
        // Clears the pause for replacements: the current instance is gone, so its successor must start regardless.
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
        self.hold = (!delay.is_zero()).then(|| StartHold {
            until: now + delay,
            reason,
            configuration,
        });
        // A replacement under way becomes the current instance.
        self.current = self.next.take();
    }

    /// Prepares an immediate try, regardless of earlier failures.
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
            // The replacement requested by `restart` failed, so the order fails and the current instance stays.
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
        self.replace_hold = Some(StartHold {
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
