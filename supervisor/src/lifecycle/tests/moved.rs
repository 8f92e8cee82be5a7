//! Tests of a tenant that moves to another server while a killed instance has leftovers on the old one.

use super::*;

/// Returns the count of leftovers that the lifecycle asks for, if any.
fn asked(host: &mut Host, event: Event) -> Option<(Time, Vec<Revision>)> {
    let now = host.now;
    let actions = host.life.on(now, event);
    actions.into_iter().find_map(|action| match action {
        Action::CountLeftOver { since, of } => Some((since, of)),
        _ => None,
    })
}

/// Returns a host with a killed instance, a ready one with two connections, and a file that names another server.
fn moving() -> (Host, InstanceId) {
    let (mut host, killed) = Host::up(1);
    host.on(Event::Exited {
        id: killed,
        reason: "signal 9".into(),
        configuration: false,
    });
    let new = host.latest();
    host.on(Event::Ready(new)).left_over(10);
    host.on(wanted(spec(2)));
    (host, new)
}

#[test]
fn leftovers_are_counted_on_the_server_that_the_tenant_leaves() {
    let (mut host, new) = moving();
    host.now += Duration::from_secs(2);
    let (since, of) = asked(&mut host, Event::Tick).unwrap();
    assert_eq!(of, [Revision(1)], "the new server knows nothing of it");
    assert_eq!(host.connections.last(), Some(&(new, 2)));
    host.on(Event::LeftOver { since, count: 0 });
    assert!(host.connections.contains(&(new, 10)));
}

#[test]
fn leftovers_are_counted_on_the_old_server_while_the_new_one_is_down() {
    let (mut host, _) = moving();
    host.on(Event::Server(Err("away".into())));
    host.now += Duration::from_secs(2);
    assert!(asked(&mut host, Event::Tick).is_some());
}

#[test]
fn leftovers_on_a_server_that_never_answers_are_given_up_after_a_minute() {
    let (mut host, _) = moving();
    let spawned = host.spawned.len();
    host.after(Duration::from_secs(50));
    assert_eq!(host.spawned.len(), spawned, "not moved yet");
    host.after(Duration::from_secs(11));
    assert_eq!(host.spawned.len(), spawned + 1);
    assert_eq!(host.life.current().unwrap().connections, 10);
}
