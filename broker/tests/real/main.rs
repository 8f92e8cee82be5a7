//! Tests of the broker against a real PostgreSQL server of their own: its pool, its start, its sockets.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

mod pool;
mod retention;
mod serving;
mod session;
mod start;
mod supervised;
mod unfit;

use std::time::Duration;

use brokkr_broker::db::start::{AdminPakFile, Plan};
use brokkr_broker::db::{Db, Options};
use brokkr_broker::pak::PakFormat;
use brokkr_broker::webhook::key::KeySource;
use brokkr_tenant::{DatabaseUrl, SchemaName};
use brokkr_tests::{PgServer, TestDir};

/// Returns a one-threaded event loop, as the broker has.
fn event_loop() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
}

fn options(server: &PgServer, schema: &str) -> Options {
    Options {
        url: DatabaseUrl::parse(&server.url("brokkr", "brokkr")).unwrap(),
        schema: SchemaName::parse(schema).unwrap(),
        application_name: "brokkr:test".to_owned(),
        pool_size: 20,
        connections: 20,
        acquire_timeout: Duration::from_secs(2),
        max_working: 8,
        statement_timeout: Duration::from_secs(30),
        idle_in_transaction_timeout: Duration::from_secs(30),
        deadline: Duration::from_secs(20),
    }
}

fn pool(server: &PgServer, change: impl FnOnce(&mut Options)) -> Db {
    let mut options = options(server, "tenant_pool");
    change(&mut options);
    Db::new(options).unwrap()
}

fn plan(server: &PgServer, schema: &str, place: &TestDir) -> Plan {
    Plan {
        url: DatabaseUrl::parse(&server.url("brokkr", "brokkr")).unwrap(),
        schema: SchemaName::parse(schema).unwrap(),
        application_name: "brokkr:test".to_owned(),
        pak_format: PakFormat::default(),
        pak_hash: None,
        key_file: AdminPakFile::in_folder(&place.join("state")),
        webhook_key: KeySource::new(None, &place.join("state")),
        patience: Duration::from_secs(50),
    }
}

/// Runs SQL as superuser on a separate thread, because the blocking client must not run on the event loop.
fn sql(server: &PgServer, statements: &str) {
    std::thread::scope(|scope| scope.spawn(|| server.sql(statements)).join()).unwrap();
}

/// Runs work, such as starting or stopping the server, on a separate thread.
fn aside(work: impl FnOnce() + Send) {
    std::thread::scope(|scope| scope.spawn(work).join()).unwrap();
}
