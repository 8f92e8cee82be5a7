//! The pure part of the fleet: every tenant's state; facts go in, effects come out. No clock, no I/O, no async.
//!
//! [`Core::on`] records a fact and returns the effects of the lifecycles that it concerns. [`Core::reconcile`] then
//! judges the tenants, if a fact may change a decision, tells each lifecycle its changes, finds hung brokers, grants
//! start slots and forgets removed tenants. The fleet task carries the effects out on processes, sockets and files; the
//! simulation carries the same effects out on numbers. The core is generic over the tenant's configuration.

mod admission;
mod adoption;
mod budget_input;
mod facts;
mod reconcile;
mod start_slots;
mod tenant_entry;

pub(crate) use adoption::FoundTenant;
pub(crate) use budget_input::TenantSettings;
pub(crate) use tenant_entry::TenantEntry;

use super::handle::Order;
use crate::budget::{AdmittedTenant, Decided};
use crate::config::FileProblem;
use crate::instance::ServerOutage;
use crate::instance::events::EventKind;
use crate::lifecycle::{
    Action, Event, HangDetector, Instance, InstanceId, Policy, Revision, Time, Want,
};
use crate::servers::{ServersView, Wanted};
use brokkr_tenant::{TenantName, TlsPair};
use start_slots::StartSlots;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

/// A tenant's configuration, or the problem with its file.
pub(crate) type TenantFile<C> = Result<Arc<C>, Arc<FileProblem>>;

/// The operator's settings that decide about tenants.
#[derive(Debug, Clone, Copy)]
pub(crate) struct CoreSettings {
    pub(crate) policy: Policy,
    /// `[start] parallelism`.
    pub(crate) parallelism: usize,
    /// `[budget] headroom`.
    pub(crate) headroom: u32,
    /// The time that the host may stall before an instance is replaced on trial.
    pub(crate) stall_patience: Duration,
    /// The largest number of descriptors that the supervisor may have.
    pub(crate) open_files: u64,
}

/// The state that survives the supervisor on disk.
#[derive(Debug, Default)]
pub(crate) struct Remembered {
    pub(crate) admitted: Vec<AdmittedTenant>,
    pub(crate) stopped: BTreeSet<TenantName>,
    /// True when the list of stopped tenants is lost.
    pub(crate) unsure: bool,
    /// The first free instance number of each tenant.
    pub(crate) first_free: BTreeMap<TenantName, u64>,
}

/// A fact for the core.
pub(crate) enum Fact<C> {
    /// The files of all tenants. Until the folder is `listed` nothing is known, not even that there are no tenants.
    Files {
        tenants: BTreeMap<TenantName, TenantFile<C>>,
        listed: bool,
    },
    /// The latest state of the servers.
    Servers(Arc<ServersView>),
    /// The tenants that must not start beside an instance of an earlier supervisor, with the reason.
    Leftovers(BTreeMap<TenantName, String>),
    /// A report of an instance.
    Report(TenantName, EventKind),
    /// The outcome of an effect.
    Outcome(TenantName, Event),
    /// An operator's order for a tenant.
    Order(TenantName, Order),
    /// An operator's request to try configuration errors again.
    Reload,
    /// The broker's program on disk has changed.
    NewProgram,
    /// The supervisor is stopping: every tenant ends.
    Stopping,
    /// Time has passed.
    Tick,
}

/// An effect to carry out for the core.
#[derive(Debug)]
pub(crate) enum Effect<C> {
    /// Carry out the action of a tenant's lifecycle, with the configuration that it names. An action about start slots
    /// never comes here.
    Act {
        tenant: TenantName,
        action: Action,
        config: Option<Arc<C>>,
    },
    /// Tell an instance about the server it runs on, which the tenant's file may no longer name.
    SetServer {
        tenant: TenantName,
        id: InstanceId,
        server: Result<(), ServerOutage>,
    },
    /// Give an instance the certificate and key for its new handshakes.
    SetTls {
        tenant: TenantName,
        id: InstanceId,
        pair: Arc<TlsPair>,
    },
    /// Describe where the threads of a hung broker are, and answer [`Event::ReplaceHung`].
    DescribeHung {
        tenant: TenantName,
        id: InstanceId,
        pid: Option<i32>,
        missed: u32,
    },
    /// Log a warning about a tenant.
    Warn {
        tenant: TenantName,
        pid: Option<i32>,
        text: String,
    },
    /// Probe these URLs: those in the files, and those that instances still use.
    Probe(Wanted),
    /// Store the list of admitted tenants.
    StoreAdmitted,
    /// Store the list of stopped tenants.
    StoreStopped,
    /// Drop everything of a tenant that has no file and no process.
    Forget(TenantName),
}

/// One event of a lifecycle, for the rules of the simulation.
#[cfg(test)]
#[derive(Debug)]
pub(crate) struct Observed {
    pub(crate) tenant: TenantName,
    pub(crate) event: Event,
    pub(crate) actions: Vec<Action>,
    /// The end of the tenant's pause before the event.
    pub(crate) pause: Option<Time>,
    /// The time of the next try, before and after the event.
    pub(crate) next_try: [Option<Time>; 2],
}

/// The part of `status` that may have changed.
#[derive(Debug, Default)]
pub(crate) struct Stale {
    /// The servers and notices.
    pub(crate) general: bool,
    /// All tenants.
    pub(crate) all: bool,
    /// These tenants.
    pub(crate) tenants: BTreeSet<TenantName>,
}

/// The state of all tenants.
pub(crate) struct Core<C> {
    settings: CoreSettings,
    /// The source of the lifecycles' jitter.
    seeds: fastrand::Rng,
    entries: BTreeMap<TenantName, TenantEntry<C>>,
    remembered: Remembered,
    /// True once the folder of tenant files could be read.
    listed: bool,
    view: Arc<ServersView>,
    leftovers: BTreeMap<TenantName, String>,
    decided: Decided,
    slots: BTreeMap<String, StartSlots>,
    hangs: HangDetector<TenantName>,
    stopping: bool,
    /// True when data for the judgement may have changed.
    unjudged: bool,
    /// Tenants whose lifecycles had an event since the last reconciliation.
    touched: BTreeSet<TenantName>,
    /// The part of `status` that may have changed.
    stale: Stale,
    #[cfg(test)]
    pub(crate) observed: Vec<Observed>,
    /// The number of judgements so far.
    #[cfg(test)]
    pub(crate) judgements: u64,
}

impl<C: TenantSettings> Core<C> {
    /// Makes a core without tenants.
    pub(crate) fn new(
        settings: CoreSettings,
        remembered: Remembered,
        seeds: fastrand::Rng,
    ) -> Self {
        Self {
            settings,
            seeds,
            entries: BTreeMap::new(),
            remembered,
            listed: false,
            view: Arc::default(),
            leftovers: BTreeMap::new(),
            decided: Decided::default(),
            slots: BTreeMap::new(),
            hangs: HangDetector::new(settings.stall_patience),
            stopping: false,
            unjudged: true,
            touched: BTreeSet::new(),
            stale: Stale::default(),
            #[cfg(test)]
            observed: Vec::new(),
            #[cfg(test)]
            judgements: 0,
        }
    }

    /// Records a fact and returns its effects.
    pub(crate) fn on(&mut self, now: Time, fact: Fact<C>) -> Vec<Effect<C>> {
        let mut effects = Vec::new();
        match fact {
            Fact::Files { tenants, listed } => self.take_files(now, tenants, listed, &mut effects),
            Fact::Servers(view) => {
                // A view may differ only in the connections counted, which no decision depends on.
                if !self.view.decides_as(&view) {
                    self.changed();
                }
                self.view = view;
                self.stale.general = true;
            }
            Fact::Leftovers(leftovers) => {
                self.unjudged |= self.leftovers != leftovers;
                self.leftovers = leftovers;
            }
            Fact::Report(tenant, report) => self.take_report(now, &tenant, report, &mut effects),
            Fact::Outcome(tenant, event) => self.feed(now, &tenant, event, &mut effects),
            Fact::Order(tenant, order) => self.take_order(now, &tenant, order, &mut effects),
            Fact::Reload => {
                for entry in self.entries.values_mut() {
                    self.unjudged |= entry.no_uid.take().is_some();
                }
                self.feed_all(now, &Event::Reload, &mut effects);
            }
            Fact::NewProgram => self.feed_all(now, &Event::NewProgram, &mut effects),
            Fact::Stopping => {
                self.stopping = true;
                let event = Event::Wanted {
                    want: Want::Stopped("the supervisor is stopping".into()),
                    pending: None,
                };
                self.feed_all(now, &event, &mut effects);
            }
            Fact::Tick => {
                let due = |entry: &TenantEntry<C>| {
                    let due = entry.life.next_deadline();
                    due.is_some_and(|due| due <= now)
                };
                for name in self.names_of(due) {
                    self.feed(now, &name, Event::Tick, &mut effects);
                }
            }
        }
        effects
    }

    fn changed(&mut self) {
        self.stale.all = true;
        self.unjudged = true;
    }

    fn stale_tenant(&mut self, name: &TenantName) {
        self.stale.tenants.insert(name.clone());
    }

    /// Gives a tenant's lifecycle an event.
    fn feed(&mut self, now: Time, name: &TenantName, event: Event, effects: &mut Vec<Effect<C>>) {
        let Some(entry) = self.entries.get_mut(name) else {
            return;
        };
        self.stale.tenants.insert(name.clone());
        self.touched.insert(name.clone());
        #[cfg(test)]
        let (pause, next_try) = (entry.life.view().next_try, entry.life.next_try());
        #[cfg(test)]
        let copy = event.clone();
        let actions = entry.life.on(now, event);
        #[cfg(test)]
        self.observed.push(Observed {
            tenant: name.clone(),
            event: copy,
            actions: actions.clone(),
            pause,
            next_try: [next_try, entry.life.next_try()],
        });
        for action in actions {
            let revision = match &action {
                Action::Listen(revision) | Action::Spawn { revision, .. } => Some(*revision),
                Action::Unlisten(keep) => *keep,
                Action::StandIn(true) => entry.accepted.as_ref().map(|(revision, _)| *revision),
                Action::AskSlot(kind) => {
                    let slots = self.slots.entry(slot_key(entry, &self.view)).or_default();
                    slots.ask(name, *kind, entry.life.urgency());
                    continue;
                }
                Action::Started => {
                    self.slots
                        .values_mut()
                        .for_each(|slots| slots.started(name));
                    continue;
                }
                Action::ReleaseSlot => {
                    self.slots
                        .values_mut()
                        .for_each(|slots| slots.release(name));
                    continue;
                }
                Action::Forget => {
                    entry.forgotten = true;
                    continue;
                }
                _ => None,
            };
            effects.push(Effect::Act {
                tenant: name.clone(),
                action,
                config: revision.and_then(|revision| entry.revisions.get(&revision).cloned()),
            });
        }
    }

    fn feed_all(&mut self, now: Time, event: &Event, effects: &mut Vec<Effect<C>>) {
        for name in self.names_of(|_| true) {
            self.feed(now, &name, event.clone(), effects);
        }
    }

    fn names_of(&self, which: impl Fn(&TenantEntry<C>) -> bool) -> Vec<TenantName> {
        let entries = self.entries.iter().filter(|(_, entry)| which(entry));
        entries.map(|(name, _)| name.clone()).collect()
    }

    pub(crate) fn entries(&self) -> &BTreeMap<TenantName, TenantEntry<C>> {
        &self.entries
    }

    pub(crate) fn entries_mut(&mut self) -> &mut BTreeMap<TenantName, TenantEntry<C>> {
        &mut self.entries
    }

    pub(crate) fn view(&self) -> &ServersView {
        &self.view
    }

    /// Returns the decisions of the last judgement.
    pub(crate) fn decided(&self) -> &Decided {
        &self.decided
    }

    pub(crate) fn remembered(&self) -> &Remembered {
        &self.remembered
    }

    pub(crate) fn hangs(&self) -> &HangDetector<TenantName> {
        &self.hangs
    }

    pub(crate) fn is_stopping(&self) -> bool {
        self.stopping
    }

    /// Returns true when the core has ended all instances, except those that the kernel does not end.
    pub(crate) fn has_stopped(&self) -> bool {
        let mut entries = self.entries.values();
        self.stopping && entries.all(|e| e.life.instances().all(Instance::unkillable))
    }

    /// Returns true when a lifecycle had an event since the last reconciliation.
    pub(crate) fn has_news(&self) -> bool {
        !self.touched.is_empty()
    }

    /// Returns once the part of `status` that may have changed.
    pub(crate) fn take_stale(&mut self) -> Stale {
        std::mem::take(&mut self.stale)
    }

    /// Returns the time when the next [`Fact::Tick`] is due, if any.
    pub(crate) fn next_deadline(&self) -> Option<Time> {
        let entries = self.entries.values();
        entries.filter_map(|e| e.life.next_deadline()).min()
    }

    /// Returns the configurations of these revisions of a tenant. Instances of an earlier supervisor may have run a
    /// configuration that is unknown here: the accepted one stands for it.
    pub(crate) fn configs_of(&self, name: &TenantName, of: &[Revision]) -> Option<Vec<&Arc<C>>> {
        let entry = self.entries.get(name)?;
        let (_, accepted) = entry.accepted.as_ref()?;
        let configs = of.iter().map(|revision| entry.revisions.get(revision));
        Some(configs.map(|config| config.unwrap_or(accepted)).collect())
    }
}

/// Returns the server whose start slots the tenant takes; empty while the server is unknown.
fn slot_key<C: TenantSettings>(entry: &TenantEntry<C>, view: &ServersView) -> String {
    entry
        .accepted
        .as_ref()
        .and_then(|(_, config)| config.place(view))
        .map_or_else(String::new, |place| place.server.as_str().to_owned())
}
