//! Tests of unusable databases and schemas: the broker refuses at once with the reason, and changes nothing.

use std::time::{Duration, Instant};

use brokkr_broker::db::start::{Plan, StartError, Step, migrate, start};
use brokkr_tenant::DatabaseUrl;
use brokkr_tests::{PgServer, TestDir};

use crate::plan;

const QUIET: &dyn Fn(Step) = &|_| {};

/// Returns the reason for which both commands refuse, without a second try.
fn refused(plan: &Plan) -> String {
    let began = Instant::now();
    let Err(StartError::Configuration(reason)) = start(plan, QUIET) else {
        panic!("it is not refused")
    };
    let Err(StartError::Configuration(again)) = migrate(plan, QUIET) else {
        panic!("migrate does not refuse it")
    };
    assert_eq!(reason, again);
    assert!(
        began.elapsed() < Duration::from_secs(20),
        "{:?}",
        began.elapsed()
    );
    reason
}

/// Returns the names and kinds of all relations in a schema.
fn contents(server: &PgServer, schema: &str) -> Vec<String> {
    const CONTENTS: &str = "SELECT relname::text || relkind::text FROM pg_class WHERE relnamespace = $1::text::regnamespace ORDER BY 1";
    let rows = server.client().query(CONTENTS, &[&schema]).unwrap();
    rows.iter().map(|row| row.get(0)).collect()
}

#[test]
fn a_database_that_is_not_utf8_is_refused() {
    let (server, place) = (PgServer::start(), TestDir::new());
    server.sql("CREATE DATABASE latin OWNER brokkr ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0");
    let mut plan = plan(&server, "tenant_latin", &place);
    plan.url = DatabaseUrl::parse(&server.url("latin", "brokkr")).unwrap();
    assert_eq!(
        refused(&plan),
        "database \"latin\" has encoding LATIN1; Brokkr needs UTF8: create it with ENCODING 'UTF8' TEMPLATE template0"
    );
}

#[test]
fn a_schema_of_another_role_is_refused_with_what_helps_and_that_helps() {
    let (server, place) = (PgServer::start(), TestDir::new());
    server.role("Owner", "");
    server.sql("CREATE SCHEMA tenant_other AUTHORIZATION \"Owner\"");
    let plan = plan(&server, "tenant_other", &place);
    let expected = "role \"brokkr\" may not use schema \"tenant_other\", which belongs to role \"Owner\": ALTER SCHEMA tenant_other OWNER TO brokkr";
    assert_eq!(refused(&plan), expected);
    // With USAGE the role can see the schema, but cannot create objects.
    server.sql("GRANT USAGE ON SCHEMA tenant_other TO brokkr");
    assert_eq!(refused(&plan), expected);
    assert!(contents(&server, "tenant_other").is_empty());
    server.sql(expected.rsplit_once(": ").unwrap().1);
    start(&plan, QUIET).unwrap();

    // The role owns the schema, but not the tables.
    server.sql("ALTER TABLE tenant_other.refinery_schema_history OWNER TO \"Owner\"");
    let reason = refused(&plan);
    assert!(
        reason.starts_with("role \"brokkr\" may not use the tables of schema \"tenant_other\", which belong to role \"Owner\": ALTER TABLE"),
        "{reason}"
    );
}

#[test]
fn a_schema_of_the_published_broker_is_refused_and_left_as_it_is() {
    let (server, place) = (PgServer::start(), TestDir::new());
    server.sql(
        "SET ROLE brokkr; CREATE SCHEMA tenant_old; \
         CREATE TABLE tenant_old.__diesel_schema_migrations (version varchar(50) PRIMARY KEY, run_on timestamp NOT NULL DEFAULT now()); \
         CREATE TABLE tenant_old.agents (id uuid PRIMARY KEY, name varchar(255) NOT NULL)",
    );
    let before = contents(&server, "tenant_old");
    assert_eq!(
        refused(&plan(&server, "tenant_old", &place)),
        "this schema was made by Brokkr 0.9 (it holds __diesel_schema_migrations); choose another schema, its tables are left as they are"
    );
    assert_eq!(contents(&server, "tenant_old"), before);
    assert!(!place.join("state").exists());
}

#[test]
fn what_is_in_the_way_for_ever_is_no_race() {
    let (server, place) = (PgServer::start(), TestDir::new());
    for (schema, in_the_way, named) in [
        (
            "tenant_table",
            "CREATE TABLE tenant_table.agents (id int)",
            "agents",
        ),
        (
            "tenant_sequence",
            "CREATE SEQUENCE tenant_sequence.brokkr_lock",
            "brokkr_lock",
        ),
        (
            "tenant_type",
            "CREATE TYPE tenant_type.brokkr_lock AS ENUM ()",
            "brokkr_lock",
        ),
        (
            "tenant_function",
            "CREATE FUNCTION tenant_function.refuse_delete() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'",
            "refuse_delete",
        ),
    ] {
        server.sql(&format!(
            "SET ROLE brokkr; CREATE SCHEMA {schema}; {in_the_way}"
        ));
        let reason = refused(&plan(&server, schema, &place));
        assert!(
            reason.contains(named) && reason.contains("choose another schema"),
            "{reason}"
        );
    }
}

#[test]
fn a_name_that_the_first_start_needs_is_no_race_when_it_is_taken() {
    let (server, place) = (PgServer::start(), TestDir::new());
    let plan = plan(&server, "tenant_name", &place);
    migrate(&plan, QUIET).unwrap();
    server.sql("INSERT INTO tenant_name.generators (name) VALUES ('__system__')");
    let refused = start(&plan, QUIET);
    assert!(
        matches!(refused, Err(StartError::Configuration(_))),
        "{refused:?}"
    );
}

#[test]
fn a_lock_that_no_start_holds_is_waited_for_with_patience_and_its_holder_is_named() {
    let (server, place) = (PgServer::start(), TestDir::new());
    let mut plan = plan(&server, "tenant_locked", &place);
    server.sql(
        "SET ROLE brokkr; CREATE SCHEMA tenant_locked; CREATE TABLE tenant_locked.brokkr_lock ()",
    );
    let mut holder = server.client();
    holder
        .batch_execute("BEGIN; LOCK TABLE tenant_locked.brokkr_lock IN ACCESS SHARE MODE")
        .unwrap();
    let pid: i32 = holder
        .query_one("SELECT pg_backend_pid()", &[])
        .unwrap()
        .get(0);
    plan.patience = Duration::from_millis(300);
    let Err(StartError::Away(reason)) = migrate(&plan, QUIET) else {
        panic!("it is not waited for")
    };
    assert!(reason.contains(&format!("process {pid}")), "{reason}");
    holder.batch_execute("ROLLBACK").unwrap();
    migrate(&plan, QUIET).unwrap();
}

#[test]
fn a_schema_that_was_started_before_and_is_away_is_not_taken_for_a_new_one() {
    let (server, place) = (PgServer::start(), TestDir::new());
    let plan = plan(&server, "tenant_away", &place);
    let _ = start(&plan, QUIET).unwrap();
    let pak = std::fs::read_to_string(plan.key_file.path()).unwrap();
    let gone = || match start(&plan, QUIET) {
        Err(StartError::Away(reason)) => assert!(reason.contains("is gone"), "{reason}"),
        other => panic!("{other:?}"),
    };
    server.sql("ALTER SCHEMA tenant_away RENAME TO elsewhere");
    gone();
    server.sql("CREATE SCHEMA tenant_away AUTHORIZATION brokkr");
    gone();
    assert_eq!(contents(&server, "tenant_away"), Vec::<String>::new());
    server.sql("DROP SCHEMA tenant_away; ALTER SCHEMA elsewhere RENAME TO tenant_away");
    assert_eq!(start(&plan, QUIET).unwrap().applied, 0);
    assert_eq!(std::fs::read_to_string(plan.key_file.path()).unwrap(), pak);

    // An operator who wants an empty schema removes the file `started`; the broker keeps the former PAK.
    server.sql("DROP SCHEMA tenant_away CASCADE");
    std::fs::remove_file(plan.key_file.path().with_file_name("started")).unwrap();
    let _ = start(&plan, QUIET).unwrap();
    assert_ne!(std::fs::read_to_string(plan.key_file.path()).unwrap(), pak);
    let old = plan.key_file.path().with_file_name("admin.pak.old");
    assert_eq!(std::fs::read_to_string(old).unwrap(), pak);
}
