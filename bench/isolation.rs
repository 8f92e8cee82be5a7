//! Measures what the layers of isolation cost: a supervised broker in its sandbox beside a broker alone, which has none.

use crate::{Measured, load, spread};
use brokkr_tests::{Broker, Host, http};
use std::time::{Duration, Instant};

/// The rounds of starts, each with both brokers.
const STARTS: usize = 8;

pub(crate) fn isolation() {
    let host = Host::new();
    let tenant = host.tenant("bench").set("log.level", "\"warn\"").up();
    let layers = host.command(&["status", "bench"]).ok();
    for line in layers.lines().filter(|line| line.starts_with("isolation")) {
        println!("{line}");
    }
    let lone = || {
        Broker::on(host.server())
            .schema("lone")
            .set("log.level", "\"warn\"")
    };
    let alone = lone().start();
    let pak = alone.admin_pak();
    let rates = |what: &str, sandboxed: &Measured, free: &Measured| {
        println!(
            "{what:<24} in its sandbox {:>8.0} req/s, p99 {:>6.2} ms; alone {:>8.0} req/s, p99 {:>6.2} ms; ratio {:.3}",
            sandboxed.rate,
            sandboxed.p99.as_secs_f64() * 1000.0,
            free.rate,
            free.p99.as_secs_f64() * 1000.0,
            sandboxed.rate / free.rate
        );
    };
    for (what, path) in [
        ("GET /healthz", "/healthz"),
        ("list of agents, empty", "/api/v1/agents"),
    ] {
        // The two take turns, because a machine may slow down.
        let free = load(&alone.addr(), "GET", path, &pak, 200);
        let sandboxed = load(&tenant.addr(), "GET", path, &tenant.pak(), 200);
        rates(what, &sandboxed, &free);
    }
    drop(alone);

    let (mut sandboxed, mut free) = (Vec::new(), Vec::new());
    for _ in 0..STARTS {
        host.command(&["stop", "bench"]).ok();
        let start = Instant::now();
        host.command(&["start", "bench"]).ok();
        sandboxed.push(start.elapsed());
        let start = Instant::now();
        let broker = lone().spawn();
        while !http::get(&broker.addr(), "/readyz").is_ok_and(|answer| answer.status == 200) {
            std::thread::sleep(Duration::from_millis(1));
        }
        free.push(start.elapsed());
    }
    println!("`start` of a supervised tenant: {}", spread(sandboxed));
    println!("a broker alone, to /readyz 200: {}", spread(free));
}
