//! A tenant never holds more connections than its pool and two, even when brokers are killed and clients leave
//! statements behind. The connections are counted on the server all the time.

use brokkr_tests::{Host, Load, PgServer, Tenant, procs, until};
use nix::sys::signal::Signal;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

const POOL: u32 = 10;

/// Returns the number of connections that a tenant may hold while instances are replaced.
fn most(pool: u32) -> i64 {
    i64::from(pool) + 2
}

/// Counts a tenant's connections on the server repeatedly.
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

    /// Ends the counting, and checks that the largest count is at least `least` and within the pool and two.
    fn stayed_within(mut self, least: i64, pool: u32) {
        self.over.store(true, Ordering::Relaxed);
        let seen = self.thread.take().unwrap().join().unwrap();
        println!("{seen} connections at most, of a pool of {pool}");
        assert!((least..=most(pool)).contains(&seen), "{seen}");
    }
}

/// Returns the pids of the server's backends for tenants of this host.
fn backends(host: &Host) -> BTreeSet<i32> {
    let shown = "SELECT pid FROM pg_stat_activity WHERE application_name LIKE 'brokkr:%acme'";
    let rows = host.server().client().query(shown, &[]).unwrap();
    rows.iter().map(|row| row.get(0)).collect()
}

/// Starts a tenant whose statements on agents all wait until their timeout, and clients that send them.
fn stuck<'h>(host: &'h Host, pool: u32, timeout: &str) -> (Tenant<'h>, postgres::Client, Load) {
    let acme = host
        .tenant("acme")
        .pool(pool)
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
    let (acme, lock, load) = stuck(&host, POOL, "6s");
    let count = Count::of(host.server(), "acme");
    for _ in 0..3 {
        count.reaches(8);
        let old = acme.pid();
        host.command(&["restart", "acme"]);
        let _ = acme.replaced(old);
    }
    drop(lock);
    let _ = load.stop();
    count.stayed_within(8, POOL);
}

#[test]
fn what_a_killed_broker_left_counts_when_its_supervisor_is_killed_too() {
    let host = Host::new();
    let (acme, lock, load) = stuck(&host, POOL, "12s");
    let count = Count::of(host.server(), "acme");
    count.reaches(8);
    let old = acme.pid();
    procs::signal(old, Signal::SIGKILL);
    let second = acme.replaced(old).pid;
    host.kill();
    host.up();
    assert_eq!(acme.becomes("ready").pid, second);
    // The pool of a broker that ended with its supervisor is counted too.
    host.kill();
    let left = backends(&host);
    procs::signal(second.unwrap(), Signal::SIGKILL);
    host.up();
    let _ = acme.replaced(second.unwrap());
    // After those backends have ended, the tenant has its whole pool again; the table is still locked, so all of it is
    // used.
    until(Duration::from_secs(30), "what was left to be gone", || {
        backends(&host).is_disjoint(&left).then_some(())
    });
    count.reaches(8);
    drop(lock);
    let _ = load.stop();
    count.stayed_within(8, POOL);
}

#[test]
fn kills_in_a_row_leave_no_more_than_one_does() {
    for pool in [2, 3] {
        let host = Host::builder().set("stop.grace", "\"2s\"").build();
        let (acme, lock, load) = stuck(&host, pool, "20s");
        let count = Count::of(host.server(), "acme");
        for _ in 0..4 {
            count.reaches(2);
            let old = acme.pid();
            procs::signal(old, Signal::SIGKILL);
            let _ = acme.replaced(old);
        }
        // A replacement does not add connections to those that the last broker has left.
        let old = acme.pid();
        host.command(&["restart", "acme"]);
        let _ = acme.replaced(old);
        drop(lock);
        let _ = load.stop();
        count.stayed_within(2, pool);
    }
}
