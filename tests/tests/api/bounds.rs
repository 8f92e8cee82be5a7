//! Lists that grow without limit are cut, and their clients do not notice because they look at the newest rows.

use brokkr_tests::api_fixture::{Served, World, id};
use brokkr_tests::http::get;
use brokkr_tests::{Connection, until};
use serde_json::Value;
use std::time::Duration;

fn rows(answer: &Value) -> &Vec<Value> {
    answer.as_array().unwrap()
}

#[test]
fn fault_53_ten_thousand_events_are_listed_and_they_are_the_newest() {
    let scene = Served::new();
    let object = scene.object("a: 1");
    let newest = id(&scene
        .world
        .report(&scene.agent, &object, "FAILURE")
        .expect(201)
        .json());
    let older = format!(
        "INSERT INTO agent_events (agent_id, deployment_object_id, event_type, status, created_at) \
         SELECT '{}', '{object}', 'DEPLOY', 'FAILURE', now() - n * interval '1 second' \
         FROM generate_series(1, 10500) n",
        scene.agent.id
    );
    scene.world.sql_execute(&older);

    let own = format!("/agents/{}/events", scene.agent.id);
    let listed = scene.agent.get_json(&own);
    let listed = rows(&listed);
    assert_eq!((listed.len(), id(&listed[0])), (10_000, newest.clone()));
    let times: Vec<&str> = listed
        .iter()
        .map(|e| e["created_at"].as_str().unwrap())
        .collect();
    assert!(times.iter().rev().is_sorted(), "newest first");

    let registered = format!("/agent-events?pak_id={}", scene.generator.id);
    for path in ["/agent-events", &registered] {
        let listed = scene.world.get_json(path);
        let listed = rows(&listed);
        assert_eq!(listed.len(), 10_000, "{path}");
        assert!(listed.iter().any(|event| id(event) == newest), "{path}");
    }
}

#[test]
fn events_with_long_messages_are_listed_up_to_a_number_of_bytes() {
    let scene = Served::new();
    let object = scene.object("a: 1");
    let long = format!(
        "INSERT INTO agent_events (agent_id, deployment_object_id, event_type, status, message, created_at) \
         SELECT '{}', '{object}', 'DEPLOY', 'FAILURE', repeat(n::text, 1048576 / length(n::text)), \
                now() - n * interval '1 second' \
         FROM generate_series(1, 60) n",
        scene.agent.id
    );
    scene.world.sql_execute(&long);
    let listed = scene
        .agent
        .get_json(&format!("/agents/{}/events", scene.agent.id));
    let messages: Vec<usize> = rows(&listed)
        .iter()
        .map(|event| event["message"].as_str().unwrap().len())
        .collect();
    assert!((16..=17).contains(&messages.len()), "{}", messages.len());
    assert!(
        rows(&listed)[0]["message"]
            .as_str()
            .unwrap()
            .starts_with("111")
    );
}

/// Long timeouts, because the test looks at finished answers and the server may take its time.
const PATIENT: &[(&str, &str)] = &[
    ("database.acquire_timeout", "\"60s\""),
    ("http.request_timeout", "\"60s\""),
];

/// Inserts objects of this many bytes on the scene's stack, past the API.
fn stored(scene: &Served, bytes: usize, number: usize) {
    let insert = format!(
        "INSERT INTO deployment_objects (stack_id, yaml_content, yaml_checksum) \
         SELECT '{}', 'a: ' || repeat('x', {bytes} - 3), 'c' FROM generate_series(1, {number})",
        scene.stack
    );
    scene.world.sql_execute(&insert);
}

/// Returns the peak memory of the broker in MiB.
fn peak(world: &World) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", world.broker.pid())).unwrap();
    let line = status
        .lines()
        .find(|line| line.starts_with("VmHWM"))
        .unwrap();
    let kibibytes: u64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
    kibibytes / 1024
}

#[test]
fn a_history_of_large_objects_is_listed_from_its_newest_and_costs_bounded_memory() {
    let scene = Served::of(World::with(PATIENT));
    stored(&scene, 1 << 20, 300);
    let newest = scene.object("newest: true");
    let path = format!("/stacks/{}/deployment-objects", scene.stack);
    let list = || {
        let listed = scene.generator.get_json(&path);
        assert!(
            (17..=18).contains(&rows(&listed).len()),
            "{}",
            rows(&listed).len()
        );
        assert_eq!(id(&rows(&listed)[0]), newest);
        let numbers: Vec<i64> = rows(&listed)
            .iter()
            .map(|object| object["sequence_id"].as_i64().unwrap())
            .collect();
        assert!(numbers.iter().rev().is_sorted());
    };
    list();
    std::thread::scope(|scope| {
        for _ in 0..6 {
            scope.spawn(list);
        }
    });
    let peak = peak(&scene.world);
    assert!(peak < 600, "{peak} MiB");
}

#[test]
fn the_newest_object_is_listed_however_large_it_is() {
    let scene = Served::new();
    let _ = scene.object("older: true");
    stored(&scene, 20 << 20, 1);
    let path = format!("/stacks/{}/deployment-objects", scene.stack);
    let listed = scene.generator.get_json(&path);
    let sizes: Vec<usize> = rows(&listed)
        .iter()
        .map(|object| object["yaml_content"].as_str().unwrap().len())
        .collect();
    assert_eq!(sizes, [20 << 20]);
}

#[test]
fn clients_that_never_read_their_large_answers_do_not_fill_the_memory() {
    let scene = Served::of(World::with(PATIENT));
    stored(&scene, 1 << 20, 15);
    let api = &scene.generator.api;
    let path = format!("/stacks/{}/deployment-objects", scene.stack);
    let headers = [("Authorization", api.pak.as_str())];
    let asked: Vec<Connection> = (0..12)
        .map(|_| {
            let bound = Duration::from_secs(60);
            let mut connection = Connection::open_within(&api.addr, bound).unwrap();
            let path = format!("/api/v1{path}");
            connection.send("GET", &path, &headers, None).unwrap();
            connection
        })
        .collect();
    // Twelve answers of 15 MiB exceed the limit of all answers together; the later ones are refused at once.
    until(
        Duration::from_secs(25),
        "somebody to be told to come back",
        || {
            let metrics = get(&api.addr, "/metrics").unwrap().expect(200).text();
            let told =
                "endpoint=\"/api/v1/stacks/{id}/deployment-objects\",method=\"GET\",status=\"503\"";
            metrics.contains(told).then_some(())
        },
    );
    let peak = peak(&scene.world);
    assert!(peak < 600, "{peak} MiB");
    let mut told = 0;
    for mut connection in asked {
        let answer = connection.receive(false).unwrap();
        match answer.status {
            200 => assert!(answer.body.len() > 15 << 20),
            _ => {
                assert_eq!(answer.json()["code"], "too_busy");
                assert!(answer.status == 503 && answer.header("retry-after").is_some());
                told += 1;
            }
        }
    }
    assert!(told > 0);
    api.get(&path).expect(200);
}
