//! Tests that an operator's order is tried at once.

use super::*;

#[test]
fn an_order_tries_a_taken_address_at_once() {
    for order in [Event::Start, Event::Restart] {
        let mut life = Lifecycle::new(POLICY, 1, 7);
        let mut listens = |now: u64, event: Event| {
            let actions = life.on(Duration::from_millis(now), event);
            (
                actions.iter().any(|a| matches!(a, Action::Listen(_))),
                life.view().state,
            )
        };
        listens(0, Event::Server(Ok(())));
        assert!(listens(0, wanted(spec(1))).0);
        let taken = Event::BindFailed(Revision(1), "taken".into());
        assert_eq!(listens(0, taken), (false, State::Backoff));
        assert!(!listens(1, Event::Tick).0);
        assert!(listens(2, order).0);
    }
}

#[test]
fn the_old_address_is_closed_at_once_only_if_no_instance_runs_on_it() {
    let mut life = Lifecycle::new(POLICY, 1, 7);
    let mut on = |event: Event| life.on(Duration::ZERO, event);
    let unlisten = |revision| Action::Unlisten(Some(Revision(revision)));
    // The server is down, so nothing runs; the holder of the new address may wait for the old one.
    assert!(on(wanted(spec(1))).contains(&Action::Listen(Revision(1))));
    let _ = on(Event::Bound(Revision(1)));
    assert!(!on(wanted(spec(2))).contains(&unlisten(2)));
    let taken = on(Event::BindFailed(Revision(2), "taken".into()));
    assert!(taken.contains(&unlisten(2)), "{taken:?}");

    let (mut host, _) = Host::up(1);
    host.life.on(host.now, wanted(spec(2)));
    let taken = Event::BindFailed(Revision(2), "taken".into());
    let actions = host.life.on(host.now, taken);
    assert!(!actions.contains(&unlisten(2)), "{actions:?}");
}
