//! Tells a hung broker from a stalled host, by looking at the probes of all tenants together.

use super::Time;
use std::time::Duration;

/// A tenant's answers to its probes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ProbeHealth {
    /// No instance must answer, or it has no probe result yet.
    Absent,
    /// The last probe was answered.
    Fine,
    /// Some probes were missed, too few to act on.
    Failing,
    /// As many probes in a row were missed as `[health] failures`.
    Hung,
    /// As `Hung`, but no probe was ever answered. While other tenants answer, this says nothing about the host.
    Mute,
    /// As `Failing`, but no probe was ever answered.
    NotYet,
    /// The instance was found hung and is being replaced.
    BeingReplaced,
}

/// Action to take about tenants that do not answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum HangVerdict<T> {
    /// Do nothing.
    Nothing,
    /// Replace none: so many fail together that the host is at fault.
    HostStalled,
    /// The stall is over: probes missed meanwhile do not count against any broker.
    StallEnded,
    /// Replace this tenant's instance now; other tenants wait their turn.
    Replace(T),
}

/// Replaces one hung instance at a time. While more than three and more than a tenth of all tenants fail together, the
/// host counts as stalled and none is replaced.
///
/// All brokers may hang on a healthy host. So when a stall goes on for long, one instance is replaced on trial, and the
/// next as soon as that tenant answers, or after as long again.
#[derive(Debug)]
pub(crate) struct HangDetector<T> {
    patience: Duration,
    stall: Option<Stall>,
    /// The tenant replaced last, and the time. No other is replaced until it serves again or `patience` has passed.
    last: Option<(T, Time)>,
}

#[derive(Debug)]
struct Stall {
    failing: usize,
    began: Time,
    /// Time of the next replacement on trial, even if the last one has failed.
    next: Time,
}

impl<T: Clone + PartialEq> HangDetector<T> {
    /// Returns a judge that lets the host stall for `patience` before an instance is replaced on trial.
    pub(crate) fn new(patience: Duration) -> Self {
        Self {
            patience,
            stall: None,
            last: None,
        }
    }

    /// Returns the number of failing tenants while the host is stalled.
    pub(crate) fn stalled(&self) -> Option<usize> {
        self.stall.as_ref().map(|stall| stall.failing)
    }

    /// Returns the time a stall must last before an instance is replaced on trial.
    pub(crate) fn patience(&self) -> Duration {
        self.patience
    }

    /// Decides what to do now about the tenants' answers.
    pub(crate) fn judge(
        &mut self,
        now: Time,
        tenants: impl Iterator<Item = (T, ProbeHealth)>,
    ) -> HangVerdict<T> {
        let (mut all, mut failing, mut busy) = (0usize, 0usize, false);
        let (mut mutes, mut fine) = (0usize, 0usize);
        // Tenants that follow the last replaced one go first, so that a broker that keeps hanging delays no other.
        let (mut before, mut after, mut mute, mut passed) = (None, None, None, false);
        let began = self.stall.as_ref().map(|stall| stall.began);
        let on_trial = |(_, at): &&(T, Time)| began.is_some_and(|began| *at > began);
        let tried = self.last.as_ref().filter(on_trial).map(|(last, _)| last);
        let mut answers = false;
        let at = self.last.as_ref().map(|(_, at)| *at);
        let awaited = at.is_some_and(|at| now < at + self.patience);
        for (tenant, pulse) in tenants {
            all += 1;
            let is_last = self.last.as_ref().is_some_and(|(last, _)| *last == tenant);
            match pulse {
                ProbeHealth::Absent => busy |= is_last && awaited,
                ProbeHealth::Fine => {
                    fine += 1;
                    answers |= tried == Some(&tenant);
                }
                ProbeHealth::Failing => failing += 1,
                ProbeHealth::Hung => {
                    failing += 1;
                    let first = if passed { &mut after } else { &mut before };
                    first.get_or_insert(tenant);
                }
                ProbeHealth::NotYet => {
                    mutes += 1;
                    busy |= is_last && awaited;
                }
                ProbeHealth::Mute => {
                    mutes += 1;
                    mute = mute.or(Some(tenant));
                }
                ProbeHealth::BeingReplaced => busy = true,
            }
            passed |= is_last;
        }
        // While no tenant answers, tenants that never answered count as failing too.
        if fine == 0 {
            failing += mutes;
        }
        let together = failing > 3 && failing * 10 > all;
        // During a stall in which other tenants answer, only tenants that have served are replaced: their clients wait.
        let mute = mute.filter(|_| fine == 0 || !together);
        let first = after.or(before).or(mute);
        match (first, &mut self.stall) {
            (Some(first), Some(stall)) if together => {
                stall.failing = failing;
                if busy || (now < stall.next && !answers) {
                    return HangVerdict::HostStalled;
                }
                stall.next = now + self.patience;
                self.last = Some((first.clone(), now));
                HangVerdict::Replace(first)
            }
            (_, Some(_)) => {
                self.stall = None;
                HangVerdict::StallEnded
            }
            (Some(_), None) if together => {
                self.stall = Some(Stall {
                    failing,
                    began: now,
                    next: now + self.patience,
                });
                HangVerdict::HostStalled
            }
            (Some(first), None) if !busy => {
                self.last = Some((first.clone(), now));
                HangVerdict::Replace(first)
            }
            (_, None) => HangVerdict::Nothing,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(60);

    fn at(seconds: u64) -> Time {
        Duration::from_secs(seconds)
    }

    fn pulses(counts: [(ProbeHealth, usize); 4]) -> impl Iterator<Item = (usize, ProbeHealth)> {
        counts
            .into_iter()
            .flat_map(|(pulse, count)| std::iter::repeat_n(pulse, count))
            .enumerate()
    }

    fn judge(fine: usize, failing: usize, hung: usize, busy: usize) -> HangVerdict<usize> {
        let pulses = pulses([
            (ProbeHealth::Fine, fine),
            (ProbeHealth::Failing, failing),
            (ProbeHealth::Hung, hung),
            (ProbeHealth::BeingReplaced, busy),
        ]);
        HangDetector::new(PATIENCE).judge(at(0), pulses)
    }

    #[test]
    fn one_hung_tenant_is_replaced_and_the_second_waits_its_turn() {
        assert_eq!(judge(10, 0, 2, 0), HangVerdict::Replace(10));
        assert_eq!(judge(10, 0, 1, 1), HangVerdict::Nothing);
        assert_eq!(judge(1, 0, 1, 0), HangVerdict::Replace(1));
    }

    #[test]
    fn brokers_that_never_answered_say_nothing_about_the_host_and_come_last() {
        let mut hangs = HangDetector::new(PATIENCE);
        let mute = |n: u8| (n, ProbeHealth::Mute);
        let fleet = |hung: &[u8]| {
            let all = (0..12).map(|n| match (n < 8, hung.contains(&n)) {
                (true, _) => mute(n),
                (false, true) => (n, ProbeHealth::Hung),
                (false, false) => (n, ProbeHealth::Fine),
            });
            all.collect::<Vec<_>>().into_iter()
        };
        assert_eq!(hangs.judge(at(0), fleet(&[9])), HangVerdict::Replace(9));
        assert_eq!(hangs.judge(at(1), fleet(&[])), HangVerdict::Replace(0));
        assert_eq!(hangs.stalled(), None);
        // No tenant answers, and none ever had time to: the host is at fault.
        let all = (0..12).map(mute);
        assert_eq!(hangs.judge(at(2), all), HangVerdict::HostStalled);
    }

    #[test]
    fn a_tenant_that_hangs_repeatedly_delays_no_other() {
        let mut hangs = HangDetector::new(PATIENCE);
        let fleet = || (0..3u8).map(|n| (n, ProbeHealth::Hung));
        let told: Vec<_> = (0..4).map(|n| hangs.judge(at(n), fleet())).collect();
        assert_eq!(told, [0, 1, 2, 0].map(HangVerdict::Replace));
    }

    #[test]
    fn many_failing_together_are_the_hosts_fault() {
        assert_eq!(judge(6, 3, 1, 0), HangVerdict::HostStalled);
        assert_eq!(judge(96, 3, 1, 0), HangVerdict::Replace(99));
        assert_eq!(judge(0, 0, 3, 0), HangVerdict::Replace(0));
    }

    #[test]
    fn a_long_stall_replaces_one_tenant_on_trial_and_the_next_when_it_answers() {
        use ProbeHealth::{Absent, BeingReplaced, Fine, Hung};
        let mut hangs = HangDetector::new(PATIENCE);
        let mut tenants = [Hung; 8];
        let mut judge = |seconds, tenants: &[ProbeHealth]| {
            hangs.judge(at(seconds), tenants.iter().copied().enumerate())
        };
        assert_eq!(judge(10, &tenants), HangVerdict::HostStalled);
        assert_eq!(judge(69, &tenants), HangVerdict::HostStalled);
        assert_eq!(judge(70, &tenants), HangVerdict::Replace(0));
        for then in [BeingReplaced, Absent] {
            tenants[0] = then;
            assert_eq!(judge(129, &tenants), HangVerdict::HostStalled);
        }
        // Tenant 0 does not start either: the next one is tried after the same time again.
        assert_eq!(judge(130, &tenants), HangVerdict::Replace(1));
        tenants[1] = Fine;
        assert_eq!(judge(131, &tenants), HangVerdict::Replace(2));
        assert_eq!(judge(132, &tenants), HangVerdict::HostStalled);
        tenants[2] = Fine;
        tenants[3] = Fine;
        assert_eq!(judge(133, &tenants), HangVerdict::Replace(4));
        tenants[4] = Fine;
        assert_eq!(judge(134, &tenants), HangVerdict::StallEnded);
        assert_eq!(judge(134, &tenants), HangVerdict::Replace(5));
        // The next is replaced only when tenant 5 serves again.
        for then in [BeingReplaced, Absent] {
            tenants[5] = then;
            assert_eq!(judge(135, &tenants), HangVerdict::Nothing);
        }
        tenants[5] = Fine;
        assert_eq!(judge(136, &tenants), HangVerdict::Replace(6));
        // Tenant 6 never serves again, and its time passes.
        tenants[6] = Absent;
        assert_eq!(judge(195, &tenants), HangVerdict::Nothing);
        assert_eq!(judge(196, &tenants), HangVerdict::Replace(7));
    }
}
