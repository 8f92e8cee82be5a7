//! The one task that owns what is known of every URL and server. Passes and probes report to it by event.

mod reported;

use super::identify::{Identity, identify};
use super::probe::{self, Sample};
use super::session::{Failure, Session};
use super::view::{Endpoint, Server, ServersView};
use crate::budget::{Facts, Place, ServerId};
use brokkr_tenant::{DatabaseUrl, Host, TenantName};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::{AbortHandle, spawn_local};

/// How long until what did not answer is tried again: jittered, so that what failed together does not come
/// back together, and short, so that a server's return is seen well within a second.
const RETRY: std::ops::Range<u64> = 250..500;
/// How long until what said no is tried again: only a person can change that.
const RETRY_REFUSED: Duration = Duration::from_secs(5);

/// How long until a server that has become read-only is tried again: its return is to be seen within a second, and it
/// answers, so every try costs it two logins.
const RETRY_READ_ONLY: std::ops::Range<u64> = 500..1000;

/// Our own connections are called this behind the prefix: no tenant's name, for it has a dot.
const OWN_NAME: &str = ".supervisor";

/// Where to knock: URLs that share it share one pass, one login after the other.
type Address = (Host, u16);

enum Event {
    /// A URL was tried.
    Tried {
        url: DatabaseUrl,
        result: Result<Box<Found>, Failure>,
    },
    /// A pass over an address has ended.
    Passed { address: Address, number: u64 },
    /// A server's probe was answered.
    Sampled {
        server: ServerId,
        probe: u64,
        sample: Sample,
    },
    /// A server's probe failed.
    Lost {
        server: ServerId,
        probe: u64,
        failure: Failure,
    },
}

/// A URL that leads to a server for a tenant.
struct Found {
    identity: Identity,
    sample: Sample,
    session: Session,
}

struct Pass {
    number: u64,
    task: AbortHandle,
    /// Something was wanted that this pass may not have seen: another follows.
    then: bool,
}

#[derive(Default)]
struct Notes {
    superuser: Option<String>,
    pooler: bool,
    uncertain: bool,
}

impl Notes {
    fn warnings(&self, server: &ServerId) -> Vec<String> {
        let mut warnings = Vec::new();
        if let Some(role) = &self.superuser {
            warnings.push(format!(
                "role {role} is a superuser: the limits of databases and roles do not bind it, and its \
                 connections eat what is reserved for superusers"
            ));
        }
        if self.pooler {
            warnings.push(
                "a pooler in session mode stands in front: its own limits are not known and not counted"
                    .to_owned(),
            );
        }
        if self.uncertain {
            warnings.push(format!(
                "may not be asked which server it is (no EXECUTE on pg_control_system or \
                 pg_postmaster_start_time): its address {server} stands for it, and another address of the \
                 same server is taken for another server"
            ));
        }
        warnings
    }
}

struct Watched {
    view: Server,
    /// `system_identifier` and start time: what two URLs must agree in.
    key: (String, String),
    probe: Option<(u64, AbortHandle)>,
}

struct Coordinator {
    prefix: String,
    endpoints: BTreeMap<DatabaseUrl, Endpoint>,
    /// What an operator should know of each URL.
    notes: BTreeMap<DatabaseUrl, Notes>,
    passes: BTreeMap<Address, Pass>,
    /// Addresses to pass over again, and when.
    due: BTreeMap<Address, Instant>,
    servers: BTreeMap<ServerId, Watched>,
    /// Reloads and the addresses each still waits for.
    refreshes: Vec<(BTreeSet<Address>, oneshot::Sender<()>)>,
    events: mpsc::UnboundedSender<Event>,
    /// Passes and probes so far: what an event belongs to.
    passed: u64,
    probes: u64,
    publish: watch::Sender<Arc<ServersView>>,
    /// Changes when somebody waits for a count.
    soon: watch::Receiver<u64>,
}

/// Runs until the last handle is dropped.
pub(super) async fn run(
    mut wants: watch::Receiver<BTreeSet<DatabaseUrl>>,
    mut requests: mpsc::Receiver<oneshot::Sender<()>>,
    publish: watch::Sender<Arc<ServersView>>,
    soon: watch::Receiver<u64>,
    prefix: String,
) {
    // Unbounded, and bounded by who sends: one event at a time for each address and each server.
    let (events, mut inbox) = mpsc::unbounded_channel();
    let mut coordinator = Coordinator {
        prefix,
        endpoints: BTreeMap::new(),
        notes: BTreeMap::new(),
        passes: BTreeMap::new(),
        due: BTreeMap::new(),
        servers: BTreeMap::new(),
        refreshes: Vec::new(),
        events,
        passed: 0,
        probes: 0,
        publish,
        soon,
    };
    // The set may have been given before this loop first looked.
    let urls = wants.borrow_and_update().clone();
    coordinator.want(&urls);
    loop {
        let due = coordinator.due.values().min().copied();
        let timer = async {
            match due {
                Some(at) => tokio::time::sleep_until(at.into()).await,
                None => std::future::pending().await,
            }
        };
        // Every arm is cancel-safe: channels lose nothing when dropped between messages, and the timer is
        // computed anew.
        tokio::select! {
            changed = wants.changed() => {
                if changed.is_err() {
                    break;
                }
                let urls = wants.borrow_and_update().clone();
                coordinator.want(&urls);
            }
            Some(done) = requests.recv() => {
                // What was wanted before the request is part of it.
                let urls = wants.borrow_and_update().clone();
                coordinator.want(&urls);
                coordinator.refresh(done);
            }
            Some(event) = inbox.recv() => coordinator.hear(event),
            () = timer => coordinator.retry(),
        }
        coordinator.settle();
    }
    coordinator.end();
}

impl Coordinator {
    fn want(&mut self, urls: &BTreeSet<DatabaseUrl>) {
        self.endpoints.retain(|url, _| urls.contains(url));
        self.notes.retain(|url, _| urls.contains(url));
        let mut fresh = BTreeSet::new();
        for url in urls {
            if !self.endpoints.contains_key(url) {
                self.endpoints.insert(url.clone(), Endpoint::Unknown);
                fresh.insert(address_of(url));
            }
        }
        for address in fresh {
            self.start_pass(&address, false);
        }
        let used: BTreeSet<&ServerId> = self
            .endpoints
            .values()
            .filter_map(Endpoint::place)
            .map(|place| &place.server)
            .collect();
        self.servers.retain(|id, server| {
            let keep = used.contains(id);
            if !keep && let Some((_, probe)) = &server.probe {
                probe.abort();
            }
            keep
        });
        let addresses: BTreeSet<Address> = self.endpoints.keys().map(address_of).collect();
        self.due.retain(|address, _| addresses.contains(address));
        self.passes.retain(|address, pass| {
            let keep = addresses.contains(address);
            if !keep {
                pass.task.abort();
            }
            keep
        });
        for (waits, _) in &mut self.refreshes {
            waits.retain(|address| addresses.contains(address));
        }
    }

    fn refresh(&mut self, done: oneshot::Sender<()>) {
        let addresses: BTreeSet<Address> = self.endpoints.keys().map(address_of).collect();
        for address in &addresses {
            self.start_pass(address, true);
        }
        self.refreshes.push((addresses, done));
    }

    fn retry(&mut self) {
        let now = Instant::now();
        let due: Vec<Address> = self
            .due
            .iter()
            .filter(|(_, at)| **at <= now)
            .map(|(address, _)| address.clone())
            .collect();
        for address in due {
            self.start_pass(&address, false);
        }
    }

    /// Tries the URLs of an address one after the other: all of them, or those that are not ready. One that
    /// runs already and may have begun before this was wanted is followed by another.
    fn start_pass(&mut self, address: &Address, all: bool) {
        self.due.remove(address);
        if let Some(pass) = self.passes.get_mut(address) {
            if all {
                // A stale pass must not answer a reload.
                pass.task.abort();
            } else {
                pass.then = true;
                return;
            }
        }
        let urls: Vec<DatabaseUrl> = self
            .endpoints
            .iter()
            .filter(|(url, endpoint)| {
                address_of(url) == *address && (all || !matches!(endpoint, Endpoint::Ready(_)))
            })
            .map(|(url, _)| url.clone())
            .collect();
        self.passed += 1;
        let number = self.passed;
        let (events, address_) = (self.events.clone(), address.clone());
        let name = format!("{}{OWN_NAME}", self.prefix);
        let task = spawn_local(async move {
            let mut gone: Option<Failure> = None;
            for url in urls {
                let result = match &gone {
                    // Nobody is there: the others need not knock as well.
                    Some(failure) => Err(failure.clone()),
                    None => look(&url, &name).await,
                };
                if let Err(failure @ Failure::Unreachable(_)) = &result {
                    gone = Some(failure.clone());
                }
                if events.send(Event::Tried { url, result }).is_err() {
                    return;
                }
            }
            // An error means that nobody listens any more.
            let _ = events.send(Event::Passed {
                address: address_,
                number,
            });
        });
        self.passes.insert(
            address.clone(),
            Pass {
                number,
                task: task.abort_handle(),
                then: false,
            },
        );
    }

    fn hear(&mut self, event: Event) {
        match event {
            Event::Tried { url, result } => {
                if self.endpoints.contains_key(&url) {
                    match result {
                        Ok(found) => self.found(url, *found),
                        Err(failure) => self.missed(url, &failure),
                    }
                }
            }
            Event::Passed { address, number } => {
                if self
                    .passes
                    .get(&address)
                    .is_none_or(|pass| pass.number != number)
                {
                    return; // overtaken by another pass, which will say so itself
                }
                let again = self.passes.remove(&address).is_some_and(|pass| pass.then);
                if again {
                    self.start_pass(&address, false);
                } else {
                    self.schedule(&address);
                }
                for (waits, _) in &mut self.refreshes {
                    waits.remove(&address);
                }
            }
            Event::Sampled {
                server,
                probe,
                sample,
            } => {
                let prefix = self.prefix.clone();
                if let Some(watched) = self.of_probe(&server, probe) {
                    reported::count(&mut watched.view, &sample, &prefix);
                }
            }
            Event::Lost {
                server,
                probe,
                failure,
            } => self.lost(&server, probe, &failure),
        }
    }

    /// Plans the next pass over an address that still needs one.
    fn schedule(&mut self, address: &Address) {
        let wait = self
            .endpoints
            .iter()
            .filter(|(url, _)| address_of(url) == *address)
            .filter_map(|(_, endpoint)| match endpoint {
                Endpoint::Ready(_) => None,
                Endpoint::Refused { passing: false, .. } => Some(RETRY_REFUSED),
                Endpoint::Refused { passing: true, .. } => {
                    Some(Duration::from_millis(fastrand::u64(RETRY_READ_ONLY)))
                }
                Endpoint::Unknown | Endpoint::Unreachable { .. } => {
                    Some(Duration::from_millis(fastrand::u64(RETRY)))
                }
            })
            .min();
        if let Some(wait) = wait {
            let at = Instant::now() + wait;
            let due = self.due.entry(address.clone()).or_insert(at);
            *due = at.min(*due);
        }
    }

    fn of_probe(&mut self, server: &ServerId, probe: u64) -> Option<&mut Watched> {
        self.servers.get_mut(server).filter(|watched| {
            watched
                .probe
                .as_ref()
                .is_some_and(|(number, _)| *number == probe)
        })
    }

    /// After every change: publishes what is different, and answers reloads that have all they waited for.
    fn settle(&mut self) {
        let mut view = ServersView {
            endpoints: self.endpoints.clone(),
            servers: self
                .servers
                .iter()
                .map(|(id, watched)| (id.clone(), watched.view.clone()))
                .collect(),
        };
        for (url, notes) in &self.notes {
            if let Some(place) = view.endpoints.get(url).and_then(Endpoint::place)
                && let Some(server) = view.servers.get_mut(&place.server)
            {
                server.pooler |= notes.pooler;
                for warning in notes.warnings(&place.server) {
                    if !server.warnings.contains(&warning) {
                        server.warnings.push(warning);
                    }
                }
            }
        }
        // The latest is always there to be read; nobody is woken to read that nothing has changed.
        self.publish.send_if_modified(|published| {
            let changed = !published.same_but_for_times(&view);
            *published = Arc::new(view);
            changed
        });
        let (done, waiting): (Vec<_>, Vec<_>) = std::mem::take(&mut self.refreshes)
            .into_iter()
            .partition(|(waits, _)| waits.is_empty());
        self.refreshes = waiting;
        for (_, reply) in done {
            // Whoever asked may have gone.
            let _ = reply.send(());
        }
    }

    fn end(self) {
        for pass in self.passes.values() {
            pass.task.abort();
        }
        for (_, probe) in self
            .servers
            .values()
            .filter_map(|watched| watched.probe.as_ref())
        {
            probe.abort();
        }
    }
}

/// Identifies a URL and counts who is connected there.
async fn look(url: &DatabaseUrl, name: &str) -> Result<Box<Found>, Failure> {
    let (identity, session) = identify(url, name).await?;
    let sample = probe::sample(&session).await?;
    Ok(Box::new(Found {
        identity,
        sample,
        session,
    }))
}

fn address_of(url: &DatabaseUrl) -> Address {
    (url.host().clone(), url.port())
}
