//! A tenant's instance is replaced while it is in use, and no client notices.

use brokkr_tests::{Connection, Host, Load, SetAtEnd, holds_for, until};
use std::io::{BufRead, BufReader};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

#[test]
fn an_idle_keep_alive_connection_gets_one_more_answer_that_closes_it() {
    let host = Host::new();
    let acme = host.tenant("acme").up();
    let old = acme.pid();
    let mut connection = acme.connect();
    let mut ask = || connection.request("GET", "/healthz", &[], None);
    let first = ask().unwrap();
    assert_eq!((first.status, first.closes()), (200, false));

    let restart = std::thread::scope(|scope| {
        let ran = scope.spawn(|| host.command(&["restart", "acme"]));
        // The new broker serves while the old broker waits for its idle connection.
        acme.replaced(old);
        let last = ask().unwrap();
        assert_eq!((last.status, last.closes()), (200, true), "{last:?}");
        ran.join().unwrap()
    });
    assert_eq!(restart.code, Some(0), "{restart:?}");
    assert!(connection.is_closed().unwrap());
    until(Duration::from_secs(10), "the old one to end", || {
        (!brokkr_tests::procs::alive(old)).then_some(())
    });
    assert_eq!(acme.status().restarts, 0);
}

#[test]
fn what_is_still_idle_when_the_grace_ends_is_closed() {
    let host = Host::builder().set("stop.grace", "\"2s\"").build();
    let acme = host.tenant("acme").up();
    let old = acme.pid();
    let mut idle = acme.connect();
    idle.request("GET", "/healthz", &[], None)
        .unwrap()
        .expect(200);
    host.command(&["restart", "acme"]).ok();
    assert!(idle.is_closed().unwrap());
    until(Duration::from_secs(10), "the old one to end", || {
        (!brokkr_tests::procs::alive(old)).then_some(())
    });
}

#[test]
fn no_request_is_lost_over_five_replacements_and_connections_stay_within_pool_and_two() {
    let host = Host::new();
    let acme = host.tenant("acme").pool(5).up();
    let pak = acme.pak();
    let kept = Load::start(&acme.addr(), "/api/v1/agents", &pak, 6, true);
    let fresh = Load::start(&acme.addr(), "/api/v1/agents", &pak, 2, false);
    let done = AtomicBool::new(false);
    let most = std::thread::scope(|scope| {
        let end = SetAtEnd::of(&done);
        let counting = scope.spawn(|| {
            let mut client = host.server().client();
            let ask =
                "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'brokkr:%:acme'";
            let mut most = 0;
            while !done.load(Ordering::Relaxed) {
                most = most.max(client.query_one(ask, &[]).unwrap().get::<_, i64>(0));
            }
            most
        });
        for _ in 0..5 {
            let old = acme.pid();
            host.command(&["restart", "acme"]).ok();
            acme.replaced(old);
        }
        drop(end);
        counting.join().unwrap()
    });
    for seen in [kept.stop(), fresh.stop()] {
        println!("{:?}, slowest {:?}", seen.answers, seen.slowest);
        assert!(seen.lost.is_empty() && seen.refused == 0, "{seen:?}");
        assert!(seen.answers.keys().all(|s| *s == 200), "{seen:?}");
    }
    println!("most connections at once: {most}");
    assert!(
        (1..=7).contains(&most),
        "{most} connections with a pool of 5"
    );
    assert_eq!(acme.status().restarts, 0);
}

#[test]
fn a_replacement_that_does_not_become_ready_is_given_up_and_the_old_one_serves_on() {
    let host = Host::new();
    let wrapper = host.wrap_broker();
    let acme = host.tenant("acme").up();
    let old = acme.pid();
    wrapper.first("acme", "echo 'not today' >&2; exit 1");
    let ran = host.command(&["restart", "acme"]);
    assert_eq!(ran.code, Some(1), "{ran:?}");
    let said = format!("{}{}", ran.stdout, ran.stderr);
    assert!(said.contains("acme: not restarted; ready: "), "{ran:?}");
    let status = acme.status();
    assert_eq!((status.state.as_str(), status.pid), ("ready", Some(old)));
    assert!(status.pending.is_some(), "{status:?}");
    assert_eq!(acme.get("/healthz").status, 200);
    // A reader of warnings alone is told too.
    let warned = until(Duration::from_secs(10), "a warning", || {
        host.log_lines().into_iter().find(|line| {
            let text = line["message"].as_str().unwrap_or_default();
            line["tenant"] == "acme" && text.contains("replacement failed")
        })
    });
    assert_eq!(warned["level"], "WARN", "{warned}");
    wrapper.heal("acme");
    host.command(&["restart", "acme"]).ok();
    acme.replaced(old);
}

#[test]
fn a_program_that_does_not_work_is_tried_again_by_itself() {
    let host = Host::new();
    let wrapper = host.wrap_broker();
    let tenants = ["acme", "globex"].map(|name| host.tenant(name).up());
    let old = tenants.each_ref().map(|tenant| tenant.pid());
    let tries = host.root().join("tries");
    // The program begins to work without a change on disk.
    wrapper.install_again(&format!(
        "echo >> {tries}; [ $(wc -l < {tries}) -gt 6 ] || exit 3",
        tries = tries.display()
    ));
    let pending = tenants[0].wait("its replacement to have failed", |t| {
        let pending = t.pending.as_deref();
        pending.is_some_and(|pending| pending.contains("replacement failed"))
    });
    let pending = pending.pending.unwrap();
    assert!(!pending.contains("unless ordered"), "{pending}");
    for (tenant, old) in tenants.iter().zip(old) {
        let _ = tenant.replaced(old);
        assert_eq!(tenant.status().restarts, 0);
    }
}

#[test]
fn a_replacement_that_lives_and_is_not_ready_in_time_is_ended_and_the_old_one_serves_on() {
    let host = Host::new();
    let wrapper = host.wrap_broker();
    let acme = host.tenant("acme").up();
    let old = acme.pid();
    // Shortened for the replacements only, because a first start on a busy machine may take longer.
    host.kill();
    host.set("start.timeout", "\"1s\"").up();
    assert_eq!(acme.becomes("ready").pid, Some(old));
    let tried = host.root().join("tried");
    let script = format!("echo $$ >>{}; exec sleep 1000", tried.display());
    wrapper.first("acme", &script);
    let load = Load::start(&acme.addr(), "/healthz", "", 2, false);
    let ran = host.command(&["restart", "acme"]);
    assert_eq!(ran.code, Some(1), "{ran:?}");
    let status = acme.wait("a failed replacement", |t| {
        t.pending
            .as_ref()
            .is_some_and(|why| why.contains("not ready within 1s"))
    });
    assert_eq!(
        (status.state.as_str(), status.pid, status.restarts),
        ("ready", Some(old), 0)
    );
    let first = std::fs::read_to_string(&tried).unwrap();
    let first = first.lines().next().unwrap().parse().unwrap();
    until(Duration::from_secs(60), "the new one to be ended", || {
        (!brokkr_tests::procs::alive(first)).then_some(())
    });
    let seen = load.stop();
    assert!(seen.refused == 0 && seen.lost.is_empty(), "{seen:?}");
    assert!(seen.count(200) > 0 && seen.answers.len() == 1, "{seen:?}");
}

#[test]
fn a_request_in_flight_when_its_broker_is_told_to_stop_is_answered() {
    let host = Host::new();
    let acme = host.tenant("acme").up();
    let old = acme.pid();
    // A request with an incomplete body is in flight for as long as the client likes.
    let body = br#"{"name":"slow","cluster_name":"berlin"}"#;
    let mut connection = Connection::open(&acme.addr()).unwrap();
    let head = format!(
        "POST /api/v1/agents HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {}\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\n\r\n",
        acme.pak(),
        body.len()
    );
    connection.raw(head.as_bytes()).unwrap();
    connection.raw(&body[..10]).unwrap();
    std::thread::scope(|scope| {
        let restart = scope.spawn(|| host.command(&["restart", "acme"]));
        acme.replaced(old);
        connection.raw(&body[10..]).unwrap();
        let answer = connection.receive(false).unwrap();
        assert_eq!(answer.status, 201, "{answer:?}");
        restart.join().unwrap().ok();
    });
    assert!(acme.api().get("/agents").text().contains("slow"));
}

#[test]
fn a_log_reader_that_stops_for_ten_seconds_slows_no_request_and_the_drops_are_counted() {
    let host = Host::new();
    let wrapper = host.wrap_broker();
    wrapper.first("noisy", "(while :; do echo 'a line of a flood that nobody reads, long enough to matter'; done) & echo $! >&2");
    let noisy = host.tenant("noisy").write();
    let quiet = host.tenant("quiet").write();
    let sink = host.up_with_pipe();
    for tenant in [&noisy, &quiet] {
        tenant.becomes("ready");
    }
    let probes: Vec<Load> = [&noisy, &quiet]
        .map(|t| Load::start(&t.addr(), "/healthz", "", 1, true))
        .into_iter()
        .collect();
    holds_for(
        Duration::from_secs(10),
        "both are ready, and the supervisor answers",
        || {
            let status = host.try_status().ok_or("no status".to_owned())?;
            if status.all("ready") {
                Ok(())
            } else {
                Err(format!("{status:?}"))
            }
        },
    );
    for probe in probes {
        let seen = probe.stop();
        println!("{} answers, slowest {:?}", seen.count(200), seen.slowest);
        assert!(seen.count(200) > 100 && seen.lost.is_empty(), "{seen:?}");
        assert!(seen.slowest < Duration::from_secs(1), "{seen:?}");
    }
    assert!(host.status().tenants.iter().all(|t| t.restarts == 0));

    // Read the whole stream: it reports how many lines are missing, and of which tenant.
    let (said, heard) = std::sync::mpsc::channel();
    let reading = std::thread::spawn(move || {
        let mut lines = 0;
        for line in BufReader::with_capacity(1 << 20, sink).split(b'\n') {
            let line = String::from_utf8_lossy(&line.unwrap()).into_owned();
            lines += 1;
            if line.contains("\"message\":\"dropped ") {
                let _ = said.send(line);
            }
        }
        lines
    });
    let line = heard
        .recv_timeout(Duration::from_secs(60))
        .expect("no count of dropped lines");
    assert!(line.contains("\"tenant\":\"noisy\""), "{line}");
    host.stop();
    for pid in brokkr_tests::procs::naming(&host.root().display().to_string()) {
        brokkr_tests::procs::signal(pid, nix::sys::signal::Signal::SIGKILL);
    }
    println!("{} lines read", reading.join().unwrap());
}

#[test]
fn a_new_program_on_disk_replaces_every_instance_and_a_bad_one_replaces_none() {
    let host = Host::new();
    let wrapper = host.wrap_broker();
    let tenants = [
        host.tenant("acme").pool(5).up(),
        host.tenant("globex").pool(5).up(),
    ];
    let before: Vec<i32> = tenants.iter().map(|tenant| tenant.pid()).collect();
    wrapper.install_again("# another version");
    for (tenant, old) in tenants.iter().zip(&before) {
        assert_eq!(tenant.replaced(*old).restarts, 0);
    }
    let good: Vec<i32> = tenants.iter().map(|tenant| tenant.pid()).collect();
    wrapper.install_again("echo this version is broken >&2; exit 3");
    for (tenant, pid) in tenants.iter().zip(&good) {
        let status = tenant.wait("a failed replacement", |t| {
            t.pending
                .as_ref()
                .is_some_and(|why| why.contains("exit code 3"))
        });
        assert_eq!((status.pid, status.state.as_str()), (Some(*pid), "ready"));
    }
}

#[test]
fn a_link_to_the_program_or_another_owner_replaces_no_instance_and_an_upgrade_replaces_each_once() {
    let host = Host::new();
    let _wrapper = host.wrap_broker();
    let acme = host.tenant("acme").pool(5).up();
    let folder = host.root().join("wrap");
    let changes = || {
        let lines = host.log_lines();
        let changed = lines.iter().filter(|line| {
            let text = line["message"].as_str().unwrap_or_default();
            text.contains("the broker's program has changed")
        });
        changed.count()
    };
    let old = acme.pid();
    let shell = |script: &str| {
        let mut command = std::process::Command::new("sh");
        command.args(["-ec", script]).current_dir(&folder);
        brokkr_tests::bin::run_command(command, Duration::from_secs(10)).ok();
    };
    shell(
        "ln brokkr-broker link; chown $(id -u):$(id -g) brokkr-broker; chmod 700 brokkr-broker; chmod 755 brokkr-broker",
    );
    // A reload would notice a new program at once.
    host.command(&["reload"]).ok();
    assert_eq!((acme.pid(), changes()), (old, 0));

    // Upgrades as dpkg does them, as a person copies, in place, and by a new time alone.
    let mut old = old;
    for (n, upgrade) in [
        "cp brokkr-broker new; echo '# second' >>new; ln brokkr-broker backup; mv new brokkr-broker; rm backup",
        "cp brokkr-broker new; mv new brokkr-broker",
        "echo '# third' >>brokkr-broker; sleep 0.3; echo '# fourth' >>brokkr-broker",
        "touch brokkr-broker",
    ]
    .iter()
    .enumerate()
    {
        shell(upgrade);
        old = acme.replaced(old).pid.unwrap();
        host.command(&["reload"]).ok();
        assert_eq!((acme.pid(), changes()), (old, n + 1), "{upgrade}");
    }
    assert_eq!(acme.status().restarts, 0);
}
