//! Reconciles the tenants with the facts: judges tenants, tells lifecycles, grants slots, forgets removed tenants.

use super::admission::{Admission, admission, names, newly_held, tenant_claim};
use super::start_slots::{InheritedStarts, StartLimits};
use super::tenant_entry::{LastFacts, TenantEntry};
use super::{Core, Effect, TenantSettings, slot_key};
use crate::budget::{AdmittedTenant, TenantClaim, Verdict, decide};
use crate::instance::ServerOutage;
use crate::lifecycle::{Event, HangVerdict, ProbeHealth, Spec, Time, Want};
use crate::servers::{Endpoint, ServersView, Wanted};
use brokkr_tenant::TenantName;
use std::collections::{BTreeMap, BTreeSet};

/// Descriptors of one tenant while two instances overlap.
const TENANT_DESCRIPTORS: usize = 12;
/// Descriptors of everything else: the log, the control socket and its clients, the probers, inotify.
const OWN_DESCRIPTORS: usize = 128;

impl<C: TenantSettings> Core<C> {
    /// Judges the tenants if necessary, and gives every lifecycle its changes.
    pub(crate) fn reconcile(&mut self, now: Time) -> Vec<Effect<C>> {
        let mut effects = Vec::new();
        let touched = std::mem::take(&mut self.touched);
        if !self.stopping && self.listed {
            self.unjudged |= self.review(&touched);
            if std::mem::take(&mut self.unjudged) {
                self.judge_all(now, &mut effects);
            } else {
                self.tidy(&touched, &mut effects);
            }
        }
        self.judge_hangs(now, &mut effects);
        self.grant_slots(now, &mut effects);
        self.forget_the_gone(&mut effects);
        effects
    }

    /// Returns true when another [`Core::reconcile`] may change something: a tenant that has gone leaves room for a
    /// refused tenant.
    pub(crate) fn is_unsettled(&self) -> bool {
        self.unjudged || !self.touched.is_empty()
    }

    /// Makes the claims of these tenants anew. Returns true when one may change a decision, so that a judgement is
    /// necessary.
    fn review(&mut self, touched: &BTreeSet<TenantName>) -> bool {
        // A leftover refuses a tenant without an instance, and no claim says whether there is one.
        let mut changes = !self.leftovers.is_empty() && !touched.is_empty();
        let admitted = &self.remembered.admitted;
        for name in touched {
            let Some(entry) = self.entries.get_mut(name) else {
                continue;
            };
            let admission = admitted.iter().find(|a| a.tenant == *name);
            let claim = tenant_claim(name, entry, admission.is_some(), &self.view);
            let seated = admission.filter(|_| !self.decided.conflicts.contains_key(name));
            let same = entry.claim.as_ref().is_some_and(|before| {
                *before == claim
                    || seated.is_some_and(|a| newly_held(before, a) == newly_held(&claim, a))
            });
            changes |= !same;
            entry.claim = Some(claim);
        }
        changes
    }

    /// Forgets what only ended instances of these tenants needed, and tells new instances about their servers.
    fn tidy(&mut self, touched: &BTreeSet<TenantName>, effects: &mut Vec<Effect<C>>) {
        let mut forgot = false;
        for name in touched {
            if let Some(entry) = self.entries.get_mut(name) {
                let known = entry.revisions.len();
                entry.forget_old_revisions();
                forgot |= entry.revisions.len() < known;
                effects.extend(tell_instances(name, entry, &self.view));
            }
        }
        if forgot {
            effects.push(Effect::Probe(self.urls()));
        }
    }

    /// Decides about all tenants, and gives every lifecycle its changes.
    fn judge_all(&mut self, now: Time, effects: &mut Vec<Effect<C>>) {
        #[cfg(test)]
        {
            self.judgements += 1;
        }
        let view = self.view.clone();
        let before = view.by_present_names(&self.remembered.admitted);
        let listed = names(&before);
        let mut room = self.room_for_newcomers();
        let ran = self.running();
        self.decide_all(&before, &listed, room, effects);
        let mut refused = false;
        for name in self.names_of(|_| true) {
            let Some(entry) = self.entries.get(&name) else {
                continue;
            };
            let admission = admission(&name, entry, &listed, &self.decided, &view);
            let left = self.leftovers.get(&name).cloned();
            let admission = beside_leftover(entry, admission, left.as_deref());
            let admission = without_uid(entry, admission);
            let (admission, out) = self.within_descriptors(&name, admission, &mut room);
            refused |= out;
            let Some(entry) = self.entries.get_mut(&name) else {
                continue;
            };
            // Its claim is withdrawn in the next judgement, so that it blocks no other tenant.
            self.unjudged |= out && !entry.out_of_descriptors;
            entry.out_of_descriptors = out;
            let (want, pending) = want(entry, admission);
            let (server, overlap) = ground(entry, &view, &self.decided.verdict);
            let news = entry.news(LastFacts {
                want,
                pending,
                server: left.map_or(server, Err),
                overlap,
            });
            entry.forget_old_revisions();
            effects.extend(tell_instances(&name, entry, &view));
            for event in news {
                self.feed(now, &name, event, effects);
            }
        }
        // Tenants that do not run any more have left room for others.
        self.unjudged |= refused && self.running() < ran;
        effects.push(Effect::Probe(self.urls()));
    }

    /// Makes every claim anew, and decides about all claims together. `before` is the list of admitted tenants, `listed`
    /// their names, and `room` the number of further tenants for which there are descriptors.
    fn decide_all(
        &mut self,
        before: &[AdmittedTenant],
        listed: &BTreeSet<&TenantName>,
        room: usize,
        effects: &mut Vec<Effect<C>>,
    ) {
        // Where there is room again, as many tenants as it is for make their claims.
        let entries = self.entries.values_mut();
        let without = entries.filter(|entry| entry.out_of_descriptors);
        for entry in without.take(room) {
            entry.out_of_descriptors = false;
        }
        let claims = self.entries.iter_mut().map(|(name, entry)| {
            let claim = tenant_claim(name, entry, listed.contains(name), &self.view);
            entry.claim = Some(claim.clone());
            claim
        });
        let claims: Vec<TenantClaim> = claims.collect();
        let facts = self.view.facts();
        self.decided = decide(before, &claims, &facts, self.settings.headroom);
        let admitted = &self.decided.verdict.admitted;
        if self.remembered.admitted != *admitted {
            self.remembered.admitted.clone_from(admitted);
            // The next judgement begins with this list, and may decide otherwise.
            self.unjudged = true;
            effects.push(Effect::StoreAdmitted);
        }
        if !self.remembered.unsure {
            effects.push(Effect::StoreStopped);
        }
    }

    /// Refuses a tenant for which there are no descriptors, and returns true then. Takes a newcomer's from `room`.
    fn within_descriptors(
        &self,
        name: &TenantName,
        admission: Admission<C>,
        room: &mut usize,
    ) -> (Admission<C>, bool) {
        let Some(entry) = self.entries.get(name) else {
            return (admission, false);
        };
        let mut out = entry.out_of_descriptors;
        if matches!(admission, Admission::Run(..)) && entry.meant().is_none() {
            match room.checked_sub(1) {
                Some(left) => *room = left,
                None => out = true,
            }
        }
        // A tenant that is stopped, gone or without a valid file is so for its own reason.
        let asks = matches!(admission, Admission::Run(..) | Admission::Refused(_));
        match out && asks && entry.asked().is_some() {
            true => (Admission::Refused(self.out_of_descriptors(name)), true),
            false => (admission, false),
        }
    }

    /// Returns the number of tenants that should run.
    fn running(&self) -> usize {
        let running = self.entries.values().filter(|e| e.meant().is_some());
        running.count()
    }

    /// Returns the number of further tenants for which there are descriptors, an overlap of each included.
    fn room_for_newcomers(&self) -> usize {
        let limit = usize::try_from(self.settings.open_files).unwrap_or(usize::MAX);
        let most = limit.saturating_sub(OWN_DESCRIPTORS) / TENANT_DESCRIPTORS;
        most.saturating_sub(self.running())
    }

    fn out_of_descriptors(&self, name: &TenantName) -> String {
        let needs = OWN_DESCRIPTORS + TENANT_DESCRIPTORS * self.entries.len();
        format!(
            "tenant {name}: out of descriptors: {} may be open, {needs} would do for every tenant (LimitNOFILE= in the unit, or `ulimit -n`)",
            self.settings.open_files
        )
    }

    /// Returns the URLs that the prober is to log in with: for the files, and for instances.
    fn urls(&self) -> Wanted {
        let mut urls = Wanted::new();
        for entry in self.entries.values() {
            for config in entry.asked().into_iter().chain(entry.revisions.values()) {
                if !urls.contains_key(config.probe_url()) {
                    urls.insert(config.probe_url().clone(), BTreeSet::new());
                }
                if config.has_own_role()
                    && let Some(schemas) = urls.get_mut(config.probe_url())
                {
                    schemas.insert(config.schema().clone());
                }
            }
        }
        urls
    }

    fn judge_hangs(&mut self, now: Time, effects: &mut Vec<Effect<C>>) {
        let before = self.hangs.stalled();
        let pulses = self.entries.iter().map(|(n, e)| (n, e.life.pulse()));
        // Spares the names: without a hung broker and a stall there is nothing to judge.
        let hung = |pulse| matches!(pulse, ProbeHealth::Hung | ProbeHealth::Mute);
        if before.is_none() && !pulses.clone().any(|(_, pulse)| hung(pulse)) {
            return;
        }
        let judged = self
            .hangs
            .judge(now, pulses.map(|(n, pulse)| (n.clone(), pulse)));
        self.stale.general |= self.hangs.stalled() != before;
        match judged {
            HangVerdict::Nothing | HangVerdict::HostStalled => {}
            HangVerdict::StallEnded => self.feed_all(now, &Event::StallEnded, effects),
            HangVerdict::Replace(tenant) => {
                let current = self.entries.get(&tenant).and_then(|e| e.life.current());
                effects.extend(current.map(|current| Effect::DescribeHung {
                    tenant: tenant.clone(),
                    id: current.id,
                    pid: current.pid,
                    missed: current.missed,
                }));
            }
        }
    }

    /// Grants start slots on each server until no slot is free or no tenant in the queue may take one.
    fn grant_slots(&mut self, now: Time, effects: &mut Vec<Effect<C>>) {
        if self.slots.values().all(|slots| slots.queue_is_empty()) {
            return;
        }
        let keys: Vec<String> = self.slots.keys().cloned().collect();
        let mut inherited: BTreeMap<String, InheritedStarts> = BTreeMap::new();
        for (name, entry) in &self.entries {
            let has_slot = || self.slots.values().any(|slots| slots.holds(name));
            if (entry.life.overlaps() || entry.life.starts()) && !has_slot() {
                let key = slot_key(entry, &self.view);
                inherited.entry(key).or_default().count(&entry.life);
            }
        }
        for key in keys {
            let mut servers = self.decided.verdict.servers.iter();
            let limits = StartLimits {
                starts: self.settings.parallelism,
                replacements: servers
                    .find(|(id, _)| id.as_str() == key)
                    .map_or(1, |(_, account)| account.replacements_at_once as usize),
                inherited: inherited.get(&key).copied().unwrap_or_default(),
            };
            // A tenant that does not use its slot returns it at once; the bound ends an endless exchange.
            for _ in 0..self.entries.len().max(1) {
                let Some(slots) = self.slots.get_mut(&key) else {
                    break;
                };
                let granted = slots.grant(limits);
                if granted.is_empty() {
                    break;
                }
                for name in granted {
                    self.feed(now, &name, Event::SlotGranted, effects);
                }
            }
        }
    }

    fn forget_the_gone(&mut self, effects: &mut Vec<Effect<C>>) {
        for name in self.names_of(|e| e.forgotten && e.file.is_none()) {
            if let Some(entry) = self.entries.remove(&name) {
                let next = entry.life.next_id().0;
                self.remembered.first_free.insert(name.clone(), next);
            }
            for slots in self.slots.values_mut() {
                slots.release(&name);
            }
            effects.push(Effect::Forget(name));
            self.changed();
        }
    }
}

/// Refuses a tenant beside a process that could not be ended. An adopted instance goes on regardless.
fn beside_leftover<C>(
    entry: &TenantEntry<C>,
    admission: Admission<C>,
    left: Option<&str>,
) -> Admission<C> {
    match (left, admission) {
        (Some(left), Admission::Run(config, pending)) => {
            if entry.life.instances().next().is_some() {
                Admission::Run(config, pending.or_else(|| Some(left.to_owned())))
            } else {
                Admission::Refused(left.to_owned())
            }
        }
        (_, admission) => admission,
    }
}

/// Refuses a tenant for which there is no user id. An instance that runs goes on regardless.
fn without_uid<C: TenantSettings>(entry: &TenantEntry<C>, admission: Admission<C>) -> Admission<C> {
    match (&entry.no_uid, admission) {
        (Some(reason), Admission::Run(..) | Admission::Refused(_)) if entry.lacks_uid() => {
            Admission::Refused(reason.clone())
        }
        (Some(reason), Admission::Run(config, pending)) => {
            Admission::Run(config, pending.or_else(|| Some(reason.clone())))
        }
        (_, admission) => admission,
    }
}

/// Returns the lifecycle's words for an admission, and the pending reason.
fn want<C: TenantSettings>(
    entry: &mut TenantEntry<C>,
    admission: Admission<C>,
) -> (Want, Option<String>) {
    match admission {
        Admission::Run(config, pending) => {
            let revision = entry.accept(&config);
            let pool = config.pool();
            (Want::Run(Spec { revision, pool }), pending)
        }
        Admission::Refused(reason) => (Want::Refused(reason), None),
        Admission::Stopped(reason) => (Want::Stopped(reason), None),
        Admission::Gone => (Want::Gone, None),
    }
}

/// Returns the reachability of the tenant's server, and true when the server has room for an overlap.
fn ground<C: TenantSettings>(
    entry: &TenantEntry<C>,
    view: &ServersView,
    verdict: &Verdict,
) -> (Result<(), String>, bool) {
    let Some((_, config)) = &entry.accepted else {
        return (Err("not judged yet".into()), true);
    };
    let endpoint = config.endpoint(view);
    let server = config.server_problem(view).map_or(Ok(()), Err);
    let account = endpoint
        .place()
        .and_then(|place| verdict.servers.get(&place.server));
    (server, account.is_none_or(|account| account.overlap))
}

/// Returns the effects that tell each instance what has changed about the server it runs on and about its TLS files.
fn tell_instances<C: TenantSettings>(
    name: &TenantName,
    entry: &mut TenantEntry<C>,
    view: &ServersView,
) -> Vec<Effect<C>> {
    let mut effects = Vec::new();
    let life = &entry.life;
    entry
        .told_instances
        .retain(|id, _| life.instances().any(|i| i.id == *id));
    entry
        .told_tls
        .retain(|id, _| life.instances().any(|i| i.id == *id));
    for instance in life.instances() {
        let config = entry.revisions.get(&instance.revision);
        if let Some(pair) = config.and_then(|c| c.tls())
            && entry.told_tls.get(&instance.id) != Some(pair)
        {
            entry.told_tls.insert(instance.id, pair.clone());
            effects.push(Effect::SetTls {
                tenant: name.clone(),
                id: instance.id,
                pair: pair.clone(),
            });
        }
        let Some(config) = config else { continue };
        let endpoint = config.endpoint(view);
        if *endpoint == Endpoint::Unknown {
            continue;
        }
        let server = match config.server_problem(view) {
            None => Ok(()),
            Some(reason) => Err(ServerOutage {
                reason,
                read_only: endpoint.takes_no_writes(),
            }),
        };
        if entry.told_instances.get(&instance.id) != Some(&server) {
            entry.told_instances.insert(instance.id, server.clone());
            effects.push(Effect::SetServer {
                tenant: name.clone(),
                id: instance.id,
                server,
            });
        }
    }
    effects
}
