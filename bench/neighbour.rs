//! Measures a tenant's answers while another tenant of the same host and server does its worst.

use crate::load;
use brokkr_tests::{Connection, Host, Tenant};
use serde_json::json;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// The time for which each disturbance is measured.
const SPAN: Duration = Duration::from_secs(5);

pub(crate) fn neighbour() {
    let host = Host::new();
    let quiet = host.tenant("quiet").up();
    let noisy = host
        .tenant("noisy")
        .set("limits.cpu_weight", "10")
        .set("limits.memory_max", "\"256M\"")
        .set("log.level", "\"debug\"")
        .up();
    let status = host.command(&["status", "noisy"]).ok();
    match status.lines().find(|line| line.contains("not enforced")) {
        Some(line) => println!("{line}"),
        None => println!("[limits] of the noisy tenant are enforced"),
    }
    let alone = p99(&quiet);
    println!("{:<44}{:>10}{:>8}", "", "p99 ms", "times");
    let print = |what: &str, p99: Duration| {
        println!(
            "{what:<44}{:>10.2}{:>8.2}",
            p99.as_secs_f64() * 1000.0,
            p99.as_secs_f64() / alone.as_secs_f64()
        );
    };
    print("alone", alone);
    let pak = noisy.pak();
    let disturbances: [(&str, &(dyn Fn() + Sync)); 3] = [
        ("64 clients at full speed, log at debug", &|| {
            load(&noisy.addr(), "GET", "/api/v1/agents", &pak, 200);
        }),
        ("bodies of a mebibyte on 16 connections", &|| {
            huge_bodies(&noisy, &pak);
        }),
        ("1,000 connections that send half a request", &|| {
            half_requests(&noisy);
        }),
    ];
    for (what, disturb) in disturbances {
        let disturbed = std::thread::scope(|scope| {
            let disturbing = scope.spawn(disturb);
            let disturbed = p99(&quiet);
            disturbing.join().unwrap();
            disturbed
        });
        print(what, disturbed);
    }
    print("alone again", p99(&quiet));
}

/// Returns the p99 of a tenant's list of agents on four connections with pauses.
fn p99(tenant: &Tenant<'_>) -> Duration {
    let authorization = format!("Bearer {}", tenant.pak());
    let clients: Vec<_> = (0..4)
        .map(|_| {
            let (addr, authorization) = (tenant.addr(), authorization.clone());
            std::thread::spawn(move || {
                let mut connection = Connection::open(&addr).unwrap();
                let headers = [("Authorization", authorization.as_str())];
                let mut times = Vec::new();
                let start = Instant::now();
                while start.elapsed() < SPAN {
                    let answer = connection.request("GET", "/api/v1/agents", &headers, None);
                    times.push(answer.unwrap().expect(200).took);
                    std::thread::sleep(Duration::from_millis(5));
                }
                times
            })
        })
        .collect();
    let mut times: Vec<Duration> = clients
        .into_iter()
        .flat_map(|client| client.join().unwrap())
        .collect();
    times.sort();
    times[times.len() * 99 / 100]
}

fn huge_bodies(noisy: &Tenant<'_>, pak: &str) {
    let stop = Arc::new(AtomicBool::new(false));
    let body = json!({"name": "x".repeat(1 << 20), "cluster_name": "c"}).to_string();
    let clients: Vec<_> = (0..16)
        .map(|_| {
            let (stop, body) = (Arc::clone(&stop), body.clone());
            let (addr, authorization) = (noisy.addr(), format!("Bearer {pak}"));
            std::thread::spawn(move || {
                let headers = [("Authorization", authorization.as_str())];
                while !stop.load(Ordering::Relaxed) {
                    // The broker refuses the body and may close the connection.
                    if let Ok(mut connection) = Connection::open(&addr) {
                        let body = Some(body.as_bytes());
                        let _ = connection.request("POST", "/api/v1/agents", &headers, body);
                    }
                }
            })
        })
        .collect();
    std::thread::sleep(SPAN);
    stop.store(true, Ordering::Relaxed);
    clients
        .into_iter()
        .for_each(|client| client.join().unwrap());
}

fn half_requests(noisy: &Tenant<'_>) {
    let held: Vec<Connection> = (0..1000)
        .filter_map(|_| {
            let mut connection = Connection::open(&noisy.addr()).ok()?;
            connection
                .raw(b"POST /api/v1/agents HTTP/1.1\r\nHost: x\r\nContent-Le")
                .ok()?;
            Some(connection)
        })
        .collect();
    std::thread::sleep(SPAN);
    drop(held);
}
