//! Which slot a start takes, and how long it keeps it.

use super::*;

#[test]
fn a_replacement_keeps_its_slot_until_both_are_within_the_pool() {
    let (mut host, old) = Host::up(1);
    assert_eq!(host.slot, None);
    host.on(Event::Restart);
    let new = *host.spawned.last().unwrap();
    assert_eq!(host.slot, Some(SlotKind::Replacement));
    // Ready with two connections beside one that may have all ten open: twelve, and the server has given two of them.
    host.on(Event::Ready(new));
    assert_eq!(host.terminated, [old]);
    assert_eq!(host.slot, Some(SlotKind::Replacement));
    host.on(Event::Connections(old, 1));
    assert_eq!(host.connections.last(), Some(&(new, 10)));
    assert_eq!(host.slot, Some(SlotKind::Replacement));
    host.exit(old);
    assert_eq!(host.slot, None);
    assert_eq!(host.state(), State::Ready);
}

#[test]
fn a_crash_amid_an_overlap_is_made_good_at_once() {
    let (mut host, old) = Host::up(1);
    host.on(Event::Restart);
    let new = *host.spawned.last().unwrap();
    host.on(Event::Ready(new)).exit(new);
    assert_eq!(host.spawned.len(), 3, "beside the one that drains");
    assert_eq!(host.slot, Some(SlotKind::Replacement));
    let third = *host.spawned.last().unwrap();
    host.on(Event::Ready(third)).exit(old);
    assert_eq!((host.slot, host.state()), (None, State::Ready));
}

#[test]
fn only_what_has_not_run_before_asks_for_room_that_replacements_may_have() {
    let mut host = Host::new();
    host.on(Event::Server(Ok(()))).on(wanted(spec(1)));
    assert_eq!(host.slot, Some(SlotKind::First));
    let id = *host.spawned.last().unwrap();
    host.on(Event::Ready(id)).exit(id);
    assert_eq!(host.slot, Some(SlotKind::Start), "its place is an old one");
    let id = *host.spawned.last().unwrap();
    host.on(Event::Ready(id));
    host.on(wanted(Want::Stopped("by the operator".into())))
        .exit(id);
    host.on(wanted(spec(1)));
    assert_eq!(host.slot, Some(SlotKind::First), "it gave its place up");
}
