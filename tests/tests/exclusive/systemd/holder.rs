//! The unit that holds the brokers' cgroups, and two supervisors on one host.

use crate::systemd::booted::{Booted, impossible};
use crate::systemd::{SUPERVISOR, pids, tenant};
use brokkr_tests::host::Status;
use brokkr_tests::{Addr, Load, alone, http, until};
use std::fs;
use std::time::Duration;

const HOLDER: &str = "/sys/fs/cgroup/brokkr.slice/brokkr-tenants.service";

/// Returns the cgroup of a process.
fn group_of(machine: &Booted, pid: i32) -> String {
    let groups = machine.ok(&["cat", &format!("/proc/{pid}/cgroup")]);
    let own = groups.lines().find_map(|line| line.strip_prefix("0::"));
    own.unwrap().to_owned()
}

fn own_group(supervisor: &str, tenant: &str) -> String {
    format!("/brokkr.slice/brokkr-tenants.service/{supervisor}/{tenant}.")
}

fn all_in_their_groups(machine: &Booted, status: &Status, supervisor: &str) {
    for tenant in &status.tenants {
        let group = group_of(machine, tenant.pid.unwrap());
        let own = own_group(supervisor, &tenant.name);
        assert!(
            group.starts_with(&own),
            "{group}: {own}\n{}",
            machine.journal()
        );
    }
}

#[test]
fn the_holder_of_control_groups_ends_no_broker_and_a_broker_outside_is_put_back() {
    let _alone = alone();
    let tenants = [
        ("acme", "unix:/run/brokkr/acme.sock"),
        ("globex", "127.0.0.1:3002"),
    ];
    let Some(machine) = Booted::with_tenants(&tenants) else {
        return;
    };
    machine.installed();
    machine.ok(&["systemctl", "start", "brokkr-supervisor"]);
    let brokers = pids(&machine.ready(2));
    let load = Load::start(
        &Addr::Unix(machine.path("/run/brokkr/acme.sock")),
        "/healthz",
        "",
        2,
        false,
    );
    // A manual attempt is refused without an effect.
    for verb in ["restart", "stop"] {
        let refused = machine.run(&["systemctl", verb, "brokkr-tenants"]);
        assert!(
            refused.code != Some(0) && refused.stderr.contains("refused"),
            "{refused:?}"
        );
    }
    // A restart of the slice restarts the unit too, and every broker keeps running.
    for _ in 0..3 {
        let main = machine.main_pid();
        machine.ok(&["systemctl", "restart", "brokkr.slice"]);
        machine.another_main_pid(&main);
        let after = machine.ready(2);
        assert_eq!(pids(&after), brokers, "{}", machine.journal());
        all_in_their_groups(&machine, &after, "run-brokkr");
    }

    // A broker in the cgroup of an older version, and a broker outside all brokers' cgroups.
    let older = format!("{HOLDER}/acme.1");
    fs::create_dir(machine.path(&older)).unwrap();
    let outside = "/sys/fs/cgroup/brokkr.slice/brokkr-supervisor.service";
    for (group, pid) in [(older.as_str(), brokers[0]), (outside, brokers[1])] {
        // Written inside the machine, because pids there are those that the supervisor sees.
        let put = format!("echo {} >{group}/cgroup.procs", pid.unwrap());
        machine.ok(&["sh", "-c", &put]);
    }
    machine.ok(&["systemctl", "restart", "brokkr-supervisor"]);
    let put_back = machine.ready(2);
    assert_eq!(pids(&put_back), brokers);
    all_in_their_groups(&machine, &put_back, "run-brokkr");
    assert!(!machine.path(&older).exists());
    machine.journal_says("its broker ran outside its own control group, and is put back into one");
    for name in ["acme", "globex"] {
        let lines = machine.lines_of(name);
        assert!(
            lines.iter().any(|line| line.contains("is put back")),
            "{lines:?}"
        );
    }
    let seen = load.stop();
    assert!(seen.refused == 0 && seen.lost.is_empty(), "{seen:?}");

    // The pid of a journal line is its broker's, also for lines of other processes.
    for (name, pid) in [("acme", brokers[0]), ("globex", brokers[1])] {
        let of_tenant = format!("TENANT={name}");
        let said = machine.ok(&[
            "journalctl",
            "--no-pager",
            "-o",
            "json",
            "-u",
            "brokkr-supervisor",
            &of_tenant,
        ]);
        let pid = pid.unwrap().to_string();
        let mut supervisors = 0;
        for line in said.lines() {
            let line: serde_json::Value = serde_json::from_str(line).unwrap();
            let named = line.get("TENANT_PID");
            assert!(named.is_none_or(|named| *named == pid.as_str()), "{line}");
            supervisors += usize::from(line.get("SUPERVISOR_PID").is_some());
        }
        assert!(supervisors > 0, "{said}");
    }

    // A start right after a stop finds its address free, although systemd had the socket too.
    for _ in 0..15 {
        for verb in ["stop", "start"] {
            machine.ok(&["brokkr-supervisor", verb, "globex"]);
        }
    }
    assert_eq!(machine.times_said("another program has it"), 0);
    // The cgroups exist for the first broker after a time without brokers.
    for verb in ["stop", "start"] {
        machine.ok(&["brokkr-supervisor", verb, "--all"]);
    }
    all_in_their_groups(&machine, &machine.ready(2), "run-brokkr");

    machine.ok(&["systemctl", "stop", "brokkr-supervisor"]);
    assert_eq!(machine.processes(), "");
    let slice = "/sys/fs/cgroup/brokkr.slice";
    let left = machine.ok(&["find", slice, "-mindepth", "2", "-type", "d"]);
    assert_eq!(left, "");
    machine.ok(&["systemctl", "start", "brokkr-supervisor"]);
    machine.ready(2);
    machine.ok(&["systemctl", "stop", "brokkr.slice"]);
    assert_eq!(machine.processes(), "");

    // A shutdown does not wait for processes that nothing would end.
    machine.ok(&["systemctl", "start", "brokkr-supervisor"]);
    machine.ready(2);
    machine.run(&["systemctl", "poweroff"]);
    until(Duration::from_secs(60), "the machine to be off", || {
        (!machine.path("/run").exists()).then_some(())
    });
}

#[test]
fn a_runtime_folder_that_is_removed_is_made_again_and_credentials_are_read_in_a_shell() {
    let _alone = alone();
    if let Some(reason) = impossible() {
        println!("skipped: {reason}");
        return;
    }
    let acme = tenant("acme", "unix:/run/brokkr/acme.sock");
    let globex = tenant("globex", "127.0.0.1:3002").replace(
        "[database]\n",
        "[database]\nurl_file = \"${CREDENTIALS_DIRECTORY}/url\"\n",
    );
    let url = "postgres://brokkr@/brokkr?host=%2Frun%2Fbrokkr%2Fpostgres";
    let machine = Booted::boot(&[
        ("supervisor.toml", SUPERVISOR),
        ("url", url),
        ("tenants.d/acme.toml", &acme),
        ("tenants.d/globex.toml", &globex),
    ]);
    let drop_in = machine.path("/run/systemd/system/brokkr-supervisor.service.d");
    fs::create_dir_all(&drop_in).unwrap();
    fs::write(
        drop_in.join("url.conf"),
        "[Service]\nLoadCredential=url:/etc/brokkr/url\n",
    )
    .unwrap();
    machine.installed();
    machine.ok(&["systemctl", "start", "brokkr-supervisor"]);
    machine.ready(2);
    // A shell has no credentials of its own.
    let list = machine.ok(&["brokkr-supervisor", "tenant", "list"]);
    assert!(list.contains("globex"), "{list}");
    // Offline, because root is no user of the embedded server.
    let check = machine.ok(&["brokkr-supervisor", "check", "--offline"]);
    assert!(check.contains("globex"), "{check}");

    // The next supervisor makes the removed folder again, and a command meanwhile does not advise to start a second
    // supervisor.
    let noticed = " been removed, and ";
    for round in 0..2 {
        let before = machine.times_said(noticed);
        machine.ok(&["rm", "-rf", "/run/brokkr"]);
        if round == 1 {
            // A folder made by hand is used as it is.
            machine.ok(&[
                "install",
                "-d",
                "-o",
                "brokkr",
                "-g",
                "brokkr",
                "/run/brokkr",
            ]);
        } else {
            let asked = machine.run(&["brokkr-supervisor", "status"]);
            // Unless the folder exists again by now.
            assert!(
                machine.path("/run/brokkr").exists()
                    || asked.stderr.contains("there is no /run/brokkr"),
                "{asked:?}"
            );
        }
        machine.wait(60, "it to be noticed", || {
            match machine.times_said(noticed) {
                said if said > before => Ok(()),
                said => Err(said),
            }
        });
        machine.ready(2);
        let acme = Addr::Unix(machine.path("/run/brokkr/acme.sock"));
        until(Duration::from_secs(60), "acme to answer", || {
            let answer = http::get(&acme, "/readyz").ok()?;
            (answer.status == 200).then_some(())
        });
    }
    // Without a running supervisor, a start makes the folder too.
    machine.ok(&["systemctl", "stop", "brokkr-supervisor"]);
    assert_eq!(machine.processes(), "");
    machine.ok(&["rm", "-rf", "/run/brokkr"]);
    for verb in ["start", "restart"] {
        machine.ok(&["systemctl", verb, "brokkr-supervisor"]);
        machine.ready(2);
    }
    machine.ok(&["systemctl", "stop", "brokkr-supervisor"]);
    assert_eq!(machine.processes(), "");
}

/// Returns the status of the second supervisor.
fn second(machine: &Booted) -> Status {
    machine.wait(
        60,
        "the second supervisor's tenant to be ready",
        || match machine.status_of("/etc/brokkr2/supervisor.toml") {
            Some(status) if status.all("ready") && status.tenants.len() == 1 => Ok(status),
            other => Err(format!("{other:?}")),
        },
    )
}

#[test]
fn two_supervisors_of_one_host_leave_each_others_brokers_alone() {
    let _alone = alone();
    if let Some(reason) = impossible() {
        println!("skipped: {reason}");
        return;
    }
    // Both have a tenant acme, whose first instance has the same number.
    let machine = Booted::boot(&[
        ("supervisor.toml", SUPERVISOR),
        ("tenants.d/acme.toml", &tenant("acme", "127.0.0.1:3001")),
    ]);
    let other = SUPERVISOR
        .replace("/etc/brokkr/", "/etc/brokkr2/")
        .replace("/var/lib/brokkr", "/var/lib/brokkr2")
        .replace("/run/brokkr", "/run/brokkr2");
    fs::create_dir_all(machine.path("/etc/brokkr2/tenants.d")).unwrap();
    fs::write(machine.path("/etc/brokkr2/supervisor.toml"), other).unwrap();
    let acme = tenant("acme", "127.0.0.1:4001");
    fs::write(machine.path("/etc/brokkr2/tenants.d/acme.toml"), acme).unwrap();
    let unit = "/usr/lib/systemd/system/brokkr-supervisor.service";
    let unit = fs::read_to_string(machine.path(unit)).unwrap();
    let unit = unit
        .replace("/etc/brokkr/", "/etc/brokkr2/")
        .replace("RuntimeDirectory=brokkr\n", "RuntimeDirectory=brokkr2\n")
        .replace("StateDirectory=brokkr\n", "StateDirectory=brokkr2\n");
    fs::write(machine.path("/etc/systemd/system/second.service"), unit).unwrap();
    machine.installed();
    machine.ok(&["systemctl", "start", "brokkr-supervisor", "second"]);
    let first = pids(&machine.ready(1));
    let first_is_well = || {
        let status = machine.ready(1);
        assert_eq!(pids(&status), first, "{}", machine.journal());
        assert_eq!(status.tenants[0].restarts, 0);
        all_in_their_groups(&machine, &status, "run-brokkr");
    };
    let others = second(&machine);
    all_in_their_groups(&machine, &others, "run-brokkr2");
    first_is_well();

    // Restart and kill the second supervisor.
    machine.ok(&["systemctl", "restart", "second"]);
    assert_eq!(pids(&second(&machine)), pids(&others));
    machine.ok(&[
        "systemctl",
        "kill",
        "--kill-who=main",
        "-s",
        "KILL",
        "second",
    ]);
    machine.wait(60, "systemd to start the second again", || {
        let restarts = machine.ok(&["systemctl", "show", "-P", "NRestarts", "second"]);
        if restarts.trim() == "0" {
            Err(restarts)
        } else {
            Ok(())
        }
    });
    assert_eq!(pids(&second(&machine)), pids(&others));
    first_is_well();

    // Stop it, start it, and sweep by hand.
    machine.ok(&["systemctl", "stop", "second"]);
    first_is_well();
    assert_eq!(machine.broker_count(), 1, "{}", machine.processes());
    assert!(!machine.path(&format!("{HOLDER}/run-brokkr2")).exists());
    machine.ok(&["systemctl", "start", "second"]);
    let again = pids(&second(&machine));
    let sweep = [
        "brokkr-supervisor",
        "sweep",
        "--config",
        "/etc/brokkr2/supervisor.toml",
    ];
    let refused = machine.run(&sweep);
    assert!(
        refused.stderr.contains("another brokkr-supervisor"),
        "{refused:?}"
    );
    assert_eq!(pids(&second(&machine)), again);
    first_is_well();
    // And the same with the roles exchanged.
    machine.ok(&["systemctl", "stop", "brokkr-supervisor"]);
    assert_eq!(pids(&second(&machine)), again);
    machine.ok(&["systemctl", "stop", "second"]);
    assert_eq!(machine.processes(), "");
}
