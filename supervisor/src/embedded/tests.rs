#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]
//! Tests with a real server in temporary folders.

use super::{Embedded, EmbeddedStatus, blocking, connect, url};
use crate::config::{self, SupervisorConfig};
use crate::instance::postgres::{PostgresProcess, remains};
use brokkr_tenant::DatabaseUrl;
use brokkr_tests::TestDir;
use nix::sys::signal::Signal;
use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Time limit for each wait, generous because the machine may be busy.
const BOUND: Duration = Duration::from_secs(60);

/// Starts or adopts the server; `brokers` says whether brokers already run.
async fn start(config: &Arc<SupervisorConfig>, brokers: bool) -> Result<Embedded, String> {
    Embedded::start(config, BTreeMap::new(), brokers).await
}

/// Lets every user enter and read the folder, which is created if it is missing.
fn open(folder: &Path) {
    std::fs::create_dir_all(folder).unwrap();
    std::fs::set_permissions(folder, PermissionsExt::from_mode(0o755)).unwrap();
}

/// Starts or adopts the server, and waits until tenants can connect.
async fn up(config: &Arc<SupervisorConfig>) -> Embedded {
    let embedded = start(config, false).await.unwrap();
    is_up(&embedded).await;
    embedded
}

async fn is_up(embedded: &Embedded) {
    let began = Instant::now();
    while let Err(error) = asked(embedded.url().unwrap(), "SELECT 'up'").await {
        assert!(began.elapsed() < BOUND, "{error}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Waits until the reported problem is `wanted`.
async fn says(remark: &mut EmbeddedStatus, wanted: impl Fn(Option<&str>) -> bool) {
    let wait = async {
        while !wanted(remark.problem().as_deref()) {
            remark.changed().await;
        }
    };
    if tokio::time::timeout(BOUND, wait).await.is_err() {
        panic!("it is said {:?}", remark.problem());
    }
}

fn configured(place: &TestDir) -> Arc<SupervisorConfig> {
    let file = place.join("supervisor.toml");
    std::fs::write(
        &file,
        "state_dir = \"state\"\nruntime_dir = \"run\"\n[postgres]\nembedded = true\nmax_connections = 40\n",
    )
    .unwrap();
    let config = config::load(&file).unwrap();
    for folder in [place.path(), &config.state_dir, &config.runtime_dir] {
        open(folder);
    }
    Arc::new(config)
}

async fn asked(url: &DatabaseUrl, sql: &'static str) -> Result<String, String> {
    let url = url.clone();
    blocking(move || {
        let mut client = connect(&url)?;
        client
            .query_one(sql, &[])
            .map(|row| row.get(0))
            .map_err(|error| error.to_string())
    })
    .await
}

async fn pid(config: &SupervisorConfig) -> i32 {
    let server = PostgresProcess::adopt(&config.postgres.data_dir, None)
        .unwrap()
        .expect("a server");
    server.pid()
}

#[tokio::test]
async fn it_is_made_started_kept_adopted_and_stopped() {
    let place = TestDir::new();
    let config = configured(&place);
    let embedded = up(&config).await;
    assert_eq!(*embedded.url().unwrap(), url(&config).unwrap());
    let setting = "SELECT concat_ws(' ', current_setting('max_connections'), current_setting('listen_addresses'), session_user, \
                   (SELECT rolsuper FROM pg_roles WHERE rolname = session_user)::text, current_database())";
    assert_eq!(
        asked(embedded.url().unwrap(), setting).await.unwrap(),
        "40  brokkr false brokkr"
    );
    asked(
        embedded.url().unwrap(),
        "SELECT 'x' FROM (SELECT set_config('a.b', '', true)) AS s",
    )
    .await
    .unwrap();

    // After a kill the server is started again.
    let before = pid(&config).await;
    signal(before, Signal::SIGKILL);
    let began = Instant::now();
    while asked(embedded.url().unwrap(), "SELECT 'up'").await.is_err()
        || pid(&config).await == before
    {
        assert!(began.elapsed() < BOUND, "not started again");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }

    // A server left by its keeper is adopted by the next keeper.
    let before = pid(&config).await;
    embedded.task.abort();
    let embedded = up(&config).await;
    assert_eq!(pid(&config).await, before);
    let stopping = embedded.url().unwrap().clone();
    embedded.stop().await;
    assert!(asked(&stopping, "SELECT 'up'").await.is_err());
    assert!(
        PostgresProcess::adopt(&config.postgres.data_dir, None)
            .unwrap()
            .is_none()
    );
}

#[tokio::test]
async fn another_user_cannot_connect() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("skipped: needs root to become another user");
        return;
    }
    let place = TestDir::new();
    let config = configured(&place);
    let embedded = up(&config).await;
    let sockets = super::ownership::socket_folder(&config.runtime_dir).unwrap();
    let stranger = |name: &str| {
        let mut psql = std::process::Command::new("psql");
        std::os::unix::process::CommandExt::uid(&mut psql, 65534);
        std::os::unix::process::CommandExt::gid(&mut psql, 65534);
        let output = psql
            .args([
                "-h",
                sockets.to_str().unwrap(),
                "-U",
                name,
                "-d",
                "brokkr",
                "-c",
                "SELECT 1",
            ])
            .current_dir("/")
            .output()
            .unwrap();
        (
            output.status.success(),
            String::from_utf8_lossy(&output.stderr).into_owned(),
        )
    };
    let (entered, said) = stranger("brokkr");
    assert!(!entered && said.contains("Permission denied"), "{said}");
    // With the folder open, the kernel's peer credentials still keep the other user out.
    open(&sockets);
    for name in ["brokkr", "postgres"] {
        let (entered, said) = stranger(name);
        assert!(
            !entered && said.contains("Peer authentication failed"),
            "{said}"
        );
    }
    embedded.stop().await;
}

#[tokio::test]
async fn what_postgresql_says_is_in_the_error_when_it_does_not_start() {
    let place = TestDir::new();
    let config = configured(&place);
    up(&config).await.stop().await;
    let file = config.postgres.data_dir.join("postgresql.conf");
    let good = std::fs::read(&file).unwrap();
    std::fs::write(&file, "nonsense = on\n").unwrap();
    // An existing data folder is waited for, so a failing server is no reason to give up.
    let embedded = start(&config, false).await.unwrap();
    let mut remark = embedded.remark();
    says(&mut remark, |said| {
        said.is_some_and(|said| said.contains("nonsense") && said.contains("trying again"))
    })
    .await;
    std::fs::write(&file, good).unwrap();
    is_up(&embedded).await;
    says(&mut remark, |said| said.is_none()).await;
    embedded.stop().await;
}

#[tokio::test]
async fn a_first_start_that_fails_says_why_unless_brokers_wait_for_it() {
    let place = TestDir::new();
    let mut config = (*configured(&place)).clone();
    config.postgres.bin_dir = Some(place.join("nothing"));
    let config = Arc::new(config);
    let error = start(&config, false).await.unwrap_err();
    assert!(error.contains("bin_dir"), "{error}");
    let embedded = start(&config, true).await.unwrap();
    says(&mut embedded.remark(), |said| {
        said.is_some_and(|said| said.contains("bin_dir"))
    })
    .await;
    embedded.stop().await;
}

#[tokio::test]
async fn a_paused_server_is_kept_and_one_that_listens_elsewhere_is_replaced() {
    let place = TestDir::new();
    let config = configured(&place);
    let embedded = up(&config).await;
    let before = pid(&config).await;
    embedded.task.abort();
    signal(before, Signal::SIGSTOP);
    let embedded = start(&config, true).await.unwrap();
    let mut remark = embedded.remark();
    says(&mut remark, |said| {
        said.is_some_and(|said| said.contains("does not answer"))
    })
    .await;
    signal(before, Signal::SIGCONT);
    says(&mut remark, |said| said.is_none()).await;
    is_up(&embedded).await;
    assert_eq!(pid(&config).await, before);

    // The data folder is the same, but the address differs.
    embedded.task.abort();
    let mut moved = (*config).clone();
    moved.runtime_dir = place.join("other");
    open(&moved.runtime_dir);
    let moved = Arc::new(moved);
    let embedded = up(&moved).await;
    assert_ne!(pid(&moved).await, before);
    embedded.stop().await;
}

#[tokio::test]
async fn what_a_killed_server_left_is_waited_for() {
    let place = TestDir::new();
    let config = configured(&place);
    let embedded = up(&config).await;
    let before = pid(&config).await;
    // A stopped backend does not notice the end of its postmaster, and no new server can start before it has gone.
    let (done, wait) = std::sync::mpsc::channel::<()>();
    let (connected, is_connected) = tokio::sync::oneshot::channel();
    let url = embedded.url().unwrap().clone();
    let client = std::thread::spawn(move || {
        let client = connect(&url).unwrap();
        connected.send(()).unwrap();
        wait.recv().unwrap();
        drop(client);
    });
    is_connected.await.unwrap();
    let data = config.postgres.data_dir.clone();
    let backend = remains(&data)
        .into_iter()
        .find(|pid| is_backend(*pid))
        .unwrap();
    signal(backend, Signal::SIGSTOP);
    embedded.task.abort();
    signal(before, Signal::SIGKILL);
    // The postmaster is this process's child, so the test must reap it.
    let postmaster = nix::unistd::Pid::from_raw(before);
    blocking(move || nix::sys::wait::waitpid(postmaster, None).map_err(|e| e.to_string()))
        .await
        .unwrap();
    let told = data.join("pg_hba.conf");
    std::fs::remove_file(&told).unwrap();
    let embedded = start(&config, true).await.unwrap();
    let began = Instant::now();
    while !told.exists() {
        assert!(began.elapsed() < BOUND, "nothing is made ready");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    // All is ready for a start, and the server waits only for this backend.
    signal(backend, Signal::SIGCONT);
    let remark = embedded.remark();
    while asked(embedded.url().unwrap(), "SELECT 'up'").await.is_err() {
        assert_eq!(remark.problem(), None);
        assert!(began.elapsed() < BOUND, "not started");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_ne!(pid(&config).await, before);
    done.send(()).unwrap();
    client.join().unwrap();
    embedded.stop().await;
}

fn signal(pid: i32, signal: Signal) {
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), signal).unwrap();
}

fn is_backend(pid: i32) -> bool {
    let line = std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    line.contains("brokkr brokkr [local]")
}
