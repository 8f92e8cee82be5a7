//! Too few file descriptors: counted before a start, and lost suddenly.

use crate::pressure::world::{host, host_for, ready, tenants};
use brokkr_tests::{alone, bin, holds_for, http, procs, says, until};
use std::time::Duration;

/// Runs `prlimit` on a process as its owner, because root may not without CAP_SYS_RESOURCE.
fn prlimit(pid: i32, arguments: &[String]) -> String {
    use std::os::unix::fs::MetadataExt;
    let owner = std::fs::metadata(format!("/proc/{pid}")).unwrap();
    let (owner, group) = (owner.uid(), owner.gid());
    let pid = format!("--pid={pid}");
    if owner == nix::unistd::geteuid().as_raw() {
        return bin::run("prlimit", [&[pid], arguments].concat()).ok();
    }
    let user = [
        format!("--reuid={owner}"),
        format!("--regid={group}"),
        "--clear-groups".into(),
        "prlimit".into(),
        pid,
    ];
    bin::run("setpriv", [&user, arguments].concat()).ok()
}

/// Lowers a soft limit of a running process: `nofile`, `nproc`.
pub fn lower(pid: i32, what: &str, to: usize) {
    prlimit(pid, &[format!("--{what}={to}:")]);
}

/// Raises the soft limit to the hard limit again.
pub fn restore(pid: i32, what: &str) {
    let hard = ["--raw", "--noheadings", "--output=HARD"].map(str::to_owned);
    let hard = prlimit(pid, &[&hard[..], &[format!("--{what}")]].concat());
    prlimit(pid, &[format!("--{what}={}:", hard.trim())]);
}

#[test]
fn more_tenants_than_there_are_descriptors_for_are_refused_and_told_so() {
    let _alone = alone();
    let host = host();
    // Enough for ten tenants: twelve for each, after the supervisor's own.
    host.under(&["prlimit", "--nofile=250:250"]);
    tenants(&host, 14);
    host.up();
    ready(&host, 10);
    let status = host.status();
    let refused: Vec<_> = status
        .tenants
        .iter()
        .filter(|t| t.state == "refused")
        .collect();
    assert_eq!(refused.len(), 4, "{status:#?}");
    for tenant in &refused {
        let reason = tenant.reason.as_deref().unwrap();
        says(reason, &["out of descriptors", "250", &tenant.name]);
    }
    // With the recommended number of descriptors all of them run.
    let reason = refused[0].reason.as_deref().unwrap();
    let (_, rest) = reason.split_once("may be open, ").unwrap();
    let (enough, _) = rest.split_once(" would do").unwrap();
    host.stop();
    host.under(&["prlimit", &format!("--nofile={enough}:{enough}")]);
    host.up();
    ready(&host, 14);
    host.stop();
    host.under(&["prlimit", "--nofile=250:250"]);
    host.up();
    ready(&host, 10);
    // A removed tenant makes room for the next.
    host.known("t0").remove_file();
    ready(&host, 10);
    host.wait(Duration::from_secs(10), "one less to be refused", |s| {
        s.tenants.iter().filter(|t| t.state == "refused").count() == 3
    });
}

#[test]
fn three_hundred_tenants_run_from_a_login_whose_soft_limit_is_1024() {
    let _alone = alone();
    const MANY: usize = 300;
    let host = host_for(MANY as u32);
    host.set("start.parallelism", "16");
    host.under(&["prlimit", "--nofile=1024:"]);
    let tenants = tenants(&host, MANY);
    host.up();
    ready(&host, MANY);
    let supervisor = format!("/proc/{}/fd", host.pid());
    let open = std::fs::read_dir(supervisor).unwrap().count();
    assert!(open > 1024, "{open} descriptors are no test");
    // The first and the last tenant alike: its own limit, and a new instance after a kill.
    for tenant in [&tenants[0], &tenants[MANY - 1]] {
        let pid = tenant.pid();
        let limits = std::fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
        let files = limits
            .lines()
            .find(|line| line.starts_with("Max open files"));
        assert!(files.unwrap().contains(" 1024 "), "{limits}");
        procs::signal(pid, nix::sys::signal::Signal::SIGKILL);
        tenant.wait("running again", |t| {
            t.state == "ready" && t.pid.is_some_and(|now| now != pid)
        });
    }
}

#[test]
fn descriptors_that_run_out_suddenly_harm_no_running_tenant() {
    let _alone = alone();
    let host = host();
    let tenants = tenants(&host, 5);
    host.up();
    ready(&host, 5);
    let supervisor = host.pid();
    let pids: Vec<i32> = tenants.iter().map(|t| t.pid()).collect();
    let open = std::fs::read_dir(format!("/proc/{supervisor}/fd"))
        .unwrap()
        .count();
    let cpu = || procs::ticks(supervisor);

    // Open descriptors stay open; no more can be opened.
    lower(supervisor, "nofile", open - 1);
    procs::signal(pids[0], nix::sys::signal::Signal::SIGKILL);
    let before = cpu();
    holds_for(Duration::from_secs(3), "the others serve", || {
        for tenant in &tenants[1..] {
            let answer = http::get(&tenant.addr(), "/healthz").map_err(|e| e.to_string())?;
            if answer.status != 200 {
                return Err(format!("{answer:?}"));
            }
        }
        Ok(())
    });
    // A retry loop without pauses would use the whole processor.
    let used = cpu() - before;
    assert!(used < 150, "{used} hundredths of a second in three");
    restore(supervisor, "nofile");

    // Without any command.
    let status = tenants[0].wait("running again", |t| {
        t.state == "ready" && t.pid != Some(pids[0])
    });
    assert!(status.restarts >= 1, "{status:?}");
    let exit = status.last_exit.unwrap();
    assert!(
        exit.contains("Too many open files") || exit.contains("SIGKILL"),
        "{exit}"
    );
    for (tenant, pid) in tenants.iter().zip(&pids).skip(1) {
        let shown = tenant.status();
        assert_eq!((shown.pid, shown.restarts), (Some(*pid), 0));
    }
    let said = until(Duration::from_secs(10), "the log to say it", || {
        host.log()
            .lines()
            .find(|line| line.contains("Too many open files"))
            .map(str::to_owned)
    });
    println!("it is said: {said}");
}
