//! SIGUSR2 and its obstacles: the program that takes over obeys a signal to end, and a program that could not go on is
//! not executed.

use brokkr_tests::{Host, bin, procs, until};
use nix::sys::signal::Signal;
use std::fs;
use std::time::{Duration, Instant};

/// Returns the number of log lines whose message contains `what`.
fn said(host: &Host, what: &str) -> usize {
    let lines = host.log_lines().into_iter();
    lines
        .filter(|line| line["message"].as_str().is_some_and(|m| m.contains(what)))
        .count()
}

/// Polls without a pause until the log has `what` after `from`, because the next step takes only milliseconds.
fn soon_says(host: &Host, what: &str, from: usize) {
    let until = Instant::now() + Duration::from_secs(30);
    while !host.log()[from..].contains(what) {
        assert!(Instant::now() < until, "{what}: {}", host.log());
    }
}

#[test]
fn a_signal_to_end_is_heeded_whenever_it_comes_after_one_to_take_over() {
    let host = Host::new();
    host.own_supervisor();
    host.trivial_brokers();
    let acme = host.tenant("acme").up();
    // From the check of the program until long after the next program has begun.
    let moments = [
        "asking the program on disk",
        "takes this process over",
        "gone; every broker runs on",
        "taken over as they are",
    ];
    for turn in 0..16 {
        let moment = moments[turn % 4];
        let signal = [Signal::SIGTERM, Signal::SIGINT][turn / 4 % 2];
        let from = host.log().len();
        host.succeed();
        soon_says(&host, moment, from);
        procs::signal(host.pid(), signal);
        assert!(host.wait_ended().success(), "{signal} at {moment:?}");
        assert_eq!(host.leftovers(), [""; 0], "at {moment:?}");
        host.up();
        acme.becomes("ready");
    }
}

#[test]
fn what_is_wrong_beside_the_brokers_does_not_end_a_supervisor_that_holds_them() {
    let host = Host::new();
    let acme = host.tenant("acme").up();
    let globex = host.tenant("globex").up();
    let pid = acme.pid();
    host.command(&["stop", "globex"]).ok();
    host.kill();
    let stopped = host.state_dir().join("stopped");
    fs::write(&stopped, b"\xff\xfe\n").unwrap();
    let socket = host.runtime_dir().join("control.sock");
    fs::remove_file(&socket).unwrap();
    fs::create_dir_all(socket.join("in the way")).unwrap();
    std::thread::scope(|scope| {
        let up = scope.spawn(|| host.up());
        until(Duration::from_secs(60), "what is in the way", || {
            (said(&host, "no command is answered") == 1).then_some(())
        });
        until(Duration::from_secs(30), "acme ready once more", || {
            let lines = host.log_lines().into_iter();
            let ready = lines.filter(|line| line["tenant"] == "acme" && line["state"] == "ready");
            (ready.count() == 2).then_some(())
        });
        // The supervisor works without its control socket: a broker that ends is started again.
        procs::signal(pid, Signal::SIGKILL);
        until(Duration::from_secs(30), "another instance", || {
            let pids = host.broker_pids();
            (pids.len() == 1 && pids[0] != pid).then_some(())
        });
        assert!(host.running());
        fs::remove_dir_all(&socket).unwrap();
        up.join().unwrap();
    });
    assert_eq!(acme.becomes("ready").restarts, 1);
    let status = host.status();
    let notice = |what: &str| status.notices.iter().any(|n| n.contains(what));
    assert!(
        notice("it is unknown which tenants were stopped"),
        "{status:?}"
    );
    // The tenant was not running, so it may have been stopped by the operator.
    globex.becomes("stopped");
    until(Duration::from_secs(10), "the list written anew", || {
        (fs::read_to_string(&stopped).ok()? == "globex\n").then_some(())
    });
    let unreadable = host.state_dir().join("stopped.unreadable");
    assert_eq!(fs::read(unreadable).unwrap(), b"\xff\xfe\n");
    host.command(&["start", "globex"]).ok();
    globex.becomes("ready");
    until(Duration::from_secs(10), "nobody in the list", || {
        fs::read_to_string(&stopped).ok()?.is_empty().then_some(())
    });
}

#[test]
fn a_supervisor_without_brokers_reports_its_bad_state_file_and_ends() {
    let host = Host::new();
    host.trivial_brokers();
    host.up();
    host.stop();
    fs::write(host.state_dir().join("stopped"), b"\xff\xfe\n").unwrap();
    let ran = host.command(&["run"]);
    assert_eq!(ran.code, Some(1), "{ran:?}");
    assert!(ran.stderr.contains("stopped: "), "{ran:?}");
}

#[test]
fn a_program_that_could_not_go_on_is_not_executed() {
    let host = Host::new();
    host.own_supervisor();
    let program = host.root().join("bin/brokkr-supervisor");
    fs::remove_file(&program).unwrap();
    fs::copy(bin::supervisor(), &program).unwrap();
    let acme = host.tenant("acme").up();
    let pid = acme.pid();
    let refused = |why: &str| {
        let before = said(&host, "this supervisor runs on");
        host.succeed();
        until(Duration::from_secs(30), "the refusal", || {
            (said(&host, "this supervisor runs on") > before).then_some(())
        });
        assert_eq!(said(&host, why), 1, "{}", host.log());
    };
    let in_status = |why: &str| {
        host.wait(Duration::from_secs(10), "the refusal", |status| {
            let mut notices = status.notices.iter();
            notices.any(|n| n.contains("SIGUSR2 was refused") && n.contains(why))
        });
    };

    let stopped = host.state_dir().join("stopped");
    fs::write(&stopped, b"\xff\xfe\n").unwrap();
    refused("/stopped: ");
    in_status("/stopped: ");
    fs::remove_file(&stopped).unwrap();

    let socket = host.runtime_dir().join("control.sock");
    let aside = host.runtime_dir().join("aside");
    fs::rename(&socket, &aside).unwrap();
    fs::create_dir(&socket).unwrap();
    refused("it is a directory");
    fs::remove_dir(&socket).unwrap();
    fs::rename(&aside, &socket).unwrap();

    let good = fs::read(host.config()).unwrap();
    let last_good = host.state_dir().join("supervisor.last-good.toml");
    fs::write(host.config(), "nonsense =").unwrap();
    fs::write(&last_good, b"\xff\xff").unwrap();
    refused("supervisor.toml:1:");
    fs::write(host.config(), good).unwrap();
    assert_eq!(fs::read(&last_good).unwrap(), b"\xff\xff", "it only looks");

    let away = program.with_extension("away");
    fs::rename(&program, &away).unwrap();
    fs::remove_file(&away).unwrap();
    refused("there is no program");
    in_status("there is no program");
    fs::copy(bin::supervisor(), &program).unwrap();

    assert_eq!(acme.becomes("ready").pid, Some(pid));
    host.succeed();
    until(
        Duration::from_secs(60),
        "the next program to take over",
        || (said(&host, "taken over as they are") == 1).then_some(()),
    );
    assert_eq!(acme.becomes("ready").pid, Some(pid));
}
