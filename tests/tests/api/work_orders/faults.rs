//! Upstream's faults by number, shown to be absent here.

use super::*;

#[test]
fn fault_10_a_generator_cannot_complete_an_unclaimed_order() {
    let world = World::new();
    let (agent, generator) = (world.agent("a"), world.generator("g"));
    world.register(&agent, &generator);
    let unclaimed = order_for(&world, &agent, json!({}));
    let waiting = order_for(&world, &agent, json!({}));
    let claimed = order_for(&world, &agent, json!({}));
    for order in [&waiting, &claimed] {
        claim(&agent.api, order, &agent).expect(200);
    }
    complete(&agent.api, &waiting, json!({ "success": false })).expect(202);
    for order in [&unclaimed, &waiting, &claimed] {
        let before = show(&world, order);
        let answer = complete(&generator.api, order, json!({ "success": true }));
        answer.refused(403, "work_order_not_claimed_by_agent");
        assert_eq!(show(&world, order), before);
    }
    // An agent that has not claimed the order cannot complete it either; the administrator can.
    let answer = complete(&agent.api, &unclaimed, json!({ "success": true }));
    answer.refused(403, "work_order_not_claimed_by_agent");
    let entry = complete(&world.admin, &unclaimed, json!({ "success": true }))
        .expect(200)
        .json();
    assert_eq!(entry["claimed_by"], Value::Null);
}

#[test]
fn fault_27_an_order_that_cannot_be_made_whole_leaves_nothing_not_even_an_event() {
    let world = World::new();
    let agent = world.agent("a");
    world.note_events();
    let audited = || {
        let sql = "SELECT count(*) FROM audit_log WHERE action = 'workorder.created'";
        world.sql_value::<i64>(sql)
    };
    let body = json!({ "targeting": { "agent_ids": [agent.id, UNKNOWN], "labels": ["a"] } });
    let details = create(&world, body).refused(422, "foreign_key_violation");
    assert_eq!(details["constraint"], "work_order_targets_agent_id_fkey");
    for table in [
        "work_orders",
        "work_order_targets",
        "work_order_labels",
        "noted_events",
    ] {
        assert_eq!(count(&world, table), 0, "{table}");
    }
    assert_eq!(audited(), 0);
}

#[test]
fn fault_43_every_step_is_announced_and_a_completion_with_its_own_time() {
    let world = World::new();
    let agent = world.agent("a");
    world.note_events();
    let order = order_for(&world, &agent, json!({ "max_retries": 1 }));
    claim(&agent.api, &order, &agent).expect(200);
    complete(&agent.api, &order, json!({ "success": false })).expect(202);
    let last = json!({ "success": false, "retryable": false });
    let entry = complete(&world.admin, &order, last).expect(200).json();
    let other = order_for(&world, &agent, json!({}));
    claim(&world.admin, &other, &agent).expect(200);
    complete(&agent.api, &other, json!({ "success": true })).expect(200);
    let told: Vec<(String, Value)> = world
        .sql()
        .query(
            "SELECT event_type, data FROM noted_events ORDER BY created_at",
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
        claim(&agent.api, &order, agent).expect(200);
        id(&complete(&agent.api, &order, json!({ "success": success }))
            .expect(200)
            .json())
    };
    let first = ended(&a, "build", true);
    let second = ended(&b, "build", false);
    let third = ended(&a, "custom", false);
    let list = |query: &str| {
        let path = format!("/work-order-log{query}");
        ids(&world.get_json(&path))
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
        let answer = world.get(&format!("/work-order-log?{bad}"));
        answer.refused(400, "bad_request");
    }
    let unknown = world.get(&format!("/work-order-log/{UNKNOWN}"));
    unknown.refused(404, "work_order_log_entry_not_found");
    // Many entries, older than any that would be evicted.
    world
        .sql_execute("UPDATE work_order_log SET completed_at = now() - interval '10 years';
             INSERT INTO work_order_log (id, work_type, created_at, success, retries_attempted, yaml_content)
             SELECT gen_random_uuid(), 'many', now(), true, 0, 'a' FROM generate_series(1, 10050)");
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
        world.create(&path, &body);
    }
    let mut sql = server.client();
    sql.batch_execute(&format!("SET search_path = {}", world.schema))
        .unwrap();
    sql.batch_execute(
        // Without a lookup of each foreign key.
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
    // Often enough that the server may have chosen a generic plan.
    for _ in 0..7 {
        assert_eq!(pending(&agent), [order.as_str()]);
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
    claim(&agent.api, &order, &agent).expect(200);
    let newest = world.get("/work-orders?status=CLAIMED").expect(200);
    assert_eq!(ids(&newest.json()), [order.as_str()]);
    complete(&agent.api, &order, json!({ "success": true })).expect(200);
    let _ = world.broker.stop();
    // The counters are complete once the counting sessions have ended.
    until(LONG, "the broker's sessions to end", || {
        let sql = "SELECT count(*) FROM pg_stat_activity WHERE usename = 'brokkr'";
        let sessions: i64 = server.client().query_one(sql, &[]).unwrap().get(0);
        (sessions == 0).then_some(())
    });
    let read = read(&mut sql) - before;
    assert!(read < 1_000, "{read} rows read without an index");
}
