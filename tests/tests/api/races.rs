//! Two clients at once: the loser is told, and nothing is done twice or half.

use brokkr_tests::Response;
use brokkr_tests::api_fixture::{World, ids, unique};
use serde_json::json;
use std::sync::Barrier;
use std::thread;

/// Rounds of each race: enough that both orders occur.
const ROUNDS: usize = 20;

fn race<A: Send, B: Send>(
    one: impl FnOnce() -> A + Send,
    two: impl FnOnce() -> B + Send,
) -> (A, B) {
    let start = Barrier::new(2);
    thread::scope(|scope| {
        let first = scope.spawn(|| {
            let _ = start.wait();
            one()
        });
        let _ = start.wait();
        let second = two();
        (first.join().unwrap(), second)
    })
}

fn statuses(pair: &(Response, Response)) -> [u16; 2] {
    let mut both = [pair.0.status, pair.1.status];
    both.sort_unstable();
    both
}

#[test]
fn one_label_added_twice_at_once_is_added_once() {
    let world = World::new();
    let (agent, generator) = (world.agent("a"), world.generator("g"));
    let stack = world.stack(&generator);
    for n in 0..ROUNDS {
        let label = format!("l{n}");
        let body = json!({ "agent_id": agent.id, "label": label });
        let add = || world.post(&format!("/agents/{}/labels", agent.id), &body);
        assert_eq!(statuses(&race(add, add)), [201, 409]);
        let add = || generator.post(&format!("/stacks/{stack}/labels"), &json!(label));
        assert_eq!(statuses(&race(add, add)), [201, 409]);
        let remove = || generator.delete(&format!("/stacks/{stack}/labels/{label}"));
        assert_eq!(statuses(&race(remove, remove)), [204, 404]);
    }
}

#[test]
fn one_stack_deleted_twice_at_once_leaves_one_marker() {
    let world = World::new();
    let (agent, generator) = (world.agent("a"), world.generator("g"));
    world.register(&agent, &generator);
    for _ in 0..ROUNDS {
        let stack = world.stack(&generator);
        world.target(&agent, &stack);
        let _ = world.object(&stack, "a: 1");
        let delete = || generator.delete(&format!("/stacks/{stack}"));
        assert_eq!(statuses(&race(delete, delete)), [204, 404]);
        let markers: i64 = world
            .sql()
            .query_one(
                "SELECT count(*) FROM deployment_objects WHERE stack_id = $1::text::uuid AND is_deletion_marker",
                &[&stack],
            )
            .unwrap()
            .get(0);
        assert_eq!(markers, 1);
    }
    assert_eq!(
        world.target_state(&agent, "").len(),
        ROUNDS,
        "each marker is delivered"
    );
}

#[test]
fn a_stack_created_while_its_generator_is_deleted_does_not_outlive_it() {
    let world = World::new();
    for _ in 0..ROUNDS {
        let generator = world.generator("g");
        let body = json!({ "name": format!("s-{}", unique()), "generator_id": generator.id });
        let (created, deleted) = race(
            || world.post("/stacks", &body),
            || world.delete(&format!("/generators/{}", generator.id)),
        );
        assert_eq!(deleted.status, 204, "{}", deleted.text());
        assert!([201, 422].contains(&created.status), "{}", created.text());
        let live = world.get_json(&format!("/stacks?pak_id={}", generator.id));
        assert_eq!(ids(&live), [""; 0], "a live stack of a deleted generator");
    }
}

#[test]
fn of_two_rotations_at_once_exactly_one_pak_opens_the_door() {
    let world = World::new();
    for kind in ["agents", "generators"] {
        let party = if kind == "agents" {
            world.agent("a")
        } else {
            world.generator("g")
        };
        let mut opens = party.api.clone();
        for _ in 0..ROUNDS {
            let rotate = || world.call("POST", &format!("/{kind}/{}/rotate-pak", party.id), None);
            let (one, two) = race(rotate, rotate);
            let paks = [one, two].map(|answer| {
                assert!([200, 201].contains(&answer.status), "{}", answer.text());
                answer.json()["pak"].as_str().unwrap().to_owned()
            });
            let good: Vec<_> = paks
                .iter()
                .map(|pak| world.with_pak(pak))
                .filter(|api| api.call("POST", "/auth/pak", None).status == 200)
                .collect();
            assert_eq!(good.len(), 1);
            assert_eq!(
                opens.call("POST", "/auth/pak", None).status,
                401,
                "the one before is dead"
            );
            opens = good[0].clone();
        }
    }
}

#[test]
fn a_target_added_twice_at_once_is_added_once_and_a_consent_too() {
    let world = World::new();
    for _ in 0..ROUNDS {
        let (agent, generator) = (world.agent("a"), world.generator("g"));
        let consent = || {
            let path = format!("/generators/{}/register", generator.id);
            agent.post(&path, &json!({}))
        };
        assert_eq!(statuses(&race(consent, consent)), [201, 409]);
        let stack = world.stack(&generator);
        let body = json!({ "agent_id": agent.id, "stack_id": stack });
        let target = || generator.post(&format!("/agents/{}/targets", agent.id), &body);
        assert_eq!(statuses(&race(target, target)), [201, 409]);
    }
}

#[test]
fn a_deleted_agent_racing_its_own_heartbeat_stays_deleted() {
    let world = World::new();
    for _ in 0..ROUNDS {
        let agent = world.agent("a");
        let (beat, deleted) = race(
            || agent.post(&format!("/agents/{}/heartbeat", agent.id), &json!({})),
            || world.delete(&format!("/agents/{}", agent.id)),
        );
        assert!([204, 401].contains(&beat.status), "{}", beat.text());
        assert_eq!(deleted.status, 204);
        assert_eq!(world.get(&format!("/agents/{}", agent.id)).status, 404);
        assert_eq!(agent.call("POST", "/auth/pak", None).status, 401);
    }
}
