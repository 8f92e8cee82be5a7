//! Measures supervised tenants on this machine: `figures idle|crash|drop|api|isolation|neighbour`.
//!
//! Everything is real and built for release: supervisor, broker and a PostgreSQL server of the tenant's own. Rates are
//! compared with `/healthz` of the same broker in the same run, because machines differ. The load generator runs one
//! thread per connection, on the same processors as the broker.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a program for people to run by hand"
)]

mod isolation;
mod neighbour;

use brokkr_tests::{Addr, Api, Connection, Host, Tenant, http, procs, wait};
use nix::sys::signal::Signal;
use serde_json::json;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

fn main() {
    match std::env::args().nth(1).as_deref() {
        Some("idle") => idle(),
        Some("crash") => crash(),
        Some("drop") => dropped(),
        Some("api") => api(),
        Some("isolation") => isolation::isolation(),
        Some("neighbour") => neighbour::neighbour(),
        _ => {
            eprintln!("usage: figures idle|crash|drop|api|isolation|neighbour");
            std::process::exit(2);
        }
    }
}

/// Formats the median and the largest of the times, in milliseconds.
fn spread(mut times: Vec<Duration>) -> String {
    times.sort();
    let ms = |t: Duration| t.as_secs_f64() * 1000.0;
    format!(
        "median {:.1} ms, worst {:.1} ms of {}",
        ms(times[times.len() / 2]),
        ms(times[times.len() - 1]),
        times.len()
    )
}

fn status_field(pid: i32, file: &str, key: &str) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap_or_default();
    text.lines()
        .find_map(|line| {
            line.strip_prefix(key)?
                .split_whitespace()
                .next()?
                .parse()
                .ok()
        })
        .unwrap_or_else(|| panic!("no {key} in /proc/{pid}/{file} (run as root)"))
}

/// Measures the memory, threads and wakeups of idle brokers.
fn idle() {
    let host = Host::new();
    let tenants: Vec<Tenant<'_>> = (1..=4)
        .map(|n| host.tenant(&format!("t{n}")).up())
        .collect();
    for tenant in &tenants {
        tenant.api().get("/agents").expect(200);
    }
    let mut client = host.server().client();
    let start = Instant::now();
    wait::until_ok(
        Duration::from_secs(120),
        "idle brokers to hold no connection",
        || {
            let held = client
            .query(
                "SELECT application_name, state, query FROM pg_stat_activity WHERE application_name LIKE 'brokkr:%:t%'",
                &[],
            )
            .unwrap();
            if held.is_empty() {
                Ok(())
            } else {
                Err(format!("{held:?}"))
            }
        },
    );
    println!(
        "idle broker: 0 connections {:.0} s after its last request",
        start.elapsed().as_secs_f64()
    );
    for tenant in &tenants {
        let pid = tenant.pid();
        println!(
            "{}: PSS {:.1} MiB, {} threads",
            tenant.name(),
            status_field(pid, "smaps_rollup", "Pss:") as f64 / 1024.0,
            status_field(pid, "status", "Threads:")
        );
    }
    let switches = |pid: i32| -> u64 {
        std::fs::read_dir(format!("/proc/{pid}/task"))
            .unwrap()
            .flatten()
            .map(|task| task.file_name().to_string_lossy().parse::<i32>().unwrap())
            .map(|tid| status_field(tid, "status", "voluntary_ctxt_switches:"))
            .sum()
    };
    let (broker, supervisor) = (tenants[0].pid(), host.pid());
    let before = (switches(broker), switches(supervisor));
    let span = Duration::from_secs(10);
    std::thread::sleep(span);
    println!(
        "wake-ups a second with 4 tenants probed every 2 s: broker {:.1}, supervisor {:.1}",
        (switches(broker) - before.0) as f64 / span.as_secs_f64(),
        (switches(supervisor) - before.1) as f64 / span.as_secs_f64()
    );
    println!(
        "supervisor: PSS {:.1} MiB, {} threads",
        status_field(supervisor, "smaps_rollup", "Pss:") as f64 / 1024.0,
        status_field(supervisor, "status", "Threads:")
    );
}

/// Measures the time from the death of a broker to the next answer on a new connection.
fn crash() {
    let host = Host::new();
    // Each tenant crashes once, because the supervisor restarts at once only after the first crash.
    let tenants: Vec<Tenant<'_>> = (0..12)
        .map(|n| host.tenant(&format!("t{n}")).pool(2).up())
        .collect();
    let (mut healthz, mut agents, mut refused) = (Vec::new(), Vec::new(), 0);
    for (n, tenant) in tenants.iter().enumerate() {
        let (addr, api) = (tenant.addr(), tenant.api());
        let pid = tenant.pid();
        let start = Instant::now();
        procs::signal(pid, Signal::SIGKILL);
        // Requests to the dying process are lost: measure the first new connection after its death.
        while procs::alive(pid) {
            std::hint::spin_loop();
        }
        loop {
            let answer = if n % 2 == 0 {
                http::get(&addr, "/healthz")
            } else {
                api.try_call("GET", "/agents", None)
            };
            match answer {
                Ok(answer) => {
                    assert_eq!(answer.status, 200, "{answer:?}");
                    break;
                }
                Err(e) if e.kind() == std::io::ErrorKind::ConnectionRefused => refused += 1,
                Err(_) => {}
            }
        }
        if n % 2 == 0 {
            &mut healthz
        } else {
            &mut agents
        }
        .push(start.elapsed());
    }
    println!(
        "kill -9 of a broker to the next answer of /healthz: {}",
        spread(healthz)
    );
    println!(
        "kill -9 of a broker to the next answer of GET /api/v1/agents: {}",
        spread(agents)
    );
    println!("connections refused: {refused}");
}

/// Measures the time from a file's rename into tenants.d to an answer of `/readyz`, with the schema already migrated.
fn dropped() {
    let host = Host::new();
    let mut times = Vec::new();
    for n in 0..8 {
        let name = format!("t{n}");
        let first = host.tenant(&name).pool(2).up();
        let (text, addr) = (first.read_file(), first.addr());
        first.remove_file();
        first.is_gone();
        let start = Instant::now();
        first.replace_file(&text);
        while !http::get(&addr, "/readyz").is_ok_and(|answer| answer.status == 200) {
            std::thread::sleep(Duration::from_millis(1));
        }
        times.push(start.elapsed());
    }
    println!(
        "file dropped to /readyz 200, schema migrated: {}",
        spread(times)
    );
}

struct Measured {
    rate: f64,
    p50: Duration,
    p99: Duration,
}

/// Loads the broker over 64 persistent connections for five seconds, after one second of warming up.
fn load(addr: &Addr, method: &'static str, path: &str, pak: &str, wanted: u16) -> Measured {
    const CONNECTIONS: usize = 64;
    let stop = Arc::new(AtomicBool::new(false));
    let counting = Arc::new(AtomicBool::new(false));
    let barrier = Arc::new(Barrier::new(CONNECTIONS + 1));
    let clients: Vec<_> = (0..CONNECTIONS)
        .map(|_| {
            let (addr, path, pak) = (addr.clone(), path.to_owned(), format!("Bearer {pak}"));
            let (stop, counting, barrier) = (
                Arc::clone(&stop),
                Arc::clone(&counting),
                Arc::clone(&barrier),
            );
            std::thread::spawn(move || {
                let mut connection = Connection::open(&addr).unwrap();
                let headers = [("Authorization", pak.as_str())];
                let body: Option<&[u8]> = (method == "POST").then_some(b"{}");
                let mut times = Vec::with_capacity(100_000);
                barrier.wait();
                while !stop.load(Ordering::Relaxed) {
                    let answer = connection.request(method, &path, &headers, body).unwrap();
                    assert_eq!(answer.status, wanted, "{answer:?}");
                    if counting.load(Ordering::Relaxed) {
                        times.push(answer.took);
                    }
                }
                times
            })
        })
        .collect();
    barrier.wait();
    std::thread::sleep(Duration::from_secs(1));
    counting.store(true, Ordering::Relaxed);
    let start = Instant::now();
    std::thread::sleep(Duration::from_secs(5));
    stop.store(true, Ordering::Relaxed);
    let span = start.elapsed();
    let mut times: Vec<Duration> = clients
        .into_iter()
        .flat_map(|client| client.join().unwrap())
        .collect();
    times.sort();
    Measured {
        rate: times.len() as f64 / span.as_secs_f64(),
        p50: times[times.len() / 2],
        p99: times[times.len() * 99 / 100],
    }
}

fn prepare(api: &Api) -> (String, String) {
    let generator = api
        .post("/generators", &json!({"name": "bench"}))
        .expect(201)
        .json();
    let generator_id = generator["generator"]["id"].as_str().unwrap();
    let generator_api = api.with_pak(generator["pak"].as_str().unwrap());
    let mut first = None;
    for n in 0..20 {
        let body = json!({"name": format!("agent-{n}"), "cluster_name": "bench", "generator_ids": [generator_id]});
        let made = api.post("/agents", &body).expect(201).json();
        let one = (
            made["agent"]["id"].as_str().unwrap().to_owned(),
            made["initial_pak"].as_str().unwrap().to_owned(),
        );
        first.get_or_insert(one);
    }
    let (agent, pak) = first.unwrap();
    for n in 0..10 {
        let body = json!({"name": format!("stack-{n}"), "generator_id": generator_id});
        let stack = generator_api.post("/stacks", &body).expect(201).json();
        let id = stack["id"].as_str().unwrap();
        let yaml = format!(
            "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: c{n}\ndata:\n  key: value\n"
        );
        generator_api
            .post(
                &format!("/stacks/{id}/deployment-objects"),
                &json!({"yaml_content": yaml}),
            )
            .expect(201);
        api.post(
            &format!("/agents/{agent}/targets"),
            &json!({"agent_id": agent, "stack_id": id}),
        )
        .expect(201);
    }
    (agent, pak)
}

/// Measures requests per second over 64 connections, as a share of the same broker's `/healthz`.
fn api() {
    let host = Host::new();
    let tenant = host
        .tenant("bench")
        .unset("database.pool_size")
        .set("log.level", "\"warn\"")
        .up();
    let (agent, pak) = prepare(&tenant.api());
    let (addr, admin) = (tenant.addr(), tenant.pak());
    let target = http::request(
        &addr,
        "GET",
        &format!("/api/v1/agents/{agent}/target-state"),
        &[("Authorization", &format!("Bearer {pak}"))],
        None,
    )
    .unwrap();
    assert_eq!(
        target.json().as_array().map(Vec::len),
        Some(10),
        "{}",
        target.text()
    );

    println!(
        "{:<32}{:>10}{:>8}{:>10}{:>10}",
        "", "req/s", "share", "p50 ms", "p99 ms"
    );
    let healthz = load(&addr, "GET", "/healthz", "", 200);
    for (what, method, path, pak, wanted) in [
        ("GET /healthz", "GET", "/healthz".to_owned(), "", 200),
        (
            "list of 20 agents",
            "GET",
            "/api/v1/agents".to_owned(),
            admin.as_str(),
            200,
        ),
        (
            "heartbeat",
            "POST",
            format!("/api/v1/agents/{agent}/heartbeat"),
            pak.as_str(),
            204,
        ),
        (
            "target state of ten stacks",
            "GET",
            format!("/api/v1/agents/{agent}/target-state"),
            pak.as_str(),
            200,
        ),
    ] {
        let one = if what == "GET /healthz" {
            None
        } else {
            Some(load(&addr, method, &path, pak, wanted))
        };
        let one = one.as_ref().unwrap_or(&healthz);
        println!(
            "{what:<32}{:>10.0}{:>8.3}{:>10.2}{:>10.2}",
            one.rate,
            one.rate / healthz.rate,
            one.p50.as_secs_f64() * 1000.0,
            one.p99.as_secs_f64() * 1000.0
        );
    }

    // Probe /healthz on a separate connection while the API is saturated.
    let stop = Arc::new(AtomicBool::new(false));
    let probe = {
        let (addr, stop) = (addr.clone(), Arc::clone(&stop));
        std::thread::spawn(move || {
            let mut times = Vec::new();
            let mut connection = Connection::open(&addr).unwrap();
            while !stop.load(Ordering::Relaxed) {
                times.push(
                    connection
                        .request("GET", "/healthz", &[], None)
                        .unwrap()
                        .took,
                );
                std::thread::sleep(Duration::from_millis(2));
            }
            times.sort();
            times[times.len() * 99 / 100]
        })
    };
    load(&addr, "GET", "/api/v1/agents", &admin, 200);
    stop.store(true, Ordering::Relaxed);
    println!(
        "/healthz p99 while the list is asked by 64: {:.2} ms",
        probe.join().unwrap().as_secs_f64() * 1000.0
    );
}
