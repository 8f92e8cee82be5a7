//! Objects made from templates, as a client sees them.

use brokkr_tests::api_fixture::{Party, World, id, ids};
use brokkr_tests::{Api, Response};
use serde_json::{Value, json};

fn template(name: &str, content: &str, schema: &Value) -> Value {
    json!({ "name": name, "template_content": content, "parameters_schema": schema.to_string() })
}

fn create(api: &Api, name: &str, content: &str) -> Value {
    api.create("/templates", &template(name, content, &json!({})))
}

fn instantiate(api: &Api, stack: &str, template: &str, parameters: &Value) -> Response {
    api.post(
        &format!("/stacks/{stack}/deployment-objects/from-template"),
        &json!({ "template_id": template, "parameters": parameters }),
    )
}

/// A generator and its stack, to make objects from templates.
struct Scene {
    world: World,
    generator: Party,
    stack: String,
}

impl Scene {
    fn new() -> Self {
        let world = World::new();
        let generator = world.generator("g");
        let stack = world.stack(&generator);
        Self {
            world,
            generator,
            stack,
        }
    }

    fn made(&self, template: &Value, parameters: &Value) -> Response {
        instantiate(&self.generator.api, &self.stack, &id(template), parameters)
    }
}

#[test]
fn a_template_becomes_an_object_with_its_provenance_and_its_event() {
    let scene = Scene::new();
    let mut sql = scene.world.sql();
    scene.world.note_events();
    let schema =
        json!({ "type": "object", "properties": { "n": { "default": 1 } }, "required": ["name"] });
    let made = scene.generator.create(
        "/templates",
        &template("web", "name: {{ name }}\nhtml: \"{{ html }}\"\n", &schema),
    );
    let parameters = json!({ "name": "é", "html": "<&>" });
    let object = scene.made(&made, &parameters).expect(201).json();
    assert_eq!(object["yaml_content"], "name: é\nhtml: \"<&>\"\n");
    assert_eq!(object["is_deletion_marker"], false);
    let read = scene
        .generator
        .get_json(&format!("/deployment-objects/{}", id(&object)));
    assert_eq!(read, object);
    let row = sql
        .query_one(
            "SELECT template_id::text, template_version, parameters,
                    (SELECT data->>'sequence_id' FROM noted_events WHERE event_type = 'deployment.created')
               FROM rendered_objects WHERE deployment_object_id = $1::text::uuid",
            &[&id(&object)],
        )
        .unwrap();
    let kept: (String, i32, String, String) = (row.get(0), row.get(1), row.get(2), row.get(3));
    assert_eq!((kept.0, kept.1), (id(&made), 1));
    assert_eq!(serde_json::from_str::<Value>(&kept.2).unwrap(), parameters);
    assert_eq!(kept.3, object["sequence_id"].to_string());
    // The previous version stays unchanged and usable.
    let path = format!("/templates/{}", id(&made));
    let change = json!({ "template_content": "b: 2", "parameters_schema": "{}" });
    let next = scene.generator.put(&path, &change).expect(200).json();
    assert_eq!(
        scene.made(&next, &json!([1])).expect(201).json()["yaml_content"],
        "b: 2"
    );
    scene.made(&made, &parameters).expect(201);
    scene.generator.remove(&path);
    scene
        .made(&made, &parameters)
        .refused(404, "template_not_found");
}

#[test]
fn what_can_be_wrong_with_an_instantiation_is_told_in_its_order() {
    let scene = Scene::new();
    let api = &scene.generator.api;
    let schema = json!({ "type": "object", "properties": { "n": { "type": "integer" } }, "required": ["a"] });
    let body = template("web", "{{ out }}", &schema);
    let made = api.create("/templates", &body);
    let path = format!("/templates/{}", id(&made));
    api.create(&format!("{path}/labels"), &json!("env:prod"));
    api.create(&format!("{path}/labels"), &json!("tier:web"));
    let pair = json!({ "key": "k", "value": "v" });
    api.create(&format!("{path}/annotations"), &pair);
    let nobody = "00000000-0000-0000-0000-000000000001";
    instantiate(api, nobody, nobody, &json!({})).refused(404, "stack_not_found");
    instantiate(api, &scene.stack, nobody, &json!({})).refused(404, "template_not_found");
    let stack = format!("/stacks/{}", scene.stack);
    scene.world.label_stack(&scene.stack, "tier:web");
    // A matching key with another value is not enough.
    let other = json!({ "stack_id": scene.stack, "key": "k", "value": "w" });
    api.create(&format!("{stack}/annotations"), &other);
    let details = scene
        .made(&made, &json!({}))
        .refused(422, "template_stack_mismatch");
    assert_eq!(
        details,
        json!({ "missing_labels": ["env:prod"], "missing_annotations": [["k", "v"]] })
    );
    scene.world.label_stack(&scene.stack, "env:prod");
    api.remove(&format!("{stack}/annotations/k"));
    let right = json!({ "stack_id": scene.stack, "key": "k", "value": "v" });
    api.create(&format!("{stack}/annotations"), &right);
    let details = scene
        .made(&made, &json!({ "n": "x" }))
        .refused(400, "invalid_parameters");
    assert_eq!(
        details["validation_errors"],
        json!([
            "/n: \"x\" is not of type \"integer\"",
            "\"a\" is a required property"
        ])
    );
    scene
        .made(&made, &json!({ "a": 1 }))
        .refused(400, "template_render_failed");
    let blank = json!({ "a": 1, "out": " \n" });
    scene
        .made(&made, &blank)
        .refused(400, "invalid_deployment_object");
    scene
        .made(&made, &json!({ "a": 1, "out": "b: 2" }))
        .expect(201);
    let post = format!("{stack}/deployment-objects/from-template");
    api.post(&post, &json!({ "template_id": id(&made) }))
        .refused(422, "unprocessable");
    api.post("/stacks/x/deployment-objects/from-template", &json!({}))
        .refused(400, "bad_request");
    let huge = json!({ "template_id": id(&made), "parameters": { "a": "x".repeat(3 << 20) } });
    api.post(&post, &huge).refused(413, "payload_too_large");
    assert_eq!(
        ids(&api.get_json(&format!("{stack}/deployment-objects"))).len(),
        1
    );
}

#[test]
fn fault_32_object_and_provenance_are_written_together_or_not_at_all() {
    let scene = Scene::new();
    let made = create(&scene.generator.api, "web", "a: 1");
    let mut sql = scene.world.sql();
    sql.batch_execute(
        "ALTER TABLE rendered_objects ADD CONSTRAINT refused_by_a_test CHECK (parameters <> '{}')",
    )
    .unwrap();
    scene
        .made(&made, &json!({}))
        .refused(422, "check_violation");
    let left: i64 = sql
        .query_one("SELECT count(*) FROM deployment_objects", &[])
        .unwrap()
        .get(0);
    assert_eq!(left, 0);
    scene.made(&made, &json!({ "a": 1 })).expect(201);
}

#[test]
fn fault_40_what_is_rendered_must_be_an_object_like_any_other() {
    let scene = Scene::new();
    let made = create(&scene.generator.api, "web", "{{ out }}");
    for bad in ["a: [", "# words alone", "---\n---\n", "a: \u{0}"] {
        let answer = scene.made(&made, &json!({ "out": bad }));
        answer.refused(400, "invalid_deployment_object");
    }
    // A rendered object is stored like a direct object: in the stack's order, and in the agents' target state.
    let agent = scene.world.agent("a");
    scene.world.register(&agent, &scene.generator);
    scene.world.target(&agent, &scene.stack);
    let direct = scene.world.object(&scene.stack, "a: 1");
    let rendered = scene
        .made(&made, &json!({ "out": "a: 2" }))
        .expect(201)
        .json();
    assert!(rendered["sequence_id"].as_i64() > direct["sequence_id"].as_i64());
    assert_eq!(scene.world.target_state(&agent, ""), [id(&rendered)]);
}
