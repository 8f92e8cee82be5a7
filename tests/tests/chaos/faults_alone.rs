//! What the random faults have found, each alone.

use brokkr_tests::chaos::excuse::stand_still;
use brokkr_tests::wait::until;
use brokkr_tests::{Host, procs};
use std::time::Duration;

/// However busy the machine is.
const SOON: Duration = Duration::from_secs(90);

#[test]
fn a_broker_that_hangs_when_the_next_supervisor_comes_is_found_by_its_probes() {
    let host = Host::builder()
        .set("health.interval", "\"1s\"")
        // Which it would have if it were taken for one that starts.
        .set("start.timeout", "\"10m\"")
        .build();
    let acme = host.tenant("acme").up();
    let hung = acme.pid();
    host.kill();
    stand_still(hung);
    host.up();
    until(SOON, "the hung broker to be ended", || {
        (!procs::alive(hung)).then_some(())
    });
    acme.wait_within(SOON, "ready again", |t| {
        t.state == "ready" && t.pid.is_some_and(|pid| pid != hung)
    });
}
