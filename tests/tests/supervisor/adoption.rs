//! Brokers outlive their supervisor: it is killed, and the next supervisor adopts every broker as it is.

use brokkr_tests::wait::until_ok;
use brokkr_tests::{Host, Load, http, procs, says, until};
use nix::sys::signal::Signal;
use std::time::Duration;

#[test]
fn brokers_of_a_killed_supervisor_are_taken_over_with_the_same_pids_under_load() {
    let host = Host::new();
    let acme = host.tenant("acme").up();
    let globex = host
        .tenant("globex")
        .listen(&format!("unix:{}/globex.sock", host.root().display()))
        .up();
    let pids = [acme.pid(), globex.pid()];
    let uptime = acme.status().uptime_s.unwrap();
    let loads = [&acme, &globex].map(|t| Load::start(&t.addr(), "/healthz", "", 2, false));

    host.kill();
    host.up();
    for (tenant, pid) in [&acme, &globex].into_iter().zip(pids) {
        let status = tenant.becomes("ready");
        assert_eq!((status.pid, status.restarts), (Some(pid), 0));
    }
    assert!(acme.status().uptime_s.unwrap() > uptime);
    for load in loads {
        let seen = load.stop();
        assert!(seen.refused == 0 && seen.lost.is_empty(), "{seen:?}");
        assert!(seen.count(200) > 0 && seen.answers.len() == 1, "{seen:?}");
    }
    let mut running = pids.to_vec();
    running.sort_unstable();
    assert_eq!(host.broker_pids(), running);

    // The adopted brokers are supervised as before: logs, replacement, crash, stop.
    acme.api().get("/agents").expect(200);
    host.command(&["restart", "acme"]).ok();
    let second = acme.replaced(pids[0]).pid.unwrap();
    procs::signal(second, Signal::SIGKILL);
    assert_eq!(acme.replaced(second).restarts, 1);
    procs::signal(pids[1], Signal::SIGKILL);
    let status = globex.replaced(pids[1]);
    assert_eq!(status.restarts, 1);
    assert!(host.stop().success());
    assert_eq!(host.leftovers(), [""; 0]);
}

#[test]
fn an_adopted_broker_that_dies_is_said_to_have_and_its_exit_code_is_known() {
    let host = Host::new();
    let acme = host.tenant("acme").up();
    let pid = acme.pid();
    host.kill();
    host.up();
    acme.becomes("ready");
    procs::signal(pid, Signal::SIGKILL);
    acme.replaced(pid);
    let ended = host
        .log_lines()
        .into_iter()
        .filter_map(|line| line["message"].as_str().map(str::to_owned))
        .find(|message| message.contains("its broker has ended"))
        .unwrap();
    println!("{ended}");
    assert!(
        ended.contains("killed by SIGKILL") || ended.contains("its exit status is unknown"),
        "{ended}"
    );
}

#[test]
fn a_file_changed_without_a_supervisor_replaces_the_adopted_broker_by_overlap() {
    let host = Host::new();
    let acme = host.tenant("acme").pool(5).up();
    let globex = host.tenant("globex").pool(5).up();
    let (old, kept) = (acme.pid(), globex.pid());
    let load = Load::start(&acme.addr(), "/healthz", "", 2, false);
    host.kill();
    acme.replace_file(&acme.read_file().replace("pool_size = 5", "pool_size = 7"));
    host.up();
    let status = acme.replaced(old);
    assert_eq!((status.restarts, status.pool_size), (0, Some(7)));
    assert_eq!(globex.pid(), kept);
    let seen = load.stop();
    assert!(seen.refused == 0 && seen.lost.is_empty(), "{seen:?}");
    until(Duration::from_secs(10), "the old one to drain", || {
        (!procs::alive(old)).then_some(())
    });
}

#[test]
fn a_bad_file_stops_no_adopted_broker_and_a_removed_file_does() {
    let host = Host::new();
    let acme = host.tenant("acme").up();
    let globex = host.tenant("globex").up();
    let (pid, gone) = (acme.pid(), globex.pid());
    host.kill();
    let good = acme.read_file();
    acme.replace_file("this is not toml");
    globex.remove_file();
    host.up();
    let status = acme.wait("ready, with its file's problem", |t| {
        t.state == "ready" && t.pending.is_some()
    });
    assert_eq!(status.pid, Some(pid));
    globex.is_gone();
    assert!(!procs::alive(gone));
    acme.replace_file(&good);
    assert_eq!(acme.get("/healthz").status, 200);
    let status = acme.wait("ready, and nothing pending", |t| {
        t.state == "ready" && t.pending.is_none()
    });
    assert_eq!(status.pid, Some(pid));
}

/// 960 lines of 64 bytes, nearly all that a pipe holds (64 KiB).
const WAITING: usize = 960;

#[test]
fn log_lines_that_waited_in_the_pipe_are_read_by_the_next_supervisor() {
    let host = Host::new();
    let wrapper = host.wrap_broker();
    let (go, written) = (host.root().join("go"), host.root().join("written"));
    // A process beside the broker writes lines on demand while no supervisor reads them.
    wrapper.first(
        "acme",
        &format!(
            "(while [ ! -e {go} ]; do sleep 0.05; done; i=0; while [ $i -lt {WAITING} ]; do i=$((i+1)); \
             printf 'line %04d {dots}\\n' $i >&2; done; : >{written}) &",
            go = go.display(),
            dots = ".".repeat(64 - "line 0001 \n".len()),
            written = written.display()
        ),
    );
    let acme = host.tenant("acme").up();
    let pid = acme.pid();
    host.kill();
    // This open end of the pipe stands for systemd's store, which holds the pipe's end while no supervisor reads.
    let held = std::fs::File::open(format!("/proc/{pid}/fd/2")).unwrap();
    std::fs::write(&go, "").unwrap();
    until(
        Duration::from_secs(60),
        "the lines to be in the pipe",
        || written.exists().then_some(()),
    );
    host.up();
    drop(held);
    assert_eq!(acme.becomes("ready").pid, Some(pid));
    let numbers = || -> Vec<usize> {
        let lines = host.log_lines().into_iter();
        lines
            .filter(|line| line["tenant"] == "acme" && line["pid"] == pid)
            .filter_map(|line| {
                let rest = line["message"].as_str()?.strip_prefix("line ")?;
                Some(rest.split(' ').next()?.parse().unwrap())
            })
            .collect()
    };
    let seen = until_ok(
        Duration::from_secs(60),
        "the last line in the stream",
        || {
            let seen = numbers();
            if seen.last() == Some(&WAITING) {
                Ok(seen)
            } else {
                Err(format!("{seen:?}"))
            }
        },
    );
    assert_eq!(seen, (1..=WAITING).collect::<Vec<_>>());
}

#[test]
fn without_the_right_to_take_sockets_back_each_tenant_is_drained_and_started_again_and_never_twice()
{
    if !brokkr_tests::test_dir::is_root() {
        println!("skipped: to take a right away one must have it (root)");
        return;
    }
    let host = Host::new();
    let acme = host.tenant("acme").up();
    let globex = host.tenant("globex").up();
    let old = [acme.pid(), globex.pid()];
    host.kill();
    host.up_without_capabilities();
    for (tenant, old) in [&acme, &globex].into_iter().zip(old) {
        assert_eq!(tenant.replaced(old).restarts, 0);
        assert!(!procs::alive(old));
    }
    assert_eq!(host.broker_pids().len(), 2);
    let log = host.log();
    says(
        &log,
        &["cannot be taken back", "nothing accepts in between"],
    );
    assert_eq!(http::get(&acme.addr(), "/healthz").unwrap().status, 200);
}

#[test]
fn a_supervisor_becomes_another_program_and_no_client_and_no_log_line_notices() {
    let host = Host::new();
    host.own_supervisor();
    let wrapper = host.wrap_broker();
    // A process beside the broker writes a hundred numbered lines a second, the first half of each long before the
    // second.
    wrapper.first(
        "acme",
        "(i=0; while kill -0 $PPID; do i=$((i+1)); printf 'line %d ' $i; sleep 0.01; echo \"of acme's\"; done) >&2 &",
    );
    let acme = host.tenant("acme").set("log.level", "\"error\"").up();
    let globex = host
        .tenant("globex")
        .listen(&format!("unix:{}/globex.sock", host.root().display()))
        .up();
    let pids = [acme.pid(), globex.pid()];
    let supervisor = host.pid();
    let pak = acme.pak();
    let loads = [
        Load::start(&acme.addr(), "/api/v1/agents", &pak, 2, false),
        Load::start(&acme.addr(), "/healthz", "", 2, true),
        Load::start(&globex.addr(), "/healthz", "", 2, false),
    ];
    host.upgrade_supervisor("exec $BROKKR_REAL \"$@\"");
    for turn in 1..=3 {
        host.succeed();
        until(
            Duration::from_secs(60),
            "the next program to take over",
            || (host.said("taken over as they are") == turn).then_some(()),
        );
        for (tenant, pid) in [&acme, &globex].into_iter().zip(pids) {
            let status = tenant.becomes("ready");
            assert_eq!((status.pid, status.restarts), (Some(pid), 0));
        }
    }
    assert_eq!(host.pid(), supervisor);
    for load in loads {
        let seen = load.stop();
        assert!(seen.refused == 0 && seen.lost.is_empty(), "{seen:?}");
        assert!(seen.count(200) > 0 && seen.answers.len() == 1, "{seen:?}");
    }

    // Each line arrives once, complete and in order.
    let numbers: Vec<u32> = host
        .log_lines()
        .into_iter()
        .filter(|line| line["tenant"] == "acme")
        .filter_map(|line| {
            let text = line["message"].as_str()?.strip_prefix("line ")?.to_owned();
            Some(
                text.strip_suffix(" of acme's")
                    .unwrap_or_else(|| panic!("{text}"))
                    .parse()
                    .unwrap(),
            )
        })
        .collect();
    assert!(numbers.len() > 20, "{numbers:?}");
    let expected: Vec<u32> = (1..=numbers.len() as u32).collect();
    assert_eq!(numbers, expected);

    // The brokers are still the supervisor's children, so it learns at once how a broker ends.
    procs::signal(pids[0], Signal::SIGKILL);
    assert_eq!(acme.replaced(pids[0]).restarts, 1);
    assert_eq!(host.said("its broker has ended: killed by SIGKILL"), 1);
    assert!(host.stop().success());
    assert_eq!(host.leftovers(), [""; 0]);
}

#[test]
fn a_program_that_does_not_understand_what_it_would_be_handed_is_not_executed() {
    let host = Host::new();
    host.own_supervisor();
    let acme = host.tenant("acme").up();
    let pid = acme.pid();
    for (script, why) in [
        (
            "echo 'unexpected argument --check-state' >&2; exit 2",
            "unexpected argument",
        ),
        ("exec sleep 1000 >/dev/null 2>&1", "says nothing within"),
        ("exit 0", "does not say that it understands"),
    ] {
        host.upgrade_supervisor(script);
        host.succeed();
        host.wait(
            Duration::from_secs(60),
            "the refusal in the status",
            |status| status.notices.iter().any(|notice| notice.contains(why)),
        );
        until(Duration::from_secs(10), "the refusal in the log", || {
            (host.said(why) > 0).then_some(())
        });
        assert_eq!((acme.pid(), acme.status().state.as_str()), (pid, "ready"));
    }
    // A program that understands the state but cannot be executed: the old supervisor goes on in the same process.
    host.upgrade_supervisor(
        "case $2 in --check-state) rm -f $0; echo 'brokkr-state understood'; exit 0;; esac",
    );
    host.succeed();
    until(Duration::from_secs(60), "the failure in the log", || {
        (host.said("cannot be executed") == 1).then_some(())
    });
    assert_eq!(acme.becomes("ready").pid, Some(pid));
    assert_eq!(acme.get("/healthz").status, 200);
    let old = pid;
    host.command(&["restart", "acme"]).ok();
    acme.replaced(old);
    // Install a good program again.
    host.upgrade_supervisor("exec $BROKKR_REAL \"$@\"");
    host.succeed();
    until(
        Duration::from_secs(60),
        "the next program to take over",
        || (host.said("taken over as they are") == 2).then_some(()),
    );
    assert_eq!(acme.becomes("ready").restarts, 0);
}

#[test]
fn a_replacement_under_way_goes_on_under_the_next_program() {
    let host = Host::new();
    let wrapper = host.wrap_broker();
    let acme = host.tenant("acme").up();
    let old = acme.pid();
    let go = host.root().join("go");
    wrapper.first(
        "acme",
        &format!("while [ ! -e {} ]; do sleep 0.05; done", go.display()),
    );
    acme.replace_file(&acme.read_file().replace("pool_size = 5", "pool_size = 6"));
    acme.wait("being replaced", |t| {
        t.pending.as_deref() == Some("replacement is starting")
    });
    host.succeed();
    until(
        Duration::from_secs(60),
        "the next program to take over",
        || (host.said("taken over as they are") == 1).then_some(()),
    );
    assert_eq!(acme.becomes("ready").pid, Some(old));
    std::fs::write(&go, "").unwrap();
    let status = acme.replaced(old);
    assert_eq!((status.restarts, status.pool_size), (0, Some(6)));
    until(Duration::from_secs(10), "the old one to go", || {
        (host.broker_pids() == [acme.pid()]).then_some(())
    });
}

#[test]
fn a_socket_whose_path_was_removed_is_bound_anew_when_taken_over_and_at_a_restart() {
    let host = Host::new();
    let path = host.root().join("acme.sock");
    let acme = host
        .tenant("acme")
        .listen(&format!("unix:{}", path.display()))
        .up();
    let answers = || http::get(&acme.addr(), "/healthz").map(|answer| answer.status);
    let first = acme.pid();
    host.kill();
    std::fs::remove_file(&path).unwrap();
    host.up();
    let second = acme.replaced(first).pid.unwrap();
    assert_eq!(answers().unwrap(), 200);

    // While the supervisor runs, the next command binds the removed socket anew.
    std::fs::remove_file(&path).unwrap();
    assert!(answers().is_err());
    host.command(&["restart", "acme"]).ok();
    assert_eq!(answers().unwrap(), 200);
    let third = acme.replaced(second).pid.unwrap();

    // The next supervisor adopts the new socket too.
    host.kill();
    host.up();
    let status = acme.becomes("ready");
    assert_eq!((status.pid, status.restarts), (Some(third), 0));
    assert_eq!(answers().unwrap(), 200);
}

#[test]
fn a_broker_whose_private_socket_has_gone_is_replaced_by_overlap_and_never_taken_for_hung() {
    let host = Host::builder()
        .set("health.interval", "\"200ms\"")
        .set("health.timeout", "\"200ms\"")
        .build();
    let acme = host.tenant("acme").up();
    let old = acme.pid();
    let load = Load::start(&acme.addr(), "/healthz", "", 2, false);
    host.kill();
    let instances = host.runtime_dir().join("instances");
    for entry in std::fs::read_dir(instances).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|e| e == "sock") {
            std::fs::remove_file(path).unwrap();
        }
    }
    // The broker serves on as long as it cannot be replaced, though no probe reaches it.
    host.server().stop();
    host.up();
    brokkr_tests::holds_for(
        Duration::from_secs(3),
        "it is left alone",
        || match procs::alive(old) {
            true => Ok(()),
            false => Err("it was ended"),
        },
    );
    host.server().resume_service();
    assert_eq!(acme.replaced(old).restarts, 0);
    // The old broker drains and ends by itself.
    until(Duration::from_secs(8), "the old one to be gone", || {
        (!procs::alive(old)).then_some(())
    });
    assert!(!host.log().contains("SIGKILL"), "{}", host.log());
    let seen = load.stop();
    assert!(seen.refused == 0 && seen.lost.is_empty(), "{seen:?}");
    assert!(seen.count(200) > 0 && seen.answers.len() == 1, "{seen:?}");
}
