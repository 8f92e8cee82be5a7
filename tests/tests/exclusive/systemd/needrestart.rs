//! Debian's needrestart finds old libraries in running programs, and restarts the units that these belong to.

use crate::systemd::booted::Booted;
use crate::systemd::libraries::UPGRADE;
use crate::systemd::pids;
use brokkr_tests::{Addr, Load, alone};
use std::path::Path;

/// The list of units with old libraries, and the units that needrestart would restart without a question.
const LIST: [&str; 5] = ["needrestart", "-l", "-v", "-r", "l"];
/// Restarts what is to be restarted, without a question. Other units of the machine are none of the test's concern.
const RESTART: &str = r#"printf '%s\n' '$nrconf{blacklist_rc} = [qr(^(?!brokkr))];' >/etc/needrestart/conf.d/zz-test.conf &&
needrestart -l -v -r a"#;

#[test]
fn needrestart_ends_no_broker_and_its_scripts_replace_every_broker_by_overlap() {
    let _alone = alone();
    let tenants = [
        ("acme", "unix:/run/brokkr/acme.sock"),
        ("globex", "unix:/run/brokkr/globex.sock"),
    ];
    let here = Path::new("/usr/sbin/needrestart").exists();
    if !here && std::env::var_os("BROKKR_TESTS_NEEDRESTART").is_none() {
        println!("skipped: no needrestart (tests/systemd/needrestart unpacks it)");
        return;
    }
    let Some(machine) = Booted::with_tenants(&tenants) else {
        return;
    };
    machine.installed();
    machine.ok(&["systemctl", "start", "brokkr-supervisor"]);
    let before = pids(&machine.ready(2));
    machine.ok(&["sh", "-c", UPGRADE]);

    // The supervisor's children count as parts of its unit, whose script replaces them (see the test of libraries).
    let seen = machine.run(&LIST);
    let child = format!(
        "#{} is a child of #{}",
        before[0].unwrap(),
        machine.main_pid()
    );
    assert!(seen.stderr.contains(&child), "{seen:?}");
    let script = "/etc/needrestart/restart.d/brokkr-supervisor.service";
    assert!(seen.stdout.contains(script), "{seen:?}");

    // Brokers of an earlier supervisor are children of none. needrestart finds them in a control group below a unit's, and
    // asks systemd for the unit: it gets brokkr-tenants.service, or only the slice once systemd has forgotten the unit's own
    // group, as systemd 252 does. The embedded server still counts as a part of the supervisor's unit, whose script runs.
    machine.ok(&["systemctl", "restart", "brokkr-supervisor"]);
    assert_eq!(pids(&machine.ready(2)), before);
    let addr = Addr::Unix(machine.path("/run/brokkr/acme.sock"));
    let kept = Load::start(&addr, "/healthz", "", 2, false);
    let seen = machine.run(&["sh", "-c", RESTART]);
    let broker = format!("#{} ", before[0].unwrap());
    let lines = seen.stderr.lines();
    let about: Vec<&str> = lines.filter(|line| line.contains(&broker)).collect();
    println!("needrestart of a broker: {about:#?}");
    let below = "unexpected cgroup '/brokkr.slice/brokkr-tenants.service/run-brokkr/acme.1'";
    assert!(about.iter().any(|line| line.contains(below)), "{seen:?}");
    let replaced = |before: &[Option<i32>]| {
        let status = machine.ready(2);
        let after = pids(&status);
        let all = after.iter().all(|pid| !before.contains(pid));
        assert!(all, "{after:?} {before:?}");
        assert!(status.tenants.iter().all(|t| t.restarts == 0), "{status:?}");
        after
    };
    let before = replaced(&before);

    // systemd refuses to restart the unit of the control groups. Our script in the place of that command replaces every
    // broker.
    let refused = machine.run(&["systemctl", "restart", "brokkr-tenants.service"]);
    assert_ne!(refused.code, Some(0));
    assert!(refused.stderr.contains("refused"), "{refused:?}");
    assert_eq!(pids(&machine.ready(2)), before);
    let main = machine.main_pid();
    machine.ok(&["/etc/needrestart/restart.d/brokkr-tenants.service"]);
    replaced(&before);
    assert_eq!(machine.main_pid(), main);
    let seen = kept.stop();
    assert!(seen.refused == 0 && seen.lost.is_empty(), "{seen:?}");
    let seen = machine.run(&LIST);
    assert!(!seen.stdout.contains("brokkr-tenants"), "{seen:?}");
}
