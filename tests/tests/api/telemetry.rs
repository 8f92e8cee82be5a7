//! Telemetry of agents' clusters: storing, reading and removing it.

use brokkr_tests::api_fixture::sockets::{SOON, k8s_event, line};
use brokkr_tests::api_fixture::{Served, World};
use brokkr_tests::pg::Options;
use brokkr_tests::{Broker, PgServer, response_schema, until};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// Returns the answer to a question about a stack, asked by its owner.
fn ask(served: &Served, what: &str) -> Value {
    let path = format!("/stacks/{}/{what}", served.stack);
    served.generator.get_json(&path)
}

/// Returns the lines of the stack's log, newest first, once there are `count`.
fn lines(served: &Served, query: &str, count: usize) -> Vec<String> {
    until(SOON, format!("{count} lines"), || {
        let answer = ask(served, &format!("logs{query}"));
        let lines: Vec<String> = answer["lines"]
            .as_array()
            .unwrap()
            .iter()
            .map(|line| line["line"].as_str().unwrap().to_owned())
            .collect();
        (lines.len() == count).then_some(lines)
    })
}

#[test]
fn events_and_lines_are_kept_and_shown_newest_first() {
    let served = Served::new();
    let agent = &served.agent;
    for what in ["events", "logs"] {
        let empty = ask(&served, what);
        assert_eq!(empty["retention"]["oldest_available_ts"], Value::Null);
        let hint = &empty["retention"]["long_term_sink_hint"];
        assert!(hint.as_str().unwrap().contains("Datadog"), "{hint}");
    }
    let mut socket = served.world.connect(agent);
    for reason in ["Pulled", "BackOff"] {
        socket.send("k8s_event", &k8s_event(agent, &served.stack, reason));
    }
    for n in 0..3 {
        socket.send("pod_log_line", &line(agent, &served.stack, &n.to_string()));
    }
    assert_eq!(lines(&served, "", 3), ["2", "1", "0"]);
    let events = ask(&served, "events");
    response_schema::check("K8sEventHistoryResponse", &events);
    let list = events["events"].as_array().unwrap();
    let reasons: Vec<&Value> = list.iter().map(|event| &event["reason"]).collect();
    assert_eq!(reasons, ["BackOff", "Pulled"]);
    let first = &list[1];
    assert_eq!(first["agent_id"], agent.id);
    assert_eq!(first["stack_id"], served.stack);
    assert_eq!(first["observed_at"], "2024-05-01T12:00:00Z");
    assert_eq!(first["source"], "kubelet");
    assert_eq!(first["involved_object"]["kind"], "Pod");
    assert_eq!(events["retention"]["retention_ceiling_seconds"], 21600);
    assert_eq!(events["retention"]["effective_retention_seconds"], 21600);
    assert_eq!(
        events["retention"]["oldest_available_ts"],
        first["created_at"]
    );
    let logs = ask(&served, "logs");
    response_schema::check("PodLogHistoryResponse", &logs);
    assert_eq!(logs["lines"][0]["ts"], "2024-05-01T12:00:00.500Z");
}

#[test]
fn the_window_and_the_number_of_rows_are_clamped_and_nonsense_is_refused() {
    let served = Served::new();
    let mut sql = served.world.sql();
    // One row a minute, from now to eight hours ago.
    let fill = "INSERT INTO agent_pod_logs (created_at, agent_id, stack_id, namespace, pod, container, ts, line)
         SELECT now() - make_interval(mins => n), $1::text::uuid, $2::text::uuid, 'n', 'p', 'c', now(), n::text
           FROM generate_series(0, 479) AS n";
    sql.execute(fill, &[&served.agent.id, &served.stack])
        .unwrap();
    let count = |query: &str| {
        ask(&served, &format!("logs{query}"))["lines"]
            .as_array()
            .unwrap()
            .len()
    };
    assert_eq!(count(""), 360);
    assert_eq!(count("?since=2000-01-01T00:00:00Z"), 360);
    assert_eq!(count("?since=0001-01-01T00:00:00Z"), 360);
    assert_eq!(count("?limit=10"), 10);
    for least in ["?limit=0", "?limit=-5"] {
        assert_eq!(count(least), 1);
    }
    assert_eq!(count("?limit=99999999"), 360);
    assert_eq!(count("?since=9999-12-31T23:59:59Z"), 0);
    let newest = ask(&served, "logs?limit=30");
    let oldest = newest["lines"][29]["created_at"].as_str().unwrap();
    assert_eq!(newest["retention"]["oldest_available_ts"], oldest);
    assert_eq!(count(&format!("?since={oldest}")), 30);
    // At most five thousand lines, and five hundred by default.
    let fill = "INSERT INTO agent_pod_logs (agent_id, stack_id, namespace, pod, container, ts, line)
         SELECT $1::text::uuid, $2::text::uuid, 'n', 'p', 'c', now(), n::text FROM generate_series(1, 6000) AS n";
    sql.execute(fill, &[&served.agent.id, &served.stack])
        .unwrap();
    assert_eq!(count(""), 500);
    assert_eq!(count("?limit=6000"), 5000);
    assert_eq!(ask(&served, "logs?limit=1")["lines"][0]["line"], "6000");
    for query in ["?limit=x", "?since=yesterday", "?limit=1.5"] {
        let path = format!("/stacks/{}/logs{query}", served.stack);
        served.generator.get(&path).refused(400, "bad_request");
    }
}

#[test]
fn one_answer_is_bounded_in_bytes_too() {
    let served = Served::new();
    let fill = "INSERT INTO agent_pod_logs (agent_id, stack_id, namespace, pod, container, ts, line)
         SELECT $1::text::uuid, $2::text::uuid, 'n', 'p', 'c', now(), repeat('x', 16384) FROM generate_series(1, 2000)";
    let mut sql = served.world.sql();
    sql.execute(fill, &[&served.agent.id, &served.stack])
        .unwrap();
    let answer = ask(&served, "logs?limit=5000");
    assert_eq!(answer["lines"].as_array().unwrap().len(), 1024);
}

#[test]
fn telemetry_of_a_foreign_stack_is_counted_by_reason_and_warned_of_once() {
    let served = Served::new();
    let (world, agent) = (&served.world, &served.agent);
    let (foreign, other) = (world.stack(&served.generator), world.agent("other"));
    let mut socket = world.connect(agent);
    for _ in 0..3 {
        socket.send("pod_log_line", &line(agent, &foreign, "lost"));
        socket.send("k8s_event", &k8s_event(agent, &foreign, "Lost"));
    }
    socket.send("pod_log_line", &line(&other, &served.stack, "not its own"));
    // A second connection of the same agent counts as the same agent.
    let mut again = world.connect(agent);
    again.send("pod_log_line", &line(agent, &foreign, "lost"));
    let dropped = |reason: &str| {
        world.metric(&format!(
            "brokkr_ws_telemetry_dropped_total{{reason=\"{reason}\"}}"
        ))
    };
    until(
        SOON,
        "seven dropped frames and one of another agent",
        || (dropped("not_associated") == 7.0 && dropped("other_agent") == 1.0).then_some(()),
    );
    assert_eq!((dropped("no_room"), dropped("refused")), (0.0, 0.0));
    let warned = world
        .broker
        .log()
        .lines()
        .filter(|line| line.contains("telemetry of the agent is dropped"))
        .map(str::to_owned)
        .collect::<Vec<_>>();
    assert_eq!(warned.len(), 1, "{warned:#?}");
    for word in [&agent.id, &foreign, "not_associated"] {
        assert!(warned[0].contains(word), "{word}: {}", warned[0]);
    }
}

#[test]
fn an_unknown_or_deleted_stack_has_no_history() {
    let served = Served::new();
    let path = format!("/stacks/{}", served.stack);
    served.generator.remove(&path);
    for what in ["events", "logs"] {
        for api in [&served.world.admin, &served.generator.api] {
            let answer = api.get(&format!("{path}/{what}"));
            answer.refused(404, "stack_not_found");
        }
        let answer = served.world.get(&format!("/stacks/x/{what}"));
        answer.refused(400, "bad_request");
    }
}

#[test]
fn a_thousand_lines_are_a_few_statements() {
    let server = PgServer::with(Options::new().set("log_statement", "all"));
    let served = Served::of(World::on(&server, &[]));
    let mut socket = served.world.connect(&served.agent);
    socket.send("pod_log_line", &line(&served.agent, &served.stack, "first"));
    let _ = lines(&served, "", 1);
    let before = server.log().len();
    for n in 0..1000 {
        let text = n.to_string();
        socket.send("pod_log_line", &line(&served.agent, &served.stack, &text));
    }
    let stored = lines(&served, "?limit=5000", 1001);
    assert!(
        (0..1000)
            .rev()
            .map(|n| n.to_string())
            .eq(stored[..1000].iter().cloned())
    );
    let log = server.log();
    let said: Vec<&str> = log[before..].lines().collect();
    let inserts = said
        .iter()
        .filter(|l| l.contains("INSERT INTO agent_pod_logs"));
    let inserts = inserts.count();
    assert!((1..=8).contains(&inserts), "{inserts} statements");
    // No query for each line checks that the agent serves the stack.
    let questions = said.iter().filter(|l| l.contains("stack_departures"));
    assert!(questions.count() <= 2);
    assert!(log.contains("set_config('synchronous_commit', 'off', true)"));
}

#[test]
fn what_no_column_holds_is_made_to_fit_and_takes_no_other_line_with_it() {
    let served = Served::new();
    let agent = &served.agent;
    let mut socket = served.world.connect(agent);
    let send = |socket: &mut brokkr_tests::Socket, text: &str| {
        socket.send("pod_log_line", &line(agent, &served.stack, text));
    };
    send(&mut socket, "before");
    send(&mut socket, "n\u{0}l");
    send(&mut socket, &"é".repeat(300_000));
    let mut odd = line(agent, &served.stack, "odd");
    odd["ts"] = json!("0001-01-01T00:00:00Z");
    odd["namespace"] = json!("n".repeat(100_000));
    socket.send("pod_log_line", &odd);
    let mut event = k8s_event(agent, &served.stack, "r\u{0}");
    event["message"] = json!("m\u{0}".repeat(100_000));
    event["involved_object"]["uid"] = json!("u\u{0}");
    event["involved_object"]["kind"] = json!("k".repeat(10_000));
    socket.send("k8s_event", &event);
    send(&mut socket, "after");
    let stored = lines(&served, "", 5);
    assert_eq!(stored[0], "after");
    assert_eq!(stored[1], "odd");
    assert_eq!(stored[2], "é".repeat(8 * 1024));
    assert_eq!(stored[3], "n\u{fffd}l");
    assert_eq!(stored[4], "before");
    let events = ask(&served, "events");
    let event = &events["events"][0];
    assert_eq!(event["reason"], "r\u{fffd}");
    assert_eq!(event["involved_object"]["uid"], "u\u{fffd}");
    assert!(event["message"].as_str().unwrap().len() <= 16 * 1024);
    assert_eq!(
        event["involved_object"]["kind"].as_str().unwrap().len(),
        512
    );
}

#[test]
fn lines_wait_for_a_lost_database_and_a_flood_is_dropped_with_a_gap() {
    let server = PgServer::start();
    let served = Served::of(World::on(&server, &[]));
    let agent = &served.agent;
    let mut tail = served.world.tail(&served.stack, &served.world.admin.pak);
    let mut socket = served.world.connect(agent);
    socket.send("pod_log_line", &line(agent, &served.stack, "before"));
    let _ = lines(&served, "", 1);
    let _ = tail.expect("pod_log_line");
    // The test's server commits without waiting for the disk, so a checkpoint keeps all rows so far.
    server.sql("CHECKPOINT");
    server.crash();
    socket.send("pod_log_line", &line(agent, &served.stack, "during"));
    assert_eq!(tail.expect("pod_log_line")["line"], "during");
    // More lines than the broker keeps while the database is away: it drops some, and does not hold the agent up for
    // long.
    let text = "x".repeat(15 * 1024);
    let began = Instant::now();
    let reader = std::thread::spawn(move || {
        let gap = tail.find("log_gap", |gap| gap["reason"] == "buffer_full");
        (gap, tail)
    });
    for _ in 0..2000 {
        socket.send("pod_log_line", &line(agent, &served.stack, &text));
    }
    // The gap is reported with the next line after it.
    until(SOON, "the gap to be told", || {
        if reader.is_finished() {
            return Some(());
        }
        socket.send("pod_log_line", &line(agent, &served.stack, &text));
        None
    });
    let (gap, _tail) = reader.join().unwrap();
    assert!(
        began.elapsed() < Duration::from_secs(15),
        "{:?}",
        began.elapsed()
    );
    assert_eq!(gap["agent_id"], agent.id);
    assert_eq!(gap["stack_id"], served.stack);
    assert!(gap["dropped_count"].as_u64().unwrap() > 0);
    server.resume_service();
    let mut sql = server.client();
    let count = format!(
        "SELECT count(*) FROM {}.agent_pod_logs WHERE line = 'during'",
        served.world.schema
    );
    until(
        Duration::from_secs(30),
        "the line of the time between",
        || {
            let stored: i64 = sql.query_one(&count, &[]).unwrap().get(0);
            (stored == 1).then_some(())
        },
    );
    socket.send("pod_log_line", &line(agent, &served.stack, "after"));
    until(SOON, "the line after", || {
        let answer = ask(&served, "logs?limit=1");
        (answer["lines"][0]["line"] == "after").then_some(())
    });
}

#[test]
fn what_is_older_than_six_hours_is_removed_and_counted() {
    let server = PgServer::start();
    let world = World::on(&server, &[]);
    let schema = world.schema.clone();
    let _ = world.broker.stop();
    let mut sql = server.client();
    sql.batch_execute(&format!(
        "SET search_path = {schema};
         INSERT INTO agent_pod_logs (created_at, agent_id, stack_id, namespace, pod, container, ts, line)
         SELECT now() - make_interval(hours => h), gen_random_uuid(), gen_random_uuid(), 'n', 'p', 'c', now(), 'x'
           FROM unnest(ARRAY[0, 5, 7, 8, 1000]) AS h, generate_series(1, 4000);
         INSERT INTO agent_k8s_events (created_at, agent_id, stack_id, observed_at, reason, message, event_type, involved_object)
         SELECT now() - make_interval(hours => h), gen_random_uuid(), gen_random_uuid(), now(), 'r', 'm', 't', '{{}}'
           FROM unnest(ARRAY[0, 7]) AS h"
    ))
    .unwrap();
    // A broker removes old rows when it starts.
    let broker = Broker::on(&server).schema(&schema).start();
    let mut left = |table: &str| -> i64 {
        let ask = format!("SELECT count(*) FROM {table}");
        sql.query_one(&ask, &[]).unwrap().get(0)
    };
    until(SOON, "old rows to be removed", || {
        (left("agent_pod_logs") == 8000 && left("agent_k8s_events") == 1).then_some(())
    });
    until(SOON, "the sweeps to be counted", || {
        let text = brokkr_tests::http::get(&broker.addr(), "/metrics")
            .unwrap()
            .text();
        let has = |line: &str| text.lines().any(|l| l == line);
        (has("brokkr_ws_telemetry_evicted_total{table=\"agent_pod_logs\"} 12000")
            && has("brokkr_ws_telemetry_evicted_total{table=\"agent_k8s_events\"} 1"))
        .then_some(())
    });
}

#[test]
fn reading_a_stacks_history_looks_at_no_others() {
    let served = Served::new();
    let mut sql = served.world.sql();
    sql.batch_execute(
        "INSERT INTO agent_pod_logs (agent_id, stack_id, namespace, pod, container, ts, line)
         SELECT gen_random_uuid(), gen_random_uuid(), 'n', 'p', 'c', now(), 'x' FROM generate_series(1, 100000);
         ANALYZE agent_pod_logs",
    )
    .unwrap();
    for _ in 0..10 {
        let _ = ask(&served, "logs");
    }
    let schema = &served.world.schema;
    let mut scans = || -> (i64, i64) {
        let ask = "SELECT seq_scan, coalesce(idx_scan, 0) FROM pg_stat_all_tables
                    WHERE schemaname = $1 AND relname = 'agent_pod_logs'";
        let row = sql.query_one(ask, &[schema]).unwrap();
        (row.get(0), row.get(1))
    };
    let (whole, _) = scans();
    // A session reports its statistics when it has been idle for a while or ends.
    let (now, by_index) = until(SOON, "the server's counters", || {
        let _ = ask(&served, "logs");
        let seen = scans();
        (seen.1 >= 10).then_some(seen)
    });
    assert!(now <= whole + 1, "{by_index} by index, {now} whole");
}
