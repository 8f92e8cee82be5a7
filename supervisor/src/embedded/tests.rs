#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]
//! A real server in temporary folders.

use super::{Embedded, blocking, connect, url};
use crate::config::{self, Supervisor};
use crate::instance::postgres::Server;
use brokkr_tenant::DatabaseUrl;
use brokkr_tests::Place;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

fn configured(place: &Place) -> Supervisor {
    let file = place.join("supervisor.toml");
    std::fs::write(
        &file,
        "state_dir = \"state\"\nruntime_dir = \"run\"\n[postgres]\nembedded = true\nmax_connections = 40\n",
    )
    .unwrap();
    let config = config::load(&file).unwrap();
    for folder in [place.path(), &config.state_dir, &config.runtime_dir] {
        std::fs::create_dir_all(folder).unwrap();
        std::fs::set_permissions(folder, std::os::unix::fs::PermissionsExt::from_mode(0o755))
            .unwrap();
    }
    config
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

async fn pid(config: &Supervisor) -> i32 {
    let server = Server::adopt(&config.postgres.data_dir, None)
        .unwrap()
        .expect("a server");
    server.pid()
}

#[tokio::test]
async fn it_is_made_started_kept_adopted_and_stopped() {
    let place = Place::new();
    let config = configured(&place);
    let embedded = Embedded::start(&config, BTreeMap::new()).await.unwrap();
    assert_eq!(*embedded.url(), url(&config).unwrap());
    let setting = "SELECT concat_ws(' ', current_setting('max_connections'), current_setting('listen_addresses'), session_user, \
                   (SELECT rolsuper FROM pg_roles WHERE rolname = session_user)::text, current_database())";
    assert_eq!(
        asked(embedded.url(), setting).await.unwrap(),
        "40  brokkr false brokkr"
    );
    asked(
        embedded.url(),
        "SELECT 'x' FROM (SELECT set_config('a.b', '', true)) AS s",
    )
    .await
    .unwrap();

    // Killed: it is started again.
    let before = pid(&config).await;
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(before),
        nix::sys::signal::Signal::SIGKILL,
    )
    .unwrap();
    let began = Instant::now();
    while asked(embedded.url(), "SELECT 'up'").await.is_err() || pid(&config).await == before {
        assert!(
            began.elapsed() < Duration::from_secs(20),
            "not started again"
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }

    // Left by its keeper: the next one adopts it.
    let before = pid(&config).await;
    embedded.task.abort();
    let embedded = Embedded::start(&config, BTreeMap::new()).await.unwrap();
    assert_eq!(pid(&config).await, before);
    let stopping = embedded.url().clone();
    embedded.stop().await;
    assert!(asked(&stopping, "SELECT 'up'").await.is_err());
    assert!(
        Server::adopt(&config.postgres.data_dir, None)
            .unwrap()
            .is_none()
    );
}

#[tokio::test]
async fn it_lets_nobody_else_in() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("skipped: needs root to be somebody else");
        return;
    }
    let place = Place::new();
    let config = configured(&place);
    let embedded = Embedded::start(&config, BTreeMap::new()).await.unwrap();
    let sockets = super::folder::socket_folder(&config.runtime_dir).unwrap();
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
    // Even with the folder open, the kernel says who is calling.
    std::fs::set_permissions(
        &sockets,
        std::os::unix::fs::PermissionsExt::from_mode(0o755),
    )
    .unwrap();
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
    let place = Place::new();
    let config = configured(&place);
    Embedded::start(&config, BTreeMap::new())
        .await
        .unwrap()
        .stop()
        .await;
    std::fs::write(
        config.postgres.data_dir.join("postgresql.conf"),
        "nonsense = on\n",
    )
    .unwrap();
    let error = Embedded::start(&config, BTreeMap::new()).await.unwrap_err();
    assert!(error.contains("nonsense"), "{error}");
}
