//! The commands of `brokkr-broker` that a person runs beside a broker: `create` and `rotate`.

use brokkr_tests::api_fixture::{World, id, server, unique};
use brokkr_tests::bin::Ran;
use brokkr_tests::{Broker, says, until};
use serde_json::{Value, json};
use std::time::Duration;

const LONG: Duration = Duration::from_secs(20);

/// Returns the text after a label at the start of a line.
#[track_caller]
fn labelled<'a>(output: &'a str, label: &str) -> &'a str {
    let mut found = output
        .lines()
        .filter_map(|line| line.strip_prefix(label)?.strip_prefix(": "));
    let value = found
        .next()
        .unwrap_or_else(|| panic!("no line `{label}: ` in:\n{output}"));
    assert_eq!(found.next(), None, "{output}");
    value
}

/// Checks that a command failed with nothing on standard output, and `Error: …` with all of these texts on standard
/// error.
#[track_caller]
fn failed(ran: &Ran, code: i32, said: &[&str]) {
    assert_eq!(ran.code, Some(code), "{ran:?}");
    assert_eq!(ran.stdout, "");
    assert!(ran.stderr.starts_with("Error: "), "{ran:?}");
    for text in said {
        assert!(ran.stderr.contains(text), "`{text}` is not in {ran:?}");
    }
}

fn create_agent(world: &World, name: &str, more: &[&str]) -> Ran {
    let args = ["create", "agent", "--name", name, "--cluster-name", "c"];
    world.broker.run(&[&args, more].concat())
}

/// Returns the details of a resource's audit entries, by action.
fn audited(world: &World, resource: &str) -> Vec<(String, Value)> {
    world
        .sql()
        .query(
            "SELECT action, details || jsonb_build_object('by', actor_type) FROM audit_log
              WHERE resource_id::text = $1 ORDER BY action",
            &[&resource],
        )
        .unwrap()
        .iter()
        .map(|row| (row.get(0), row.get(1)))
        .collect()
}

fn count(world: &World, table: &str) -> i64 {
    let sql = format!("SELECT count(*) FROM {table}");
    world.sql_value(&sql)
}

#[test]
fn an_agent_created_beside_a_running_broker_is_registered_and_its_pak_works_at_once() {
    let world = World::new();
    world.note_events();
    let (one, two) = (world.generator("one"), world.generator("two"));
    let ids = format!("{}, {},{}", two.id, one.id, two.id);
    let made = create_agent(&world, "web", &["--generator-ids", &ids]).ok();
    assert!(made.starts_with("Agent created successfully:\n"), "{made}");
    let agent = labelled(&made, "ID");
    assert_eq!(
        [labelled(&made, "Name"), labelled(&made, "Cluster")],
        ["web", "c"]
    );
    assert_eq!(
        labelled(&made, "Registered with"),
        format!("system (fleet scope), {}, {}", two.id, one.id)
    );
    let api = world.with_pak(labelled(&made, "Initial PAK"));
    let shown = api.get_json(&format!("/agents/{agent}"));
    assert_eq!(
        [&shown["name"], &shown["cluster_name"], &shown["status"]],
        ["web", "c", "INACTIVE"]
    );
    let path = format!("/agents/{agent}/registrations");
    let registrations = api.get_json(&path);
    assert_eq!(registrations.as_array().unwrap().len(), 3);
    assert_eq!(
        audited(&world, agent),
        [
            (
                "agent.created".into(),
                json!({ "by": "admin", "name": "web", "cluster_name": "c", "via": "cli" })
            ),
            (
                "pak.created".into(),
                json!({ "by": "admin", "name": "web", "entity": "agent", "via": "cli" })
            ),
        ]
    );
    let event: Value =
        world.sql_value("SELECT data FROM noted_events WHERE event_type = 'agent.registered'");
    assert_eq!(event["agent_id"], agent);
    assert_eq!(event.as_object().unwrap().len(), 5);
}

#[test]
fn an_agent_that_cannot_be_created_is_told_why_and_leaves_nothing() {
    let world = World::new();
    let there = create_agent(&world, "web", &[]).ok();
    let generator = world.generator("g");
    let (agents, audits) = (count(&world, "agents"), count(&world, "audit_log"));
    failed(
        &create_agent(&world, "web", &[]),
        1,
        &["exists already", labelled(&there, "ID")],
    );
    let unknown = format!("{},00000000-0000-0000-0000-000000000001", generator.id);
    let named = |ids: &str| create_agent(&world, "other", &["--generator-ids", ids]);
    failed(&named(&unknown), 1, &["generator", "does not exist"]);
    failed(&named("nonsense"), 1, &["--generator-ids", "nonsense"]);
    failed(&create_agent(&world, "  ", &[]), 1, &["--name"]);
    failed(&create_agent(&world, &"x".repeat(256), &[]), 1, &["255"]);
    let blank = ["create", "agent", "--name", "n", "--cluster-name", ""];
    failed(&world.broker.run(&blank), 1, &["--cluster-name"]);
    let usage = world.broker.run(&["create", "agent", "--name", "n"]);
    assert_eq!(usage.code, Some(2), "{usage:?}");
    assert_eq!(
        [count(&world, "agents"), count(&world, "audit_log")],
        [agents, audits]
    );
    // The name of a deleted agent is free again.
    let path = format!("/agents/{}", labelled(&there, "ID"));
    world.remove(&path);
    let _ = create_agent(&world, "web", &[]).ok();
}

#[test]
fn a_generator_created_from_the_command_line_is_one_like_any_other() {
    let world = World::new();
    let create = |args: &[&str]| {
        let all = [&["create", "generator"], args].concat();
        world.broker.run(&all)
    };
    let made = create(&["--name", "ci", "--description", "builds"]).ok();
    assert!(made.starts_with("Generator created successfully:\n"));
    let generator = labelled(&made, "ID");
    assert_eq!(labelled(&made, "Name"), "ci");
    let api = world.with_pak(labelled(&made, "Initial PAK"));
    let shown = api.get(&format!("/generators/{generator}"));
    assert_eq!(shown.expect(200).json()["description"], "builds");
    assert_eq!(
        audited(&world, generator),
        [
            (
                "generator.created".into(),
                json!({ "by": "admin", "name": "ci", "via": "cli" })
            ),
            (
                "pak.created".into(),
                json!({ "by": "admin", "name": "ci", "entity": "generator", "via": "cli" })
            ),
        ]
    );
    failed(
        &create(&["--name", "ci"]),
        1,
        &["exists already", generator],
    );
    failed(&create(&["--name", " "]), 1, &["--name"]);
    failed(&create(&["--name", &"x".repeat(256)]), 1, &["255"]);
}

#[test]
fn a_pak_rotated_from_the_command_line_is_dead_in_a_running_broker_within_a_second() {
    let world = World::new();
    let (agent, generator) = (world.agent("a"), world.generator("g"));
    for (kind, party, path) in [
        ("agent", &agent, format!("/agents/{}", agent.id)),
        (
            "generator",
            &generator,
            format!("/generators/{}", generator.id),
        ),
    ] {
        party.get(&path).expect(200);
        let rotated = world
            .broker
            .run(&["rotate", kind, "--uuid", &party.id])
            .ok();
        // Requests without a pause keep the broker's cached authentication as fresh as possible.
        let began = std::time::Instant::now();
        until(LONG, "the old PAK to be refused", || {
            let answer = party.get(&path);
            (answer.status == 401).then(|| answer.refused(401, "unauthorized"))
        });
        let took = began.elapsed();
        assert!(took < Duration::from_secs(5), "not for a minute: {took:?}");
        says(&rotated, &[" PAK rotated successfully:\n"]);
        assert_eq!(
            [labelled(&rotated, "ID"), labelled(&rotated, "Name")],
            [&party.id, &party.name]
        );
        let renewed = world.with_pak(labelled(&rotated, "New PAK"));
        renewed.get(&path).expect(200);
        let entries = audited(&world, &party.id);
        let rotation = entries.iter().find(|(action, _)| action == "pak.rotated");
        assert_eq!(
            rotation.unwrap().1,
            json!({ "by": "admin", "name": party.name, "via": "cli" })
        );
        for uuid in ["00000000-0000-0000-0000-000000000001", "x"] {
            failed(&world.broker.run(&["rotate", kind, "--uuid", uuid]), 1, &[]);
        }
    }
    let rotated = world.broker.run(&["rotate", "admin"]).ok();
    until(LONG, "the old admin PAK to be refused", || {
        (world.get("/agents").status == 401).then_some(())
    });
    let renewed = world.with_pak(labelled(&rotated, "New PAK"));
    renewed.get("/agents").expect(200);
}

#[test]
fn fault_22_a_pak_that_dies_in_one_broker_is_dead_in_the_other_within_a_second() {
    let world = World::new();
    let second = Broker::on(server()).schema(&world.schema).start();
    let (agent, generator) = (world.agent("a"), world.generator("g"));
    let path = format!("/agents/{}", agent.id);
    let there = brokkr_tests::Api::new(second.addr(), agent.pak.as_str());
    there.get(&path).expect(200);
    let rotate = format!("{path}/rotate-pak");
    let rotated = agent.call("POST", &rotate, None).expect(200).json();
    let dead = |api: &brokkr_tests::Api, path: &str| {
        let began = std::time::Instant::now();
        until(LONG, "the PAK to be dead everywhere", || {
            (api.get(path).status == 401).then_some(())
        });
        assert!(began.elapsed() < Duration::from_secs(5));
    };
    dead(&there, &path);
    let renewed = there.with_pak(rotated["pak"].as_str().unwrap());
    renewed.get(&path).expect(200);
    world.remove(&path);
    dead(&renewed, &path);
    let its = there.with_pak(generator.pak.as_str());
    its.get("/stacks").expect(200);
    let path = format!("/generators/{}", generator.id);
    generator.remove(&path);
    dead(&its, "/stacks");
}

#[test]
fn a_name_with_line_breaks_cannot_pass_for_a_line_of_the_output() {
    let world = World::new();
    let agent = world.agent("a");
    let path = format!("/agents/{}", agent.id);
    let name = json!({ "name": "x\nNew PAK: brokkr_BRforged_forged" });
    agent.put(&path, &name).expect(200);
    let rotated = world
        .broker
        .run(&["rotate", "agent", "--uuid", &agent.id])
        .ok();
    assert!(!labelled(&rotated, "New PAK").contains("forged"));
}

#[test]
fn the_commands_work_while_the_broker_does_not_run() {
    let world = World::new();
    let _ = world.broker.stop();
    let made = create_agent(&world, "web", &[]).ok();
    let id = labelled(&made, "ID");
    assert_eq!(labelled(&made, "Registered with"), "system (fleet scope)");
    let rotated = world.broker.run(&["rotate", "agent", "--uuid", id]).ok();
    assert_ne!(
        labelled(&rotated, "New PAK"),
        labelled(&made, "Initial PAK")
    );
    let next = Broker::on(server()).schema(&world.schema).start();
    let path = format!("/agents/{id}");
    let api = brokkr_tests::Api::new(next.addr(), labelled(&rotated, "New PAK"));
    api.get(&path).expect(200);
    let old = api.with_pak(labelled(&made, "Initial PAK"));
    old.get(&path).refused(401, "unauthorized");
}

#[test]
fn fault_01_a_command_makes_no_schema_and_writes_into_no_other() {
    let schema = format!("tenant_{}", unique());
    let draft = Broker::on(server()).schema(&schema);
    let create = ["create", "generator", "--name", "x"];
    let rotate = [
        "rotate",
        "agent",
        "--uuid",
        "00000000-0000-0000-0000-000000000001",
    ];
    for args in [&create[..], &rotate[..]] {
        failed(
            &draft.run(args),
            78,
            &[&schema, "does not exist", "migrate"],
        );
    }
    let mut sql = server().client();
    let exists = |sql: &mut postgres::Client| -> i64 {
        let query = "SELECT count(*) FROM pg_namespace WHERE nspname = $1";
        sql.query_one(query, &[&schema]).unwrap().get(0)
    };
    assert_eq!(exists(&mut sql), 0);
    sql.batch_execute(&format!("CREATE SCHEMA {schema} AUTHORIZATION brokkr"))
        .unwrap();
    failed(&draft.run(&create), 78, &[&schema, "is not up to date"]);
    // Migrated but never started, so there is no system generator yet.
    let _ = draft.run(&["migrate"]).ok();
    let made = draft.run(&["create", "agent", "--name", "a", "--cluster-name", "c"]);
    assert!(made.stderr.starts_with("Warning: "), "{made:?}");
    let made = made.ok();
    assert_eq!(labelled(&made, "Registered with"), "none");
    let broker = draft.start();
    let registrations = format!("/agents/{}/registrations", labelled(&made, "ID"));
    let registrations = broker.api().get_json(&registrations);
    assert_eq!(registrations.as_array().unwrap().len(), 1);
    let _ = id(&registrations[0]);
}

#[test]
fn a_command_takes_one_connection_also_when_the_tenant_has_no_more() {
    let world = World::new();
    let _ = world.broker.stop();
    let server = server();
    server
        .client()
        .batch_execute("CREATE ROLE one LOGIN CONNECTION LIMIT 1 IN ROLE brokkr")
        .unwrap();
    let url = format!("\"{}\"", server.url("brokkr", "one"));
    let draft = Broker::on(server)
        .schema(&world.schema)
        .set("database.url", &url);
    let _ = draft.run(&["create", "generator", "--name", "x"]).ok();
    let server_away = draft.set("database.url", "\"postgres://one@127.0.0.1:1/brokkr\"");
    let ran = server_away.run(&["create", "generator", "--name", "y"]);
    failed(&ran, 69, &[]);
}
