//! Creating orders, and the agents that they reach.

use super::*;

#[test]
fn an_order_says_what_is_wrong_with_it_and_is_then_not_there() {
    let world = World::new();
    let agent = world.agent("a");
    for (body, status, code) in [
        (json!({}), 400, "no_targeting_specified"),
        (
            json!({ "targeting": null, "target_agent_ids": null }),
            400,
            "no_targeting_specified",
        ),
        (
            json!({ "targeting": { "agent_ids": [], "labels": [], "annotations": {} } }),
            400,
            "no_targeting_specified",
        ),
        (json!({ "work_type": " " }), 400, "invalid_work_order"),
        (json!({ "yaml_content": "\n" }), 400, "invalid_work_order"),
        (json!({ "max_retries": -1 }), 400, "invalid_work_order"),
        (json!({ "backoff_seconds": 0 }), 400, "invalid_work_order"),
        (
            json!({ "claim_timeout_seconds": 0 }),
            400,
            "invalid_work_order",
        ),
        (
            json!({ "claim_timeout_seconds": 3_000_000_000_u32 }),
            422,
            "unprocessable",
        ),
        (json!({ "work_type": "x".repeat(51) }), 422, "invalid_value"),
        (json!({ "work_type": "a\0b" }), 422, "invalid_value"),
        (json!({ "yaml_content": "a: \0" }), 422, "invalid_value"),
        (
            json!({ "targeting": { "agent_ids": ["x"] } }),
            422,
            "unprocessable",
        ),
    ] {
        let mut body = body;
        if code != "no_targeting_specified" && body["targeting"].is_null() {
            body["targeting"] = json!({ "agent_ids": [agent.id] });
        }
        create(&world, body).refused(status, code);
    }
    assert_eq!(count(&world, "work_orders"), 0);
    // The largest numbers are accepted and do no harm.
    let greatest = json!({
        "max_retries": i32::MAX, "backoff_seconds": i32::MAX, "claim_timeout_seconds": i32::MAX,
    });
    let order = order_for(&world, &agent, greatest);
    claim(&agent.api, &order, &agent).expect(200);
    complete(&agent.api, &order, json!({ "success": false })).expect(202);
    let order = show(&world, &order);
    assert_eq!(order["status"], "RETRY_PENDING");
    let year = order["next_retry_after"].as_str().unwrap()[..4]
        .parse::<i32>()
        .unwrap();
    let created = order["created_at"].as_str().unwrap()[..4]
        .parse::<i32>()
        .unwrap();
    assert!((9..=11).contains(&(year - created)), "{order}");
}

#[test]
fn agents_named_in_the_old_and_the_new_way_are_one_list_and_one_named_twice_is_a_mistake() {
    let world = World::new();
    let (a, b) = (world.agent("a"), world.agent("b"));
    let both = json!({ "targeting": { "agent_ids": [a.id] }, "target_agent_ids": [b.id, a.id] });
    let order = id(&create(&world, both).expect(201).json());
    assert_eq!([pending(&a), pending(&b)], [[order.clone()], [order]]);
    for twice in [
        json!({ "targeting": { "agent_ids": [a.id, a.id] } }),
        json!({ "target_agent_ids": [a.id, b.id, a.id] }),
    ] {
        let details = create(&world, twice).refused(409, "unique_violation");
        assert_eq!(
            details["constraint"],
            "work_order_targets_work_order_id_agent_id_key"
        );
    }
    assert_eq!(count(&world, "work_orders"), 1);
}

#[test]
fn an_order_reaches_the_agents_it_names_and_those_with_its_labels_or_annotations() {
    let world = World::new();
    let (named, labelled, noted, other) = (
        world.agent("named"),
        world.agent("labelled"),
        world.agent("noted"),
        world.agent("other"),
    );
    world.label_agent(&labelled, "env:prod");
    world.label_agent(&other, "env:Prod");
    let annotate = |agent: &Party, key: &str, value: &str| {
        let body = json!({ "agent_id": agent.id, "key": key, "value": value });
        let path = format!("/agents/{}/annotations", agent.id);
        world.create(&path, &body);
    };
    annotate(&noted, "zone", "b 1");
    annotate(&other, "zone", "b 2");
    let targeting = json!({
        "agent_ids": [named.id],
        // Labels and annotations that no agent can have are left out silently.
        "labels": ["env:prod", "two words", "", "x".repeat(65)],
        "annotations": { "zone": "b 1", " ": "x", "long": "x".repeat(65) },
    });
    let order = id(&create(&world, json!({ "targeting": targeting }))
        .expect(201)
        .json());
    let rows = |table: &str| count(&world, table);
    assert_eq!(
        [rows("work_order_labels"), rows("work_order_annotations")],
        [1, 1]
    );
    for agent in [&named, &labelled, &noted] {
        assert_eq!(pending(agent), [order.as_str()], "{}", agent.name);
    }
    assert_eq!(pending(&other), [""; 0]);
    let answer = claim(&other.api, &order, &other);
    answer.refused(404, "work_order_not_claimable");
    for agent in [&named, &labelled, &noted] {
        claim(&agent.api, &order, agent).expect(200);
        let reset = "UPDATE work_orders SET status = 'PENDING', claimed_by = NULL, due_at = NULL";
        world.sql_execute(reset);
    }
    let unreachable = json!({ "targeting": { "labels": ["two words"] } });
    create(&world, unreachable).expect(201);
    let twice = json!({ "targeting": { "labels": ["a", "a"] } });
    let details = create(&world, twice).refused(409, "unique_violation");
    assert_eq!(
        details["constraint"],
        "work_order_labels_work_order_id_label_key"
    );
}

#[test]
fn pending_orders_come_oldest_first_and_can_be_narrowed_to_a_type() {
    let world = World::new();
    let agent = world.agent("a");
    let build = order_for(&world, &agent, json!({}));
    let custom = order_for(&world, &agent, json!({ "work_type": "custom" }));
    assert_eq!(pending(&agent), [build.clone(), custom.clone()]);
    let list = |api: &Api, path: &str| ids(&api.get_json(path));
    let path = format!("/agents/{}/work-orders/pending?work_type=", agent.id);
    assert_eq!(
        list(&agent.api, &format!("{path}custom")),
        [custom.as_str()]
    );
    assert_eq!(list(&agent.api, &format!("{path}cust")), [""; 0]);
    agent
        .get(&format!("{path}%00"))
        .refused(422, "invalid_value");
    claim(&agent.api, &build, &agent).expect(200);
    for (query, wanted) in [
        ("", vec![&custom, &build]),
        ("?status=PENDING", vec![&custom]),
        ("?status=CLAIMED", vec![&build]),
        ("?work_type=build", vec![&build]),
        ("?status=PENDING&work_type=build", vec![]),
        ("?status=nonsense", vec![]),
    ] {
        let found = list(&world.admin, &format!("/work-orders{query}"));
        assert_eq!(found.iter().collect::<Vec<_>>(), wanted, "{query}");
    }
    let unknown = format!("/agents/{UNKNOWN}/work-orders/pending");
    assert_eq!(list(&world.admin, &unknown), [""; 0]);
    world
        .get("/agents/x/work-orders/pending")
        .refused(400, "bad_request");
}
