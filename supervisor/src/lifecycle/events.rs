//! Records each event in the lifecycle's state.

use super::*;

impl Lifecycle {
    pub(super) fn record(&mut self, now: Time, event: Event, actions: &mut Vec<Action>) {
        match event {
            Event::Wanted { want, pending } => self.wanted(want, pending),
            Event::Server(state) => self.server = state,
            Event::MayOverlap(may) => self.may_overlap = may,
            Event::SlotGranted => {
                if let SlotState::Asked(kind) = self.slot {
                    self.slot = SlotState::Held(kind);
                }
            }
            Event::Bound(revision) => self.bound(revision),
            Event::BindFailed(revision, reason) => self.bind_failed(now, revision, reason),

            Event::Adopted(inheritance) => self.adopt(now, inheritance),
            Event::Learned {
                id,
                stage,
                connections,
            } => self.learn(now, id, stage, connections, actions),
            Event::Unanswered(id) => self.update(id, |i| i.note_origin(StartOrigin::Silent)),

            Event::Spawned { id, pid } => self.update(id, |i| i.pid = Some(pid)),
            Event::Ready(id) => self.ready(now, id, actions),
            Event::Extend(id, more) => {
                self.update(id, |i| i.extend(now + more.min(LONGEST_EXTENSION)));
            }
            Event::Says(id, text) => self.update(id, |i| i.note_status(text)),
            Event::SpawnFailed { id, reason } => self.gone(now, id, reason, false, actions),
            Event::Exited {
                id,
                reason,
                configuration,
            } => self.gone(now, id, reason, configuration, actions),

            Event::ProbeAnswered { id, not_ready } => self.update(id, |i| i.answered(not_ready)),
            Event::ProbeMissed { id, on_time } => {
                self.update(id, |i| i.missed += u32::from(on_time));
            }
            Event::OutOfReach(id) => self.update(id, |i| i.deaf = true),
            Event::StallEnded => {
                for instance in self.occupancy.instances_mut() {
                    instance.missed = 0;
                }
            }
            Event::ReplaceHung { id, detail } => {
                let core_within = self.policy.core.then_some(CORE_WITHIN);
                if let Some(instance) = self.instance_mut(id).filter(|i| i.must_answer()) {
                    instance.end_hung(now, core_within, detail, actions);
                }
            }

            Event::Connections(id, held) => {
                // A broker cannot hold more than its pool, so a larger report is wrong.
                self.update(id, |i| i.held = held.min(i.pool));
                self.share_connections(actions);
            }
            Event::LeftOver { since, count } => {
                self.counted(now, since, count);
                self.share_connections(actions);
            }

            Event::Start => self.begin_anew(now),
            Event::Restart => {
                self.begin_anew(now);
                self.generation += 1;
            }
            Event::NewProgram => {
                self.begin_anew(now);
                self.generation += 1;
                self.program = self.generation;
            }
            Event::Reload => self.retry_configuration(),
            Event::Tick => {}
        }
    }

    /// Changes the instance with this number, if it exists.
    fn update(&mut self, id: InstanceId, change: impl FnOnce(&mut Instance)) {
        if let Some(instance) = self.instance_mut(id) {
            change(instance);
        }
    }

    fn wanted(&mut self, want: Want, pending: Option<String>) {
        if want != self.want {
            // A changed wish is tried at once, regardless of earlier failures.
            self.forget_failures();
        }
        if !matches!(want, Want::Run(_)) {
            self.record = Urgency::New;
            self.begun = None;
        }
        self.want = want;
        self.judged = true;
        self.asked_pending = pending;
    }

    fn bound(&mut self, revision: Revision) {
        if self.bind == Bind::Asked(revision) {
            self.bind = Bind::Yes(revision);
            self.bind_backoff.reset();
        }
    }

    fn bind_failed(&mut self, now: Time, revision: Revision, reason: String) {
        if self.bind == Bind::Asked(revision) {
            self.bind = Bind::Failed {
                revision,
                reason,
                retry_at: now + self.bind_backoff.delay_at_least_once(),
            };
        }
    }

    /// Prepares an immediate try, regardless of earlier failures.
    fn begin_anew(&mut self, now: Time) {
        self.forget_failures();
        if let Bind::Failed { retry_at, .. } = &mut self.bind {
            *retry_at = now;
        }
    }

    fn forget_failures(&mut self) {
        self.hold = None;
        self.replace_hold = None;
        self.backoff.reset();
        self.bind_backoff.reset();
        self.replace_backoff.reset();
        if self.record == Urgency::Failed {
            self.record = Urgency::New;
        }
    }

    /// Ends the pauses after configuration errors.
    fn retry_configuration(&mut self) {
        let _ = self.hold.take_if(|hold| hold.configuration);
        if self.replace_hold.take_if(|h| h.configuration).is_some() {
            // The failed replacement gave up its generation, so the replacement is requested again.
            self.generation += u64::from(!self.outdated());
        }
    }

    pub(super) fn ready(&mut self, now: Time, id: InstanceId, actions: &mut Vec<Action>) {
        let Some(instance) = self.instance_mut(id).filter(|i| i.start().is_some()) else {
            return;
        };
        instance.phase = Phase::Ready;
        instance.ready_at = Some(now);
        self.begun = Some(instance.revision);
        self.occupancy = match std::mem::take(&mut self.occupancy) {
            Occupancy::Replacing { mut old, new } if new.id == id => {
                old.terminate(now + self.policy.grace, actions);
                Occupancy::Draining { current: new, old }
            }
            same => same,
        };
        self.last_failure = None;
        self.record = Urgency::Down;
        self.replace_hold = None;
        self.replace_backoff.reset();
        self.count_now(now);
        self.share_connections(actions);
        self.release_slot(actions);
    }

    /// Handles the end of a process, or a failed spawn.
    fn gone(
        &mut self,
        now: Time,
        id: InstanceId,
        reason: String,
        configuration: bool,
        actions: &mut Vec<Action>,
    ) {
        let Some((role, ended)) = self.occupancy.remove(id) else {
            return;
        };
        let reason = ended.failure().map_or(reason, str::to_owned);
        match role {
            InstanceRole::Draining => {
                self.note_leftovers(now, &ended);
                self.share_connections(actions);
            }
            InstanceRole::Replacement => {
                self.note_leftovers(now, &ended);
                self.release_slot(actions);
                if !ended.ends_as_planned() {
                    self.replacement_failed(now, ended.generation, reason, configuration);
                }
            }
            InstanceRole::Current => {
                // Releases the slot: a tenant that lost its instance must queue again as a start.
                if ended.ready_at.is_none() || matches!(self.slot, SlotState::Asked(_)) {
                    self.release_slot(actions);
                }
                self.note_leftovers(now, &ended);
                if !ended.ends_as_planned() {
                    self.current_failed(now, ended.ready_at, reason, configuration);
                }
            }
        }
    }

    fn current_failed(
        &mut self,
        now: Time,
        ready_at: Option<Time>,
        reason: String,
        configuration: bool,
    ) {
        match ready_at {
            // The instance ended because its server went away, which does not count as a failure.
            None if self.server.is_err() => return,
            None => self.record = Urgency::Failed,
            Some(at) if now.saturating_sub(at) >= GOOD_RUN => self.backoff.reset(),
            Some(_) => {}
        }
        // Clears the pause for replacements: the current instance is gone, so its successor must start regardless.
        self.replace_hold = None;
        self.restarts += 1;
        let delay = if configuration {
            CONFIGURATION_RETRY
        } else {
            self.backoff.next_delay()
        };
        self.last_failure = Some(reason.clone());
        self.hold = (!delay.is_zero()).then(|| StartHold {
            until: now + delay,
            reason,
            configuration,
        });
    }

    fn replacement_failed(
        &mut self,
        now: Time,
        generation: u64,
        reason: String,
        configuration: bool,
    ) {
        let Some(current) = self.current() else {
            return;
        };
        if matches!(self.want, Want::Run(spec) if spec.revision == current.revision)
            && generation == self.generation
        {
            // The replacement requested by `restart` failed, so the order fails and the current instance stays.
            self.generation = current.generation.max(self.program);
        }
        if self.server.is_err() {
            return;
        }
        let delay = if configuration {
            CONFIGURATION_RETRY
        } else {
            self.replace_backoff.delay_at_least_once()
        };
        self.replace_hold = Some(StartHold {
            until: now + delay,
            reason,
            configuration,
        });
    }
}
