//! Brokers that die, hang, exit at once or never become ready: no other tenant is affected.

use brokkr_tests::{Host, Load, http, procs, says, until};
use nix::sys::signal::Signal;
use std::time::Duration;

#[test]
fn a_killed_broker_is_replaced_and_no_connection_is_refused() {
    let host = Host::new();
    let acme = host.tenant("acme").up();
    let globex = host.tenant("globex").up();
    let (acme_pid, globex_pid) = (acme.pid(), globex.pid());
    let load = Load::start(&acme.addr(), "/healthz", "", 4, false);

    procs::signal(acme_pid, Signal::SIGKILL);
    let status = acme.replaced(acme_pid);
    assert_eq!(status.restarts, 1);
    let seen = load.stop();
    assert_eq!(seen.refused, 0, "{seen:?}");
    // Only requests that the killed process held are lost.
    assert!(seen.lost.len() <= 4, "{seen:?}");
    assert!(
        seen.count(200) > 0 && seen.answers.keys().all(|s| *s == 200),
        "{seen:?}"
    );
    assert_eq!(acme.api().get("/agents").status, 200);
    assert_eq!((globex.pid(), globex.status().restarts), (globex_pid, 0));
}

#[test]
fn a_frozen_broker_is_found_by_its_probes_and_replaced() {
    let host = Host::builder()
        .set("health.interval", "\"300ms\"")
        .set("health.timeout", "\"300ms\"")
        .build();
    let acme = host.tenant("acme").up();
    let globex = host.tenant("globex").up();
    let (acme_pid, globex_pid) = (acme.pid(), globex.pid());
    procs::signal(acme_pid, Signal::SIGSTOP);
    let status = acme.replaced(acme_pid);
    assert_eq!(status.restarts, 1);
    assert!(!procs::alive(acme_pid));
    assert_eq!(acme.get("/healthz").status, 200);
    // The state of its threads was logged before it was killed.
    let log = host.log();
    assert!(
        log.contains("acme") && log.to_lowercase().contains("hung"),
        "{log}"
    );
    assert_eq!((globex.pid(), globex.status().restarts), (globex_pid, 0));
}

#[test]
fn a_broker_that_exits_at_once_is_tried_again_with_growing_pauses_and_its_last_words_are_shown() {
    let host = Host::new();
    let wrapper = host.wrap_broker();
    let acme = host.tenant("acme").up();
    let pid = acme.pid();
    wrapper.first("globex", "echo 'the dog ate my configuration' >&2; exit 1");
    let globex = host.tenant("globex").write();
    let status = globex.wait("in backoff with some exits", |t| {
        t.state == "backoff" && t.restarts >= 3
    });
    assert!(status.reason.is_some());
    let words = status.last_words.join("\n");
    assert!(words.contains("the dog ate my configuration"), "{status:?}");
    assert_eq!((acme.pid(), acme.status().restarts), (pid, 0));
    assert_eq!(acme.get("/healthz").status, 200);
    // At most one process of the failing tenant at a time.
    assert!(host.broker_pids().len() <= 2);

    wrapper.heal("globex");
    host.command(&["start", "globex"]).ok();
    globex.becomes("ready");
}

#[test]
fn a_broker_that_says_configuration_is_not_tried_in_a_loop() {
    let host = Host::new();
    let wrapper = host.wrap_broker();
    wrapper.first(
        "acme",
        &format!("echo once >> {}/tries; exit 78", host.root().display()),
    );
    let acme = host.tenant("acme").write();
    host.up();
    acme.becomes("backoff");
    let tries = || {
        std::fs::read_to_string(host.root().join("tries"))
            .unwrap()
            .lines()
            .count()
    };
    brokkr_tests::holds_for(Duration::from_secs(3), "it is tried once", || {
        match tries() {
            1 => Ok(()),
            n => Err(format!("{n} tries")),
        }
    });
    // The operator's command ends the wait; the configuration is unchanged.
    wrapper.heal("acme");
    host.command(&["restart", "acme"]);
    acme.becomes("ready");
}

#[test]
fn a_broker_that_never_becomes_ready_is_ended_and_tried_again() {
    let host = Host::builder()
        .set("start.timeout", "\"1s\"")
        .set("stop.grace", "\"1s\"")
        .build();
    let wrapper = host.wrap_broker();
    wrapper.first("acme", "exec sleep 1000");
    let acme = host.tenant("acme").write();
    host.up();
    let status = acme.wait("in backoff", |t| t.state == "backoff");
    assert!(
        status
            .reason
            .as_deref()
            .is_some_and(|r| r.contains("ready")),
        "{status:?}"
    );
    wrapper.heal("acme");
    acme.becomes("ready");
    until(
        Duration::from_secs(10),
        "nothing of the slow one to be left",
        || {
            let sleeping = procs::naming(&format!("{}/run", host.root().display()));
            sleeping
                .iter()
                .all(|pid| !procs::arguments(*pid).iter().any(|a| a == "1000"))
                .then_some(())
        },
    );
}

#[test]
fn connections_wait_for_a_missing_broker_and_get_503_when_that_lasts() {
    let host = Host::new();
    let wrapper = host.wrap_broker();
    let acme = host.tenant("acme").up();
    wrapper.first("acme", "exit 1");
    acme.signal(Signal::SIGKILL);
    let answer = until(Duration::from_secs(10), "the stand-in to answer", || {
        http::get(&acme.addr(), "/api/v1/agents").ok()
    });
    assert_eq!(answer.status, 503);
    assert!(answer.header("retry-after").is_some(), "{answer:?}");
    assert!(answer.closes(), "{answer:?}");
    assert_eq!(answer.json()["code"], "database_unavailable", "{answer:?}");
    wrapper.heal("acme");
    host.command(&["start", "acme"]);
    acme.becomes("ready");
    assert_eq!(acme.get("/healthz").status, 200);
}

#[test]
fn a_port_held_by_a_stranger_is_tried_again_until_it_is_free() {
    let host = Host::new();
    host.up();
    let port = brokkr_tests::ports::free();
    let stranger = std::net::TcpListener::bind(("127.0.0.1", port)).unwrap();
    let acme = host
        .tenant("acme")
        .listen(&format!("127.0.0.1:{port}"))
        .write();
    let status = acme.becomes("backoff");
    assert!(status.reason.unwrap().contains(&port.to_string()));
    drop(stranger);
    acme.becomes("ready");
}

#[test]
fn a_supervisor_that_finds_brokers_of_a_killed_one_takes_them_over_and_runs_each_once() {
    let host = Host::new();
    let acme = host.tenant("acme").up();
    let orphan = acme.pid();
    host.kill();
    assert!(
        procs::alive(orphan),
        "brokers do not die with the supervisor"
    );
    host.up();
    assert_eq!(acme.becomes("ready").pid, Some(orphan));
    assert_eq!(host.broker_pids(), [orphan]);
    assert_eq!(acme.api().get("/agents").status, 200);
}

#[test]
fn stopped_by_the_operator_is_stopped_over_a_restart_of_the_supervisor() {
    let host = Host::new();
    let acme = host.tenant("acme").up();
    let globex = host.tenant("globex").up();
    host.command(&["stop", "acme"]).ok();
    let status = acme.becomes("stopped");
    assert_eq!(status.pid, None);
    assert!(http::get(&acme.addr(), "/healthz").is_err());
    host.stop();
    host.up();
    globex.becomes("ready");
    acme.becomes("stopped");
    host.command(&["start", "acme"]).ok();
    acme.becomes("ready");
    assert_eq!(acme.status().restarts, 0);
}

#[test]
fn an_earlier_instance_that_cannot_be_told_keeps_its_tenant_from_running_twice() {
    let host = Host::new();
    let acme = host.tenant("acme").up();
    let old = acme.pid();
    host.kill();
    let folder = host.runtime_dir().join("instances");
    let lock = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .find(|path| path.extension().is_some_and(|e| e == "lock"))
        .unwrap();
    std::fs::write(&lock, "").unwrap();
    host.up();
    let reason = acme.becomes("refused").reason.unwrap();
    says(&reason, &["acme", "still there"]);
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(old), Signal::SIGKILL).unwrap();
    until(Duration::from_secs(10), "the lock to be free", || {
        let file = std::fs::File::open(&lock).ok()?;
        file.try_lock().ok()
    });
    host.reload();
    acme.becomes("ready");
}

#[test]
fn a_bad_supervisor_file_prevents_neither_commands_nor_the_sweep() {
    let host = Host::new();
    let acme = host.tenant("acme").up();
    let globex = host.tenant("globex").up();
    let good = std::fs::read_to_string(host.config()).unwrap();
    let last_good = host.state_dir().join("supervisor.last-good.toml");
    for spoilt in [
        format!("{good}\nnonsense ="),
        format!("{good}\n[nosuch]\nx = 1\n"),
    ] {
        std::fs::write(host.config(), spoilt).unwrap();
        let asked = host.command(&["status"]);
        assert_eq!(asked.code, Some(0), "{asked:?}");
        assert!(asked.stdout.contains("acme"), "{asked:?}");
        assert!(asked.stderr.contains("supervisor.toml:"), "{asked:?}");
        host.command(&["stop", "globex"]).ok();
        host.command(&["start", "globex"]).ok();
        assert!(host.command(&["tenant", "list"]).ok().contains("globex"));
        // Without the last good file the folders are still known, but the defaults of tenants' files are not.
        std::fs::rename(&last_good, host.root().join("away")).unwrap();
        host.command(&["stop", "globex"]).ok();
        host.command(&["start", "globex"]).ok();
        assert_eq!(host.command(&["tenant", "list"]).code, Some(78));
        std::fs::rename(host.root().join("away"), &last_good).unwrap();
    }
    acme.becomes("ready");
    globex.becomes("ready");
    assert_eq!(host.broker_pids().len(), 2);
    host.kill();
    // Without a supervisor, the command reports the mistake itself.
    let asked = host.command(&["status"]);
    assert_eq!(asked.code, Some(78), "{asked:?}");
    let swept = host.command(&["sweep"]);
    assert_eq!(swept.code, Some(0), "{swept:?}");
    assert!(swept.stderr.contains("supervisor.toml:"), "{swept:?}");
    assert!(swept.stdout.contains("ended 2 brokers"), "{swept:?}");
    assert_eq!(host.broker_pids(), [0; 0]);
}

#[test]
fn an_unexplained_lock_ends_no_adopted_broker_and_lets_no_broker_start_beside_it() {
    let host = Host::new();
    let acme = host.tenant("acme").up();
    let pid = acme.pid();
    host.kill();
    let path = host.runtime_dir().join("instances/acme.99.lock");
    let lock = std::fs::File::create(&path).unwrap();
    lock.lock().unwrap();
    host.up();
    let held = |status: &brokkr_tests::host::TenantStatus| {
        let pending = status.pending.as_deref().unwrap_or_default();
        status.state == "ready" && status.pid == Some(pid) && pending.contains("still there")
    };
    acme.wait("the one that was taken over to serve on", held);
    let refused = host.command(&["restart", "acme"]);
    assert_eq!(refused.code, Some(1), "{refused:?}");
    acme.wait("it to serve on", held);
    assert_eq!(host.broker_pids(), [pid]);
    acme.api().get("/agents").expect(200);

    // The pending replacement happens once the lock is free.
    drop(lock);
    host.reload();
    assert_eq!(acme.replaced(pid).restarts, 0);
}

#[test]
fn a_removed_control_socket_is_restored_and_a_removed_lock_file_admits_no_second_supervisor() {
    let host = Host::new();
    let acme = host.tenant("acme").up();
    let pid = acme.pid();
    for file in ["control.sock", "supervisor.lock"] {
        std::fs::remove_file(host.runtime_dir().join(file)).unwrap();
    }
    until(Duration::from_secs(20), "commands to be answered", || {
        host.try_status()
    });
    let second = host.command(&["run"]);
    assert_eq!(second.code, Some(1), "{second:?}");
    assert!(
        second.stderr.contains("another brokkr-supervisor runs in"),
        "{second:?}"
    );
    assert_eq!((acme.pid(), acme.status().restarts), (pid, 0));
    // The restored lock does not keep the next supervisor out once this supervisor has ended.
    host.kill();
    host.up();
    assert_eq!(acme.becomes("ready").pid, Some(pid));
}

#[test]
fn a_removed_runtime_folder_is_made_again_and_its_brokers_are_replaced_by_overlap() {
    let host = Host::new();
    let acme = host.tenant("acme").up();
    let pid = acme.pid();
    let load = Load::start(&acme.addr(), "/healthz", "", 2, false);
    std::fs::remove_dir_all(host.runtime_dir()).unwrap();
    // The command must not advise to start a second supervisor.
    let asked = host.command(&["status"]);
    assert!(
        asked.code == Some(0) || asked.stderr.contains("makes it again within seconds"),
        "{asked:?}"
    );
    until(Duration::from_secs(20), "commands to be answered", || {
        host.try_status()
    });
    assert_eq!(acme.replaced(pid).restarts, 0);
    let seen = load.stop();
    assert!(seen.refused == 0 && seen.lost.is_empty(), "{seen:?}");
    // The new folder is locked as the first was, and holds everything that the next supervisor needs.
    let second = host.command(&["run"]);
    assert!(
        second.stderr.contains("another brokkr-supervisor"),
        "{second:?}"
    );
    let pid = acme.pid();
    host.kill();
    host.up();
    assert_eq!(acme.becomes("ready").pid, Some(pid));
}
