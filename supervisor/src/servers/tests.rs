#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]
//! Probers against real servers.

use super::{Endpoint, Servers, ServersView, Wanted, event_loop, made_at_last};
use brokkr_tenant::DatabaseUrl;
use brokkr_tests::PgServer;
use brokkr_tests::pg::Options;
use std::collections::BTreeSet;
use std::io::{self, Write as _};
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::watch;

mod verdicts;

const PREFIX: &str = "brokkr:0123abcd:";

fn probers(urls: &[&str]) -> Servers {
    let servers = Servers::start(PREFIX.to_owned()).unwrap();
    servers.want(wanted(urls));
    servers
}

fn url_of(text: &str) -> DatabaseUrl {
    DatabaseUrl::parse(text).unwrap()
}

/// Returns these URLs without schemas that have a role of their own.
fn wanted(urls: &[impl AsRef<str>]) -> Wanted {
    let urls = urls.iter().map(|url| url_of(url.as_ref()));
    urls.map(|url| (url, BTreeSet::new())).collect()
}

/// Waits until the view fulfils `is` and returns the time that took.
fn wait(
    servers: &Servers,
    what: &str,
    is: impl Fn(&ServersView) -> bool,
) -> (Arc<ServersView>, Duration) {
    let began = Instant::now();
    let runtime = event_loop().unwrap();
    let mut view = servers.view();
    let seen = runtime.block_on(async {
        tokio::time::timeout(Duration::from_secs(20), view.wait_for(|view| is(view)))
            .await
            .map(|v| v.unwrap().clone())
    });
    let now = servers.view().borrow().clone();
    (
        seen.unwrap_or_else(|_| panic!("never {what}: {now:#?}")),
        began.elapsed(),
    )
}

fn ready(view: &ServersView, url: &str) -> bool {
    matches!(view.endpoint(&url_of(url)), Endpoint::Ready(_))
}

fn problem(view: &ServersView, url: &str) -> String {
    view.endpoint(&url_of(url))
        .problem()
        .unwrap_or_default()
        .to_owned()
}

/// Asserts that the problem with this URL is described with these words.
#[track_caller]
fn assert_problem(view: &ServersView, url: &str, words: &str) {
    let problem = problem(view, url);
    assert!(problem.contains(words), "{problem}");
}

/// Starts the probers of one URL, and waits until its server is ready.
fn ready_probers(url: &str) -> (Servers, Arc<ServersView>) {
    let servers = probers(&[url]);
    let (view, _) = wait(&servers, "ready", |view| ready(view, url));
    (servers, view)
}

#[test]
fn two_urls_to_one_server_are_one_server_and_a_copied_server_is_another() {
    let (one, copy) = (PgServer::start(), PgServer::start());
    one.database("other", "brokkr");
    let urls = [
        one.url("brokkr", "brokkr"),
        one.unix_url("other", "brokkr"),
        copy.url("brokkr", "brokkr"),
    ];
    let urls: Vec<&str> = urls.iter().map(String::as_str).collect();
    let servers = probers(&urls);
    let (view, _) = wait(&servers, "all ready", |view| {
        urls.iter().all(|url| ready(view, url))
    });
    assert_eq!(view.servers.len(), 2, "{:?}", view.servers.keys());
    let place = |n: usize| view.endpoint(&url_of(urls[n])).place().unwrap().clone();
    assert_eq!(place(0).server, place(1).server);
    assert_ne!(place(0).database, place(1).database);
    assert_ne!(place(0).server, place(2).server);
    let facts = &view.servers[&place(0).server].facts;
    assert_eq!(
        (
            facts.max_connections,
            facts.superuser_reserved,
            facts.reserved
        ),
        (100, 3, 0)
    );
    assert_eq!(facts.databases[&place(1).database].name, "other");
    assert!(view.servers[&place(0).server].warnings.is_empty());
}

#[test]
fn limits_foreigners_and_our_own_connections_are_read() {
    let server = PgServer::start();
    server.sql("ALTER ROLE brokkr CONNECTION LIMIT 17; ALTER DATABASE brokkr CONNECTION LIMIT 23");
    let _foreign = [server.client(), server.client()];
    let mut ours = server.client();
    ours.batch_execute(&format!("SET application_name = '{PREFIX}acme'"))
        .unwrap();
    let url = server.url("brokkr", "brokkr");
    let (servers, view) = ready_probers(&url);
    let (_, seen) = view.server(&url_of(&url)).unwrap();
    assert_eq!(seen.facts.roles["brokkr"].limit, Some(17));
    assert_eq!(
        seen.facts.databases.values().next().unwrap().limit,
        Some(23)
    );
    assert_eq!(seen.facts.foreign, 2);
    assert_eq!(
        seen.ours
            .iter()
            .map(|((t, _), backends)| (t.as_str(), backends.len()))
            .collect::<Vec<_>>(),
        [("acme", 1)]
    );
    drop(ours);
    let (view, _) = wait(&servers, "without acme's", |view| {
        view.server(&url_of(&url))
            .is_some_and(|(_, s)| s.ours.is_empty())
    });
    assert_eq!(
        view.server(&url_of(&url)).unwrap().1.in_use,
        1,
        "one connection is kept"
    );
    server.sql("ALTER ROLE brokkr CONNECTION LIMIT 18");
    event_loop().unwrap().block_on(servers.refresh());
    assert_eq!(
        servers
            .view()
            .borrow()
            .server(&url_of(&url))
            .unwrap()
            .1
            .facts
            .roles["brokkr"]
            .limit,
        Some(18)
    );
}

#[test]
fn what_says_no_is_told_from_what_does_not_answer() {
    let server = PgServer::with(Options::new().hba("local all postgres trust\nhost all brokkr 127.0.0.1/32 trust\nhost all postgres 127.0.0.1/32 trust\n"));
    let missing = server.url("nowhere", "brokkr");
    let stranger = server.url("brokkr", "stranger");
    let absent = "postgres://brokkr@127.0.0.1:1/brokkr";
    let servers = probers(&[&missing, &stranger, absent]);
    let (view, _) = wait(&servers, "all tried", |view| {
        [&missing, &stranger, absent]
            .iter()
            .all(|url| *view.endpoint(&url_of(url)) != Endpoint::Unknown)
    });
    assert!(matches!(
        view.endpoint(&url_of(absent)),
        Endpoint::Unreachable { .. }
    ));
    assert_problem(&view, &missing, "\"nowhere\" does not exist");
    assert_problem(&view, &stranger, "pg_hba.conf");
    assert!(matches!(
        view.endpoint(&url_of(&missing)),
        Endpoint::Refused { .. }
    ));
}

#[test]
fn a_standby_and_a_read_only_database_are_no_servers_for_a_tenant() {
    let primary = PgServer::start();
    let standby = primary.standby();
    primary.database("frozen", "brokkr");
    primary.sql("ALTER DATABASE frozen SET default_transaction_read_only = on");
    let (good, bad, frozen) = (
        primary.url("brokkr", "brokkr"),
        standby.url("brokkr", "brokkr"),
        primary.url("frozen", "brokkr"),
    );
    let servers = probers(&[&good, &bad, &frozen]);
    let (view, _) = wait(&servers, "judged", |view| {
        ready(view, &good)
            && !problem(view, &bad).contains("not been")
            && !problem(view, &frozen).contains("not been")
    });
    assert_problem(&view, &bad, "standby");
    assert_problem(&view, &frozen, "read-only");
}

#[test]
fn a_hung_server_is_noticed_and_so_is_its_return() {
    let server = PgServer::start();
    let url = server.url("brokkr", "brokkr");
    let (servers, before) = ready_probers(&url);
    server.freeze();
    let (view, took) = wait(&servers, "down", |view| !ready(view, &url));
    assert!(took < Duration::from_millis(3500), "{took:?}");
    assert_problem(&view, &url, "took longer");
    server.thaw();
    let (after, took) = wait(&servers, "up", |view| ready(view, &url));
    assert!(took < Duration::from_secs(4), "{took:?}");
    assert_eq!(
        before.servers.keys().collect::<Vec<_>>(),
        after.servers.keys().collect::<Vec<_>>()
    );
}

#[test]
fn a_restarted_server_is_the_same_server_with_its_figures_read_again() {
    let server = PgServer::start();
    let (tcp, unix) = (
        server.url("brokkr", "brokkr"),
        server.unix_url("brokkr", "brokkr"),
    );
    let servers = probers(&[&tcp, &unix]);
    let (before, _) = wait(&servers, "ready", |view| {
        ready(view, &tcp) && ready(view, &unix)
    });
    server.stop();
    let (_, took) = wait(&servers, "down", |view| {
        !ready(view, &tcp) && !ready(view, &unix)
    });
    assert!(took < Duration::from_secs(1), "{took:?}");
    server.resume_service();
    let (after, took) = wait(&servers, "up", |view| {
        ready(view, &tcp) && ready(view, &unix)
    });
    assert!(took < Duration::from_secs(2), "{took:?}");
    assert_eq!(
        before.servers.keys().collect::<Vec<_>>(),
        after.servers.keys().collect::<Vec<_>>()
    );
    assert_eq!(after.servers.len(), 1);
}

#[test]
fn a_superuser_is_warned_of() {
    let server = PgServer::start();
    let url = server.url("brokkr", "postgres");
    let (_servers, view) = ready_probers(&url);
    let warnings = &view.server(&url_of(&url)).unwrap().1.warnings;
    assert!(
        warnings.iter().any(|warning| warning.contains("superuser")),
        "{warnings:?}"
    );
}

#[test]
fn not_permitted_to_read_the_identity_the_address_stands_for_it() {
    let server = PgServer::start();
    server
        .client_as("brokkr", "postgres")
        .batch_execute("REVOKE EXECUTE ON FUNCTION pg_control_system() FROM PUBLIC")
        .unwrap();
    let url = server.url("brokkr", "brokkr");
    let (_servers, view) = ready_probers(&url);
    let (id, seen) = view.server(&url_of(&url)).unwrap();
    assert_eq!(id.as_str(), format!("127.0.0.1:{}", server.port()));
    assert!(
        seen.warnings[0].contains("may not be asked"),
        "{:?}",
        seen.warnings
    );
}

/// A PgBouncer in front of `server`; dropping it ends the process.
struct Bouncer {
    child: std::process::Child,
    port: u16,
    _folder: tempfile::TempDir,
}

impl Bouncer {
    fn start(server: &PgServer, mode: &str) -> Option<Self> {
        Self::of(server, mode, 20)
    }

    /// Starts a pooler that opens at most `size` connections to the server.
    fn of(server: &PgServer, mode: &str, size: u32) -> Option<Self> {
        let Ok(program) = ["/usr/sbin/pgbouncer", "/usr/bin/pgbouncer"]
            .map(std::path::PathBuf::from)
            .into_iter()
            .find(|p| p.exists())
            .ok_or(())
        else {
            assert!(
                !nix::unistd::geteuid().is_root(),
                "pgbouncer is not installed"
            );
            eprintln!("skipped: pgbouncer is not installed");
            return None;
        };
        let folder = tempfile::tempdir().unwrap();
        let port = brokkr_tests::ports::free();
        let ini = folder.path().join("pgbouncer.ini");
        let mut file = std::fs::File::create(&ini).unwrap();
        write!(
            file,
            "[databases]\nbrokkr = host=127.0.0.1 port={} dbname=brokkr\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\nauth_type = any\npool_mode = {mode}\ndefault_pool_size = {size}\n",
            server.port()
        )
        .unwrap();
        let ini_text = std::fs::read_to_string(&ini)
            .unwrap()
            .replace("dbname=brokkr\n", "dbname=brokkr user=brokkr\n");
        std::fs::write(&ini, ini_text).unwrap();
        let mut command = Command::new(program);
        command
            .arg(&ini)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        if let Some((uid, gid)) = brokkr_tests::pg::postgres_user() {
            // PgBouncer refuses to run as root.
            std::os::unix::fs::chown(folder.path(), Some(uid), Some(gid)).unwrap();
            command.uid(uid).gid(gid);
        }
        Some(Self {
            child: command.spawn().unwrap(),
            port,
            _folder: folder,
        })
    }
}

impl Drop for Bouncer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_pooler_that_shares_backends_is_refused_and_one_in_session_mode_is_told_of() {
    let server = PgServer::start();
    for mode in ["transaction", "statement"] {
        let Some(bouncer) = Bouncer::start(&server, mode) else {
            return;
        };
        let url = format!("postgres://brokkr@127.0.0.1:{}/brokkr", bouncer.port);
        let servers = probers(&[&url]);
        let (view, _) = wait(&servers, "refused", |view| {
            matches!(view.endpoint(&url_of(&url)), Endpoint::Refused { .. })
        });
        assert_problem(&view, &url, "pooler");
    }
    let Some(bouncer) = Bouncer::start(&server, "session") else {
        return;
    };
    let url = format!("postgres://brokkr@127.0.0.1:{}/brokkr", bouncer.port);
    let direct = server.url("brokkr", "brokkr");
    let servers = probers(&[&url, &direct]);
    let (view, _) = wait(&servers, "ready", |view| {
        ready(view, &url) && ready(view, &direct)
    });
    assert_eq!(view.servers.len(), 1);
    let (_, seen) = view.server(&url_of(&url)).unwrap();
    assert!(
        seen.pooler && seen.warnings.iter().any(|w| w.contains("session mode")),
        "{:?}",
        seen.warnings
    );
}

/// After a take-over the brokers hold all connections of the pooler but one.
#[test]
fn a_pooler_that_is_full_is_a_server_all_the_same_and_one_that_shares_is_found_out_all_the_same() {
    let server = PgServer::start();
    for (mode, size, shares) in [
        ("session", 2, false),
        ("transaction", 2, true),
        ("transaction", 1, true),
    ] {
        let Some(bouncer) = Bouncer::of(&server, mode, size) else {
            return;
        };
        let url = format!("postgres://brokkr@127.0.0.1:{}/brokkr", bouncer.port);
        // Takes all connections but one, each by an open session or an open transaction.
        let mut taken: Vec<postgres::Client> = Vec::new();
        let connect = || postgres::Client::connect(&url, postgres::NoTls).ok();
        while taken.len() + 1 < size as usize {
            let mut client =
                brokkr_tests::wait::until(Duration::from_secs(10), "the pooler accepts", connect);
            client.batch_execute("BEGIN; SELECT 1").unwrap();
            taken.push(client);
        }
        let servers = probers(&[&url]);
        let (view, _) = wait(&servers, "judged", |view| {
            let refused = matches!(view.endpoint(&url_of(&url)), Endpoint::Refused { .. });
            refused || ready(view, &url)
        });
        assert_eq!(ready(&view, &url), !shares, "{mode} {size}");
    }
}

#[test]
fn the_event_loop_is_made_once_the_kernel_has_resources_unless_no_caller_waits() {
    let (wanted, wants) = watch::channel(Wanted::new());
    let mut left = 1;
    let made = made_at_last(&wants, || match std::mem::take(&mut left) {
        0 => event_loop(),
        _ => Err(io::Error::from_raw_os_error(24)),
    });
    assert!(made.is_some());
    drop(wanted);
    let none = made_at_last(&wants, || Err(io::Error::from_raw_os_error(24)));
    assert!(none.is_none());
}
