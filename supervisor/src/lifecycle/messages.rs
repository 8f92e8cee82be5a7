//! The events a lifecycle takes and the actions it answers with.

use super::{AdoptedStage, Inheritance};
use std::time::Duration;

/// Monotonic time since the host booted.
pub(crate) type Time = Duration;

/// Number of an effective configuration: a new one for each that differs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Revision(pub(crate) u64);

/// Number of one run of a tenant's broker, unique for the tenant in its runtime folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct InstanceId(pub(crate) u64);

/// The operator's timing settings for a lifecycle.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Policy {
    /// `[start] timeout`.
    pub(crate) start_timeout: Duration,
    /// `[stop] grace`.
    pub(crate) grace: Duration,
    /// `[health] failures`.
    pub(crate) probe_failures: u32,
    /// `[debug] core`: a hung instance must leave a core.
    pub(crate) core: bool,
}

/// The configuration and pool to run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Spec {
    pub(crate) revision: Revision,
    /// Its `pool_size`.
    pub(crate) pool: u32,
}

/// The wanted state of a tenant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Want {
    /// Run this configuration.
    Run(Spec),
    /// Do not run, for this reason.
    Refused(String),
    /// Do not run, because the operator or the file says so.
    Stopped(String),
    /// The file was removed: drain, then forget the tenant.
    Gone,
}

/// Order of starts that wait for a slot, most urgent first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Urgency {
    /// The tenant served, and has no serving instance now.
    Down,
    /// The tenant has not been tried in its present form.
    New,
    /// The old instance serves until it is replaced.
    Served,
    /// No instance serves, and the last start failed.
    Failed,
}

/// A fact about the tenant.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Event {
    /// The wanted state, judged from file, operator and budget. `pending` names a change that cannot be made.
    Wanted { want: Want, pending: Option<String> },
    /// Instances and sockets of an earlier supervisor. Comes first, if at all.
    Adopted(Inheritance),
    /// An adopted instance was asked for its stage, and has answered.
    Learned {
        id: InstanceId,
        stage: AdoptedStage,
        /// The largest number of connections it may hold, as the instance reports.
        connections: u32,
    },
    /// An adopted instance did not answer in time when asked for its stage. It is asked again.
    Unanswered(InstanceId),
    /// The tenant's server is reachable, or the reason why not.
    Server(Result<(), String>),
    /// True when a replacement may overlap the running instance; false means stop-then-start.
    MayOverlap(bool),
    /// The requested slot is granted.
    SlotGranted,
    /// The address of this revision is bound.
    Bound(Revision),
    /// The address of this revision could not be bound.
    BindFailed(Revision, String),
    /// The process exists.
    Spawned { id: InstanceId, pid: i32 },
    /// The process could not be started.
    SpawnFailed { id: InstanceId, reason: String },
    /// `READY=1`.
    Ready(InstanceId),
    /// `EXTEND_TIMEOUT_USEC`: readiness may take this much longer from now.
    Extend(InstanceId, Duration),
    /// `STATUS=`: the instance's own description of its state.
    Says(InstanceId, String),
    /// A probe was answered. `not_ready` is the reason why `/readyz` is not 200, if so.
    ProbeAnswered {
        id: InstanceId,
        not_ready: Option<String>,
    },
    /// A probe was not answered. `on_time` is true when the supervisor itself was not late.
    ProbeMissed { id: InstanceId, on_time: bool },
    /// The private socket is not in its place any more, so probes say nothing about the instance.
    OutOfReach(InstanceId),
    /// A stall of the host is over: probes missed meanwhile do not count.
    StallEnded,
    /// The instance is hung, and its turn to be replaced has come.
    ReplaceHung { id: InstanceId, detail: String },
    /// The number of connections the instance holds now.
    Connections(InstanceId, u32),
    /// Number of the tenant's connections on the server that no instance has, counted at `since` or later.
    LeftOver { since: Time, count: u32 },
    Exited {
        id: InstanceId,
        reason: String,
        configuration: bool,
    },
    /// `start`: try at once.
    Start,
    /// `restart`: replace by overlap. If the new instance does not become ready, the order has failed.
    Restart,
    /// A new program is on disk: replace by overlap, and retry until an instance becomes ready.
    NewProgram,
    /// `reload`: retry a configuration error now.
    Reload,
    /// Time has passed.
    Tick,
}

/// Kind of a start slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SlotKind {
    /// A start while nothing runs, of a configuration that has run, so that its room in the budget is its own.
    Start,
    /// The first start of a configuration while nothing runs. Its room may have been given to replacements under way:
    /// then it waits for them.
    First,
    /// A start beside a running instance, which takes two connections above the pool.
    Replacement,
}

/// An action to carry out.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Action {
    /// Bind this revision's address, if not bound yet; answer `Bound` or `BindFailed`.
    Listen(Revision),
    /// Close every listening socket except this revision's; all of them for `None`.
    Unlisten(Option<Revision>),
    /// Queue for a slot; answer `SlotGranted`.
    AskSlot(SlotKind),
    /// Note that the start is over, while its room in the budget is still in use.
    Started,
    /// Give the slot back, or leave the queue.
    ReleaseSlot,
    /// Start a process; answer `Spawned` or `SpawnFailed`.
    Spawn {
        id: InstanceId,
        revision: Revision,
        connections: u32,
    },
    /// Send SIGTERM.
    Terminate(InstanceId),
    /// Send SIGABRT, so that the process leaves a core.
    Abort(InstanceId),
    /// Send SIGKILL to the whole session.
    Kill(InstanceId),
    /// Send `PUT /pool`.
    SetConnections(InstanceId, u32),
    /// Count the tenant's connections on the servers of these configurations that none of its instances has, at `since`
    /// or later. Answer `LeftOver` once all these servers have been asked. The action is repeated soon.
    CountLeftOver { since: Time, of: Vec<Revision> },
    /// Answer 503 on the tenant's socket, or cease to.
    StandIn(bool),
    /// Drop the tenant, because it has no process and is not wanted.
    Forget,
}
