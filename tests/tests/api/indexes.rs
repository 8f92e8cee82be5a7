//! Every statement on the audit log, health and diagnostics finds its rows by an index among many rows. The plans are
//! taken from the server's own log.

use brokkr_tests::api_fixture::World;
use brokkr_tests::pg::Options;
use brokkr_tests::{Api, Broker, PgServer, until};
use serde_json::json;
use std::time::Duration;

/// Calls of each operation: PostgreSQL makes a generic plan after five runs with custom plans.
const OFTEN: usize = 8;

/// 100,000 rows in each large table: 200 agents that serve 500 stacks of 200 objects each.
const ROWS: &str = "
    SET synchronous_commit = off;
    CREATE FUNCTION pg_temp.named(name text) RETURNS uuid IMMUTABLE LANGUAGE sql AS 'SELECT md5(name)::uuid';
    INSERT INTO generators (id, name) VALUES (pg_temp.named('g'), 'g');
    INSERT INTO agents (id, name, cluster_name, pak_hash)
    SELECT pg_temp.named('a' || n), n, 'c', NULL FROM generate_series(1, 200) n;
    INSERT INTO stacks (id, name, generator_id)
    SELECT pg_temp.named('s' || n), n, pg_temp.named('g') FROM generate_series(1, 500) n;
    INSERT INTO agent_targets (agent_id, stack_id) SELECT a.id, s.id FROM agents a, stacks s;
    INSERT INTO deployment_objects (id, stack_id, yaml_content, yaml_checksum)
    SELECT pg_temp.named('o' || n), pg_temp.named('s' || 1 + n % 500), '', '' FROM generate_series(1, 100000) n;
    INSERT INTO deployment_health (agent_id, deployment_object_id, status, checked_at)
    SELECT pg_temp.named('a' || 1 + n % 200), pg_temp.named('o' || n), 'healthy', now() FROM generate_series(1, 100000) n;
    INSERT INTO diagnostic_requests (agent_id, deployment_object_id, status, expires_at, created_at)
    SELECT pg_temp.named('a' || 1 + n % 200), pg_temp.named('o' || n),
           CASE WHEN n % 100 = 0 THEN 'pending' ELSE 'completed' END,
           now() + make_interval(secs => n), now() - make_interval(secs => n)
      FROM generate_series(1, 100000) n;
    INSERT INTO diagnostic_results (request_id, pod_statuses, events, collected_at)
    SELECT id, '', '', now() FROM diagnostic_requests;
    INSERT INTO audit_log (actor_type, actor_id, action, resource_type, resource_id, timestamp, created_at)
    SELECT 'agent', pg_temp.named('a' || 1 + n % 200), 'action.' || n % 1000, 'type' || n % 50,
           pg_temp.named('o' || n), now() - make_interval(secs => n), now() - make_interval(secs => n)
      FROM generate_series(1, 100000) n;
    ANALYZE;
";

#[test]
fn the_audit_log_health_and_diagnostics_are_looked_up_by_index_among_a_hundred_thousand_rows() {
    let server = PgServer::with(
        Options::new()
            .set("session_preload_libraries", "auto_explain")
            .set("auto_explain.log_min_duration", "-1"),
    );
    let world = World::on(&server, &[]);
    let pak = world.broker.admin_pak();
    let _ = world.broker.stop();
    let mut sql = server.client();
    sql.batch_execute(&format!("SET search_path = {}; {ROWS}", world.schema))
        .unwrap();
    sql.batch_execute("ALTER ROLE brokkr SET auto_explain.log_min_duration = 0")
        .unwrap();
    let id = |name: &str| -> String {
        sql.query_one("SELECT md5($1)::uuid::text", &[&name])
            .unwrap()
            .get(0)
    };
    let mut id = id;
    let (agent, stack, object) = (id("a1"), id("s1"), id("o1000"));
    let begin = server.log().len();
    // The broker's start sweeps everything that has ended and checks once for due work; then come the calls below.
    let broker = Broker::on(&server)
        .schema(&world.schema)
        .set("broker.diagnostic_max_age_hours", "27")
        .start();
    let api = Api::new(broker.addr(), pak);
    let get = |path: String| {
        for _ in 0..OFTEN {
            api.get(&path).expect(200);
        }
    };
    for query in [
        format!("resource_id={object}"),
        format!("resource_id={object}&resource_type=type0&action=action.*"),
        format!("actor_id={agent}"),
        format!("actor_id={agent}&actor_type=agent&from=2020-01-01T00:00:00Z"),
        "action=action.7".to_owned(),
        "action=action.77*".to_owned(),
        "resource_type=type7".to_owned(),
        "actor_type=generator".to_owned(),
    ] {
        get(format!("/admin/audit-logs?limit=5&{query}"));
    }
    get(format!("/deployment-objects/{object}/health"));
    get(format!("/stacks/{stack}/health"));
    get(format!("/agents/{agent}/diagnostics/pending"));
    for _ in 0..OFTEN {
        let batch: Vec<_> = (0..20)
            .map(|n| json!({ "id": id(&format!("o{}", 1 + n)), "status": "degraded", "checked_at": "2999-01-01T00:00:00Z" }))
            .collect();
        api.call(
            "PATCH",
            &format!("/agents/{agent}/health-status"),
            Some(&json!({ "deployment_objects": batch })),
        )
        .expect(200);
        let asked = api.create(
            &format!("/deployment-objects/{object}/diagnostics"),
            &json!({ "agent_id": agent }),
        );
        let path = format!("/diagnostics/{}", asked["id"].as_str().unwrap());
        api.get(&path).expect(200);
        api.call("POST", &format!("{path}/claim"), None).expect(200);
    }
    api.call("POST", "/admin/config/reload", None).expect(200);
    until(Duration::from_secs(30), "a sweep", || {
        let ask = format!(
            "SELECT count(*) FROM {}.diagnostic_requests WHERE created_at < now() - interval '27.5 hours' AND status = 'completed'",
            world.schema
        );
        let left: i64 = server.client().query_one(&ask, &[]).unwrap().get(0);
        (left == 0).then_some(())
    });
    let _ = broker.stop();
    let log = server.log();
    let log = &log[begin..];
    // Counting all rows reads all rows; the gauges have a test of their own for how often they do.
    let plans: Vec<&str> = log
        .split(" plan:")
        .skip(1)
        .filter(|plan| !plan.contains("SELECT (SELECT count(*) FROM agents"))
        .collect();
    assert!(plans.len() > 80, "{}", plans.len());
    for large in [
        "audit_log",
        "deployment_health",
        "deployment_objects",
        "diagnostic_requests",
        "diagnostic_results",
        "agent_targets",
    ] {
        let seen = |what: &str| plans.iter().any(|plan| plan.contains(what));
        assert!(
            seen(&format!("on {large}")) || seen(&format!("using {large}")),
            "{large}"
        );
        let whole = plans
            .iter()
            .find(|plan| plan.contains(&format!("Seq Scan on {large}")));
        assert!(whole.is_none(), "{large}:\n{}", whole.unwrap());
    }
}
