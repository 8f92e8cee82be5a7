//! Owns the state of every URL and server, in one task. Looks, knocks and probes report to it by event.

mod attempts;
mod merge;
mod notes;
mod probe_results;

use super::Wanted;
use super::identify::{Identity, ServerMarks, identify};
use super::knock::knock;
use super::probe::{self, Sample};
use super::provision::role_name;
use super::session::{DEADLINE, FailureKind, ProbeFailure, Session, within};
use super::view::{Endpoint, ServerView, ServersView};
use crate::budget::{ConnectionTarget, Facts, ServerId};
use attempts::{AddressState, UrlAttempt};
use brokkr_tenant::{DatabaseUrl, Host, TenantName};
use notes::ServerNotes;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::{AbortHandle, spawn_local};

/// The `application_name` of the supervisor's own connections, behind the prefix; a tenant's name has no dot.
const OWN_NAME: &str = ".supervisor";

/// The longest time for one look, with all its steps.
const LOOK: Duration = Duration::from_secs(8);

/// The host and port to knock at, as URLs spell them.
type Address = (Host, u16);

enum Event {
    /// Result of a look at a URL.
    Tried {
        url: Box<DatabaseUrl>,
        number: u64,
        result: Result<Box<Found>, ProbeFailure>,
    },
    /// Result of a knock at an address.
    Knocked {
        address: Address,
        number: u64,
        result: Result<(), ProbeFailure>,
    },
    /// An answer to a server's probe.
    Sampled {
        server: ServerId,
        probe: u64,
        sample: Sample,
    },
    /// Failure of a server's probe.
    Lost {
        server: ServerId,
        probe: u64,
        failure: ProbeFailure,
    },
}

/// Result of a look at a URL that leads to a usable server.
struct Found {
    identity: Identity,
    sample: Sample,
    session: Session,
}

struct Watched {
    view: ServerView,
    /// Identity of the server, from all its URLs.
    marks: ServerMarks,
    /// Login roles of tenants, provisioned by this supervisor.
    roles: BTreeSet<String>,
    probe: Option<(u64, AbortHandle)>,
}

struct Coordinator {
    prefix: String,
    wanted: Wanted,
    endpoints: BTreeMap<DatabaseUrl, Endpoint>,
    /// Notes for the operator about each URL.
    notes: BTreeMap<DatabaseUrl, ServerNotes>,
    attempts: BTreeMap<DatabaseUrl, UrlAttempt>,
    doors: BTreeMap<Address, AddressState>,
    servers: BTreeMap<ServerId, Watched>,
    /// Failures of URLs whose server has lost its probe; they count once none of its URLs gets an answer.
    doubts: BTreeMap<DatabaseUrl, ProbeFailure>,
    /// Reloads, and the URLs that each still waits for.
    refreshes: Vec<(BTreeSet<DatabaseUrl>, oneshot::Sender<()>)>,
    events: mpsc::UnboundedSender<Event>,
    /// Number of looks, knocks and probes so far; each event carries its number.
    numbered: u64,
    publish: watch::Sender<Arc<ServersView>>,
    /// Changes when a caller waits for a new count.
    soon: watch::Receiver<u64>,
}

/// Runs until the last handle is dropped.
pub(super) async fn run(
    mut wants: watch::Receiver<Wanted>,
    mut requests: mpsc::Receiver<oneshot::Sender<()>>,
    publish: watch::Sender<Arc<ServersView>>,
    soon: watch::Receiver<u64>,
    prefix: String,
) {
    // Unbounded, because each URL, address and server has at most one event on its way.
    let (events, mut inbox) = mpsc::unbounded_channel();
    let mut coordinator = Coordinator {
        prefix,
        wanted: Wanted::new(),
        endpoints: BTreeMap::new(),
        notes: BTreeMap::new(),
        attempts: BTreeMap::new(),
        doors: BTreeMap::new(),
        servers: BTreeMap::new(),
        doubts: BTreeMap::new(),
        refreshes: Vec::new(),
        events,
        numbered: 0,
        publish,
        soon,
    };
    // The set may have been sent before this loop started.
    let urls = wants.borrow_and_update().clone();
    coordinator.want(&urls);
    loop {
        coordinator.attempt();
        coordinator.settle();
        let wake = coordinator.next_attempt();
        let timer = async {
            match wake {
                Some(at) => tokio::time::sleep_until(at.into()).await,
                None => std::future::pending().await,
            }
        };
        // Every arm is cancel-safe: channels lose nothing between messages, and the timer is computed anew.
        tokio::select! {
            changed = wants.changed() => {
                if changed.is_err() {
                    break;
                }
                let urls = wants.borrow_and_update().clone();
                coordinator.want(&urls);
            }
            Some(done) = requests.recv() => {
                // A refresh includes the URLs wanted before it was requested.
                let urls = wants.borrow_and_update().clone();
                coordinator.want(&urls);
                coordinator.refresh(done);
            }
            Some(event) = inbox.recv() => coordinator.hear(event),
            () = timer => {}
        }
    }
    coordinator.end();
}

impl Coordinator {
    fn want(&mut self, urls: &Wanted) {
        self.wanted.clone_from(urls);
        self.endpoints.retain(|url, _| urls.contains_key(url));
        self.notes.retain(|url, _| urls.contains_key(url));
        self.doubts.retain(|url, _| urls.contains_key(url));
        self.attempts.retain(|url, attempt| {
            let keep = urls.contains_key(url);
            if !keep {
                attempt.stop();
            }
            keep
        });
        let now = Instant::now();
        for url in urls.keys() {
            if !self.endpoints.contains_key(url) {
                self.endpoints.insert(url.clone(), Endpoint::Unknown);
                self.attempts.insert(url.clone(), UrlAttempt::due(now));
                self.doors.entry(address_of(url)).or_default();
            }
        }
        self.forget_unused_servers();
        let addresses: BTreeSet<Address> = self.endpoints.keys().map(address_of).collect();
        self.doors.retain(|address, door| {
            let keep = addresses.contains(address);
            if !keep {
                door.stop();
            }
            keep
        });
        for (waits, _) in &mut self.refreshes {
            waits.retain(|url| urls.contains_key(url));
        }
        self.name_roles();
    }

    /// Names the login roles that this supervisor provisions on each server.
    fn name_roles(&mut self) {
        for watched in self.servers.values_mut() {
            watched.roles.clear();
        }
        for (url, schemas) in &self.wanted {
            let place = self.endpoints.get(url).and_then(Endpoint::place);
            if let Some(place) = place.filter(|_| !schemas.is_empty())
                && let Some(watched) = self.servers.get_mut(&place.server)
            {
                let names = schemas.iter().map(|s| role_name(place.database, s));
                watched.roles.extend(names);
            }
        }
        for watched in self.servers.values_mut() {
            watched.view.facts.provisions = !watched.roles.is_empty();
        }
    }

    fn forget_unused_servers(&mut self) {
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
    }

    /// Looks at every URL again from the start, because a running look may have begun before the request.
    fn refresh(&mut self, done: oneshot::Sender<()>) {
        let now = Instant::now();
        for attempt in self.attempts.values_mut() {
            attempt.stop();
            *attempt = UrlAttempt::due(now);
        }
        for door in self.doors.values_mut() {
            door.stop();
            *door = AddressState::default();
        }
        let urls = self.endpoints.keys().cloned().collect();
        self.refreshes.push((urls, done));
    }

    fn hear(&mut self, event: Event) {
        match event {
            Event::Tried {
                url,
                number,
                result,
            } => self.tried(*url, number, result),
            Event::Knocked {
                address,
                number,
                result,
            } => self.knocked(&address, number, result),
            Event::Sampled {
                server,
                probe,
                sample,
            } => {
                let prefix = self.prefix.clone();
                if let Some(watched) = self.of_probe(&server, probe) {
                    probe_results::count(watched, &sample, &prefix);
                }
            }
            Event::Lost {
                server,
                probe,
                failure,
            } => self.lost(&server, probe, &failure),
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

    fn number(&mut self) -> u64 {
        self.numbered += 1;
        self.numbered
    }

    /// Publishes changes and answers finished reloads. Must be called after every change.
    fn settle(&mut self) {
        self.settle_doubts();
        self.settle_names();
        let mut view = ServersView {
            endpoints: self.endpoints.clone(),
            servers: self
                .servers
                .iter()
                .map(|(id, watched)| (id.clone(), watched.view.clone()))
                .collect(),
            aliases: self.aliases(),
        };
        for (url, notes) in &self.notes {
            if notes.unsettled {
                view.endpoints.insert(url.clone(), Endpoint::Unknown);
            }
            if let Some(place) = self.endpoints.get(url).and_then(Endpoint::place)
                && let Some(server) = view.servers.get_mut(&place.server)
            {
                let known = self.servers.get(&place.server);
                let known = known.is_some_and(|watched| watched.marks.identifier.is_some());
                server.pooler |= notes.pooler;
                for warning in notes.warnings(&place.server, known) {
                    if !server.warnings.contains(&warning) {
                        server.warnings.push(warning);
                    }
                }
            }
        }
        // Always stores the latest view, but wakes readers only for a change.
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
            // An error means that the caller has gone.
            let _ = reply.send(());
        }
    }

    fn end(mut self) {
        self.attempts.values_mut().for_each(UrlAttempt::stop);
        self.doors.values_mut().for_each(AddressState::stop);
        for (_, probe) in self
            .servers
            .values()
            .filter_map(|watched| watched.probe.as_ref())
        {
            probe.abort();
        }
    }
}

/// Identifies the server of a URL and counts its connections.
async fn look(url: &DatabaseUrl, name: &str) -> Result<Box<Found>, ProbeFailure> {
    within("the answers", LOOK, async {
        let (identity, session) = identify(url, name).await?;
        let sample = probe::sample(&session).await?;
        Ok(Box::new(Found {
            identity,
            sample,
            session,
        }))
    })
    .await
}

fn address_of(url: &DatabaseUrl) -> Address {
    (url.host().clone(), url.port())
}
