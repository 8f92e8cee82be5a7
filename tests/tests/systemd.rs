//! Under a real systemd: installed, started, reloaded, killed, restarted, stopped.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "tests"
)]

use brokkr_tests::bin::{self, Ran, run_command};
use brokkr_tests::host::Status;
use brokkr_tests::place::{AtDeath, Place, is_root, mortal, spawn};
use brokkr_tests::wait::until_ok;
use brokkr_tests::{Addr, Api, Load, http, procs, until};
use serde_json::{Value, json};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// A booted systemd; gone when dropped.
struct Machine {
    place: Place,
    nspawn: Child,
    init: i32,
}

impl Machine {
    /// Boots one with what `make install` installs.
    fn boot(configuration: &[(&str, &str)]) -> Self {
        let place = Place::new();
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        let mut make = Command::new("make");
        make.arg("--silent")
            .arg("-C")
            .arg(root)
            .arg("install")
            .arg(format!(
                "BIN={}",
                bin::supervisor().parent().unwrap().display()
            ))
            .arg(format!("DESTDIR={}", place.join("stage").display()))
            .arg(format!("SYSTEMD={}", systemd_version()))
            .env_remove("MAKEFLAGS")
            .env_remove("MAKELEVEL");
        run_command(make, Duration::from_secs(60)).ok();
        for (name, text) in configuration {
            fs::write(place.join("stage/etc/brokkr").join(name), text).unwrap();
        }
        if let Some(newer) = std::env::var_os("BROKKR_TESTS_SYSTEMD") {
            let mut copy = Command::new("cp");
            copy.arg("-a")
                .arg(Path::new(&newer).join("."))
                .arg(place.join("stage"));
            run_command(copy, Duration::from_secs(60)).ok();
        }
        let console = File::create(place.join("console")).unwrap();
        let mut boot = mortal(Path::new("unshare"), AtDeath::Kill, None);
        boot.arg("--mount")
            .arg(root.join("tests/systemd/box"))
            .arg(place.path())
            .stdin(Stdio::null())
            .stdout(console.try_clone().unwrap())
            .stderr(console);
        let nspawn = spawn(boot);
        let pid = i32::try_from(nspawn.id()).unwrap();
        let mut machine = Self {
            place,
            nspawn,
            init: 0,
        };
        machine.init = until(Duration::from_secs(30), "the box's systemd", || {
            if let Some(status) = machine.nspawn.try_wait().unwrap() {
                panic!("the box ended ({status}): {}", machine.console());
            }
            let init = |child: &i32| {
                fs::read_to_string(format!("/proc/{child}/comm")).is_ok_and(|c| c == "systemd\n")
            };
            procs::children(pid).into_iter().find(init)
        });
        until(Duration::from_secs(60), "the box to be up", || {
            let state = machine.run(&["systemctl", "is-system-running"]).stdout;
            matches!(state.trim(), "running" | "degraded").then_some(())
        });
        machine
    }

    fn console(&self) -> String {
        fs::read_to_string(self.place.join("console")).unwrap_or_default()
    }

    /// Runs a command in the box.
    fn run(&self, command: &[&str]) -> Ran {
        let mut nsenter = Command::new("nsenter");
        nsenter
            .args(["-t", &self.init.to_string(), "-a"])
            .args(command);
        nsenter
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .env("LC_ALL", "C");
        run_command(nsenter, Duration::from_secs(180))
    }

    fn ok(&self, command: &[&str]) -> String {
        let ran = self.run(command);
        assert_eq!(
            ran.code,
            Some(0),
            "{command:?}: {ran:?}\n{}",
            self.journal()
        );
        ran.stdout
    }

    fn journal(&self) -> String {
        self.run(&[
            "journalctl",
            "--no-pager",
            "-n",
            "80",
            "-u",
            "brokkr-supervisor",
        ])
        .stdout
    }

    /// A file of the box, seen from here.
    fn path(&self, path: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root{path}", self.init))
    }

    fn main_pid(&self) -> String {
        self.ok(&["systemctl", "show", "-P", "MainPID", "brokkr-supervisor"])
            .trim()
            .to_owned()
    }

    /// Waits until every tenant is ready and there are so many.
    fn ready(&self, tenants: usize) -> Status {
        until_ok(
            Duration::from_secs(60),
            format!("{tenants} tenants to be ready"),
            || {
                let ran = self.run(&["brokkr-supervisor", "status", "--format", "json"]);
                if ran.code != Some(0) {
                    return Err(format!("{ran:?}\n{}", self.journal()));
                }
                let status = Status::parse(&ran.stdout);
                if status.all("ready") && status.tenants.len() == tenants {
                    Ok(status)
                } else {
                    Err(format!("{status:#?}\n{}", self.journal()))
                }
            },
        )
    }

    /// Messages in the journal with `TENANT=name`.
    fn lines_of(&self, tenant: &str) -> Vec<String> {
        let field = format!("TENANT={tenant}");
        self.ok(&[
            "journalctl",
            "--no-pager",
            "-o",
            "json",
            "-u",
            "brokkr-supervisor",
            &field,
        ])
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap())
        .inspect(|line| assert_eq!(line["TENANT"], *tenant))
        .map(|line| line["MESSAGE"].as_str().unwrap_or_default().to_owned())
        .collect()
    }

    fn status_of(&self, config: &str) -> Option<Status> {
        let command = [
            "brokkr-supervisor",
            "status",
            "--format",
            "json",
            "--config",
            config,
        ];
        let ran = self.run(&command);
        (ran.code == Some(0)).then(|| Status::parse(&ran.stdout))
    }

    /// Waits for another main process than `old`.
    fn another_main_pid(&self, old: &str) -> String {
        until(Duration::from_secs(30), "another main process", || {
            let pid = self.main_pid();
            (pid != old && pid != "0").then_some(pid)
        })
    }

    /// Waits until the supervisor has said this.
    fn journal_says(&self, what: &str) {
        until_ok(
            Duration::from_secs(30),
            format!("the journal to say {what:?}"),
            || {
                // All of it: what brokers say meanwhile may be more than anybody would print.
                let found = self.run(&[
                    "journalctl",
                    "--no-pager",
                    "--quiet",
                    "--grep",
                    what,
                    "-u",
                    "brokkr-supervisor",
                ]);
                if found.stdout.contains(what) {
                    Ok(())
                } else {
                    Err(format!("{found:?}\n{}", self.journal()))
                }
            },
        );
    }

    /// How many descriptors systemd keeps for the unit.
    fn stored(&self) -> usize {
        let count = self.ok(&[
            "systemctl",
            "show",
            "-P",
            "NFileDescriptorStore",
            "brokkr-supervisor",
        ]);
        count.trim().parse().unwrap()
    }

    /// Waits until systemd keeps exactly so many.
    fn in_step(&self, stored: usize) {
        until_ok(
            Duration::from_secs(60),
            "the store to be in step",
            || match self.stored() {
                n if n == stored => Ok(()),
                n => Err(format!("{n}\n{}", self.journal())),
            },
        );
    }

    fn broker_count(&self) -> usize {
        let processes = self.processes();
        processes
            .lines()
            .filter(|l| l.contains("brokkr-broker serve"))
            .count()
    }

    /// Processes of user brokkr.
    fn processes(&self) -> String {
        self.run(&["pgrep", "-u", "brokkr", "-a"]).stdout
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // systemd: power off, at once.
        if self.init != 0 {
            self.run(&["systemctl", "poweroff", "--force", "--force"]);
        }
        let start = std::time::Instant::now();
        while self.nspawn.try_wait().is_ok_and(|ended| ended.is_none()) {
            if start.elapsed() > Duration::from_secs(5) {
                let _ = self.nspawn.kill();
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

/// Version of the systemd that is booted: this machine's, or what `tests/systemd/newer` has fetched.
fn systemd_version() -> u32 {
    let version = match std::env::var_os("BROKKR_TESTS_SYSTEMD") {
        Some(newer) => fs::read_to_string(Path::new(&newer).join("systemd-version")).unwrap(),
        None => {
            let mut systemctl = Command::new("systemctl");
            systemctl.arg("--version");
            let ran = run_command(systemctl, Duration::from_secs(10));
            let version = ran.stdout.split_whitespace().nth(1).map(str::to_owned);
            version.unwrap()
        }
    };
    version.trim().parse().unwrap()
}

const SUPERVISOR: &str = r#"
tenants_dir = "/etc/brokkr/tenants.d"
state_dir   = "/var/lib/brokkr"
runtime_dir = "/run/brokkr"

[postgres]
embedded = true
max_connections = 60
"#;

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
    let machine = Machine::boot(&[
        ("supervisor.toml", SUPERVISOR),
        ("good.toml", SUPERVISOR),
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
            let status = machine.status_of("/etc/brokkr/good.toml")?;
            assert_eq!(pids(&status), brokers);
            status.all("ready").then_some(status.notices)
        },
    );
    assert!(
        notices.iter().any(|n| n.contains("supervisor.toml:1:")),
        "{notices:?}"
    );
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
    let machine = Machine::boot(&[("supervisor.toml", &many)]);
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
