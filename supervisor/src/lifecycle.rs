//! One tenant's life as a pure state machine: events in, actions out. No clock, no I/O, no async.
//!
//! Each event carries its [`Time`]. The machine is level-triggered: an event only records a fact, then
//! [`Lifecycle::settle`] compares the wanted with the actual state and emits the actions that reconcile them. A lost or
//! repeated event therefore causes a delay and never a wrong state.
//!
//! A tenant never has more than two instances at once: [`Occupancy`] holds them with their roles, and each carries its
//! [`Phase`]. The book lists the states and their transitions ("States").

mod adoption;
mod backoff;
mod connection_quota;
mod events;
mod hang_detector;
mod instance;
mod messages;
mod occupancy;
mod reconcile;
mod status;
#[cfg(test)]
mod tests;

pub(crate) use adoption::{AdoptedInstance, AdoptedStage, Inheritance};
pub(crate) use backoff::Backoff;
use connection_quota::Leftovers;
pub(crate) use hang_detector::{HangDetector, HangVerdict, ProbeHealth};
use instance::StartOrigin;
pub(crate) use instance::{Instance, Phase};
pub(crate) use messages::{
    Action, Event, InstanceId, Policy, Revision, SlotKind, Spec, Time, Urgency, Want,
};
use occupancy::{InstanceRole, Occupancy};
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
    occupancy: Occupancy,
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
            occupancy: Occupancy::Empty,
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

    fn instance_mut(&mut self, id: InstanceId) -> Option<&mut Instance> {
        self.occupancy.instances_mut().find(|i| i.id == id)
    }
}
