//! A fault over tenants under load, with the checks that every fault shares.

use brokkr_tests::{Api, Host, Load, Tenant, until};
use serde_json::json;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// The default of `database.acquire_timeout`.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(5);
/// Number of each tenant's clients that only read.
const READERS: usize = 4;
/// Limit from the server's return until every tenant is ready.
const BACK: Duration = Duration::from_secs(2);

#[derive(Debug, Clone)]
struct Answer {
    at: Instant,
    took: Duration,
    status: u16,
    retry_after: bool,
}

/// A client that repeats one request.
struct Asking {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Result<Vec<Answer>, String>>,
}

impl Asking {
    fn start(api: Api, write: bool) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let mut answers = Vec::new();
            for number in 0.. {
                if stopped.load(Ordering::Relaxed) {
                    break;
                }
                let at = Instant::now();
                let name = format!("agent-{number}");
                let agent = json!({ "name": name, "cluster_name": "a-cluster" });
                let answer = match write {
                    true => api.try_call("POST", "/agents", Some(&agent)),
                    false => api.try_call("GET", "/agents", None),
                };
                let answer = answer.map_err(|e| format!("after {:?}: {e}", at.elapsed()))?;
                // 409: an earlier attempt that was answered 503 has succeeded.
                let status = if answer.status == 409 {
                    201
                } else {
                    answer.status
                };
                answers.push(Answer {
                    at,
                    took: at.elapsed(),
                    status,
                    retry_after: answer.header("retry-after").is_some(),
                });
                // A client pauses longer after an error.
                std::thread::sleep(Duration::from_millis(if status < 300 { 5 } else { 25 }));
            }
            Ok(answers)
        });
        Self { stop, thread }
    }

    fn stop(self) -> Vec<Answer> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread
            .join()
            .unwrap()
            .expect("every request is answered")
    }
}

/// The requests that must fail during a fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fails {
    /// Every request that needs the server.
    All,
    /// Every request that writes.
    Writes,
    /// None for certain, because the fault may end before a request fails.
    Perhaps,
}

/// A fault and its expected effect.
pub struct Fault<'f> {
    /// The name in the measurements.
    pub name: &'f str,
    pub fails: Fails,
    /// Its duration after every tenant is degraded.
    pub lasts: Duration,
    pub begin: &'f dyn Fn(),
    pub end: &'f dyn Fn(),
}

impl Fault<'_> {
    /// Begins and ends the fault, and checks its effect. No broker may be restarted, every request must be answered in
    /// time, and all tenants must be ready again within two seconds.
    pub fn over(&self, host: &Host, tenants: &[Tenant<'_>]) {
        let apis: Vec<Api> = tenants.iter().map(Tenant::api).collect();
        let pids: Vec<i32> = tenants.iter().map(Tenant::pid).collect();
        // Allow for the machine's present delay.
        let slack = 20 * time(|| drop(host.status()));
        let alive: Vec<Load> = tenants
            .iter()
            .map(|t| Load::start(&t.addr(), "/healthz", "", 1, true))
            .collect();
        // More readers than connections that open at the same time, so they wait for each other.
        let asking: Vec<(&str, Asking)> = apis
            .iter()
            .flat_map(|api| {
                let reads = (0..READERS).map(|_| ("read", Asking::start(api.clone(), false)));
                reads.chain([("write", Asking::start(api.clone(), true))])
            })
            .collect();
        for api in &apis {
            until(Duration::from_secs(10), "an answer", || {
                (api.get("/agents").status == 200).then_some(())
            });
        }

        let begun = Instant::now();
        (self.begin)();
        let degraded = host.wait(Duration::from_secs(20), "all to be degraded", |s| {
            s.all("degraded")
        });
        let degraded_after = begun.elapsed();
        for tenant in &degraded.tenants {
            assert!(tenant.reason.is_some(), "{tenant:?}");
        }
        let readiness = |expected: u16| {
            for tenant in tenants {
                assert_eq!(
                    tenant.get("/readyz").status,
                    expected,
                    "{}: /readyz of {}",
                    self.name,
                    tenant.name()
                );
            }
        };
        readiness(503);
        let until_end = Instant::now() + self.lasts;
        while Instant::now() < until_end {
            let status = host.status();
            assert!(
                !status.tenants.iter().any(|t| t.state == "ready"),
                "{status:?}"
            );
            std::thread::sleep(Duration::from_millis(50));
        }
        (self.end)();
        let back = Instant::now();
        host.wait(Duration::from_secs(30), "all to be ready again", |s| {
            s.all("ready")
        });
        let ready_after = back.elapsed();
        readiness(200);
        for api in &apis {
            until(
                Duration::from_secs(30),
                "an answer from the database",
                || (api.get("/agents").status == 200).then_some(()),
            );
        }
        let answered_after = back.elapsed();

        let mut slowest = Duration::ZERO;
        for (what, answers) in asking.into_iter().map(|(what, one)| (what, one.stop())) {
            let during = |a: &&Answer| a.at >= begun && a.at < back;
            let failed = answers.iter().filter(|a| a.status == 503).count();
            assert!(
                answers.iter().all(|a| [200, 201, 503].contains(&a.status)),
                "{}: {what}: {:?}",
                self.name,
                answers
                    .iter()
                    .map(|a| a.status)
                    .collect::<std::collections::BTreeSet<_>>()
            );
            assert!(
                answers.iter().all(|a| a.status != 503 || a.retry_after),
                "{}: a 503 without Retry-After",
                self.name
            );
            match (self.fails, what) {
                (Fails::All, _) | (Fails::Writes, "write") => {
                    assert!(failed > 0, "{}: no {what} has failed", self.name);
                }
                (Fails::Writes, _) => {
                    // Reads still succeed.
                    assert_eq!(failed, 0, "{}: could not be read", self.name);
                    assert!(answers.iter().filter(during).count() > 0);
                }
                (Fails::Perhaps, _) => {}
            }
            let most = answers.iter().map(|a| a.took).max().unwrap_or_default();
            slowest = slowest.max(most);
            let last = answers.last().unwrap();
            // A request in flight at that moment is answered when TCP sends again.
            assert!(
                last.at + last.took > back,
                "{}: {what}s have stopped",
                self.name
            );
        }
        for load in alive {
            let seen = load.stop();
            assert!(
                seen.answers.keys().all(|s| *s == 200) && seen.lost.is_empty(),
                "{}: {seen:?}",
                self.name
            );
            assert!(seen.slowest < Duration::from_secs(1) + slack, "{seen:?}");
        }
        println!(
            "measured: {}: degraded after {:.1} s, slowest request {:.1} s, ready {:.1} s and answering {:.1} s after its end",
            self.name,
            degraded_after.as_secs_f64(),
            slowest.as_secs_f64(),
            ready_after.as_secs_f64(),
            answered_after.as_secs_f64()
        );
        let status = host.status();
        assert!(status.tenants.iter().all(|t| t.restarts == 0), "{status:?}");
        assert_eq!(tenants.iter().map(Tenant::pid).collect::<Vec<_>>(), pids);
        assert!(
            slowest < ACQUIRE_TIMEOUT + Duration::from_millis(500) + slack,
            "{}: a request took {slowest:?}",
            self.name
        );
        assert!(
            ready_after < BACK + slack,
            "{}: ready only {ready_after:?} after its end",
            self.name
        );
    }
}

fn time(work: impl FnOnce()) -> Duration {
    let start = Instant::now();
    work();
    start.elapsed()
}
