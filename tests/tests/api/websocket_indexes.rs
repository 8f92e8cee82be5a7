//! An agent's record, a push and a stack's history find their rows by an index among many rows. The plans are taken
//! from the server's own log.

use brokkr_tests::PgServer;
use brokkr_tests::api_fixture::World;
use brokkr_tests::pg::Options;
use serde_json::json;

/// Calls of each operation: PostgreSQL makes a generic plan after five runs with custom plans.
const OFTEN: usize = 8;

/// 100,000 rows in each large table: 1,000 agents and 10,000 stacks, all labelled and annotated, the agents targeted.
const ROWS: &str = "
    INSERT INTO generators (id, name) VALUES (md5('g')::uuid, 'many');
    INSERT INTO agents (id, name, cluster_name) SELECT md5('a' || n)::uuid, 'many-' || n, 'c' FROM generate_series(1, 1000) n;
    INSERT INTO agent_generator_registrations (agent_id, generator_id)
    SELECT md5('a' || n)::uuid, md5('g')::uuid FROM generate_series(1, 1000) n;
    INSERT INTO agent_labels (agent_id, label)
    SELECT md5('a' || n)::uuid, 'l' || n % 100 || '-' || l FROM generate_series(1, 1000) n, generate_series(1, 100) l;
    INSERT INTO agent_annotations (agent_id, key, value)
    SELECT md5('a' || n)::uuid, 'k' || l, n FROM generate_series(1, 1000) n, generate_series(1, 100) l;
    INSERT INTO stacks (id, name, generator_id)
    SELECT md5('s' || n)::uuid, 'many-' || n, md5('g')::uuid FROM generate_series(1, 10000) n;
    INSERT INTO stack_labels (stack_id, generator_id, label)
    SELECT md5('s' || n)::uuid, md5('g')::uuid, 'x' || l || '-' || n FROM generate_series(1, 10000) n, generate_series(1, 10) l;
    INSERT INTO stack_annotations (stack_id, generator_id, key, value)
    SELECT md5('s' || n)::uuid, md5('g')::uuid, 'k' || l, 'v' || n FROM generate_series(1, 10000) n, generate_series(1, 10) l;
    INSERT INTO agent_targets (agent_id, stack_id)
    SELECT md5('a' || n)::uuid, md5('s' || (n * 7 + t) % 10000 + 1)::uuid FROM generate_series(1, 1000) n, generate_series(1, 100) t;
    INSERT INTO deployment_objects (id, stack_id, yaml_content, yaml_checksum)
    SELECT md5('o' || n)::uuid, md5('s' || n % 10000 + 1)::uuid, 'a: 1', 'x' FROM generate_series(1, 100000) n;
    INSERT INTO agent_events (agent_id, deployment_object_id, event_type, status, success_digest)
    SELECT md5('a' || n % 1000 + 1)::uuid, md5('o' || n)::uuid, 'DEPLOY', 'SUCCESS', 'x' FROM generate_series(1, 100000) n;
    INSERT INTO deployment_health (agent_id, deployment_object_id, status, checked_at)
    SELECT md5('a' || n % 1000 + 1)::uuid, md5('o' || n)::uuid, 'failing', now() FROM generate_series(1, 100000) n;
    INSERT INTO agent_k8s_events (agent_id, stack_id, observed_at, reason, message, event_type, involved_object)
    SELECT md5('a' || n % 1000 + 1)::uuid, md5('s' || n % 10000 + 1)::uuid, now(), 'r', 'm', 't', '{}'
      FROM generate_series(1, 100000) n;
    INSERT INTO agent_pod_logs (agent_id, stack_id, namespace, pod, container, ts, line)
    SELECT md5('a' || n % 1000 + 1)::uuid, md5('s' || n % 10000 + 1)::uuid, 'n', 'p', 'c', now(), 'l'
      FROM generate_series(1, 100000) n;
    ANALYZE;
";

#[test]
fn one_agents_record_a_push_and_a_history_find_their_rows_by_index() {
    let server = PgServer::with(
        Options::new()
            .set("session_preload_libraries", "auto_explain")
            .set("auto_explain.log_min_duration", "-1"),
    );
    let world = World::on(&server, &[]);
    let agents = [world.agent("a"), world.agent("b")];
    let mut sql = server.client();
    sql.batch_execute(&format!("SET search_path = {}; {ROWS}", world.schema))
        .unwrap();
    let id = |sql: &mut postgres::Client, name: &str| -> String {
        let ask = "SELECT md5($1)::uuid::text";
        sql.query_one(ask, &[&name]).unwrap().get(0)
    };
    let (agent, stack) = (id(&mut sql, "a1"), id(&mut sql, "s1"));
    let begin = server.log().len();
    sql.batch_execute("ALTER ROLE brokkr SET auto_explain.log_min_duration = 0")
        .unwrap();
    // New sessions have the setting.
    sql.batch_execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'brokkr'",
    )
    .unwrap();
    let _open = agents.each_ref().map(|agent| world.connect(agent));
    for _ in 0..OFTEN {
        world
            .get(&format!("/agents/{agent}/fleet-status"))
            .expect(200);
        for what in ["events", "logs"] {
            world.get(&format!("/stacks/{stack}/{what}")).expect(200);
        }
        let path = format!("/stacks/{stack}/deployment-objects");
        world.create(&path, &json!({ "yaml_content": "a: 2" }));
        let doomed = world.stack(&world.generator("g"));
        world.remove(&format!("/stacks/{doomed}"));
    }
    let log = server.log();
    let log = &log[begin..];
    let plans: Vec<&str> = log.split(" plan:").skip(1).collect();
    assert!(plans.len() > 5 * OFTEN, "{}", plans.len());
    for large in [
        "agent_labels",
        "agent_annotations",
        "stack_labels",
        "stack_annotations",
        "agent_targets",
        "deployment_objects",
        "agent_events",
        "deployment_health",
        "agent_k8s_events",
        "agent_pod_logs",
    ] {
        let used = |plan: &&&str| plan.contains(&format!("on {large}"));
        assert!(plans.iter().any(|plan| used(&plan)), "{large}");
        let whole = plans.iter().find(|plan| {
            plan.contains(&format!("Seq Scan on {large} "))
                || plan.contains(&format!("Seq Scan on {large}\n"))
        });
        assert!(whole.is_none(), "{large}:\n{}", whole.unwrap());
    }
}
