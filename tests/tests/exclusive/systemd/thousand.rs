//! A thousand instances in the descriptor store.

use crate::systemd::booted::{Booted, impossible};
use crate::systemd::{SUPERVISOR, pids};
use brokkr_tests::alone;
use brokkr_tests::host::Status;
use brokkr_tests::wait::until_ok;
use std::fs;
use std::time::Duration;

#[test]
fn a_thousand_instances_are_stored_and_taken_over_after_a_kill() {
    let _alone = alone();
    if let Some(reason) = impossible() {
        println!("skipped: {reason}");
        return;
    }
    const TENANTS: usize = 1000;
    // Mere processes that never become ready, so all may start at once and take long.
    let many = SUPERVISOR.replace("max_connections = 60", "max_connections = 2100")
        + "[start]\nparallelism = 1000\ntimeout = \"1h\"\n[stop]\ngrace = \"1s\"\n";
    let many = format!("broker = \"/usr/bin/trivial\"\n{many}");
    let machine = Booted::boot(&[("supervisor.toml", &many)]);
    let program = machine.path("/usr/bin/trivial");
    fs::write(&program, "#!/bin/sh\nexec sleep 100000\n").unwrap();
    brokkr_tests::test_dir::set_mode(&program, 0o755);
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
    machine.installed();
    machine.ok(&["systemctl", "start", "brokkr-supervisor"]);
    let running = || {
        // Counting processes is cheap, unlike a status of a thousand tenants.
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
            "every tenant to have a process, and their server to be seen",
            || {
                let status = machine
                    .status_of("/etc/brokkr/supervisor.toml")
                    .ok_or_else(|| machine.journal())?;
                let with_pid = status.tenants.iter().filter(|t| t.pid.is_some()).count();
                // A broker that ends before its server has been tried does not count as failed.
                if with_pid == TENANTS && status.servers.iter().any(|server| server.up) {
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
        "measured: {TENANTS} instances taken over within {:.1} s of a kill",
        start.elapsed().as_secs_f64()
    );
    assert_eq!(pids(&after), before);
    assert!(after.tenants.iter().all(|t| t.restarts == 0));
    in_step();

    // All are supervised as before: a killed instance is started again, and no other.
    let victim = &after.tenants[TENANTS / 2];
    let old = victim.pid.unwrap();
    machine.ok(&["kill", "-9", &old.to_string()]);
    let replaced = machine.wait(120, "the killed one to be started again", || {
        let status = machine
            .status_of("/etc/brokkr/supervisor.toml")
            .ok_or("no status")?;
        let now = status.tenant(&victim.name).unwrap();
        if now.restarts == 1 && now.pid.is_some_and(|pid| pid != old) {
            Ok(status)
        } else {
            Err("not yet")
        }
    });
    let others = |status: &Status| -> Vec<(String, Option<i32>)> {
        let others = status.tenants.iter().filter(|t| t.name != victim.name);
        others.map(|t| (t.name.clone(), t.pid)).collect()
    };
    assert_eq!(others(&replaced), others(&after));
    in_step();
    machine.ok(&["systemctl", "restart", "brokkr-supervisor"]);
    assert_eq!(pids(&running()), pids(&replaced));
    machine.ok(&["systemctl", "stop", "brokkr-supervisor"]);
    assert_eq!(machine.processes(), "");
}
