//! Booting a host with many tenants: slots are respected, the server is not overrun, and systemd is told the progress.

use brokkr_tests::{Host, NotifyListener, SetAtEnd, alone, bin, pg, procs, until};
use std::collections::BTreeSet;
use std::fs;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// Returns the number of trivial tenants; `BROKKR_TESTS_BOOT=300` for a whole host.
fn many() -> usize {
    std::env::var("BROKKR_TESTS_BOOT").map_or(60, |n| n.parse().expect("a number"))
}

const PARALLELISM: usize = 4;
const REFUSED: usize = 3;
/// Longer than any delay of a busy machine.
const WATCHDOG: Duration = Duration::from_secs(4);

#[test]
fn a_host_that_boots_keeps_its_slots_and_tells_systemd_how_far_it_is() {
    let _alone = alone();
    let many = many();
    let connections = u32::try_from(2 * many + 20).unwrap();
    let host = Host::builder()
        .pg(pg::Options::new().max_connections(connections))
        .set("start.parallelism", &PARALLELISM.to_string())
        .build();
    let wrapper = host.wrap_broker();
    let starts = host.root().join("starts");
    // Each start takes a tenth of a second, as long as a start that checks a schema; its begin and end are noted.
    let script = format!(
        "echo + >> {starts}; sleep 0.1; echo - >> {starts}; exec {trivial} serve",
        starts = starts.display(),
        trivial = bin::trivial_broker().display()
    );
    for n in 0..many {
        let name = format!("t{n}");
        wrapper.first(&name, &script);
        host.tenant(&name).pool(2).write();
    }
    for n in 0..REFUSED {
        host.tenant(&format!("bad{n}")).schema("pg_not").write();
    }
    let listener = NotifyListener::to(&host, Some(WATCHDOG));
    let began = Instant::now();
    host.up();
    host.wait(
        Duration::from_secs(300),
        "all to be ready that can be",
        |s| {
            let ready = s.tenants.iter().filter(|t| t.state == "ready").count();
            ready == many && s.tenants.len() == many + REFUSED
        },
    );
    let took = began.elapsed();
    // In hundredths of a second.
    let ticks = procs::ticks(host.pid());

    let mut running = 0;
    let mut most = 0;
    for line in fs::read_to_string(&starts).unwrap().lines() {
        running = if line == "+" {
            running + 1
        } else {
            running - 1
        };
        most = most.max(running);
    }
    assert_eq!(
        (running, most),
        (0, PARALLELISM),
        "brokers starting at once"
    );

    let all = many + REFUSED;
    let lines: Vec<String> = listener
        .heard("STATUS=")
        .into_iter()
        .map(|(_, line)| line)
        .collect();
    // `ready 212/300, starting 4, waiting 80, refused 8`
    let figures: Vec<BTreeSet<&str>> = lines
        .iter()
        .map(|line| line.split(", ").collect())
        .collect();
    let whole = format!("ready {many}/{all}");
    assert!(
        lines.iter().all(|line| line.starts_with("ready ")),
        "{lines:?}"
    );
    assert_eq!(
        lines.last().unwrap(),
        &format!("{whole}, refused {REFUSED}")
    );
    let half_way = figures.iter().any(|figures| {
        let waiting = figures.iter().any(|figure| figure.starts_with("waiting "));
        waiting && figures.contains(format!("refused {REFUSED}").as_str())
    });
    assert!(half_way, "{lines:?}");
    let seen: BTreeSet<&str> = lines
        .iter()
        .filter_map(|line| line.split(['/', ',']).next())
        .collect();
    assert!(seen.len() > many / 4, "too few steps: {seen:?}");
    // The unit is up when every tenant has been judged, not when the last broker is ready.
    let up = listener.heard("READY=1")[0].0.duration_since(began);
    assert!(up < took, "{up:?} of {took:?}");
    println!(
        "measured: {many} tenants of 0.1 s each at {PARALLELISM} at once are ready after {:.1} s; the unit is up after {:.1} s; the supervisor takes {:.2} s of processor time",
        took.as_secs_f64(),
        up.as_secs_f64(),
        ticks as f64 / 100.0
    );
    // The pings never came too late for systemd, and they continue.
    let pings = until(Duration::from_secs(60), "several pings", || {
        let pings = listener.heard("WATCHDOG=1");
        (pings.len() > 3).then_some(pings)
    });
    let longest = pings.windows(2).map(|w| w[1].0 - w[0].0).max().unwrap();
    assert!(longest < WATCHDOG, "no ping for {longest:?}");
    listener.end();
}

#[test]
fn brokers_that_start_together_do_not_overrun_their_server() {
    let _alone = alone();
    const TENANTS: usize = 16;
    let host = Host::builder()
        .set("start.parallelism", &PARALLELISM.to_string())
        .build();
    for n in 0..TENANTS {
        host.tenant(&format!("t{n}")).pool(2).write();
    }
    let (done, most) = (AtomicBool::new(false), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        let end = SetAtEnd::of(&done);
        scope.spawn(|| {
            let mut client = host.server().client();
            while !done.load(Ordering::Relaxed) {
                let sessions: i64 = client
                    .query_one(
                        "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'brokkr:%'",
                        &[],
                    )
                    .unwrap()
                    .get(0);
                most.fetch_max(usize::try_from(sessions).unwrap(), Ordering::Relaxed);
            }
        });
        let began = Instant::now();
        host.up();
        host.wait(Duration::from_secs(120), "all to be ready", |s| {
            s.tenants.len() == TENANTS && s.all("ready")
        });
        drop(end);
        println!(
            "measured: {TENANTS} first starts at {PARALLELISM} at once take {:.1} s, and {} connections at most",
            began.elapsed().as_secs_f64(),
            most.load(Ordering::Relaxed)
        );
    });
    // A start holds two connections: one for the lock, one for the work. The prober connects with two and keeps one. A
    // start is over when its broker is ready: a slow server may still list one of its sessions when the next start
    // begins.
    let most = most.load(Ordering::Relaxed);
    assert!(most > PARALLELISM, "the test no longer sees them: {most}");
    assert!(most <= 3 * PARALLELISM + 3, "{most} connections");
}
