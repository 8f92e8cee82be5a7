//! `[provision]`: each tenant's broker logs in as a role of its own.

use brokkr_tests::pg::Options;
use brokkr_tests::{Host, Load, Tenant, until};
use postgres::{Client, NoTls};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

/// Only the two roles that a person uses get in without a password.
const PASSWORDS: &str = "\
local all all trust
host all postgres,brokkr 127.0.0.1/32 trust
host all all 127.0.0.1/32 scram-sha-256
";

/// Returns a host whose tenants share the role `brokkr`, on a server that asks other roles for passwords.
pub(crate) fn shared() -> Host {
    Host::builder().pg(Options::new().hba(PASSWORDS)).build()
}

/// Returns a host that provisions a role for each tenant.
pub(crate) fn provisioning() -> Host {
    let host = shared();
    provision(&host);
    host
}

pub(crate) fn provision(host: &Host) {
    let admin = host.server().url("postgres", "postgres");
    host.set("provision.admin_url", &format!("\"{admin}\""));
}

/// Returns the URL that logs in as the tenant's role.
pub(crate) fn login(host: &Host, tenant: &Tenant<'_>) -> String {
    let file = host
        .state_dir()
        .join(format!("tenants/{}.url", tenant.name()));
    let mode = fs::metadata(&file).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    fs::read_to_string(file).unwrap().trim().to_owned()
}

/// Returns the same login in another database.
pub(crate) fn elsewhere(url: &str, database: &str) -> String {
    let (server, _) = url.rsplit_once('/').unwrap();
    format!("{server}/{database}")
}

/// Logs in as the tenant's role, without its limits of a session.
pub(crate) fn as_tenant(host: &Host, tenant: &Tenant<'_>) -> Client {
    Client::connect(&login(host, tenant), NoTls).unwrap()
}

#[test]
fn a_tenants_role_owns_its_schema_and_reaches_nothing_of_another() {
    let host = provisioning();
    let acme = host.tenant("acme").pool(5).up();
    let globex = host.tenant("globex").pool(6).up();
    let status = acme.status();
    let role = status.role.unwrap();
    assert!(role.starts_with("brokkr_t_tenant_acme_"), "{role}");
    assert_eq!(status.role_note, None);
    acme.api().create(
        "/agents",
        &serde_json::json!({"name": "a", "cluster_name": "c"}),
    );

    let mut admin = host.server().client();
    let row = admin
        .query_one(
            "SELECT r.rolconnlimit, r.rolpassword LIKE 'SCRAM-SHA-256$%', \
                    r.rolsuper OR r.rolcreatedb OR r.rolcreaterole OR r.rolreplication OR r.rolbypassrls, \
                    (SELECT bool_and(c.relowner = r.oid) FROM pg_class c WHERE c.relnamespace = 'tenant_acme'::regnamespace), \
                    (SELECT count(*) FROM pg_shdepend d WHERE d.refobjid = r.oid AND d.deptype = 'o' \
                        AND d.classid = 'pg_namespace'::regclass) \
               FROM pg_authid r WHERE r.rolname = $1",
            &[&role],
        )
        .unwrap();
    assert_eq!(row.get::<_, i32>(0), 9);
    assert!(row.get::<_, bool>(1) && !row.get::<_, bool>(2) && row.get::<_, bool>(3));
    assert_eq!(row.get::<_, i64>(4), 1);
    let names: Vec<String> = admin
        .query("SELECT DISTINCT usename::text FROM pg_stat_activity WHERE application_name LIKE 'brokkr:%:acme'", &[])
        .unwrap()
        .iter()
        .map(|row| row.get(0))
        .collect();
    assert!(names.iter().all(|name| *name == role), "{names:?}");

    // Its own sessions end at its own limit.
    let url = login(&host, &acme);
    let held: Vec<Client> = std::iter::from_fn(|| Client::connect(&url, NoTls).ok())
        .take(20)
        .collect();
    assert!(held.len() <= 9, "{}", held.len());
    globex.api().get("/agents").expect(200);
}

#[test]
fn a_session_under_another_tenants_name_counts_for_its_own_role() {
    let host = provisioning();
    let acme = host.tenant("acme").up();
    let globex = host.tenant("globex").up();
    let name = |tenant: &str| format!("{}:{tenant}", application_prefix(&host));
    let url = login(&host, &acme);
    let held: Vec<Client> = [name("globex"), "cron".to_owned()]
        .iter()
        .map(|name| {
            let mut client = Client::connect(&url, NoTls).unwrap();
            client
                .batch_execute(&format!("SET application_name TO '{name}'"))
                .unwrap();
            client
        })
        .collect();
    let before = host.status().servers[0].clone();
    host.reload().ok();
    let after = host.status().servers[0].clone();
    assert_eq!(
        after.headroom, before.headroom,
        "counted as another program's"
    );
    // A killed broker's left-overs are not the other tenant's sessions.
    let pid = globex.pid();
    brokkr_tests::procs::signal(pid, nix::sys::signal::Signal::SIGKILL);
    globex.wait("another instance", |t| {
        t.state == "ready" && t.pid != Some(pid)
    });
    drop(held);
}

/// Returns the beginning of the application names of this machine's programs.
fn application_prefix(host: &Host) -> String {
    let mut admin = host.server().client();
    let row = admin
        .query_one("SELECT application_name FROM pg_stat_activity WHERE application_name LIKE 'brokkr:%' LIMIT 1", &[])
        .unwrap();
    let name: String = row.get(0);
    name.rsplit_once(':').unwrap().0.to_owned()
}

#[test]
fn tenants_of_the_shared_role_get_their_own_and_no_request_is_refused() {
    let host = shared();
    let acme = host.tenant("acme").up();
    assert_eq!(acme.status().role.as_deref(), Some("brokkr"));
    assert!(acme.status().role_note.unwrap().contains("no [provision]"));
    let pak = acme.pak();
    let api = acme.api();
    api.create(
        "/agents",
        &serde_json::json!({"name": "a", "cluster_name": "c"}),
    );
    let load = Load::start(&acme.addr(), "/api/v1/agents", &pak, 4, true);
    let old = acme.pid();
    provision(&host);
    host.succeed();
    acme.replaced(old);
    let status = acme.wait("its own role", |t| {
        t.state == "ready"
            && t.role
                .as_deref()
                .is_some_and(|role| role.starts_with("brokkr_t_"))
    });
    assert_eq!(status.pending, None);
    let seen = load.stop();
    assert!(seen.lost.is_empty() && seen.refused == 0, "{seen:?}");
    assert_eq!(seen.answers.keys().collect::<Vec<_>>(), [&200], "{seen:?}");
    assert_eq!(api.get_json("/agents").as_array().unwrap().len(), 1);

    // Once the last instance of the shared role has ended, that role has no rights there any more.
    let mut admin = host.server().client();
    until(
        Duration::from_secs(30),
        "the shared role to lose its rights",
        || {
            let row = admin
            .query_one("SELECT has_schema_privilege('brokkr', 'tenant_acme', 'USAGE'), has_table_privilege('brokkr', 'tenant_acme.agents', 'SELECT')", &[])
            .unwrap();
            (!row.get::<_, bool>(0) && !row.get::<_, bool>(1)).then_some(())
        },
    );
    let owners = "SELECT count(*) FROM pg_class WHERE relnamespace = 'tenant_acme'::regnamespace AND relowner = 'brokkr'::regrole";
    assert_eq!(admin.query_one(owners, &[]).unwrap().get::<_, i64>(0), 0);
}

/// Fills the server's lock table from one session of the tenant: thousands of locks, in one transaction.
fn fill_lock_table(url: &str) -> Option<Client> {
    let mut client = Client::connect(url, NoTls).ok()?;
    let many = (0..4000).map(|n| format!("CREATE TABLE f{n} (); "));
    let sql = format!("BEGIN; {}", many.collect::<String>());
    // The server ends this session, or refuses to give it more.
    let _ = client.batch_execute(&sql);
    (!client.is_closed()).then_some(client)
}

#[test]
fn a_session_that_fills_the_lock_table_is_ended_each_time_and_the_bystander_serves() {
    let host = provisioning();
    let acme = host.tenant("acme").up();
    let globex = host.tenant("globex").up();
    let url = login(&host, &acme);
    let before = globex.status();
    let ended = || host.said("locks of its sessions together, [provision.limits] locks = 500");
    for round in 1..=3 {
        let held = fill_lock_table(&url);
        until(Duration::from_secs(20), "the session to be ended", || {
            (ended() >= round).then_some(())
        });
        drop(held);
    }
    // Sessions that stay below the limit each are too much together.
    let before_many = ended();
    let mut held: Vec<Client> = (0..5)
        .map(|_| Client::connect(&url, NoTls).unwrap())
        .collect();
    for (n, client) in held.iter_mut().enumerate() {
        let some = (0..150).map(|t| format!("CREATE TABLE g{n}_{t} (); "));
        client
            .batch_execute(&format!("BEGIN; {}", some.collect::<String>()))
            .unwrap_or_default();
    }
    until(Duration::from_secs(20), "some of them to be ended", || {
        (ended() > before_many).then_some(())
    });
    drop(held);
    globex.api().get("/agents").expect(200);
    let after = globex.status();
    assert_eq!((after.pid, after.state.as_str()), (before.pid, "ready"));
    let line = host
        .log_lines()
        .into_iter()
        .find(|line| {
            line["message"]
                .as_str()
                .is_some_and(|m| m.contains("is ended: "))
        })
        .unwrap();
    assert_eq!(line["tenant"], "acme", "{line}");
}

#[test]
fn a_transaction_and_a_statement_end_at_their_limits_and_a_bystanders_do_not() {
    let host = provisioning();
    host.set("provision.limits.transaction", "\"2s\"")
        .set("provision.limits.statement", "\"2s\"");
    let acme = host.tenant("acme").up();
    let url = login(&host, &acme);
    let mut idle = Client::connect(&url, NoTls).unwrap();
    idle.batch_execute("SET idle_in_transaction_session_timeout TO 0; BEGIN")
        .unwrap();
    let mut busy = Client::connect(&url, NoTls).unwrap();
    busy.batch_execute("SET statement_timeout TO 0").unwrap();
    busy.batch_execute("SELECT pg_sleep(60)").unwrap_err();
    until(
        Duration::from_secs(20),
        "the transaction to be ended",
        || idle.is_valid(Duration::from_secs(1)).is_err().then_some(()),
    );
    let mut admin = host.server().client();
    admin.batch_execute("BEGIN; SELECT pg_sleep(4)").unwrap();
    acme.api().get("/agents").expect(200);
}

#[test]
fn a_new_password_reaches_the_running_broker_and_the_old_one_is_dead() {
    let host = provisioning();
    let acme = host.tenant("acme").up();
    let pid = acme.pid();
    let old = login(&host, &acme);
    let load = Load::start(&acme.addr(), "/api/v1/agents", &acme.pak(), 4, true);
    let said = host.command(&["tenant", "rotate-credentials", "acme"]).ok();
    assert!(
        said.contains("rotated the credentials of acme: role brokkr_t_"),
        "{said}"
    );
    let new = login(&host, &acme);
    assert_ne!(old, new);
    assert!(Client::connect(&old, NoTls).is_err());
    Client::connect(&new, NoTls).unwrap();
    // Every connection is opened anew, with the new password.
    let mut admin = host.server().client();
    let ended = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE usename LIKE 'brokkr_t_%'";
    for _ in 0..3 {
        admin.query_one(ended, &[]).unwrap();
        until(
            Duration::from_secs(20),
            "an answer over a new connection",
            || acme.api().get("/agents").status.eq(&200).then_some(()),
        );
    }
    drop(load);
    assert_eq!((acme.pid(), acme.status().restarts), (pid, 0));
    let shared = shared();
    shared.tenant("globex").up();
    let refused = shared.command(&["tenant", "rotate-credentials", "globex"]);
    assert_eq!(refused.code, Some(1));
    assert!(
        refused.stderr.contains("has no role of its own"),
        "{refused:?}"
    );
    let log = host.log();
    for url in [&old, &new] {
        let password = url.split(':').nth(2).unwrap().split('@').next().unwrap();
        assert_eq!(password.len(), 48);
        assert!(!log.contains(password));
    }
}

#[test]
fn data_is_dropped_only_after_its_name_is_given_again_and_the_role_goes_along() {
    let host = provisioning();
    let acme = host.tenant("acme").up();
    let globex = host.tenant("globex").up();
    let role = acme.status().role.unwrap();
    let asked = host.command(&["tenant", "remove", "acme", "--drop-data"]);
    assert_eq!(asked.code, Some(1));
    assert!(asked.stderr.contains("--yes-drop acme"), "{asked:?}");
    let wrong = host.command(&[
        "tenant",
        "remove",
        "acme",
        "--drop-data",
        "--yes-drop",
        "globex",
    ]);
    assert!(wrong.stderr.contains("nothing is changed"), "{wrong:?}");
    assert!(acme.file().exists());
    // The tenant's role has something elsewhere, and a session with locks.
    let elsewhere = elsewhere(&login(&host, &acme), "postgres");
    Client::connect(&elsewhere, NoTls)
        .unwrap()
        .batch_execute("ALTER DEFAULT PRIVILEGES GRANT SELECT ON TABLES TO PUBLIC")
        .unwrap();
    let mut holding = as_tenant(&host, &acme);
    holding
        .batch_execute("BEGIN; LOCK TABLE agents")
        .unwrap_or_default();

    let dump = host.root().join("acme.dump");
    let said = host
        .command(&[
            "tenant",
            "remove",
            "acme",
            "--drop-data",
            "--yes-drop",
            "acme",
            "--dump",
            &dump.display().to_string(),
        ])
        .ok();
    assert!(
        said.contains(&format!("dropped schema tenant_acme, role {role} and ")),
        "{said}"
    );
    assert_eq!(&fs::read(&dump).unwrap()[..5], b"PGDMP");
    let mode = fs::metadata(&dump).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let mut admin = host.server().client();
    let left = "SELECT (SELECT count(*) FROM pg_namespace WHERE nspname = 'tenant_acme') + (SELECT count(*) FROM pg_roles WHERE rolname = $1)";
    assert_eq!(admin.query_one(left, &[&role]).unwrap().get::<_, i64>(0), 0);
    let states = fs::read_dir(host.state_dir().join("tenants"))
        .unwrap()
        .flatten();
    let of_acme: Vec<_> = states
        .filter(|entry| entry.file_name().to_string_lossy().starts_with("acme"))
        .collect();
    assert!(of_acme.is_empty(), "{of_acme:?}");
    globex.api().get("/agents").expect(200);

    // Without a supervisor nothing is changed, and a command that failed can be given again.
    let drop_globex = [
        "tenant",
        "remove",
        "globex",
        "--drop-data",
        "--yes-drop",
        "globex",
    ];
    host.stop();
    assert_eq!(host.command(&drop_globex).code, Some(69));
    assert!(globex.file().exists());
    host.up();
    let _ = globex.clone().is_ready();
    let with_dump = |file: &str| {
        let path = host.root().join(file).display().to_string();
        let mut command = drop_globex.to_vec();
        command.extend(["--dump", &path]);
        host.command(&command)
    };
    let unusable = with_dump("nowhere/globex.dump");
    assert!(
        unusable.stderr.contains("nothing is changed"),
        "{unusable:?}"
    );
    assert!(globex.file().exists());
    host.set("postgres.bin_dir", "\"/nowhere\"");
    let failed = with_dump("globex.dump");
    assert_eq!(failed.code, Some(1), "{failed:?}");
    assert!(
        failed.stderr.contains("goes on with the rest"),
        "{failed:?}"
    );
    assert!(!globex.file().exists());
    let said = host.command(&drop_globex).ok();
    assert!(said.contains("dropped schema tenant_globex"), "{said}");

    // A schema that no broker has made is left alone.
    admin
        .batch_execute("CREATE SCHEMA theirs; CREATE TABLE theirs.x ()")
        .unwrap();
    host.tenant("initech").schema("theirs").write();
    let refused = host.command(&[
        "tenant",
        "remove",
        "initech",
        "--drop-data",
        "--yes-drop",
        "initech",
    ]);
    assert_eq!(refused.code, Some(1), "{refused:?}");
    assert!(
        refused.stderr.contains("no Brokkr broker has made it"),
        "{refused:?}"
    );
    admin.batch_execute("SELECT FROM theirs.x").unwrap();
}

#[test]
fn an_administrator_without_superuser_provisions_what_it_may_and_the_rest_is_said() {
    let host = shared();
    let mut admin = host.server().client();
    admin
        .batch_execute("CREATE ROLE maker LOGIN CREATEROLE PASSWORD 'made'; GRANT CREATE ON DATABASE brokkr TO maker")
        .unwrap();
    let url = host
        .server()
        .url("brokkr", "maker")
        .replace("maker@", "maker:made@");
    host.set("provision.admin_url", &format!("\"{url}\""));
    let acme = host.tenant("acme").up();
    let role = acme.status().role.unwrap();
    assert!(role.starts_with("brokkr_t_"), "{role}");
    acme.api().get("/agents").expect(200);
    let notices = host
        .wait(Duration::from_secs(20), "a notice", |s| {
            !s.notices.is_empty() && s.notices.iter().any(|n| n.contains("advisory"))
        })
        .notices;
    assert!(
        notices
            .iter()
            .any(|n| n.contains("only a superuser may forbid it")),
        "{notices:?}"
    );
    // A second start finds everything there.
    let pid = acme.pid();
    host.command(&["restart", "acme"]).ok();
    acme.replaced(pid);
    let row = admin
        .query_one("SELECT pg_get_userbyid(nspowner)::text FROM pg_namespace WHERE nspname = 'tenant_acme'", &[])
        .unwrap();
    assert_eq!(row.get::<_, String>(0), role);
}

#[test]
fn an_exclusive_server_keeps_the_roles_of_tenants_and_of_connected_programs() {
    let host = shared();
    let mut admin = host.server().client();
    for sql in [
        "CREATE ROLE op LOGIN PASSWORD 'op'",
        "CREATE ROLE app LOGIN PASSWORD 'app'",
        "CREATE DATABASE apps",
        "GRANT CREATE ON DATABASE brokkr TO op",
    ] {
        admin.batch_execute(sql).unwrap();
    }
    let url = |database: &str, user: &str| {
        let plain = host.server().url(database, user);
        plain.replace(&format!("{user}@"), &format!("{user}:{user}@"))
    };
    let mut app = Client::connect(&url("apps", "app"), NoTls).unwrap();
    provision(&host);
    host.set("provision.exclusive", "true");
    let acme = host.tenant("acme").write();
    let initech = host.tenant("initech").url(&url("brokkr", "op")).write();
    host.up();
    let (acme, initech) = (acme.is_ready(), initech.is_ready());
    assert_eq!(initech.status().role.as_deref(), Some("op"));
    assert!(
        initech
            .status()
            .role_note
            .unwrap()
            .contains("its file names the role op")
    );
    until(
        Duration::from_secs(20),
        "the databases to be closed",
        || {
            let sql = "SELECT bool_or(has_database_privilege('public', oid, 'CONNECT')) FROM pg_database WHERE datallowconn";
            (!admin.query_one(sql, &[]).unwrap().get::<_, bool>(0)).then_some(())
        },
    );
    app.batch_execute("CREATE TEMPORARY TABLE t ()").unwrap();
    Client::connect(&url("brokkr", "op"), NoTls).unwrap();
    assert!(Client::connect(&elsewhere(&login(&host, &acme), "apps"), NoTls).is_err());
    // A supervisor that takes over closes what was opened meanwhile, without a start of any broker.
    admin.batch_execute("CREATE DATABASE later").unwrap();
    let pid = acme.pid();
    host.kill();
    host.up();
    until(
        Duration::from_secs(20),
        "the new database to be closed",
        || {
            let sql = "SELECT has_database_privilege('public', 'later', 'CONNECT')";
            (!admin.query_one(sql, &[]).unwrap().get::<_, bool>(0)).then_some(())
        },
    );
    assert_eq!(acme.pid(), pid);
}

#[test]
fn a_renamed_tenant_keeps_its_role_and_its_file_has_the_password_that_is_valid() {
    let host = provisioning();
    let old = host.tenant("old").schema("theirs").up();
    let role = old.status().role;
    let text = old.read_file();
    old.remove_file();
    old.is_gone();
    let new = host.known("new");
    new.replace_file(&text);
    let new = new.is_ready();
    assert_eq!(new.status().role, role);
    as_tenant(&host, &new);
    assert!(!host.state_dir().join("tenants/old.url").exists());
}
