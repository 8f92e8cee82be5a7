//! Gives the core facts, and carries its effects out on numbers.

use super::*;
use crate::instance::events::EventKind;
use crate::lifecycle::Action;
use crate::simulation::rules::Cause;

impl World {
    /// Reports an event of a tenant.
    pub(crate) fn feed(&mut self, n: usize, event: Event) {
        let name = self.tenants[n].name.clone();
        self.tell(Fact::Report(name, EventKind::Life(event)));
    }

    /// Gives the core a fact, and carries out its effects.
    pub(crate) fn tell(&mut self, fact: Fact<File>) {
        let effects = self.core.on(self.now, fact);
        self.carry_out(effects);
    }

    /// Carries out effects, and those of the events that follow at once. Then checks every tenant that had an event.
    pub(crate) fn carry_out(&mut self, effects: Vec<Effect<File>>) {
        let mut effects = VecDeque::from(effects);
        let mut moved = BTreeMap::new();
        self.observe(&mut moved);
        while let Some(effect) = effects.pop_front() {
            let Some(n) = self.carry_out_one(effect, &mut effects) else {
                continue;
            };
            self.observe(&mut moved);
            let next = effects.front().and_then(|next| match next {
                Effect::Act { tenant, .. } => Some(self.number(tenant)),
                _ => None,
            });
            if next != Some(n) {
                self.check_servers(n);
            }
        }
        for (n, moved) in moved {
            self.set_timer(n);
            self.check(n, moved);
        }
        if self.core.is_unsettled() {
            self.judge_soon();
        }
    }

    /// Records the events that the lifecycles had, and checks their pauses. Notes in `moved` each tenant that had an
    /// event, and true for more than a probe.
    fn observe(&mut self, moved: &mut BTreeMap<usize, bool>) {
        let now = self.now;
        for seen in std::mem::take(&mut self.core.observed) {
            self.events += 1;
            let n = self.number(&seen.tenant);
            let only_probe = matches!(
                seen.event,
                Event::ProbeAnswered { .. } | Event::ProbeMissed { .. } | Event::Tick
            );
            *moved.entry(n).or_default() |= !only_probe || !seen.actions.is_empty();
            self.note(n, format!("{now:?} {:?}", seen.event));
            for action in &seen.actions {
                self.note(n, format!("{now:?}     -> {action:?}"));
            }
            // Only a changed wanted state or an order ends a pause early.
            let ends_pause = matches!(
                seen.event,
                Event::Wanted { .. }
                    | Event::Start
                    | Event::Restart
                    | Event::NewProgram
                    | Event::Reload
            );
            let spawns = |action: &Action| matches!(action, Action::Spawn { .. });
            let too_early = !ends_pause
                && seen.pause.is_some_and(|until| until > now)
                && seen.actions.iter().any(spawns);
            self.rule(
                !too_early,
                n,
                "started before the pause after its failure was over",
            );
            let [before, after] = seen.next_try;
            if after != before {
                self.check_pause(n, Cause::of(&seen.event), after);
            }
        }
    }

    /// Adds a line to a tenant's past.
    fn note(&mut self, n: usize, line: String) {
        (n, &line).hash(&mut self.digest);
        let past = &mut self.tenants[n].past;
        past.push_back(line);
        if past.len() > REMEMBERED {
            past.pop_front();
        }
    }

    /// Carries out one effect, and adds the effects of the event that follows at once, if any. Returns the tenant whose
    /// processes may have changed.
    fn carry_out_one(
        &mut self,
        effect: Effect<File>,
        effects: &mut VecDeque<Effect<File>>,
    ) -> Option<usize> {
        let (tenant, event) = match effect {
            Effect::Act {
                tenant,
                action,
                config,
            } => {
                let event = self.act(self.number(&tenant), action, config);
                (tenant, event)
            }
            Effect::DescribeHung { tenant, id, .. } => {
                let detail = "hung".to_owned();
                (tenant, Some(Event::ReplaceHung { id, detail }))
            }
            Effect::Forget(tenant) => {
                let n = self.number(&tenant);
                self.tenants[n].stands_in = false;
                return None;
            }
            Effect::SetServer { .. }
            | Effect::SetTls { .. }
            | Effect::Warn { .. }
            | Effect::Probe(_)
            | Effect::StoreAdmitted
            | Effect::StoreStopped => return None,
        };
        let n = self.number(&tenant);
        if let Some(event) = event {
            effects.extend(self.core.on(self.now, Fact::Outcome(tenant, event)));
        }
        Some(n)
    }

    fn act(&mut self, n: usize, action: Action, config: Option<Arc<File>>) -> Option<Event> {
        let listen = config.as_ref().map(|file| &file.listen);
        match action {
            Action::Listen(revision) => {
                let listen = listen?;
                let mut others = self.tenants.iter().enumerate().filter(|(m, _)| *m != n);
                let taken = self.now < self.tenants[n].port_taken
                    || others.any(|(_, t)| t.bound.contains(listen));
                if taken {
                    return Some(Event::BindFailed(revision, "in use".into()));
                }
                let bound = &mut self.tenants[n].bound;
                if !bound.contains(listen) {
                    bound.push(listen.clone());
                }
                return Some(Event::Bound(revision));
            }
            Action::Unlisten(_) => {
                let bound = &mut self.tenants[n].bound;
                bound.retain(|bound| Some(bound) == listen);
            }
            Action::Spawn {
                id,
                revision,
                connections,
            } => self.spawn(n, id, revision, config?, connections),
            Action::Terminate(id) => return self.terminate(n, id),
            Action::Abort(id) | Action::Kill(id) => self.kill(n, id),
            Action::SetConnections(id, most) => self.set_connections(n, id, most),
            Action::CountLeftOver { since, of } => {
                let count = self.left_over(n, &of)?;
                return Some(Event::LeftOver { since, count });
            }
            Action::StandIn(on) => self.tenants[n].stands_in = on,
            // The core keeps the slots and the entries.
            Action::AskSlot(_) | Action::Started | Action::ReleaseSlot | Action::Forget => {}
        }
        None
    }
}
