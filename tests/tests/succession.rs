//! SIGUSR2 and what comes in its way: the program that takes over ends when it is told to, and one that could not go on is
//! not executed.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "tests"
)]

use brokkr_tests::{Host, procs};
use nix::sys::signal::Signal;
use std::time::Duration;

/// In how many of the stream's lines this stands.
fn said(host: &Host, what: &str) -> usize {
    let lines = host.log_lines().into_iter();
    lines
        .filter(|line| line["message"].as_str().is_some_and(|m| m.contains(what)))
        .count()
}

#[test]
fn a_signal_to_end_is_heeded_whenever_it_comes_after_one_to_take_over() {
    let host = Host::new();
    host.own_supervisor();
    host.trivial_brokers();
    let acme = host.tenant("acme").up();
    let mut passed_on = 0;
    // From at once to long after the next program has begun.
    for turn in 0..20 {
        let signal = [Signal::SIGTERM, Signal::SIGINT][turn % 2];
        let executed = said(&host, "taken over as they are");
        host.succeed();
        std::thread::sleep(Duration::from_millis(15) * turn as u32);
        procs::signal(host.pid(), signal);
        assert!(host.wait_ended().success(), "after turn {turn}");
        assert_eq!(host.leftovers(), Vec::<String>::new(), "after turn {turn}");
        passed_on += said(&host, "taken over as they are") - executed;
        host.up();
        acme.becomes("ready");
    }
    println!("in {passed_on} of 20 the next program ended it");
    assert!(
        passed_on > 0,
        "no signal came so late that it had to be passed on"
    );
}
