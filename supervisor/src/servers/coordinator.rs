//! The one task that owns what is known of every URL and server. Passes and probes report to it by event.

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
}

/// Runs until the last handle is dropped.
pub(super) async fn run(
    mut wants: watch::Receiver<BTreeSet<DatabaseUrl>>,
    mut requests: mpsc::Receiver<oneshot::Sender<()>>,
    publish: watch::Sender<Arc<ServersView>>,
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
                    count(&mut watched.view, &sample, &prefix);
                }
            }
            Event::Lost {
                server,
                probe,
                failure,
            } => self.lost(&server, probe, &failure),
        }
    }

    fn found(&mut self, url: DatabaseUrl, found: Found) {
        let Found {
            identity,
            sample,
            session,
        } = found;
        let id = self.name(&url, &identity);
        let place = Place {
            server: id.clone(),
            database: identity.database_oid,
            role: identity.role_name.clone(),
            superuser: identity.role.superuser,
        };
        let notes = Notes {
            superuser: identity.role.superuser.then(|| identity.role_name.clone()),
            pooler: identity.pooler,
            uncertain: !identity.certain,
        };
        self.notes.insert(url.clone(), notes);
        let key = (identity.identifier.clone(), identity.started.clone());
        let watched = self.servers.entry(id.clone()).or_insert_with(|| Watched {
            view: Server::unseen(Facts::default()),
            key: key.clone(),
            probe: None,
        });
        if watched.key != key {
            // The same server after a restart: its kept connection belongs to the one before.
            watched.key = key;
            if let Some((_, probe)) = watched.probe.take() {
                probe.abort();
            }
        }
        let view = &mut watched.view;
        if !view.up {
            view.up = true;
            view.reason = None;
            view.since = Instant::now();
        }
        view.version = identity.version;
        view.facts.max_connections = identity.max_connections;
        view.facts.superuser_reserved = identity.superuser_reserved;
        view.facts.reserved = identity.reserved;
        view.facts.foreign = sample
            .connections
            .iter()
            .filter(|(name, _)| !name.starts_with(&self.prefix))
            .fold(0, |sum, (_, count)| sum + count);
        view.facts
            .databases
            .insert(identity.database_oid, identity.database);
        view.facts.roles.insert(identity.role_name, identity.role);
        count(view, &sample, &self.prefix);
        if watched.probe.is_none() {
            view.facts.own = Some(place.clone());
            self.probes += 1;
            let number = self.probes;
            let events = self.events.clone();
            let task = spawn_local(async move {
                let failure = probe::watch(session, |sample| {
                    // An error means that nobody listens any more, and this task is about to be dropped.
                    let _ = events.send(Event::Sampled {
                        server: id.clone(),
                        probe: number,
                        sample,
                    });
                })
                .await;
                let _ = events.send(Event::Lost {
                    server: id,
                    probe: number,
                    failure,
                });
            });
            watched.probe = Some((number, task.abort_handle()));
        }
        self.endpoints.insert(url, Endpoint::Ready(place));
    }

    /// The name of a server: its identifier, and for a second one of the same identifier (a copied folder,
    /// a restored snapshot) its address behind it. It keeps it over restarts.
    fn name(&self, url: &DatabaseUrl, identity: &Identity) -> ServerId {
        let key = (identity.identifier.clone(), identity.started.clone());
        if let Some((id, _)) = self.servers.iter().find(|(_, watched)| watched.key == key) {
            return id.clone();
        }
        let was = self
            .endpoints
            .get(url)
            .and_then(Endpoint::place)
            .map(|place| &place.server);
        let plain = ServerId::new(&identity.identifier);
        let addressed = ServerId::new(&format!("{plain}@{}", spelled(url)));
        let mut names = was.into_iter().chain([&plain, &addressed]);
        // A name is free when nobody has it, or its server is down: then this is it after a restart.
        let free = names.find(|name| {
            self.servers
                .get(name)
                .is_none_or(|watched| watched.key.0 == identity.identifier && !watched.view.up)
        });
        free.unwrap_or(&addressed).clone()
    }

    fn missed(&mut self, url: DatabaseUrl, failure: &Failure) {
        let Some(before) = self.endpoints.get(&url) else {
            return;
        };
        let last = before.place().cloned();
        if let (Endpoint::Ready(place), Failure::Unreachable(_)) = (before, failure)
            && self
                .servers
                .get(&place.server)
                .is_some_and(|server| server.probe.is_some())
        {
            // The server's own probe is still answered: it is full, or this login was unlucky. The probe
            // says when it is down.
            return;
        }
        let endpoint = match failure {
            Failure::Unreachable(reason) => {
                let since = match before {
                    Endpoint::Unreachable { since, .. } => *since,
                    _ => Instant::now(),
                };
                Endpoint::Unreachable {
                    reason: reason.clone(),
                    since,
                    last,
                }
            }
            Failure::Refused(reason) | Failure::ReadOnly(reason) => Endpoint::Refused {
                reason: reason.clone(),
                passing: matches!(failure, Failure::ReadOnly(_)) && last.is_some(),
                last,
            },
        };
        self.endpoints.insert(url, endpoint);
    }

    fn lost(&mut self, server: &ServerId, probe: u64, failure: &Failure) {
        let Some(watched) = self.of_probe(server, probe) else {
            return;
        };
        watched.probe = None;
        watched.view.up = false;
        watched.view.reason = Some(failure.reason().to_owned());
        watched.view.since = Instant::now();
        watched.view.ours.clear();
        watched.view.in_use = 0;
        let mut addresses = BTreeSet::new();
        for (url, endpoint) in &mut self.endpoints {
            if let Endpoint::Ready(place) = endpoint
                && place.server == *server
            {
                let last = Some(place.clone());
                let reason = failure.reason().to_owned();
                *endpoint = Endpoint::Unreachable {
                    reason,
                    since: Instant::now(),
                    last,
                };
                addresses.insert(address_of(url));
            }
        }
        for address in addresses {
            self.schedule(&address);
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

/// Enters a count of connections into a server's view.
fn count(view: &mut Server, sample: &Sample, prefix: &str) {
    view.ours.clear();
    view.in_use = 0;
    view.sampled = sample.asked;
    for (name, count) in &sample.connections {
        let Some(rest) = name.strip_prefix(prefix) else {
            continue;
        };
        view.in_use += count;
        if let Ok(tenant) = TenantName::parse(rest) {
            view.ours.insert(tenant, *count);
        }
    }
}

fn address_of(url: &DatabaseUrl) -> Address {
    (url.host().clone(), url.port())
}

/// Host and port as the URL spells them.
fn spelled(url: &DatabaseUrl) -> String {
    match url.host() {
        Host::Tcp(host) => format!("{host}:{}", url.port()),
        Host::Unix(folder) => format!("{}:{}", folder.display(), url.port()),
    }
}
