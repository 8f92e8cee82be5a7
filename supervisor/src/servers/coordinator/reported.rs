//! What passes and probes report, entered into what is known: a URL's server found, missed, or lost.

use super::*;

impl Coordinator {
    pub(super) fn found(&mut self, url: DatabaseUrl, found: Found) {
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
            .backends
            .iter()
            .filter(|((name, _), _)| !name.starts_with(&self.prefix))
            .fold(0, |sum, (_, backends)| sum + backends.len() as u32);
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
            let soon = self.soon.clone();
            let task = spawn_local(async move {
                let failure = probe::watch(session, soon, |sample| {
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

    pub(super) fn missed(&mut self, url: DatabaseUrl, failure: &Failure) {
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
        // What the server's own probe has heard last may be of an hour ago.
        let server = last
            .as_ref()
            .and_then(|place| self.servers.get_mut(&place.server));
        if let Some(watched) = server.filter(|watched| !watched.view.up) {
            watched.view.reason = Some(failure.reason().to_owned());
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

    pub(super) fn lost(&mut self, server: &ServerId, probe: u64, failure: &Failure) {
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
                *endpoint = match failure {
                    Failure::ReadOnly(_) => Endpoint::Refused {
                        reason,
                        last,
                        passing: true,
                    },
                    Failure::Unreachable(_) | Failure::Refused(_) => Endpoint::Unreachable {
                        reason,
                        since: Instant::now(),
                        last,
                    },
                };
                addresses.insert(address_of(url));
            }
        }
        for address in addresses {
            self.schedule(&address);
        }
    }
}

/// Enters a count of connections into a server's view.
pub(super) fn count(view: &mut Server, sample: &Sample, prefix: &str) {
    view.ours.clear();
    view.in_use = 0;
    view.sampled = sample.asked;
    for ((name, database), backends) in &sample.backends {
        let Some(rest) = name.strip_prefix(prefix) else {
            continue;
        };
        view.in_use += backends.len() as u32;
        if let Ok(tenant) = TenantName::parse(rest) {
            view.ours.insert((tenant, *database), backends.clone());
        }
    }
}

/// Host and port as the URL spells them.
fn spelled(url: &DatabaseUrl) -> String {
    match url.host() {
        Host::Tcp(host) => format!("{host}:{}", url.port()),
        Host::Unix(folder) => format!("{}:{}", folder.display(), url.port()),
    }
}
