//! Generators and registrations, as a client sees them.

use brokkr_tests::api_fixture::{Party, World, ids};
use serde_json::{Value, json};

/// Returns a whole generator, as `PUT` wants it.
fn whole(generator: &Party, name: &str) -> Value {
    json!({
        "id": generator.id, "created_at": "2000-01-01T00:00:00+02:00", "updated_at": "2000-01-01T00:00:00Z",
        "name": name, "is_active": true, "is_system": false,
    })
}

#[test]
fn the_list_shows_tenants_and_not_the_system() {
    let world = World::new();
    let generator = world.generator("g");
    let listed = world.get_json("/generators");
    let names: Vec<&str> = listed
        .as_array()
        .unwrap()
        .iter()
        .map(|g| g["name"].as_str().unwrap())
        .collect();
    assert!(
        names.contains(&"admin-generator") && names.contains(&generator.name.as_str()),
        "{names:?}"
    );
    assert!(!names.contains(&"__system__"), "{names:?}");
}

#[test]
fn names_are_unique_among_the_living_and_must_say_something() {
    let world = World::new();
    let generator = world.generator("g");
    let create = |name: &str| world.post("/generators", &json!({ "name": name }));
    let details = create(&generator.name).refused(409, "unique_violation");
    assert_eq!(details["constraint"], "unique_generator_name");
    create(" ").refused(400, "invalid_generator");
    create(&"x".repeat(256)).refused(422, "invalid_value");
    create("a\u{0}").refused(422, "invalid_value");
    create(&"é".repeat(255)).expect(201);
    world.remove(&format!("/generators/{}", generator.id));
    create(&generator.name).expect(201);
}

#[test]
fn fault_12_a_put_honours_name_description_and_activity_and_nothing_else() {
    let world = World::new();
    let generator = world.generator("g");
    let path = format!("/generators/{}", generator.id);
    let before = generator.get_json(&path);
    let mut body = whole(&generator, "renamed");
    body["description"] = json!("words");
    body["is_active"] = json!(false);
    body["is_system"] = json!(true);
    body["deleted_at"] = json!("2024-01-01T00:00:00Z");
    body["last_active_at"] = json!("2024-01-01T00:00:00Z");
    body["id"] = json!("00000000-0000-0000-0000-000000000001");
    let after = generator.put(&path, &body).expect(200).json();
    for kept in [
        "id",
        "created_at",
        "deleted_at",
        "is_system",
        "last_active_at",
    ] {
        assert_eq!(after[kept], before[kept], "{kept}");
    }
    assert_eq!(
        (&after["name"], &after["description"], &after["is_active"]),
        (&json!("renamed"), &json!("words"), &json!(false))
    );
    let kept = generator
        .put(&path, &whole(&generator, "renamed"))
        .expect(200)
        .json();
    assert_eq!(
        kept["description"], "words",
        "without a description the old one stays"
    );
    let mut short = whole(&generator, "x");
    short.as_object_mut().unwrap().remove("is_system");
    generator.put(&path, &short).refused(422, "unprocessable");
    let unknown = "/generators/00000000-0000-0000-0000-000000000001";
    world
        .put(unknown, &whole(&generator, "x"))
        .refused(404, "not_found");
    world
        .put(unknown, &whole(&generator, ""))
        .refused(404, "not_found");
    world.get(unknown).refused(404, "generator_not_found");
}

#[test]
fn rotation_kills_the_old_pak_and_deletion_the_new_one() {
    let world = World::new();
    let generator = world.generator("g");
    let path = format!("/generators/{}", generator.id);
    generator.get(&path).expect(200);
    let rotated = generator
        .call("POST", &format!("{path}/rotate-pak"), None)
        .expect(201)
        .json();
    generator.get(&path).refused(401, "unauthorized");
    let renewed = generator.with_pak(rotated["pak"].as_str().unwrap());
    renewed.get(&path).expect(200);
    world.remove(&path);
    renewed.get(&path).refused(401, "unauthorized");
    world.delete(&path).refused(404, "generator_not_found");
    let rotate = format!("{path}/rotate-pak");
    world
        .call("POST", &rotate, None)
        .refused(404, "generator_not_found");
}

#[test]
fn the_system_generator_cannot_be_deleted() {
    let world = World::new();
    let system: String = world.sql_value("SELECT id::text FROM generators WHERE is_system");
    let path = format!("/generators/{system}");
    world
        .delete(&path)
        .refused(403, "cannot_delete_system_generator");
    let rotated = world
        .call("POST", &format!("{path}/rotate-pak"), None)
        .expect(201)
        .json();
    let itself = world.with_pak(rotated["pak"].as_str().unwrap());
    itself
        .get("/agents")
        .refused(403, "system_generator_not_a_tenant");
    let agents = format!("{path}/registered-agents");
    itself
        .get(&agents)
        .refused(403, "system_generator_not_a_tenant");
    let agent = world.agent("a");
    let registered = world.get_json(&agents);
    assert_eq!(registered[0]["agent_id"], agent.id.as_str());
}

#[test]
fn deleting_a_generator_deletes_its_stacks_and_tells_their_agents() {
    let world = World::new();
    let (agent, generator) = (world.agent("a"), world.generator("g"));
    world.register(&agent, &generator);
    let stacks = [world.stack(&generator), world.stack(&generator)];
    for stack in &stacks {
        let _ = world.object(stack, "a: 1");
        world.target(&agent, stack);
    }
    assert_eq!(world.target_state(&agent, "").len(), 2);
    generator.remove(&format!("/generators/{}", generator.id));
    world
        .get(&format!("/stacks/{}", stacks[0]))
        .refused(404, "stack_not_found");
    let state = agent.get_json(&format!("/agents/{}/target-state", agent.id));
    let markers = state.as_array().unwrap();
    assert_eq!(markers.len(), 2, "{state}");
    for marker in markers {
        assert_eq!(marker["is_deletion_marker"], true);
        world
            .report(&agent, marker["id"].as_str().unwrap(), "SUCCESS")
            .expect(201);
    }
    assert_eq!(world.target_state(&agent, ""), [""; 0]);
}

#[test]
fn registration_is_the_agents_own_or_the_admins() {
    let world = World::new();
    let (agent, other, generator) = (world.agent("a"), world.agent("b"), world.generator("g"));
    let register = format!("/generators/{}/register", generator.id);
    let made = agent.create(&register, &json!({ "agent_id": other.id }));
    assert_eq!(
        made["agent_id"],
        agent.id.as_str(),
        "an agent registers itself, whatever the body says"
    );
    agent
        .post(&register, &json!({}))
        .refused(409, "already_registered");
    world
        .post(&register, &json!({}))
        .refused(400, "missing_agent_id");
    agent
        .call("POST", &register, None)
        .refused(415, "unsupported_media_type");
    let unknown = json!({ "agent_id": generator.id });
    let details = world
        .post(&register, &unknown)
        .refused(422, "foreign_key_violation");
    assert_eq!(
        details["constraint"],
        "agent_generator_registrations_agent_id_fkey"
    );
    let nowhere = format!("/generators/{}/register", agent.id);
    agent
        .post(&nowhere, &json!({}))
        .refused(404, "generator_not_found");
    world.create(&register, &json!({ "agent_id": other.id }));
    let listed = generator.get_json("/agents");
    assert_eq!(
        ids(&listed),
        [agent.id.clone(), other.id.clone()],
        "in order of creation"
    );
    for _ in 0..2 {
        agent
            .call("DELETE", &register, Some(&json!({})))
            .expect(204);
    }
    let rows = generator.get_json(&format!("/generators/{}/registered-agents", generator.id));
    assert_eq!(rows.as_array().unwrap().len(), 1);
    assert_eq!(rows[0]["agent_id"], other.id.as_str());
}

#[test]
fn who_did_it_is_written_down_as_it_was() {
    let world = World::new();
    let (agent, generator) = (world.agent("a"), world.generator("g"));
    world.register(&agent, &generator);
    let stack = world.stack(&generator);
    let rows = world
        .sql()
        .query(
            "SELECT actor_type, actor_id::text, action, resource_id::text FROM audit_log",
            &[],
        )
        .unwrap();
    let rows: Vec<(String, Option<String>, String, Option<String>)> = rows
        .iter()
        .map(|row| (row.get(0), row.get(1), row.get(2), row.get(3)))
        .collect();
    let has = |actor: &str, who: Option<&str>, action: &str, what: &str| {
        rows.iter().any(|(a, w, x, r)| {
            a == actor && w.as_deref() == who && x == action && r.as_deref() == Some(what)
        })
    };
    assert!(has("admin", None, "agent.created", &agent.id), "{rows:?}");
    assert!(has("admin", None, "pak.created", &agent.id), "{rows:?}");
    assert!(
        has("admin", None, "generator.created", &generator.id),
        "{rows:?}"
    );
    assert!(
        has("agent", Some(&agent.id), "agent.registered", &agent.id),
        "{rows:?}"
    );
    assert!(
        has("generator", Some(&generator.id), "stack.created", &stack),
        "{rows:?}"
    );
}
