//! Records the results of looks and probes: a URL's server was found, not found, or lost.

use super::*;

impl Coordinator {
    pub(super) fn found(&mut self, url: DatabaseUrl, found: Found) {
        let Found {
            identity,
            sample,
            session,
        } = found;
        let id = self.name(&url, &identity);
        let place = ConnectionTarget {
            server: id.clone(),
            database: identity.database_oid,
            role: identity.role_name.clone(),
            superuser: identity.role.superuser,
        };
        let certain = identity.marks.identifier.is_some();
        let before = self.notes.get(&url);
        let notes = ServerNotes {
            // An administrator who provisions roles may be a superuser.
            superuser: (identity.role.superuser && !self.provisions(&url))
                .then(|| identity.role_name.clone()),
            pooler: identity.pooler,
            address: (!certain).then(|| ServerId::new(&identity.address)),
            unsettled: !certain && before.is_none_or(|notes| notes.unsettled),
        };
        self.notes.insert(url.clone(), notes);
        self.mark(&id, &identity.marks);
        let Some(watched) = self.servers.get_mut(&id) else {
            return;
        };
        let view = &mut watched.view;
        if !view.up {
            view.up = true;
            view.since = Instant::now();
        }
        // Also of a server that counted as up while its probe was made anew.
        view.reason = None;
        view.version = identity.version;
        view.facts.max_connections = identity.max_connections;
        view.facts.superuser_reserved = identity.superuser_reserved;
        view.facts.reserved = identity.reserved;
        view.facts
            .databases
            .insert(identity.database_oid, identity.database);
        view.facts.roles.insert(identity.role_name, identity.role);
        let is_first = watched.probe.is_none();
        if is_first {
            view.facts.own = Some(place.clone());
        }
        self.doubts.remove(&url);
        self.endpoints.insert(url, Endpoint::Ready(place));
        self.name_roles();
        if let Some(watched) = self.servers.get_mut(&id) {
            watched.view.facts.foreign = foreign(&sample, &self.prefix, &watched.roles);
            count(watched, &sample, &self.prefix);
        }
        if is_first {
            self.watch(&id, session);
        }
        if certain {
            self.merge_into(&id);
        }
        self.keep_addresses(&id, &identity.marks);
        self.end_doubts(&id);
    }

    /// Returns true when tenants of this URL's database have login roles of their own.
    fn provisions(&self, url: &DatabaseUrl) -> bool {
        self.wanted
            .get(url)
            .is_some_and(|schemas| !schemas.is_empty())
    }

    /// Starts the probe of a server over this connection.
    fn watch(&mut self, id: &ServerId, session: Session) {
        let number = self.number();
        let (events, soon, server) = (self.events.clone(), self.soon.clone(), id.clone());
        let task = spawn_local(async move {
            let failure = probe::watch(session, soon, |sample| {
                // An error means that the coordinator has ended, and this task will be dropped.
                let _ = events.send(Event::Sampled {
                    server: server.clone(),
                    probe: number,
                    sample,
                });
            })
            .await;
            let _ = events.send(Event::Lost {
                server,
                probe: number,
                failure,
            });
        });
        if let Some(watched) = self.servers.get_mut(id) {
            watched.probe = Some((number, task.abort_handle()));
        }
    }

    /// Records that a look at a URL found no usable server.
    pub(super) fn missed(&mut self, url: &DatabaseUrl, failure: &ProbeFailure) {
        let Some(before) = self.endpoints.get(url) else {
            return;
        };
        let last = before.place().cloned();
        if let Endpoint::Ready(_) = before
            && failure.passes()
        {
            if self.doubted_server(before).is_none() {
                // The server's own probe is still answered, so the server is full or only this login failed. The probe
                // detects when the server is down.
                return;
            }
            if failure.kind != FailureKind::Address {
                // Another URL may still get an answer from this server.
                self.doubts.insert(url.clone(), failure.clone());
                return;
            }
        }
        self.doubts.remove(url);
        // The failure that ended the server's probe may be an hour old.
        let server = last
            .as_ref()
            .and_then(|place| self.servers.get_mut(&place.server));
        if let Some(watched) = server.filter(|watched| watched.probe.is_none()) {
            watched.view.reason = Some(failure.reason().to_owned());
        }
        let reason = failure.reason().to_owned();
        let endpoint = if failure.passes() {
            let since = match before {
                Endpoint::Unreachable { since, .. } => *since,
                _ => Instant::now(),
            };
            Endpoint::Unreachable {
                reason,
                since,
                last,
            }
        } else {
            Endpoint::Refused {
                reason,
                passing: failure.kind == FailureKind::ReadOnly && last.is_some(),
                last,
            }
        };
        self.endpoints.insert(url.clone(), endpoint);
    }

    /// Handles the end or the silence of a probe's connection. The connection belonged to one role and one database, so
    /// its end alone does not mean that the server is down: every URL of the server is looked at, and the first that is
    /// answered gets the next probe.
    pub(super) fn lost(&mut self, server: &ServerId, probe: u64, failure: &ProbeFailure) {
        let Some(watched) = self.of_probe(server, probe) else {
            return;
        };
        watched.probe = None;
        watched.view.reason = Some(failure.reason().to_owned());
        for url in self.ready_on(server) {
            self.doubt(&url);
        }
    }

    /// Returns the URLs that are ready on this server.
    fn ready_on(&self, server: &ServerId) -> Vec<DatabaseUrl> {
        let is_there = |endpoint: &Endpoint| matches!(endpoint, Endpoint::Ready(place) if place.server == *server);
        let ready = self
            .endpoints
            .iter()
            .filter(|(_, endpoint)| is_there(endpoint));
        ready.map(|(url, _)| url.clone()).collect()
    }

    /// Returns the endpoint's server when that counts as up and has lost its probe.
    pub(super) fn doubted_server<'e>(&self, endpoint: &'e Endpoint) -> Option<&'e ServerId> {
        let Endpoint::Ready(ConnectionTarget { server, .. }) = endpoint else {
            return None;
        };
        let watched = self.servers.get(server)?;
        watched.probe.is_none().then_some(server)
    }

    /// Ends the doubts about a server that has answered; failures of its URLs meanwhile concerned those URLs only.
    fn end_doubts(&mut self, id: &ServerId) {
        for url in self.ready_on(id) {
            self.doubts.remove(&url);
            self.trust(&url);
        }
    }

    /// Marks a server as down once every URL of it was looked at and none was answered.
    pub(super) fn settle_doubts(&mut self) {
        let mut undecided = BTreeSet::new();
        for (url, endpoint) in &self.endpoints {
            if let Some(server) = self.doubted_server(endpoint)
                && !self.doubts.contains_key(url)
            {
                undecided.insert(server.clone());
            }
        }
        let given_up: Vec<(DatabaseUrl, ProbeFailure)> = self
            .doubts
            .iter()
            .filter(|(url, _)| {
                let place = self.endpoints.get(url).and_then(Endpoint::place);
                place.is_none_or(|place| !undecided.contains(&place.server))
            })
            .map(|(url, failure)| (url.clone(), failure.clone()))
            .collect();
        for (url, failure) in given_up {
            self.doubts.remove(&url);
            let last = self.endpoints.get(&url).and_then(Endpoint::place).cloned();
            let endpoint = Endpoint::Unreachable {
                reason: failure.reason().to_owned(),
                since: Instant::now(),
                last,
            };
            self.endpoints.insert(url.clone(), endpoint);
            self.plan_soon(&url);
        }
        for (id, watched) in &mut self.servers {
            if watched.view.up && watched.probe.is_none() && !undecided.contains(id) {
                watched.view.up = false;
                watched.view.since = Instant::now();
                watched.view.ours.clear();
                watched.view.in_use = 0;
            }
        }
    }
}

/// Returns the number of connections of other programs. A tenant's own role counts as ours under any application name.
fn foreign(sample: &Sample, prefix: &str, roles: &BTreeSet<String>) -> u32 {
    let others = sample
        .backends
        .iter()
        .filter(|(of, _)| !of.application.starts_with(prefix) && !roles.contains(&of.role));
    others.map(|(_, backends)| backends.len() as u32).sum()
}

/// Enters a count of connections into a server's view. A session of a tenant's own role is that tenant's; for other
/// sessions the application name tells.
pub(super) fn count(watched: &mut Watched, sample: &Sample, prefix: &str) {
    let view = &mut watched.view;
    view.ours.clear();
    view.ours_by_role.clear();
    view.in_use = 0;
    view.sampled = sample.asked;
    for (of, backends) in &sample.backends {
        if watched.roles.contains(&of.role) {
            view.in_use += backends.len() as u32;
            // A person's session as this role is no backend of a broker.
            if of.application.starts_with(prefix) {
                let known = view.ours_by_role.entry(of.role.clone()).or_default();
                known.extend(backends);
            }
            continue;
        }
        let Some(rest) = of.application.strip_prefix(prefix) else {
            continue;
        };
        view.in_use += backends.len() as u32;
        if let Ok(tenant) = TenantName::parse(rest) {
            let known = view.ours.entry((tenant, of.database)).or_default();
            known.extend(backends);
        }
    }
}
