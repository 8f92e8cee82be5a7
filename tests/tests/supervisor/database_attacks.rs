//! An attacker who has a tenant's login reaches no other tenant by way of the database.

use super::provision::{as_tenant, elsewhere, login, provision, shared};
use brokkr_tests::Host;
use postgres::{Client, NoTls};

/// Attacks that the server refuses, by the group of design: statement, code of the refusal. `{other}` is another
/// tenant's role, `{role}` the attacker's own.
const REFUSED: &[(&str, &str)] = &[
    // Other schemas.
    ("SELECT * FROM tenant_globex.agents", "42501"),
    ("SELECT pak_hash FROM tenant_globex.agents", "42501"),
    (
        "INSERT INTO tenant_globex.stacks SELECT * FROM tenant_acme.stacks",
        "42501",
    ),
    ("UPDATE tenant_globex.agents SET name = 'x'", "42501"),
    ("DELETE FROM tenant_globex.agents", "42501"),
    ("TRUNCATE tenant_globex.agents", "42501"),
    ("COPY tenant_globex.agents TO STDOUT", "42501"),
    (
        "BEGIN; LOCK TABLE tenant_globex.agents IN ACCESS EXCLUSIVE MODE",
        "42501",
    ),
    (
        "BEGIN; LOCK TABLE tenant_globex.brokkr_lock IN ACCESS SHARE MODE NOWAIT",
        "42501",
    ),
    ("CREATE TABLE tenant_globex.mine (x int)", "42501"),
    (
        "CREATE FUNCTION tenant_globex.f() RETURNS int LANGUAGE sql AS 'SELECT 1'",
        "42501",
    ),
    (
        "CREATE VIEW mine AS SELECT * FROM tenant_globex.agents",
        "42501",
    ),
    ("ALTER TABLE tenant_globex.agents ADD COLUMN x int", "42501"),
    ("DROP TABLE tenant_globex.agents", "42501"),
    ("DROP SCHEMA tenant_globex CASCADE", "42501"),
    ("ALTER SCHEMA tenant_globex RENAME TO mine", "42501"),
    ("ALTER SCHEMA tenant_globex OWNER TO CURRENT_USER", "42501"),
    ("GRANT USAGE ON SCHEMA tenant_globex TO PUBLIC", "42501"),
    (
        "CREATE TABLE mine (x uuid REFERENCES tenant_globex.agents)",
        "42501",
    ),
    (
        "CREATE TABLE heir () INHERITS (tenant_globex.agents)",
        "42501",
    ),
    ("COMMENT ON TABLE tenant_globex.agents IS 'x'", "42501"),
    (
        "ANALYZE VERBOSE tenant_globex.agents; SELECT tenant_globex.agents",
        "42501",
    ),
    ("CREATE SCHEMA mine", "42501"),
    // Other roles.
    ("SET ROLE {other}", "42501"),
    ("SET SESSION AUTHORIZATION {other}", "42501"),
    ("SET ROLE brokkr", "42501"),
    ("SET ROLE postgres", "42501"),
    ("ALTER ROLE {other} PASSWORD 'x'", "42501"),
    ("ALTER ROLE {other} SET search_path TO tenant_acme", "42501"),
    ("ALTER ROLE {role} CONNECTION LIMIT -1", "42501"),
    ("ALTER ROLE {role} SUPERUSER", "42501"),
    ("ALTER ROLE {role} CREATEROLE", "42501"),
    ("CREATE ROLE mine", "42501"),
    ("GRANT {other} TO {role}", "42501"),
    ("GRANT pg_read_all_data TO {role}", "42501"),
    ("DROP OWNED BY {other}", "42501"),
    ("REASSIGN OWNED BY {other} TO {role}", "42501"),
    ("DROP ROLE {other}", "42501"),
    // Secrets and settings of the server.
    ("SELECT rolpassword FROM pg_authid", "42501"),
    ("SELECT passwd FROM pg_shadow", "42501"),
    ("SELECT * FROM pg_hba_file_rules", "42501"),
    ("SELECT pg_read_file('postgresql.conf')", "42501"),
    ("SELECT pg_ls_dir('.')", "42501"),
    ("SHOW data_directory", "42501"),
    ("COPY (SELECT 1) TO '/tmp/x'", "42501"),
    ("COPY (SELECT 1) TO PROGRAM 'id'", "42501"),
    ("CREATE EXTENSION file_fdw", "42501"),
    ("CREATE EXTENSION dblink", "42501"),
    ("CREATE EXTENSION pgcrypto", "42501"),
    (
        "CREATE FUNCTION f() RETURNS int LANGUAGE c AS 'libc', 'system'",
        "42501",
    ),
    ("LOAD '/tmp/x.so'", "42501"),
    ("ALTER SYSTEM SET fsync TO off", "42501"),
    ("SELECT pg_reload_conf()", "42501"),
    ("SET temp_file_limit TO -1", "42501"),
    ("SET session_replication_role TO replica", "42501"),
    ("SET log_statement TO 'none'", "42501"),
    (
        "ALTER DATABASE brokkr SET search_path TO tenant_acme",
        "42501",
    ),
    ("ALTER DATABASE brokkr CONNECTION LIMIT 0", "42501"),
    ("DROP DATABASE brokkr", "42501"),
    ("CREATE DATABASE mine", "42501"),
    (
        "CREATE EVENT TRIGGER t ON ddl_command_start EXECUTE FUNCTION f()",
        "42501",
    ),
    ("CREATE PUBLICATION p FOR ALL TABLES", "42501"),
    ("SELECT pg_create_physical_replication_slot('x')", "42501"),
    ("CREATE TABLESPACE t LOCATION '/tmp'", "42501"),
    // Sessions of others, and locks that all share.
    (
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = '{other}'",
        "42501",
    ),
    (
        "SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE usename = 'postgres'",
        "42501",
    ),
    ("SELECT pg_advisory_lock(1)", "42501"),
    ("SELECT pg_try_advisory_xact_lock_shared(1, 2)", "42501"),
    ("SELECT lo_create(0)", "42501"),
    ("SELECT lo_from_bytea(0, 'x')", "42501"),
    // Objects in public, which another role's search path may meet.
    ("CREATE TABLE public.agents (x int)", "42501"),
    (
        "CREATE FUNCTION public.now() RETURNS int LANGUAGE sql AS 'SELECT 1'",
        "42501",
    ),
    ("CREATE TEMPORARY TABLE t (x int)", "42501"),
];

/// Questions whose answers must show nothing of another tenant: statement with one count, which must be 0.
const HIDDEN: &[&str] = &[
    "SELECT count(*) FROM pg_stat_activity WHERE usename = '{other}' AND query NOT LIKE '<insufficient%' AND query <> ''",
    "SELECT count(*) FROM pg_stat_activity WHERE usename = '{other}' AND client_addr IS NOT NULL",
    "SELECT count(*) FROM pg_stats WHERE schemaname = 'tenant_globex'",
    "SELECT count(*) FROM information_schema.tables WHERE table_schema = 'tenant_globex'",
    "SELECT count(*) FROM pg_roles WHERE rolpassword <> '********'",
];

fn filled(sql: &str, role: &str, other: &str) -> String {
    sql.replace("{role}", role).replace("{other}", other)
}

#[test]
fn an_attacker_with_a_tenants_login_is_refused_by_the_server() {
    let host = shared();
    provision(&host);
    host.set("provision.exclusive", "true");
    let checked = host.command(&["check"]);
    let closes = "[provision] exclusive: database postgres is to be closed to every role";
    assert!(checked.stdout.contains(closes), "{checked:?}");
    let acme = host.tenant("acme").up();
    let globex = host.tenant("globex").up();
    let before = globex.status();
    let (role, other) = (acme.status().role.unwrap(), globex.status().role.unwrap());
    let mut attacker = as_tenant(&host, &acme);
    let victim = as_tenant(&host, &globex);
    let mut succeeded = Vec::new();
    for (sql, code) in REFUSED {
        let sql = filled(sql, &role, &other);
        let outcome = attacker.batch_execute(&sql);
        attacker.batch_execute("ROLLBACK").unwrap();
        match outcome {
            Ok(()) => succeeded.push(sql),
            Err(error) => match error.code() {
                Some(found) if found.code() == *code => println!("{code} {sql}"),
                found => succeeded.push(format!("{sql}: {found:?} instead of {code}")),
            },
        }
    }
    for sql in HIDDEN {
        let sql = filled(sql, &role, &other);
        let shown: i64 = attacker.query_one(&sql, &[]).unwrap().get(0);
        if shown > 0 {
            succeeded.push(format!("{sql}: {shown}"));
        }
    }
    globex.api().get("/agents").expect(200);
    let after = globex.status();
    assert_eq!(
        (after.pid, after.restarts, after.state.as_str()),
        (before.pid, 0, "ready")
    );
    drop(victim);
    succeeded.extend(logins(&host, &login(&host, &acme), &role, &other));
    assert_eq!(succeeded, [""; 0], "{succeeded:#?}");
    println!(
        "measured: {} attacks are stopped",
        REFUSED.len() + HIDDEN.len() + 5
    );
}

/// Returns the logins that succeeded: in other databases, and as other roles with the attacker's password.
fn logins(host: &Host, url: &str, role: &str, other: &str) -> Vec<String> {
    let mut admin = host.server().client();
    admin.batch_execute("CREATE DATABASE elsewhere").unwrap();
    // A restart of the supervisor closes the databases that are there now.
    host.stop();
    host.up();
    let _ = host.known("acme").is_ready();
    let _ = host.known("globex").is_ready();
    host.command(&["restart", "--all"]).ok();
    let database = |name: &str| elsewhere(url, name);
    let attempts = [
        database("postgres"),
        database("template1"),
        database("elsewhere"),
        url.replace(role, other),
        url.replace("@127", "x@127"),
    ];
    let open = |url: &String| Client::connect(url, NoTls).is_ok();
    attempts.into_iter().filter(open).collect()
}
