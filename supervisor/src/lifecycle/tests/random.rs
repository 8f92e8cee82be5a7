//! Random events against the rules that must always hold.

use super::*;
use proptest::prelude::*;

/// A random event.
#[derive(Debug, Clone)]
enum Step {
    Want(u8),
    Server(bool),
    MayOverlap(bool),
    BindFails,
    Ready(u8),
    Exit(u8, bool),
    Missed(u8),
    Hung(u8),
    Restart,
    Start,
    Wait(u16),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        3 => (0u8..6).prop_map(Step::Want),
        2 => any::<bool>().prop_map(Step::Server),
        1 => any::<bool>().prop_map(Step::MayOverlap),
        1 => Just(Step::BindFails),
        6 => (0u8..3).prop_map(Step::Ready),
        4 => ((0u8..3), any::<bool>()).prop_map(|(i, c)| Step::Exit(i, c)),
        2 => (0u8..3).prop_map(Step::Missed),
        1 => (0u8..3).prop_map(Step::Hung),
        1 => Just(Step::Restart),
        1 => Just(Step::Start),
        4 => (0u16..40_000).prop_map(Step::Wait),
    ];
    proptest::collection::vec(step, 1..120)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]

    /// Never more than two processes, never above pool + 2 connections, every process accounted for; and a wanted
    /// tenant is ready in the end, once starts and exits succeed.
    #[test]
    fn a_life_keeps_its_rules_and_recovers(steps in steps(), seed in any::<u64>()) {
        let mut life = Lifecycle::new(POLICY, 1, seed);
        let mut now = Duration::ZERO;
        let mut alive: Vec<InstanceId> = vec![];
        let mut bind_fails = false;
        let play = |life: &mut Lifecycle, now: Time, alive: &mut Vec<InstanceId>, fails: bool, event: Event| {
            let mut queue = std::collections::VecDeque::from([event]);
            let mut turns = 0;
            while let Some(event) = queue.pop_front() {
                turns += 1;
                assert!(turns < 100, "spins");
                for action in life.on(now, event) {
                    match action {
                        Action::Listen(r) if fails => queue.push_back(Event::BindFailed(r, "taken".into())),
                        Action::Listen(r) => queue.push_back(Event::Bound(r)),
                        Action::AskSlot(_) => queue.push_back(Event::SlotGranted),
                        Action::CountLeftOver { since, .. } => queue.push_back(Event::LeftOver { since, count: 0 }),
                        Action::Spawn { id, .. } => alive.push(id),
                        Action::Kill(id) => {
                            alive.retain(|a| *a != id);
                            queue.push_back(Event::Exited { id, reason: "killed".into(), configuration: false });
                        }
                        _ => {}
                    }
                }
                assert!(alive.len() <= 2, "{alive:?}");
                let known: Vec<_> = life.instances().map(|i| i.id).collect();
                assert!(alive.iter().all(|a| known.contains(a)), "lost a process: {alive:?} {known:?}");
                let most: u32 = life.instances().map(|i| i.pool).max().unwrap_or(0);
                let held: u32 = life.instances().map(|i| i.connections.min(i.held.max(i.connections * u32::from(i.serves())))).sum();
                assert!(held <= most + 2 * REPLACEMENT_CONNECTIONS, "{held} of {most}");
            }
        };
        let pick = |alive: &[InstanceId], i: u8| alive.get(usize::from(i)).copied();
        for step in steps {
            let event = match step {
                Step::Want(0) => wanted(Want::Gone),
                Step::Want(1) => wanted(Want::Stopped("stop".into())),
                Step::Want(2) => wanted(Want::Refused("no".into())),
                Step::Want(n) => wanted(spec(u64::from(n))),
                Step::Server(up) => Event::Server(up.then_some(()).ok_or_else(|| "down".into())),
                Step::MayOverlap(may) => Event::MayOverlap(may),
                Step::BindFails => { bind_fails = !bind_fails; Event::Tick }
                Step::Ready(i) => pick(&alive, i).map_or(Event::Tick, Event::Ready),
                Step::Exit(i, configuration) => match pick(&alive, i) {
                    Some(id) => {
                        alive.retain(|a| *a != id);
                        Event::Exited { id, reason: "exit".into(), configuration }
                    }
                    None => Event::Tick,
                },
                Step::Missed(i) => pick(&alive, i)
                    .map_or(Event::Tick, |id| Event::ProbeMissed { id, on_time: true }),
                Step::Hung(i) => pick(&alive, i)
                    .map_or(Event::Tick, |id| Event::ReplaceHung { id, detail: "hung".into() }),
                Step::Restart => Event::Restart,
                Step::Start => Event::Start,
                Step::Wait(ms) => { now += Duration::from_millis(u64::from(ms)); Event::Tick }
            };
            play(&mut life, now, &mut alive, bind_fails, event);
        }
        // From here on every process that is told to end does so, and every start succeeds.
        for event in [Event::Server(Ok(())), Event::MayOverlap(true), wanted(spec(9)), Event::Start] {
            play(&mut life, now, &mut alive, false, event);
        }
        for _ in 0..20 {
            let due = life.next_deadline();
            if let Some(due) = due { now = now.max(due); }
            play(&mut life, now, &mut alive, false, Event::Tick);
            let going: Vec<_> = life.instances()
                .filter(|i| i.stop().is_some()).map(|i| i.id).collect();
            for id in going {
                alive.retain(|a| *a != id);
                play(&mut life, now, &mut alive, false, Event::Exited { id, reason: "drained".into(), configuration: false });
            }
            for id in alive.clone() {
                play(&mut life, now, &mut alive, false, Event::Ready(id));
            }
        }
        prop_assert_eq!(life.view().state, State::Ready);
        prop_assert_eq!(life.view().pending, None);
        prop_assert_eq!(life.settled(), Some(true));
        prop_assert_eq!(alive.len(), 1);
    }
}
