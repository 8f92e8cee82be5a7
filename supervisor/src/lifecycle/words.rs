//! What is said to a life and what it answers: facts in, actions out.

use super::{Inheritance, Stage};
use std::time::Duration;

/// Monotonic time since the host booted.
pub(crate) type Time = Duration;

/// Which effective configuration: a new number for each that differs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Revision(pub(crate) u64);

/// Which run of a tenant's broker; unique for the tenant in its runtime folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct InstanceId(pub(crate) u64);

/// The operator's settings that time a life.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Policy {
    /// `[start] timeout`.
    pub(crate) start_timeout: Duration,
    /// `[stop] grace`.
    pub(crate) grace: Duration,
    /// `[health] failures`.
    pub(crate) probe_failures: u32,
    /// `[debug] core`: a hung instance is to leave one.
    pub(crate) core: bool,
}

/// What should run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Spec {
    /// The configuration to run.
    pub(crate) revision: Revision,
    /// Its `pool_size`.
    pub(crate) pool: u32,
}

/// What is wanted of this tenant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Want {
    /// Run this.
    Run(Spec),
    /// Do not run; the reason says why not.
    Refused(String),
    /// Do not run: the operator's or the file's wish.
    Stopped(String),
    /// Its file has gone: drain, then forget it.
    Gone,
}

/// Who gets a start slot first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Urgency {
    /// It served, and nobody serves for it now.
    Down,
    /// It has not been tried as it is now.
    New,
    /// Its old instance serves until it is replaced.
    Served,
    /// Nobody serves for it, and its last start came to nothing.
    Failed,
}

/// A fact about this tenant.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Event {
    /// What is wanted, judged from file, operator and budget. `pending` says what the file asks for beyond that.
    Wanted { want: Want, pending: Option<String> },
    /// An earlier supervisor has left this. Comes first, if at all.
    Adopted(Inheritance),
    /// An adopted instance was asked how far it is, and has answered.
    Learned {
        id: InstanceId,
        stage: Stage,
        /// The most connections it may hold, by its own account.
        connections: u32,
    },
    /// An adopted instance was asked how far it is, and does not answer in time. It is asked again.
    Unanswered(InstanceId),
    /// Its server: reachable, or why not.
    Server(Result<(), String>),
    /// Whether a replacement may overlap the running instance, or must be stop-then-start.
    MayOverlap(bool),
    /// The slot asked for is ours.
    SlotGranted,
    /// The address of this revision is bound.
    Bound(Revision),
    /// The address of this revision could not be bound.
    BindFailed(Revision, String),
    /// The process exists.
    Spawned { id: InstanceId, pid: i32 },
    /// No process came to be.
    SpawnFailed { id: InstanceId, reason: String },
    /// `READY=1`.
    Ready(InstanceId),
    /// `EXTEND_TIMEOUT_USEC`: readiness may take so much longer from now.
    Extend(InstanceId, Duration),
    /// `STATUS=`: what it is at, in its own words.
    Says(InstanceId, String),
    /// A probe was answered; with why `/readyz` is not 200, if it is not.
    ProbeAnswered {
        id: InstanceId,
        not_ready: Option<String>,
    },
    /// A probe was not answered. `on_time`: the supervisor's own loop was.
    ProbeMissed { id: InstanceId, on_time: bool },
    /// Its private socket is not where it was: no probe says anything of it.
    OutOfReach(InstanceId),
    /// The host stood still and does no longer: probes missed meanwhile do not count.
    StallEnded,
    /// Found hung, and it is this one's turn to be replaced.
    ReplaceHung { id: InstanceId, detail: String },
    /// It holds so many connections now.
    Connections(InstanceId, u32),
    /// The server shows so many connections of this tenant that none of its instances has; counted at `since` or later.
    LeftOver { since: Time, count: u32 },
    /// The process has ended.
    Exited {
        id: InstanceId,
        reason: String,
        configuration: bool,
    },
    /// `start`: try at once.
    Start,
    /// `restart`: replace by overlap. One that does not become ready is given up, and the order with it.
    Restart,
    /// Another program is on disk: replace by overlap, and try again until one becomes ready.
    NewProgram,
    /// `reload`: try a configuration error again now.
    Reload,
    /// Time has passed.
    Tick,
}

/// Which kind of slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SlotKind {
    /// A start where nothing runs, of a configuration that has run: its place in the budget is an old one.
    Start,
    /// The first start of a configuration where nothing runs: what it takes may be room that replacements under way have
    /// been given, and then it waits for them.
    First,
    /// A start beside a running instance: takes two connections above the pool meanwhile.
    Replacement,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Action {
    /// Bind this revision's address, if it is not bound; answer `Bound` or `BindFailed`.
    Listen(Revision),
    /// Close every listening socket but this revision's; all of them for `None`.
    Unlisten(Option<Revision>),
    /// Queue for a slot; answered by `SlotGranted`.
    AskSlot(SlotKind),
    /// The start the slot was for is over, and what it takes of the budget is not yet.
    Started,
    /// Give the slot back, or leave the queue.
    ReleaseSlot,
    /// Start a process; answer `Spawned` or `SpawnFailed`.
    Spawn {
        id: InstanceId,
        revision: Revision,
        connections: u32,
    },
    /// SIGTERM.
    Terminate(InstanceId),
    /// SIGABRT, so that it leaves a core.
    Abort(InstanceId),
    /// SIGKILL, to its whole session.
    Kill(InstanceId),
    /// `PUT /pool`.
    SetConnections(InstanceId, u32),
    /// Count the connections of this tenant that the servers of these configurations show and none of its instances has, at
    /// `since` or later; answer `LeftOver` once every one of them has been asked. It is asked again soon.
    CountLeftOver { since: Time, of: Vec<Revision> },
    /// Answer 503 on the tenant's socket, or cease to.
    StandIn(bool),
    /// Nothing is left and nothing is wanted: drop the tenant.
    Forget,
}
