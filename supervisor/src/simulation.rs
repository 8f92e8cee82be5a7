//! Tests the lifecycle and the budget with thousands of tenants, random faults and simulated time.
//!
//! Processes, servers, sockets and clocks are simulated. The deciding code is real: the fleet's core, with its effects
//! carried out on numbers. Each run has a seed, and the same seed gives the same events. A run that breaks a rule prints
//! its seed and the history of the tenant concerned.
//!
//! | rule | where |
//! |---|---|
//! | never over budget: what all processes of a server may hold fits | [`rules`] |
//! | never more than two processes of a tenant, never two tenants on one schema or address | [`rules`] |
//! | a ready instance is told to end only for a reason of its own tenant | [`rules`] |
//! | pauses after a failure stay within their bounds, and no start comes before their end | [`rules`] |
//! | no more starts at once on one server than there are slots | [`rules`] |
//! | after the faults, every tenant with a valid file within the budget is ready as configured | [`World::rest`] |
//! | after a restart of all tenants, all are ready in a new process | [`World::rest`] |
//!
//! `make simulate` runs two thousand tenants for two simulated minutes, three times in parallel, optimised: millions of
//! events in a minute. `BROKKR_SIMULATION=TENANTS,SECONDS` sets the size. `BROKKR_SIMULATION_SEED=N` repeats a seed,
//! and `BROKKR_SIMULATION_SEED=random` takes new seeds; a failing run prints both variables. The default seeds are
//! fixed.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "tests"
)]

mod faults;
mod process;
mod rules;
mod world;

use std::time::{Duration, Instant};

use world::World;

/// The size of a run.
#[derive(Clone, Copy)]
struct Size {
    tenants: usize,
    /// The simulated time with faults, in seconds.
    seconds: u64,
}

fn play(seed: u64, size: Size) -> (u64, u64) {
    let again = format!(
        "BROKKR_SIMULATION={},{} BROKKR_SIMULATION_SEED={seed}",
        size.tenants, size.seconds
    );
    println!("{again}");
    let mut world = World::new(seed, size.tenants, again);
    world.run(Duration::from_secs(size.seconds));
    world.rest();
    world.events()
}

/// The seeds of a run without BROKKR_SIMULATION_SEED.
const SEEDS: [u64; 3] = [1, 2, FOUND_ELSEWHERE];
/// A seed in which a killed broker's connections remained on its tenant's old server and were counted on the new
/// server.
const FOUND_ELSEWHERE: u64 = 1_034_883_373_253_837_209;

fn seeds() -> Vec<u64> {
    match std::env::var("BROKKR_SIMULATION_SEED").as_deref() {
        Err(_) | Ok("") => SEEDS.to_vec(),
        Ok("random") => SEEDS.map(|_| fastrand::u64(..)).to_vec(),
        Ok(seed) => vec![seed.parse().unwrap()],
    }
}

fn size(tenants: usize, seconds: u64) -> Size {
    let asked = std::env::var("BROKKR_SIMULATION").ok();
    let asked = asked.as_deref().and_then(|text| text.split_once(','));
    asked.map_or(Size { tenants, seconds }, |(tenants, seconds)| Size {
        tenants: tenants.parse().unwrap(),
        seconds: seconds.parse().unwrap(),
    })
}

#[test]
fn no_fault_breaks_a_rule_and_all_that_can_run_runs_in_the_end() {
    let began = Instant::now();
    let size = size(100, 300);
    // Each seed runs in its own thread.
    let events: u64 = std::thread::scope(|scope| {
        let runs: Vec<_> = seeds()
            .into_iter()
            .map(|seed| scope.spawn(move || play(seed, size)))
            .collect();
        runs.into_iter()
            .map(|run| {
                let (events, _) = run
                    .join()
                    .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
                events
            })
            .sum()
    });
    println!(
        "{events} events of {} tenants in {:?}",
        size.tenants,
        began.elapsed()
    );
    assert!(events > 10_000, "{events} events are no test");
}

#[test]
fn a_thousand_tenants_are_no_different() {
    let size = Size {
        tenants: 1000,
        seconds: 15,
    };
    let (events, _) = play(SEEDS[0], size);
    assert!(events > 100_000, "{events} events are no test");
}

#[test]
fn a_seed_is_one_run() {
    let size = Size {
        tenants: 40,
        seconds: 60,
    };
    assert_eq!(play(7, size), play(7, size));
}
