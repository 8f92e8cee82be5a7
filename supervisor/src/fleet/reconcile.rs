//! Reconciles the fleet with the facts: judges tenants, tells lifecycles, grants slots, forgets removed tenants.

use super::Fleet;
use super::admission::{Admission, FleetAdmission, judge};
use super::effects::slot_key;
use super::start_slots::{InheritedStarts, StartLimits};
use super::tenant_entry::{LastFacts, TenantEntry};
use crate::budget::{Verdict, format_admitted};
use crate::config::TenantConfig;
use crate::instance::ServerOutage;
use crate::lifecycle::{Event, HangVerdict, Spec, Want};
use crate::servers::{Endpoint, ServersView};
use brokkr_tenant::TenantName;
use std::collections::{BTreeMap, BTreeSet};

/// Most judgements in one turn; a guard against an endless loop, never reached in normal operation.
const MOST_ROUNDS: usize = 8;

/// Descriptors of one tenant while two instances overlap.
const TENANT_DESCRIPTORS: usize = 12;
/// Descriptors of everything else: the log, the control socket and its clients, the probers, inotify.
const OWN_DESCRIPTORS: usize = 128;

impl Fleet {
    /// Judges all tenants and gives every lifecycle its changes, until nothing changes any more.
    pub(super) fn settle(&mut self) {
        loop {
            self.settle_once();
            if self.stale {
                self.publish();
            }
            // Answering may tell the next tenant of a rolling restart. The loop ends because each tenant is told once.
            if !self.answer_orders() {
                break;
            }
        }
    }

    fn settle_once(&mut self) {
        // A round may cause the next: a tenant that has gone leaves room for a refused tenant.
        for _ in 0..MOST_ROUNDS {
            if std::mem::take(&mut self.unjudged) && !self.stopping && self.desired.borrow().listed
            {
                self.judge_all();
            }
            self.judge_hangs();
            self.grant_slots();
            self.forget_the_gone();
            if !self.unjudged {
                break;
            }
        }
    }

    fn judge_all(&mut self) {
        let view = self.view.borrow().clone();
        self.want_urls();
        let FleetAdmission {
            admissions,
            verdict,
        } = judge(
            &self.entries,
            &view.by_present_names(&self.admitted),
            &view,
            self.config.budget.headroom,
        );
        self.verdict = verdict;
        if self.admitted != self.verdict.admitted {
            self.admitted.clone_from(&self.verdict.admitted);
            self.kept_admitted.set(format_admitted(&self.admitted));
        }
        if !self.unsure {
            self.kept_stopped.set(super::names(&self.stopped));
        }
        let now = self.now();
        self.left.retain(|left| !left.gone());
        let mut room = self.room_for_newcomers();
        for (name, mut admission) in admissions {
            let left = self.left.iter().find(|left| left.tenant == name);
            let left = left.map(ToString::to_string);
            let Some(entry) = self.entries.get_mut(&name) else {
                continue;
            };
            // Nothing may start beside a process that could not be ended; an adopted instance goes on regardless.
            let beside = entry.life.instances().next().is_some();
            if let (Some(left), Admission::Run(_, pending)) = (&left, &mut admission) {
                if beside {
                    pending.get_or_insert_with(|| left.clone());
                } else {
                    admission = Admission::Refused(left.clone());
                }
            }
            if matches!(admission, Admission::Run(..)) && entry.meant().is_none() {
                match room.checked_sub(1) {
                    Some(left) => room = left,
                    None => admission = Admission::Refused(self.out_of_descriptors(&name)),
                }
            }
            let Some(entry) = self.entries.get_mut(&name) else {
                continue;
            };
            let (want, pending) = match admission {
                Admission::Run(config, pending) => {
                    let revision = entry.accept(&config);
                    let pool = config.broker().database.pool_size.get();
                    (Want::Run(Spec { revision, pool }), pending)
                }
                Admission::Refused(reason) => (Want::Refused(reason), None),
                Admission::Stopped(reason) => (Want::Stopped(reason), None),
                Admission::Gone => (Want::Gone, None),
            };
            let (server, overlap) = ground(entry, &view, &self.verdict);
            let server = left.map_or(server, Err);
            let news = entry.news(LastFacts {
                want,
                pending,
                server,
                overlap,
            });
            entry.forget_old_revisions();
            // Tell each instance about the server it runs on, which the tenant's file may no longer name.
            for instance in entry.life.instances() {
                let config = entry.revisions.get(&instance.revision);
                let endpoint = config.map(|c| view.endpoint(&c.broker().database.url));
                if let Some(endpoint) = endpoint.filter(|e| **e != Endpoint::Unknown) {
                    let verdict = match endpoint.problem() {
                        None => Ok(()),
                        Some(reason) => Err(ServerOutage {
                            reason: reason.to_owned(),
                            read_only: endpoint.takes_no_writes(),
                        }),
                    };
                    self.manager.set_server(&name, instance.id, &verdict);
                }
            }
            for event in news {
                self.feed(now, &name, event);
            }
        }
    }

    /// Returns the number of further tenants for which there are descriptors, an overlap of each included.
    fn room_for_newcomers(&self) -> usize {
        let limit = usize::try_from(self.open_files).unwrap_or(usize::MAX);
        let most = limit.saturating_sub(OWN_DESCRIPTORS) / TENANT_DESCRIPTORS;
        let running = self
            .entries
            .values()
            .filter(|e| e.meant().is_some())
            .count();
        most.saturating_sub(running)
    }

    fn out_of_descriptors(&self, name: &TenantName) -> String {
        let needs = OWN_DESCRIPTORS + TENANT_DESCRIPTORS * self.entries.len();
        format!(
            "tenant {name}: out of descriptors: {} may be open, {needs} would do for every tenant (LimitNOFILE= in the unit, or `ulimit -n`)",
            self.open_files
        )
    }

    /// Tells the probers which URLs to probe: those in the files, and those that instances still use.
    fn want_urls(&self) {
        let mut urls = BTreeSet::new();
        for entry in self.entries.values() {
            let configs = entry.asked().into_iter().chain(entry.revisions.values());
            urls.extend(configs.map(|config| config.broker().database.url.clone()));
        }
        self.servers.want(urls);
    }

    fn judge_hangs(&mut self) {
        let pulses: Vec<_> = self
            .entries
            .iter()
            .map(|(n, e)| (n.clone(), e.life.pulse()))
            .collect();
        let now = self.now();
        let before = self.hangs.stalled();
        let judged = self.hangs.judge(now, pulses.into_iter());
        let stalled = self.hangs.stalled();
        self.stale |= stalled != before;
        if let (Some(failing), None) = (stalled, before) {
            tracing::error!(
                failing,
                "so many tenants fail their probes together that the host is stalled: none is replaced"
            );
        }
        match judged {
            HangVerdict::Nothing | HangVerdict::HostStalled => {}
            HangVerdict::StallEnded => {
                tracing::warn!("the host is no longer stalled");
                for name in self.all_names() {
                    self.feed(now, &name, Event::StallEnded);
                }
            }
            HangVerdict::Replace(name) => {
                let Some(current) = self.entries.get(&name).and_then(|e| e.life.current()) else {
                    return;
                };
                let (id, missed) = (current.id, current.missed);
                let threads = current
                    .pid
                    .map(crate::instance::threads::describe)
                    .unwrap_or_default();
                let detail =
                    format!("hung: {missed} probes of /healthz unanswered; threads: {threads}");
                if let Some(failing) = stalled {
                    tracing::error!(tenant = %name, failing, "replaced on trial: the host has been stalled for long");
                }
                tracing::error!(tenant = %name, pid = current.pid, %detail, "hung, is killed and started again");
                self.feed(now, &name, Event::ReplaceHung { id, detail });
            }
        }
    }

    /// Grants start slots on each server until no slot is free or no tenant in the queue may take one.
    fn grant_slots(&mut self) {
        let now = self.now();
        let keys: Vec<String> = self.slots.keys().cloned().collect();
        let mut inherited: BTreeMap<String, InheritedStarts> = BTreeMap::new();
        for (name, entry) in &self.entries {
            let has_slot = || self.slots.values().any(|slots| slots.holds(name));
            if (entry.life.overlaps() || entry.life.starts()) && !has_slot() {
                let key = slot_key(entry, &self.view.borrow());
                inherited.entry(key).or_default().count(&entry.life);
            }
        }
        for key in keys {
            let replacements = self
                .verdict
                .servers
                .iter()
                .find(|(id, _)| id.as_str() == key)
                .map_or(1, |(_, account)| account.replacements_at_once as usize);
            let limits = StartLimits {
                starts: self.config.start.parallelism,
                replacements,
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
                    self.feed(now, &name, Event::SlotGranted);
                }
            }
        }
    }

    fn forget_the_gone(&mut self) {
        let gone: Vec<TenantName> = self
            .entries
            .iter()
            .filter(|(_, e)| e.forgotten && e.file.is_none())
            .map(|(name, _)| name.clone())
            .collect();
        for name in gone {
            tracing::info!(tenant = %name, "removed");
            if let Some(entry) = self.entries.remove(&name) {
                self.first_free.insert(name.clone(), entry.life.next_id().0);
            }
            self.manager.forget(&name);
            self.keep_soon();
            self.manager.hub().forget(&name);
            for slots in self.slots.values_mut() {
                slots.release(&name);
            }
            self.changed();
        }
    }
}

/// Returns the reachability of the tenant's server, and true when the server has room for an overlap.
fn ground(
    entry: &TenantEntry,
    view: &ServersView,
    verdict: &Verdict,
) -> (Result<(), String>, bool) {
    let Some((_, config)) = &entry.accepted else {
        return (Err("not judged yet".into()), true);
    };
    let endpoint = view.endpoint(&config.broker().database.url);
    let server = reachable(config, view);
    let account = endpoint
        .place()
        .and_then(|place| verdict.servers.get(&place.server));
    (server, account.is_none_or(|account| account.overlap))
}

/// Returns the reason why the configuration's server is not reachable now, if so.
fn reachable(config: &TenantConfig, view: &ServersView) -> Result<(), String> {
    match view.endpoint(&config.broker().database.url).problem() {
        Some(problem) => Err(problem.to_owned()),
        None => Ok(()),
    }
}
