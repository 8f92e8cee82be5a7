//! Deployment objects, as a client sees them: their storage and their order.

use brokkr_tests::api_fixture::{Served, id, ids};
use brokkr_tests::http::request;
use serde_json::json;
use std::thread;

#[test]
fn yaml_and_json_bodies_store_the_same_bytes_under_the_same_checksum() {
    let served = Served::new();
    let path = format!("/stacks/{}/deployment-objects", served.stack);
    // SHA-256 of exactly these bytes, with the carriage return and without a final line end.
    let yaml = "a: 1\r\n---\nb: \"é\"";
    let checksum = "e41f7a1f7cbf5cd0572045106498bb56c94b0d7e377f158b3f1e74e57a3a6f3a";
    let json = served
        .generator
        .create(&path, &json!({ "yaml_content": yaml }));
    let mut made = vec![json];
    for kind in [
        "application/yaml",
        "text/yaml; charset=utf-8",
        "application/x-yaml",
    ] {
        let answer = served
            .generator
            .try_bytes("POST", &path, kind, Some(yaml.as_bytes()))
            .unwrap();
        made.push(answer.expect(201).json());
    }
    for object in &made {
        assert_eq!(object["yaml_content"], yaml);
        assert_eq!(object["yaml_checksum"], checksum);
        assert_eq!(object["is_deletion_marker"], false);
    }
    let listed = served.generator.get_json(&path);
    let mut newest_first: Vec<String> = made.iter().map(id).collect();
    newest_first.reverse();
    assert_eq!(ids(&listed), newest_first);
    let sequence: Vec<i64> = made
        .iter()
        .map(|object| object["sequence_id"].as_i64().unwrap())
        .collect();
    assert!(sequence.is_sorted_by(|a, b| a < b), "{sequence:?}");
}

#[test]
fn every_fault_of_an_object_has_the_same_code() {
    let served = Served::new();
    let path = format!("/stacks/{}/deployment-objects", served.stack);
    let post = |kind: &str, body: &[u8]| {
        served
            .generator
            .try_bytes("POST", &path, kind, Some(body))
            .unwrap()
    };
    for (kind, body) in [
        ("application/json", &b"{"[..]),
        ("application/json", b"{}"),
        ("application/json", br#"{"yaml_content":""}"#),
        ("application/json", br#"{"yaml_content":"a: ["}"#),
        ("application/json", br#"{"yaml_content":"a: \u0000"}"#),
        ("application/json", br#"{"yaml_content":"a: \u0007"}"#),
        ("application/yaml", b"a: 1\nb: 2\na: 3"),
        ("application/yaml", b"kind: Pod\nspec: {a: 1, \"a\": 2}"),
        ("application/yaml", b"a: &x 1\n---\nb: *x"),
        ("application/yaml", b"a: 1\n\t\nb: 2"),
        ("application/yaml", b"\xef\xbb\xbfa: 1\nb: 2"),
        ("text/plain", b"a: 1"),
        ("APPLICATION/YAML", b"a: 1"),
        ("application/yaml", b"# nothing but words"),
        ("application/yaml", b"---\n---\n"),
        ("application/yaml", b"\xff\xfe"),
        ("application/yaml", b""),
    ] {
        post(kind, body).refused(400, "invalid_deployment_object");
    }
    post("text/plain", br#"{"yaml_content":"just a scalar"}"#).expect(201);
    for read_by_agents in [
        "a: [\n  b\n]\nc: {\n}\n",
        "a:\tb\n",
        "a: \"x\ny\"#c\n",
        "a: [!x, b]\n",
        "\u{feff}# a comment\na: 1\nb: 2\n",
    ] {
        let stored = post("application/yaml", read_by_agents.as_bytes())
            .expect(201)
            .json();
        assert_eq!(stored["yaml_content"], read_by_agents, "byte for byte");
    }
    let strange = format!("{path}?deletion_marker=perhaps");
    let answer = served
        .generator
        .try_bytes("POST", &strange, "application/yaml", Some(b"a: 1"))
        .unwrap();
    answer.refused(400, "bad_request");
    let nowhere = format!("/stacks/{}/deployment-objects", served.agent.id);
    served
        .generator
        .post(&nowhere, &json!({ "yaml_content": "a: 1" }))
        .refused(404, "stack_not_found");
}

#[test]
fn a_marker_may_be_empty_and_is_told_by_query_or_body() {
    let served = Served::new();
    let path = format!("/stacks/{}/deployment-objects", served.stack);
    let empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
    let body = json!({ "yaml_content": "", "is_deletion_marker": true });
    let by_body = served.generator.create(&path, &body);
    let query = format!("{path}?deletion_marker=true");
    let by_query = served
        .generator
        .try_bytes("POST", &query, "application/yaml", Some(b""))
        .unwrap()
        .expect(201)
        .json();
    for marker in [&by_body, &by_query] {
        assert_eq!(
            (&marker["is_deletion_marker"], &marker["yaml_checksum"]),
            (&json!(true), &json!(empty))
        );
    }
    let ignored = served
        .generator
        .create(&query, &json!({ "yaml_content": "a: 1" }));
    assert_eq!(
        ignored["is_deletion_marker"], false,
        "the query counts for raw YAML only"
    );
}

#[test]
fn an_object_is_read_as_json_or_as_the_very_bytes() {
    let served = Served::new();
    let object = served.object("a: 1\n# end");
    let read = |accept: &str| {
        let bearer = format!("Bearer {}", served.agent.pak);
        let headers = [("Authorization", bearer.as_str()), ("Accept", accept)];
        let path = format!("/api/v1/deployment-objects/{object}");
        request(&served.agent.api.addr, "GET", &path, &headers, None)
            .unwrap()
            .expect(200)
    };
    for accept in [
        "application/yaml",
        "text/html, text/yaml;q=0.1",
        "application/x-yaml",
    ] {
        let answer = read(accept);
        assert_eq!(answer.header("content-type"), Some("application/yaml"));
        assert_eq!(answer.text(), "a: 1\n# end");
    }
    assert_eq!(read("*/*").json()["id"], object.as_str());
}

#[test]
fn objects_are_immutable_in_the_schema_itself() {
    let served = Served::new();
    let _ = served.object("a: 1");
    let mut sql = served.world.sql();
    let error = sql
        .execute("UPDATE deployment_objects SET yaml_content = 'b: 2'", &[])
        .unwrap_err();
    assert_eq!(
        error.code().map(|c| c.code().to_owned()).as_deref(),
        Some("23000"),
        "{error}"
    );
}

#[test]
fn sixteen_writers_on_one_stack_never_make_its_highest_number_go_back() {
    let served = Served::new();
    let path = format!("/stacks/{}/deployment-objects", served.stack);
    let done = std::sync::atomic::AtomicBool::new(false);
    let (seen, made) = thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let mut sql = served.world.sql();
            let mut seen = Vec::new();
            while !done.load(std::sync::atomic::Ordering::Relaxed) {
                let row = sql
                    .query_one(
                        "SELECT coalesce(max(sequence_id), 0) FROM deployment_objects",
                        &[],
                    )
                    .unwrap();
                seen.push(row.get::<_, i64>(0));
                // No object with a lower number may appear after the newest has been seen.
                let below: i64 = sql
                    .query_one(
                        "SELECT count(*) FROM deployment_objects WHERE sequence_id <= $1",
                        &[seen.last().unwrap()],
                    )
                    .unwrap()
                    .get(0);
                let again: i64 = sql
                    .query_one(
                        "SELECT count(*) FROM deployment_objects WHERE sequence_id <= $1",
                        &[seen.last().unwrap()],
                    )
                    .unwrap()
                    .get(0);
                assert_eq!(
                    below, again,
                    "a lower number became visible after a higher one"
                );
            }
            seen
        });
        let writers: Vec<_> = (0..16)
            .map(|n| {
                let (path, api) = (&path, &served.generator.api);
                scope.spawn(move || {
                    (0..10)
                        .map(|k| {
                            let body = json!({ "yaml_content": format!("n: {n}\nk: {k}") });
                            api.create(path, &body)["sequence_id"].as_i64().unwrap()
                        })
                        .collect::<Vec<i64>>()
                })
            })
            .collect();
        let made: Vec<i64> = writers
            .into_iter()
            .flat_map(|writer| writer.join().unwrap())
            .collect();
        done.store(true, std::sync::atomic::Ordering::Relaxed);
        (reader.join().unwrap(), made)
    });
    assert!(seen.is_sorted(), "{seen:?}");
    let distinct: std::collections::BTreeSet<i64> = made.iter().copied().collect();
    assert_eq!((made.len(), distinct.len()), (160, 160), "no number twice");
    let newest = served.world.get_json(&path);
    assert_eq!(newest[0]["sequence_id"].as_i64(), distinct.last().copied());
    let state = served
        .agent
        .get_json(&format!("/agents/{}/target-state", served.agent.id));
    assert_eq!(state[0]["sequence_id"].as_i64(), distinct.last().copied());
}
