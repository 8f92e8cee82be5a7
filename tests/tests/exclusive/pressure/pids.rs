//! No more processes: neither process nor thread can be started.

use crate::pressure::descriptors::{lower, restore};
use crate::pressure::world::{host, ready, tenants};
use brokkr_tests::{alone, holds_for, http, procs, says, test_dir};
use nix::sys::signal::Signal;
use std::os::unix::fs::chown;
use std::time::Duration;

#[test]
fn a_host_out_of_pids_keeps_what_runs_and_starts_the_rest_when_it_can() {
    let _alone = alone();
    let host = host();
    // Another user that has no other processes, because the kernel does not count root's.
    let uid = 50_000 + std::process::id() % 10_000;
    if test_dir::is_root() {
        let id = uid.to_string();
        host.under(&[
            "setpriv",
            "--reuid",
            &id,
            "--regid",
            &id,
            "--clear-groups",
            "--pdeathsig",
            "TERM",
            "--",
        ]);
    }
    let tenants = tenants(&host, 3);
    if test_dir::is_root() {
        let files = tenants.iter().map(|t| t.file());
        for path in files.chain([host.root().to_owned(), host.config(), host.tenants_dir()]) {
            chown(path, Some(uid), Some(uid)).unwrap();
        }
    }
    host.up();
    ready(&host, 3);
    let supervisor = host.pid();
    let pids: Vec<i32> = tenants.iter().map(|t| t.pid()).collect();

    lower(supervisor, "nproc", 1);
    procs::signal(pids[0], Signal::SIGKILL);
    let status = tenants[0].wait("in backoff", |t| t.state == "backoff" && t.restarts >= 2);
    let reason = status.reason.unwrap();
    says(&reason, &["Resource temporarily unavailable"]);
    // A changed file is still read, and its tenant keeps the old broker until a new broker can start.
    let text = tenants[1].read_file();
    tenants[1].replace_file(&format!("{text}\n[log]\nlevel = \"debug\"\n"));
    if test_dir::is_root() {
        chown(tenants[1].file(), Some(uid), Some(uid)).unwrap();
    }
    tenants[1].wait("waiting for its replacement", |t| t.pending.is_some());
    holds_for(Duration::from_secs(1), "the others serve", || {
        for (tenant, pid) in tenants.iter().zip(&pids).skip(1) {
            let answer = http::get(&tenant.addr(), "/healthz").map_err(|e| e.to_string())?;
            if answer.status != 200 || !procs::alive(*pid) {
                return Err(format!("{}: {answer:?}", tenant.name()));
            }
        }
        Ok(())
    });
    restore(supervisor, "nproc");
    // Without any command.
    tenants[0].replaced(pids[0]);
    tenants[1].wait("replaced", |t| {
        t.state == "ready" && t.pid != Some(pids[1]) && t.pending.is_none()
    });
    assert_eq!(tenants[1].status().restarts, 0);
    let shown = tenants[2].status();
    assert_eq!((shown.pid, shown.restarts), (Some(pids[2]), 0));
}
