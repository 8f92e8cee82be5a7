//! `restart --all` goes through all tenants, a few at a time, and stops at the first that cannot be restarted.

use brokkr_tests::{Host, Load, SetAtEnd, says};
use std::sync::atomic::{AtomicBool, Ordering};

const NAMES: [&str; 6] = ["t1", "t2", "t3", "t4", "t5", "t6"];

#[test]
fn every_tenant_is_replaced_within_the_start_slots_and_no_request_is_refused() {
    let host = Host::builder().set("start.parallelism", "2").build();
    let tenants = NAMES.map(|name| host.tenant(name).pool(2).up());
    let stopped = host.tenant("stopped").pool(2).up();
    host.command(&["stop", "stopped"]).ok();
    let before = tenants.each_ref().map(|tenant| tenant.pid());
    let loads = tenants
        .each_ref()
        .map(|tenant| Load::start(&tenant.addr(), "/healthz", "", 1, false));
    let done = AtomicBool::new(false);
    let most = std::thread::scope(|scope| {
        let end = SetAtEnd::of(&done);
        let watching = scope.spawn(|| {
            let mut most = 0;
            while !done.load(Ordering::Relaxed) {
                let states = host.status().tenants;
                let starting = states
                    .iter()
                    .filter(|t| t.pending.is_some() || t.state != "ready")
                    .filter(|t| t.name != "stopped")
                    .count();
                most = most.max(starting);
            }
            most
        });
        let said = host.command(&["restart", "--all"]).ok();
        drop(end);
        assert!(!said.contains("stopped"), "{said}");
        watching.join().unwrap()
    });
    assert!((1..=2).contains(&most), "{most} at once");
    for (tenant, old) in tenants.iter().zip(before) {
        let status = tenant.status();
        assert_eq!(status.state, "ready");
        assert_ne!(status.pid, Some(old), "{}", tenant.name());
        assert_eq!(status.restarts, 0);
    }
    for load in loads {
        let seen = load.stop();
        assert_eq!((seen.refused, &seen.lost), (0, &Vec::new()), "{seen:?}");
    }
    assert_eq!(stopped.status().state, "stopped");
}

#[test]
fn the_first_failure_ends_it_unless_told_to_keep_going() {
    let host = Host::builder().set("start.parallelism", "1").build();
    let wrapper = host.wrap_broker();
    let tenants = NAMES.map(|name| host.tenant(name).pool(2).up());
    let before = tenants.each_ref().map(|tenant| tenant.pid());
    wrapper.first("t3", "echo 'not today' >&2; exit 1");
    let ran = host.command(&["restart", "--all"]);
    assert_eq!(ran.code, Some(1), "{ran:?}");
    for name in ["t4", "t5", "t6"] {
        let line = ran.stderr.lines().find(|line| line.starts_with(name));
        let line = line.unwrap_or_else(|| panic!("{name} is not in {ran:?}"));
        says(line, &["t3", "--keep-going"]);
    }
    let replaced = |pids: &[i32; 6]| {
        let now = tenants.each_ref().map(|tenant| tenant.pid());
        std::array::from_fn::<bool, 6, _>(|n| now[n] != pids[n])
    };
    assert_eq!(replaced(&before), [true, true, false, false, false, false]);
    assert!(tenants.iter().all(|t| t.status().state == "ready"));

    let before = tenants.each_ref().map(|tenant| tenant.pid());
    let ran = host.command(&["restart", "--all", "--keep-going"]);
    assert_eq!(ran.code, Some(1), "{ran:?}");
    assert_eq!(replaced(&before), [true, true, false, true, true, true]);
    wrapper.heal("t3");
    host.command(&["restart", "t3"]).ok();
}

#[test]
fn a_bad_file_beside_a_restart_is_told_and_does_not_undo_it() {
    let host = Host::new();
    let acme = host.tenant("acme").up();
    let globex = host.tenant("globex").up();
    let pids = [acme.pid(), globex.pid()];
    acme.write_file(&format!("{}\n[nonsense]\n", acme.read_file()));
    acme.wait("its bad file to be seen", |t| t.pending.is_some());
    let said = host.command(&["restart", "--all"]).ok();
    assert!(said.contains("nonsense"), "{said}");
    for (tenant, old) in [(&acme, pids[0]), (&globex, pids[1])] {
        assert_ne!(tenant.status().pid, Some(old));
    }
}

#[test]
fn a_reload_tries_once_more_what_a_broker_has_refused_as_misconfigured() {
    let host = Host::new();
    let wrapper = host.wrap_broker();
    let acme = host.tenant("acme").up();
    let old = acme.pid();
    wrapper.first("acme", "exit 78");
    assert_eq!(host.command(&["restart", "acme"]).code, Some(1));
    let ran = host.reload();
    assert_eq!(ran.code, Some(1), "{ran:?}");
    let said = format!("{}{}", ran.stdout, ran.stderr);
    assert!(said.contains("exit code 78"), "{ran:?}");
    let status = acme.status();
    assert!(
        status.pending.is_some() && status.pid == Some(old),
        "{status:?}"
    );
    wrapper.heal("acme");
    host.reload().ok();
    let _ = acme.replaced(old);
}
