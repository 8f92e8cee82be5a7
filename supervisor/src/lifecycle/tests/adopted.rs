//! Tests of lifecycles taken over from an earlier supervisor.

use super::*;

const R1: Revision = Revision(1);

pub(super) fn found(id: u64, stage: AdoptedStage) -> AdoptedInstance {
    AdoptedInstance {
        id: InstanceId(id),
        pid: 4000 + id as i32,
        spec: Spec {
            revision: R1,
            pool: 10,
        },
        connections: 10,
        spawned_at: Duration::from_secs(100),
        stage,
        outdated: false,
        keeps_address: false,
        deaf: false,
    }
}

fn learned(id: InstanceId, stage: AdoptedStage) -> Event {
    Event::Learned {
        id,
        stage,
        connections: 10,
    }
}

fn adopting(instances: Vec<AdoptedInstance>) -> Host {
    let mut host = Host::new();
    host.now = Duration::from_secs(5000);
    host.on(Event::Adopted(Inheritance {
        open: instances
            .iter()
            .any(|found| !found.keeps_address)
            .then_some(R1),
        instances,
        ..Inheritance::default()
    }));
    host
}

/// Returns a host that wants revision 1, whose server is reachable and whose adopted instance must be asked.
fn unsure() -> (Host, InstanceId) {
    let mut host = adopting(vec![found(7, AdoptedStage::Unsure)]);
    host.run(1);
    (host, InstanceId(7))
}

fn untouched(host: &Host) {
    assert!(host.spawned.is_empty() && host.terminated.is_empty() && host.killed.is_empty());
    assert!(!host.fallback);
}

#[test]
fn a_serving_adopted_instance_is_left_alone_while_its_server_is_unknown() {
    let mut host = adopting(vec![found(7, AdoptedStage::Serving)]);
    assert_eq!(host.state(), State::Ready);
    host.on(wanted(spec(1)))
        .on(Event::Server(Err("not asked yet".into())))
        .on(Event::Server(Ok(())))
        .after(Duration::from_secs(300));
    untouched(&host);
    let view = host.life.view();
    assert_eq!((view.state, view.restarts), (State::Ready, 0));
    assert_eq!(view.instance.unwrap().pid, Some(4007));
    assert_eq!(host.life.next_id(), InstanceId(8));
}

#[test]
fn an_adopted_instance_of_another_configuration_or_program_is_replaced_by_overlap() {
    for (revision, outdated) in [(2, false), (1, true)] {
        let mut host = adopting(vec![AdoptedInstance {
            outdated,
            ..found(7, AdoptedStage::Serving)
        }]);
        host.run(revision);
        assert_eq!((host.spawned.len(), host.terminated.len()), (1, 0));
        host.on(Event::Ready(host.latest()));
        assert_eq!(host.terminated, [InstanceId(7)]);
        host.exit(InstanceId(7));
        assert_eq!(host.life.settled(), Some(true));
    }
}

#[test]
fn an_unsure_instance_is_neither_replaced_nor_ended_before_it_answers() {
    let mut host = adopting(vec![found(7, AdoptedStage::Unsure)]);
    host.run(2);
    untouched(&host);
    host.on(learned(InstanceId(7), AdoptedStage::Serving));
    assert_eq!((host.spawned.len(), host.terminated.len()), (1, 0));
}

#[test]
fn an_unsure_instance_that_misses_its_probes_is_hung() {
    let (mut host, id) = unsure();
    host.on(Event::Unanswered(id));
    for _ in 0..POLICY.probe_failures {
        assert_ne!(host.life.pulse(), ProbeHealth::Hung);
        host.on(Event::ProbeMissed { id, on_time: true });
    }
    assert_eq!(host.life.pulse(), ProbeHealth::Hung);
    host.replace_hung(id);
    assert_eq!(host.killed, [id]);
    host.exit(id);
    assert_eq!(host.spawned.len(), 1);
    // An instance that reports starting has the time of a start.
    let (mut host, id) = unsure();
    host.on(learned(id, AdoptedStage::Starting));
    for _ in 0..9 {
        host.on(Event::ProbeMissed { id, on_time: true });
    }
    assert_eq!(host.life.pulse(), ProbeHealth::Absent);
}

#[test]
fn an_unsure_instance_that_never_answers_has_the_time_of_a_start() {
    let (mut host, id) = unsure();
    host.after(Duration::from_secs(61));
    assert_eq!(host.terminated, [id]);
}

#[test]
fn the_stand_in_answers_for_an_unsure_instance_two_seconds_after_it_failed_to_answer() {
    let (mut host, id) = unsure();
    // On a busy host an answer takes time, and the instance serves meanwhile.
    host.after(Duration::from_secs(10));
    assert!(!host.fallback);
    host.on(Event::Unanswered(id));
    host.after(Duration::from_millis(1900));
    assert!(!host.fallback);
    host.after(Duration::from_millis(200));
    assert!(host.fallback);
    host.on(learned(id, AdoptedStage::Serving));
    assert!(!host.fallback);
}

#[test]
fn an_adopted_start_continues_before_its_server_was_asked() {
    let mut host = adopting(vec![found(7, AdoptedStage::Starting)]);
    host.on(wanted(spec(1)))
        .on(Event::Server(Err("not asked yet".into())));
    untouched(&host);
    host.on(learned(InstanceId(7), AdoptedStage::Starting));
    untouched(&host);
    host.on(Event::Ready(InstanceId(7)));
    assert_eq!(host.state(), State::Ready);
}

#[test]
fn an_adopted_draining_instance_gets_no_second_sigterm_and_its_successor_serves() {
    let mut host = adopting(vec![
        found(7, AdoptedStage::Stopping),
        found(8, AdoptedStage::Serving),
    ]);
    host.run(1);
    untouched(&host);
    assert_eq!(host.life.current().unwrap().id, InstanceId(8));
    host.exit(InstanceId(7));
    untouched(&host);
    assert_eq!(host.life.view().restarts, 0);
    assert_eq!(host.life.settled(), Some(true));
}

#[test]
fn of_two_unsure_instances_the_older_drains_if_it_says_so_or_the_newer_serves() {
    let (old, new) = (InstanceId(7), InstanceId(8));
    for stage in [AdoptedStage::Stopping, AdoptedStage::Serving] {
        let unsure = |id: InstanceId| found(id.0, AdoptedStage::Unsure);
        let mut host = adopting(vec![unsure(old), unsure(new)]);
        host.run(1).on(learned(old, stage));
        untouched(&host);
        host.on(learned(new, AdoptedStage::Serving));
        assert_eq!(host.life.current().unwrap().id, new);
        let told = (stage == AdoptedStage::Serving).then_some(old);
        assert_eq!(host.terminated, told.as_slice());
        assert!(host.spawned.is_empty() && host.killed.is_empty());
    }
}

#[test]
fn an_instance_that_alone_has_the_socket_is_drained_before_its_successor_starts() {
    let mut host = adopting(vec![AdoptedInstance {
        keeps_address: true,
        ..found(7, AdoptedStage::Serving)
    }]);
    host.on(wanted(spec(1)));
    untouched(&host);
    host.on(Event::Server(Ok(())));
    assert_eq!(host.terminated, [InstanceId(7)]);
    assert!(host.spawned.is_empty());
    host.exit(InstanceId(7));
    assert_eq!(host.spawned.len(), 1);
    host.on(Event::Ready(host.spawned[0]));
    assert_eq!(host.life.settled(), Some(true));
}

#[test]
fn an_adopted_instance_that_exits_is_restarted_and_counted() {
    let mut host = adopting(vec![found(7, AdoptedStage::Serving)]);
    host.run(1).exit(InstanceId(7));
    assert_eq!(host.spawned.len(), 1);
    assert_eq!(host.life.view().restarts, 1);
}

#[test]
fn an_open_address_without_an_instance_stays_open_until_the_tenant_is_judged() {
    let mut host = Host::new();
    let left = Inheritance {
        open: Some(R1),
        ..Inheritance::default()
    };
    let none = Vec::<Action>::new();
    assert_eq!(host.life.on(host.now, Event::Adopted(left.clone())), none);
    assert_eq!(
        host.life.on(host.now, Event::Server(Ok(()))),
        none,
        "nothing is begun"
    );
    host.on(wanted(spec(1)));
    assert_eq!(host.spawned.len(), 1);
    // If the tenant file is removed, the address is closed.
    let mut host = Host::new();
    host.on(Event::Adopted(left));
    let actions = host.life.on(host.now, wanted(Want::Gone));
    assert_eq!(actions, [Action::Unlisten(None), Action::Forget]);
}

#[test]
fn leftovers_of_a_killed_instance_count_over_a_take_over() {
    // The instance reports that it was given two of ten connections; no other instance shares the pool.
    let mut host = adopting(vec![found(7, AdoptedStage::Unsure)]);
    let id = InstanceId(7);
    host.spawned.push(id);
    host.on(Event::Learned {
        id,
        stage: AdoptedStage::Serving,
        connections: 2,
    });
    host.on(Event::Connections(id, 2)).on(Event::Server(Ok(())));
    assert_eq!((host.state(), host.counted), (State::Ready, true));
    assert!(host.connections.is_empty(), "{:?}", host.connections);
    host.left_over(10);
    assert_eq!(host.life.view().pending, None);
    host.after(Duration::from_secs(1)).left_over(10);
    assert!(host.connections.is_empty(), "{:?}", host.connections);
    let pending = host.pending();
    assert!(pending.contains("held at 2 of its 10"), "{pending}");
    host.left_over(3);
    assert_eq!(host.connections, [(id, 9)]);
    // It holds nearly all it may, and a replacement would take two more.
    host.on(Event::Restart);
    let pending = host.pending();
    assert!(pending.contains("what the last one left"), "{pending}");
    assert_eq!(host.spawned, [id]);
    host.left_over(0);
    assert_eq!(host.connections[..2], [(id, 9), (id, 10)]);
    assert_eq!(host.spawned, [id, InstanceId(8)]);
    assert!(host.terminated.is_empty() && host.killed.is_empty());
}

#[test]
fn leftovers_of_an_earlier_supervisor_are_counted_before_the_first_start() {
    let mut host = adopting(vec![]);
    let now = host.now;
    let first = host.life.on(now, wanted(spec(1)));
    let count = Action::CountLeftOver {
        since: Time::ZERO,
        of: vec![Revision(1)],
    };
    assert!(!first.contains(&count), "{first:?}");
    let actions = host.life.on(now, Event::Server(Ok(())));
    assert!(actions.contains(&count), "{actions:?}");
    host.left_over(11).on(Event::Bound(Revision(1)));
    let waits = host.life.view();
    assert_eq!(waits.state, State::Waiting);
    let reason = waits.reason.unwrap();
    assert!(reason.contains("what the last one left"), "{reason}");
    host.left_over(10);
    assert_eq!(host.connections, [(InstanceId(1), 2)]);
    host.on(Event::Ready(InstanceId(1)));
    assert_eq!(host.connections, [(InstanceId(1), 2)]);
    host.left_over(0);
    assert_eq!(host.connections.last(), Some(&(InstanceId(1), 10)));
}

#[test]
fn connections_that_never_end_are_waited_for_no_longer_than_a_minute() {
    let mut host = Host::new();
    let actions = host.life.on(host.now, Event::Server(Ok(())));
    assert_eq!(actions, []);
    host.spawned.push(InstanceId(0));
    host.on(wanted(spec(1))).left_over(9);
    host.on(Event::Ready(InstanceId(1)));
    assert_eq!(host.connections, [(InstanceId(1), 3)]);
    for _ in 0..120 {
        host.after(Duration::from_secs(3)).left_over(9);
    }
    assert_eq!(host.connections.last(), Some(&(InstanceId(1), 10)));
}

#[test]
fn leftovers_of_several_kills_stay_within_the_pool_plus_two() {
    // A pool of two has no room for leftovers of two instances.
    for pool in [2, 3, 10] {
        let mut host = Host::new();
        let revision = Revision(1);
        host.on(Event::Server(Ok(())))
            .on(wanted(Want::Run(Spec { revision, pool })));
        let mut left = 0;
        for _ in 0..8 {
            let Some(&(id, connections)) = host.connections.last() else {
                panic!("no instance was started");
            };
            let before = host.spawned.len();
            host.on(Event::Ready(id)).exit(id);
            left += connections;
            // The pause after a failure is over, and leftovers are not counted yet.
            host.after(Duration::from_secs(31));
            let room = left <= pool;
            assert_eq!(host.spawned.len() > before, room, "{left} of {pool}");
            if !room {
                host.left_over(pool + 1);
                assert_eq!(host.spawned.len(), before, "there are too many");
                left = pool;
                host.left_over(left);
                assert_eq!(host.spawned.len(), before + 1);
            }
            assert!(left + host.connections.last().unwrap().1 <= pool + REPLACEMENT_CONNECTIONS);
        }
    }
}

#[test]
fn a_count_from_before_an_exit_does_not_count_its_leftovers() {
    let (mut host, first) = Host::up(1);
    let since = host.now;
    host.after(Duration::from_millis(10)).exit(first);
    let second = host.latest();
    host.on(Event::Ready(second));
    host.on(Event::LeftOver { since, count: 0 });
    assert_eq!(host.connections.last(), Some(&(second, 2)));
    host.left_over(0);
    assert_eq!(host.connections.last(), Some(&(second, 10)));
}
