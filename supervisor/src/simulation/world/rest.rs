//! Checks after the faults have ended: every tenant is in its wanted state, and can be replaced.

use super::*;

/// Long enough for the longest pause, after a configuration error, and for all starts after it.
const REST: Duration = Duration::from_secs(900);
/// Long enough to replace all tenants of a full server one after the other.
const RESTARTED: Duration = Duration::from_secs(7200);

impl World {
    /// Ends all faults, waits, and checks every tenant; then restarts every tenant and checks again.
    pub(crate) fn rest(&mut self) {
        self.heal();
        self.run(REST);
        self.check_judged();
        for n in 0..self.tenants.len() {
            self.check_at_rest(n);
        }
        for n in 0..self.tenants.len() {
            if self.wanted(n).is_some() {
                self.order(n, Event::Restart);
            }
        }
        let bound = self.now + RESTARTED;
        while self.now < bound && (0..self.tenants.len()).any(|n| self.is_old(n)) {
            self.run(REST / 60);
        }
        // Let the last instances become ready.
        self.run(REST / 10);
        for n in 0..self.tenants.len() {
            self.check_at_rest(n);
            self.rule(!self.is_old(n), n, "it was to be restarted");
        }
    }

    fn is_old(&self, n: usize) -> bool {
        let tenant = &self.tenants[n];
        let mut processes = tenant.processes.values();
        processes.any(|process| process.generation != tenant.generation)
    }

    fn check_at_rest(&self, n: usize) {
        let tenant = &self.tenants[n];
        let Some(life) = self.life(n) else {
            return self.rule(tenant.file.is_none(), n, "it has a file and no life");
        };
        let view = life.view();
        let processes = tenant.processes.len();
        match &tenant.file {
            Some(Ok(file)) if file.enabled && !self.is_stopped(n) => {
                let refused = view.state == State::Refused;
                if refused {
                    let verdict = &self.core.decided().verdict;
                    let decision = verdict.tenants.get(&tenant.name);
                    let fits_not = matches!(decision, Some(Decision::Refused(_)));
                    // The configuration it was admitted with is on another server, and is lost.
                    let elsewhere = matches!(decision, Some(Decision::Keep(_)));
                    let is = |what: &str| view.reason.as_deref().is_some_and(|r| r.contains(what));
                    let known = fits_not || is("taken") || elsewhere && is("over budget");
                    self.rule(known, n, "it is refused without a reason");
                    return self.rule(processes == 0, n, "it is refused and runs");
                }
                self.rule(
                    view.state == State::Ready,
                    n,
                    "it is good, fits, and is not ready at rest",
                );
                self.rule(processes == 1, n, "one process at rest");
                let mut running = tenant.processes.values().map(|p| Some(p.revision));
                let right = running.all(|revision| revision == self.wanted(n));
                self.rule(right, n, "what runs at rest is not what is wanted");
                let mut running = tenant.processes.values();
                let new = running.all(|process| process.generation >= tenant.program);
                self.rule(new, n, "what runs at rest is of an older program");
            }
            Some(Ok(_)) => {
                self.rule(
                    view.state == State::Stopped && processes == 0,
                    n,
                    "it is to be stopped",
                );
            }
            // A broken file does not stop a running tenant.
            Some(Err(_)) => {}
            None => self.rule(false, n, "its file has gone, and it lives"),
        }
    }
}
