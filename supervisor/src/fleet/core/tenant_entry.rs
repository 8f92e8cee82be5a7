//! One tenant as the core holds it: its file, its configurations by revision, its lifecycle.

use super::{TenantFile, TenantSettings};
use crate::budget::TenantClaim;
use crate::config::FileProblem;
use crate::instance::ServerOutage;
use crate::lifecycle::{Event, Instance, InstanceId, Lifecycle, Revision, Want};
use crate::status::State;
use brokkr_tenant::TlsPair;
use brokkr_tenant::instance_protocol::Isolation;
use std::collections::BTreeMap;
use std::sync::Arc;

/// The latest facts given to the lifecycle, kept so that only changes are sent.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct LastFacts {
    pub(super) want: Want,
    pub(super) pending: Option<String>,
    pub(super) server: Result<(), String>,
    pub(super) overlap: bool,
}

/// A tenant's state in the core.
#[derive(Debug)]
pub(crate) struct TenantEntry<C> {
    pub(crate) life: Lifecycle,
    /// The tenant file as last read; `None` once the file is removed.
    pub(crate) file: Option<TenantFile<C>>,
    /// True when the operator has stopped the tenant.
    pub(crate) stopped: bool,
    /// The configuration that was admitted last, and that the tenant should run.
    pub(crate) accepted: Option<(Revision, Arc<C>)>,
    /// Every configuration that an instance may still run, or may have left connections of on its server.
    pub(crate) revisions: BTreeMap<Revision, Arc<C>>,
    last_revision: u64,
    pub(super) told: Option<LastFacts>,
    /// The tenant's claim as of the last event, kept so that only a changed claim needs a judgement.
    pub(super) claim: Option<TenantClaim>,
    /// True when there are no descriptors for the tenant, which then claims nothing.
    pub(super) out_of_descriptors: bool,
    /// The reason why there was no user id for the tenant, until the operator may have changed that.
    pub(super) no_uid: Option<String>,
    /// The state of its server that each instance was told last.
    pub(super) told_instances: BTreeMap<InstanceId, Result<(), ServerOutage>>,
    /// The certificate and key that each instance was told last.
    pub(super) told_tls: BTreeMap<InstanceId, Arc<TlsPair>>,
    /// The instance's own `STATUS=` text.
    pub(crate) status: Option<String>,
    /// Files that the instance executes and that are no longer on disk.
    pub(crate) deleted_maps: Option<(InstanceId, Vec<String>)>,
    /// The sandbox of an instance.
    pub(crate) isolation: Option<(InstanceId, Isolation)>,
    pub(crate) last_words: Vec<String>,
    /// Reason of the last unplanned exit.
    pub(crate) last_exit: Option<String>,
    /// The last instance that ended unplanned; `last_words` are from its log.
    pub(super) fallen: Option<InstanceId>,
    /// True when the tenant has no process and no file, and the entry may be dropped.
    pub(super) forgotten: bool,
    /// Number of the last release of a socket of this tenant.
    pub(crate) release: u64,
    /// State and reason as last logged.
    pub(crate) logged: Option<(State, Option<String>)>,
}

impl<C: TenantSettings> TenantEntry<C> {
    pub(super) fn new(life: Lifecycle, stopped: bool) -> Self {
        Self {
            life,
            file: None,
            stopped,
            accepted: None,
            revisions: BTreeMap::new(),
            last_revision: 0,
            told: None,
            claim: None,
            out_of_descriptors: false,
            no_uid: None,
            told_instances: BTreeMap::new(),
            told_tls: BTreeMap::new(),
            status: None,
            deleted_maps: None,
            isolation: None,
            last_words: Vec::new(),
            last_exit: None,
            fallen: None,
            forgotten: false,
            release: 0,
            logged: None,
        }
    }

    /// Returns the configuration of the tenant file, if the file is valid.
    pub(crate) fn asked(&self) -> Option<&Arc<C>> {
        self.file.as_ref()?.as_ref().ok()
    }

    /// Returns the problem of the tenant file, if the file is invalid.
    pub(crate) fn file_problem(&self) -> Option<&FileProblem> {
        self.file.as_ref()?.as_ref().err().map(Arc::as_ref)
    }

    /// Returns true when the tenant has no user id to start an instance with, and runs none that goes on.
    pub(super) fn lacks_uid(&self) -> bool {
        self.no_uid.is_some() && self.life.instances().next().is_none()
    }

    /// Returns the configuration that the tenant should run, also while no instance runs.
    pub(crate) fn meant(&self) -> Option<&Arc<C>> {
        let told = self.told.as_ref()?;
        let (_, config) = self.accepted.as_ref()?;
        matches!(told.want, Want::Run(_)).then_some(config)
    }

    /// Makes `config` the wanted configuration. An effective configuration that is known already keeps its revision.
    pub(super) fn accept(&mut self, config: &Arc<C>) -> Revision {
        let known = self
            .accepted
            .iter()
            .map(|(revision, known)| (revision, known));
        // Revisions of running instances count too: a file that changes back must not cause a new instance.
        let same = known
            .chain(&self.revisions)
            .find(|(_, known)| config.same_instance(known))
            .map(|(revision, _)| *revision);
        let revision = same.unwrap_or_else(|| self.next_revision());
        // Of two equal configurations the newer has the current line numbers of the file.
        self.accepted = Some((revision, config.clone()));
        self.revisions.insert(revision, config.clone());
        revision
    }

    /// Records the configuration of an adopted instance. An unknown configuration gets a revision of its own.
    pub(super) fn know(&mut self, config: Option<&Arc<C>>) -> Revision {
        match config {
            Some(config) => self.accept(config),
            None => self.next_revision(),
        }
    }

    fn next_revision(&mut self) -> Revision {
        self.last_revision += 1;
        Revision(self.last_revision)
    }

    /// Forgets configurations that no instance runs and that have no connections left on a server.
    pub(super) fn forget_old_revisions(&mut self) {
        let accepted = self.accepted.as_ref().map(|(revision, _)| *revision);
        let life = &self.life;
        self.revisions.retain(|revision, _| {
            Some(*revision) == accepted
                || life.instances().any(|i| i.revision == *revision)
                || life.may_have_left(*revision)
        });
    }

    /// Returns the events that bring the lifecycle's facts up to `told`.
    pub(super) fn news(&mut self, told: LastFacts) -> Vec<Event> {
        let mut events = Vec::new();
        let before = self.told.as_ref();
        if before.is_none_or(|b| b.server != told.server) {
            events.push(Event::Server(told.server.clone()));
        }
        if before.is_none_or(|b| b.overlap != told.overlap) {
            events.push(Event::MayOverlap(told.overlap));
        }
        if before.is_none_or(|b| b.want != told.want || b.pending != told.pending) {
            events.push(Event::Wanted {
                want: told.want.clone(),
                pending: told.pending.clone(),
            });
        }
        self.told = Some(told);
        events
    }

    /// Notes the end of an instance. Returns a text for the log if the end was not planned.
    pub(super) fn note_end(&mut self, event: &Event) -> Option<String> {
        let (id, reason, what) = match event {
            Event::Exited { id, reason, .. } => (*id, reason, "has ended"),
            Event::SpawnFailed { id, reason } => (*id, reason, "could not be started"),
            _ => return None,
        };
        self.status = None;
        let ended = self.life.instances().find(|i| i.id == id);
        if ended.is_some_and(Instance::ends_as_planned) {
            return None;
        }
        let current = self.life.current();
        let who = match current.is_some_and(|c| c.serves() && c.id != id) {
            true => "a replacement of its broker, which serves on,",
            false => "its broker",
        };
        let why = why_it_ended(ended.and_then(Instance::failure), reason);
        let text = format!("{who} {what}: {why}");
        self.last_exit = Some(why);
        self.fallen = Some(id);
        Some(text)
    }
}

/// Describes the end of an instance: first our reason for ending it, then its exit, without repeating the same text.
fn why_it_ended(verdict: Option<&str>, how: &str) -> String {
    let Some(verdict) = verdict else {
        return how.to_owned();
    };
    let (exit, said) = how.split_once(": ").unwrap_or((how, ""));
    let how = if verdict.ends_with(said) { exit } else { how };
    format!("{verdict} ({how})")
}

#[cfg(test)]
mod tests {
    use super::why_it_ended;

    #[test]
    fn what_a_broker_said_is_said_once() {
        let late = "not ready within 4s: waiting for the database: full";
        assert_eq!(why_it_ended(None, "exit code 7: x"), "exit code 7: x");
        assert_eq!(
            why_it_ended(Some(late), "exit code 0: waiting for the database: full"),
            format!("{late} (exit code 0)")
        );
        assert_eq!(
            why_it_ended(Some("hung"), "killed by SIGKILL"),
            "hung (killed by SIGKILL)"
        );
    }
}
