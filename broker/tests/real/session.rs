//! Tests of session settings: harmful settings of a role or database are overridden, the operator's own settings stay.

use std::time::Duration;

use brokkr_broker::db::start::{StartError, start};
use brokkr_broker::db::{Conn, Db, DbError, Sql};
use brokkr_tests::{PgServer, TestDir};

use crate::{event_loop, options, plan};

/// Settings of a role, each with its value and with the value in the broker's sessions.
const HOSTILE: [(&str, &str, &str); 17] = [
    (
        "default_transaction_isolation",
        "repeatable read",
        "read committed",
    ),
    ("default_transaction_deferrable", "on", "off"),
    ("lock_timeout", "1ms", "0"),
    ("idle_session_timeout", "10s", "0"),
    ("statement_timeout", "1ms", "30s"),
    ("idle_in_transaction_session_timeout", "1s", "30s"),
    ("standard_conforming_strings", "off", "on"),
    ("transform_null_equals", "on", "off"),
    ("array_nulls", "off", "on"),
    ("DateStyle", "German, DMY", "ISO, MDY"),
    ("IntervalStyle", "iso_8601", "postgres"),
    ("TimeZone", "Asia/Tokyo", "UTC"),
    ("client_encoding", "LATIN1", "UTF8"),
    ("bytea_output", "escape", "hex"),
    ("extra_float_digits", "-15", "1"),
    ("row_security", "on", "off"),
    ("synchronous_commit", "off", "on"),
];

fn role_sets(server: &PgServer, settings: &[(&str, &str)]) {
    for (name, value) in settings {
        server.sql(&format!("ALTER ROLE brokkr SET {name} = '{value}'"));
    }
}

async fn shown(db: &Db, name: &'static str) -> String {
    let show = move |conn: &mut Conn| -> Result<String, DbError> {
        Ok(conn
            .query_one("SELECT current_setting($1)", &[&name])?
            .get(0))
    };
    db.run(show).await.unwrap()
}

#[test]
fn a_role_cannot_change_what_the_broker_rests_on() {
    let (server, place) = (PgServer::start(), TestDir::new());
    role_sets(&server, &HOSTILE.map(|(name, hostile, _)| (name, hostile)));
    role_sets(&server, &[("search_path", "public")]);
    let version: i32 = server
        .client()
        .query_one("SELECT current_setting('server_version_num')::int", &[])
        .unwrap()
        .get(0);
    if version >= 170_000 {
        role_sets(&server, &[("transaction_timeout", "1s")]);
    }
    start(&plan(&server, "tenant_pool", &place), &|_| {}).unwrap();
    let db = Db::new(options(&server, "tenant_pool")).unwrap();
    event_loop().block_on(async {
        for (name, _, ours) in HOSTILE {
            assert_eq!(shown(&db, name).await, ours, "{name}");
        }

        // All write one row at once: no writer gets a serialisation error.
        let mut writers = tokio::task::JoinSet::new();
        for _ in 0..200 {
            let db = db.clone();
            writers.spawn(async move {
                db.run(|conn| {
                    conn.transaction(|tx| -> Result<(), DbError> {
                        tx.query("SELECT count(*) FROM agents", &[])?;
                        tx.query("SELECT pg_sleep(0.002)", &[])?;
                        tx.execute(
                            "UPDATE brokkr_meta SET wants_events = NOT wants_events",
                            &[],
                        )?;
                        Ok(())
                    })
                })
                .await
            });
        }
        while let Some(written) = writers.join_next().await {
            written.unwrap().unwrap();
        }
    });
}

#[test]
fn what_is_the_operators_stays_the_operators() {
    let server = PgServer::start();
    role_sets(
        &server,
        &[
            ("synchronous_commit", "local"),
            ("work_mem", "8MB"),
            ("enable_seqscan", "off"),
        ],
    );
    let db = Db::new(options(&server, "tenant_pool")).unwrap();
    event_loop().block_on(async {
        assert_eq!(shown(&db, "synchronous_commit").await, "local");
        assert_eq!(shown(&db, "work_mem").await, "8MB");
        assert_eq!(shown(&db, "enable_seqscan").await, "off");
    });
}

#[test]
fn sessions_without_triggers_and_foreign_keys_are_refused() {
    let (server, place) = (PgServer::start(), TestDir::new());
    role_sets(&server, &[("session_replication_role", "replica")]);
    let Err(StartError::Configuration(reason)) =
        start(&plan(&server, "tenant_pool", &place), &|_| {})
    else {
        panic!("it started")
    };
    assert!(reason.contains("session_replication_role"), "{reason}");
    let mut options = options(&server, "tenant_pool");
    options.acquire_timeout = Duration::from_secs(2);
    let db = Db::new(options).unwrap();
    let refused = event_loop()
        .block_on(db.run(Conn::backend_pid))
        .unwrap_err();
    assert!(
        refused.to_string().contains("session_replication_role"),
        "{refused}"
    );
}
