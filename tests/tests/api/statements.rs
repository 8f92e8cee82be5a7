//! The number of statements of each operation, counted in the server's own log.

use brokkr_tests::PgServer;
use brokkr_tests::api_fixture::{World, agent_updates, id};
use brokkr_tests::pg::Options;
use serde_json::json;

/// Returns the statements of a call, without its checkout's `SET` and the authentication (once a second).
fn statements(server: &PgServer, call: impl Fn()) -> Vec<String> {
    // The first call authenticates and prepares, so the second call is counted.
    call();
    let before = server.log().len();
    call();
    let log = server.log();
    log[before..]
        .lines()
        .filter_map(|line| {
            let (_, said) = line
                .split_once("execute ")
                .or_else(|| line.split_once("statement: "))?;
            let overhead = said.contains("search_path") || said.contains("credentials_epoch");
            (!overhead).then(|| said.to_owned())
        })
        .collect()
}

#[test]
fn fault_52_the_frequent_operations_are_one_statement_each_for_any_number_of_rows() {
    let server = PgServer::with(Options::new().set("log_statement", "all"));
    let world = World::on(&server, &[]);
    let (agent, generator) = (world.agent("a"), world.generator("g"));
    world.register(&agent, &generator);
    world.label_agent(&agent, "env:prod");
    let (mut stacks, mut objects) = (Vec::new(), Vec::new());
    for n in 0..12 {
        let stack = world.stack(&generator);
        world.label_stack(&stack, "env:prod");
        if n % 2 == 0 {
            world.target(&agent, &stack);
        }
        let object = id(&world.object(&stack, "a: 1"));
        if n % 3 == 0 {
            world.report(&agent, &object, "SUCCESS").expect(201);
        }
        let _ = world.agent("more");
        stacks.push(stack);
        objects.push(object);
    }
    let path = |end: &str| format!("/agents/{}/{end}", agent.id);
    let count = |call: &dyn Fn()| statements(&server, call);
    let listed = count(&|| drop(world.get("/agents").expect(200)));
    assert_eq!(listed.len(), 1, "{listed:#?}");
    let registered = count(&|| drop(generator.get("/agents").expect(200)));
    assert_eq!(registered.len(), 1, "{registered:#?}");
    for n in 0..3 {
        for api in [&generator.api, &world.admin] {
            let body = json!({ "name": format!("t{n}"), "template_content": "a: 1", "parameters_schema": "{}" });
            api.create("/templates", &body);
        }
    }
    for api in [&generator.api, &world.admin] {
        let listed = count(&|| drop(api.get("/templates").expect(200)));
        assert_eq!(listed.len(), 1, "{listed:#?}");
    }
    for mode in ["full", "incremental"] {
        let state = path(&format!("target-state?mode={mode}"));
        let asked = count(&|| drop(agent.get(&state).expect(200)));
        assert_eq!(asked.len(), 1, "{asked:#?}");
    }
    let batch: Vec<_> = objects
        .iter()
        .map(|id| json!({ "id": id, "status": "healthy", "checked_at": "2024-05-01T12:00:00Z" }))
        .collect();
    let health = json!({ "deployment_objects": batch });
    let said = count(&|| {
        drop(
            agent
                .call("PATCH", &path("health-status"), Some(&health))
                .expect(200),
        );
    });
    assert_eq!(said.len(), 1, "{said:#?}");
    for look in [
        "/admin/audit-logs?action=stack.*&limit=3".to_owned(),
        format!("/stacks/{}/health", stacks[0]),
        format!("/deployment-objects/{}/health", objects[0]),
    ] {
        let shown = count(&|| drop(world.get(&look).expect(200)));
        assert_eq!(shown.len(), 1, "{shown:#?}");
    }
    for body in [
        json!({}),
        json!({ "k8s_reachable": true, "k8s_api_latency_ms": 3 }),
    ] {
        let beat = count(&|| drop(agent.post(&path("heartbeat"), &body).expect(204)));
        assert_eq!(beat.len(), 1, "{beat:#?}");
        assert!(
            server
                .log()
                .contains("set_config('synchronous_commit', 'off', true)"),
            "a heartbeat does not wait for the disk"
        );
    }
}

#[test]
fn a_heartbeat_updates_its_row_in_place() {
    let server = PgServer::start();
    let world = World::on(&server, &[]);
    let agent = world.agent("a");
    for _ in 0..50 {
        agent
            .post(&format!("/agents/{}/heartbeat", agent.id), &json!({}))
            .expect(204);
    }
    let _ = world.broker.stop();
    let row = brokkr_tests::until(
        std::time::Duration::from_secs(20),
        "the server's counters",
        || {
            let row = agent_updates(&server, &world.schema);
            (row.0 >= 50).then_some(row)
        },
    );
    let (updates, in_place) = row;
    assert_eq!(
        updates, in_place,
        "an index on a column that heartbeats write would show here"
    );
}
