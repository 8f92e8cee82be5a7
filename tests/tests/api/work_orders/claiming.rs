//! Exactly one agent gets an order among several claims.

use super::*;

fn statuses(answers: &[(&Party, Response)]) -> Vec<u16> {
    answers.iter().map(|(_, answer)| answer.status).collect()
}

#[test]
fn of_many_agents_that_claim_an_order_at_once_exactly_one_gets_it() {
    let world = World::with(&[("database.pool_size", "12")]);
    let agents: Vec<Party> = (0..8).map(|n| world.agent(&format!("racer{n}"))).collect();
    for agent in &agents {
        world.label_agent(agent, "racer");
    }
    let targeting = json!({ "labels": ["racer"] });
    for _ in 0..10 {
        let order = id(&create(&world, json!({ "targeting": targeting }))
            .expect(201)
            .json());
        let start = Barrier::new(agents.len());
        let answers: Vec<(&Party, Response)> = thread::scope(|scope| {
            let racing: Vec<_> = agents
                .iter()
                .map(|agent| {
                    let (start, order) = (&start, &order);
                    scope.spawn(move || {
                        start.wait();
                        (agent, claim(&agent.api, order, agent))
                    })
                })
                .collect();
            racing.into_iter().map(|t| t.join().unwrap()).collect()
        });
        let (won, lost): (Vec<_>, Vec<_>) = answers.iter().partition(|(_, a)| a.status == 200);
        assert_eq!(won.len(), 1, "{:?}", statuses(&answers));
        assert_eq!(show(&world, &order)["claimed_by"], json!(won[0].0.id));
        for (_, answer) in lost {
            answer.refused(404, "work_order_not_claimable");
        }
    }
}

#[test]
fn a_claim_and_a_deletion_that_meet_leave_no_half_order() {
    let world = World::with(&[("database.pool_size", "12")]);
    let agent = world.agent("a");
    for _ in 0..10 {
        let order = order_for(&world, &agent, json!({}));
        let (claimed, deleted) = thread::scope(|scope| {
            let claiming = scope.spawn(|| claim(&agent.api, &order, &agent));
            let path = format!("/work-orders/{order}");
            let deleted = world.delete(&path);
            (claiming.join().unwrap(), deleted)
        });
        deleted.expect(204);
        assert!([200, 404].contains(&claimed.status), "{claimed:?}");
        let lost = complete(&agent.api, &order, json!({ "success": true }));
        lost.refused(404, "work_order_not_found");
    }
    assert_eq!(
        [
            count(&world, "work_orders"),
            count(&world, "work_order_targets")
        ],
        [0, 0]
    );
}

#[test]
fn a_claim_is_for_who_is_named_in_it_and_only_while_the_agent_lives() {
    let world = World::new();
    let (agent, other) = (world.agent("a"), world.agent("b"));
    let order = order_for(&world, &agent, json!({}));
    claim(&other.api, &order, &agent).refused(403, "agent_pak_mismatch");
    for (order, who) in [(order.as_str(), &other), (UNKNOWN, &agent)] {
        let answer = claim(&world.admin, order, who);
        answer.refused(404, "work_order_not_claimable");
    }
    claim(&world.admin, &order, &agent).expect(200);
    claim(&agent.api, &order, &agent).refused(404, "work_order_not_claimable");
    let gone = order_for(&world, &other, json!({}));
    world.remove(&format!("/agents/{}", other.id));
    claim(&world.admin, &gone, &other).refused(404, "work_order_not_claimable");
}
