//! Random faults against a host under load: no request fails.
//!
//! `CHAOS_SEED` (`random` for a new seed) repeats a plan as far as real processes allow, with the same tenants and
//! longest fault. `CHAOS_SECONDS` (0: until every kind of fault has come once), `CHAOS_TENANTS` and `CHAOS_LONGEST_MS`
//! (of one fault) make it longer. `make chaos` sets them.

mod faults_alone;

use brokkr_tests::chaos::{Clients, Kind, Plan, Round, World};
use brokkr_tests::{Host, alone, pg};
use std::time::{Duration, Instant};

/// The seed of `make test`; `make chaos` chooses new seeds.
const SEED: u64 = 1_545_803_627_087_059_122;

fn setting(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).map_or(otherwise, |text| {
        text.parse()
            .unwrap_or_else(|_| panic!("{name} is a number, not {text:?}"))
    })
}

/// Builds a host that finds a hung broker within seconds, on a server with room for every overlap.
fn host(tenants: usize) -> Host {
    let connections = u32::try_from(tenants).unwrap() * 4 + 40;
    Host::builder()
        // Only asynchronous writes may be lost in a crash.
        .pg(pg::Options::new()
            .max_connections(connections)
            .set("synchronous_commit", "on"))
        .set("health.interval", "\"1s\"")
        .set("stop.grace", "\"10s\"")
        .build()
}

#[test]
fn under_random_faults_nothing_is_refused_failed_mixed_up_or_lost() {
    let _alone = alone();
    let seed = brokkr_tests::seed("CHAOS_SEED", SEED);
    let seconds = setting("CHAOS_SECONDS", 0);
    let tenants = usize::try_from(setting("CHAOS_TENANTS", 20)).unwrap();
    let longest = Duration::from_millis(setting("CHAOS_LONGEST_MS", 2500));
    // All settings are needed to repeat the plan.
    let settings = format!(
        "CHAOS_SEED={seed} CHAOS_SECONDS={seconds} CHAOS_TENANTS={tenants} CHAOS_LONGEST_MS={}",
        longest.as_millis()
    );
    println!("{settings}");

    let began = Instant::now();
    let host = host(tenants);
    let world = World::new(&host, tenants);
    let clients = Clients::start(&world.shared, &world.addresses(), seed);
    let plan = Plan::new(seed, tenants, longest);
    let rounds: Box<dyn Iterator<Item = Round>> = match seconds {
        0 => Box::new(plan.once().into_iter()),
        n => Box::new(plan.take_while(move |_| began.elapsed() < Duration::from_secs(n))),
    };
    let mut slowest = Duration::ZERO;
    for (number, round) in rounds.enumerate() {
        let faults: Vec<String> = round.iter().map(ToString::to_string).collect();
        world.note(format!("round {number}: {}", faults.join(" and ")));
        world.suffer(&round);
        let took = world.is_whole();
        world.shared.allowed_failures.close();
        slowest = slowest.max(took);
        world.note(format!(
            "round {number}: whole {took:?} after the last fault"
        ));
        if !world.shared.diary.violations().is_empty() {
            break;
        }
    }
    let (tally, ledgers) = clients.stop();
    let diary = &world.shared.diary;
    for broken in world.check_ledgers(&ledgers) {
        diary.violation(Kind::Lost, broken);
    }
    println!(
        "{tally}; whole again within {slowest:?}; {:?} in all",
        began.elapsed()
    );

    let kinds = [Kind::Refused, Kind::Failed, Kind::WrongTenant, Kind::Lost];
    let counts = kinds.map(|kind| diary.count(kind));
    println!(
        "{}",
        kinds
            .iter()
            .zip(counts)
            .map(|(k, n)| format!("{k}: {n}"))
            .collect::<Vec<_>>()
            .join(", ")
    );
    assert_eq!(
        counts,
        [0; 4],
        "{settings}\n{}",
        diary.violations().join("\n")
    );
    assert_eq!(world.check_host(), [""; 0], "{settings}");
    assert!(
        tally.acknowledged > 100 && tally.answered() > 1000,
        "{tally}"
    );
    host.stop();
    assert_eq!(host.leftovers(), [""; 0]);
}
