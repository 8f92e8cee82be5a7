//! Ten thousand files at once.

use crate::pressure::world::{host, ready, tenants};
use brokkr_tests::{Addr, SetAtEnd, alone, http, procs, until};
use std::fs;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

const FILES: usize = 10_000;

#[test]
fn ten_thousand_files_dropped_at_once_affect_no_running_tenant() {
    let _alone = alone();
    let host = host();
    let few = tenants(&host, 5);
    host.up();
    ready(&host, 5);
    let pids: Vec<i32> = few.iter().map(|t| t.pid()).collect();
    let before = procs::figure(host.pid(), "VmRSS");

    let start = Instant::now();
    host.status();
    // The machine's present delay.
    let slack = 20 * start.elapsed();

    let dropped = Instant::now();
    for n in 0..FILES {
        let name = format!("x{n}.toml");
        // Ten files are good; the others are wrong in various ways.
        let text = match n {
            0..10 => few[0]
                .read_file()
                .replace("tenant_t0", &format!("tenant_x{n}"))
                .replace(
                    &few[0].addr().to_string(),
                    &format!("127.0.0.1:{}", brokkr_tests::ports::free()),
                ),
            _ if n % 2 == 0 => "[database\nschema = 5".to_owned(),
            _ => "[database]\nschema = \"pg_mine\"\n".to_owned(),
        };
        fs::write(host.tenants_dir().join(name), text).unwrap();
    }
    // The supervisor answers all the time: a query about one tenant does not wait for the flood.
    let control = Addr::Unix(host.runtime_dir().join("control.sock"));
    let (done, slowest) = (AtomicBool::new(false), Mutex::new(Duration::ZERO));
    let settled = std::thread::scope(|scope| {
        let end = SetAtEnd::of(&done);
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                let answer = http::get(&control, "/v1/status?tenant=t0").unwrap();
                assert_eq!(answer.status, 200);
                let mut slowest = slowest.lock().unwrap();
                *slowest = slowest.max(answer.took);
                drop(slowest);
                std::thread::sleep(Duration::from_millis(100));
            }
        });
        let counted = until(Duration::from_secs(120), "all to be seen", || {
            let status = host.status();
            let count = |state| status.tenants.iter().filter(|t| t.state == state).count();
            let settled = dropped.elapsed();
            std::thread::sleep(Duration::from_millis(500));
            (count("refused") == FILES - 10 && count("ready") == 15).then_some(settled)
        });
        drop(end);
        counted
    });
    let slowest = *slowest.lock().unwrap();
    let growth = procs::figure(host.pid(), "VmRSS").saturating_sub(before);
    println!(
        "measured: {FILES} files dropped at once, all but ten of them wrong, are seen {:.1} s after the first; `status TENANT` took {:.1} s at most; {growth} KiB",
        settled.as_secs_f64(),
        slowest.as_secs_f64()
    );
    for (tenant, pid) in few.iter().zip(&pids) {
        let shown = tenant.status();
        assert_eq!(
            (shown.pid, shown.restarts, shown.state.as_str()),
            (Some(*pid), 0, "ready")
        );
    }
    assert!(slowest < Duration::from_secs(2) + slack, "{slowest:?}");

    // Removed again; this needs a confirmation because it is nearly all tenants.
    for n in 10..FILES {
        fs::remove_file(host.tenants_dir().join(format!("x{n}.toml"))).unwrap();
    }
    host.command(&["reload", "--confirm-removals"]).ok();
    assert_eq!(host.status().tenants.len(), 15);
    for (tenant, pid) in few.iter().zip(&pids) {
        assert_eq!(tenant.pid(), *pid);
    }
}
