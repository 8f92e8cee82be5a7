//! One tenant as the fleet holds it: its file, its configurations by revision, its lifecycle.

use crate::config::{FileProblem, FileState, TenantConfig};
use crate::lifecycle::{Event, InstanceId, Lifecycle, Revision, Want};
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

/// A tenant's state in the fleet.
#[derive(Debug)]
pub(super) struct TenantEntry {
    pub(super) life: Lifecycle,
    /// The tenant file as last read; `None` once the file is removed.
    pub(super) file: Option<FileState>,
    /// True when the operator has stopped the tenant.
    pub(super) stopped: bool,
    /// The configuration that was admitted last, and that the tenant should run.
    pub(super) accepted: Option<(Revision, Arc<TenantConfig>)>,
    /// Every configuration that an instance may still run, or may have left connections of on its server.
    pub(super) revisions: BTreeMap<Revision, Arc<TenantConfig>>,
    last_revision: u64,
    pub(super) told: Option<LastFacts>,
    /// The instance's own `STATUS=` text.
    pub(super) status: Option<String>,
    /// Files that the instance executes and that are no longer on disk.
    pub(super) deleted_maps: Option<(InstanceId, Vec<String>)>,
    pub(super) last_words: Vec<String>,
    /// Reason of the last unplanned exit.
    pub(super) last_exit: Option<String>,
    /// The last instance that ended unplanned; `last_words` are from its log.
    pub(super) fallen: Option<InstanceId>,
    /// True when the tenant has no process and no file, and the entry may be dropped.
    pub(super) forgotten: bool,
    /// Number of the last release of a socket of this tenant.
    pub(super) release: u64,
    /// State and reason as last logged.
    pub(super) logged: Option<(crate::status::State, Option<String>)>,
}

impl TenantEntry {
    pub(super) fn new(life: Lifecycle, stopped: bool) -> Self {
        Self {
            life,
            file: None,
            stopped,
            accepted: None,
            revisions: BTreeMap::new(),
            last_revision: 0,
            told: None,
            status: None,
            deleted_maps: None,
            last_words: Vec::new(),
            last_exit: None,
            fallen: None,
            forgotten: false,
            release: 0,
            logged: None,
        }
    }

    /// Returns the configuration of the tenant file, if the file is valid.
    pub(super) fn asked(&self) -> Option<&Arc<TenantConfig>> {
        self.file.as_ref()?.as_ref().ok()
    }

    /// Returns the problem of the tenant file, if the file is invalid.
    pub(super) fn file_problem(&self) -> Option<&FileProblem> {
        self.file.as_ref()?.as_ref().err().map(Arc::as_ref)
    }

    /// Returns the configuration that the tenant should run, also while no instance runs.
    pub(super) fn meant(&self) -> Option<&Arc<TenantConfig>> {
        let told = self.told.as_ref()?;
        let (_, config) = self.accepted.as_ref()?;
        matches!(told.want, Want::Run(_)).then_some(config)
    }

    /// Makes `config` the wanted configuration. An effective configuration that is known already keeps its revision.
    pub(super) fn accept(&mut self, config: &Arc<TenantConfig>) -> Revision {
        let known = self
            .accepted
            .iter()
            .map(|(revision, known)| (revision, known));
        // Revisions of running instances count too: a file that changes back must not cause a new instance.
        let same = known
            .chain(&self.revisions)
            .find(|(_, known)| known.digest == config.digest)
            .map(|(revision, _)| *revision);
        let revision = same.unwrap_or_else(|| {
            self.last_revision += 1;
            Revision(self.last_revision)
        });
        // Of two equal configurations the newer has the current line numbers of the file.
        self.accepted = Some((revision, config.clone()));
        self.revisions.insert(revision, config.clone());
        revision
    }

    /// Records the configuration of an adopted instance. An unknown configuration gets a revision of its own.
    pub(super) fn know(&mut self, config: Option<&Arc<TenantConfig>>) -> Revision {
        match config {
            Some(config) => self.accept(config),
            None => {
                self.last_revision += 1;
                Revision(self.last_revision)
            }
        }
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
}
