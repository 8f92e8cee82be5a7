//! Tests of the lifecycle, with events written by hand and with random events against the rules that must always hold.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod adopted;
mod moved;
mod orders;
mod random;
mod slots;

use super::*;
use crate::status::State;

const POLICY: Policy = Policy {
    start_timeout: Duration::from_secs(60),
    grace: Duration::from_secs(20),
    probe_failures: 3,
    core: false,
};

fn spec(revision: u64) -> Want {
    Want::Run(Spec {
        revision: Revision(revision),
        pool: 10,
    })
}

fn wanted(want: Want) -> Event {
    Event::Wanted {
        want,
        pending: None,
    }
}

/// A host that binds addresses and grants slots at once, and leaves everything else to the test.
struct Host {
    life: Lifecycle,
    now: Time,
    slot: Option<SlotKind>,
    started: bool,
    spawned: Vec<InstanceId>,
    terminated: Vec<InstanceId>,
    aborted: Vec<InstanceId>,
    killed: Vec<InstanceId>,
    connections: Vec<(InstanceId, u32)>,
    fallback: bool,
    forgotten: bool,
    counted: bool,
}

impl Host {
    fn new() -> Self {
        Self {
            life: Lifecycle::new(POLICY, 1, 7),
            now: Duration::ZERO,
            slot: None,
            started: false,
            spawned: vec![],
            terminated: vec![],
            aborted: vec![],
            killed: vec![],
            connections: vec![],
            fallback: false,
            forgotten: false,
            counted: false,
        }
    }

    fn on(&mut self, event: Event) -> &mut Self {
        let mut queue = std::collections::VecDeque::from([event]);
        while let Some(event) = queue.pop_front() {
            for action in self.life.on(self.now, event) {
                match action {
                    Action::Listen(revision) => queue.push_back(Event::Bound(revision)),
                    Action::AskSlot(kind) => {
                        self.slot = Some(kind);
                        queue.push_back(Event::SlotGranted);
                    }
                    Action::ReleaseSlot => self.slot = None,
                    Action::Spawn {
                        id, connections, ..
                    } => {
                        self.spawned.push(id);
                        self.connections.push((id, connections));
                    }
                    Action::Terminate(id) => self.terminated.push(id),
                    Action::Abort(id) => self.aborted.push(id),
                    Action::Kill(id) => self.killed.push(id),
                    Action::SetConnections(id, n) => self.connections.push((id, n)),
                    Action::StandIn(on) => self.fallback = on,
                    // Before the first spawn nothing can be left over.
                    Action::CountLeftOver { since, .. } if self.spawned.is_empty() => {
                        queue.push_back(Event::LeftOver { since, count: 0 });
                    }
                    Action::CountLeftOver { .. } => self.counted = true,
                    Action::Forget => self.forgotten = true,
                    Action::Started => self.started = true,
                    Action::Unlisten(_) => {}
                }
            }
        }
        self
    }

    /// Reports that the server shows `count` leftovers.
    fn left_over(&mut self, count: u32) -> &mut Self {
        let since = self.now;
        self.on(Event::LeftOver { since, count })
    }

    fn after(&mut self, time: Duration) -> &mut Self {
        self.now += time;
        self.on(Event::Tick)
    }

    /// Wants this configuration, and finds the server reachable.
    fn run(&mut self, revision: u64) -> &mut Self {
        self.on(wanted(spec(revision))).on(Event::Server(Ok(())))
    }

    /// Returns a host with a ready instance.
    fn up(revision: u64) -> (Self, InstanceId) {
        let mut host = Self::new();
        host.run(revision);
        let id = host.latest();
        let not_ready = None;
        host.on(Event::Ready(id))
            .on(Event::ProbeAnswered { id, not_ready });
        assert_eq!(host.state(), State::Ready);
        (host, id)
    }

    /// Returns a host whose ready instance is being replaced, with that instance and its replacement.
    fn replacing() -> (Self, InstanceId, InstanceId) {
        let (mut host, old) = Self::up(1);
        host.on(Event::Restart);
        let new = host.latest();
        assert_ne!(old, new);
        (host, old, new)
    }

    /// Returns the instance spawned last.
    fn latest(&self) -> InstanceId {
        *self.spawned.last().unwrap()
    }

    fn pending(&self) -> String {
        self.life.view().pending.unwrap_or_default()
    }

    fn replace_hung(&mut self, id: InstanceId) -> &mut Self {
        let detail = "hung".to_owned();
        self.on(Event::ReplaceHung { id, detail })
    }

    fn state(&self) -> State {
        self.life.view().state
    }

    /// Lets a stopping instance close its connections and exit.
    fn leave(&mut self, id: InstanceId) -> &mut Self {
        self.on(Event::Connections(id, 0)).exit(id)
    }

    fn exit(&mut self, id: InstanceId) -> &mut Self {
        self.on(Event::Exited {
            id,
            reason: "exit code 1".into(),
            configuration: false,
        })
    }
}

#[test]
fn a_tenant_waits_for_its_server_then_starts_with_its_whole_pool() {
    let mut host = Host::new();
    host.on(wanted(spec(1)));
    assert_eq!(host.state(), State::Waiting);
    assert!(host.spawned.is_empty());
    host.on(Event::Server(Ok(())));
    assert_eq!(host.state(), State::Starting);
    assert_eq!(host.connections, [(InstanceId(1), 10)]);
}

#[test]
fn a_changed_file_replaces_by_overlap_and_drains_the_old_instance() {
    let (mut host, old) = Host::up(1);
    host.on(wanted(spec(2)));
    let new = host.latest();
    assert_ne!(old, new);
    assert_eq!(host.state(), State::Ready);
    assert_eq!(
        host.connections.last(),
        Some(&(new, 2)),
        "a replacement starts with two"
    );
    assert!(
        host.terminated.is_empty(),
        "the old one serves until the new one is ready"
    );
    host.on(Event::Ready(new));
    assert_eq!(host.terminated, [old]);
    host.on(Event::Connections(old, 4));
    assert_eq!(
        host.connections.last(),
        Some(&(new, 8)),
        "together never above pool + 2"
    );
    host.leave(old);
    assert_eq!(host.connections.last(), Some(&(new, 10)));
    assert_eq!(host.life.view().restarts, 0, "a planned end is no restart");
}

#[test]
fn a_replacement_that_never_becomes_ready_is_ended_and_the_old_instance_serves() {
    let (mut host, old) = Host::up(1);
    host.on(wanted(spec(2)));
    let new = host.latest();
    host.after(Duration::from_secs(61));
    assert_eq!(host.terminated, [new]);
    host.after(Duration::from_secs(3));
    assert_eq!(host.killed, [new]);
    host.exit(new);
    assert_eq!(host.state(), State::Ready);
    assert_eq!(host.life.current().unwrap().id, old);
    assert!(host.pending().contains("not ready within 60s"));
    assert_eq!(host.life.settled(), Some(false));
}

#[test]
fn a_failed_restart_is_given_up_and_a_changed_file_is_retried() {
    let (mut host, _, new) = Host::replacing();
    host.exit(new).left_over(0);
    let spawned = host.spawned.len();
    let pending = host.pending();
    assert!(
        pending.contains("not tried again unless ordered: exit code 1"),
        "{pending}"
    );
    assert!(host.life.gave_up());
    host.after(Duration::from_secs(40));
    assert_eq!(
        host.spawned.len(),
        spawned,
        "the order has failed and was not repeated"
    );
    host.on(wanted(spec(2)));
    assert!(!host.life.gave_up());
    let new = host.latest();
    host.exit(new).left_over(0).after(Duration::from_secs(40));
    assert_eq!(host.spawned.len(), spawned + 2);
}

#[test]
fn a_new_program_is_retried_even_if_other_orders_fail() {
    let (mut host, old) = Host::up(1);
    host.on(Event::NewProgram);
    for order in [Event::Tick, Event::Restart, Event::Reload, Event::Tick] {
        host.on(order);
        let new = host.latest();
        assert_ne!(new, old);
        host.exit(new).left_over(0);
        assert!(!host.life.gave_up() && host.life.outdated());
        host.after(Duration::from_secs(40));
        assert_ne!(host.latest(), new, "tried again");
    }
    let new = host.latest();
    host.on(Event::Ready(new)).leave(old);
    host.after(Duration::from_secs(40));
    assert_eq!(host.latest(), new);
    assert_eq!(
        (host.state(), host.life.view().pending),
        (State::Ready, None)
    );
}

#[test]
fn the_first_crash_restarts_at_once_and_the_second_waits() {
    let (mut host, first) = Host::up(1);
    host.exit(first);
    assert_eq!(host.state(), State::Starting);
    let second = host.latest();
    assert_eq!(
        host.connections.last(),
        Some(&(second, 2)),
        "the crashed instance may have left backends"
    );
    host.on(Event::Ready(second))
        .after(Duration::from_millis(2500));
    assert!(host.counted, "the server is asked");
    host.left_over(0);
    assert_eq!(host.connections.last(), Some(&(second, 10)));
    host.exit(second);
    assert_eq!(host.state(), State::Backoff);
    assert!(host.life.view().next_try.is_some());
    host.after(Duration::from_millis(260));
    assert_eq!(host.state(), State::Starting);
    assert_eq!(host.life.view().restarts, 2);
}

#[test]
fn a_good_run_of_a_minute_makes_the_next_crash_the_first_again() {
    let (mut host, first) = Host::up(1);
    host.exit(first);
    let second = host.latest();
    host.on(Event::Ready(second))
        .left_over(0)
        .after(Duration::from_secs(60))
        .exit(second);
    assert_eq!(host.state(), State::Starting);
}

#[test]
fn a_configuration_error_waits_five_minutes_or_for_a_change() {
    let mut host = Host::new();
    host.run(1);
    let id = host.spawned[0];
    host.on(Event::Exited {
        id,
        reason: "exit code 78: bad".into(),
        configuration: true,
    });
    host.after(Duration::from_secs(299));
    assert_eq!(host.state(), State::Backoff);
    host.on(Event::Reload);
    assert_eq!(host.spawned.len(), 2);
}

#[test]
fn a_server_lost_during_a_start_returns_the_tenant_to_waiting_without_a_restart() {
    let mut host = Host::new();
    host.run(1);
    let id = host.spawned[0];
    host.on(Event::Server(Err("connection refused".into())));
    assert_eq!(host.state(), State::Waiting);
    assert_eq!(host.terminated, [id]);
    host.exit(id);
    assert_eq!(host.state(), State::Waiting);
    assert_eq!(host.life.view().restarts, 0);
    host.on(Event::Server(Ok(())));
    assert_eq!(host.state(), State::Starting);
}

#[test]
fn a_ready_tenant_without_its_server_is_degraded_and_left_alone() {
    let (mut host, id) = Host::up(1);
    host.on(Event::Server(Err("gone".into())));
    host.on(Event::ProbeAnswered {
        id,
        not_ready: Some("database unavailable".into()),
    });
    assert_eq!(host.state(), State::Degraded);
    assert!(host.terminated.is_empty());
    host.on(Event::Server(Ok(()))).on(Event::ProbeAnswered {
        id,
        not_ready: None,
    });
    assert_eq!(host.state(), State::Ready);
}

#[test]
fn a_hung_broker_is_aborted_for_a_core_and_killed_after_ten_seconds() {
    let (mut host, id) = Host::up(1);
    host.life.set_policy(Policy {
        core: true,
        ..POLICY
    });
    host.replace_hung(id);
    assert_eq!((host.aborted.as_slice(), host.killed.len()), (&[id][..], 0));
    assert_eq!(host.life.pulse(), ProbeHealth::BeingReplaced);
    host.after(CORE_WITHIN - Duration::from_millis(1));
    assert!(host.killed.is_empty());
    host.after(Duration::from_millis(1));
    assert_eq!(host.killed, [id]);
    host.exit(id);
    assert_eq!(host.spawned.len(), 2);
}

#[test]
fn a_hung_broker_is_killed_when_it_is_its_turn_and_started_again() {
    let (mut host, id) = Host::up(1);
    for _ in 0..3 {
        assert!(host.killed.is_empty());
        host.on(Event::ProbeMissed { id, on_time: true });
    }
    assert_eq!(host.life.pulse(), ProbeHealth::Hung);
    host.replace_hung(id);
    assert_eq!(host.killed, [id]);
    assert_eq!(host.life.pulse(), ProbeHealth::BeingReplaced);
    host.exit(id);
    assert_eq!(host.state(), State::Starting);
    assert_eq!(host.life.view().reason.as_deref(), Some("hung"));
}

#[test]
fn a_hung_broker_keeps_its_share_of_the_pool_until_it_ends() {
    let (mut host, first) = Host::up(1);
    host.on(wanted(spec(2)));
    let hung = host.latest();
    host.on(Event::Ready(hung)).leave(first);
    assert_eq!(host.connections.last(), Some(&(hung, 10)));
    host.replace_hung(hung);
    // The killed process still exists when the next instance takes its place.
    host.on(Event::MayOverlap(true)).on(Event::Restart);
    let next = host.latest();
    assert_ne!(next, hung);
    host.connections.clear();
    host.on(Event::Ready(next));
    assert_eq!(host.connections, []);
    host.exit(hung).left_over(0);
    assert_eq!(host.connections.last(), Some(&(next, 10)));
}

#[test]
fn late_probes_of_a_late_supervisor_do_not_count() {
    let (mut host, id) = Host::up(1);
    for _ in 0..9 {
        host.on(Event::ProbeMissed { id, on_time: false });
    }
    assert_eq!(host.life.pulse(), ProbeHealth::Fine);
}

#[test]
fn without_room_to_overlap_a_replacement_is_stop_then_start() {
    let (mut host, old) = Host::up(1);
    host.on(Event::MayOverlap(false)).on(wanted(spec(2)));
    assert_eq!(host.terminated, [old]);
    assert_eq!(host.spawned.len(), 1);
    assert_eq!(host.state(), State::Stopping);
    host.exit(old);
    assert_eq!(host.spawned.len(), 2);
}

#[test]
fn a_stopped_tenant_drains_and_is_killed_after_the_grace() {
    let (mut host, id) = Host::up(1);
    host.on(wanted(Want::Stopped("by the operator".into())));
    assert_eq!(host.state(), State::Stopping);
    assert_eq!(host.terminated, [id]);
    host.after(Duration::from_secs(21));
    assert_eq!(host.killed, [id]);
    host.exit(id);
    assert_eq!(host.state(), State::Stopped);
    assert_eq!(host.life.settled(), Some(true));
}

#[test]
fn a_removed_tenant_is_forgotten_once_it_has_drained() {
    let (mut host, id) = Host::up(1);
    host.on(wanted(Want::Gone));
    assert!(!host.forgotten);
    host.exit(id);
    assert!(host.forgotten);
}

#[test]
fn the_stand_in_answers_after_two_seconds_without_a_serving_instance() {
    let mut host = Host::new();
    host.on(wanted(spec(1))).after(Duration::from_millis(1900));
    assert!(!host.fallback);
    host.after(Duration::from_millis(100));
    assert!(host.fallback);
    host.on(Event::Server(Ok(())));
    let id = host.spawned[0];
    assert!(host.fallback, "no instance accepts yet");
    host.on(Event::Ready(id));
    assert!(!host.fallback);
}
