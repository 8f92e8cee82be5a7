//! Under a real systemd: installed, started, reloaded, killed, restarted, stopped.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "tests"
)]

use brokkr_tests::host::Status;
use brokkr_tests::machine::{Machine, stage, systemd_version};
use brokkr_tests::place::{AtDeath, Place, is_root, mortal, spawn};
use brokkr_tests::wait::until_ok;
use brokkr_tests::{Addr, Api, Load, http, procs, until};
use serde_json::json;
use std::fs::{self, File};
use std::ops::Deref;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::Duration;

/// A booted systemd; gone when dropped.
struct Booted {
    machine: Machine,
    _nspawn: Nspawn,
    _place: Place,
}

/// What runs it; waited for when dropped, and ended if need be.
struct Nspawn(Child);

impl Booted {
    /// Boots one with what `make install` installs.
    fn boot(configuration: &[(&str, &str)]) -> Self {
        let place = Place::new();
        stage(&place, configuration);
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("systemd/box");
        let console = File::create(place.join("console")).unwrap();
        let mut boot = mortal(Path::new("unshare"), AtDeath::Kill, None);
        boot.arg("--mount")
            .arg(script)
            .arg(place.path())
            .stdin(Stdio::null())
            .stdout(console.try_clone().unwrap())
            .stderr(console);
        let mut nspawn = Nspawn(spawn(boot));
        let pid = i32::try_from(nspawn.0.id()).unwrap();
        let init = until(Duration::from_secs(30), "the box's systemd", || {
            if let Some(status) = nspawn.0.try_wait().unwrap() {
                let console = fs::read_to_string(place.join("console")).unwrap_or_default();
                panic!("the box ended ({status}): {console}");
            }
            let init = |child: &i32| {
                fs::read_to_string(format!("/proc/{child}/comm")).is_ok_and(|c| c == "systemd\n")
            };
            procs::children(pid).into_iter().find(init)
        });
        let booted = Self {
            machine: Machine::of(init),
            _nspawn: nspawn,
            _place: place,
        };
        until(Duration::from_secs(60), "the box to be up", || {
            let state = booted.run(&["systemctl", "is-system-running"]).stdout;
            matches!(state.trim(), "running" | "degraded").then_some(())
        });
        booted
    }
}

impl Deref for Booted {
    type Target = Machine;

    fn deref(&self) -> &Machine {
        &self.machine
    }
}

impl Drop for Booted {
    fn drop(&mut self) {
        // systemd: power off, at once.
        self.run(&["systemctl", "poweroff", "--force", "--force"]);
    }
}

impl Drop for Nspawn {
    fn drop(&mut self) {
        let start = std::time::Instant::now();
        while self.0.try_wait().is_ok_and(|ended| ended.is_none()) {
            if start.elapsed() > Duration::from_secs(5) {
                let _ = self.0.kill();
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

/// Why this cannot be tested here, if so.
fn impossible() -> Option<&'static str> {
    if !is_root() {
        return Some("a systemd of its own needs root");
    }
    if !Path::new("/usr/bin/systemd-nspawn").exists() {
        return Some("systemd-nspawn is not installed (make deps, as root)");
    }
    None
}

const SUPERVISOR: &str = r#"
tenants_dir = "/etc/brokkr/tenants.d"
state_dir   = "/var/lib/brokkr"
runtime_dir = "/run/brokkr"

[postgres]
embedded = true
max_connections = 60
"#;

/// `status`, asked by somebody who is nobody but a member of the group.
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

/// Pids of every tenant's broker, in order of their names.
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
    if let Some(reason) = impossible() {
        println!("skipped: {reason}");
        return;
    }
    let acme = tenant("acme", "unix:/run/brokkr/acme.sock");
    let globex = tenant("globex", "127.0.0.1:3002");
    let machine = Booted::boot(&[
        ("supervisor.toml", SUPERVISOR),
        ("tenants.d/acme.toml", &acme),
        ("tenants.d/globex.toml", &globex),
    ]);

    // What an administrator, or a package, does after the files are there.
    machine.ok(&["systemd-sysusers"]);
    machine.ok(&["systemd-tmpfiles", "--create", "brokkr.conf"]);
    machine.ok(&["systemctl", "daemon-reload"]);
    let verify = machine.run(&[
        "systemd-analyze",
        "verify",
        "/usr/lib/systemd/system/brokkr-supervisor.service",
        "/usr/lib/systemd/system/brokkr-tenants.service",
    ]);
    // It has something to say of units of the host's too.
    let of_ours = verify.stderr.lines().filter(|line| line.contains("brokkr"));
    assert_eq!(of_ours.collect::<Vec<_>>(), [""; 0], "{verify:?}");

    // Start.
    machine.ok(&["systemctl", "start", "brokkr-supervisor"]);
    let started = machine.ready(2);
    assert_eq!(
        machine
            .ok(&["systemctl", "is-active", "brokkr-tenants"])
            .trim(),
        "active"
    );
    // Whoever is in the group may give orders.
    let socket = ["stat", "-c", "%A %U:%G", "/run/brokkr/control.sock"];
    assert_eq!(machine.ok(&socket).trim(), "srw-rw---- brokkr:brokkr");
    machine.ok(&AS_MEMBER);
    let notices = &started.notices;
    assert!(
        !notices.iter().any(|n| n.contains("control.sock")),
        "{notices:?}"
    );
    // Each broker in a group of its own, below the unit that holds them.
    for tenant in &started.tenants {
        let groups = machine.ok(&["cat", &format!("/proc/{}/cgroup", tenant.pid.unwrap())]);
        let own = format!("0::/brokkr.slice/brokkr-tenants.service/{}.1", tenant.name);
        assert!(
            groups.lines().any(|line| line == own),
            "{groups}\n{}",
            machine.journal()
        );
    }
    let addr = Addr::Unix(machine.path("/run/brokkr/acme.sock"));
    assert_eq!(http::get(&addr, "/healthz").unwrap().text(), "OK");
    let pak = machine.ok(&["brokkr-supervisor", "pak", "acme"]);
    let api = Api::new(addr.clone(), pak.trim());
    api.post(
        "/agents",
        &json!({"name": "edge-1", "cluster_name": "berlin"}),
    )
    .expect(201);

    // Logs: each tenant's own.
    for name in ["acme", "globex"] {
        until(
            Duration::from_secs(10),
            format!("lines of {name} in the journal"),
            || (!machine.lines_of(name).is_empty()).then_some(()),
        );
    }

    // A file dropped, and a reload: nobody else is touched.
    let main = machine.main_pid();
    fs::write(
        machine.path("/etc/brokkr/tenants.d/initech.toml"),
        tenant("initech", "127.0.0.1:3003"),
    )
    .unwrap();
    machine.ok(&["systemctl", "reload", "brokkr-supervisor"]);
    let kind = machine.ok(&["systemctl", "show", "-P", "Type", "brokkr-supervisor"]);
    if systemd_version() >= 253 {
        assert_eq!(kind.trim(), "notify-reload");
        // It returns when the file has been read.
        let status = machine
            .status_of("/etc/brokkr/supervisor.toml")
            .expect("a status");
        assert_eq!(status.tenants.len(), 3);
    } else {
        assert_eq!(kind.trim(), "notify");
    }
    println!("reloaded under systemd {}", systemd_version());
    let reloaded = machine.ready(3);
    for name in ["acme", "globex"] {
        assert_eq!(
            reloaded.tenant(name).unwrap().pid,
            started.tenant(name).unwrap().pid
        );
    }
    assert_eq!(machine.main_pid(), main);

    // Killed: systemd starts another, which takes every broker over.
    let brokers = pids(&reloaded);
    let kept = Load::start(&addr, "/healthz", "", 2, false);
    // Three for each tenant, two of the embedded server, the index.
    let stored = 3 * 3 + 2 + 1;
    machine.in_step(stored);
    machine.ok(&["kill", "-9", &main]);
    let second = machine.another_main_pid(&main);
    assert_eq!(pids(&machine.ready(3)), brokers);
    assert_eq!(machine.broker_count(), 3, "{}", machine.processes());
    assert!(api.get("/agents").expect(200).text().contains("edge-1"));
    machine.in_step(stored);

    // Restarted, as a package does after an upgrade: the same brokers.
    machine.ok(&["systemctl", "restart", "brokkr-supervisor"]);
    assert_ne!(machine.main_pid(), second);
    assert_eq!(pids(&machine.ready(3)), brokers);

    // A bad configuration ends nobody that is held.
    let file = machine.path("/etc/brokkr/supervisor.toml");
    fs::write(&file, "this is not toml").unwrap();
    machine.ok(&["systemctl", "restart", "brokkr-supervisor"]);
    let notices = until(
        Duration::from_secs(30),
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

    // In place, without systemd's doing.
    let main = machine.main_pid();
    machine.ok(&[
        "systemctl",
        "kill",
        "--kill-who=main",
        "-s",
        "USR2",
        "brokkr-supervisor",
    ]);
    machine.journal_says("it understands what is handed over");
    assert_eq!(pids(&machine.ready(3)), brokers);
    assert_eq!(machine.main_pid(), main);
    let seen = kept.stop();
    assert!(seen.refused == 0 && seen.lost.is_empty(), "{seen:?}");

    // After a supervisor of another version: what it left cannot be read, and nobody is ended for it.
    let drop_in = machine.path("/run/systemd/system/brokkr-supervisor.service.d");
    fs::create_dir_all(&drop_in).unwrap();
    let wrapper = machine.path("/usr/bin/after-another-version");
    fs::write(&wrapper, AFTER_ANOTHER_VERSION).unwrap();
    brokkr_tests::place::set_mode(&wrapper, 0o755);
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

    // A stop behind a restart: the supervisor has left its brokers by then, and nobody comes for them.
    fs::write(
        drop_in.join("slow.conf"),
        "[Service]\nExecStopPost=\nExecStopPost=/bin/sleep 3\n\
         ExecStopPost=/usr/bin/brokkr-supervisor sweep --config /etc/brokkr/supervisor.toml\n",
    )
    .unwrap();
    machine.ok(&["systemctl", "daemon-reload"]);
    machine.ok(&["systemctl", "restart", "--no-block", "brokkr-supervisor"]);
    machine.journal_says("gone; every broker runs on");
    assert_eq!(machine.broker_count(), 3, "{}", machine.processes());
    machine.ok(&["systemctl", "stop", "brokkr-supervisor"]);
    assert_eq!(machine.processes(), "");
    assert_eq!(machine.stored(), 0);
    machine.ok(&["systemctl", "start", "brokkr-supervisor"]);
    machine.ready(3);

    // Stop: nothing is left, and it was no failure.
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

#[test]
fn a_thousand_instances_are_stored_and_taken_over_after_a_kill() {
    if let Some(reason) = impossible() {
        println!("skipped: {reason}");
        return;
    }
    const TENANTS: usize = 1000;
    // Nothing but processes: they never become ready, so all may start at once, and for long.
    let many = SUPERVISOR.replace("max_connections = 60", "max_connections = 2100")
        + "[start]\nparallelism = 1000\ntimeout = \"1h\"\n[stop]\ngrace = \"1s\"\n";
    let many = format!("broker = \"/usr/bin/trivial\"\n{many}");
    let machine = Booted::boot(&[("supervisor.toml", &many)]);
    let program = machine.path("/usr/bin/trivial");
    fs::write(&program, "#!/bin/sh\nexec sleep 100000\n").unwrap();
    brokkr_tests::place::set_mode(&program, 0o755);
    for n in 0..TENANTS {
        let name = format!("t{n:04}");
        let text = format!(
            "[database]\nschema = \"{name}\"\npool_size = 2\n[http]\nlisten = \"unix:/run/brokkr/{name}.sock\"\n"
        );
        fs::write(
            machine.path(&format!("/etc/brokkr/tenants.d/{name}.toml")),
            text,
        )
        .unwrap();
    }
    machine.ok(&["systemd-sysusers"]);
    machine.ok(&["systemd-tmpfiles", "--create", "brokkr.conf"]);
    machine.ok(&["systemctl", "daemon-reload"]);
    machine.ok(&["systemctl", "start", "brokkr-supervisor"]);
    let running = || {
        // Cheap to ask, which a status of a thousand tenants is not.
        until_ok(Duration::from_secs(300), "every process", || match machine
            .run(&["pgrep", "-u", "brokkr", "-c", "-x", "sleep"])
            .stdout
            .trim()
        {
            "1000" => Ok(()),
            count => Err(format!("{count}\n{}", machine.journal())),
        });
        until_ok(
            Duration::from_secs(60),
            "every tenant to have a process",
            || {
                let status = machine
                    .status_of("/etc/brokkr/supervisor.toml")
                    .ok_or_else(|| machine.journal())?;
                let with_pid = status.tenants.iter().filter(|t| t.pid.is_some()).count();
                if with_pid == TENANTS {
                    Ok(status)
                } else {
                    Err(format!("{with_pid}"))
                }
            },
        )
    };
    // Three for each, two of the embedded server, the index.
    let in_step = || machine.in_step(3 * TENANTS + 3);
    let before = pids(&running());
    in_step();
    let main = machine.main_pid();
    let start = std::time::Instant::now();
    machine.ok(&["kill", "-9", &main]);
    machine.another_main_pid(&main);
    let after = running();
    println!(
        "{TENANTS} instances taken over within {:?} of a kill",
        start.elapsed()
    );
    assert_eq!(pids(&after), before);
    assert!(after.tenants.iter().all(|t| t.restarts == 0));
    in_step();
    machine.ok(&["systemctl", "restart", "brokkr-supervisor"]);
    assert_eq!(pids(&running()), before);
    machine.ok(&["systemctl", "stop", "brokkr-supervisor"]);
    assert_eq!(machine.processes(), "");
}
