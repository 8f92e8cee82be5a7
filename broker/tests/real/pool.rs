//! Tests of the pool's guarantees, observed from the server.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use brokkr_broker::db::{Conn, Db, DbError, Sql};
use brokkr_tenant::instance_protocol::ServerOutage;
use brokkr_tests::pg::Options;
use brokkr_tests::{PgServer, until};

use crate::{aside, event_loop, pool, sql};

type Result<T = ()> = std::result::Result<T, DbError>;

fn server() -> PgServer {
    let server = PgServer::start();
    sql(&server, "CREATE SCHEMA tenant_pool AUTHORIZATION brokkr");
    server
}

async fn pid(db: &Db) -> i32 {
    db.run(Conn::backend_pid).await.unwrap()
}

#[test]
fn requests_one_after_another_share_one_connection_and_a_burst_grows_slowly() {
    let server = server();
    event_loop().block_on(async {
        let db = pool(&server, |_| {});
        assert_eq!(
            db.figures().held,
            0,
            "nothing is opened before it is needed"
        );
        let mut pids = HashSet::new();
        for _ in 0..50 {
            pids.insert(pid(&db).await);
        }
        assert_eq!((pids.len(), db.figures().held), (1, 1));

        // Send 200 short requests at once: requests that wait 10 ms open another connection, one at a time, at most
        // eight.
        let began = Instant::now();
        let mut burst = tokio::task::JoinSet::new();
        for _ in 0..200 {
            let db = db.clone();
            burst.spawn(async move {
                let work = |conn: &mut Conn| -> Result<i32> {
                    conn.query("SELECT pg_sleep(0.005)", &[])?;
                    conn.backend_pid()
                };
                db.run(work).await.unwrap()
            });
        }
        let mut pids = HashSet::new();
        while let Some(pid) = burst.join_next().await {
            pids.insert(pid.unwrap());
        }
        let most = 1 + began.elapsed().as_millis() / 10;
        assert!(
            pids.len() > 1 && pids.len() <= 8 && pids.len() as u128 <= most,
            "{} in {most}",
            pids.len()
        );
        assert_eq!(db.figures().working, 0);
    });
}

#[test]
fn every_checkout_sets_the_tenants_path_and_nothing_ever_sets_another() {
    let server = PgServer::with(
        Options::new()
            .set("log_statement", "all")
            .set("log_min_duration_statement", "-1"),
    );
    sql(&server, "CREATE SCHEMA tenant_pool AUTHORIZATION brokkr");
    event_loop().block_on(async {
        let db = pool(&server, |_| {});
        for _ in 0..25 {
            let path = db
                .run(|conn| -> Result<String> {
                    conn.transaction(|tx| -> Result<String> {
                        Ok(tx.query_one("SHOW search_path", &[])?.get(0))
                    })
                })
                .await
                .unwrap();
            assert_eq!(path, "tenant_pool, pg_temp");
        }
    });
    let log = server.log();
    let set: Vec<&str> = log
        .lines()
        .filter(|line| line.contains("search_path") && !line.contains("SHOW"))
        .collect();
    assert_eq!(set.len(), 25, "{set:#?}");
    assert!(
        set.iter()
            .all(|line| line.ends_with("SET search_path TO \"tenant_pool\", pg_temp")),
        "{set:#?}"
    );
}

#[test]
fn a_statement_is_prepared_once_per_connection() {
    let server = PgServer::with(Options::new().set("log_min_duration_statement", "0"));
    sql(&server, "CREATE SCHEMA tenant_pool AUTHORIZATION brokkr");
    event_loop().block_on(async {
        let db = pool(&server, |_| {});
        for _ in 0..10 {
            db.run(|conn| conn.query("SELECT 'prepared once'", &[]))
                .await
                .unwrap();
        }
    });
    let log = server.log();
    let count = |step: &str| {
        log.lines()
            .filter(|l| l.contains(step) && l.contains("SELECT 'prepared once'"))
            .count()
    };
    assert_eq!((count("parse s"), count("execute s")), (1, 10), "{log}");
}

#[test]
fn a_transaction_commits_on_ok_and_leaves_nothing_on_error_or_panic() {
    let server = server();
    sql(
        &server,
        "CREATE TABLE tenant_pool.t (n int); GRANT ALL ON tenant_pool.t TO brokkr",
    );
    event_loop().block_on(async {
        let db = pool(&server, |_| {});
        let insert =
            |tx: &mut brokkr_broker::db::Tx<'_>| tx.execute("INSERT INTO t VALUES (1)", &[]);
        let count = || {
            db.run(|conn| -> Result<i64> {
                Ok(conn.query_one("SELECT count(*) FROM t", &[])?.get(0))
            })
        };

        db.run(move |conn| conn.transaction(insert)).await.unwrap();
        assert_eq!(count().await.unwrap(), 1);

        let first = pid(&db).await;
        let failed = db
            .run(move |conn| -> Result {
                conn.transaction(|tx| -> Result {
                    insert(tx)?;
                    tx.query("SELECT 1/0", &[])?;
                    Ok(())
                })
            })
            .await;
        assert_eq!(failed.unwrap_err().sqlstate().unwrap().code(), "22012");
        assert_eq!(count().await.unwrap(), 1);
        assert_eq!(
            pid(&db).await,
            first,
            "an error of the statement's own costs no connection"
        );

        let panicked = db
            .run(move |conn| -> Result {
                conn.transaction(|tx| -> Result {
                    insert(tx)?;
                    panic!("as handlers should not")
                })
            })
            .await;
        assert!(matches!(panicked, Err(DbError::Panicked)));
        assert_eq!(count().await.unwrap(), 1);
        assert_ne!(
            pid(&db).await,
            first,
            "the connection it panicked on is gone"
        );
    });
}

#[test]
fn texts_that_would_leave_a_transaction_open_are_refused() {
    let server = server();
    event_loop().block_on(async {
        let db = pool(&server, |_| {});
        for sql in ["BEGIN", "SET search_path TO public", "ROLLBACK"] {
            let refused = db.run(move |conn| conn.execute(sql, &[])).await;
            assert!(matches!(refused, Err(DbError::Refused(_))), "{sql}");
        }
    });
}

#[test]
fn a_connection_the_server_has_ended_is_replaced_before_the_next_request_notices() {
    let server = server();
    event_loop().block_on(async {
        let db = pool(&server, |_| {});
        let first = pid(&db).await;
        sql(&server, &format!("SELECT pg_terminate_backend({first})"));
        assert_ne!(pid(&db).await, first);
        assert_eq!(db.figures().held, 1);

        // A session that ends during its work loses that request, but not the next.
        let second = pid(&db).await;
        let lost = db
            .run(|conn| conn.query("SELECT pg_terminate_backend(pg_backend_pid())", &[]))
            .await;
        assert!(lost.unwrap_err().is_unavailable());
        assert_ne!(pid(&db).await, second);
    });
}

#[test]
fn a_server_that_became_read_only_serves_reads_until_a_writable_server_returns() {
    let server = server();
    sql(
        &server,
        "CREATE TABLE tenant_pool.t (n int); GRANT ALL ON tenant_pool.t TO brokkr",
    );
    event_loop().block_on(async {
        let db = pool(&server, |_| {});
        let first = pid(&db).await;
        let refused = db
            .run(|conn| -> Result<u64> {
                conn.query(
                    "SELECT set_config('default_transaction_read_only', 'on', false)",
                    &[],
                )?;
                conn.execute("INSERT INTO t VALUES (1)", &[])
            })
            .await;
        assert!(refused.unwrap_err().is_unavailable());
        // New sessions take writes: the pool opens a new session by itself, and closes the connection that refused
        // writes.
        let deadline = Instant::now() + Duration::from_secs(10);
        while pid(&db).await == first {
            assert!(Instant::now() < deadline, "still on the old connection");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let write =
            || db.run(|conn| -> Result<u64> { conn.execute("INSERT INTO t VALUES (1)", &[]) });
        assert_eq!(write().await.unwrap(), 1);
        assert_eq!((db.figures().held, db.unwritable()), (1, None));

        // No session takes writes: the connections stay and serve reads, even when writes fail.
        let held = pid(&db).await;
        let switch = |how: &str| {
            sql(&server, &format!("ALTER SYSTEM {how}"));
            sql(&server, "SELECT pg_reload_conf()");
        };
        switch("SET default_transaction_read_only = on");
        let mut refused = 0;
        while refused < 30 {
            assert!(
                Instant::now() < deadline + Duration::from_secs(20),
                "writes go on"
            );
            refused += u32::from(write().await.is_err_and(|error| error.is_unavailable()));
            assert_eq!(pid(&db).await, held);
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        switch("RESET default_transaction_read_only");
        let deadline = Instant::now() + Duration::from_secs(10);
        while write().await.is_err() {
            assert!(Instant::now() < deadline, "it takes writes again");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
}

#[test]
fn a_table_changed_under_a_prepared_statement_is_read_again_on_a_new_connection() {
    let server = server();
    sql(
        &server,
        "CREATE TABLE tenant_pool.t (n int); GRANT ALL ON tenant_pool.t TO brokkr",
    );
    sql(&server, "INSERT INTO tenant_pool.t VALUES (7)");
    event_loop().block_on(async {
        let db = pool(&server, |_| {});
        // Use a star, which stores must not do, because its result easily changes shape.
        let read = || {
            db.run(|conn| -> Result<usize> {
                Ok(conn.query_one("SELECT * FROM t", &[])?.columns().len())
            })
        };
        assert_eq!(read().await.unwrap(), 1);
        let first = pid(&db).await;
        sql(&server, "ALTER TABLE tenant_pool.t ADD COLUMN m int");
        assert_eq!(read().await.unwrap(), 2);
        assert_ne!(pid(&db).await, first);
        assert_eq!(
            db.figures().held,
            1,
            "reconnecting does not open a second one"
        );

        // Inside a transaction the statement cannot be repeated; the next request finds a fresh connection.
        sql(&server, "ALTER TABLE tenant_pool.t ADD COLUMN o int");
        let in_transaction = db
            .run(|conn| {
                conn.transaction(|tx| -> Result<usize> {
                    Ok(tx.query("SELECT * FROM t", &[])?.len())
                })
            })
            .await;
        assert_eq!(
            in_transaction.unwrap_err().sqlstate().unwrap().code(),
            "0A000"
        );
        assert_eq!(read().await.unwrap(), 3);
    });
}

#[test]
fn a_pool_that_is_all_taken_answers_in_time_and_the_cap_can_be_moved() {
    let server = server();
    event_loop().block_on(async {
        let db = pool(&server, |options| {
            options.connections = 2;
            options.acquire_timeout = Duration::from_millis(300);
        });
        let sleep =
            || db.run(|conn| -> Result { conn.query("SELECT pg_sleep(1.5)", &[]).map(drop) });
        let began = Instant::now();
        let (a, b, c) = tokio::join!(sleep(), sleep(), sleep());
        let refused = [a, b, c]
            .into_iter()
            .filter(|r| r.as_ref().is_err_and(DbError::is_unavailable))
            .count();
        assert_eq!(refused, 1);
        assert!(began.elapsed() < Duration::from_secs(3));
        assert_eq!(db.figures().held, 2);

        let (a, b, c) = (db.set_cap(3).await, sleep(), sleep());
        assert_eq!(a.connections, 3);
        let (b, c, d) = tokio::join!(b, c, sleep());
        assert!(b.is_ok() && c.is_ok() && d.is_ok());
        assert_eq!(db.figures().held, 3);

        assert_eq!(
            db.set_cap(1).await.held,
            1,
            "idle ones beyond the cap are closed at once"
        );
        assert_eq!(
            db.set_cap(1000).await.connections,
            20,
            "never beyond the pool"
        );
    });
}

#[test]
fn a_draining_pool_closes_what_is_idle_and_still_serves() {
    let server = server();
    event_loop().block_on(async {
        let db = pool(&server, |_| {});
        pid(&db).await;
        let busy = tokio::spawn({
            let db = db.clone();
            async move {
                db.run(|conn| conn.query("SELECT pg_sleep(0.5)", &[]))
                    .await
                    .is_ok()
            }
        });
        tokio::task::yield_now().await;
        db.drain().await;
        assert!(db.figures().held <= 1);
        assert!(busy.await.unwrap());
        let mut held = db.held();
        held.wait_for(|held| *held == 0).await.unwrap();
        pid(&db).await;
        assert_eq!(db.figures().held, 0, "not kept");
    });
}

#[test]
fn an_idle_pool_ends_with_no_connection() {
    let server = server();
    let loop_ = event_loop();
    let db = pool(&server, |_| {});
    loop_.block_on(pid(&db));
    assert_eq!(db.figures().held, 1);
    // The pool looks every 30 s for connections idle for 30 s.
    until(
        Duration::from_secs(70),
        "the idle connection to be closed",
        || (db.figures().held == 0).then_some(()),
    );
    until(Duration::from_secs(5), "the server to have seen it", || {
        server.sessions_of_ours().is_empty().then_some(())
    });
}

#[test]
fn a_hung_server_costs_the_acquire_timeout_and_a_dead_one_less() {
    let server = server();
    event_loop().block_on(async {
        let db = pool(&server, |options| {
            options.acquire_timeout = Duration::from_millis(500)
        });
        pid(&db).await;
        aside(|| server.freeze());
        for _ in 0..12 {
            let began = Instant::now();
            let failed = db.run(|conn| conn.query("SELECT 1", &[])).await;
            assert!(failed.unwrap_err().is_unavailable());
            assert!(
                began.elapsed() < Duration::from_millis(900),
                "{:?}",
                began.elapsed()
            );
        }
        aside(|| server.thaw());
        let began = Instant::now();
        while db.run(|conn| conn.query("SELECT 1", &[])).await.is_err() {
            assert!(began.elapsed() < Duration::from_secs(5));
        }
        aside(|| server.stop());
        let began = Instant::now();
        assert!(
            db.run(|conn| conn.query("SELECT 1", &[]))
                .await
                .unwrap_err()
                .is_unavailable()
        );
        assert!(began.elapsed() < Duration::from_secs(1));
        aside(|| server.resume_service());
        let began = Instant::now();
        while db.run(|conn| conn.query("SELECT 1", &[])).await.is_err() {
            assert!(began.elapsed() < Duration::from_secs(2));
        }
        assert!(
            db.figures().held <= 2,
            "an outage is not followed by a rush: {:?}",
            db.figures()
        );
    });
}

#[test]
fn work_that_goes_on_is_given_up_only_while_the_server_is_said_to_be_away() {
    let server = server();
    event_loop().block_on(async {
        let acquire = Duration::from_secs(1);
        let db = pool(&server, |o| o.acquire_timeout = acquire);
        for (taken_back, ok) in [(true, true), (false, false)] {
            let (begun, has_begun) = tokio::sync::oneshot::channel();
            let work = move |conn: &mut Conn| -> Result {
                let _ = begun.send(());
                conn.query("SELECT pg_sleep(3)", &[]).map(drop)
            };
            let db = db.clone();
            let waits = tokio::spawn({
                let db = db.clone();
                async move { db.run(work).await }
            });
            has_begun.await.unwrap();
            let heard = async || {
                // Yield on this single thread until the waiting task has run.
                for _ in 0..10 {
                    tokio::task::yield_now().await;
                }
            };
            heard().await;
            db.set_away(Some(ServerOutage {
                reason: "no answer".to_owned(),
                read_only: false,
            }));
            heard().await;
            if taken_back {
                db.set_away(None);
            }
            let result = waits.await.unwrap();
            assert_eq!(result.is_ok(), ok, "{result:?}");
        }
    });
}
