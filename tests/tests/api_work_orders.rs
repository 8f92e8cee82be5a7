//! Work orders and their log, as agents and the administrator see them.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

#[path = "support/shapes.rs"]
mod shapes;
#[path = "support/world.rs"]
mod world;

use std::sync::Barrier;
use std::thread;
use std::time::Duration;

use brokkr_tests::pg::Options;
use brokkr_tests::{Api, PgServer, Response, until};
use serde_json::{Value, json};
use world::{Party, World, id, ids, refused, server};

const LONG: Duration = Duration::from_secs(20);
const UNKNOWN: &str = "00000000-0000-0000-0000-000000000001";

/// Creates an order with these keys besides type and content.
fn create(world: &World, more: Value) -> Response {
    let mut body = json!({ "work_type": "build", "yaml_content": "kind: Build" });
    for (key, value) in more.as_object().unwrap() {
        body[key] = value.clone();
    }
    world.admin.post("/work-orders", &body)
}

/// An order for this agent, with these keys besides; its id.
fn order_for(world: &World, agent: &Party, mut more: Value) -> String {
    more["targeting"] = json!({ "agent_ids": [agent.id] });
    id(&create(world, more).expect(201).json())
}

fn pending(agent: &Party) -> Vec<String> {
    let path = format!("/agents/{}/work-orders/pending", agent.id);
    ids(&agent.api.get(&path).expect(200).json())
}

fn claim(api: &Api, order: &str, agent: &Party) -> Response {
    api.post(
        &format!("/work-orders/{order}/claim"),
        &json!({ "agent_id": agent.id }),
    )
}

fn complete(api: &Api, order: &str, outcome: Value) -> Response {
    api.post(&format!("/work-orders/{order}/complete"), &outcome)
}

fn show(world: &World, order: &str) -> Value {
    let path = format!("/work-orders/{order}");
    world.admin.get(&path).expect(200).json()
}

/// How many rows a table of the tenant has.
fn count(world: &World, table: &str) -> i64 {
    let sql = format!("SELECT count(*) FROM {table}");
    world.sql().query_one(&sql, &[]).unwrap().get(0)
}

#[test]
fn an_order_is_created_with_defaults_claimed_completed_and_then_in_the_log() {
    let world = World::new();
    let agent = world.agent("a");
    let order = create(&world, json!({ "target_agent_ids": [agent.id] }))
        .expect(201)
        .json();
    shapes::check("WorkOrder", &order);
    for (key, value) in [
        ("status", json!("PENDING")),
        ("max_retries", json!(3)),
        ("backoff_seconds", json!(60)),
        ("claim_timeout_seconds", json!(3600)),
        ("retry_count", json!(0)),
        ("claimed_by", Value::Null),
        ("next_retry_after", Value::Null),
    ] {
        assert_eq!(order[key], value, "{key}");
    }
    let order = id(&order);
    assert_eq!(pending(&agent), [order.clone()]);
    let claimed = claim(&agent.api, &order, &agent).expect(200).json();
    assert_eq!(
        (&claimed["status"], &claimed["claimed_by"]),
        (&json!("CLAIMED"), &json!(agent.id))
    );
    assert!(claimed["claimed_at"].is_string());
    assert_eq!(pending(&agent), Vec::<String>::new());
    let done = json!({ "success": true, "message": "sha256:abc" });
    let entry = complete(&agent.api, &order, done).expect(200).json();
    shapes::check("WorkOrderLog", &entry);
    assert_eq!(id(&entry), order, "the log keeps the order's id");
    assert_eq!(
        (
            &entry["success"],
            &entry["result_message"],
            &entry["claimed_by"]
        ),
        (&json!(true), &json!("sha256:abc"), &json!(agent.id))
    );
    assert_eq!(entry["claimed_at"], claimed["claimed_at"]);
    let one = world.admin.get(&format!("/work-order-log/{order}"));
    assert_eq!(one.expect(200).json(), entry);
    let path = format!("/work-orders/{order}");
    let gone = show(&world, &order);
    shapes::check("WorkOrder", &gone);
    assert_eq!(
        (&gone["status"], &gone["max_retries"], &gone["last_error"]),
        (&json!("COMPLETED"), &json!(0), &Value::Null)
    );
    let listed = world.admin.get("/work-orders").expect(200).json();
    assert_eq!(listed, json!([]));
    let _ = refused(&world.admin.delete(&path), 404, "work_order_not_found");
    let again = complete(&agent.api, &order, json!({ "success": true }));
    let _ = refused(&again, 404, "work_order_not_found");
}

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
        let _ = refused(&create(&world, body), status, code);
    }
    assert_eq!(count(&world, "work_orders"), 0);
    // The greatest numbers there are do no harm.
    let greatest = json!({
        "max_retries": i32::MAX, "backoff_seconds": i32::MAX, "claim_timeout_seconds": i32::MAX,
    });
    let order = order_for(&world, &agent, greatest);
    let _ = claim(&agent.api, &order, &agent).expect(200);
    let _ = complete(&agent.api, &order, json!({ "success": false })).expect(202);
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
        let details = refused(&create(&world, twice), 409, "unique_violation");
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
        let _ = world.admin.post(&path, &body).expect(201);
    };
    annotate(&noted, "zone", "b 1");
    annotate(&other, "zone", "b 2");
    let targeting = json!({
        "agent_ids": [named.id],
        // What nobody can be called by is left out without a word.
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
        assert_eq!(pending(agent), [order.clone()], "{}", agent.name);
    }
    assert_eq!(pending(&other), Vec::<String>::new());
    let answer = claim(&other.api, &order, &other);
    let _ = refused(&answer, 404, "work_order_not_claimable");
    for agent in [&named, &labelled, &noted] {
        let _ = claim(&agent.api, &order, agent).expect(200);
        let reset = "UPDATE work_orders SET status = 'PENDING', claimed_by = NULL, due_at = NULL";
        world.sql().execute(reset, &[]).unwrap();
    }
    let unreachable = json!({ "targeting": { "labels": ["two words"] } });
    let _ = create(&world, unreachable).expect(201);
    let twice = json!({ "targeting": { "labels": ["a", "a"] } });
    let details = refused(&create(&world, twice), 409, "unique_violation");
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
    let list = |api: &Api, path: &str| ids(&api.get(path).expect(200).json());
    let path = format!("/agents/{}/work-orders/pending?work_type=", agent.id);
    assert_eq!(list(&agent.api, &format!("{path}custom")), [custom.clone()]);
    assert_eq!(
        list(&agent.api, &format!("{path}cust")),
        Vec::<String>::new()
    );
    let _ = refused(&agent.api.get(&format!("{path}%00")), 422, "invalid_value");
    let _ = claim(&agent.api, &build, &agent).expect(200);
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
    assert_eq!(list(&world.admin, &unknown), Vec::<String>::new());
    let _ = refused(
        &world.admin.get("/agents/x/work-orders/pending"),
        400,
        "bad_request",
    );
}

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
            let _ = refused(answer, 404, "work_order_not_claimable");
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
            let deleted = world.admin.delete(&path);
            (claiming.join().unwrap(), deleted)
        });
        let _ = deleted.expect(204);
        assert!([200, 404].contains(&claimed.status), "{claimed:?}");
        let lost = complete(&agent.api, &order, json!({ "success": true }));
        let _ = refused(&lost, 404, "work_order_not_found");
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
    let _ = refused(
        &claim(&other.api, &order, &agent),
        403,
        "agent_pak_mismatch",
    );
    for (order, who) in [(order.as_str(), &other), (UNKNOWN, &agent)] {
        let answer = claim(&world.admin, order, who);
        let _ = refused(&answer, 404, "work_order_not_claimable");
    }
    let _ = claim(&world.admin, &order, &agent).expect(200);
    let _ = refused(
        &claim(&agent.api, &order, &agent),
        404,
        "work_order_not_claimable",
    );
    let gone = order_for(&world, &other, json!({}));
    let _ = world
        .admin
        .delete(&format!("/agents/{}", other.id))
        .expect(204);
    let _ = refused(
        &claim(&world.admin, &gone, &other),
        404,
        "work_order_not_claimable",
    );
}

#[test]
fn a_failure_is_answered_202_and_tried_again_until_its_budget_is_used_up() {
    let world = World::new();
    let agent = world.agent("a");
    let quick = json!({ "max_retries": 1, "backoff_seconds": 1 });
    let order = order_for(&world, &agent, quick);
    let _ = claim(&agent.api, &order, &agent).expect(200);
    let scheduled = complete(
        &agent.api,
        &order,
        json!({ "success": false, "message": "no" }),
    );
    assert_eq!(scheduled.status, 202);
    assert_eq!(scheduled.json(), json!({ "status": "retry_scheduled" }));
    let waiting = show(&world, &order);
    assert_eq!(
        [
            &waiting["status"],
            &waiting["retry_count"],
            &waiting["last_error"],
            &waiting["claimed_by"]
        ],
        [
            &json!("RETRY_PENDING"),
            &json!(1),
            &json!("no"),
            &Value::Null
        ]
    );
    assert!(waiting["next_retry_after"].is_string() && waiting["last_error_at"].is_string());
    assert_eq!(pending(&agent), Vec::<String>::new());
    let _ = refused(
        &claim(&agent.api, &order, &agent),
        404,
        "work_order_not_claimable",
    );
    // Nobody writes anything meanwhile: the job knows when to look.
    until(LONG, "the retry to be due", || {
        (pending(&agent) == [order.clone()]).then_some(())
    });
    assert_eq!(show(&world, &order)["next_retry_after"], Value::Null);
    let _ = claim(&agent.api, &order, &agent).expect(200);
    let entry = complete(&agent.api, &order, json!({ "success": false }))
        .expect(200)
        .json();
    assert_eq!(
        [
            &entry["success"],
            &entry["result_message"],
            &entry["retries_attempted"]
        ],
        [&json!(false), &json!("Unknown error"), &json!(1)]
    );
    let gone = show(&world, &order);
    assert_eq!(
        [&gone["status"], &gone["last_error"], &gone["last_error_at"]],
        [
            &json!("FAILED"),
            &json!("Unknown error"),
            &entry["completed_at"]
        ]
    );
}

#[test]
fn a_failure_that_is_not_retryable_ends_the_order_at_once() {
    let world = World::new();
    let agent = world.agent("a");
    let order = order_for(&world, &agent, json!({}));
    let _ = claim(&agent.api, &order, &agent).expect(200);
    let _ = refused(
        &complete(
            &agent.api,
            &order,
            json!({ "success": false, "message": "\0" }),
        ),
        422,
        "invalid_value",
    );
    let outcome = json!({ "success": false, "message": "bad input", "retryable": false });
    let entry = complete(&agent.api, &order, outcome).expect(200).json();
    assert_eq!(
        [&entry["result_message"], &entry["retries_attempted"]],
        [&json!("bad input"), &json!(0)]
    );
}

#[test]
fn a_stale_claim_is_given_up_and_its_holder_may_not_complete_it_any_more() {
    let world = World::new();
    let (slow, quick) = (world.agent("slow"), world.agent("quick"));
    let body = json!({
        "claim_timeout_seconds": 1, "targeting": { "agent_ids": [slow.id, quick.id] },
    });
    let order = id(&create(&world, body).expect(201).json());
    let _ = claim(&slow.api, &order, &slow).expect(200);
    until(LONG, "the stale claim to be given up", || {
        (pending(&quick) == [order.clone()]).then_some(())
    });
    let free = show(&world, &order);
    assert_eq!(
        [
            &free["status"],
            &free["claimed_by"],
            &free["claimed_at"],
            &free["retry_count"]
        ],
        [&json!("PENDING"), &Value::Null, &Value::Null, &json!(0)]
    );
    let late = complete(&slow.api, &order, json!({ "success": true }));
    let _ = refused(&late, 403, "work_order_not_claimed_by_agent");
    let _ = claim(&quick.api, &order, &quick).expect(200);
    let late = complete(&slow.api, &order, json!({ "success": true }));
    let _ = refused(&late, 403, "work_order_not_claimed_by_agent");
    let _ = complete(&quick.api, &order, json!({ "success": true })).expect(200);
}

#[test]
fn an_order_somebody_works_on_is_left_to_them_and_holds_up_no_other() {
    let world = World::new();
    let agent = world.agent("a");
    let orders: Vec<String> = (0..2)
        .map(|_| order_for(&world, &agent, json!({ "claim_timeout_seconds": 1 })))
        .collect();
    for order in &orders {
        let _ = claim(&agent.api, order, &agent).expect(200);
    }
    let mut sql = world.sql();
    let mut held = sql.transaction().unwrap();
    let lock = "SELECT 1 FROM work_orders WHERE id::text = $1 FOR UPDATE";
    assert_eq!(held.execute(lock, &[&orders[0]]).unwrap(), 1);
    until(LONG, "the other order to be released", || {
        (pending(&agent) == [orders[1].clone()]).then_some(())
    });
    assert_eq!(show(&world, &orders[0])["status"], "CLAIMED");
    held.rollback().unwrap();
}

#[test]
fn what_is_due_after_a_restart_is_found_by_looking_around() {
    let world = World::new();
    let agent = world.agent("a");
    let order = order_for(&world, &agent, json!({}));
    let _ = claim(&agent.api, &order, &agent).expect(200);
    let draft = brokkr_tests::Broker::on(server()).schema(&world.schema);
    let _ = world.broker.stop();
    let overdue = "UPDATE work_orders SET due_at = now() - interval '1 minute'";
    assert_eq!(world.sql().execute(overdue, &[]).unwrap(), 1);
    let _next = draft.start();
    until(LONG, "the overdue order to be pending", || {
        let status = "SELECT status FROM work_orders";
        let status: String = world.sql().query_one(status, &[]).unwrap().get(0);
        (status == "PENDING").then_some(())
    });
}

#[test]
fn fault_10_a_generator_cannot_complete_an_unclaimed_order() {
    let world = World::new();
    let (agent, generator) = (world.agent("a"), world.generator("g"));
    world.register(&agent, &generator);
    let unclaimed = order_for(&world, &agent, json!({}));
    let waiting = order_for(&world, &agent, json!({}));
    let claimed = order_for(&world, &agent, json!({}));
    for order in [&waiting, &claimed] {
        let _ = claim(&agent.api, order, &agent).expect(200);
    }
    let _ = complete(&agent.api, &waiting, json!({ "success": false })).expect(202);
    for order in [&unclaimed, &waiting, &claimed] {
        let before = show(&world, order);
        let answer = complete(&generator.api, order, json!({ "success": true }));
        let _ = refused(&answer, 403, "work_order_not_claimed_by_agent");
        assert_eq!(show(&world, order), before);
    }
    // An agent that has not claimed it cannot either; the administrator can.
    let answer = complete(&agent.api, &unclaimed, json!({ "success": true }));
    let _ = refused(&answer, 403, "work_order_not_claimed_by_agent");
    let entry = complete(&world.admin, &unclaimed, json!({ "success": true }))
        .expect(200)
        .json();
    assert_eq!(entry["claimed_by"], Value::Null);
}

#[test]
fn fault_27_an_order_that_cannot_be_made_whole_leaves_nothing_not_even_an_event() {
    let world = World::new();
    let agent = world.agent("a");
    world
        .sql()
        .execute("UPDATE brokkr_meta SET wants_events = true", &[])
        .unwrap();
    let audited = || {
        let sql = "SELECT count(*) FROM audit_log WHERE action = 'workorder.created'";
        world.sql().query_one(sql, &[]).unwrap().get::<_, i64>(0)
    };
    let body = json!({ "targeting": { "agent_ids": [agent.id, UNKNOWN], "labels": ["a"] } });
    let details = refused(&create(&world, body), 422, "foreign_key_violation");
    assert_eq!(details["constraint"], "work_order_targets_agent_id_fkey");
    for table in [
        "work_orders",
        "work_order_targets",
        "work_order_labels",
        "event_outbox",
    ] {
        assert_eq!(count(&world, table), 0, "{table}");
    }
    assert_eq!(audited(), 0);
}

#[test]
fn fault_43_every_step_is_announced_and_a_completion_with_its_own_time() {
    let world = World::new();
    let agent = world.agent("a");
    world
        .sql()
        .execute("UPDATE brokkr_meta SET wants_events = true", &[])
        .unwrap();
    let order = order_for(&world, &agent, json!({ "max_retries": 1 }));
    let _ = claim(&agent.api, &order, &agent).expect(200);
    let _ = complete(&agent.api, &order, json!({ "success": false })).expect(202);
    let last = json!({ "success": false, "retryable": false });
    let entry = complete(&world.admin, &order, last).expect(200).json();
    let other = order_for(&world, &agent, json!({}));
    let _ = claim(&world.admin, &other, &agent).expect(200);
    let _ = complete(&agent.api, &other, json!({ "success": true })).expect(200);
    let told: Vec<(String, Value)> = world
        .sql()
        .query(
            "SELECT event_type, data FROM event_outbox ORDER BY created_at",
            &[],
        )
        .unwrap()
        .iter()
        .map(|row| (row.get(0), row.get(1)))
        .collect();
    let kinds: Vec<&str> = told.iter().map(|(kind, _)| kind.as_str()).collect();
    let wanted = [
        "workorder.created",
        "workorder.claimed",
        "workorder.failed",
        "workorder.created",
        "workorder.claimed",
        "workorder.completed",
    ];
    assert_eq!(kinds, wanted, "a retry is nobody's news");
    let keys = |n: usize| {
        let mut keys: Vec<&str> = told[n]
            .1
            .as_object()
            .unwrap()
            .keys()
            .map(String::as_str)
            .collect();
        keys.sort_unstable();
        keys.join(" ")
    };
    assert_eq!(keys(0), "created_at status work_order_id work_type");
    assert_eq!(keys(1), "agent_id claimed_at work_order_id work_type");
    let ended = "agent_id completed_at result_message success work_order_log_id work_type";
    assert_eq!([keys(2), keys(5)], [ended, ended]);
    let failed = &told[2].1;
    assert_eq!(failed["completed_at"], entry["completed_at"]);
    assert_ne!(failed["completed_at"], entry["created_at"]);
    assert_eq!(
        [&failed["work_order_log_id"], &failed["agent_id"]],
        [&json!(order), &Value::Null],
        "nobody held it when the administrator ended it"
    );
    let audited: Vec<(String, String, Option<Value>)> = world
        .sql()
        .query(
            "SELECT action, actor_type, details FROM audit_log WHERE resource_type = 'work_order' ORDER BY timestamp",
            &[],
        )
        .unwrap()
        .iter()
        .map(|row| (row.get(0), row.get(1), row.get(2)))
        .collect();
    let by = |n: usize| (audited[n].0.as_str(), audited[n].1.as_str());
    let steps: Vec<_> = (0..audited.len()).map(by).collect();
    assert_eq!(
        steps,
        [
            ("workorder.created", "admin"),
            ("workorder.claimed", "agent"),
            ("workorder.retry", "agent"),
            ("workorder.failed", "admin"),
            ("workorder.created", "admin"),
            ("workorder.claimed", "admin"),
            ("workorder.completed", "agent"),
        ]
    );
    assert_eq!(audited[3].2, Some(json!({ "retryable": false })));
    assert_eq!(audited[5].2, Some(json!({ "agent_id": agent.id })));
}

#[test]
fn fault_57_the_log_is_kept_listed_within_bounds_and_narrowed_by_what_is_asked() {
    let world = World::new();
    let (a, b) = (world.agent("a"), world.agent("b"));
    let ended = |agent: &Party, kind: &str, success: bool| {
        let order = order_for(
            &world,
            agent,
            json!({ "work_type": kind, "max_retries": 0 }),
        );
        let _ = claim(&agent.api, &order, agent).expect(200);
        id(&complete(&agent.api, &order, json!({ "success": success }))
            .expect(200)
            .json())
    };
    let first = ended(&a, "build", true);
    let second = ended(&b, "build", false);
    let third = ended(&a, "custom", false);
    let list = |query: &str| {
        let path = format!("/work-order-log{query}");
        ids(&world.admin.get(&path).expect(200).json())
    };
    let all = vec![&third, &second, &first];
    let of_a = format!("agent_id={}", a.id);
    for (query, wanted) in [
        (String::new(), all.clone()),
        ("?limit=2".into(), vec![&third, &second]),
        ("?limit=0".into(), vec![]),
        ("?limit=9223372036854775807".into(), all),
        (format!("?{of_a}"), vec![&third, &first]),
        ("?work_type=build".into(), vec![&second, &first]),
        ("?success=false".into(), vec![&third, &second]),
        (format!("?{of_a}&work_type=build"), vec![&first]),
        (format!("?{of_a}&success=false"), vec![&third]),
        ("?work_type=build&success=true".into(), vec![&first]),
        (
            format!("?{of_a}&work_type=custom&success=false&limit=1"),
            vec![&third],
        ),
        (format!("?agent_id={UNKNOWN}"), vec![]),
    ] {
        let found = list(&query);
        assert_eq!(found.iter().collect::<Vec<_>>(), wanted, "{query}");
    }
    for bad in ["limit=-1", "limit=x", "success=maybe", "agent_id=x"] {
        let answer = world.admin.get(&format!("/work-order-log?{bad}"));
        let _ = refused(&answer, 400, "bad_request");
    }
    let unknown = world.admin.get(&format!("/work-order-log/{UNKNOWN}"));
    let _ = refused(&unknown, 404, "work_order_log_entry_not_found");
    // Older than anything that is ever evicted, and many.
    world
        .sql()
        .batch_execute(
            "UPDATE work_order_log SET completed_at = now() - interval '10 years';
             INSERT INTO work_order_log (id, work_type, created_at, success, retries_attempted, yaml_content)
             SELECT gen_random_uuid(), 'many', now(), true, 0, 'a' FROM generate_series(1, 10050)",
        )
        .unwrap();
    assert_eq!(list("").len(), 10_000);
    assert_eq!(list("?limit=20000").len(), 10_000);
    assert_eq!(list("?work_type=build").len(), 2);
}

#[test]
fn fault_58_what_is_for_an_agent_is_one_statement_by_index_however_many_orders_there_are() {
    let server = PgServer::with(Options::new().set("log_statement", "all"));
    let world = World::on(&server, &[]);
    let agent = world.agent("a");
    world.label_agent(&agent, "rare");
    for n in 0..5 {
        let body = json!({ "agent_id": agent.id, "key": format!("k{n}"), "value": "rare" });
        let path = format!("/agents/{}/annotations", agent.id);
        let _ = world.admin.post(&path, &body).expect(201);
    }
    let mut sql = server.client();
    sql.batch_execute(&format!("SET search_path = {}", world.schema))
        .unwrap();
    sql.batch_execute(
        // Without looking up each foreign key.
        "SET session_replication_role = replica;
         INSERT INTO work_orders (work_type, yaml_content, max_retries, backoff_seconds, claim_timeout_seconds)
         SELECT 'build', 'kind: Build', 3, 60, 3600 FROM generate_series(1, 100000);
         INSERT INTO work_order_labels (work_order_id, label)
         SELECT id, 'l' || row_number() OVER () % 1000 FROM work_orders
         UNION ALL SELECT id, 'everybody' FROM work_orders;
         INSERT INTO work_order_annotations (work_order_id, key, value)
         SELECT id, 'k' || row_number() OVER () % 10, 'v' || row_number() OVER () % 1000 FROM work_orders LIMIT 20000;
         SET session_replication_role = origin;
         ANALYZE",
    )
    .unwrap();
    let targeting =
        json!({ "agent_ids": [agent.id], "labels": ["rare"], "annotations": { "k3": "rare" } });
    let order = id(&create(&world, json!({ "targeting": targeting }))
        .expect(201)
        .json());
    let read = |sql: &mut postgres::Client| -> i64 {
        sql.query_one(
            "SELECT sum(seq_tup_read)::bigint FROM pg_stat_all_tables
              WHERE schemaname = current_schema() AND relname LIKE 'work_order%'",
            &[],
        )
        .unwrap()
        .get(0)
    };
    let before = read(&mut sql);
    let log = server.log().len();
    // Often enough that the server may have settled on one plan for all parameters.
    for _ in 0..7 {
        assert_eq!(pending(&agent), [order.clone()]);
    }
    let asked = server.log()[log..]
        .matches("FROM work_order_annotations oa")
        .count();
    assert_eq!(asked, 7, "one statement each, not one for each annotation");
    let everybody = world.agent("everybody");
    world.label_agent(&everybody, "everybody");
    for _ in 0..7 {
        assert_eq!(pending(&everybody).len(), 1000, "the oldest of many");
    }
    let _ = claim(&agent.api, &order, &agent).expect(200);
    let newest = world.admin.get("/work-orders?status=CLAIMED").expect(200);
    assert_eq!(ids(&newest.json()), [order.clone()]);
    let _ = complete(&agent.api, &order, json!({ "success": true })).expect(200);
    let _ = world.broker.stop();
    // The counters are complete once the sessions that counted have ended.
    until(LONG, "the broker's sessions to end", || {
        let sql = "SELECT count(*) FROM pg_stat_activity WHERE usename = 'brokkr'";
        let sessions: i64 = server.client().query_one(sql, &[]).unwrap().get(0);
        (sessions == 0).then_some(())
    });
    let read = read(&mut sql) - before;
    assert!(read < 1_000, "{read} rows read without an index");
}
