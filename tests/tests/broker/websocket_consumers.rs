//! The subscribers' channels: their permissions and frames, and slow subscribers, which delay no other.

use brokkr_tests::api_fixture::sockets::{AGENT, SOON, addr, k8s_event, line};
use brokkr_tests::api_fixture::{Served, World};
use brokkr_tests::http::request;
use brokkr_tests::ws::Came;
use brokkr_tests::{Host, Socket, until};
use serde_json::json;
use std::time::{Duration, Instant};
use tungstenite::Message;

const UNKNOWN: &str = "11111111-1111-4111-8111-111111111111";

/// Returns the status of a handshake with these subprotocols, and the selected subprotocol.
fn offer(world: &World, path: &str, protocols: &str) -> (u16, Option<String>) {
    let headers = [("Sec-WebSocket-Protocol", protocols)];
    match Socket::ask(&addr(world), path, &headers) {
        Ok(socket) => {
            let selected = socket.answer.header("sec-websocket-protocol");
            (101, selected.map(str::to_owned))
        }
        Err(answer) => (answer.status, None),
    }
}

fn status(world: &World, path: &str, pak: &str, code: &str) -> u16 {
    let bearer = format!("Bearer {pak}");
    let headers = [("Authorization", bearer.as_str())];
    let headers = if pak.is_empty() { &[][..] } else { &headers };
    match Socket::ask(&addr(world), path, headers) {
        Ok(_) => 101,
        Err(answer) => {
            answer.refused(answer.status, code);
            answer.status
        }
    }
}

#[test]
fn who_may_watch_what() {
    let served = Served::new();
    let world = &served.world;
    let (other, admin) = (world.generator("other"), &world.admin.pak);
    let live = |id: &str| format!("/api/v1/stacks/{id}/live");
    let own = live(&served.stack);
    assert_eq!(status(world, &own, admin, ""), 101);
    assert_eq!(status(world, &live(UNKNOWN), admin, ""), 101);
    assert_eq!(status(world, &own, &served.generator.pak, ""), 101);
    let denied = "stack_not_owned";
    assert_eq!(status(world, &own, &other.pak, denied), 403);
    assert_eq!(status(world, &live(UNKNOWN), &other.pak, denied), 403);
    assert_eq!(status(world, &own, &served.agent.pak, denied), 403);
    assert_eq!(status(world, &live("x"), admin, "bad_request"), 400);
    assert_eq!(status(world, &live("x"), "", "unauthorized"), 401);
    assert_eq!(status(world, &own, "", "unauthorized"), 401);

    let fleet = "/api/v1/fleet/live";
    assert_eq!(status(world, fleet, admin, ""), 101);
    for party in [&served.agent, &served.generator] {
        assert_eq!(status(world, fleet, &party.pak, "admin_required"), 403);
    }
    assert_eq!(status(world, fleet, "", "unauthorized"), 401);
    for path in [fleet, &own] {
        let bearer = format!("Bearer {admin}");
        let headers = [("Authorization", bearer.as_str())];
        let answer = request(&addr(world), "GET", path, &headers, None).unwrap();
        answer.refused(400, "websocket_required");
    }
}

#[test]
fn a_browser_offers_its_pak_as_a_subprotocol_and_never_sees_it_again() {
    let served = Served::new();
    let world = &served.world;
    let pak = format!("brokkr.pak.{}", served.generator.pak);
    let path = format!("/api/v1/stacks/{}/live", served.stack);
    let v1 = Some("brokkr.v1".to_owned());
    assert_eq!(
        offer(world, &path, &format!("{pak}, brokkr.v1")),
        (101, v1.clone())
    );
    assert_eq!(
        offer(world, &path, &format!("brokkr.v1,{pak}")),
        (101, v1.clone())
    );
    assert_eq!(offer(world, &path, &pak), (101, None));
    assert_eq!(offer(world, &path, "brokkr.v1"), (401, None));
    assert_eq!(
        offer(world, &path, "brokkr.pak.x_y_z, brokkr.v1"),
        (401, None)
    );
    let admin = format!("brokkr.pak.{}, brokkr.v1", world.admin.pak);
    assert_eq!(offer(world, "/api/v1/fleet/live", &admin), (101, v1));
    // A header, where present, decides.
    let both = [
        ("Authorization", "nonsense"),
        ("Sec-WebSocket-Protocol", pak.as_str()),
    ];
    let refusal = Socket::ask(&addr(world), &path, &both).unwrap_err();
    assert_eq!(refusal.status, 401);
    let answer = Socket::ask(&addr(world), &path, &[("Sec-WebSocket-Protocol", &pak)])
        .unwrap()
        .answer;
    assert!(!format!("{answer:?}").contains(&served.generator.pak));
    assert!(!world.broker.log().contains(&served.generator.pak));
}

#[test]
fn a_subscriber_sees_what_the_stacks_agents_send_and_nothing_else() {
    let served = Served::new();
    let (world, agent) = (&served.world, &served.agent);
    let other = world.stack(&served.generator);
    world.target(agent, &other);
    let mut tails = [
        world.tail(&served.stack, &served.generator.pak),
        world.tail(&served.stack, &world.admin.pak),
    ];
    let mut elsewhere = world.tail(&other, &world.admin.pak);
    assert_eq!(world.metric("brokkr_ws_live_subscribers"), 3.0);
    let mut socket = world.connect(agent);
    socket.send("k8s_event", &k8s_event(agent, &served.stack, "BackOff"));
    socket.send("pod_log_line", &line(agent, &served.stack, "a\u{0}b"));
    let gap = json!({
        "agent_id": agent.id, "stack_id": served.stack, "since_ts": "2024-05-01T12:00:00Z", "dropped_count": 7,
        "reason": "rate_limit",
    });
    socket.send("log_gap", &gap);
    socket.send("pod_log_line", &line(agent, &other, "elsewhere"));
    for tail in &mut tails {
        let event = tail.expect("k8s_event");
        let mut sent = k8s_event(agent, &served.stack, "BackOff");
        sent["observed_at"] = json!("2024-05-01T12:00:00Z");
        assert_eq!(event, sent);
        let mut sent = line(agent, &served.stack, "a\u{fffd}b");
        sent["ts"] = json!("2024-05-01T12:00:00.500Z");
        assert_eq!(tail.expect("pod_log_line"), sent);
        assert_eq!(tail.expect("log_gap"), gap);
    }
    assert_eq!(elsewhere.expect("pod_log_line")["line"], "elsewhere");
    for tail in tails.iter_mut().chain([&mut elsewhere]) {
        tail.silent(Duration::from_millis(100));
    }
    drop(tails);
    until(SOON, "the subscribers to be gone", || {
        (world.subscribers() == 1).then_some(())
    });
    assert_eq!(
        world.metric(r#"brokkr_ws_messages_total{direction="out",type="pod_log_line"}"#),
        3.0
    );
}

#[test]
fn fault_15_telemetry_counts_only_for_stacks_the_agent_serves_and_in_its_own_name() {
    let served = Served::new();
    let (world, agent) = (&served.world, &served.agent);
    let (stranger, foreign) = (world.agent("stranger"), world.generator("foreign"));
    let theirs = world.stack(&foreign);
    let mut tail = world.tail(&served.stack, &world.admin.pak);
    let mut their_tail = world.tail(&theirs, &foreign.pak);
    let (mut socket, mut forger) = (world.connect(agent), world.connect(&stranger));
    forger.send("pod_log_line", &line(&stranger, &served.stack, "forged"));
    forger.send("k8s_event", &k8s_event(&stranger, &served.stack, "Forged"));
    forger.send(
        "pod_log_line",
        &line(agent, &served.stack, "in another's name"),
    );
    forger.send(
        "log_gap",
        &json!({ "agent_id": stranger.id, "stack_id": served.stack, "since_ts": "2024-05-01T12:00:00Z",
                 "dropped_count": 1, "reason": "rate_limit" }),
    );
    socket.send("pod_log_line", &line(agent, &theirs, "forged"));
    socket.send("pod_log_line", &line(agent, UNKNOWN, "forged"));
    until(SOON, "the forger to have been heard", || {
        (world.connection(&stranger)?["messages_in"] == 4).then_some(())
    });
    socket.send("pod_log_line", &line(agent, &served.stack, "true"));
    assert_eq!(tail.expect("pod_log_line")["line"], "true");
    their_tail.silent(Duration::from_millis(200));
    let logs = until(SOON, "the line to be stored", || {
        let path = format!("/stacks/{}/logs", served.stack);
        let logs = world.get_json(&path);
        (!logs["lines"].as_array().unwrap().is_empty()).then_some(logs)
    });
    assert_eq!(logs["lines"].as_array().unwrap().len(), 1);
    let stored: i64 = world.sql_value(
        "SELECT (SELECT count(*) FROM agent_pod_logs) + (SELECT count(*) FROM agent_k8s_events)",
    );
    assert_eq!(stored, 1);

    // A newly targeted agent is accepted soon, although it was refused a moment ago.
    world.register(&stranger, &served.generator);
    world.target(&stranger, &served.stack);
    until(SOON, "the new agent's line", || {
        forger.send("pod_log_line", &line(&stranger, &served.stack, "welcome"));
        let Came::Frame(frame) = tail.within(Duration::from_millis(500)) else {
            return None;
        };
        assert_eq!(frame["body"]["line"], "welcome");
        Some(())
    });
}

#[test]
fn a_subscriber_that_lags_is_told_what_it_missed_and_delays_no_other() {
    let served = Served::new();
    let (world, agent) = (&served.world, &served.agent);
    // The subscriber opens its channel and does not read.
    let mut tail = world.tail(&served.stack, &world.admin.pak);
    let mut socket = world.connect(agent);
    let text = "x".repeat(8 * 1024);
    let lines: u64 = 4000;
    for n in 0..lines {
        socket.send(
            "pod_log_line",
            &line(agent, &served.stack, &format!("{n} {text}")),
        );
    }
    socket.send("heartbeat", &json!({ "k8s_reachable": true }));
    let began = Instant::now();
    until(SOON, "the heartbeat behind all lines", || {
        let path = format!("/agents/{}", agent.id);
        let shown = world.get_json(&path);
        (shown["k8s_reachable"] == true).then_some(())
    });
    assert!(
        began.elapsed() < Duration::from_secs(15),
        "{:?}",
        began.elapsed()
    );
    let (mut seen, mut missed) = (0, 0);
    while seen + missed < lines {
        let frame = tail.frame();
        let body = &frame["body"];
        if frame["type"] == "log_gap" {
            assert_eq!(body["agent_id"], "00000000-0000-0000-0000-000000000000");
            assert_eq!(body["stack_id"], served.stack);
            assert_eq!(body["reason"], "buffer_full");
            missed += body["dropped_count"].as_u64().unwrap();
        } else {
            let number = (seen + missed).to_string();
            let text = body["line"].as_str().unwrap();
            assert_eq!(text.split(' ').next().unwrap(), number);
            seen += 1;
        }
    }
    assert!(missed > 0, "the kernel's buffers took all of it");
    assert_eq!(seen + missed, lines);
}

#[test]
fn what_a_subscriber_says_is_not_heard() {
    let served = Served::new();
    let (world, agent) = (&served.world, &served.agent);
    let mut tail = world.tail(&served.stack, &served.generator.pak);
    tail.send("pod_log_line", &line(agent, &served.stack, "forged"));
    tail.text("nonsense".to_owned());
    tail.message(Message::Binary(vec![1, 2, 3].into())).unwrap();
    let mut socket = world.connect(agent);
    socket.send("pod_log_line", &line(agent, &served.stack, "true"));
    assert_eq!(tail.expect("pod_log_line")["line"], "true");
}

#[test]
fn a_generators_socket_ends_with_its_pak() {
    for end in ["rotate", "delete"] {
        let served = Served::new();
        let world = &served.world;
        let mut tail = world.tail(&served.stack, &served.generator.pak);
        let mut admins = world.tail(&served.stack, &world.admin.pak);
        let path = format!("/generators/{}", served.generator.id);
        if end == "rotate" {
            let path = format!("{path}/rotate-pak");
            world.call("POST", &path, None).expect(201);
        } else {
            world.remove(&path);
        }
        assert_eq!(tail.end(), 1008);
        admins.silent(Duration::from_millis(100));
    }
}

#[test]
fn a_restart_under_the_supervisor_closes_the_agents_socket_and_the_next_instance_takes_it() {
    let host = Host::new();
    let acme = host.tenant("acme").up();
    let made = acme
        .api()
        .create("/agents", &json!({ "name": "edge", "cluster_name": "c" }));
    let pak = made["initial_pak"].as_str().unwrap();
    let mut socket = Socket::open(&acme.addr(), AGENT, pak);
    let mut deaf = Socket::open(&acme.addr(), "/api/v1/fleet/live", &acme.pak());
    let old = acme.pid();
    host.command(&["restart", "acme"]).ok();
    assert_eq!(socket.end(), 1012);
    let mut again = until(SOON, "the next instance to take the agent", || {
        let bearer = format!("Bearer {pak}");
        Socket::ask(&acme.addr(), AGENT, &[("Authorization", &bearer)]).ok()
    });
    acme.replaced(old);
    let connected = || {
        let list = acme.api().get_json("/admin/ws/connections");
        list["connected_agents"].as_u64()
    };
    until(SOON, "the new instance to show it", || {
        (connected() == Some(1)).then_some(())
    });
    again.send("heartbeat", &json!({}));
    // The silent agent never answers its close frame: the old instance still ends by itself.
    until(Duration::from_secs(30), "the old instance to end", || {
        (!brokkr_tests::procs::alive(old)).then_some(())
    });
    assert_eq!(deaf.end(), 1012);
    let log = host.log();
    assert!(log.contains("drained"), "it was killed:\n{log}");
}
