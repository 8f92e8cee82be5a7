//! What somebody orders is tried at once.

use super::*;

#[test]
fn an_address_that_was_taken_is_tried_at_once_when_somebody_orders_it() {
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
