//! Start slots: limits how many brokers start at once on one server, and how many of them as replacements.

use crate::lifecycle::{Lifecycle, SlotKind, Urgency};
use brokkr_tenant::TenantName;
use std::collections::{BTreeMap, VecDeque};

/// The slots of one server, granted by urgency, then in order of arrival. Starts that failed before never take the last
/// slot, so that other starts need not wait for them. A replacement, and a first start in room already promised to
/// replacements, let the starts behind them pass while the budget has no room.
#[derive(Debug, Default)]
pub(crate) struct StartSlots {
    held: BTreeMap<TenantName, Held>,
    queue: VecDeque<Asked>,
}

#[derive(Debug, Clone)]
struct Asked {
    tenant: TenantName,
    kind: SlotKind,
    urgency: Urgency,
}

#[derive(Debug, Clone, Copy)]
struct Held {
    kind: SlotKind,
    urgency: Urgency,
    /// True while the tenant's broker is starting.
    starting: bool,
}

/// The numbers of slots to grant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct StartLimits {
    /// `[start] parallelism`.
    pub(crate) starts: usize,
    /// Replacements at once that the budget has room for.
    pub(crate) replacements: usize,
    /// Starts and overlaps that began under an earlier supervisor and hold no slot.
    pub(crate) inherited: InheritedStarts,
}

/// Starts and overlaps that were going on at a take-over and still are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct InheritedStarts {
    pub(crate) starts: usize,
    pub(crate) overlaps: usize,
}

impl InheritedStarts {
    /// Counts a tenant that has no slot.
    pub(crate) fn count(&mut self, life: &Lifecycle) {
        self.starts += usize::from(life.starts());
        self.overlaps += usize::from(life.overlaps());
    }
}

impl StartSlots {
    /// Joins the queue. A tenant that has the room of a replacement keeps that room meanwhile.
    pub(crate) fn ask(&mut self, tenant: &TenantName, kind: SlotKind, urgency: Urgency) {
        if self.held.get(tenant).is_some_and(|held| held.starting) {
            self.held.remove(tenant);
        }
        self.queue.retain(|asked| asked.tenant != *tenant);
        let behind = self.queue.partition_point(|a| a.urgency <= urgency);
        let tenant = tenant.clone();
        self.queue.insert(
            behind,
            Asked {
                tenant,
                kind,
                urgency,
            },
        );
    }

    /// Gives a slot back, or leaves the queue.
    pub(crate) fn release(&mut self, tenant: &TenantName) {
        self.held.remove(tenant);
        self.queue.retain(|asked| asked.tenant != *tenant);
    }

    /// Returns true when no tenant waits for a slot.
    pub(crate) fn queue_is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    pub(crate) fn holds(&self, tenant: &TenantName) -> bool {
        self.held.contains_key(tenant)
    }

    /// Notes that the tenant's start is over. A replacement keeps its room in the budget until it gives the slot back.
    pub(crate) fn started(&mut self, tenant: &TenantName) {
        if let Some(held) = self.held.get_mut(tenant) {
            held.starting = false;
        }
    }

    /// Grants free slots and returns the tenants that may start now.
    pub(crate) fn grant(&mut self, limits: StartLimits) -> Vec<TenantName> {
        let mut granted = Vec::new();
        let held = |which: fn(&Held) -> bool| self.held.values().filter(|h| which(h)).count();
        let mut replacements =
            limits.inherited.overlaps + held(|h| h.kind == SlotKind::Replacement);
        let mut starting = limits.inherited.starts + held(|h| h.starting);
        let mut hopeless = held(|h| h.starting && h.urgency == Urgency::Failed);
        let mut at = 0;
        while starting < limits.starts.max(1) {
            let Some(asked) = self.queue.get(at).cloned() else {
                break;
            };
            let Asked {
                tenant,
                kind,
                urgency,
            } = asked;
            let room = limits.replacements.max(1);
            let own = self.held.get(&tenant);
            let own = usize::from(own.is_some_and(|held| held.kind == SlotKind::Replacement));
            let waits = match kind {
                SlotKind::Start => false,
                SlotKind::First => replacements - own > room,
                SlotKind::Replacement => replacements - own >= room,
            };
            let failed = urgency == Urgency::Failed;
            if waits || (failed && hopeless + 1 >= limits.starts.max(2)) {
                at += 1;
                continue;
            }
            replacements = replacements - own + usize::from(kind == SlotKind::Replacement);
            self.queue.remove(at);
            starting += 1;
            hopeless += usize::from(failed);
            let held = Held {
                kind,
                urgency,
                starting: true,
            };
            self.held.insert(tenant.clone(), held);
            granted.push(tenant);
        }
        granted
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn name(name: &str) -> TenantName {
        TenantName::parse(name).unwrap()
    }

    fn limits(starts: usize, replacements: usize) -> StartLimits {
        StartLimits {
            starts,
            replacements,
            inherited: InheritedStarts::default(),
        }
    }

    #[test]
    fn slots_go_in_order_and_a_replacement_without_room_lets_starts_pass() {
        let limits = limits(3, 1);
        let mut slots = StartSlots::default();
        for (n, kind) in [
            ("a", SlotKind::Replacement),
            ("b", SlotKind::Replacement),
            ("c", SlotKind::Start),
            ("d", SlotKind::Start),
            ("e", SlotKind::Start),
        ] {
            slots.ask(&name(n), kind, Urgency::New);
        }
        assert_eq!(slots.grant(limits), [name("a"), name("c"), name("d")]);
        slots.release(&name("c"));
        assert_eq!(slots.grant(limits), [name("e")]);
        slots.release(&name("a"));
        assert_eq!(slots.grant(limits), [name("b")]);
        slots.release(&name("d"));
        slots.release(&name("d"));
        assert!(slots.grant(limits).is_empty());
        // b is ready beside its old instance: it hinders no start, but no other replacement has room yet.
        slots.started(&name("b"));
        for (n, kind) in [
            ("f", SlotKind::Replacement),
            ("g", SlotKind::Start),
            ("h", SlotKind::Start),
        ] {
            slots.ask(&name(n), kind, Urgency::New);
        }
        assert_eq!(slots.grant(limits), [name("g"), name("h")]);
        slots.release(&name("b"));
        slots.release(&name("g"));
        assert_eq!(slots.grant(limits), [name("f")]);
        // f's new broker has crashed: f asks again and keeps its room meanwhile.
        slots.started(&name("f"));
        slots.ask(&name("i"), SlotKind::Replacement, Urgency::New);
        slots.ask(&name("f"), SlotKind::Replacement, Urgency::New);
        assert!(slots.holds(&name("f")));
        assert_eq!(slots.grant(limits), [name("f")]);
        slots.release(&name("f"));
        assert_eq!(slots.grant(limits), [name("i")]);
    }

    #[test]
    fn what_is_admitted_into_room_that_replacements_were_given_waits_for_them() {
        let limits = |replacements| limits(4, replacements);
        let mut slots = StartSlots::default();
        for n in ["a", "b"] {
            slots.ask(&name(n), SlotKind::Replacement, Urgency::New);
        }
        assert_eq!(slots.grant(limits(2)), [name("a"), name("b")]);
        slots.ask(&name("new"), SlotKind::First, Urgency::New);
        slots.ask(&name("crashed"), SlotKind::Start, Urgency::New);
        assert_eq!(slots.grant(limits(1)), [name("crashed")]);
        slots.started(&name("a"));
        assert!(slots.grant(limits(1)).is_empty());
        slots.release(&name("a"));
        assert_eq!(slots.grant(limits(1)), [name("new")]);
    }

    #[test]
    fn a_tenant_that_is_down_comes_first_and_one_that_failed_before_comes_last() {
        let limits = limits(1, 9);
        let mut slots = StartSlots::default();
        for (n, kind, urgency) in [
            ("a", SlotKind::Replacement, Urgency::Served),
            ("b", SlotKind::First, Urgency::New),
            ("g", SlotKind::Start, Urgency::Failed),
            ("c", SlotKind::Replacement, Urgency::Served),
            ("d", SlotKind::Start, Urgency::New),
            ("e", SlotKind::Start, Urgency::Down),
            ("f", SlotKind::Start, Urgency::Down),
            // c queued for a replacement, and then its instance was killed.
            ("c", SlotKind::Start, Urgency::Down),
        ] {
            slots.ask(&name(n), kind, urgency);
        }
        for n in ["e", "f", "c", "b", "d", "a", "g"] {
            assert_eq!(slots.grant(limits), [name(n)]);
            slots.release(&name(n));
        }
    }

    #[test]
    fn starts_that_came_to_nothing_leave_one_slot_to_others() {
        let limits = limits(3, 1);
        let mut slots = StartSlots::default();
        for n in ["a", "b", "c", "d"] {
            slots.ask(&name(n), SlotKind::Start, Urgency::Failed);
        }
        assert_eq!(slots.grant(limits), [name("a"), name("b")]);
        slots.ask(&name("e"), SlotKind::Replacement, Urgency::Served);
        assert_eq!(slots.grant(limits), [name("e")]);
        slots.release(&name("a"));
        assert_eq!(slots.grant(limits), [name("c")]);
    }
}
