//! Faults of PostgreSQL. Each function returns when the fault is over.

use crate::pg::PgServer;
use crate::wait::until;
use std::thread::sleep;
use std::time::{Duration, Instant};

/// Stops the server as an operator does, and starts it again.
pub fn stopped(server: &PgServer, lasts: Duration) {
    server.stop();
    sleep(lasts);
    server.resume_service();
}

/// Kills the server and starts it again, so that it recovers.
pub fn crashed(server: &PgServer, lasts: Duration) {
    server.crash();
    sleep(lasts);
    server.resume_service();
}

/// Freezes the server, and thaws it again.
pub fn frozen(server: &PgServer, lasts: Duration) {
    server.freeze();
    sleep(lasts);
    server.thaw();
}

/// Terminates every session of brokers and supervisor again and again, and returns their number.
pub fn sessions_ended(server: &PgServer, lasts: Duration) -> i64 {
    let began = Instant::now();
    let mut client = server.client();
    let mut ended = 0;
    loop {
        let row = client.query_one(
            "SELECT count(*) FILTER (WHERE pg_terminate_backend(pid)) FROM pg_stat_activity \
             WHERE application_name LIKE 'brokkr:%'",
            &[],
        );
        ended += row.unwrap().get::<_, i64>(0);
        if began.elapsed() >= lasts {
            return ended;
        }
        sleep(Duration::from_millis(200));
    }
}

/// Makes the server refuse writes in old and new sessions, and then allows them again.
pub fn read_only(server: &PgServer, lasts: Duration) {
    set_read_only(server, true);
    sleep(lasts);
    set_read_only(server, false);
}

fn set_read_only(server: &PgServer, on: bool) {
    let mut client = server.client();
    let value = if on { "on" } else { "off" };
    // Separate statements, because ALTER SYSTEM refuses to run in a transaction block.
    for statement in [
        "SET default_transaction_read_only = off".to_owned(),
        format!("ALTER SYSTEM SET default_transaction_read_only = {value}"),
        "SELECT pg_reload_conf()".to_owned(),
    ] {
        client.batch_execute(&statement).unwrap();
    }
    until(
        Duration::from_secs(20),
        format!("new sessions to have default_transaction_read_only = {value}"),
        || {
            let mut fresh = server.try_client("brokkr", "postgres").ok()?;
            let row = fresh.query_one("SHOW default_transaction_read_only", &[]);
            (row.ok()?.get::<_, String>(0) == value).then_some(())
        },
    );
}

/// Takes every connection that is free or becomes free, and returns their number.
pub fn slots_taken(server: &PgServer, lasts: Duration) -> usize {
    let began = Instant::now();
    let mut taken = Vec::new();
    while began.elapsed() < lasts {
        // Not as superuser, because the reserved connections stay for operators.
        match server.try_client("brokkr", "brokkr") {
            Ok(client) => taken.push(client),
            Err(_) => sleep(Duration::from_millis(20)),
        }
    }
    taken.len()
}
