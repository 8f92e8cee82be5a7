//! The verdicts of `check` on servers: one, two, limited, behind a pooler, a standby, absent.

use brokkr_tests::bin::Ran;
use brokkr_tests::{Host, PgServer, TestDir, pg, ports, says, test_dir, until};
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

/// Returns the tables of a `check` that finds no problem.
fn fits(host: &Host) -> String {
    host.command(&["check"]).ok()
}

/// Runs a `check` that must find problems, with all of `words` in its output.
fn complains(host: &Host, words: &[&str]) -> Ran {
    let check = host.command(&["check"]);
    assert_eq!(check.code, Some(1), "{check:?}");
    for word in words {
        assert!(
            check.stderr.contains(word),
            "{word:?} is not in: {}",
            check.stderr
        );
    }
    check
}

fn tables(output: &str) -> usize {
    output
        .lines()
        .filter(|line| line.starts_with("server "))
        .count()
}

#[test]
fn two_urls_to_one_server_share_one_budget() {
    let host = Host::new();
    let other_way = host.server().unix_url("brokkr", "brokkr");
    host.tenant("acme").pool(50).write();
    host.tenant("globex").pool(50).url(&other_way).write();
    let check = complains(
        &host,
        &[
            "globex.toml:",
            "over budget: tenant globex needs 50 and 4 more of 94",
            "40 are free",
        ],
    );
    assert_eq!(tables(&check.stdout), 1, "{}", check.stdout);
    says(
        &check.stdout,
        &["pool_size = 45 at most for each would fit everyone, or max_connections = 110"],
    );
}

#[test]
fn two_servers_are_two_budgets_even_when_one_is_a_copy_of_the_other() {
    let host = Host::new();
    let copy = PgServer::start();
    host.tenant("acme").pool(50).write();
    host.tenant("globex")
        .pool(50)
        .url(&copy.url("brokkr", "brokkr"))
        .write();
    assert_eq!(tables(&fits(&host)), 2);
}

#[test]
fn limits_of_role_and_database_are_named_with_the_statement_that_would_lift_them() {
    let host = Host::new();
    host.tenant("acme").pool(20).write();
    host.server().sql("ALTER ROLE brokkr CONNECTION LIMIT 20");
    complains(
        &host,
        &[
            "acme.toml:",
            "role brokkr",
            "ALTER ROLE brokkr CONNECTION LIMIT 24",
        ],
    );
    host.server().sql("ALTER ROLE brokkr CONNECTION LIMIT 24");
    fits(&host);
    host.server()
        .sql("ALTER DATABASE brokkr CONNECTION LIMIT 10");
    complains(
        &host,
        &[
            "database brokkr",
            "ALTER DATABASE brokkr CONNECTION LIMIT 24",
        ],
    );
}

#[test]
fn connections_of_others_take_from_the_budget_once_they_are_more_than_the_headroom() {
    let host = Host::new();
    host.tenant("acme").pool(90).write();
    fits(&host);
    let _others: Vec<_> = (0..10).map(|_| host.server().client()).collect();
    complains(&host, &["needs 90 and 4 more of 87"]);
}

#[test]
fn a_standby_is_no_server_for_a_tenant() {
    let host = Host::new();
    let standby = host.server().standby();
    host.tenant("acme")
        .url(&standby.url("brokkr", "brokkr"))
        .write();
    complains(&host, &["acme.toml:", "tenant acme", "is a standby"]);
}

#[test]
fn a_server_that_is_away_and_a_database_that_is_not_there_are_told_apart() {
    let host = Host::new();
    let nowhere = format!("postgres://brokkr@127.0.0.1:{}/brokkr", ports::free());
    host.tenant("acme").url(&nowhere).write();
    host.tenant("globex")
        .url(&host.server().url("nothing", "brokkr"))
        .write();
    complains(
        &host,
        &[
            "tenant acme: no server",
            "refused",
            "tenant globex: no server",
            "does not exist",
        ],
    );
}

#[test]
fn a_superuser_is_warned_of_and_fits() {
    let host = Host::new();
    host.tenant("acme")
        .url(&host.server().url("brokkr", "postgres"))
        .write();
    let check = host.command(&["check"]);
    assert_eq!(check.code, Some(0), "{check:?}");
    assert!(
        check.stderr.contains("warning: ") && check.stderr.contains("superuser"),
        "{check:?}"
    );
}

#[test]
fn offline_no_server_is_asked() {
    let host = Host::builder().server_down().build();
    host.tenant("acme").pool(50).write();
    host.tenant("globex").pool(50).write();
    let output = host.command(&["check", "--offline"]).ok();
    assert!(output.contains("not asked"), "{output}");
    complains(
        &host,
        &["tenant acme: no server", "tenant globex: no server"],
    );
}

#[test]
fn check_reports_a_smaller_server_an_absent_server_and_a_missing_broker() {
    let host = Host::new();
    host.tenant("acme").pool(30).up();
    let check = |problem: &str, shown: &str| {
        let ran = host.command(&["check"]);
        assert_eq!(ran.code, Some(1), "{ran:?}");
        assert!(ran.stderr.contains(problem), "{ran:?}");
        assert!(ran.stdout.contains(shown), "{ran:?}");
        assert!(!ran.stdout.contains("all pools fit"), "{ran:?}");
    };
    host.set("budget.headroom", "70");
    check(
        "34 connections are admitted, 7 more than its capacity of 27",
        "more is admitted than the server has by now",
    );
    host.set("budget.headroom", "3");
    host.server().stop();
    check("acme", "admitted; its server cannot be asked");
    host.server().restart();
    host.set("broker", "\"/nowhere/brokkr-broker\"");
    let ran = host.command(&["check"]);
    assert_eq!(ran.code, Some(1), "{ran:?}");
    assert!(
        ran.stderr
            .contains("broker = /nowhere/brokkr-broker: No such file"),
        "{ran:?}"
    );
}

#[test]
fn beside_a_running_supervisor_the_admitted_keep_their_place() {
    let host = Host::new();
    let runner = host.tenant("zebra").pool(50).up();
    let pid = runner.pid();
    host.tenant("acme").pool(50).write().becomes("refused");
    complains(&host, &["acme.toml:", "over budget: tenant acme"]);
    assert_eq!(runner.pid(), pid);
}

#[test]
fn a_pooler_that_shares_backends_is_refused() {
    let Some(program) = ["/usr/sbin/pgbouncer", "/usr/bin/pgbouncer"]
        .into_iter()
        .find(|p| Path::new(p).exists())
    else {
        assert!(!test_dir::is_root(), "pgbouncer is not installed");
        eprintln!("skipped: pgbouncer is not installed");
        return;
    };
    let host = Host::new();
    let folder = TestDir::new();
    test_dir::set_mode(folder.path(), 0o755);
    let port = ports::free();
    let ini = folder.join("pgbouncer.ini");
    std::fs::write(
        &ini,
        format!(
            "[databases]\nbrokkr = host=127.0.0.1 port={} dbname=brokkr user=brokkr\n[pgbouncer]\nlisten_addr = 127.0.0.1\n\
             listen_port = {port}\nunix_socket_dir =\nauth_type = any\npool_mode = transaction\n",
            host.server().port()
        ),
    )
    .unwrap();
    let mut command = test_dir::mortal(
        Path::new(program),
        test_dir::AtDeath::Kill,
        pg::postgres_user(),
    );
    command
        .arg(&ini)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let mut pooler = test_dir::spawn(command);
    brokkr_tests::wait::until_ok(Duration::from_secs(10), "the pooler accepts", || {
        std::net::TcpStream::connect(("127.0.0.1", port))
    });
    host.tenant("acme")
        .url(&format!("postgres://brokkr@127.0.0.1:{port}/brokkr"))
        .write();
    complains(
        &host,
        &[
            "acme.toml:",
            "tenant acme",
            "pooler in transaction or statement mode",
        ],
    );
    pooler.kill().unwrap();
    pooler.wait().unwrap();
}

#[test]
fn tenants_that_swap_addresses_before_they_ever_ran_do_not_wait_for_each_other() {
    let host = Host::builder().server_down().build();
    let ports = [brokkr_tests::ports::free(), brokkr_tests::ports::free()];
    let listens = ports.map(|port| format!("127.0.0.1:{port}"));
    let acme = host.tenant("acme").listen(&listens[0]).write();
    let globex = host.tenant("globex").listen(&listens[1]).write();
    host.up();
    for tenant in [&acme, &globex] {
        tenant.becomes("waiting");
    }
    let swapped = |name: &str, at: usize| host.tenant(name).listen(&listens[at]).text();
    let (new_acme, new_globex) = (swapped("acme", 1), swapped("globex", 0));
    acme.replace_file(&new_acme);
    globex.replace_file(&new_globex);
    host.reload();
    host.server().resume_service();
    for (tenant, listen) in [(&acme, &listens[1]), (&globex, &listens[0])] {
        tenant.becomes("ready");
        assert_eq!(tenant.status().listen.as_deref(), Some(listen.as_str()));
        assert_eq!(tenant.get("/healthz").status, 200);
    }
}

/// Writes tenants `a` to `m` with pool 2, each with its own role and database.
fn thirteen(host: &Host) -> Vec<brokkr_tests::Tenant<'_>> {
    let names = ('a'..='m').map(String::from);
    names
        .map(|name| {
            host.server().role(&name, "");
            host.server().database(&name, &name);
            let url = host.server().url(&name, &name);
            host.tenant(&name).pool(2).url(&url).write()
        })
        .collect()
}

/// Opens as many sessions of a role as its limit allows.
fn take_all(server: &PgServer, role: &str) -> Vec<postgres::Client> {
    let mut taken = Vec::new();
    while let Ok(client) = server.try_client(role, role) {
        taken.push(client);
    }
    taken
}

#[test]
fn a_role_at_its_limit_is_its_tenants_trouble_alone_at_a_start_and_at_a_take_over() {
    let host = Host::new();
    let tenants = thirteen(&host);
    let b = &tenants[1];
    host.server()
        .sql("ALTER ROLE b CONNECTION LIMIT 6; ALTER ROLE d SET statement_timeout = '1ms'");
    let others = || tenants.iter().filter(|tenant| tenant.name() != "b");
    let taken = take_all(host.server(), "b");
    assert_eq!(taken.len(), 6);
    host.up();
    for tenant in others() {
        tenant.becomes("ready");
    }
    assert_eq!(tenants[0].get("/readyz").status, 200);
    assert_eq!(tenants[12].get("/readyz").status, 200);
    let why = b.becomes("waiting").reason.unwrap_or_default();
    assert!(why.contains("too many connections for role \"b\""), "{why}");
    drop(taken);
    b.becomes("ready");

    let pids: Vec<i32> = tenants.iter().map(|tenant| tenant.pid()).collect();
    host.kill();
    let taken = take_all(host.server(), "b");
    host.up();
    let why = b.wait("seen to be at its limit", |status| {
        let reason = status.reason.as_deref().unwrap_or_default();
        reason.contains("too many connections for role")
    });
    assert_eq!(why.state, "degraded");
    for tenant in others() {
        tenant.becomes("ready");
    }
    assert_eq!(tenants[0].get("/readyz").status, 200);
    assert_eq!(tenants[12].get("/readyz").status, 200);
    drop(taken);
    b.becomes("ready");
    let after: Vec<i32> = tenants.iter().map(|tenant| tenant.pid()).collect();
    assert_eq!(after, pids);
    assert_eq!(b.status().restarts, 0);
}

#[test]
fn a_server_that_one_role_may_not_name_is_one_server_and_one_budget() {
    let host = Host::new();
    for name in ["a", "c"] {
        host.server().role(name, "");
        host.server().database(name, name);
        host.server()
            .client_as(name, "postgres")
            .batch_execute(
                "REVOKE EXECUTE ON FUNCTION pg_control_system() FROM PUBLIC; \
                 GRANT EXECUTE ON FUNCTION pg_control_system() TO a",
            )
            .unwrap();
    }
    let tenant = |name: &str| {
        let url = host.server().url(name, name);
        host.tenant(name).pool(80).url(&url).write()
    };
    // The tenant whose role may not read the server's identifier ran alone first; it keeps its place when the server is
    // identified.
    let c = tenant("c");
    host.up();
    c.becomes("ready");
    let a = tenant("a");
    let why = a.becomes("refused").reason.unwrap_or_default();
    assert!(why.contains("over budget"), "{why}");
    assert_eq!(c.status().state, "ready");
    let check = complains(&host, &["over budget: tenant a needs 80"]);
    assert_eq!(tables(&check.stdout), 1, "{}", check.stdout);
    host.kill();
    host.up();
    c.becomes("ready");
    a.becomes("refused");
    let status = host.status();
    assert_eq!(status.servers.len(), 1, "{status:#?}");
}

#[test]
fn a_database_that_is_not_utf8_is_refused_with_what_to_do() {
    let host = Host::new();
    host.server()
        .sql("CREATE DATABASE latin OWNER brokkr ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0");
    let latin = host
        .tenant("latin")
        .url(&host.server().url("latin", "brokkr"))
        .write();
    let said = "database \"latin\" has encoding LATIN1; Brokkr needs UTF8: create it with ENCODING 'UTF8' TEMPLATE template0";
    let check = complains(&host, &["latin.toml:", said]);
    assert!(!check.stdout.contains("fits"), "{}", check.stdout);
    host.tenant("good").up();
    let status = latin.becomes("waiting");
    assert_eq!(status.reason.as_deref(), Some(said));
    assert_eq!(status.pid, None);
}

#[test]
fn a_schema_that_the_role_may_not_use_or_that_another_broker_made_is_told_before_the_start() {
    let host = Host::new();
    host.server().role("Other", "");
    host.server().role("poor", "");
    host.server().sql(
        "CREATE SCHEMA tenant_theirs AUTHORIZATION \"Other\"; \
         CREATE SCHEMA tenant_old AUTHORIZATION brokkr; \
         CREATE TABLE tenant_old.__diesel_schema_migrations (version text)",
    );
    host.tenant("good").write();
    host.tenant("old").write();
    host.tenant("theirs").write();
    host.tenant("new")
        .url(&host.server().url("brokkr", "poor"))
        .write();
    let check = complains(
        &host,
        &[
            "old.toml:",
            "tenant old: this schema was made by Brokkr 0.9 (it holds __diesel_schema_migrations); choose another schema, its tables are left as they are",
            "tenant theirs: role \"brokkr\" may not use schema \"tenant_theirs\", which belongs to role \"Other\": ALTER SCHEMA tenant_theirs OWNER TO brokkr",
            "tenant new: role \"poor\" may not create schema \"tenant_new\" in database \"brokkr\": GRANT CREATE ON DATABASE brokkr TO poor",
        ],
    );
    let line = |name: &str| {
        let mut lines = check.stdout.lines();
        lines
            .find(|line| line.trim_start().starts_with(name))
            .unwrap()
    };
    assert!(line("good").ends_with("fits"), "{}", check.stdout);
    for name in ["old", "theirs", "new"] {
        assert!(line(name).contains("cannot start"), "{}", check.stdout);
    }
    // Following the advice solves the problem.
    host.server()
        .sql("ALTER SCHEMA tenant_theirs OWNER TO brokkr; GRANT CREATE ON DATABASE brokkr TO poor");
    host.tenant("old").schema("tenant_other").write();
    fits(&host);
}

#[test]
fn the_reason_of_an_ended_session_goes_with_the_next_session() {
    let host = Host::new();
    host.tenant("acme").up();
    let mut client = host.server().client();
    // A tenant's name has no dot, and the name of the supervisor's own session has one.
    let own = "SELECT pid FROM pg_stat_activity WHERE application_name LIKE 'brokkr:%.%'";
    let before: i32 = client.query_one(own, &[]).unwrap().get(0);
    client
        .execute("SELECT pg_terminate_backend($1)", &[&before])
        .unwrap();
    let bound = Duration::from_secs(30);
    until(bound, "the next session", || {
        let now = client.query(own, &[]).unwrap();
        let renewed = now.iter().all(|row| row.get::<_, i32>(0) != before);
        (renewed && !now.is_empty()).then_some(())
    });
    host.wait(bound, "the reason to go", |s| {
        s.servers[0].up && s.servers[0].reason.is_none()
    });
}
