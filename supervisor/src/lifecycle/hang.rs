//! Is a broker hung, or is the host? Judged over all tenants together.

/// How one tenant answers its probes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pulse {
    /// Answers.
    Fine,
    /// Missed some, not enough to act on.
    Failing,
    /// Missed as many in a row as `[health] failures`.
    Hung,
    /// Was found hung and is being replaced.
    BeingReplaced,
}

/// What to do about the tenants that do not answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Hang<T> {
    /// Nobody is due.
    Nothing,
    /// So many fail together that the host is at fault: replace none.
    HostStalled {
        /// How many do not answer.
        failing: usize,
    },
    /// Replace this one now; the others wait their turn.
    Replace(T),
}

/// One hung replacement at a time; none when more than three and more than a tenth of all tenants fail together.
pub(crate) fn stalled_or_hung<T>(tenants: impl Iterator<Item = (T, Pulse)>) -> Hang<T> {
    let (mut all, mut failing, mut busy, mut first) = (0usize, 0usize, false, None);
    for (tenant, pulse) in tenants {
        all += 1;
        match pulse {
            Pulse::Fine => {}
            Pulse::Failing => failing += 1,
            Pulse::Hung => {
                failing += 1;
                first.get_or_insert(tenant);
            }
            Pulse::BeingReplaced => busy = true,
        }
    }
    match first {
        None => Hang::Nothing,
        Some(_) if failing > 3 && failing * 10 > all => Hang::HostStalled { failing },
        Some(_) if busy => Hang::Nothing,
        Some(tenant) => Hang::Replace(tenant),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judge(fine: usize, failing: usize, hung: usize, busy: usize) -> Hang<usize> {
        let pulses = std::iter::repeat_n(Pulse::Fine, fine)
            .chain(std::iter::repeat_n(Pulse::Failing, failing))
            .chain(std::iter::repeat_n(Pulse::Hung, hung))
            .chain(std::iter::repeat_n(Pulse::BeingReplaced, busy));
        stalled_or_hung(pulses.enumerate())
    }

    #[test]
    fn one_hung_tenant_is_replaced_and_the_second_waits_its_turn() {
        assert_eq!(judge(10, 0, 2, 0), Hang::Replace(10));
        assert_eq!(judge(10, 0, 1, 1), Hang::Nothing);
        assert_eq!(judge(1, 0, 1, 0), Hang::Replace(1));
    }

    #[test]
    fn many_failing_together_are_the_hosts_fault() {
        assert_eq!(judge(6, 3, 1, 0), Hang::HostStalled { failing: 4 });
        assert_eq!(judge(96, 3, 1, 0), Hang::Replace(99));
        assert_eq!(judge(0, 0, 3, 0), Hang::Replace(0));
    }
}
