//! Tests of first starts, later starts, failing starts and racing starts.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use brokkr_broker::db::DbError;
use brokkr_broker::db::start::{StartError, Step, migrate, rotate_admin, start};
use brokkr_broker::domain::outbox::{Actor, AuditRecord, SubscriberEvent, emit};
use brokkr_broker::pak::PakHash;
use brokkr_tests::{PgServer, TestDir};
use serde_json::json;

use crate::{event_loop, options, plan};

const QUIET: &dyn Fn(Step) = &|_| {};

fn stored(server: &PgServer, schema: &str) -> String {
    server
        .client()
        .query_one(&format!("SELECT pak_hash FROM {schema}.admin_role"), &[])
        .unwrap()
        .get(0)
}

fn count(server: &PgServer, what: &str) -> i64 {
    server
        .client()
        .query_one(&format!("SELECT count(*) FROM {what}"), &[])
        .unwrap()
        .get(0)
}

#[test]
fn the_first_start_makes_everything_and_the_second_changes_nothing() {
    let (server, place) = (PgServer::start(), TestDir::new());
    let plan = plan(&server, "Tenant_First", &place);
    let outcome = start(&plan, QUIET).unwrap();
    assert!(outcome.applied > 0);
    let file = place.join("state/admin.pak");
    let pak = fs::read_to_string(&file).unwrap();
    assert_eq!(
        fs::metadata(&file).unwrap().permissions().mode() & 0o7777,
        0o600
    );
    assert_eq!(
        stored(&server, "tenant_first"),
        PakHash::of(pak.trim()).unwrap().as_str(),
        "folded once"
    );
    assert_eq!(count(&server, "tenant_first.app_initialization"), 1);
    assert_eq!(
        count(
            &server,
            "tenant_first.generators WHERE is_system AND name = '__system__'"
        ),
        1
    );
    assert_eq!(
        count(
            &server,
            "tenant_first.generators WHERE name = 'admin-generator' AND pak_hash IS NOT NULL"
        ),
        1
    );
    assert_eq!(
        count(&server, "pg_tables WHERE schemaname = 'public'"),
        0,
        "nothing beside the schema"
    );

    let again = start(&plan, &|step| panic!("{step:?}")).unwrap();
    assert_eq!((again.version, again.applied), (outcome.version, 0));
    assert_eq!(fs::read_to_string(&file).unwrap(), pak);
    assert!(
        server
            .client()
            .execute("DELETE FROM tenant_first.admin_role", &[])
            .is_err()
    );
}

#[test]
fn a_tenant_without_a_schema_lives_in_public() {
    let (server, place) = (PgServer::start(), TestDir::new());
    server
        .client_as("brokkr", "postgres")
        .batch_execute("GRANT ALL ON SCHEMA public TO brokkr")
        .unwrap();
    start(&plan(&server, "public", &place), QUIET).unwrap();
    let mut client = server.client_as("brokkr", "brokkr");
    assert_eq!(
        client
            .query_one("SELECT count(*) FROM public.admin_role", &[])
            .unwrap()
            .get::<_, i64>(0),
        1
    );
}

#[test]
fn a_start_that_fails_after_the_commit_is_finished_by_the_next() {
    let (server, place) = (PgServer::start(), TestDir::new());
    let plan = plan(&server, "tenant_half", &place);
    // The rename fails because a directory stands in the file's place.
    fs::create_dir_all(place.join("state/admin.pak/in-the-way")).unwrap();
    assert!(matches!(start(&plan, QUIET), Err(StartError::Failed(_))));
    let hash = stored(&server, "tenant_half");
    fs::remove_dir_all(place.join("state/admin.pak")).unwrap();
    start(&plan, QUIET).unwrap();
    let pak = fs::read_to_string(place.join("state/admin.pak")).unwrap();
    assert_eq!(PakHash::of(pak.trim()).unwrap().as_str(), hash);
    assert_eq!(stored(&server, "tenant_half"), hash);
}

#[test]
fn a_start_that_fails_before_the_commit_leaves_no_administrator() {
    let (server, place) = (PgServer::start(), TestDir::new());
    let plan = plan(&server, "tenant_early", &place);
    migrate(&plan, QUIET).unwrap();
    assert_eq!(count(&server, "tenant_early.admin_role"), 0);
    // Make the last statement of the transaction fail.
    server.sql(
        "CREATE FUNCTION tenant_early.no() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'no'; END $$; \
         CREATE TRIGGER no BEFORE INSERT ON tenant_early.app_initialization FOR EACH ROW \
         EXECUTE FUNCTION tenant_early.no()",
    );
    assert!(start(&plan, QUIET).is_err());
    assert_eq!(count(&server, "tenant_early.admin_role"), 0);
    assert_eq!(count(&server, "tenant_early.generators"), 0);
    assert!(!place.join("state/admin.pak").exists());
    server.sql("DROP TRIGGER no ON tenant_early.app_initialization");
    start(&plan, QUIET).unwrap();
    let pak = fs::read_to_string(place.join("state/admin.pak")).unwrap();
    assert_eq!(
        PakHash::of(pak.trim()).unwrap().as_str(),
        stored(&server, "tenant_early")
    );
}

#[test]
fn fault_25_brokers_that_start_together_on_one_schema_make_one_administrator() {
    let (server, place) = (PgServer::start(), TestDir::new());
    let plan = plan(&server, "tenant_race", &place);
    let applied: usize = std::thread::scope(|scope| {
        let starts: Vec<_> = (0..6)
            .map(|_| scope.spawn(|| start(&plan, QUIET).unwrap().applied))
            .collect();
        starts
            .into_iter()
            .map(|start| start.join().unwrap())
            .filter(|applied| *applied > 0)
            .count()
    });
    assert_eq!(applied, 1, "one of them migrates");
    assert_eq!(count(&server, "tenant_race.app_initialization"), 1);
    assert_eq!(count(&server, "tenant_race.generators"), 2);
    let pak = fs::read_to_string(place.join("state/admin.pak")).unwrap();
    assert_eq!(
        PakHash::of(pak.trim()).unwrap().as_str(),
        stored(&server, "tenant_race")
    );
}

#[test]
fn a_configured_hash_is_taken_and_no_pak_is_written() {
    let (server, place) = (PgServer::start(), TestDir::new());
    let mut plan = plan(&server, "tenant_hash", &place);
    plan.pak_hash = PakHash::parse(&"AB".repeat(32));
    start(&plan, QUIET).unwrap();
    assert_eq!(stored(&server, "tenant_hash"), "ab".repeat(32));
    assert!(!place.join("state").exists());
}

#[test]
fn a_broker_too_old_for_the_schema_refuses_and_a_compatible_older_broker_runs() {
    let (server, place) = (PgServer::start(), TestDir::new());
    let plan = plan(&server, "tenant_new", &place);
    start(&plan, QUIET).unwrap();
    server.sql("INSERT INTO tenant_new.refinery_schema_history VALUES (9999, 'from_the_future', now()::text, '1')");
    start(&plan, QUIET).unwrap();
    server.sql("UPDATE tenant_new.brokkr_meta SET min_reader_version = 9999");
    let Err(StartError::Configuration(reason)) = start(&plan, QUIET) else {
        panic!("it started")
    };
    assert!(reason.contains("9999"), "{reason}");
}

#[test]
fn a_wrong_password_or_database_is_a_matter_for_a_person_and_a_server_away_is_not() {
    let place = TestDir::new();
    let server = PgServer::start();
    let mut plan = plan(&server, "tenant_url", &place);
    let url = |database: &str, user: &str| {
        brokkr_tenant::DatabaseUrl::parse(&server.url(database, user)).unwrap()
    };
    for (database, user) in [("no_such_database", "brokkr"), ("brokkr", "no_such_role")] {
        plan.url = url(database, user);
        assert!(
            matches!(start(&plan, QUIET), Err(StartError::Configuration(_))),
            "{database} {user}"
        );
    }
    server.role("outsider", "");
    plan.url = url("brokkr", "outsider");
    assert!(
        matches!(start(&plan, QUIET), Err(StartError::Configuration(_))),
        "no right to create a schema"
    );
    server.stop();
    assert!(matches!(start(&plan, QUIET), Err(StartError::Away(_))));
}

#[test]
fn rotating_the_administrator_replaces_hash_and_file() {
    let (server, place) = (PgServer::start(), TestDir::new());
    let mut plan = plan(&server, "tenant_rotate", &place);
    assert!(
        matches!(rotate_admin(&plan), Err(StartError::Configuration(_))),
        "nothing to rotate yet"
    );
    start(&plan, QUIET).unwrap();
    let before = fs::read_to_string(place.join("state/admin.pak")).unwrap();
    let pak = rotate_admin(&plan).unwrap().unwrap();
    assert_ne!(before.trim(), pak.expose());
    assert_eq!(
        fs::read_to_string(place.join("state/admin.pak"))
            .unwrap()
            .trim(),
        pak.expose()
    );
    assert_eq!(stored(&server, "tenant_rotate"), pak.hash().as_str());
    assert_eq!(
        count(
            &server,
            "tenant_rotate.audit_log WHERE action = 'pak.rotated'"
        ),
        1
    );
    plan.pak_hash = PakHash::parse(&"cd".repeat(32));
    assert!(rotate_admin(&plan).unwrap().is_none());
    assert_eq!(stored(&server, "tenant_rotate"), "cd".repeat(32));
}

#[test]
fn what_is_emitted_lives_and_dies_with_its_transaction_and_events_wait_only_for_readers() {
    let (server, place) = (PgServer::start(), TestDir::new());
    start(&plan(&server, "tenant_emit", &place), QUIET).unwrap();
    let db = brokkr_broker::db::Db::new(options(&server, "tenant_emit")).unwrap();
    let write = |fail: bool| {
        db.run(move |conn| {
            conn.transaction(|tx| {
                let actor = Actor::Generator(uuid::Uuid::nil());
                let audits = [
                    AuditRecord::new(actor, "stack.created", "stack", Some(uuid::Uuid::nil()))
                        .details(json!({"name": "a'b"})),
                    AuditRecord {
                        user_agent: Some("nul\0".to_owned()),
                        ..AuditRecord::new(Actor::System, "auth.failed", "system", None)
                    },
                ];
                emit(
                    tx,
                    &audits,
                    &[SubscriberEvent::new("stack.created", json!({"name": "a"}))],
                )?;
                if fail {
                    Err(DbError::Refused("test"))
                } else {
                    Ok(())
                }
            })
        })
    };
    let loop_ = event_loop();
    loop_.block_on(write(true)).unwrap_err();
    assert_eq!(count(&server, "tenant_emit.audit_log"), 0);
    loop_.block_on(write(false)).unwrap();
    assert_eq!(count(&server, "tenant_emit.audit_log"), 2);
    assert_eq!(
        count(
            &server,
            "tenant_emit.audit_log WHERE details->>'name' = 'a''b' AND actor_type = 'generator'"
        ),
        1
    );
    assert_eq!(
        count(&server, "tenant_emit.event_outbox"),
        0,
        "nobody reads them"
    );
    server.sql("UPDATE tenant_emit.brokkr_meta SET wants_events = true");
    loop_.block_on(write(false)).unwrap();
    assert_eq!(count(&server, "tenant_emit.event_outbox"), 1);
}
