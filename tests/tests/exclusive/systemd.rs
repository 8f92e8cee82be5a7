//! Under a real systemd: installed, started, reloaded, killed, restarted, stopped.

mod booted;
mod holder;
mod libraries;
mod lines;
mod needrestart;
mod noise;
mod root;
mod thousand;
mod watchdog;

use booted::Booted;
use brokkr_tests::host::Status;
use brokkr_tests::systemd_host::systemd_version;
use brokkr_tests::{Addr, Api, Load, alone, attacker, http, until};
use lines::Numbered;
use serde_json::json;
use std::fs;
use std::time::Duration;

const SUPERVISOR: &str = r#"
tenants_dir = "/etc/brokkr/tenants.d"
state_dir   = "/var/lib/brokkr"
runtime_dir = "/run/brokkr"

[postgres]
embedded = true
max_connections = 60
"#;

/// `status` as a user without any right but the membership of the group.
const AS_MEMBER: [&str; 6] = [
    "setpriv",
    "--reuid=nobody",
    "--regid=brokkr",
    "--clear-groups",
    "brokkr-supervisor",
    "status",
];

/// Starts the supervisor with an index that a later version may have left.
const AFTER_ANOTHER_VERSION: &str = r#"#!/bin/bash
printf '{"version":99,"instances":"elsewhere"}' >/run/brokkr/index-99
number=3
IFS=:
for name in $LISTEN_FDNAMES; do
  case $name in ia|ib) eval "exec $number</run/brokkr/index-99" ;; esac
  number=$((number + 1))
done
exec /usr/bin/brokkr-supervisor run --config /etc/brokkr/supervisor.toml
"#;

/// Returns the pids of all tenants' brokers, in order of the names.
fn pids(status: &Status) -> Vec<Option<i32>> {
    let pids: Vec<_> = status.tenants.iter().map(|tenant| tenant.pid).collect();
    assert!(pids.iter().all(Option::is_some), "{status:?}");
    pids
}

fn tenant(name: &str, listen: &str) -> String {
    format!(
        "[database]\nschema = \"tenant_{name}\"\npool_size = 5\n\n[http]\nlisten = \"{listen}\"\n"
    )
}

#[test]
fn installed_under_systemd_it_starts_reloads_survives_kill_and_stops_without_a_trace() {
    let _alone = alone();
    let tenants = [
        ("acme", "unix:/run/brokkr/acme.sock"),
        ("globex", "127.0.0.1:3002"),
    ];
    let Some(machine) = Booted::with_tenants(&tenants) else {
        return;
    };

    machine.installed();
    let verify = machine.run(&[
        "systemd-analyze",
        "verify",
        "/usr/lib/systemd/system/brokkr-supervisor.service",
        "/usr/lib/systemd/system/brokkr-tenants.service",
    ]);
    // The command also reports on units of the host.
    let of_ours = verify.stderr.lines().filter(|line| line.contains("brokkr"));
    assert_eq!(of_ours.collect::<Vec<_>>(), [""; 0], "{verify:?}");

    machine.ok(&["systemctl", "start", "brokkr-supervisor"]);
    let started = machine.ready(2);
    assert_eq!(
        machine
            .ok(&["systemctl", "is-active", "brokkr-tenants"])
            .trim(),
        "active"
    );
    // Every member of the group may run commands.
    let socket = ["stat", "-c", "%A %U:%G", "/run/brokkr/control.sock"];
    assert_eq!(machine.ok(&socket).trim(), "srw-rw---- brokkr:brokkr");
    machine.ok(&AS_MEMBER);
    let notices = &started.notices;
    assert!(
        !notices.iter().any(|n| n.contains("control.sock")),
        "{notices:?}"
    );
    // Each broker has its own cgroup below the unit that holds them.
    for tenant in &started.tenants {
        let groups = machine.ok(&["cat", &format!("/proc/{}/cgroup", tenant.pid.unwrap())]);
        let own = format!(
            "0::/brokkr.slice/brokkr-tenants.service/run-brokkr/{}.1",
            tenant.name
        );
        assert!(
            groups.lines().any(|line| line == own),
            "{groups}\n{}",
            machine.journal()
        );
    }
    // Every broker is in every layer of its sandbox, under the unit's own restrictions.
    let sandboxed = machine.wait(60, "the layers of every broker", || {
        let status = machine.status_of("/etc/brokkr/supervisor.toml");
        let status = status.ok_or("no status")?;
        let known = status.tenants.iter().all(|t| t.isolation.is_some());
        if known { Ok(status) } else { Err("not known") }
    });
    for tenant in &sandboxed.tenants {
        let layers = tenant.isolation.as_ref().unwrap();
        let all = !attacker::has_whole_landlock() || layers.iter().all(|layer| layer["on"] == true);
        assert!(all, "{layers:?}");
    }
    // The kernel gives the files of a process that is not dumpable to root.
    for pid in [
        machine.main_pid(),
        started.tenants[0].pid.unwrap().to_string(),
    ] {
        let environment = format!("/proc/{pid}/environ");
        let owner = machine.ok(&["stat", "-c", "%U", &environment]);
        assert_eq!(owner.trim(), "root", "{environment}");
    }
    let addr = Addr::Unix(machine.path("/run/brokkr/acme.sock"));
    assert_eq!(http::get(&addr, "/healthz").unwrap().text(), "OK");
    let pak = machine.ok(&["brokkr-supervisor", "pak", "acme"]);
    let api = Api::new(addr.clone(), pak.trim());
    api.create(
        "/agents",
        &json!({"name": "edge-1", "cluster_name": "berlin"}),
    );

    // Each tenant has its own log lines.
    for name in ["acme", "globex"] {
        until(
            Duration::from_secs(60),
            format!("lines of {name} in the journal"),
            || (!machine.lines_of(name).is_empty()).then_some(()),
        );
    }

    // A new file and a reload leave the other tenants as they are.
    let main = machine.main_pid();
    fs::write(
        machine.path("/etc/brokkr/tenants.d/initech.toml"),
        tenant("initech", "127.0.0.1:3003"),
    )
    .unwrap();
    let read = "SIGHUP: reading every tenant file again";
    let before = machine.times_said(read);
    machine.ok(&["systemctl", "reload", "brokkr-supervisor"]);
    let kind = machine.ok(&["systemctl", "show", "-P", "Type", "brokkr-supervisor"]);
    if systemd_version() >= 253 {
        assert_eq!(kind.trim(), "notify-reload");
        // The reload returns when the file has been read.
        let status = machine
            .status_of("/etc/brokkr/supervisor.toml")
            .expect("a status");
        assert_eq!(status.tenants.len(), 3);
    } else {
        assert_eq!(kind.trim(), "notify");
    }
    machine.says_again(read, before);
    println!("reloaded under systemd {}", systemd_version());
    let reloaded = machine.ready(3);
    machine.shows("ready 3/3");
    for name in ["acme", "globex"] {
        assert_eq!(
            reloaded.tenant(name).unwrap().pid,
            started.tenant(name).unwrap().pid
        );
    }
    assert_eq!(machine.main_pid(), main);

    // After a kill systemd starts another supervisor, which adopts every broker.
    let brokers = pids(&reloaded);
    let mut acme_says = Numbered::of(&machine, "acme", brokers[0].unwrap());
    acme_says.lines(20);
    // Only lines that the supervisor has passed on survive its kill, so wait for these.
    acme_says.are_in_the_journal();
    let drop_in = machine.path("/run/systemd/system/brokkr-supervisor.service.d");
    fs::create_dir_all(&drop_in).unwrap();
    fs::write(drop_in.join("later.conf"), "[Service]\nRestartSec=4s\n").unwrap();
    machine.ok(&["systemctl", "daemon-reload"]);
    let kept = Load::start(&addr, "/healthz", "", 2, false);
    // Three for each tenant, two of the embedded server, the index.
    let stored = 3 * 3 + 2 + 1;
    machine.in_step(stored);
    machine.ok(&["kill", "-9", &main]);
    machine.wait(60, "nobody to supervise", || match machine.main_pid() {
        pid if pid == "0" => Ok(()),
        pid => Err(pid),
    });
    // 32 KiB, half of a pipe; the other half is for the broker's lines about the load.
    acme_says.lines(512);
    assert_eq!(machine.main_pid(), "0", "nobody has read any of it yet");
    let second = machine.another_main_pid(&main);
    assert_eq!(pids(&machine.ready(3)), brokers);
    assert_eq!(machine.broker_count(), 3, "{}", machine.processes());
    acme_says.lines(20);
    acme_says.are_in_the_journal();
    machine.shows("ready 3/3");
    fs::remove_file(drop_in.join("later.conf")).unwrap();
    machine.ok(&["systemctl", "daemon-reload"]);
    assert!(api.get("/agents").expect(200).text().contains("edge-1"));
    machine.in_step(stored);

    // A restart, as by a package's upgrade, keeps the same brokers.
    machine.ok(&["systemctl", "restart", "brokkr-supervisor"]);
    assert_ne!(machine.main_pid(), second);
    assert_eq!(pids(&machine.ready(3)), brokers);

    // A bad configuration ends no adopted broker.
    let file = machine.path("/etc/brokkr/supervisor.toml");
    fs::write(&file, "this is not toml").unwrap();
    machine.ok(&["systemctl", "restart", "brokkr-supervisor"]);
    let notices = until(
        Duration::from_secs(60),
        "the last good configuration",
        || {
            let status = machine.status_of("/etc/brokkr/supervisor.toml")?;
            assert_eq!(pids(&status), brokers);
            status.all("ready").then_some(status.notices)
        },
    );
    assert!(
        notices.iter().any(|n| n.contains("supervisor.toml:1:")),
        "{notices:?}"
    );
    assert!(machine.ok(&AS_MEMBER).contains("notice: "));
    fs::write(&file, SUPERVISOR).unwrap();
    machine.ok(&["systemctl", "restart", "brokkr-supervisor"]);
    assert_eq!(pids(&machine.ready(3)), brokers);

    // An upgrade in place, without systemd.
    let main = machine.main_pid();
    let taken_over = "taken over as they are";
    let before = machine.times_said(taken_over);
    machine.ok(&[
        "systemctl",
        "kill",
        "--kill-who=main",
        "-s",
        "USR2",
        "brokkr-supervisor",
    ]);
    // The next program runs in the same process.
    machine.says_again(taken_over, before);
    assert_eq!(pids(&machine.ready(3)), brokers);
    assert_eq!(machine.main_pid(), main);
    acme_says.lines(20);
    acme_says.are_in_the_journal();
    let seen = kept.stop();
    assert!(seen.refused == 0 && seen.lost.is_empty(), "{seen:?}");

    // The state of another version cannot be read, and no broker is ended because of that.
    let wrapper = machine.path("/usr/bin/after-another-version");
    fs::write(&wrapper, AFTER_ANOTHER_VERSION).unwrap();
    brokkr_tests::test_dir::set_mode(&wrapper, 0o755);
    fs::write(
        drop_in.join("other.conf"),
        "[Service]\nExecStart=\nExecStart=/usr/bin/after-another-version\n",
    )
    .unwrap();
    machine.ok(&["systemctl", "daemon-reload"]);
    let main = machine.main_pid();
    machine.ok(&["kill", "-9", &main]);
    machine.another_main_pid(&main);
    machine.journal_says("it is of version 99");
    assert_eq!(pids(&machine.ready(3)), brokers);
    machine.in_step(stored);
    fs::remove_file(drop_in.join("other.conf")).unwrap();
    machine.ok(&["systemctl", "daemon-reload"]);
    machine.ok(&["systemctl", "restart", "brokkr-supervisor"]);
    assert_eq!(pids(&machine.ready(3)), brokers);

    // A stop right after a restart: the old supervisor has left its brokers running and none adopts them. Its
    // ExecStopPost waits until the stop is queued.
    let stop = machine.path("/run/stop-is-queued");
    fs::write(
        drop_in.join("slow.conf"),
        "[Service]\nExecStopPost=\n\
         ExecStopPost=/bin/sh -c 'until [ -e /run/stop-is-queued ]; do sleep 0.1; done'\n\
         ExecStopPost=/usr/bin/brokkr-supervisor sweep --config /etc/brokkr/supervisor.toml\n",
    )
    .unwrap();
    machine.ok(&["systemctl", "daemon-reload"]);
    let (left, drained) = ("gone; every broker runs on", "draining every tenant");
    let before = [left, drained].map(|what| machine.times_said(what));
    machine.ok(&["systemctl", "restart", "--no-block", "brokkr-supervisor"]);
    machine.says_again(left, before[0]);
    assert_eq!(machine.broker_count(), 3, "{}", machine.processes());
    machine.ok(&["systemctl", "stop", "--no-block", "brokkr-supervisor"]);
    fs::write(&stop, "").unwrap();
    machine.ok(&["systemctl", "stop", "brokkr-supervisor"]);
    assert_eq!(
        machine.times_said(drained),
        before[1],
        "no supervisor has drained them"
    );
    assert_eq!(machine.processes(), "");
    assert_eq!(machine.stored(), 0);
    machine.ok(&["systemctl", "start", "brokkr-supervisor"]);
    machine.ready(3);

    // The stop leaves no process and counts as no failure.
    machine.ok(&["systemctl", "stop", "brokkr-supervisor"]);
    assert_eq!(machine.processes(), "");
    let groups = machine.ok(&[
        "find",
        "/sys/fs/cgroup/brokkr.slice",
        "-mindepth",
        "2",
        "-type",
        "d",
    ]);
    assert_eq!(groups, "");
    let group = machine.path("/sys/fs/cgroup/brokkr.slice/brokkr-supervisor.service/cgroup.procs");
    assert_eq!(fs::read_to_string(group).unwrap_or_default(), "");
    assert_eq!(machine.ok(&["find", "/run/brokkr", "-type", "s"]), "");
    let result = machine.ok(&["systemctl", "show", "-P", "Result", "brokkr-supervisor"]);
    assert_eq!(result.trim(), "success");
    assert!(http::get(&addr, "/healthz").is_err());
    println!(
        "security: {}",
        machine
            .ok(&[
                "systemd-analyze",
                "security",
                "--no-pager",
                "brokkr-supervisor"
            ])
            .lines()
            .last()
            .unwrap_or_default()
    );
}
