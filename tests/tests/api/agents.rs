//! Agents, as a client sees them: storage, refusals, and races.

use brokkr_tests::api_fixture::{World, id, ids, unique};
use serde_json::{Value, json};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

#[test]
fn a_new_agent_is_inactive_registered_with_the_system_and_found_by_name() {
    let world = World::new();
    let generator = world.generator("g");
    let body =
        json!({ "name": "a", "cluster_name": "c", "generator_ids": [generator.id, generator.id] });
    let made = world.create("/agents", &body);
    assert_eq!(made["agent"]["status"], "INACTIVE");
    assert!(made.to_string().find("pak_hash").is_none());
    let agent = id(&made["agent"]);
    let registrations = world.get_json(&format!("/agents/{agent}/registrations"));
    assert_eq!(
        registrations.as_array().unwrap().len(),
        2,
        "the system and the one asked for: {registrations}"
    );
    let found = world.get_json("/agents/?name=a&cluster_name=c");
    assert_eq!(id(&found), agent);
    let listed = generator.get_json("/agents");
    assert_eq!(ids(&listed), [agent]);
}

#[test]
fn the_search_wants_both_values_and_tells_who_is_missing() {
    let world = World::new();
    for query in ["", "?name=a", "?cluster_name=c"] {
        world
            .get(&format!("/agents/{query}"))
            .refused(400, "name_and_cluster_required");
    }
    world
        .get("/agents/?name=a&cluster_name=c")
        .refused(404, "agent_not_found");
}

#[test]
fn fault_26_a_refused_creation_leaves_no_agent_behind() {
    let world = World::new();
    let taken = world.agent("taken");
    let unknown = "00000000-0000-0000-0000-000000000001";
    let cases = [
        (
            json!({ "name": " ", "cluster_name": "c" }),
            400,
            "invalid_agent",
        ),
        (
            json!({ "name": "n", "cluster_name": "" }),
            400,
            "invalid_agent",
        ),
        (
            json!({ "name": "n", "cluster_name": "c", "generator_ids": [unknown] }),
            400,
            "invalid_generator_id",
        ),
        (
            json!({ "name": "n", "cluster_name": "x".repeat(256) }),
            422,
            "invalid_value",
        ),
        (
            json!({ "name": "n\u{0}", "cluster_name": "c" }),
            422,
            "invalid_value",
        ),
        (json!({ "name": "n" }), 422, "unprocessable"),
        (
            json!({ "name": 1, "cluster_name": "c" }),
            422,
            "unprocessable",
        ),
        (
            json!({ "name": "n", "cluster_name": "c", "generator_ids": ["x"] }),
            422,
            "unprocessable",
        ),
    ];
    for (body, status, code) in cases {
        world.post("/agents", &body).refused(status, code);
    }
    let again = world.post(
        "/agents",
        &json!({ "name": taken.name, "cluster_name": "c" }),
    );
    let details = again.refused(409, "unique_violation");
    assert_eq!(details["constraint"], "unique_agent_cluster");
    assert_eq!(world.get_json("/agents").as_array().unwrap().len(), 1);
}

#[test]
fn a_put_changes_what_it_names_and_ignores_everything_else() {
    let world = World::new();
    let agent = world.agent("a");
    let path = format!("/agents/{}", agent.id);
    let before = agent.get_json(&path);
    for body in [
        json!([1, 2]),
        json!("x"),
        json!(null),
        json!({ "id": "x", "status": 5, "pak_hash": "x" }),
    ] {
        let after = agent.put(&path, &body).expect(200).json();
        assert_eq!(after, before, "{body}");
    }
    let changed =
        json!({ "status": "ACTIVE", "deleted_at": "2024-01-01T00:00:00Z", "id": agent.name });
    let after = agent.put(&path, &changed).expect(200).json();
    assert_eq!(
        (&after["status"], &after["deleted_at"], &after["id"]),
        (&json!("ACTIVE"), &Value::Null, &before["id"])
    );
    assert_eq!(after["name"], before["name"]);
    agent
        .put(&path, &json!({ "status": "x".repeat(51) }))
        .refused(422, "invalid_value");
    agent
        .put(&path, &json!({ "name": "" }))
        .refused(400, "invalid_agent");
}

#[test]
fn fault_24_a_put_racing_a_rotation_never_brings_the_old_pak_back() {
    let world = World::new();
    let agent = world.agent("a");
    let path = format!("/agents/{}", agent.id);
    let mut paks = vec![agent.pak.clone()];
    let stop = &AtomicBool::new(false);
    thread::scope(|scope| {
        let end = brokkr_tests::SetAtEnd::of(stop);
        let admin = &world.admin;
        let path = &path;
        let writers: Vec<_> = (0..3)
            .map(|n| {
                scope.spawn(move || {
                    let mut puts = 0;
                    while !stop.load(Ordering::Relaxed) {
                        admin
                            .put(path, &json!({ "status": format!("S{n}-{puts}") }))
                            .expect(200);
                        puts += 1;
                    }
                    puts
                })
            })
            .collect();
        for _ in 0..30 {
            let rotated = world
                .call("POST", &format!("{path}/rotate-pak"), None)
                .expect(200)
                .json();
            paks.push(rotated["pak"].as_str().unwrap().to_owned());
        }
        drop(end);
        for writer in writers {
            assert!(writer.join().unwrap() > 0);
        }
    });
    let newest = paks.pop().unwrap();
    world.with_pak(newest).get(&path).expect(200);
    for old in paks {
        world.with_pak(old).get(&path).refused(401, "unauthorized");
    }
}

#[test]
fn a_deleted_agent_is_gone_for_itself_at_once_and_its_name_is_free() {
    let world = World::new();
    let agent = world.agent("a");
    let path = format!("/agents/{}", agent.id);
    agent.get(&path).expect(200);
    world.remove(&path);
    agent.get(&path).refused(401, "unauthorized");
    world.get(&path).refused(404, "agent_not_found");
    world.put(&path, &json!({})).refused(404, "agent_not_found");
    let rotate = format!("{path}/rotate-pak");
    world
        .call("POST", &rotate, None)
        .refused(404, "agent_not_found");
    world
        .get(&format!("{path}/registrations"))
        .refused(404, "agent_not_found");
    world.get(&format!("{path}/labels")).expect(200);
    world.get(&format!("{path}/target-state")).expect(200);
    world.remove(&path);
    let count: i64 =
        world.sql_value("SELECT count(*) FROM audit_log WHERE action = 'agent.deleted'");
    assert_eq!(count, 1, "deleting it again did nothing");
    world.create(
        "/agents",
        &json!({ "name": agent.name, "cluster_name": "c" }),
    );
}

#[test]
fn a_heartbeat_takes_any_body_and_stores_a_report_only_with_its_verdict() {
    let world = World::new();
    let agent = world.agent("a");
    let beat = format!("/agents/{}/heartbeat", agent.id);
    let show = || agent.get_json(&format!("/agents/{}", agent.id));
    let send = |kind: &str, body: Option<&[u8]>| {
        agent
            .try_bytes("POST", &beat, kind, body)
            .unwrap()
            .expect(204);
    };
    assert_eq!(show()["last_heartbeat"], Value::Null);
    for body in [
        None,
        Some(&b""[..]),
        Some(b"{"),
        Some(b"[]"),
        Some(br#"{"k8s_reachable":"yes"}"#),
        Some(b"\xff"),
    ] {
        send("text/plain", body);
    }
    send("application/json", Some(br#"{"k8s_api_latency_ms":7}"#));
    let silent = show();
    assert!(silent["last_heartbeat"].is_string());
    assert_eq!(
        silent["k8s_reported_at"],
        Value::Null,
        "only a latency is no report"
    );
    send(
        "application/json",
        Some(br#"{"k8s_reachable":true,"k8s_api_latency_ms":7}"#),
    );
    let report = show();
    assert_eq!(
        (&report["k8s_reachable"], &report["k8s_api_latency_ms"]),
        (&json!(true), &json!(7))
    );
    send(
        "application/json",
        Some(br#"{"k8s_reachable":false,"k8s_api_latency_ms":null}"#),
    );
    let report = show();
    assert_eq!(
        (&report["k8s_reachable"], &report["k8s_api_latency_ms"]),
        (&json!(false), &Value::Null)
    );
    assert_eq!(
        report["status"], "INACTIVE",
        "a heartbeat does not activate"
    );
}

#[test]
fn labels_and_annotations_say_what_is_wrong_with_them() {
    let world = World::new();
    let agent = world.agent("a");
    let stranger = world.agent("b");
    let labels = format!("/agents/{}/labels", agent.id);
    let label = |text: &str| json!({ "agent_id": agent.id, "label": text });
    for good in ["env:prod", "env=prod", "a/b", &"é".repeat(64)] {
        world.create(&labels, &label(good));
    }
    let listed = world.get_json(&labels);
    let texts: Vec<&str> = listed
        .as_array()
        .unwrap()
        .iter()
        .map(|l| l["label"].as_str().unwrap())
        .collect();
    assert_eq!(
        texts,
        ["env:prod", "env=prod", "a/b", "é".repeat(64).as_str()],
        "in order of creation"
    );
    let twice = world.post(&labels, &label("a/b"));
    assert_eq!(
        twice.refused(409, "unique_violation")["constraint"],
        "agent_labels_agent_id_label_key"
    );
    world
        .post(&labels, &label("x".repeat(65).as_str()))
        .refused(422, "invalid_value");
    world
        .post(&labels, &label("\u{0}"))
        .refused(422, "invalid_value");
    world
        .post(&labels, &label(" "))
        .refused(400, "invalid_label");
    let other = json!({ "agent_id": stranger.id, "label": "x" });
    world
        .post(&labels, &other)
        .refused(400, "agent_id_mismatch");
    let unknown = "00000000-0000-0000-0000-000000000001";
    let nobody = json!({ "agent_id": unknown, "label": "x" });
    let answer = world.post(&format!("/agents/{unknown}/labels"), &nobody);
    assert_eq!(
        answer.refused(422, "foreign_key_violation")["constraint"],
        "fk_agent_labels_agent"
    );
    world.remove(&format!("{labels}/a%2Fb"));
    world
        .delete(&format!("{labels}/a%2Fb"))
        .refused(404, "agent_label_not_found");
    world
        .delete(&format!("{labels}/%00"))
        .refused(422, "invalid_value");

    let annotations = format!("/agents/{}/annotations", agent.id);
    let pair = |key: &str, value: &str| json!({ "agent_id": agent.id, "key": key, "value": value });
    world.create(&annotations, &pair("team", "platform and friends"));
    let twice = world.post(&annotations, &pair("team", "other"));
    assert_eq!(
        twice.refused(409, "unique_violation")["constraint"],
        "agent_annotations_agent_id_key_key"
    );
    world
        .post(&annotations, &pair("", "v"))
        .refused(400, "invalid_annotation");
    world
        .post(&annotations, &pair("k", &"v".repeat(65)))
        .refused(422, "invalid_value");
    world.remove(&format!("{annotations}/team"));
    let gone = world.delete(&format!("{annotations}/team"));
    gone.refused(404, "agent_annotation_not_found");
}

#[test]
fn targets_need_the_agents_consent_even_of_the_admin() {
    let world = World::new();
    let (agent, generator) = (world.agent("a"), world.generator("g"));
    let stack = world.stack(&generator);
    let targets = format!("/agents/{}/targets", agent.id);
    let body = json!({ "agent_id": agent.id, "stack_id": stack });
    world
        .post(&targets, &body)
        .refused(403, "agent_not_registered");
    world.register(&agent, &generator);
    generator.create(&targets, &body);
    assert_eq!(
        world.post(&targets, &body).refused(409, "unique_violation")["constraint"],
        "unique_agent_stack"
    );
    let unknown = json!({ "agent_id": agent.id, "stack_id": agent.id });
    world
        .post(&targets, &unknown)
        .refused(404, "stack_not_found");
    let mismatch = json!({ "agent_id": generator.id, "stack_id": stack });
    world
        .post(&targets, &mismatch)
        .refused(400, "agent_id_mismatch");
    world.remove(&format!("{targets}/{stack}"));
    world
        .delete(&format!("{targets}/{stack}"))
        .refused(404, "agent_target_not_found");

    world.target(&agent, &stack);
    let whom = json!({ "agent_id": agent.id });
    let register = format!("/generators/{}/register", generator.id);
    world.call("DELETE", &register, Some(&whom)).expect(204);
    let left = agent.get_json(&targets);
    assert_eq!(left, json!([]), "the consent takes the targets with it");
    world
        .delete(&format!("{targets}/{stack}"))
        .refused(403, "agent_not_registered");
}

#[test]
fn one_agent_of_many_creators_at_once_gets_the_name() {
    let world = World::new();
    let body = json!({ "name": format!("one-{}", unique()), "cluster_name": "c" });
    let statuses: Vec<u16> = thread::scope(|scope| {
        let calls: Vec<_> = (0..8)
            .map(|_| scope.spawn(|| world.post("/agents", &body).status))
            .collect();
        calls.into_iter().map(|call| call.join().unwrap()).collect()
    });
    assert_eq!(
        statuses.iter().filter(|s| **s == 201).count(),
        1,
        "{statuses:?}"
    );
    assert_eq!(
        statuses.iter().filter(|s| **s == 409).count(),
        7,
        "{statuses:?}"
    );
}
