//! Hung brokers and stalled hosts: telling the two apart, finding a hang in time, and keeping evidence of it.

use brokkr_tests::host::Builder;
use brokkr_tests::{Host, Tenant, holds_for, procs, says, until};
use nix::sys::resource::{Resource, getrlimit};
use nix::sys::signal::Signal;
use std::path::PathBuf;
use std::time::{Duration, Instant};

const INTERVAL: Duration = Duration::from_millis(500);
const TIMEOUT: Duration = Duration::from_millis(400);
/// The default of `[health] failures`.
const FAILURES: u32 = 3;

fn probed_often() -> Builder {
    Host::builder()
        .set("health.interval", "\"500ms\"")
        .set("health.timeout", "\"400ms\"")
}

/// Returns the time within which a hang is found: the configured time, plus the machine's present delay.
fn found_within(host: &Host) -> Duration {
    let start = Instant::now();
    host.status();
    INTERVAL * FAILURES + TIMEOUT + 20 * start.elapsed()
}

#[test]
fn a_stopped_broker_is_found_in_time_and_the_state_of_its_threads_is_in_status() {
    let host = probed_often().build();
    let acme = host.tenant("acme").up();
    let globex = host.tenant("globex").up();
    let (acme_pid, globex_pid) = (acme.pid(), globex.pid());
    let bound = found_within(&host);
    procs::signal(acme_pid, Signal::SIGSTOP);
    let stopped = Instant::now();
    until(
        Duration::from_secs(30),
        "the stopped broker to be killed",
        || (!procs::alive(acme_pid)).then_some(()),
    );
    let found = stopped.elapsed();
    let status = acme.replaced(acme_pid);
    println!(
        "measured: a stopped broker is killed after {:.1} s and replaced after {:.1} s, with an interval of 0.5 s and a timeout of 0.4 s",
        found.as_secs_f64(),
        stopped.elapsed().as_secs_f64()
    );
    assert!(found < bound, "found after {found:?} of {bound:?}");
    assert_eq!(status.restarts, 1);
    let exit = status.last_exit.unwrap();
    // T: every thread is stopped.
    says(&exit, &["hung", "brokkr-broker: T"]);
    assert_eq!(acme.get("/healthz").status, 200);
    let shown = host.command(&["status", "acme"]).ok();
    assert!(shown.contains("last exit  hung: "), "{shown}");
    assert_eq!((globex.pid(), globex.status().restarts), (globex_pid, 0));
}

#[test]
fn a_broker_whose_event_loop_has_died_is_found_and_replaced_too() {
    let host = probed_often().build();
    let wrapper = host.wrap_broker();
    let globex = host.tenant("globex").up();
    wrapper.deaf("acme");
    let acme = host.tenant("acme").write();
    let deaf = acme.wait("there", |t| t.state == "ready").pid.unwrap();
    let ready = Instant::now();
    let bound = found_within(&host);
    wrapper.heal("acme");
    until(
        Duration::from_secs(60),
        "the deaf broker to be killed",
        || (!procs::alive(deaf)).then_some(()),
    );
    let found = ready.elapsed();
    let status = acme.replaced(deaf);
    assert!(found < bound + Duration::from_secs(2), "{found:?}");
    let exit = status.last_exit.unwrap();
    // S: asleep, unlike the T of a stopped thread.
    assert!(exit.contains("hung") && exit.contains(": S"), "{exit}");
    assert_eq!(status.restarts, 1);
    assert_eq!(globex.status().restarts, 0);
}

/// Returns the core files in the tenant's state folder.
fn cores(tenant: &Tenant<'_>) -> Vec<PathBuf> {
    std::fs::read_dir(tenant.state_dir())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| {
            path.file_name()
                .unwrap()
                .to_string_lossy()
                .starts_with("core")
        })
        .collect()
}

#[test]
fn a_hung_broker_leaves_a_core_where_the_operator_wants_one_and_nowhere_else() {
    let (_, most) = getrlimit(Resource::RLIMIT_CORE).unwrap();
    let pattern = std::fs::read_to_string("/proc/sys/kernel/core_pattern").unwrap();
    if most == 0 || pattern.contains('/') || pattern.starts_with('|') {
        println!("skipped: cores of this machine go to {pattern:?}, at most {most} bytes");
        return;
    }
    let host = probed_often().build();
    let acme = host.tenant("acme").up();
    // No signal leaves a core by default, because a broker's memory does not belong on disk.
    let pid = acme.pid();
    procs::signal(pid, Signal::SIGABRT);
    let exit = acme.replaced(pid).last_exit.unwrap();
    assert!(
        exit.contains("SIGABRT") && !exit.contains("core dumped"),
        "{exit}"
    );
    assert_eq!(cores(&acme), Vec::<PathBuf>::new());

    host.stop();
    host.set("debug.core", "true").up();
    let pid = acme.is_ready().pid();
    procs::signal(pid, Signal::SIGSTOP);
    let acme = host.known("acme");
    let exit = acme.replaced(pid).last_exit.unwrap();
    says(&exit, &["hung", "SIGABRT, core dumped"]);
    let cores = cores(&acme);
    assert_eq!(cores.len(), 1, "{cores:?}");
    assert!(std::fs::metadata(&cores[0]).unwrap().len() > 0);
}

#[test]
fn a_host_that_stands_still_replaces_no_broker() {
    let host = probed_often().build();
    host.trivial_brokers();
    let tenants: Vec<Tenant<'_>> = (0..8)
        .map(|n| host.tenant(&format!("t{n}")).write())
        .collect();
    host.up();
    host.wait(Duration::from_secs(30), "all to be ready", |s| {
        s.tenants.len() == 8 && s.all("ready")
    });
    let pids: Vec<i32> = tenants.iter().map(Tenant::pid).collect();

    // All brokers miss probes together.
    for pid in &pids {
        procs::signal(*pid, Signal::SIGSTOP);
    }
    let status = host.wait(
        Duration::from_secs(30),
        "a stalled host to be reported",
        |s| s.notices.iter().any(|notice| notice.contains("stalled")),
    );
    assert!(
        status.notices.iter().any(|n| n.contains('8')),
        "{:?}",
        status.notices
    );
    let still = || {
        let alive = pids.iter().all(|pid| procs::alive(*pid));
        alive.then_some(()).ok_or("somebody was killed")
    };
    holds_for(Duration::from_secs(3), "nobody is replaced", still);
    for pid in &pids {
        procs::signal(*pid, Signal::SIGCONT);
    }
    host.wait(Duration::from_secs(30), "the stall to be over", |s| {
        s.all("ready") && s.notices.iter().all(|notice| !notice.contains("stalled"))
    });

    // The supervisor itself stood still, and one broker stays stopped for a while longer.
    procs::signal(pids[0], Signal::SIGSTOP);
    procs::signal(host.pid(), Signal::SIGSTOP);
    until(
        Duration::from_secs(10),
        "the supervisor to have missed its probes",
        {
            let start = Instant::now();
            move || (start.elapsed() > 2 * INTERVAL * FAILURES).then_some(())
        },
    );
    procs::signal(host.pid(), Signal::SIGCONT);
    procs::signal(pids[0], Signal::SIGCONT);
    holds_for(3 * INTERVAL, "nobody is replaced", still);
    assert!(host.status().tenants.iter().all(|t| t.restarts == 0));
    assert_eq!(tenants.iter().map(Tenant::pid).collect::<Vec<_>>(), pids);
}

#[test]
fn brokers_that_all_hang_for_long_are_replaced_one_at_a_time() {
    let host = probed_often().build();
    host.trivial_brokers();
    let tenants: Vec<Tenant<'_>> = (0..6)
        .map(|n| host.tenant(&format!("t{n}")).write())
        .collect();
    host.up();
    host.wait(Duration::from_secs(30), "all to be ready", |s| {
        s.tenants.len() == 6 && s.all("ready")
    });
    holds_for(3 * INTERVAL, "each answers some probe", || {
        let ready = host.status().all("ready");
        ready.then_some(()).ok_or("somebody is not ready")
    });
    let (fine, hung) = tenants.split_at(1);
    let pid = fine[0].pid();
    let pids: Vec<i32> = hung.iter().map(Tenant::pid).collect();
    for pid in &pids {
        procs::signal(*pid, Signal::SIGSTOP);
    }
    let stopped = Instant::now();
    // Ten times the time to find a hang, and then one replacement after the other.
    let found = INTERVAL * FAILURES + TIMEOUT;
    let status = host.wait(
        15 * found + Duration::from_secs(30),
        "all to be replaced",
        |s| s.all("ready") && s.tenants.iter().filter(|t| t.restarts == 1).count() == pids.len(),
    );
    assert!(stopped.elapsed() > 10 * found, "{:?}", stopped.elapsed());
    let now: Vec<Option<i32>> = status.tenants.iter().map(|t| t.pid).collect();
    assert!(now.contains(&Some(pid)) && pids.iter().all(|pid| !now.contains(&Some(*pid))));
}
