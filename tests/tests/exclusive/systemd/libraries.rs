//! A library is replaced under running brokers.

use crate::systemd::booted::Booted;
use crate::systemd::pids;
use brokkr_tests::alone;

/// A script that replaces libc by a copy, as a package's upgrade does.
pub(crate) const UPGRADE: &str = r#"lib=$(ldd /usr/bin/brokkr-broker | awk '/libc[.]so/ {print $3}') && lib=$(readlink -f "$lib") &&
cp -p "$lib" "$lib.new" && mv "$lib.new" "$lib" && echo "$lib""#;
/// The script that needrestart runs in place of `systemctl restart`, without arguments.
const RESTART: &str = "/etc/needrestart/restart.d/brokkr-supervisor.service";

#[test]
fn after_an_upgrade_of_a_library_status_says_who_runs_the_old_one_and_needrestart_restarts_all() {
    let _alone = alone();
    let tenants = [
        ("acme", "unix:/run/brokkr/acme.sock"),
        ("globex", "unix:/run/brokkr/globex.sock"),
    ];
    let Some(machine) = Booted::with_tenants(&tenants) else {
        return;
    };
    machine.installed();
    machine.ok(&["systemctl", "start", "brokkr-supervisor"]);
    let before = pids(&machine.ready(2));
    // Returns each tenant's deleted files, once all brokers were examined.
    let deleted = || {
        machine.wait(60, "every broker to have been asked", || {
            let status = machine.ready(2);
            let files = status.tenants.iter().map(|t| t.deleted_maps.clone());
            let files: Option<Vec<Vec<String>>> = files.collect();
            files.map(|files| (status, files)).ok_or("not yet")
        })
    };
    let says = |notices: &[String]| notices.iter().any(|n| n.contains("no longer on disk"));
    let (status, files) = deleted();
    assert_eq!(files, [[""; 0], [""; 0]]);
    assert!(!says(&status.notices), "{:?}", status.notices);

    let library = machine.ok(&["sh", "-c", UPGRADE]);
    let library = library.trim();
    let main = machine.main_pid();
    machine.ok(&["systemctl", "restart", "brokkr-supervisor"]);
    let (status, files) = deleted();
    assert_eq!(pids(&status), before, "taken over");
    assert_eq!(files, [[library], [library]]);
    assert!(says(&status.notices), "{:?}", status.notices);
    let table = machine.ok(&["brokkr-supervisor", "status"]);
    brokkr_tests::says(&table, &[library, "--keep-going"]);

    let second = machine.main_pid();
    assert_ne!(second, main);
    machine.ok(&[RESTART]);
    assert_ne!(machine.main_pid(), second);
    let (status, files) = deleted();
    let after = pids(&status);
    assert!(
        after.iter().all(|pid| !before.contains(pid)),
        "{after:?} {before:?}"
    );
    assert!(status.tenants.iter().all(|t| t.restarts == 0), "{status:?}");
    assert_eq!(files, [[""; 0], [""; 0]]);
    assert!(!says(&status.notices), "{:?}", status.notices);
}
