//! Failures of the embedded PostgreSQL: its brokers are supervised all the same.

use brokkr_tests::toml_text::quoted;
use brokkr_tests::{Host, pg, procs, until};
use nix::sys::signal::Signal;
use postgres::{Client, NoTls};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

/// Far more than any step here takes.
const BOUND: Duration = Duration::from_secs(90);

fn postmaster(host: &Host) -> Option<i32> {
    let text = fs::read_to_string(host.state_dir().join("postgres/postmaster.pid")).ok()?;
    text.lines().next()?.trim().parse().ok()
}

fn has_notice(host: &Host, what: &str) {
    host.wait(BOUND, what, |status| {
        status.notices.iter().any(|notice| notice.contains(what))
    });
}

fn has_no_notice(host: &Host) {
    host.wait(BOUND, "no notice of the server", |status| {
        !status
            .notices
            .iter()
            .any(|notice| notice.contains("embedded server"))
    });
}

#[test]
fn an_initdb_that_was_interrupted_is_begun_anew() {
    let host = Host::builder().embedded().build();
    let bin = host.root().join("bin");
    fs::create_dir(&bin).unwrap();
    let real = pg::bin_dir();
    std::os::unix::fs::symlink(real.join("postgres"), bin.join("postgres")).unwrap();
    // Begins as initdb does and then stands still, as if the power had failed.
    let script = "#!/bin/sh\necho 15 > $2/PG_VERSION\nmkdir $2/base $2/global\necho $$ > $2/begun\nexec sleep 1000\n";
    fs::write(bin.join("initdb"), script).unwrap();
    for path in [&bin, &bin.join("initdb")] {
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    }
    host.set("postgres.bin_dir", &quoted(&bin.display().to_string()));
    let acme = host.tenant("acme").write();
    host.start();
    let begun = host.state_dir().join("postgres.initdb-unfinished/begun");
    let initdb: i32 = until(BOUND, "initdb to begin", || {
        fs::read_to_string(&begun).ok()?.trim().parse().ok()
    });
    host.kill();
    assert!(!host.state_dir().join("postgres").exists());
    host.set("postgres.bin_dir", &quoted(&real.display().to_string()));
    procs::signal(initdb, Signal::SIGKILL);
    host.up();
    acme.becomes("ready");
    assert!(!begun.parent().unwrap().exists());
    assert!(host.stop().success());
    assert_eq!(host.leftovers(), [""; 0]);
}

#[test]
fn a_server_that_cannot_start_leaves_no_broker_unsupervised() {
    let host = Host::builder().embedded().build();
    let acme = host.tenant("acme").up();
    let pid = acme.pid();
    let file = host.state_dir().join("postgres/postgresql.conf");
    let good = fs::read(&file).unwrap();
    host.kill();
    fs::write(&file, "nonsense = on\n").unwrap();
    procs::signal(postmaster(&host).unwrap(), Signal::SIGKILL);
    host.up();
    has_notice(&host, "nonsense");
    assert_eq!(acme.becomes("degraded").pid, Some(pid));
    fs::write(&file, good).unwrap();
    assert_eq!(acme.becomes("ready").pid, Some(pid));
    has_no_notice(&host);
    assert!(host.stop().success());
    assert_eq!(host.leftovers(), [""; 0]);
}

#[test]
fn a_paused_server_is_kept() {
    let host = Host::builder().embedded().build();
    let acme = host.tenant("acme").up();
    let (pid, server) = (acme.pid(), postmaster(&host).unwrap());
    host.kill();
    procs::signal(server, Signal::SIGSTOP);
    host.up();
    has_notice(&host, "does not answer");
    assert_eq!(acme.becomes("degraded").pid, Some(pid));
    procs::signal(server, Signal::SIGCONT);
    assert_eq!(acme.becomes("ready").pid, Some(pid));
    has_no_notice(&host);
    assert_eq!(postmaster(&host), Some(server));
}

#[test]
fn killed_together_with_its_supervisor_it_is_started_at_once_by_the_next() {
    let host = Host::builder().embedded().build();
    let acme = host.tenant("acme").up();
    let (pid, server) = (acme.pid(), postmaster(&host).unwrap());
    procs::signal(server, Signal::SIGKILL);
    host.kill();
    host.up();
    until(BOUND, "another server", || {
        (postmaster(&host)? != server).then_some(())
    });
    assert_eq!(acme.becomes("ready").pid, Some(pid));
    has_no_notice(&host);
}

#[test]
fn an_embedded_server_is_kept_like_a_broker_and_stopped_last() {
    let host = Host::builder().embedded().build();
    let acme = host.tenant("acme").up();
    let pid = acme.pid();
    let postmaster = || -> i32 {
        let file = host.state_dir().join("postgres/postmaster.pid");
        let text = std::fs::read_to_string(file).unwrap();
        text.lines().next().unwrap().parse().unwrap()
    };
    let server = postmaster();
    host.kill();
    host.up();
    assert_eq!(acme.becomes("ready").pid, Some(pid));
    host.succeed();
    until(
        Duration::from_secs(60),
        "the next program to take over",
        || (host.said("taken over as they are") == 2).then_some(()),
    );
    assert_eq!(acme.becomes("ready").pid, Some(pid));
    assert_eq!(postmaster(), server);
    // The supervisor that adopted the server reads its log.
    procs::signal(server, Signal::SIGHUP);
    until(Duration::from_secs(10), "its log", || {
        (host.said("received SIGHUP, reloading configuration files") == 1).then_some(())
    });
    assert!(host.stop().success());
    assert_eq!(host.leftovers(), [""; 0]);
    let order: Vec<String> = host
        .log_lines()
        .into_iter()
        .filter_map(|line| line["message"].as_str().map(str::to_owned))
        .filter(|m| m == "drained" || m == "received fast shutdown request")
        .collect();
    assert_eq!(order, ["drained", "received fast shutdown request"]);
}

#[test]
fn an_embedded_server_that_is_no_longer_asked_for_is_seen_off_and_not_forgotten() {
    let host = Host::builder().embedded().build();
    host.up();
    let file = host.state_dir().join("postgres/postmaster.pid");
    until(Duration::from_secs(60), "the server", || {
        (host.said("ready") == 1 && file.exists()).then_some(())
    });
    host.set("postgres.embedded", "false");
    host.succeed();
    host.wait(Duration::from_secs(60), "the notice", |status| {
        status
            .notices
            .iter()
            .any(|n| n.contains("no longer asks for"))
    });
    assert!(file.exists());
    // The log is read as long as the server runs, because a server whose pipe is full stops working.
    let socket = host.runtime_dir().join("postgres");
    let url = format!("host={} user=brokkr dbname=brokkr", socket.display());
    let talk = std::thread::spawn(move || {
        let mut client = Client::connect(&url, NoTls).unwrap();
        client
            .batch_execute(
                "DO $$ BEGIN FOR i IN 1..3000 LOOP RAISE LOG 'loud %', repeat('x', 100); END LOOP; END $$",
            )
            .unwrap();
    });
    until(Duration::from_secs(60), "all it says", || {
        talk.is_finished().then_some(())
    });
    talk.join().unwrap();
    // The notice ends once the server is stopped by hand.
    let text = std::fs::read_to_string(&file).unwrap();
    let postmaster = text.lines().next().unwrap().parse().unwrap();
    procs::signal(postmaster, Signal::SIGINT);
    host.wait(Duration::from_secs(60), "no notice", |status| {
        !status
            .notices
            .iter()
            .any(|n| n.contains("no longer asks for"))
    });
    assert!(host.stop().success());
    assert_eq!(host.leftovers(), [""; 0]);
}

#[test]
fn a_killed_server_is_started_again_though_a_statement_of_it_would_run_for_ever() {
    let host = Host::builder().embedded().build();
    let acme = host.tenant("acme").up();
    let (pid, server) = (acme.pid(), postmaster(&host).unwrap());
    let socket = host.runtime_dir().join("postgres");
    let url = format!("host={} user=brokkr dbname=brokkr", socket.display());
    let mut client = Client::connect(&url, NoTls).unwrap();
    let endless = std::thread::spawn(move || {
        // This statement never checks for interrupts.
        client.batch_execute("DO $$ DECLARE n bigint := 0; BEGIN LOOP n := n + 1; END LOOP; END $$")
    });
    until(BOUND, "the statement to run", || {
        let children = procs::naming("brokkr brokkr [local] DO");
        (!children.is_empty()).then_some(())
    });
    procs::signal(server, Signal::SIGKILL);
    until(BOUND, "another server", || {
        (postmaster(&host)? != server).then_some(())
    });
    assert_eq!(acme.becomes("ready").pid, Some(pid));
    assert!(endless.join().unwrap().is_err());
}
