//! Faults found in the upstream broker, shown to be absent here. Each has its number in the list of upstream's faults.
//! The faults of one resource are in that resource's file; `structure` checks that none is missing.

use brokkr_tests::api_fixture::{World, id, server};
use brokkr_tests::http::request;
use brokkr_tests::pg::Options;
use brokkr_tests::{Broker, PgServer};
use serde_json::json;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::thread;

/// SHA-256 of the long part of the publicly known development PAK.
const PUBLIC_HASH: &str = "4c697273df3d764cba950bb5c04368097685f09259f5bd880d892cf1ff9f4cdd";

#[test]
fn fault_01_a_missing_table_is_never_taken_from_public() {
    let world = World::new();
    let mut sql = world.sql();
    sql.batch_execute(
        "CREATE TABLE public.stacks (LIKE stacks INCLUDING ALL);
         INSERT INTO public.stacks (name, generator_id) VALUES ('of public', gen_random_uuid());
         ALTER TABLE stacks RENAME TO stacks_away",
    )
    .unwrap();
    world.get("/stacks").refused(503, "database_unavailable");
    sql.batch_execute("ALTER TABLE stacks_away RENAME TO stacks; DROP TABLE public.stacks")
        .unwrap();
    assert_eq!(world.get_json("/stacks"), json!([]));
}

#[test]
fn fault_03_there_is_no_publicly_known_admin_pak() {
    let world = World::new();
    let mut sql = world.sql();
    let known: i64 = sql
        .query_one(
            "SELECT (SELECT count(*) FROM admin_role WHERE pak_hash = $1)
                  + (SELECT count(*) FROM generators WHERE pak_hash = $1)",
            &[&PUBLIC_HASH],
        )
        .unwrap()
        .get(0);
    assert_eq!(known, 0);
    let other = World::new();
    assert_ne!(world.broker.admin_pak(), other.broker.admin_pak());
    world
        .with_pak(other.broker.admin_pak())
        .get("/agents")
        .refused(401, "unauthorized");
}

#[test]
fn fault_05_the_first_pak_is_written_for_its_owner_alone_and_follows_no_link() {
    let broker = Broker::on(server()).schema("tenant_key_file").start();
    let key = broker.state_dir().join("admin.pak");
    let mode = std::fs::metadata(&key).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    assert!(!std::path::Path::new("/tmp/brokkr-keys").exists());
    // A link stands where the next PAK will be written.
    let bait = broker.state_dir().join("bait");
    std::fs::write(&bait, "untouched").unwrap();
    std::fs::remove_file(&key).unwrap();
    symlink(&bait, &key).unwrap();
    let ran = broker.run(&["rotate", "admin"]);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    assert_eq!(std::fs::read_to_string(&bait).unwrap(), "untouched");
    assert!(!key.symlink_metadata().unwrap().file_type().is_symlink());
}

#[test]
fn fault_06_a_started_broker_opens_no_more_connections_than_it_needs() {
    let server = PgServer::start();
    let world = World::on(&server, &[("database.pool_size", "50")]);
    world.get("/agents").expect(200);
    let held: i64 = server
        .client()
        .query_one(
            "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'brokkr:%'",
            &[],
        )
        .unwrap()
        .get(0);
    assert!(held <= 2, "{held} connections of 50");
}

#[test]
fn fault_07_an_unknown_pak_costs_one_checkout_and_one_look() {
    let server = PgServer::with(Options::new().set("log_statement", "all"));
    let world = World::on(&server, &[]);
    // Enough attempts that no more are recorded: the rest is the cost of authentication.
    let stranger = world.with_pak("brokkr_BRnobody_11111111111111111111");
    for _ in 0..70 {
        stranger.get("/agents").expect(401);
    }
    let before = server.log().len();
    stranger.get("/agents").expect(401);
    let log = server.log();
    let said: Vec<&str> = log[before..]
        .lines()
        .filter(|line| line.contains("execute ") || line.contains("statement: "))
        .collect();
    assert_eq!(said.len(), 2, "the path, and who it is: {said:#?}");
}

#[test]
fn fault_08_what_cannot_be_is_an_error_with_its_reason_and_not_a_panic() {
    for (key, value, word) in [
        ("database.schema", "\"user\"", "reserved"),
        ("broker.webhook_encryption_key", "\"abc\"", "64"),
        ("broker.diagnostic_cleanup_interval_seconds", "0", "1"),
        ("broker.webhook_delivery_interval_seconds", "0", "1"),
        ("broker.audit_log_retention_days", "99999999999", "100000"),
    ] {
        let ran = Broker::on(server()).set(key, value).run(&["serve"]);
        assert_eq!(ran.code, Some(78), "{key}: {ran:?}");
        let said = format!("{}{}", ran.stdout, ran.stderr);
        assert!(said.contains(word), "{key}: {said}");
        assert!(!said.contains("panicked"), "{key}: {said}");
        assert!(
            !said.contains("abc") || key != "broker.webhook_encryption_key",
            "{said}"
        );
    }
}

#[test]
fn fault_14_an_agent_changes_nothing_but_its_name_cluster_and_status() {
    let world = World::new();
    let agent = world.agent("a");
    let before = world.get(&format!("/agents/{}", agent.id)).json();
    let body = json!({
        "id": "00000000-0000-0000-0000-000000000000", "pak_hash": PUBLIC_HASH, "deleted_at": "2024-01-01T00:00:00Z",
        "last_heartbeat": "2024-01-01T00:00:00Z", "created_at": "2024-01-01T00:00:00Z", "status": "ACTIVE",
    });
    let path = format!("/agents/{}", agent.id);
    let after = agent.put(&path, &body).expect(200).json();
    for key in ["id", "deleted_at", "last_heartbeat", "created_at", "name"] {
        assert_eq!(after[key], before[key], "{key}");
    }
    assert_eq!(after["status"], "ACTIVE");
    // The agent's own PAK still works, and only for the agent itself.
    agent.get(&path).expect(200);
    let other = world.agent("b");
    agent
        .put(
            &format!("/agents/{}", other.id),
            &json!({ "status": "ACTIVE" }),
        )
        .refused(403, "agent_pak_mismatch");
}

#[test]
fn fault_18_only_bearer_is_a_scheme_word() {
    let world = World::new();
    let ask = |value: &str| {
        request(
            &world.admin.addr,
            "GET",
            "/api/v1/agents",
            &[("Authorization", value)],
            None,
        )
        .unwrap()
    };
    let pak = world.broker.admin_pak();
    for good in [
        pak.clone(),
        format!("Bearer {pak}"),
        format!("bearer {pak}"),
        format!("BEARER {pak}"),
    ] {
        ask(&good).expect(200);
    }
    for bad in ["BEARERS", "Basic", "Token", "x"] {
        ask(&format!("{bad} {pak}")).refused(401, "unauthorized");
    }
}

#[test]
fn fault_19_anonymous_callers_write_a_bounded_number_of_rows() {
    let world = World::new();
    let stranger = world.with_pak("brokkr_BRnobody_11111111111111111111");
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..100 {
                    let _ = stranger.get("/agents").expect(401);
                }
            });
        }
    });
    let rows: i64 = world.sql_value("SELECT count(*) FROM audit_log WHERE action = 'auth.failed'");
    assert!((1..=120).contains(&rows), "{rows} rows of 400 tries");
}

#[test]
fn fault_31_no_target_outlives_the_consent_it_needed() {
    let world = World::new();
    let (agent, generator) = (world.agent("a"), world.generator("g"));
    let stack = world.stack(&generator);
    let consent = format!("/generators/{}/register", generator.id);
    let targets = format!("/agents/{}/targets", agent.id);
    let body = json!({ "agent_id": agent.id, "stack_id": stack });
    for _ in 0..30 {
        agent.create(&consent, &json!({}));
        thread::scope(|scope| {
            let _ = scope.spawn(|| generator.post(&targets, &body));
            let _ = scope.spawn(|| agent.call("DELETE", &consent, Some(&json!({}))).expect(204));
        });
        let left = world.get_json(&targets);
        assert_eq!(left, json!([]), "a target without consent");
    }
}

#[test]
fn fault_50_a_small_pool_serves_many_creators_at_once() {
    let world = World::with(&[("database.pool_size", "2")]);
    let (world, generator) = (&world, world.generator("g"));
    let generator = &generator;
    let made: usize = thread::scope(|scope| {
        let creators: Vec<_> = (0..24)
            .map(|n| {
                scope.spawn(move || {
                    let name = json!({ "name": format!("s{n}"), "generator_id": generator.id });
                    let stack = id(&generator.create("/stacks", &name));
                    let object = json!({ "yaml_content": "a: 1" });
                    let path = format!("/stacks/{stack}/deployment-objects");
                    generator.create(&path, &object);
                    let agent = json!({ "name": format!("a{n}"), "cluster_name": "c" });
                    world.create("/agents", &agent);
                    1
                })
            })
            .collect();
        creators.into_iter().map(|c| c.join().unwrap()).sum()
    });
    assert_eq!(made, 24);
}
