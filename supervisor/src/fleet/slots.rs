//! Start slots: how many brokers may start at once on one server, and how many of these beside a running instance.

use crate::lifecycle::SlotKind;
use brokkr_tenant::TenantName;
use std::collections::{BTreeMap, VecDeque};

/// The slots of one server. First come, first served; a replacement that must wait for room in the budget lets
/// starts behind it pass.
#[derive(Debug, Default)]
pub(crate) struct Slots {
    held: BTreeMap<TenantName, SlotKind>,
    queue: VecDeque<(TenantName, SlotKind)>,
}

/// How many there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Limits {
    /// `[start] parallelism`.
    pub(crate) starts: usize,
    /// What the budget has room for.
    pub(crate) replacements: usize,
}

impl Slots {
    /// Joins the queue.
    pub(crate) fn ask(&mut self, tenant: &TenantName, kind: SlotKind) {
        self.release(tenant);
        self.queue.push_back((tenant.clone(), kind));
    }

    /// Gives a slot back, or leaves the queue.
    pub(crate) fn release(&mut self, tenant: &TenantName) {
        self.held.remove(tenant);
        self.queue.retain(|(waiting, _)| waiting != tenant);
    }

    /// Whoever may start now.
    pub(crate) fn grant(&mut self, limits: Limits) -> Vec<TenantName> {
        let mut granted = Vec::new();
        let mut replacements = self
            .held
            .values()
            .filter(|kind| **kind == SlotKind::Replacement)
            .count();
        let mut at = 0;
        while self.held.len() < limits.starts.max(1) {
            let Some((tenant, kind)) = self.queue.get(at).cloned() else {
                break;
            };
            if kind == SlotKind::Replacement && replacements >= limits.replacements.max(1) {
                at += 1;
                continue;
            }
            replacements += usize::from(kind == SlotKind::Replacement);
            self.queue.remove(at);
            self.held.insert(tenant.clone(), kind);
            granted.push(tenant);
        }
        granted
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn slots_go_in_order_and_a_replacement_without_room_lets_starts_pass() {
        let name = |n: &str| TenantName::parse(n).unwrap();
        let limits = Limits {
            starts: 3,
            replacements: 1,
        };
        let mut slots = Slots::default();
        for (n, kind) in [
            ("a", SlotKind::Replacement),
            ("b", SlotKind::Replacement),
            ("c", SlotKind::Start),
            ("d", SlotKind::Start),
            ("e", SlotKind::Start),
        ] {
            slots.ask(&name(n), kind);
        }
        assert_eq!(slots.grant(limits), [name("a"), name("c"), name("d")]);
        slots.release(&name("c"));
        assert_eq!(slots.grant(limits), [name("e")]);
        slots.release(&name("a"));
        assert_eq!(slots.grant(limits), [name("b")]);
        slots.release(&name("d"));
        slots.release(&name("d"));
        assert!(slots.grant(limits).is_empty());
    }
}
