//! A supervisor that is stopped by SIGSTOP.

use crate::systemd::booted::Booted;
use crate::systemd::pids;
use brokkr_tests::{Addr, Load, alone};
use std::fs;
use std::time::Instant;

#[test]
fn a_supervisor_that_stands_still_is_ended_by_the_watchdog_and_its_brokers_are_taken_over() {
    let _alone = alone();
    let tenants = [
        ("acme", "unix:/run/brokkr/acme.sock"),
        ("globex", "127.0.0.1:3002"),
    ];
    let Some(machine) = Booted::with_tenants(&tenants) else {
        return;
    };
    let drop_in = machine.path("/run/systemd/system/brokkr-supervisor.service.d");
    fs::create_dir_all(&drop_in).unwrap();
    // The default is thirty seconds.
    fs::write(drop_in.join("soon.conf"), "[Service]\nWatchdogSec=5s\n").unwrap();
    machine.installed();
    machine.ok(&["systemctl", "start", "brokkr-supervisor"]);
    let before = machine.ready(2);
    machine.shows("ready 2/2");
    let load = Load::start(
        &Addr::Unix(machine.path("/run/brokkr/acme.sock")),
        "/healthz",
        "",
        2,
        false,
    );
    let main = machine.main_pid();
    let taken_over = "taken over as they are";
    assert_eq!(machine.times_said(taken_over), 0);
    let stopped = Instant::now();
    machine.ok(&["kill", "-STOP", &main]);
    machine.another_main_pid(&main);
    machine.journal_says("Watchdog timeout");
    machine.journal_says(taken_over);
    let after = machine.ready(2);
    println!(
        "measured: a supervisor that stands still is ended and its brokers are taken over after {:.1} s, with a watchdog of 5 s",
        stopped.elapsed().as_secs_f64()
    );
    assert_eq!(pids(&after), pids(&before));
    assert!(after.tenants.iter().all(|t| t.restarts == 0), "{after:?}");
    machine.shows("ready 2/2");
    let seen = load.stop();
    assert!(seen.refused == 0 && seen.lost.is_empty(), "{seen:?}");
    assert!(seen.count(200) > 0 && seen.answers.len() == 1, "{seen:?}");
    machine.ok(&["systemctl", "stop", "brokkr-supervisor"]);
    assert_eq!(machine.processes(), "");
}
