//! A full disk under the state folder and under the log.

use brokkr_tests::{Host, alone, procs, test_dir, until};
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Mounts a small disk at `folder`, which only the supervisor sees and which ends with it. With `log` its log goes
/// there too.
fn small_disk(host: &Host, folder: &Path, log: bool) {
    std::fs::create_dir_all(folder).unwrap();
    let folder = folder.display();
    let to = if log {
        format!(" >> '{folder}/log'")
    } else {
        String::new()
    };
    host.under(&[
        "unshare",
        "--mount",
        "--propagation",
        "private",
        "--",
        "sh",
        "-c",
        &format!("mount -t tmpfs -o size=4m,mode=0755 small '{folder}' && exec \"$@\"{to}"),
        "sh",
    ]);
}

/// Returns the path of the same folder as the supervisor sees it.
fn seen(host: &Host, folder: &Path) -> PathBuf {
    PathBuf::from(format!("/proc/{}/root", host.pid())).join(folder.strip_prefix("/").unwrap())
}

fn fill(folder: &Path) -> PathBuf {
    let path = folder.join("filler");
    let mut file = File::create(&path).unwrap();
    for size in [1 << 16, 4096, 1] {
        while file.write_all(&vec![0; size]).is_ok() {}
    }
    path
}

fn may_mount() -> bool {
    if !test_dir::is_root() {
        println!("skipped: a disk to be filled needs root");
    }
    test_dir::is_root()
}

#[test]
fn a_full_state_disk_delays_new_tenants_and_affects_no_running_tenant() {
    let _alone = alone();
    if !may_mount() {
        return;
    }
    let host = Host::new();
    small_disk(&host, &host.state_dir(), false);
    let acme = host.tenant("acme").up();
    let pid = acme.pid();
    let state = seen(&host, &host.state_dir());
    let filler = fill(&state);

    let globex = host.tenant("globex").write();
    let status = globex.wait("told that the disk is full", |t| {
        t.state == "backoff" && t.words().contains("No space left on device")
    });
    println!("it is said: {}", status.reason.unwrap());
    assert_eq!(acme.api().get("/agents").status, 200);
    // A decision made while the disk is full is kept.
    host.command(&["stop", "acme"]).ok();
    acme.becomes("stopped");
    until(
        Duration::from_secs(10),
        "the log to say that the list could not be written",
        || {
            let log = host.log();
            (log.contains("cannot be written") && log.contains("stopped")).then_some(())
        },
    );
    host.command(&["start", "acme"]).ok();
    acme.becomes("ready");
    let pid_now = acme.pid();
    assert_ne!(pid, pid_now);

    std::fs::remove_file(filler).unwrap();
    globex.becomes("ready");
    // The first admin PAK was written, though at first it could not be.
    assert_eq!(globex.api().get("/agents").status, 200);
    until(
        Duration::from_secs(15),
        "both to be on the list of the admitted",
        || {
            let list = std::fs::read_to_string(state.join("admitted")).unwrap_or_default();
            (list.contains("acme") && list.contains("globex")).then_some(())
        },
    );
    assert_eq!((acme.pid(), acme.status().restarts), (pid_now, 0));
}

#[test]
fn a_full_log_disk_costs_counted_lines_and_blocks_no_tenant() {
    let _alone = alone();
    if !may_mount() {
        return;
    }
    let host = Host::new();
    let folder = host.root().join("logs");
    small_disk(&host, &folder, true);
    let acme = host.tenant("acme").up();
    let (pid, api) = (acme.pid(), acme.api());
    let folder = seen(&host, &folder);
    let log = || std::fs::read_to_string(folder.join("log")).unwrap_or_default();
    until(Duration::from_secs(10), "the log on its small disk", || {
        log().contains("acme").then_some(())
    });
    let filler = fill(&folder);
    // Refused requests and commands write log lines.
    for _ in 0..20 {
        assert_eq!(api.get("/agents").status, 200);
        assert_eq!(api.with_pak("wrong").get("/agents").status, 401);
        host.command(&["restart", "acme"]).ok();
    }
    assert_eq!(acme.status().restarts, 0);
    let pid = {
        assert!(!procs::alive(pid));
        acme.pid()
    };
    // The memory still has the lines.
    let recent = host.command(&["logs", "-t", "acme", "-n", "50"]).ok();
    assert!(recent.contains("ready"), "{recent}");
    std::fs::remove_file(filler).unwrap();
    let said = until(
        Duration::from_secs(20),
        "the loss to be counted in the log",
        || {
            // Any line makes the supervisor try to write again.
            let _ = api.with_pak("wrong").get("/agents");
            host.command(&["start", "acme"]).ok();
            log()
                .lines()
                .find(|line| line.contains("dropped"))
                .map(str::to_owned)
        },
    );
    println!("it is said: {said}");
    assert_eq!(acme.pid(), pid);
}
