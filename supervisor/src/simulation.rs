//! The lifecycle and the budget under thousands of tenants, random faults and simulated time.
//!
//! Nothing here runs: processes, servers, sockets and clocks are numbers. What is real is what decides: [`Lifecycle`],
//! [`decide`] and the start slots, joined as the fleet joins them. A run is one seed: the same seed is the same run, event
//! for event, and a run that breaks a rule prints its seed and what happened to the tenant concerned.
//!
//! | rule | where |
//! |---|---|
//! | never over budget: what all processes of a server may hold fits | [`rules`] |
//! | never more than two processes of a tenant, never two tenants on one schema or address | [`rules`] |
//! | a ready tenant is left alone: told to go only for a reason of its own | [`rules`] |
//! | pauses after a failure stay within their bounds, and nothing starts before they are over | [`rules`] |
//! | no more starts at once on one server than there are slots | [`rules`] |
//! | when the faults end, every tenant whose file is good and fits is ready, and runs what is wanted | [`World::rest`] |
//! | then all are restarted, and all are ready on a new process | [`World::rest`] |
//!
//! `make simulate` plays two thousand tenants for two minutes of their time, three times at once, optimised: millions of
//! events in a minute. `BROKKR_SIMULATION=TENANTS,SECONDS` sets the size, `BROKKR_SIMULATION_SEED=N` plays one seed again and
//! `BROKKR_SIMULATION_SEED=random` new ones; a run that fails prints both. Without them the seeds are the same everywhere.
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

/// How large a run is.
#[derive(Clone, Copy)]
struct Size {
    tenants: usize,
    /// Simulated time with faults.
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

/// Played unless another seed is asked for.
const SEEDS: [u64; 3] = [1, 2, FOUND_ELSEWHERE];
/// A killed broker's connections stayed on the server that its tenant had left, and were counted on the new one.
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
    // A run is one thread's, and the seeds know nothing of each other.
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
