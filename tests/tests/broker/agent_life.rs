//! Agents keep a correct cluster through hundreds of polls, amid new objects, label changes, consents, targets and
//! deletions. Meanwhile their broker is replaced and killed, and their own connections are cut.

mod agent;
mod model;

use agent::Agent;
use brokkr_tests::{Host, Tenant, until};
use model::{AGENTS, Model};
use nix::sys::signal::Signal;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Mutex, RwLock};
use std::time::{Duration, Instant};

/// Number of changes to the tenant's data.
const CHANGES: u32 = 250;
/// The least number of polls by each agent.
const POLLS: u32 = 150;
/// Number of replacements and kills of the broker meanwhile.
const DISTURBANCES: u32 = 8;

#[test]
fn fault_36_an_agent_never_removes_what_should_be_there_and_never_keeps_what_should_not() {
    let seed = brokkr_tests::seed("BROKKR_TESTS_SEED", 20_261_130);
    let host = Host::new();
    let acme = host.tenant("acme").pool(10).up();
    let mut rng = fastrand::Rng::with_seed(seed);
    let model = Model::new(acme.api(), &mut rng);
    let agents: Vec<Mutex<Agent>> = model
        .agents
        .iter()
        .enumerate()
        .map(|(n, party)| {
            let fork = fastrand::Rng::with_seed(seed ^ (n as u64 + 1));
            Mutex::new(Agent::new(party, fork, n % 2 == 1))
        })
        .collect();
    // A change and its entry in the model are one step for the polling agents.
    let model = RwLock::new(model);
    let done = AtomicBool::new(false);
    let polls = AtomicU32::new(0);
    let began = Instant::now();
    std::thread::scope(|scope| {
        let end = brokkr_tests::SetAtEnd::of(&done);
        let disturbing = scope.spawn(|| disturb(&host, &acme));
        let polling: Vec<_> = agents
            .iter()
            .enumerate()
            .map(|(n, agent)| {
                let (model, done, polls) = (&model, &done, &polls);
                scope.spawn(move || {
                    let mut mine = 0;
                    while !done.load(Ordering::Relaxed) || mine < POLLS {
                        poll_once(&model.read().unwrap(), n, &mut agent.lock().unwrap(), false);
                        mine += 1;
                        let _ = polls.fetch_add(1, Ordering::Relaxed);
                    }
                })
            })
            .collect();
        for _ in 0..CHANGES {
            model.write().unwrap().change(&mut rng);
            // Most agents see this state before the next change.
            let seen = polls.load(Ordering::Relaxed) + AGENTS as u32 - 1;
            until(Duration::from_secs(30), "agents to poll", || {
                (polls.load(Ordering::Relaxed) >= seen).then_some(())
            });
        }
        disturbing.join().unwrap();
        drop(end);
        for thread in polling {
            thread.join().unwrap();
        }
    });
    // At the end every agent has exactly the objects that the model wants, after one poll.
    let model = model.into_inner().unwrap();
    for (n, agent) in agents.iter().enumerate() {
        poll_once(&model, n, &mut agent.lock().unwrap(), true);
    }
    let frames: u32 = agents.iter().map(|a| a.lock().unwrap().frames()).sum();
    assert!(frames > 0, "nobody used a socket");
    println!(
        "{} agents, {} polls, {frames} frames, {CHANGES} changes ({}), {DISTURBANCES} disturbances, {:?}",
        agents.len(),
        polls.load(Ordering::Relaxed),
        model.summary(),
        began.elapsed()
    );
}

/// Polls once and checks the agent's cluster against the model. With `whole` the poll must not fail.
fn poll_once(model: &Model, n: usize, agent: &mut Agent, whole: bool) {
    if whole {
        agent.settle();
    }
    let outcome = agent.poll();
    for removed in agent.take_removed() {
        assert!(
            !model.should_have(n, &removed),
            "agent {n} removed stack {removed}, which it should have:\n{}",
            model.describe(n, &removed)
        );
    }
    // A poll that was cut or a failed apply leaves the cluster half updated.
    if outcome.is_ok() && !agent.failed_an_apply() {
        assert_eq!(
            *agent.cluster(),
            model.wanted(n),
            "agent {n} after a whole poll"
        );
    }
    assert!(
        !whole || outcome.is_ok(),
        "a quiet broker did not answer: {outcome:?}"
    );
}

/// Replaces the broker by overlap or kills it, alternately, while the rest goes on.
fn disturb(host: &Host, acme: &Tenant<'_>) {
    for time in 0..DISTURBANCES {
        let old = acme.pid();
        if time % 2 == 0 {
            host.command(&["restart", "acme"]).ok();
        } else {
            acme.signal(Signal::SIGKILL);
        }
        acme.wait_within(Duration::from_secs(60), "ready again", |t| {
            t.state == "ready" && t.pid.is_some_and(|pid| pid != old)
        });
    }
}
