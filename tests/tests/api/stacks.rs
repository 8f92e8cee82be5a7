//! Stacks, as a client sees them.

use brokkr_tests::api_fixture::{Party, World, id, ids};
use serde_json::{Value, json};
use std::thread;

fn whole(stack: &Value) -> Value {
    stack.clone()
}

#[test]
fn a_name_belongs_to_one_live_stack_of_the_whole_tenant() {
    let world = World::new();
    let (one, two) = (world.generator("one"), world.generator("two"));
    let create = |generator: &Party, name: &str| {
        generator.post(
            "/stacks",
            &json!({ "name": name, "generator_id": generator.id, "description": "d" }),
        )
    };
    let made = create(&one, "web").expect(201).json();
    assert_eq!(made["description"], "d");
    let details = create(&two, "web").refused(409, "unique_violation");
    assert_eq!(details["constraint"], "unique_stack_name");
    one.remove(&format!("/stacks/{}", id(&made)));
    create(&two, "web").expect(201);
    create(&one, " ").refused(400, "invalid_stack");
    create(&one, &"x".repeat(256)).refused(422, "invalid_value");
    create(&one, "a\u{0}b").refused(422, "invalid_value");
    let unknown = json!({ "name": "x", "generator_id": "00000000-0000-0000-0000-000000000001" });
    let details = world
        .post("/stacks", &unknown)
        .refused(422, "foreign_key_violation");
    assert_eq!(details["constraint"], "stacks_generator_id_fkey");
}

#[test]
fn a_generator_sees_its_own_stacks_and_the_admin_may_filter() {
    let world = World::new();
    let (one, two) = (world.generator("one"), world.generator("two"));
    let (a, b, c) = (world.stack(&one), world.stack(&two), world.stack(&one));
    let list =
        |api: &brokkr_tests::Api, query: &str| ids(&api.get_json(&format!("/stacks{query}")));
    assert_eq!(list(&one.api, ""), [a.clone(), c.clone()]);
    assert_eq!(
        list(&one.api, &format!("?pak_id={}", two.id)),
        [a.clone(), c.clone()],
        "the filter is the admin's"
    );
    assert_eq!(list(&world.admin, ""), [a, b.clone(), c]);
    assert_eq!(list(&world.admin, &format!("?pak_id={}", two.id)), [b]);
    assert_eq!(
        list(&world.admin, "?pak_id=00000000-0000-0000-0000-000000000001"),
        [""; 0]
    );
    one.get("/stacks?pak_id=x").refused(400, "bad_request");
}

#[test]
fn a_put_honours_name_and_description_and_never_moves_a_stack() {
    let world = World::new();
    let (one, two) = (world.generator("one"), world.generator("two"));
    let stack = world.stack(&one);
    let path = format!("/stacks/{stack}");
    let before = one.get_json(&path);
    let mut body = whole(&before);
    body["name"] = json!("renamed");
    body["description"] = json!("words");
    body["created_at"] = json!("2000-01-01T00:00:00Z");
    body["deleted_at"] = json!("2000-01-01T00:00:00Z");
    let after = one.put(&path, &body).expect(200).json();
    assert_eq!(
        (&after["name"], &after["description"]),
        (&json!("renamed"), &json!("words"))
    );
    assert_eq!(
        (&after["created_at"], &after["deleted_at"]),
        (&before["created_at"], &Value::Null)
    );
    body["description"] = Value::Null;
    let kept = one.put(&path, &body).expect(200).json();
    assert_eq!(kept["description"], "words");
    body["generator_id"] = json!(two.id);
    for api in [&one.api, &world.admin] {
        api.put(&path, &body)
            .refused(403, "stack_generator_mismatch");
    }
    two.get(&path).refused(403, "stack_not_owned");
    body["id"] = json!(one.id);
    one.put(&path, &body).refused(400, "stack_id_mismatch");
    let nowhere = format!("/stacks/{}", one.id);
    one.put(&nowhere, &body).refused(404, "stack_not_found");
    one.put(&path, &json!({ "name": "x" }))
        .refused(422, "unprocessable");
}

#[test]
fn labels_are_bare_strings_and_say_what_is_wrong_with_them() {
    let world = World::new();
    let generator = world.generator("g");
    let stack = world.stack(&generator);
    let labels = format!("/stacks/{stack}/labels");
    let add = |label: &str| generator.post(&labels, &json!(label));
    let made = add("env:prod").expect(201).json();
    assert_eq!(
        (&made["stack_id"], &made["label"]),
        (&json!(stack), &json!("env:prod"))
    );
    add("a/b=c").expect(201);
    let details = add("env:prod").refused(409, "unique_violation");
    assert_eq!(details["constraint"], "stack_labels_stack_id_label_key");
    for bad in ["", " ", "a b", "é".repeat(33).as_str()] {
        add(bad).refused(400, "invalid_label");
    }
    add("a\u{0}b").refused(422, "invalid_value");
    generator
        .post(&labels, &json!({ "label": "x" }))
        .refused(422, "unprocessable");
    generator.remove(&format!("{labels}/a%2Fb%3Dc"));
    generator
        .delete(&format!("{labels}/a%2Fb%3Dc"))
        .refused(404, "stack_label_not_found");

    let annotations = format!("/stacks/{stack}/annotations");
    let pair = json!({ "stack_id": stack, "key": "k", "value": "v" });
    generator.create(&annotations, &pair);
    let details = generator
        .post(&annotations, &pair)
        .refused(409, "unique_violation");
    assert_eq!(details["constraint"], "unique_stack_annotation");
    let other = json!({ "stack_id": generator.id, "key": "k", "value": "v" });
    generator
        .post(&annotations, &other)
        .refused(400, "stack_id_mismatch");
    generator.remove(&format!("{annotations}/k"));
    generator
        .delete(&format!("{annotations}/k"))
        .refused(404, "stack_annotation_not_found");

    let unknown = "/stacks/00000000-0000-0000-0000-000000000001";
    assert_eq!(world.get_json(&format!("{unknown}/labels")), json!([]));
    generator
        .get(&format!("{unknown}/labels"))
        .refused(404, "stack_not_found");
    world
        .post(&format!("{unknown}/labels"), &json!("x"))
        .refused(404, "stack_not_found");
}

#[test]
fn an_agent_matched_by_label_may_read_the_stacks_labels_and_its_object() {
    let world = World::new();
    let (agent, generator) = (world.agent("a"), world.generator("g"));
    let stack = world.stack(&generator);
    let object = id(&world.object(&stack, "a: 1"));
    world.label_stack(&stack, "env:prod");
    world.label_agent(&agent, "env:prod");
    let labels = format!("/stacks/{stack}/labels");
    agent.get(&labels).refused(403, "stack_not_accessible");
    world.register(&agent, &generator);
    agent.get(&labels).expect(200);
    agent
        .get(&format!("/deployment-objects/{object}"))
        .expect(200);
}

#[test]
fn a_deleted_stack_is_gone_and_a_second_deletion_says_so() {
    let world = World::new();
    let generator = world.generator("g");
    let stack = world.stack(&generator);
    let object = id(&world.object(&stack, "a: 1"));
    let path = format!("/stacks/{stack}");
    generator.remove(&path);
    generator.delete(&path).refused(404, "stack_not_found");
    generator.get(&path).refused(404, "stack_not_found");
    generator
        .get(&format!("{path}/deployment-objects"))
        .refused(404, "stack_not_found");
    generator
        .get(&format!("/deployment-objects/{object}"))
        .refused(404, "deployment_object_not_found");
    let row = world
        .sql()
        .query_one(
            "SELECT o.yaml_content, o.yaml_checksum, o.submitted_at = s.deleted_at, g.deleted_at = s.deleted_at
               FROM stacks s
               JOIN deployment_objects o ON o.stack_id = s.id AND o.is_deletion_marker AND o.deleted_at IS NULL
               JOIN deployment_objects g ON g.stack_id = s.id AND NOT g.is_deletion_marker",
            &[],
        )
        .unwrap();
    let marker: (String, String, bool, bool) = (row.get(0), row.get(1), row.get(2), row.get(3));
    assert_eq!(
        marker,
        (
            String::new(),
            "d41d8cd98f00b204e9800998ecf8427e".to_owned(),
            true,
            true
        )
    );
}

#[test]
fn a_deletion_among_writers_is_the_last_word_on_its_stack() {
    let world = World::new();
    let (agent, generator) = (world.agent("a"), world.generator("g"));
    world.register(&agent, &generator);
    for _ in 0..5 {
        let stack = world.stack(&generator);
        world.target(&agent, &stack);
        let path = format!("/stacks/{stack}");
        let statuses: Vec<u16> = thread::scope(|scope| {
            let (objects, body) = (
                format!("{path}/deployment-objects"),
                json!({ "yaml_content": "a: 1" }),
            );
            let writers: Vec<_> = (0..6)
                .map(|_| {
                    let (objects, body, api) =
                        (objects.clone(), body.clone(), generator.api.clone());
                    scope.spawn(move || {
                        (0..5)
                            .map(|_| api.post(&objects, &body).status)
                            .collect::<Vec<u16>>()
                    })
                })
                .collect();
            generator.remove(&path);
            writers
                .into_iter()
                .flat_map(|writer| writer.join().unwrap())
                .collect()
        });
        assert!(
            statuses.iter().all(|s| [201, 404].contains(s)),
            "{statuses:?}"
        );
        let row = world
            .sql()
            .query_one(
                "SELECT count(*), bool_and(is_deletion_marker), max(sequence_id)
                      = (SELECT max(sequence_id) FROM deployment_objects WHERE stack_id = $1::text::uuid)
                   FROM deployment_objects WHERE stack_id = $1::text::uuid AND deleted_at IS NULL",
                &[&stack],
            )
            .unwrap();
        let last: (i64, bool, bool) = (row.get(0), row.get(1), row.get(2));
        assert_eq!(
            last,
            (1, true, true),
            "the marker alone is live, and the newest"
        );
        assert_eq!(world.target_state(&agent, "").len(), 1);
        let marker = world.target_state(&agent, "").remove(0);
        world.report(&agent, &marker, "SUCCESS").expect(201);
    }
}

#[test]
fn every_write_announces_itself_with_the_keys_subscribers_know() {
    let world = World::new();
    world.note_events();
    let (agent, generator) = (world.agent("a"), world.generator("g"));
    world.register(&agent, &generator);
    let stack = world.stack(&generator);
    world.target(&agent, &stack);
    let object = id(&world.object(&stack, "a: 1"));
    world.report(&agent, &object, "SUCCESS").expect(201);
    world.report(&agent, &object, "FAILURE").expect(201);
    world.remove(&format!("/stacks/{stack}"));
    world.remove(&format!("/agents/{}", agent.id));
    let told: Vec<(String, String)> = world
        .sql()
        .query(
            "SELECT event_type, (SELECT string_agg(key, ' ' ORDER BY key) FROM jsonb_object_keys(data) AS key)
               FROM noted_events ORDER BY created_at",
            &[],
        )
        .unwrap()
        .iter()
        .map(|row| (row.get(0), row.get(1)))
        .collect();
    let told: Vec<(&str, &str)> = told
        .iter()
        .map(|(kind, keys)| (kind.as_str(), keys.as_str()))
        .collect();
    let report = "agent_event_id agent_id created_at deployment_object_id event_type message stack_id status";
    assert_eq!(
        told,
        [
            (
                "agent.registered",
                "agent_id cluster_name created_at name status"
            ),
            ("stack.created", "created_at description name stack_id"),
            (
                "deployment.created",
                "created_at deployment_object_id sequence_id stack_id"
            ),
            ("deployment.applied", report),
            ("deployment.failed", report),
            ("stack.deleted", "deleted_at stack_id"),
            ("agent.deregistered", "agent_id deleted_at"),
        ]
    );
}
