//! The agents' channel: its permissions, its frames in both directions, and its end.

use brokkr_tests::api_fixture::sockets::{AGENT, SOON, addr, line};
use brokkr_tests::api_fixture::{Party, Served, World, event, id};
use brokkr_tests::http::request;
use brokkr_tests::{Api, Socket, until};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use std::time::{Duration, Instant};
use tungstenite::Message;

/// Returns the status of a handshake with this PAK.
fn handshake(world: &World, pak: &str, more: &[(&str, &str)]) -> u16 {
    let bearer = format!("Bearer {pak}");
    let mut headers = more.to_vec();
    if !pak.is_empty() {
        headers.push(("Authorization", &bearer));
    }
    match Socket::ask(&addr(world), AGENT, &headers) {
        Ok(_) => 101,
        Err(answer) => {
            let code = answer.json()["code"].as_str().unwrap().to_owned();
            answer.refused(answer.status, &code);
            answer.status
        }
    }
}

#[test]
fn the_channel_is_for_agents_and_for_nothing_but_a_header() {
    let world = World::new();
    let (agent, generator) = (world.agent("a"), world.generator("g"));
    assert_eq!(handshake(&world, "", &[]), 401);
    assert_eq!(handshake(&world, "brokkr_BRnobody_111", &[]), 401);
    assert_eq!(handshake(&world, &world.admin.pak, &[]), 403);
    assert_eq!(handshake(&world, &generator.pak, &[]), 403);
    let offered = format!("brokkr.pak.{}", agent.pak);
    let protocol = [("Sec-WebSocket-Protocol", offered.as_str())];
    assert_eq!(handshake(&world, "", &protocol), 401);
    assert_eq!(handshake(&world, &agent.pak, &[]), 101);

    // With the headers of the published agent and of the Rust client, no subprotocol is negotiated.
    let bare = [
        ("Authorization", agent.pak.as_str()),
        ("Sec-WebSocket-Protocol", "brokkr.v1"),
    ];
    let socket = Socket::ask(&addr(&world), AGENT, &bare).unwrap();
    assert_eq!(socket.answer.header("sec-websocket-protocol"), None);
}

#[test]
fn what_is_no_upgrade_is_told_so_and_what_is_not_there_is_not_found() {
    let world = World::new();
    let agent = world.agent("a");
    let bearer = format!("Bearer {}", agent.pak);
    let ask = |method: &str, path: &str, headers: &[(&str, &str)]| {
        request(&addr(&world), method, path, headers, None).unwrap()
    };
    let as_agent = [("Authorization", bearer.as_str())];
    ask("GET", AGENT, &as_agent).refused(400, "websocket_required");
    ask("GET", AGENT, &[]).refused(401, "unauthorized");
    ask("DELETE", AGENT, &as_agent).refused(405, "method_not_allowed");
    ask("DELETE", AGENT, &[]).refused(401, "unauthorized");
    for path in ["/internal", "/internal/", "/internal/ws", "/internal/x/y"] {
        for headers in [&as_agent[..], &[]] {
            ask("GET", path, headers).refused(404, "not_found");
        }
    }
}

#[test]
fn a_connection_is_counted_shown_and_forgotten() {
    let world = World::new();
    let agent = world.agent("a");
    let before = Instant::now();
    let mut socket = world.connect(&agent);
    assert_eq!(world.metric("brokkr_ws_connected_agents"), 1.0);
    socket.send("heartbeat", &json!({}));
    socket.text("no frame".to_owned());
    let shown = until(SOON, "the frame to be counted", || {
        let shown = world.connection(&agent)?;
        (shown["messages_in"] == 1).then_some(shown)
    });
    let since = shown["connected_since"].as_str().unwrap();
    assert!(since.ends_with('Z'), "{since}");
    assert_eq!(shown["messages_out"], 0);
    assert!(before.elapsed() < SOON);
    assert_eq!(
        world.metric(r#"brokkr_ws_messages_total{direction="in",type="heartbeat"}"#),
        1.0
    );
    until(SOON, "what was no frame to be counted", || {
        let counted = world.metric(r#"brokkr_ws_messages_total{direction="in",type="invalid"}"#);
        (counted == 1.0).then_some(())
    });
    drop(socket);
    until(SOON, "the agent to be gone", || {
        world.connection(&agent).is_none().then_some(())
    });
    assert_eq!(world.metric("brokkr_ws_connected_agents"), 0.0);
}

#[test]
fn a_new_connection_replaces_the_old() {
    let world = World::new();
    let agent = world.agent("a");
    let mut old = world.connect(&agent);
    let mut new = world.connect(&agent);
    assert_eq!(old.end(), 1000);
    new.send("heartbeat", &json!({}));
    until(SOON, "the new one to be heard", || {
        (world.connection(&agent)?["messages_in"] == 1).then_some(())
    });
}

fn shown(world: &World, agent: &Party) -> Value {
    world.get_json(&format!("/agents/{}", agent.id))
}

#[test]
fn a_heartbeat_counts_for_the_agent_of_its_connection() {
    let world = World::new();
    let (agent, other) = (world.agent("a"), world.agent("b"));
    let mut socket = world.connect(&agent);
    // A foreign id, an invalid latency, a body of another type: each counts as a heartbeat of the connection's agent.
    socket.send(
        "heartbeat",
        &json!({ "agent_id": other.id, "sent_at": "x" }),
    );
    let first = until(SOON, "a heartbeat", || {
        let agent = shown(&world, &agent);
        agent["last_heartbeat"].is_string().then_some(agent)
    });
    assert!(first["k8s_reachable"].is_null());
    assert!(shown(&world, &other)["last_heartbeat"].is_null());
    socket.send("heartbeat", &json!("nonsense"));
    socket.send(
        "heartbeat",
        &json!({ "agent_id": agent.id, "sent_at": "2024-01-01T00:00:00Z", "k8s_reachable": true, "k8s_api_latency_ms": 12 }),
    );
    let second = until(SOON, "a report", || {
        let agent = shown(&world, &agent);
        (agent["k8s_reachable"] == true).then_some(agent)
    });
    assert_eq!(second["k8s_api_latency_ms"], 12);
    assert!(second["k8s_reported_at"].is_string());
}

/// Copies every event from now on, because the broker removes events from the outbox.
fn announced(world: &World) -> postgres::Client {
    let mut sql = world.sql();
    let schema = &world.schema;
    sql.batch_execute(&format!(
        "UPDATE brokkr_meta SET wants_events = true;
         CREATE TABLE announced (event_type text, data jsonb);
         GRANT INSERT ON announced TO PUBLIC;
         CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS
         $$BEGIN INSERT INTO {schema}.announced VALUES (NEW.event_type, NEW.data); RETURN NEW; END$$;
         CREATE TRIGGER note BEFORE INSERT ON event_outbox FOR EACH ROW EXECUTE FUNCTION note();"
    ))
    .unwrap();
    sql
}

fn events(world: &World, agent: &Party) -> Vec<Value> {
    let list = world.get_json(&format!("/agents/{}/events", agent.id));
    list.as_array().unwrap().clone()
}

#[test]
fn fault_38_an_event_over_the_socket_is_announced_as_by_rest_and_a_repeated_success_is_stored_once()
{
    let served = Served::new();
    let (world, agent) = (&served.world, &served.agent);
    let mut sql = announced(world);
    let object = served.object("a: 1");
    let mut socket = world.connect(agent);
    // As the agent sends it: with a nil id and its own times.
    let mut success = event(agent, &object, "SUCCESS");
    let body = success.as_object_mut().unwrap();
    body.insert(
        "id".to_owned(),
        json!("00000000-0000-0000-0000-000000000000"),
    );
    body.insert("created_at".to_owned(), json!("2001-01-01T00:00:00Z"));
    for _ in 0..3 {
        socket.send("agent_event", &success);
    }
    socket.send("agent_event", &event(agent, &object, "FAILURE"));
    let stored = until(SOON, "the events", || {
        let stored = events(world, agent);
        (stored.len() == 2).then_some(stored)
    });
    assert_eq!(stored[0]["status"], "FAILURE");
    assert_eq!(stored[1]["status"], "SUCCESS");
    assert!(stored[1]["created_at"].as_str().unwrap() > "2024");
    let told: Vec<(String, Value)> = sql
        .query(
            "SELECT event_type, data FROM announced WHERE event_type <> 'deployment.created'",
            &[],
        )
        .unwrap()
        .iter()
        .map(|row| (row.get(0), row.get(1)))
        .collect();
    let names: Vec<&str> = told.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["deployment.applied", "deployment.failed"]);
    assert_eq!(told[0].1["stack_id"], served.stack);
    assert_eq!(told[0].1["agent_event_id"], stored[1]["id"]);
}

#[test]
fn fault_15_what_an_agent_says_of_others_or_of_foreign_objects_is_dropped() {
    let served = Served::new();
    let (world, agent) = (&served.world, &served.agent);
    let other = world.agent("other");
    let (own, foreign) = (
        served.object("a: 1"),
        id(&world.object(&world.stack(&served.generator), "b: 1")),
    );
    let mut socket = world.connect(agent);
    socket.send("agent_event", &event(&other, &own, "SUCCESS"));
    socket.send("agent_event", &event(agent, &foreign, "SUCCESS"));
    let unknown = "11111111-1111-4111-8111-111111111111";
    socket.send("agent_event", &event(agent, unknown, "SUCCESS"));
    let mut long = event(agent, &own, "FAILURE");
    long["status"] = json!("far too long a status");
    socket.send("agent_event", &long);
    socket.send("agent_event", &event(agent, &own, "SUCCESS"));
    let stored = until(SOON, "the one event that counts", || {
        let stored = events(world, agent);
        (!stored.is_empty()).then_some(stored)
    });
    assert_eq!(stored.len(), 1);
    assert_eq!(stored[0]["deployment_object_id"], own);
    assert!(events(world, &other).is_empty());
}

#[test]
fn what_is_no_frame_closes_nothing() {
    let world = World::new();
    let agent = world.agent("a");
    let mut socket = world.connect(&agent);
    for text in [
        "",
        "{",
        "[]",
        r#"{"type":"nothing","body":{}}"#,
        r#"{"type":"agent_event"}"#,
    ] {
        socket.text(text.to_owned());
    }
    socket.send("work_order", &json!({}));
    socket.send("fleet_update", &json!({}));
    socket
        .message(Message::Binary(vec![0xff; 100].into()))
        .unwrap();
    socket.send("heartbeat", &json!({}));
    until(SOON, "the heartbeat behind them", || {
        shown(&world, &agent)["last_heartbeat"]
            .is_string()
            .then_some(())
    });
}

#[test]
fn an_oversized_frame_ends_its_own_socket_only() {
    let world = World::new();
    let (agent, other) = (world.agent("a"), world.agent("b"));
    let (mut socket, mut calm) = (world.connect(&agent), world.connect(&other));
    let _ = socket.message(Message::Text("x".repeat(2 * 1024 * 1024).into()));
    assert!([1002, 1006].contains(&socket.end()));
    calm.send("heartbeat", &json!({}));
    until(SOON, "the other agent's heartbeat", || {
        shown(&world, &other)["last_heartbeat"]
            .is_string()
            .then_some(())
    });
}

#[test]
fn what_is_against_the_protocol_ends_the_socket_and_nothing_panics() {
    let world = World::new();
    let agent = world.agent("a");
    let mut oversized = vec![0x81, 0xff];
    oversized.extend_from_slice(&(1_u64 << 40).to_be_bytes());
    oversized.extend_from_slice(&[0; 4]);
    let unmasked = vec![0x81, 2, b'{', b'}'];
    let no_utf8 = vec![0x81, 0x82, 0, 0, 0, 0, 0xff, 0xfe];
    for bytes in [unmasked, no_utf8, oversized] {
        let mut socket = world.connect(&agent);
        socket.raw(&bytes).unwrap();
        assert!([1002, 1006].contains(&socket.end()), "{bytes:x?}");
        until(SOON, "its entry to be gone", || {
            world.connection(&agent).is_none().then_some(())
        });
    }
    let log = world.broker.log();
    assert!(!log.contains("panic"), "{log}");
}

#[test]
fn fault_13_a_rotated_agents_socket_is_closed_and_what_it_still_sends_is_not_taken() {
    for self_rotation in [true, false] {
        let served = Served::new();
        let (world, agent) = (&served.world, &served.agent);
        let object = served.object("a: 1");
        let mut tail = world.tail(&served.stack, &world.admin.pak);
        let mut socket = world.connect(agent);
        let api: &Api = if self_rotation {
            &agent.api
        } else {
            &world.admin
        };
        let rotated = api
            .call("POST", &format!("/agents/{}/rotate-pak", agent.id), None)
            .expect(200)
            .json();
        // The agent ignores the close and goes on.
        for _ in 0..20 {
            let _ = socket.message(Message::Text(frame("heartbeat", &json!({}))));
            let _ = socket.message(Message::Text(frame(
                "agent_event",
                &event(agent, &object, "SUCCESS"),
            )));
            let _ = socket.message(Message::Text(frame(
                "pod_log_line",
                &line(agent, &served.stack, "forged"),
            )));
        }
        assert_eq!(socket.end(), 1008);
        until(SOON, "the socket to be gone", || {
            world.connection(agent).is_none().then_some(())
        });
        assert_eq!(handshake(world, &agent.pak, &[]), 401);
        assert!(shown(world, agent)["last_heartbeat"].is_null());
        assert!(events(world, agent).is_empty());
        tail.silent(Duration::from_millis(300));

        let mut again = Socket::open(&addr(world), AGENT, rotated["pak"].as_str().unwrap());
        again.send("agent_event", &event(agent, &object, "SUCCESS"));
        until(SOON, "the new PAK's event", || {
            (events(world, agent).len() == 1).then_some(())
        });
    }
}

fn frame(kind: &str, body: &Value) -> tungstenite::Utf8Bytes {
    json!({ "type": kind, "body": body }).to_string().into()
}

#[test]
fn fault_13_a_deleted_agents_socket_is_closed() {
    let world = World::new();
    let agent = world.agent("a");
    let mut socket = world.connect(&agent);
    world.remove(&format!("/agents/{}", agent.id));
    assert_eq!(socket.end(), 1008);
}

#[test]
fn a_pak_rotated_by_another_process_ends_the_socket_at_the_next_heartbeat() {
    let world = World::new();
    let agent = world.agent("a");
    let mut socket = world.connect(&agent);
    let hash = "0".repeat(64);
    world
        .sql()
        .execute(
            "UPDATE agents SET pak_hash = $1 WHERE id::text = $2",
            &[&hash, &agent.id],
        )
        .unwrap();
    socket.send("heartbeat", &json!({ "k8s_reachable": true }));
    assert_eq!(socket.end(), 1008);
    assert!(shown(&world, &agent)["last_heartbeat"].is_null());
    // The authentication cache has dropped the PAK too.
    assert_eq!(handshake(&world, &agent.pak, &[]), 401);
}

#[test]
fn a_pak_rotated_by_a_command_ends_its_silent_sockets_at_the_next_request() {
    let served = Served::new();
    let (world, agent) = (&served.world, &served.agent);
    let other = world.agent("other");
    let (mut socket, mut calm) = (world.connect(agent), world.connect(&other));
    let mut tail = world.tail(&served.stack, &served.generator.pak);
    for (kind, id) in [("agent", &agent.id), ("generator", &served.generator.id)] {
        let _ = world.broker.run(&["rotate", kind, "--uuid", id]).ok();
    }
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        // Any request notices rotated PAKs.
        scope.spawn(|| {
            for _ in 0..300 {
                if stop.load(std::sync::atomic::Ordering::Relaxed) {
                    break;
                }
                other.get(&format!("/agents/{}", other.id)).expect(200);
                std::thread::sleep(Duration::from_millis(100));
            }
        });
        let codes = (socket.end(), tail.end());
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        assert_eq!(codes, (1008, 1008));
    });
    calm.silent(Duration::from_millis(100));
}

#[test]
fn health_over_the_socket_is_as_good_as_by_rest_and_of_foreign_objects_it_is_dropped() {
    let served = Served::new();
    let (world, agent) = (&served.world, &served.agent);
    let own = served.object("a: 1");
    let foreign = id(&world.object(&world.stack(&served.generator), "b: 1"));
    let mut socket = world.connect(agent);
    let report = |object: &str, status: &str, who: &str| {
        json!({
            "id": "00000000-0000-0000-0000-000000000000", "agent_id": who, "deployment_object_id": object,
            "status": status, "summary": "{\"pods_ready\":1}", "checked_at": "2024-05-01T12:00:00Z",
            "created_at": "2024-05-01T12:00:00Z", "updated_at": "2024-05-01T12:00:00Z",
        })
    };
    let other = world.agent("other");
    socket.send("agent_health", &report(&foreign, "failing", &agent.id));
    socket.send("agent_health", &report(&own, "splendid", &agent.id));
    socket.send("agent_health", &report(&own, "failing", &other.id));
    socket.send("agent_health", &report(&own, "degraded", &agent.id));
    let health = |object: &str| {
        let path = format!("/deployment-objects/{object}/health");
        world.get_json(&path)
    };
    let seen = until(SOON, "the report that counts", || {
        let seen = health(&own);
        (!seen["health_records"].as_array().unwrap().is_empty()).then_some(seen)
    });
    assert_eq!(seen["overall_status"], "degraded");
    assert_eq!(seen["health_records"].as_array().unwrap().len(), 1);
    assert_eq!(seen["health_records"][0]["summary"], "{\"pods_ready\":1}");
    assert_eq!(health(&foreign)["overall_status"], "unknown");
}

#[test]
fn draining_closes_every_socket_stores_what_came_in_and_ends_long_before_its_grace() {
    let served = Served::new();
    let (world, agent) = (&served.world, &served.agent);
    let mut socket = world.connect(agent);
    let mut tail = world.tail(&served.stack, &world.admin.pak);
    let mut silent = world.watch();
    for n in 0..100 {
        socket.send("pod_log_line", &line(agent, &served.stack, &n.to_string()));
    }
    let _ = tail.find("pod_log_line", |line| line["line"] == "99");
    let began = Instant::now();
    world.broker.signal(Signal::SIGTERM);
    assert_eq!(socket.end(), 1012);
    assert_eq!(tail.end(), 1012);
    drop((socket, tail));
    until(SOON, "the broker to end", || world.broker.ended());
    // The third socket never answers its close frame; a broker without a supervisor has 20 s.
    assert!(
        began.elapsed() < Duration::from_secs(12),
        "{:?}",
        began.elapsed()
    );
    assert_eq!(silent.end(), 1012);
    let stored: i64 = world.sql_value("SELECT count(*) FROM agent_pod_logs");
    assert_eq!(stored, 100);
}
