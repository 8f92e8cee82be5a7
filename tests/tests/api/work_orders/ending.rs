//! Orders that are completed, tried again, or given up by their holders.

use super::*;
use brokkr_tests::response_schema;

#[test]
fn an_order_is_created_with_defaults_claimed_completed_and_then_in_the_log() {
    let world = World::new();
    let agent = world.agent("a");
    let order = create(&world, json!({ "target_agent_ids": [agent.id] }))
        .expect(201)
        .json();
    response_schema::check("WorkOrder", &order);
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
    assert_eq!(pending(&agent), [order.as_str()]);
    let claimed = claim(&agent.api, &order, &agent).expect(200).json();
    assert_eq!(
        (&claimed["status"], &claimed["claimed_by"]),
        (&json!("CLAIMED"), &json!(agent.id))
    );
    assert!(claimed["claimed_at"].is_string());
    assert_eq!(pending(&agent), [""; 0]);
    let done = json!({ "success": true, "message": "sha256:abc" });
    let entry = complete(&agent.api, &order, done).expect(200).json();
    response_schema::check("WorkOrderLog", &entry);
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
    let one = world.get(&format!("/work-order-log/{order}"));
    assert_eq!(one.expect(200).json(), entry);
    let path = format!("/work-orders/{order}");
    let gone = show(&world, &order);
    response_schema::check("WorkOrder", &gone);
    assert_eq!(
        (&gone["status"], &gone["max_retries"], &gone["last_error"]),
        (&json!("COMPLETED"), &json!(0), &Value::Null)
    );
    let listed = world.get_json("/work-orders");
    assert_eq!(listed, json!([]));
    world.delete(&path).refused(404, "work_order_not_found");
    let again = complete(&agent.api, &order, json!({ "success": true }));
    again.refused(404, "work_order_not_found");
}

#[test]
fn a_failure_is_answered_202_and_tried_again_until_its_budget_is_used_up() {
    let world = World::new();
    let agent = world.agent("a");
    let quick = json!({ "max_retries": 1, "backoff_seconds": 1 });
    let order = order_for(&world, &agent, quick);
    claim(&agent.api, &order, &agent).expect(200);
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
    assert_eq!(pending(&agent), [""; 0]);
    claim(&agent.api, &order, &agent).refused(404, "work_order_not_claimable");
    // Without any write the job finds the due retry.
    until(LONG, "the retry to be due", || {
        (pending(&agent) == [order.clone()]).then_some(())
    });
    assert_eq!(show(&world, &order)["next_retry_after"], Value::Null);
    claim(&agent.api, &order, &agent).expect(200);
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
    claim(&agent.api, &order, &agent).expect(200);
    complete(
        &agent.api,
        &order,
        json!({ "success": false, "message": "\0" }),
    )
    .refused(422, "invalid_value");
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
    claim(&slow.api, &order, &slow).expect(200);
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
    late.refused(403, "work_order_not_claimed_by_agent");
    claim(&quick.api, &order, &quick).expect(200);
    let late = complete(&slow.api, &order, json!({ "success": true }));
    late.refused(403, "work_order_not_claimed_by_agent");
    complete(&quick.api, &order, json!({ "success": true })).expect(200);
}

#[test]
fn a_locked_order_is_skipped_and_delays_no_other() {
    let world = World::new();
    let agent = world.agent("a");
    let orders: Vec<String> = (0..2)
        .map(|_| order_for(&world, &agent, json!({ "claim_timeout_seconds": 1 })))
        .collect();
    for order in &orders {
        claim(&agent.api, order, &agent).expect(200);
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
    claim(&agent.api, &order, &agent).expect(200);
    let draft = brokkr_tests::Broker::on(server()).schema(&world.schema);
    let _ = world.broker.stop();
    let overdue = "UPDATE work_orders SET due_at = now() - interval '1 minute'";
    assert_eq!(world.sql().execute(overdue, &[]).unwrap(), 1);
    let _next = draft.start();
    until(LONG, "the overdue order to be pending", || {
        let status = "SELECT status FROM work_orders";
        let status: String = world.sql_value(status);
        (status == "PENDING").then_some(())
    });
}
