//! A tenant never holds more than its pool and two of its server, whatever happens to its brokers and whatever its clients
//! leave behind: counted on the server, all the while.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "tests"
)]

use brokkr_tests::{Host, Load, PgServer, Tenant, procs, until};
use nix::sys::signal::Signal;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

const POOL: u32 = 10;
const MOST: i64 = POOL as i64 + 2;

/// Counts a tenant's connections on the server, over and over.
struct Count {
    over: Arc<AtomicBool>,
    now: Arc<AtomicI64>,
    thread: Option<JoinHandle<i64>>,
}

impl Count {
    fn of(server: &PgServer, tenant: &str) -> Self {
        let (over, now) = (
            Arc::new(AtomicBool::new(false)),
            Arc::new(AtomicI64::new(0)),
        );
        let mut client = server.client();
        let names = format!("brokkr:%{tenant}");
        let (ends, seen) = (Arc::clone(&over), Arc::clone(&now));
        let thread = std::thread::spawn(move || {
            let statement = client
                .prepare("SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE $1")
                .unwrap();
            let mut most = 0;
            while !ends.load(Ordering::Relaxed) {
                let count: i64 = client.query_one(&statement, &[&names]).unwrap().get(0);
                seen.store(count, Ordering::Relaxed);
                most = most.max(count);
                std::thread::sleep(Duration::from_millis(5));
            }
            most
        });
        Self {
            over,
            now,
            thread: Some(thread),
        }
    }

    fn reaches(&self, least: i64) {
        until(
            Duration::from_secs(20),
            "enough connections to be open",
            || (self.now.load(Ordering::Relaxed) >= least).then_some(()),
        );
    }

    fn falls_to(&self, most: i64) {
        until(Duration::from_secs(60), "what was left to be gone", || {
            (self.now.load(Ordering::Relaxed) <= most).then_some(())
        });
    }

    /// The most there ever were.
    fn most(mut self) -> i64 {
        self.over.store(true, Ordering::Relaxed);
        self.thread.take().unwrap().join().unwrap()
    }
}

/// A tenant whose every statement on agents waits for as long as it may, and clients that ask for them.
fn stuck<'h>(host: &'h Host, timeout: &str) -> (Tenant<'h>, postgres::Client, Load) {
    let acme = host
        .tenant("acme")
        .pool(POOL)
        .set("database.statement_timeout", &format!("\"{timeout}\""))
        .up();
    let mut lock = host.server().client();
    lock.batch_execute("BEGIN; LOCK TABLE tenant_acme.agents IN ACCESS EXCLUSIVE MODE")
        .unwrap();
    let load = Load::start(&acme.addr(), "/api/v1/agents", &acme.pak(), 24, false);
    (acme, lock, load)
}

#[test]
fn replacements_of_a_broker_whose_clients_leave_slow_statements_behind() {
    let host = Host::builder().set("stop.grace", "\"2s\"").build();
    let (acme, lock, load) = stuck(&host, "6s");
    let count = Count::of(host.server(), "acme");
    for _ in 0..3 {
        count.reaches(8);
        let old = acme.pid();
        host.command(&["restart", "acme"]);
        let _ = acme.replaced(old);
    }
    drop(lock);
    let _ = load.stop();
    let most = count.most();
    println!("{most} connections at most, of a pool of {POOL}");
    assert!((8..=MOST).contains(&most), "{most}");
}

#[test]
fn what_a_killed_broker_left_counts_when_its_supervisor_is_killed_too() {
    let host = Host::new();
    let (acme, lock, load) = stuck(&host, "12s");
    let count = Count::of(host.server(), "acme");
    count.reaches(8);
    let old = acme.pid();
    procs::signal(old, Signal::SIGKILL);
    let second = acme.replaced(old).pid;
    host.kill();
    host.up();
    assert_eq!(acme.becomes("ready").pid, second);
    // Nor does a broker that died with its supervisor leave its pool to be taken twice.
    host.kill();
    procs::signal(second.unwrap(), Signal::SIGKILL);
    host.up();
    let _ = acme.replaced(second.unwrap());
    let _ = load.stop();
    count.falls_to(2);
    // When all that has gone, it has its whole pool again; the table is locked still, so that all of it is used.
    let load = Load::start(&acme.addr(), "/api/v1/agents", &acme.pak(), 24, false);
    count.reaches(7);
    drop(lock);
    let _ = load.stop();
    let most = count.most();
    println!("{most} connections at most, of a pool of {POOL}");
    assert!((8..=MOST).contains(&most), "{most}");
}
