//! The cost of many webhooks and deliveries, and their retention.

use crate::webhook_delivery::receiver::Receiver;
use crate::webhook_delivery::{BOUND, OPEN, pull, report, second, shared, subscribe};
use brokkr_tests::api_fixture::World;
use brokkr_tests::pg::Options;
use brokkr_tests::{PgServer, until};
use serde_json::json;

#[test]
fn what_is_past_its_retention_is_removed_and_what_waits_for_the_broker_is_not() {
    let world = World::with(&shared());
    let webhook = subscribe(
        &world.admin,
        "http://hooks.example/",
        &json!({ "event_types": ["nothing"] }),
    );
    world
        .put(
            &format!("/webhooks/{webhook}"),
            &json!({ "enabled": false }),
        )
        .expect(200);
    for (state, labels, days) in [
        ("success", "NULL", 8),
        ("dead", "NULL", 8),
        ("pending", "'{x}'", 8),
        ("success", "NULL", 6),
        ("pending", "'{x}'", 6),
        ("pending", "NULL", 8),
    ] {
        let insert = format!(
            "INSERT INTO webhook_deliveries (subscription_id, event_type, event_id, payload, status, target_labels, created_at) \
             VALUES ('{webhook}', 'x', gen_random_uuid(), '{{}}', '{state}', {labels}, now() - interval '{days} days')"
        );
        world.sql_execute(&insert);
    }
    let _other = second(&world);
    let rows = until(BOUND, "three rows", || {
        let rows = world.sql().query(
            "SELECT status, target_labels IS NULL, created_at > now() - interval '7 days' FROM webhook_deliveries ORDER BY 1, 2, 3",
            &[],
        );
        let rows = rows.unwrap();
        (rows.len() == 3).then_some(rows)
    });
    let kept: Vec<(String, bool, bool)> = rows
        .iter()
        .map(|row| (row.get(0), row.get(1), row.get(2)))
        .collect();
    assert_eq!(
        kept,
        [
            ("pending".to_owned(), false, true),
            ("pending".to_owned(), true, false),
            ("success".to_owned(), true, true),
        ]
    );
}

#[test]
fn fault_54_an_event_costs_its_request_the_same_however_many_are_subscribed() {
    let server = PgServer::with(Options::new().set("log_statement", "all"));
    // The job must not run during the count.
    let world = World::on(
        &server,
        &[("broker.webhook_delivery_interval_seconds", "3600")],
    );
    let generator = world.generator("g");
    let stack = world.stack(&generator);
    let mut n = 0;
    let mut statements = || {
        n += 1;
        world.object(&stack, "a: 1");
        let before = server.log().len();
        world.object(&stack, &format!("a: {n}"));
        let log = server.log();
        log[before..]
            .lines()
            .filter(|line| line.contains("execute ") || line.contains("statement: "))
            .filter(|line| !line.contains("search_path"))
            .count()
    };
    let alone = statements();
    assert!(alone > 1);
    // For agents that never come, so nothing is delivered meanwhile.
    let for_agents = json!({ "target_labels": ["x"] });
    for _ in 0..30 {
        subscribe(&world.admin, "http://hooks.example/", &for_agents);
    }
    // The first event wakes the job once; after that it rests.
    world.object(&stack, "b: 1");
    until(BOUND, "the end of the job's one round", || {
        server.log().contains("PARTITION BY lane").then_some(())
    });
    assert_eq!(statements(), alone);
    let mut sql = server.client();
    sql.batch_execute(&format!("SET search_path = {}", world.schema))
        .unwrap();
    let count = |sql: &mut postgres::Client, table: &str| -> i64 {
        let count = format!("SELECT count(*) FROM {table}");
        sql.query_one(&count, &[]).unwrap().get(0)
    };
    assert_eq!(
        count(&mut sql, "webhook_deliveries"),
        30,
        "of the first event"
    );
    assert_eq!(
        count(&mut sql, "event_outbox"),
        2,
        "the others wait for the next round"
    );
}

/// Returns the plans in the server's log.
fn plans(log: &str) -> Vec<String> {
    log.split("LOG:  ")
        .filter(|entry| entry.contains("plan:"))
        .map(str::to_owned)
        .collect()
}

#[test]
fn fault_55_every_claim_goes_by_an_index_with_a_hundred_thousand_deliveries() {
    const BROKERS: usize = 100;
    let server = PgServer::with(
        Options::new()
            .set("session_preload_libraries", "auto_explain")
            .set("auto_explain.log_min_duration", "0")
            .set("auto_explain.log_analyze", "on")
            .set("auto_explain.log_timing", "off"),
    );
    let (world, endpoint) = (World::on(&server, OPEN), Receiver::new());
    let agent = world.agent("a");
    world.label_agent(&agent, "mine");
    let idle = subscribe(
        &world.admin,
        &endpoint.url("/"),
        &json!({ "event_types": ["nothing"] }),
    );
    let mut sql = server.client();
    sql.batch_execute(&format!("SET search_path = {}", world.schema))
        .unwrap();
    // Deliveries with labels of another agent, with labels of this agent, finished deliveries, and some for the broker.
    for (count, status, labels) in [
        (50_000, "pending", "'{theirs}'"),
        (1_000, "pending", "'{mine}'"),
        (50_000, "success", "NULL"),
        (BROKERS, "pending", "NULL"),
    ] {
        let fill = format!(
            "INSERT INTO webhook_deliveries (subscription_id, event_type, event_id, payload, status, target_labels)
             SELECT '{idle}', 'x', gen_random_uuid(), repeat('x', 200), '{status}', {labels} FROM generate_series(1, {count})"
        );
        sql.batch_execute(&fill).unwrap();
    }
    sql.batch_execute("ANALYZE webhook_deliveries").unwrap();
    let before = server.log().len();
    let path = format!("/agents/{}/webhooks/pending", agent.id);
    // PostgreSQL makes a generic plan after five runs with custom plans.
    for _ in 0..8 {
        let taken = pull(&agent);
        assert_eq!(taken.len(), 10);
        for (at, delivery) in taken.iter().enumerate() {
            let said = json!({ "success": at % 2 == 0 });
            report(&agent, delivery, &said).expect(200);
        }
        world.get(&path).expect(200);
        for query in ["", "?status=dead", "?status=success", "?offset=10"] {
            for list in [
                "/webhook-deliveries",
                &format!("/webhooks/{idle}/deliveries"),
            ] {
                world.get(&format!("{list}{query}")).expect(200);
            }
        }
    }
    // From here on each finished delivery wakes the job again.
    let _ = world.agent("waker");
    endpoint.wait(BROKERS);
    until(BOUND, "the end of the last", || {
        let done =
            "SELECT count(*) FROM webhook_deliveries WHERE for_broker AND status <> 'success'";
        (sql.query_one(done, &[]).unwrap().get::<_, i64>(0) == 0).then_some(())
    });
    let log = server.log();
    let mut looked_at = 0;
    for plan in plans(&log[before..]) {
        // Skip the test's own statements.
        if !plan.contains("webhook_deliveries") || plan.contains("<> 'success'") {
            continue;
        }
        looked_at += 1;
        assert!(!plan.contains("Seq Scan on webhook_deliveries"), "{plan}");
        for line in plan.lines() {
            if let Some(rows) = line
                .split("Rows Removed by Filter: ")
                .nth(1)
                .and_then(|rows| rows.trim().parse::<u64>().ok())
            {
                assert!(rows < 1_000, "{plan}");
            }
        }
    }
    assert!(looked_at > 200, "{looked_at}");
}
