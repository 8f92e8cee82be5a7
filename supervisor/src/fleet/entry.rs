//! One tenant as the fleet holds it: its file, its configurations by revision, its life.

use crate::config::{FileProblem, FileState, TenantConfig};
use crate::lifecycle::{Event, InstanceId, Lifecycle, Revision, Want};
use std::collections::BTreeMap;
use std::sync::Arc;

/// What the lifecycle was told last, so that it is told again only when something changed.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Told {
    pub(super) want: Want,
    pub(super) pending: Option<String>,
    pub(super) server: Result<(), String>,
    pub(super) overlap: bool,
}

/// One tenant.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) life: Lifecycle,
    /// Its file as last read; `None` once it has gone.
    pub(super) file: Option<FileState>,
    /// Stopped by the operator.
    pub(super) stopped: bool,
    /// The configuration that is wanted now, the last one that was admitted.
    pub(super) accepted: Option<(Revision, Arc<TenantConfig>)>,
    /// Every configuration that an instance may still run, or may have left connections of on its server.
    pub(super) revisions: BTreeMap<Revision, Arc<TenantConfig>>,
    last_revision: u64,
    pub(super) told: Option<Told>,
    /// The instance's own word on what it is doing.
    pub(super) status: Option<String>,
    /// Files that this instance executes and that are no longer on disk.
    pub(super) deleted_maps: Option<(InstanceId, Vec<String>)>,
    pub(super) last_words: Vec<String>,
    /// How the last instance that ended unplanned did, and why.
    pub(super) last_exit: Option<String>,
    /// The last instance that ended unplanned; its words are the last words.
    pub(super) fallen: Option<InstanceId>,
    /// Nothing of it is left: it may be dropped.
    pub(super) forgotten: bool,
    /// Number of the last release of one of its sockets.
    pub(super) release: u64,
    /// State and reason as last logged.
    pub(super) logged: Option<(crate::status::State, Option<String>)>,
}

impl Entry {
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

    /// The configuration its file asks for, when the file is good.
    pub(super) fn asked(&self) -> Option<&Arc<TenantConfig>> {
        self.file.as_ref()?.as_ref().ok()
    }

    /// Why its file is no good.
    pub(super) fn file_problem(&self) -> Option<&FileProblem> {
        self.file.as_ref()?.as_ref().err().map(Arc::as_ref)
    }

    /// The configuration it is meant to run, whether an instance does just now or not.
    pub(super) fn meant(&self) -> Option<&Arc<TenantConfig>> {
        let told = self.told.as_ref()?;
        let (_, config) = self.accepted.as_ref()?;
        matches!(told.want, Want::Run(_)).then_some(config)
    }

    /// Makes `config` the wanted one; the same effective configuration keeps its revision.
    pub(super) fn accept(&mut self, config: &Arc<TenantConfig>) -> Revision {
        let known = self
            .accepted
            .iter()
            .map(|(revision, known)| (revision, known));
        // One that some instance runs, too: a file that changes back makes no new instance.
        let same = known
            .chain(&self.revisions)
            .find(|(_, known)| known.digest == config.digest)
            .map(|(revision, _)| *revision);
        let revision = same.unwrap_or_else(|| {
            self.last_revision += 1;
            Revision(self.last_revision)
        });
        // Of two that are the same the newer one has the newer places in the file.
        self.accepted = Some((revision, config.clone()));
        self.revisions.insert(revision, config.clone());
        revision
    }

    /// Takes note of what an instance of an earlier supervisor runs; where nobody knows it is like nothing else.
    pub(super) fn know(&mut self, config: Option<&Arc<TenantConfig>>) -> Revision {
        match config {
            Some(config) => self.accept(config),
            None => {
                self.last_revision += 1;
                Revision(self.last_revision)
            }
        }
    }

    /// Forgets configurations no instance runs any more, and of which nothing is left on a server.
    pub(super) fn forget_old_revisions(&mut self) {
        let accepted = self.accepted.as_ref().map(|(revision, _)| *revision);
        let life = &self.life;
        self.revisions.retain(|revision, _| {
            Some(*revision) == accepted
                || life.instances().any(|i| i.revision == *revision)
                || life.may_have_left(*revision)
        });
    }

    /// The events that bring the lifecycle from what it was told to `told`.
    pub(super) fn news(&mut self, told: Told) -> Vec<Event> {
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
