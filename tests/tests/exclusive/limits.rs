//! `[limits]` on a kernel that has every cgroup v2 controller, under the units that `make install` installs.
//!
//! The test's host seldom delegates the controllers, so a user-mode Linux is booted once (`tests/systemd/uml`), and
//! this same program runs in it.

mod boot;
mod group;

use brokkr_tests::host::{Status, TenantStatus};
use brokkr_tests::pg::Options;
use brokkr_tests::systemd_host::Machine;
use brokkr_tests::test_dir::is_root;
use brokkr_tests::{Addr, Api, PgServer, alone, http, procs, says};
use group::{Allowed, figure, group, in_group, read};
use nix::sys::signal::Signal;
use serde_json::json;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{JoinHandle, sleep};
use std::time::{Duration, Instant, UNIX_EPOCH};

/// Set when this program runs inside the booted machine.
const INSIDE: &str = "BROKKR_TESTS_INSIDE";
/// The factor by which the machine may be slower than others.
const SLOWNESS: u32 = 4;

const ACME: &str =
    "[http]\nlisten = \"127.0.0.1:3001\"\n[database]\nschema = \"acme\"\npool_size = 8\n";
const GLOBEX: &str =
    "[http]\nlisten = \"127.0.0.1:3002\"\n[database]\nschema = \"globex\"\npool_size = 8\n";
const LIMITS: &str = "[limits]\nmemory_max = \"64M\"\npids_max = 48\ncpu_weight = 10\n";
/// Several of this size in flight at once exceed the memory limit.
const BUNDLE: usize = 15 << 20;

/// Returns the reason why this cannot be tested here.
fn impossible() -> Option<&'static str> {
    if !is_root() {
        return Some("limits are enforced on a kernel of its own, which needs root");
    }
    if !Path::new("/usr/bin/linux.uml").exists() {
        return Some("user-mode-linux is not installed (make deps, as root)");
    }
    None
}

#[test]
fn limits_are_enforced_on_their_tenant_alone_survive_the_supervisor_and_change_with_the_file() {
    let _alone = alone();
    if std::env::var_os(INSIDE).is_some() {
        return inside();
    }
    if let Some(reason) = impossible() {
        println!("skipped: {reason}");
        return;
    }
    let said = boot::on_a_machine_of_its_own(
        "limits::limits_are_enforced_on_their_tenant_alone_survive_the_supervisor_and_change_with_the_file",
    );
    // Some follow text of the test harness on the same line.
    let measured = said
        .lines()
        .filter_map(|line| line.split_once("measured: "));
    for (_, what) in measured {
        println!("measured: {what}");
    }
}

/// A client that polls a tenant all the time and needs every answer.
struct Watch {
    stop: Arc<AtomicBool>,
    asking: JoinHandle<(u32, Duration)>,
}

impl Watch {
    fn start(addr: Addr) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let over = Arc::clone(&stop);
        let asking = std::thread::spawn(move || {
            let (mut answers, mut slowest) = (0, Duration::ZERO);
            while !over.load(Ordering::Relaxed) {
                let start = Instant::now();
                assert_eq!(http::get(&addr, "/healthz").unwrap().text(), "OK");
                slowest = slowest.max(start.elapsed());
                answers += 1;
                // The pause leaves time to others, because the machine has one processor.
                sleep(Duration::from_millis(200));
            }
            (answers, slowest)
        });
        Self { stop, asking }
    }

    fn stop(self) -> (u32, Duration) {
        self.stop.store(true, Ordering::Relaxed);
        self.asking.join().unwrap()
    }
}

/// The host of the two tenants, inside the booted machine.
struct Host {
    machine: Machine,
    globex: i32,
    start: Instant,
}

impl Host {
    /// Prints the progress and a measurement.
    fn measured(&self, what: &str) {
        println!("measured: after {:.1?}: {what}", self.start.elapsed());
    }

    /// Reads the status over the control socket, because starting the program takes half a second of this machine's
    /// processor.
    fn status(&self) -> Result<Status, String> {
        let control = Addr::Unix(self.machine.path("/run/brokkr/control.sock"));
        let answer = http::get(&control, "/v1/status").map_err(|error| error.to_string())?;
        Ok(Status::parse(&answer.text()))
    }

    fn acme(&self) -> TenantStatus {
        self.machine
            .wait(60, "status", || self.status())
            .tenant("acme")
            .unwrap()
            .clone()
    }

    /// Waits until both are ready and `want` accepts acme; globex must be unchanged.
    fn acme_is(&self, what: &str, want: impl Fn(&TenantStatus) -> bool) -> TenantStatus {
        let seen = self.ready(what, |status| want(status.tenant("acme").unwrap()));
        let globex = seen.tenant("globex").unwrap();
        assert_eq!((globex.pid, globex.restarts), (Some(self.globex), 0));
        seen.tenant("acme").unwrap().clone()
    }

    fn ready(&self, what: &str, want: impl Fn(&Status) -> bool) -> Status {
        self.machine.wait(40, what, || {
            let status = self.status()?;
            if status.all("ready") && status.tenants.len() == 2 && want(&status) {
                Ok(status)
            } else {
                Err(format!("{status:#?}"))
            }
        })
    }

    /// Returns the output of a command of `brokkr-supervisor`.
    fn said(&self, command: &[&str]) -> String {
        let command = [&["brokkr-supervisor"], command].concat();
        self.machine.wait(60, "an answer", || {
            let ran = self.machine.run(&command);
            match ran.code {
                Some(0) => Ok(ran.stdout),
                _ => Err(format!("{ran:?}")),
            }
        })
    }

    fn set_acme(&self, limits: &str) {
        let new = self.machine.path("/etc/brokkr/tenants.d/.acme.new");
        fs::write(&new, format!("{ACME}{limits}")).unwrap();
        fs::rename(new, self.machine.path("/etc/brokkr/tenants.d/acme.toml")).unwrap();
        self.machine.ok(&["chgrp", "-R", "brokkr", "/etc/brokkr"]);
    }
}

fn inside() {
    let start = Instant::now();
    let machine = Machine::own(SLOWNESS);
    let mut host = Host {
        machine,
        globex: 0,
        start,
    };
    let server = PgServer::with(Options::new().max_connections(40));
    host.measured("PostgreSQL");
    // The machine does not notice changes on the host's file system.
    host.machine
        .ok(&["mount", "-t", "tmpfs", "tmpfs", "/etc/brokkr"]);
    fs::create_dir("/etc/brokkr/tenants.d").unwrap();
    fs::write("/etc/brokkr/tenants.d/globex.toml", GLOBEX).unwrap();
    let supervisor = format!(
        "tenants_dir = \"/etc/brokkr/tenants.d\"\nstate_dir = \"/var/lib/brokkr\"\nruntime_dir = \"/run/brokkr\"\n\
         [start]\ntimeout = \"5m\"\n[health]\ninterval = \"5s\"\ntimeout = \"4s\"\n[defaults.database]\nurl = \"{}\"\n",
        server.url("brokkr", "brokkr")
    );
    fs::write("/etc/brokkr/supervisor.toml", supervisor).unwrap();
    fs::write("/etc/brokkr/tenants.d/acme.toml", format!("{ACME}{LIMITS}")).unwrap();
    host.machine.ok(&["systemd-sysusers"]);
    host.machine
        .ok(&["systemd-tmpfiles", "--create", "brokkr.conf"]);
    host.machine
        .ok(&["systemctl", "start", "brokkr-supervisor"]);
    host.measured("started");
    let started = host.ready("both tenants", |_| true);
    host.globex = started.tenant("globex").unwrap().pid.unwrap();
    host.measured("both ready");
    let watch = Watch::start(Addr::port(3002));
    let acme = started.tenant("acme").unwrap();

    they_stand_in_the_group_and_only_there(&host, &started);
    processes_are_bounded(&host, acme);
    a_clock_that_jumps_changes_no_decision(&host, &started);
    processor_time_is_shared_by_weight(&host, &started);
    let replaced = out_of_memory_by_requests(&host, acme);
    they_survive_the_supervisor(&host, &replaced);
    they_change_with_the_file(&host);

    let (answers, slowest) = watch.stop();
    host.measured(&format!(
        "globex answered all {answers} requests, the slowest after {slowest:.1?}"
    ));
    assert_eq!(host.acme_is("the end", |_| true).state, "ready");
    host.machine.ok(&["systemctl", "stop", "brokkr-supervisor"]);
    assert_eq!(host.machine.processes(), "");
    let groups = [
        "find",
        "/sys/fs/cgroup/brokkr.slice",
        "-mindepth",
        "2",
        "-type",
        "d",
    ];
    assert_eq!(host.machine.ok(&groups), "");
    host.measured("stopped");
}

fn they_stand_in_the_group_and_only_there(host: &Host, status: &Status) {
    assert_eq!(
        Allowed::of(&group(status.tenant("acme").unwrap())),
        Allowed::new("67108864", "0", "1", "10", "48")
    );
    assert_eq!(
        Allowed::of(&group(status.tenant("globex").unwrap())),
        Allowed::new("max", "max", "0", "100", "64")
    );
    let shown = host.said(&["status", "--format", "json"]);
    assert!(
        !shown.contains("not enforced") && !shown.contains("without effect"),
        "{shown}"
    );
}

/// Waits for an answer 200, because on so slow a machine an answer may be late.
fn answers(host: &Host, api: &Api, path: &str) {
    host.machine
        .wait(60, path, || match api.try_call("GET", path, None) {
            Ok(answer) if answer.status == 200 => Ok(()),
            other => Err(format!("{other:?}")),
        });
}

/// Fills the cgroup with processes until it takes no more; its broker still answers, and the other tenant is
/// unaffected.
fn processes_are_bounded(host: &Host, acme: &TenantStatus) {
    let group = group(acme);
    let mut full = in_group(&group, "while sleep 1000 & do :; done");
    assert!(!full.wait().unwrap().success());
    assert!(figure(&group, "pids.events", "max ") > 0);
    assert!(read(&group, "pids.current").parse::<u32>().unwrap() <= 48);
    let admin = Api::new(Addr::port(3001), host.said(&["pak", "acme"]).trim());
    answers(host, &admin, "/agents");
    for pid in read(&group, "cgroup.procs").lines() {
        let pid = pid.parse().unwrap();
        if Some(pid) != acme.pid {
            procs::signal(pid, Signal::SIGKILL);
        }
    }
    host.measured("the group took 48 processes and threads and no more");
    assert_eq!(host.acme().pid, acme.pid);
}

/// Sets the clock forward, back, and right again, without an effect on the brokers.
fn a_clock_that_jumps_changes_no_decision(host: &Host, started: &Status) {
    let pids = |status: &Status| status.tenants.iter().map(|t| t.pid).collect::<Vec<_>>();
    let admin = Api::new(Addr::port(3001), host.said(&["pak", "acme"]).trim());
    let main = host.machine.main_pid();
    for hours in [1, -2, 1] {
        let now = UNIX_EPOCH.elapsed().unwrap().as_secs();
        let then = now.checked_add_signed(hours * 3600).unwrap();
        host.machine.ok(&["date", "-s", &format!("@{then}")]);
        assert!(UNIX_EPOCH.elapsed().unwrap().as_secs().abs_diff(then) < 600);
        // Longer than the interval of probes.
        brokkr_tests::holds_for(Duration::from_secs(6), "both are ready", || {
            let status = host.status()?;
            let well = status.all("ready") && status.tenants.iter().all(|t| t.restarts == 0);
            if well && pids(&status) == pids(started) {
                Ok(())
            } else {
                Err(format!("{status:#?}"))
            }
        });
        answers(host, &admin, "/agents");
    }
    assert_eq!(host.machine.main_pid(), main);
    host.measured("the clock was set an hour forward, two back, and right");
}

/// Runs a process in each of two cgroups, both of which want the whole processor.
fn processor_time_is_shared_by_weight(host: &Host, status: &Status) {
    let groups = ["acme", "globex"].map(|name| group(status.tenant(name).unwrap()));
    let mut busy = groups
        .each_ref()
        .map(|group| in_group(group, "while :; do :; done"));
    let used = || {
        groups
            .each_ref()
            .map(|group| figure(group, "cpu.stat", "usage_usec "))
    };
    let before = used();
    let [acme, globex] = host.machine.wait(60, "two seconds of processor time", || {
        let now = used();
        let spent = [now[0] - before[0], now[1] - before[1]];
        if spent.iter().sum::<u64>() > 2_000_000 {
            Ok(spent)
        } else {
            Err(format!("{spent:?}"))
        }
    });
    for busy in &mut busy {
        busy.kill().unwrap();
        busy.wait().unwrap();
    }
    host.measured(&format!(
        "of weights 10 and 100: {} and {} ms of processor time",
        acme / 1000,
        globex / 1000
    ));
    // No more exact, because the loaded host disturbs the machine.
    assert!(3 * acme < 2 * globex, "{acme} {globex}");
}

/// Sends several bundles at once, each allowed by the API, which together exceed this tenant's memory limit.
fn out_of_memory_by_requests(host: &Host, acme: &TenantStatus) -> TenantStatus {
    let admin = Api::new(Addr::port(3001), host.said(&["pak", "acme"]).trim());
    let made = admin.create("/generators", &json!({"name": "ci"}));
    let generator = admin.with_pak(made["pak"].as_str().unwrap());
    let stack = json!({"name": "big", "generator_id": made["generator"]["id"]});
    let stack = generator.create("/stacks", &stack);
    let path = format!(
        "/stacks/{}/deployment-objects",
        stack["id"].as_str().unwrap()
    );
    let bundle = format!("a: \"{}\"\n", "x".repeat(BUNDLE));
    let start = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            // Until the broker is killed.
            scope.spawn(|| {
                while procs::alive(acme.pid.unwrap()) {
                    let _ = generator.try_bytes(
                        "POST",
                        &path,
                        "application/yaml",
                        Some(bundle.as_bytes()),
                    );
                }
            });
        }
        let _ = host.acme_is("acme to be out of memory and started again", |acme| {
            acme.restarts >= 1
        });
        host.measured(&format!(
            "out of memory and ready again within {:.1?}",
            start.elapsed()
        ));
    });
    // The last bundles may have waited for the next instance and killed that too.
    let replaced = host.acme_is("acme to be ready when all is quiet", |acme| {
        acme.restarts >= 1 && acme.pid.is_some_and(procs::alive)
    });
    assert_eq!(
        replaced.last_exit.as_deref(),
        Some("killed by SIGKILL: out of memory ([limits] memory_max)")
    );
    assert_ne!(replaced.pid, acme.pid);
    assert_eq!(
        Allowed::of(&group(&replaced)),
        Allowed::new("67108864", "0", "1", "10", "48")
    );
    answers(host, &generator, "/stacks");
    replaced
}

fn they_survive_the_supervisor(host: &Host, acme: &TenantStatus) {
    let same = |now: &TenantStatus| now.pid == acme.pid;
    let limits = Allowed::new("67108864", "0", "1", "10", "48");
    let main = host.machine.main_pid();
    host.machine.ok(&["kill", "-9", &main]);
    let second = host.machine.another_main_pid(&main);
    assert_eq!(Allowed::of(&group(&host.acme_is("adoption", same))), limits);
    host.measured("adopted after kill -9");
    // As the upgrade of a package does.
    host.machine.ok(&["systemctl", "daemon-reload"]);
    host.machine
        .ok(&["systemctl", "restart", "brokkr-supervisor"]);
    assert_ne!(host.machine.main_pid(), second);
    let kept = group(&host.acme_is("adoption", same));
    assert_eq!(Allowed::of(&kept), limits);
    host.measured("adopted after a restart");

    // The limit is still in force: a process that exceeds it ends the whole cgroup, and the adopting supervisor sees
    // that.
    let mut hog = in_group(&kept, "exec tail /dev/zero");
    assert!(!hog.wait().unwrap().success());
    let replaced = host.acme_is("its replacement", |now| {
        now.pid.is_some() && now.pid != acme.pid
    });
    let said = replaced.last_exit.unwrap_or_default();
    says(&said, &["out of memory ([limits] memory_max)"]);
    host.measured("an adopted one out of memory, and replaced");

    // Another end is not taken for out of memory.
    let old = replaced.pid;
    procs::signal(old.unwrap(), Signal::SIGKILL);
    let replaced = host.acme_is("its replacement", |now| now.pid.is_some() && now.pid != old);
    assert_eq!(replaced.last_exit.as_deref(), Some("killed by SIGKILL"));
    assert_eq!(Allowed::of(&group(&replaced)), limits);
    host.measured("killed, and replaced");
}

fn they_change_with_the_file(host: &Host) {
    let before = host.acme();
    host.set_acme("[limits]\nmemory_max = \"96M\"\npids_max = 64\n");
    let grown = host.acme_is("a replacement", |now| {
        now.pid.is_some() && now.pid != before.pid
    });
    assert_eq!(grown.restarts, before.restarts);
    assert_eq!(
        Allowed::of(&group(&grown)),
        Allowed::new("100663296", "0", "1", "100", "64")
    );
    host.measured("replaced by overlap with other limits");

    // With too little memory the next instance does not start; the present instance serves on.
    host.set_acme("[limits]\nmemory_max = \"1M\"\n");
    let tried = host.acme_is("a failed replacement", |now| {
        now.pending
            .as_ref()
            .is_some_and(|pending| pending.contains("replacement failed"))
    });
    assert_eq!(tried.pid, grown.pid);
    host.measured(&format!(
        "too little: {}",
        tried.pending.unwrap_or_default()
    ));

    host.set_acme("");
    let free = host.acme_is("a replacement", |now| {
        now.pending.is_none() && now.pid.is_some() && now.pid != grown.pid
    });
    assert_eq!(
        Allowed::of(&group(&free)),
        Allowed::new("max", "max", "0", "100", "64")
    );
    host.measured("replaced without limits");
}
