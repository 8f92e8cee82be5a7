//! Tests of the slot a start takes, and how long it keeps it.

use super::adopted::found;
use super::*;

#[test]
fn a_replacement_keeps_its_slot_until_both_are_within_the_pool() {
    let (mut host, old) = Host::up(1);
    assert_eq!(host.slot, None);
    host.on(Event::Restart);
    let new = host.latest();
    assert_eq!(host.slot, Some(SlotKind::Replacement));
    // The new instance has two connections, and the old may have ten: twelve, two of them the replacement's room.
    host.on(Event::Ready(new));
    assert_eq!(host.terminated, [old]);
    assert_eq!(host.slot, Some(SlotKind::Replacement));
    host.on(Event::Connections(old, 1));
    assert_eq!(host.connections.last(), Some(&(new, 10)));
    assert_eq!(host.slot, Some(SlotKind::Replacement));
    host.leave(old);
    assert_eq!(host.slot, None);
    assert_eq!(host.state(), State::Ready);
}

#[test]
fn a_crash_during_an_overlap_restarts_beside_the_draining_instance() {
    let (mut host, old, new) = Host::replacing();
    host.on(Event::Ready(new)).exit(new);
    assert_eq!(host.spawned.len(), 2, "there may be twelve as it is");
    host.left_over(0);
    assert_eq!(host.spawned.len(), 3, "beside the one that drains");
    assert_eq!(host.slot, Some(SlotKind::Replacement));
    let third = host.latest();
    host.on(Event::Ready(third)).exit(old);
    assert_eq!(host.slot, Some(SlotKind::Replacement));
    // The leftovers of the crashed instance have ended too.
    host.left_over(0);
    assert_eq!((host.slot, host.state()), (None, State::Ready));
}

#[test]
fn only_the_first_start_of_a_configuration_waits_for_replacements() {
    let mut host = Host::new();
    host.run(1);
    assert_eq!(host.slot, Some(SlotKind::First));
    let id = host.latest();
    host.on(Event::Ready(id)).exit(id);
    assert_eq!(host.slot, Some(SlotKind::Start), "its place is an old one");
    let id = host.latest();
    host.on(Event::Ready(id));
    host.on(wanted(Want::Stopped("by the operator".into())))
        .exit(id);
    host.on(wanted(spec(1))).left_over(0);
    assert_eq!(host.slot, Some(SlotKind::First), "it gave its place up");
}

#[test]
fn an_unkillable_instance_keeps_no_slot_and_its_overlap_is_charged() {
    let (mut host, old, new) = Host::replacing();
    host.on(Event::Ready(new));
    host.after(POLICY.grace);
    assert_eq!(host.killed, [old]);
    assert_eq!(host.slot, Some(SlotKind::Replacement));
    host.after(UNKILLABLE_AFTER);
    assert_eq!(host.slot, None, "others are replaced");
    let charged = |host: &Host| {
        let charges = host.life.instances().map(|i| host.life.charge(i));
        charges.max()
    };
    assert_eq!(charged(&host), Some(12));
    host.exit(old);
    assert_eq!(charged(&host), Some(10));
}

#[test]
fn a_start_that_waits_for_an_unkillable_instance_releases_its_slot() {
    let (mut host, old) = Host::up(1);
    host.on(Event::MayOverlap(false)).on(Event::Restart);
    assert_eq!(host.slot, Some(SlotKind::Start), "stop, then start");
    host.after(POLICY.grace).after(UNKILLABLE_AFTER);
    assert_eq!((host.slot, host.spawned.len()), (None, 1));
    host.exit(old);
    assert_eq!((host.slot, host.spawned.len()), (Some(SlotKind::Start), 2));
}

#[test]
fn a_replacement_keeps_its_slot_until_leftovers_have_ended() {
    let (mut host, old, new) = Host::replacing();
    host.on(Event::Ready(new)).after(POLICY.grace).exit(old);
    assert_eq!(host.slot, Some(SlotKind::Replacement));
    host.left_over(10);
    assert_eq!(host.slot, Some(SlotKind::Replacement));
    host.left_over(0);
    assert_eq!(host.slot, None);
    assert_eq!(host.connections.last(), Some(&(new, 10)));
}

#[test]
fn a_replacement_that_may_no_longer_overlap_leaves_the_queue() {
    let (mut host, old) = Host::up(1);
    host.on(Event::Restart);
    let id = host.latest();
    host.on(Event::Ready(id))
        .on(Event::Connections(old, 1))
        .exit(id);
    // The new instance has crashed while the old one drains; the next asks for a slot and waits.
    let (since, count) = (host.now, 9);
    let asked = host.life.on(since, Event::LeftOver { since, count });
    let ask = Action::AskSlot(SlotKind::Replacement);
    assert!(asked.contains(&ask), "{asked:?}");
    let told = host.life.on(host.now, Event::MayOverlap(false));
    assert_eq!(told, [Action::ReleaseSlot]);
}

#[test]
fn a_reported_number_of_connections_is_capped_at_the_pool() {
    let (mut host, old, new) = Host::replacing();
    host.on(Event::Ready(new))
        .on(Event::Connections(old, u32::MAX));
    assert_eq!(host.life.occupancy.draining().map(|d| d.held), Some(10));
}

#[test]
fn an_adopted_overlap_takes_no_slot() {
    let (mut host, old, new) = Host::replacing();
    host.on(Event::Ready(new));
    let mut next = Host::new();
    next.on(Event::Adopted(Inheritance {
        instances: vec![
            found(old.0, AdoptedStage::Stopping),
            AdoptedInstance {
                connections: 2,
                ..found(new.0, AdoptedStage::Serving)
            },
        ],
        ..Inheritance::default()
    }));
    assert_eq!(next.slot, None);
    assert!(next.life.overlaps());
    next.exit(old);
    assert!(!next.life.overlaps());
}

#[test]
fn a_slow_start_continues_without_its_slot() {
    let mut host = Host::new();
    host.run(1);
    assert_eq!(host.slot, Some(SlotKind::First));
    let id = host.latest();
    host.after(STAND_IN_AFTER);
    assert_eq!(host.life.next_deadline(), Some(SLOT_FOR));
    host.on(Event::Extend(id, Duration::from_secs(600)));
    assert!(host.life.starts());
    host.after(SLOT_FOR - STAND_IN_AFTER);
    assert_eq!(host.slot, None, "those behind it start");
    assert!(!host.life.starts(), "nor is it counted without one");
    assert_eq!(host.state(), State::Starting);
    let deadline = STAND_IN_AFTER + Duration::from_secs(600);
    assert_eq!(host.life.next_deadline(), Some(deadline));
    host.on(Event::Ready(id));
    assert_eq!(host.state(), State::Ready);
    // After a failure the next try needs a slot again.
    host.exit(id);
    assert_eq!(host.slot, Some(SlotKind::Start));
}

#[test]
fn a_slow_replacement_lets_others_start_and_keeps_its_room() {
    let (mut host, _, new) = Host::replacing();
    host.after(SLOT_FOR);
    assert!(host.started, "it lets others start");
    assert_eq!(host.slot, Some(SlotKind::Replacement), "twelve are held");
    host.on(Event::Says(new, "waiting for a lock".into()));
    host.after(POLICY.start_timeout).exit(new);
    assert_eq!(
        host.slot,
        Some(SlotKind::Replacement),
        "it may have left two"
    );
    host.left_over(0);
    assert_eq!(host.slot, None);
    let pending = host.pending();
    assert!(
        pending.contains("not ready within 60s: waiting for a lock"),
        "{pending}"
    );
}
