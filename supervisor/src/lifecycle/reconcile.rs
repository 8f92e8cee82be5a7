//! Reconciles the lifecycle with what is wanted: compares the two after every event and acts on the difference.

use super::*;

impl Lifecycle {
    /// Emits the actions that bring the lifecycle to what is wanted.
    pub(super) fn settle(&mut self, now: Time, actions: &mut Vec<Action>) {
        self.enforce_deadlines(now, actions);
        self.count_leftovers(now, actions);
        if !self.judged {
            return;
        }
        match self.want.clone() {
            Want::Run(spec) => self.settle_running(now, spec, actions),
            Want::Refused(_) | Want::Stopped(_) | Want::Gone => self.settle_ended(now, actions),
        }
        if self.slot == SlotState::Overlap {
            self.release_slot(actions);
        }
        self.settle_fallback(now, actions);
    }

    fn settle_ended(&mut self, now: Time, actions: &mut Vec<Action>) {
        self.release_slot(actions);
        if self.bind != Bind::No {
            self.bind = Bind::No;
            self.old_address = false;
            actions.push(Action::Unlisten(None));
        }
        self.end_next(now, actions);
        if let Some(current) = self.occupancy.current_mut() {
            let grace = current.grace(self.policy.grace);
            current.terminate(now + grace, actions);
        }
        self.occupancy = match std::mem::take(&mut self.occupancy) {
            Occupancy::One(old) => Occupancy::ending(old, None),
            Occupancy::Replacing { old, new } => Occupancy::ending(old, Some(new)),
            same => same,
        };
        if self.want == Want::Gone && self.instances().next().is_none() {
            actions.push(Action::Forget);
        }
    }

    fn settle_running(&mut self, now: Time, spec: Spec, actions: &mut Vec<Action>) {
        self.settle_bind(now, spec, actions);
        let Some(current) = self.current() else {
            if self.hold.as_ref().is_some_and(|h| h.until <= now) {
                self.hold = None;
            }
            if self.hold.is_some() {
                self.release_slot(actions);
            } else {
                self.start_current(now, spec, actions);
            }
            return;
        };
        if current.ends_as_planned() || current.is_unsure() {
            return;
        }
        if let Some(origin) = current.origin() {
            // Do not end an adopted instance only because its server was not asked yet; its deadline bounds the wait.
            let hopeless = self.server.is_err() && origin == StartOrigin::Spawned;
            if hopeless || self.outdated() {
                // A start that is outdated, or cannot become ready: end the instance and start afresh.
                self.end_unready_current(now, actions);
            }
            return;
        }
        let right = !self.outdated();
        let alone = current.keeps_address;
        if let Occupancy::Replacing { new, .. } = &self.occupancy {
            let fits = new.revision == spec.revision && new.generation == self.generation;
            if !new.is_unsure() && (right || !fits || self.server.is_err()) {
                self.end_next(now, actions);
            }
            return;
        }
        if right || self.occupancy.draining().is_some() {
            self.release_slot(actions);
            return;
        }
        if self.replace_hold.as_ref().is_some_and(|h| h.until <= now) {
            self.replace_hold = None;
        }
        let unbound = !alone && !self.bound_for(spec.revision);
        // Leftovers on the server count too: each further replacement would add two connections.
        let waits = unbound || self.server.is_err() || self.lingering.is_some();
        if self.replace_hold.is_some() || waits {
            self.release_slot(actions);
            return;
        }
        if self.may_overlap && !alone {
            self.start(now, spec, SlotKind::Replacement, actions);
        } else if self.holds_slot(self.start_kind(spec), actions)
            && let Occupancy::One(mut old) = std::mem::take(&mut self.occupancy)
        {
            // Keep the slot over stop and start, so that a full server's tenants do not all stop at once.
            old.terminate(now + self.policy.grace, actions);
            self.occupancy = Occupancy::Ending {
                old,
                new: None,
                blocks_start: true,
            };
        }
    }

    /// Starts the current instance of a tenant that has none.
    fn start_current(&mut self, now: Time, spec: Spec, actions: &mut Vec<Action>) {
        match &self.occupancy {
            Occupancy::Ending {
                old,
                blocks_start: true,
                ..
            } => {
                // An unkillable process must not keep a start slot from other tenants.
                if old.unkillable() {
                    self.release_slot(actions);
                }
            }
            // Beside a draining instance a start needs a replacement's slot, or waits if they may not overlap.
            Occupancy::Ending { .. } if self.may_overlap => {
                self.start(now, spec, SlotKind::Replacement, actions);
            }
            Occupancy::Ending { .. } => self.release_slot(actions),
            _ => self.start(now, spec, self.start_kind(spec), actions),
        }
    }

    fn settle_bind(&mut self, now: Time, spec: Spec, actions: &mut Vec<Action>) {
        if self.instances().any(|instance| instance.keeps_address) {
            // The instance holds the address until it has ended.
            return;
        }
        let ask = match &self.bind {
            Bind::No => true,
            Bind::Asked(revision) | Bind::Yes(revision) => *revision != spec.revision,
            Bind::Failed {
                revision, retry_at, ..
            } => *revision != spec.revision || *retry_at <= now,
        };
        if ask {
            self.old_address |= matches!(self.bind, Bind::Yes(_));
            self.bind = Bind::Asked(spec.revision);
            actions.push(Action::Listen(spec.revision));
        }
        // Close the old address when no instance uses it. If no instance runs at all, do not wait for the new address,
        // because its present holder may in turn wait for the old address.
        let given_up = match self.current() {
            Some(current) => self.bound_for(spec.revision) && current.revision == spec.revision,
            None => !matches!(self.bind, Bind::Asked(_)),
        };
        if self.old_address && given_up {
            self.old_address = false;
            actions.push(Action::Unlisten(Some(spec.revision)));
        }
    }

    fn start(&mut self, now: Time, spec: Spec, kind: SlotKind, actions: &mut Vec<Action>) {
        let ready =
            self.occupancy.has_room() && self.server.is_ok() && self.bound_for(spec.revision);
        let Some(connections) = self.may_start_with(spec).filter(|_| ready) else {
            self.release_slot(actions);
            return;
        };
        if !self.holds_slot(kind, actions) {
            return;
        }
        let connections = match kind {
            SlotKind::Replacement => connections.min(REPLACEMENT_CONNECTIONS),
            SlotKind::First | SlotKind::Start => connections,
        };
        let id = InstanceId(self.next_id);
        self.next_id += 1;
        self.begun = Some(spec.revision);
        let deadline = now + self.policy.start_timeout;
        let instance = Instance::new(id, spec, self.generation, connections, now, deadline);
        actions.push(Action::Spawn {
            id,
            revision: spec.revision,
            connections,
        });
        self.occupancy.add(instance);
    }

    fn start_kind(&self, spec: Spec) -> SlotKind {
        if self.begun == Some(spec.revision) {
            SlotKind::Start
        } else {
            SlotKind::First
        }
    }

    /// Returns true when the tenant holds a slot of this kind; asks for the slot otherwise.
    fn holds_slot(&mut self, kind: SlotKind, actions: &mut Vec<Action>) -> bool {
        match self.slot {
            SlotState::Held(held) if held == kind => return true,
            SlotState::Asked(asked) if asked == kind => {}
            SlotState::Held(_) | SlotState::Asked(_) | SlotState::Overlap | SlotState::No => {
                // Room that the tenant takes already is kept while it asks.
                self.release_slot(actions);
                self.slot = SlotState::Asked(kind);
                actions.push(Action::AskSlot(kind));
            }
        }
        false
    }

    fn enforce_deadlines(&mut self, now: Time, actions: &mut Vec<Action>) {
        let mut gave_up_slot = false;
        for instance in self.occupancy.instances_mut() {
            instance.enforce_deadline(now, self.policy.start_timeout, actions);
            gave_up_slot |= instance.give_up_slot(now);
        }
        if gave_up_slot {
            self.release_slot(actions);
        }
    }

    /// Turns the stand-in on when the socket is open and no instance has accepted for two seconds, and off again.
    fn settle_fallback(&mut self, now: Time, actions: &mut Vec<Action>) {
        let open = matches!(self.bind, Bind::Yes(_)) && matches!(self.want, Want::Run(_));
        let served = self.current().is_some_and(Instance::may_serve);
        if !open || served {
            self.unserved_since = None;
            if self.standing_in {
                self.standing_in = false;
                actions.push(Action::StandIn(false));
            }
            return;
        }
        let since = *self.unserved_since.get_or_insert(now);
        if !self.standing_in && now.saturating_sub(since) >= STAND_IN_AFTER {
            self.standing_in = true;
            actions.push(Action::StandIn(true));
        }
    }

    fn end_next(&mut self, now: Time, actions: &mut Vec<Action>) {
        if let Occupancy::Replacing { new, .. } = &mut self.occupancy {
            new.terminate(now + SHORT_GRACE, actions);
            self.release_slot(actions);
        }
    }

    fn end_unready_current(&mut self, now: Time, actions: &mut Vec<Action>) {
        if let Some(current) = self.occupancy.current_mut() {
            current.terminate(now + SHORT_GRACE, actions);
            self.release_slot(actions);
        }
    }

    /// Gives the slot back, or leaves the queue. A tenant above its pool keeps the room of a replacement until it is
    /// within its pool again, because the room is in use until then.
    pub(super) fn release_slot(&mut self, actions: &mut Vec<Action>) {
        let keeps = self.takes_room();
        match self.slot {
            SlotState::No => {}
            SlotState::Overlap if keeps => {}
            SlotState::Held(SlotKind::Replacement) if keeps => {
                self.slot = SlotState::Overlap;
                actions.push(Action::Started);
            }
            SlotState::Overlap | SlotState::Asked(_) | SlotState::Held(_) => {
                self.slot = SlotState::No;
                actions.push(Action::ReleaseSlot);
            }
        }
    }

    /// Returns true when an instance is starting, as far as known, and is entitled to a start slot.
    pub(crate) fn starts(&self) -> bool {
        self.instances().any(Instance::needs_slot)
    }

    fn bound_for(&self, revision: Revision) -> bool {
        self.bind == Bind::Yes(revision)
    }
}
