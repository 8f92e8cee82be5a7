//! What `check` says of servers as they are found: one, two, limited, behind a pooler, a standby, absent.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "tests"
)]

use brokkr_tests::bin::Ran;
use brokkr_tests::{Host, PgServer, Place, pg, place, ports};
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

/// `check`, which must find no problem; its tables.
fn fits(host: &Host) -> String {
    host.command(&["check"]).ok()
}

/// `check`, which must find problems, with all of `words` in what it says.
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

/// How many servers the tables are of.
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
    assert!(
        check.stdout.contains(
            "pool_size = 45 at most for each would fit everyone, or max_connections = 110"
        ),
        "{}",
        check.stdout
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
fn check_tells_of_a_server_that_has_shrunk_of_one_that_is_away_and_of_a_broker_that_is_missing() {
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
        assert!(!place::is_root(), "pgbouncer is not installed");
        eprintln!("skipped: pgbouncer is not installed");
        return;
    };
    let host = Host::new();
    let folder = Place::new();
    place::set_mode(folder.path(), 0o755);
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
    let mut command = place::mortal(
        Path::new(program),
        place::AtDeath::Kill,
        pg::postgres_user(),
    );
    command
        .arg(&ini)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let mut pooler = place::spawn(command);
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
