//! Templates, as a client sees them.

use brokkr_tests::Api;
use brokkr_tests::api_fixture::{Party, World, id, ids};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::thread;

fn template(name: &str, content: &str, schema: &Value) -> Value {
    json!({ "name": name, "template_content": content, "parameters_schema": schema.to_string() })
}

fn create(api: &Api, name: &str, content: &str) -> Value {
    api.create("/templates", &template(name, content, &json!({})))
}

struct Scene {
    world: World,
    generator: Party,
}

impl Scene {
    fn new() -> Self {
        let world = World::new();
        let generator = world.generator("g");
        Self { world, generator }
    }
}

#[test]
fn every_change_is_a_new_row_with_the_next_number() {
    let world = World::new();
    let (one, two) = (world.generator("one"), world.generator("two"));
    let mut body = template("web", "a: {{ a }}", &json!({ "type": "object" }));
    body["description"] = json!("words");
    let first = one.create("/templates", &body);
    assert_eq!(first["generator_id"], json!(one.id));
    assert_eq!(
        (&first["version"], &first["description"]),
        (&json!(1), &json!("words"))
    );
    assert_eq!(first["parameters_schema"], r#"{"type":"object"}"#);
    assert_eq!(
        first["checksum"],
        // SHA-256 of `a: {{ a }}`.
        "17d7ab81ddfcc6b785a651578a8ffac91f3c1a47a8a9ab8ea97ab980b7de15cd"
    );
    let path = format!("/templates/{}", id(&first));
    one.create(&format!("{path}/labels"), &json!("env:prod"));
    let change =
        json!({ "template_content": "b: 1", "parameters_schema": "{}", "description": null });
    let second = one.put(&path, &change).expect(200).json();
    assert_ne!(id(&second), id(&first));
    assert_eq!(
        (&second["version"], &second["name"], &second["description"]),
        (&json!(2), &json!("web"), &json!("words"))
    );
    assert_eq!(second["generator_id"], json!(one.id));
    let labels = format!("/templates/{}/labels", id(&second));
    assert_eq!(one.get_json(&labels), json!([]));
    assert_eq!(one.get_json(&path), first);
    assert_eq!(one.create("/templates", &body)["version"], 3);
    // The version numbers of another owner are independent, and so are the system's.
    assert_eq!(two.create("/templates", &body)["version"], 1);
    let system = world.create("/templates", &body);
    assert_eq!(
        (&system["version"], &system["generator_id"]),
        (&json!(1), &Value::Null)
    );
    // A generator's template stays the generator's after the admin changes it.
    let third = world.put(&path, &change).expect(200).json();
    assert_eq!(
        (&third["version"], &third["generator_id"]),
        (&json!(4), &json!(one.id))
    );
    let top = format!("/templates/{}", id(&third));
    one.remove(&top);
    one.delete(&top).refused(404, "template_not_found");
    one.get(&top).refused(404, "template_not_found");
    one.put(&top, &change).refused(404, "template_not_found");
    assert_eq!(one.put(&path, &change).expect(200).json()["version"], 4);
}

#[test]
fn a_generator_sees_the_systems_templates_and_then_its_own() {
    let world = World::new();
    let (one, two) = (world.generator("one"), world.generator("two"));
    let own = id(&create(&one.api, "own", "a: 1"));
    let system = id(&create(&world.admin, "system", "a: 1"));
    let other = id(&create(&two.api, "other", "a: 1"));
    let gone = id(&create(&one.api, "gone", "a: 1"));
    one.remove(&format!("/templates/{gone}"));
    let list = |api: &Api| ids(&api.get_json("/templates"));
    assert_eq!(list(&one.api), [system.clone(), own.clone()]);
    assert_eq!(list(&two.api), [system.clone(), other.clone()]);
    assert_eq!(list(&world.admin), [own, system, other]);
}

#[test]
fn what_is_wrong_with_a_template_is_told_when_it_is_made() {
    let scene = Scene::new();
    let api = &scene.generator.api;
    let made = create(api, "web", "a: 1");
    let path = format!("/templates/{}", id(&made));
    let text = |key: &str, value: Value| {
        let mut body = template("x", "a: 1", &json!({}));
        body[key] = value;
        body
    };
    let long = "x".repeat(513 * 1024);
    for (body, status, code) in [
        (text("name", json!(" ")), 400, "invalid_template"),
        (text("description", json!(" ")), 400, "invalid_template"),
        (text("name", json!("x".repeat(256))), 422, "invalid_value"),
        (text("name", json!("a\u{0}b")), 422, "invalid_value"),
        (text("description", json!("a\u{0}b")), 422, "invalid_value"),
        (
            text("template_content", json!("a\u{0}b")),
            422,
            "invalid_value",
        ),
        (text("template_content", json!(long)), 422, "invalid_value"),
        (text("parameters_schema", json!(long)), 422, "invalid_value"),
        (
            text("template_content", json!("")),
            400,
            "invalid_template_syntax",
        ),
        (
            text("template_content", json!("{{ a")),
            400,
            "invalid_template_syntax",
        ),
        (
            text("template_content", json!("{% if a %}")),
            400,
            "invalid_template_syntax",
        ),
        (
            text("parameters_schema", json!("")),
            400,
            "invalid_parameters_schema",
        ),
        (
            text("parameters_schema", json!("{")),
            400,
            "invalid_parameters_schema",
        ),
        (
            text("parameters_schema", json!(r#"{"type":"x"}"#)),
            400,
            "invalid_parameters_schema",
        ),
        (text("parameters_schema", json!({})), 422, "unprocessable"),
        (json!({ "name": "x" }), 422, "unprocessable"),
    ] {
        api.post("/templates", &body).refused(status, code);
        if body.get("template_content").is_some()
            && !code.ends_with("template")
            && body["name"] == "x"
        {
            api.put(&path, &body).refused(status, code);
        }
    }
    assert_eq!(
        scene
            .world
            .sql()
            .query("SELECT id FROM stack_templates", &[])
            .unwrap()
            .len(),
        1
    );
}

#[test]
fn labels_and_annotations_of_a_template_are_words_of_64_bytes() {
    let scene = Scene::new();
    let api = &scene.generator.api;
    let path = format!("/templates/{}", id(&create(api, "web", "a: 1")));
    let labels = format!("{path}/labels");
    let made = api.create(&labels, &json!("env:prod"));
    assert_eq!(made["label"], "env:prod");
    api.create(&labels, &json!("a/b=c"));
    let details = api
        .post(&labels, &json!("env:prod"))
        .refused(409, "unique_violation");
    assert_eq!(
        details["constraint"],
        "template_labels_template_id_label_key"
    );
    let annotations = format!("{path}/annotations");
    let pair = |key: &str, value: &str| json!({ "key": key, "value": value });
    api.create(&annotations, &pair("k/1", "v"));
    let details = api
        .post(&annotations, &pair("k/1", "w"))
        .refused(409, "unique_violation");
    assert_eq!(
        details["constraint"],
        "template_annotations_template_id_key_key"
    );
    for bad in ["", " ", "a b", "a\tb", "é".repeat(33).as_str()] {
        api.post(&labels, &json!(bad)).refused(400, "invalid_label");
        api.post(&annotations, &pair(bad, "v"))
            .refused(400, "invalid_annotation");
        api.post(&annotations, &pair("k", bad))
            .refused(400, "invalid_annotation");
    }
    api.post(&labels, &json!("a\u{0}b"))
        .refused(422, "invalid_value");
    api.post(&annotations, &pair("k", "a\u{0}b"))
        .refused(422, "invalid_value");
    api.post(&labels, &json!({ "label": "x" }))
        .refused(422, "unprocessable");
    api.remove(&format!("{labels}/a%2Fb%3Dc"));
    api.delete(&format!("{labels}/a%2Fb%3Dc"))
        .refused(404, "template_label_not_found");
    api.remove(&format!("{annotations}/k%2F1"));
    api.delete(&format!("{annotations}/k%2F1"))
        .refused(404, "template_annotation_not_found");
    assert_eq!(ids(&api.get_json(&labels)), [id(&made)]);
    assert_eq!(api.get_json(&annotations), json!([]));
    let nowhere = "/templates/00000000-0000-0000-0000-000000000001/labels";
    api.get(nowhere).refused(404, "template_not_found");
    api.post(nowhere, &json!("x"))
        .refused(404, "template_not_found");
    api.get("/templates/x/labels").refused(400, "bad_request");
}

#[test]
fn fault_34_versions_added_at_once_get_numbers_of_their_own() {
    let world = World::new();
    let generator = world.generator("g");
    for api in [&generator.api, &world.admin] {
        let first = create(api, "web", "a: 1");
        let path = format!("/templates/{}", id(&first));
        let change = json!({ "template_content": "b: 1", "parameters_schema": "{}" });
        let body = template("web", "a: 1", &json!({}));
        let numbers: Vec<i64> = thread::scope(|scope| {
            let writers: Vec<_> = (0..8)
                .map(|n| {
                    let (path, change, body) = (&path, &change, &body);
                    scope.spawn(move || {
                        (0..4)
                            .map(|_| {
                                let made = if n % 2 == 0 {
                                    api.put(path, change).expect(200)
                                } else {
                                    api.post("/templates", body).expect(201)
                                };
                                made.json()["version"].as_i64().unwrap()
                            })
                            .collect::<Vec<i64>>()
                    })
                })
                .collect();
            writers
                .into_iter()
                .flat_map(|writer| writer.join().unwrap())
                .collect()
        });
        let distinct: BTreeSet<i64> = numbers.iter().copied().collect();
        assert_eq!(distinct, (2..=33).collect(), "{numbers:?}");
    }
}

#[test]
fn fault_46_blank_names_are_refused_and_a_description_stays_until_it_is_replaced() {
    let scene = Scene::new();
    let api = &scene.generator.api;
    let mut body = template("\t", "a: 1", &json!({}));
    api.post("/templates", &body)
        .refused(400, "invalid_template");
    body["name"] = json!("web");
    body["description"] = json!("one");
    let path = format!("/templates/{}", id(&api.create("/templates", &body)));
    let mut change = json!({ "template_content": "b: 1", "parameters_schema": "{}" });
    assert_eq!(
        api.put(&path, &change).expect(200).json()["description"],
        "one"
    );
    change["description"] = json!("two");
    assert_eq!(
        api.put(&path, &change).expect(200).json()["description"],
        "two"
    );
}

#[test]
fn every_change_of_a_template_is_audited_with_who_did_it() {
    let scene = Scene::new();
    let made = create(&scene.generator.api, "web", "a: 1");
    let path = format!("/templates/{}", id(&made));
    let change = json!({ "template_content": "b: 1", "parameters_schema": "{}" });
    let next = scene.world.put(&path, &change).expect(200).json();
    scene.generator.remove(&path);
    let told: Vec<(String, String, String, Option<Value>)> = scene
        .world
        .sql()
        .query(
            "SELECT action, actor_type, resource_id::text, details FROM audit_log
              WHERE resource_type = 'template' ORDER BY timestamp",
            &[],
        )
        .unwrap()
        .iter()
        .map(|row| (row.get(0), row.get(1), row.get(2), row.get(3)))
        .collect();
    let entry = |action: &str, actor: &str, template: &Value, details| {
        (action.to_owned(), actor.to_owned(), id(template), details)
    };
    assert_eq!(
        told,
        [
            entry(
                "template.created",
                "generator",
                &made,
                Some(json!({ "name": "web", "version": 1 }))
            ),
            entry(
                "template.updated",
                "admin",
                &next,
                Some(json!({ "name": "web", "version": 2 }))
            ),
            entry("template.deleted", "generator", &made, None),
        ]
    );
}
