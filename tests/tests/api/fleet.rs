//! The records of the fleet and their changes.

use brokkr_tests::api_fixture::sockets::SOON;
use brokkr_tests::api_fixture::{Party, Served, World};
use brokkr_tests::pg::Options;
use brokkr_tests::ws::Came;
use brokkr_tests::{PgServer, holds_for, response_schema, until};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

fn record(world: &World, agent: &Party) -> Value {
    let fleet = world.get_json("/fleet");
    let found = fleet
        .as_array()
        .unwrap()
        .iter()
        .find(|record| record["agent_id"] == agent.id);
    found.cloned().unwrap_or(Value::Null)
}

fn beat(agent: &Party) {
    let path = format!("/agents/{}/heartbeat", agent.id);
    let report = json!({ "k8s_reachable": true, "k8s_api_latency_ms": 9 });
    agent.post(&path, &report).expect(204);
}

#[test]
fn a_new_agents_record_is_all_zeros_and_nulls() {
    let world = World::new();
    let agent = world.agent("a");
    let record = record(&world, &agent);
    response_schema::check("FleetAgentRecord", &record);
    assert_eq!(record["name"], agent.name);
    assert_eq!(record["cluster_name"], "c");
    assert_eq!(record["status"], "INACTIVE");
    assert_eq!(record["ws_connected"], false);
    for null in [
        "connected_since",
        "last_heartbeat",
        "heartbeat_age_seconds",
        "last_event_at",
        "seconds_since_last_event",
        "k8s_reachable",
        "k8s_api_latency_ms",
    ] {
        assert!(record[null].is_null(), "{null}");
    }
    for zero in [
        "pending_object_count",
        "pending_work_orders",
        "claimed_work_orders",
        "health_failing",
        "health_degraded",
    ] {
        assert_eq!(record[zero], 0, "{zero}");
    }
}

#[test]
fn pending_objects_are_the_incremental_target_state() {
    let served = Served::new();
    let (world, agent) = (&served.world, &served.agent);
    let pending = || {
        let state = world.target_state(agent, "?mode=incremental");
        let record = record(world, agent);
        assert_eq!(record["pending_object_count"], state.len());
        state.len()
    };
    assert_eq!(pending(), 0);
    let _ = served.object("a: 1");
    let newest = served.object("a: 2");
    assert_eq!(pending(), 1);
    world.label_agent(agent, "x");
    let labelled = world.stack(&served.generator);
    world.label_stack(&labelled, "x");
    // A stack that is both targeted and labelled counts once.
    world.label_stack(&served.stack, "x");
    let _ = world.object(&labelled, "b: 1");
    assert_eq!(pending(), 2);
    served.report(&newest, "FAILURE");
    assert_eq!(pending(), 2);
    served.report(&newest, "SUCCESS");
    assert_eq!(pending(), 1);
    world.remove(&format!("/stacks/{labelled}"));
    assert_eq!(pending(), 1, "its marker");
    let seen = record(world, agent);
    assert!(seen["last_event_at"].is_string());
    assert!(seen["seconds_since_last_event"].as_i64().unwrap() < 60);
}

#[test]
fn work_orders_health_and_heartbeats_are_counted_for_their_own_agent() {
    let served = Served::new();
    let (world, agent) = (&served.world, &served.agent);
    let other = world.agent("other");
    let object = served.object("a: 1");
    world.label_agent(agent, "builder");
    let mut sql = world.sql();
    // Rows go into the tables directly, because their areas of the API have tests of their own.
    sql.batch_execute(&format!(
        "WITH made AS (
             INSERT INTO work_orders (work_type, yaml_content, status, claimed_by, claimed_at, claim_timeout_seconds,
                                      max_retries, backoff_seconds, due_at)
             SELECT 'build', 'a: 1', s.status, s.claimed_by, s.claimed_at, 60, 3, 60, s.due_at
               FROM (VALUES ('PENDING', NULL::uuid, NULL::timestamptz, NULL::timestamptz), ('PENDING', NULL, NULL, NULL),
                            ('CLAIMED', '{agent}', now(), now() + interval '1 hour'),
                            ('RETRY_PENDING', NULL, NULL, now() + interval '1 hour'))
                    AS s (status, claimed_by, claimed_at, due_at)
             RETURNING id, status),
         targets AS (INSERT INTO work_order_targets (work_order_id, agent_id) SELECT id, '{agent}' FROM made),
         labels AS (INSERT INTO work_order_labels (work_order_id, label) SELECT id, 'builder' FROM made)
         SELECT 1;
         INSERT INTO deployment_health (agent_id, deployment_object_id, status, checked_at)
         VALUES ('{agent}', '{object}', 'failing', now()), ('{other}', '{object}', 'degraded', now())",
        agent = agent.id,
        other = other.id,
    ))
    .unwrap();
    beat(agent);
    let (own, others) = (record(world, agent), record(world, &other));
    let counters = |record: &Value| {
        [
            "pending_work_orders",
            "claimed_work_orders",
            "health_failing",
            "health_degraded",
        ]
        .map(|key| record[key].as_i64().unwrap())
    };
    assert_eq!(counters(&own), [2, 1, 1, 0]);
    assert_eq!(counters(&others), [0, 0, 0, 1]);
    assert_eq!(own["k8s_reachable"], true);
    assert_eq!(own["k8s_api_latency_ms"], 9);
    assert!(own["heartbeat_age_seconds"].as_i64().unwrap() < 60);
    assert!(others["heartbeat_age_seconds"].is_null());
}

#[test]
fn the_fleet_is_every_live_agent_or_those_registered_with_one_generator() {
    let world = World::new();
    let (generator, agents) = (
        world.generator("g"),
        [world.agent("a"), world.agent("b"), world.agent("c")],
    );
    world.register(&agents[0], &generator);
    let names = |query: &str| -> Vec<String> {
        let fleet = world.get_json(&format!("/fleet{query}"));
        let records = fleet.as_array().unwrap().iter();
        records
            .map(|record| record["agent_id"].as_str().unwrap().to_owned())
            .collect()
    };
    world.remove(&format!("/agents/{}", agents[2].id));
    assert_eq!(names(""), [agents[0].id.as_str(), &agents[1].id]);
    assert_eq!(
        names(&format!("?pak_id={}", generator.id)),
        [agents[0].id.as_str()]
    );
    assert_eq!(
        names("?pak_id=11111111-1111-4111-8111-111111111111"),
        [""; 0]
    );
    world.get("/fleet?pak_id=x").refused(400, "bad_request");
    let status = |id: &str| world.get(&format!("/agents/{id}/fleet-status"));
    status(&agents[2].id).refused(404, "agent_not_found");
    status("x").refused(400, "bad_request");
}

#[test]
fn one_agents_status_is_its_record_and_its_twenty_newest_events() {
    let served = Served::new();
    let object = served.object("a: 1");
    for _ in 0..23 {
        served.report(&object, "FAILURE");
    }
    let path = format!("/agents/{}/fleet-status", served.agent.id);
    let status = served.world.get_json(&path);
    response_schema::check("AgentFleetStatusResponse", &status);
    assert_eq!(status["record"]["pending_object_count"], 1);
    let events = served
        .agent
        .get_json(&format!("/agents/{}/events", served.agent.id));
    assert_eq!(
        status["recent_events"].as_array().unwrap()[..],
        events.as_array().unwrap()[..20]
    );
    assert_eq!(status["record"]["last_event_at"], events[0]["created_at"]);
}

#[test]
fn subscribers_see_agents_come_beat_and_go_by_rest_and_by_socket() {
    let world = World::new();
    let (agent, other) = (world.agent("a"), world.agent("b"));
    let mut fleet = world.watch();
    assert_eq!(world.metric("brokkr_fleet_live_subscribers"), 1.0);
    let of = |agent: &Party| {
        let id = agent.id.clone();
        move |record: &Value| record["agent_id"] == id.as_str()
    };
    let mut socket = world.connect(&agent);
    let come = fleet.find("fleet_update", of(&agent));
    response_schema::check("FleetAgentRecord", &come);
    assert_eq!(come["ws_connected"], true);
    assert!(come["connected_since"].is_string() && come["last_heartbeat"].is_null());
    assert_eq!(
        record(&world, &agent)["connected_since"],
        come["connected_since"]
    );

    beat(&other);
    let beaten = fleet.find("fleet_update", of(&other));
    assert_eq!(beaten["k8s_api_latency_ms"], 9);
    assert_eq!(beaten["heartbeat_age_seconds"], 0);
    // Fault 38: a heartbeat over the socket counts too.
    socket.send(
        "heartbeat",
        &json!({ "k8s_reachable": false, "k8s_api_latency_ms": null }),
    );
    let beaten = fleet.find("fleet_update", of(&agent));
    assert_eq!(beaten["k8s_reachable"], false);
    assert!(beaten["k8s_api_latency_ms"].is_null());

    drop(socket);
    let gone = fleet.find("fleet_update", of(&agent));
    assert_eq!(gone["ws_connected"], false);
    assert!(gone["connected_since"].is_null());
    drop(fleet);
    until(SOON, "the subscriber to be gone", || {
        (world.metric("brokkr_fleet_live_subscribers") == 0.0).then_some(())
    });
}

#[test]
fn counters_that_change_by_themselves_are_sent_by_the_sweep_and_nothing_else_is() {
    let served = Served::new();
    let (world, agent) = (&served.world, &served.agent);
    let _ = world.agent("unchanged");
    let mut fleet = world.watch();
    // The first sweep only learns the counters and sends nothing; nor does a later sweep without changes.
    fleet.silent(Duration::from_secs(1));
    let _ = served.object("a: 1");
    let began = Instant::now();
    let Came::Frame(mut frame) = fleet.within(Duration::from_secs(30)) else {
        panic!("no sweep told of it");
    };
    let update = frame["body"].take();
    assert_eq!(update["agent_id"], agent.id);
    assert_eq!(update["pending_object_count"], 1);
    assert!(began.elapsed() < Duration::from_secs(25));
    fleet.silent(Duration::from_secs(1));
}

/// Returns the statements of a call, without its checkout's `SET` and the authentication (at most once a second).
fn statements(server: &PgServer, call: impl Fn()) -> Vec<String> {
    call();
    let before = server.log().len();
    call();
    said_since(server, before)
}

/// Returns the statements logged after this length of the log.
fn said_since(server: &PgServer, before: usize) -> Vec<String> {
    let log = server.log();
    let said = log[before..].lines().filter_map(|line| {
        let (_, said) = line
            .split_once("execute ")
            .or_else(|| line.split_once("statement: "))?;
        (!said.contains("search_path") && !said.contains("credentials_epoch"))
            .then(|| said.to_owned())
    });
    said.collect()
}

#[test]
fn fault_51_the_fleet_is_one_statement_and_a_heartbeat_asks_for_none_of_it() {
    let server = PgServer::with(Options::new().set("log_statement", "all"));
    let served = Served::of(World::on(&server, &[]));
    for _ in 0..20 {
        let agent = served.world.agent("more");
        served.world.register(&agent, &served.generator);
        served.world.target(&agent, &served.stack);
    }
    for n in 0..5 {
        let _ = served.object(&format!("a: {n}"));
    }
    let asked = statements(&server, || drop(served.world.get("/fleet").expect(200)));
    assert_eq!(asked.len(), 1, "{asked:#?}");
    let filtered = format!("/fleet?pak_id={}", served.generator.id);
    let asked = statements(&server, || drop(served.world.get(&filtered).expect(200)));
    assert_eq!(asked.len(), 1, "{asked:#?}");
    // Without watchers a heartbeat is one statement, and nothing follows.
    let before = server.log().len();
    beat(&served.agent);
    holds_for(Duration::from_millis(300), "one statement", || {
        let beats = said_since(&server, before);
        (beats.len() == 1)
            .then_some(())
            .ok_or_else(|| format!("{beats:#?}"))
    });
    // With a watcher, many heartbeats at once share a few statements.
    let mut fleet = served.world.watch();
    let before = server.log().len();
    for _ in 0..50 {
        beat(&served.agent);
    }
    let _ = fleet.expect("fleet_update");
    let log = server.log();
    let asked = log[before..].matches("LEFT JOIN LATERAL").count();
    assert!(
        (1..=30).contains(&asked),
        "{asked} statements for 50 heartbeats"
    );
}

#[test]
fn fault_51_a_fleet_with_a_history_is_as_fast_as_one_without() {
    let served = Served::new();
    let mut sql = served.world.sql();
    sql.batch_execute(&format!(
        "INSERT INTO agents (name, cluster_name) SELECT 'many-' || n, 'c' FROM generate_series(1, 2000) AS n;
         INSERT INTO agent_targets (agent_id, stack_id) SELECT id, '{stack}' FROM agents WHERE name LIKE 'many-%';
         INSERT INTO agent_generator_registrations (agent_id, generator_id)
         SELECT id, '{generator}' FROM agents WHERE name LIKE 'many-%';
         INSERT INTO agent_labels (agent_id, label)
         SELECT id, 'l' || row_number() OVER () % 100 FROM agents WHERE name LIKE 'many-%';
         INSERT INTO stacks (name, generator_id) SELECT 'many-' || n, '{generator}' FROM generate_series(1, 1000) AS n;
         INSERT INTO stack_labels (stack_id, generator_id, label)
         SELECT id, generator_id, 'l' || row_number() OVER () % 100 FROM stacks WHERE name LIKE 'many-%';
         INSERT INTO deployment_objects (stack_id, yaml_content, yaml_checksum)
         SELECT id, 'a: 1', 'x' FROM stacks WHERE name LIKE 'many-%';
         INSERT INTO deployment_objects (stack_id, yaml_content, yaml_checksum)
         SELECT '{stack}', 'a: 1', 'x' FROM generate_series(1, 5000);
         INSERT INTO agent_events (agent_id, deployment_object_id, event_type, status)
         SELECT a.id, o.id, 'DEPLOY', 'FAILURE'
           FROM (SELECT id FROM agents WHERE name LIKE 'many-%' LIMIT 1000) AS a,
                (SELECT id FROM deployment_objects LIMIT 100) AS o;
         ANALYZE",
        stack = served.stack,
        generator = served.generator.id,
    ))
    .unwrap();
    served.world.get("/fleet").expect(200);
    let began = Instant::now();
    let fleet = served.world.get_json("/fleet");
    let took = began.elapsed();
    let fleet = fleet.as_array().unwrap();
    assert_eq!(fleet.len(), 2001);
    let pending = |record: &Value| record["pending_object_count"].as_i64().unwrap();
    assert_eq!(fleet.iter().map(pending).max(), Some(11));
    assert_eq!(fleet.iter().map(pending).sum::<i64>(), 2000 * 11 + 1);
    // Two thousand agents, a thousand stacks, a hundred thousand events: a query that starts over for each agent takes
    // longer.
    assert!(took < Duration::from_secs(2), "{took:?}");
}
