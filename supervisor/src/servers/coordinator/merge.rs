//! Which server a URL leads to. One that may not read its server's identity goes by what others have told of it: the
//! same start time, which tells servers to the microsecond, or where that may not be read either, the same address.

use super::*;

impl Coordinator {
    /// The name of the server a URL was found to lead to. It keeps it over restarts.
    pub(super) fn name(&self, url: &DatabaseUrl, identity: &Identity) -> ServerId {
        let marks = &identity.marks;
        let was = self
            .endpoints
            .get(url)
            .and_then(Endpoint::place)
            .map(|place| &place.server);
        match &marks.identifier {
            Some(identifier) => self.name_of_identified(url, was, identifier, marks),
            None => self.name_by_others(was, identity),
        }
    }

    /// Its identifier, and for a second server of the same identifier (a copied folder, a restored snapshot) its address
    /// behind it.
    fn name_of_identified(
        &self,
        url: &DatabaseUrl,
        was: Option<&ServerId>,
        identifier: &str,
        marks: &Marks,
    ) -> ServerId {
        let same = |watched: &Watched| {
            watched.marks.identifier.is_some() && watched.marks.same_server(marks)
        };
        if let Some((id, _)) = self.servers.iter().find(|(_, watched)| same(watched)) {
            return id.clone();
        }
        let plain = ServerId::new(identifier);
        let addressed = ServerId::new(&format!("{plain}@{}", spelled(url)));
        let was = was.filter(|id| {
            let watched = self.servers.get(id);
            watched.is_some_and(|w| w.marks.identifier.as_deref() == Some(identifier))
        });
        let mut names = was.into_iter().chain([&plain, &addressed]);
        // A name is free when nobody has it, or its server is down: then this is it after a restart.
        let free = names.find(|name| {
            self.servers.get(name).is_none_or(|watched| {
                watched.marks.identifier.as_deref() == Some(identifier) && !watched.view.up
            })
        });
        free.unwrap_or(&addressed).clone()
    }

    /// The server that others have found there, else the address.
    fn name_by_others(&self, was: Option<&ServerId>, identity: &Identity) -> ServerId {
        let marks = &identity.marks;
        let find = |is: &dyn Fn(&ServerId, &Watched) -> bool| {
            let identified = |watched: &Watched| watched.marks.identifier.is_some();
            let mut found = self.servers.iter().filter(|(id, watched)| is(id, watched));
            let first = found.clone().find(|(_, watched)| identified(watched));
            first.or_else(|| found.next()).map(|(id, _)| id.clone())
        };
        find(&|_, watched| watched.marks.same_server(marks))
            // It has been started again, and this is the first URL to get an answer.
            .or_else(|| find(&|id, watched| !watched.view.up && Some(id) == was))
            .or_else(|| {
                find(&|_, watched| !watched.view.up && watched.marks.share_an_address(marks))
            })
            .unwrap_or_else(|| ServerId::new(&identity.address))
    }

    /// Adds what a URL told of a server to what is known of it.
    pub(super) fn mark(&mut self, id: &ServerId, marks: &Marks) {
        let watched = self.servers.entry(id.clone()).or_insert_with(|| Watched {
            view: Server::unseen(Facts::default()),
            marks: marks.clone(),
            probe: None,
        });
        let known = &mut watched.marks;
        let restarted =
            marks.started.is_some() && known.started.is_some() && known.started != marks.started
                || marks.identifier.is_some()
                    && known.identifier.is_some()
                    && known.identifier != marks.identifier;
        known.addresses.extend(marks.addresses.iter().cloned());
        if marks.started.is_some() {
            known.started.clone_from(&marks.started);
        }
        if marks.identifier.is_some() {
            known.identifier.clone_from(&marks.identifier);
        }
        if restarted && let Some((_, probe)) = watched.probe.take() {
            // The same server after a restart: its kept connection belongs to the one before.
            probe.abort();
        }
    }

    /// Takes the addresses where one server was found from all others: an address leads to one at a time.
    pub(super) fn keep_addresses(&mut self, id: &ServerId, marks: &Marks) {
        for (other, watched) in &mut self.servers {
            if other != id {
                let addresses = &mut watched.marks.addresses;
                addresses.retain(|address| !marks.addresses.contains(address));
            }
        }
    }

    /// Servers that had only an address for a name and turn out to be this one are it from now on, for every URL.
    pub(super) fn merge_into(&mut self, id: &ServerId) {
        let Some(marks) = self.servers.get(id).map(|watched| watched.marks.clone()) else {
            return;
        };
        let same: Vec<ServerId> = self
            .servers
            .iter()
            .filter(|(other, watched)| {
                *other != id
                    && watched.marks.identifier.is_none()
                    && watched.marks.same_server(&marks)
            })
            .map(|(other, _)| other.clone())
            .collect();
        for other in same {
            let Some(merged) = self.servers.remove(&other) else {
                continue;
            };
            if let Some((_, probe)) = &merged.probe {
                probe.abort();
            }
            if let Some(watched) = self.servers.get_mut(id) {
                watched.marks.addresses.extend(merged.marks.addresses);
                let facts = &mut watched.view.facts;
                for (oid, database) in merged.view.facts.databases {
                    facts.databases.entry(oid).or_insert(database);
                }
                for (name, role) in merged.view.facts.roles {
                    facts.roles.entry(name).or_insert(role);
                }
            }
            for endpoint in self.endpoints.values_mut() {
                if let Endpoint::Ready(place)
                | Endpoint::Unreachable {
                    last: Some(place), ..
                }
                | Endpoint::Refused {
                    last: Some(place), ..
                } = endpoint
                    && place.server == other
                {
                    place.server = id.clone();
                }
            }
        }
    }

    /// Lets a URL that may not name its server be seen once no other is left that may name it: the budget would count
    /// one server as two until then.
    pub(super) fn settle_names(&mut self) {
        // The same server may be reached by another spelling of its host, hardly ever by another port.
        let unknown: BTreeSet<u16> = self
            .endpoints
            .iter()
            .filter(|(_, endpoint)| **endpoint == Endpoint::Unknown)
            .map(|(url, _)| url.port())
            .collect();
        for (url, notes) in &mut self.notes {
            notes.unsettled &= unknown.contains(&url.port());
        }
    }

    /// Names that servers would have by their address, or had, and what they are called now.
    pub(super) fn aliases(&self) -> BTreeMap<ServerId, ServerId> {
        let named = self.notes.iter().filter_map(|(url, notes)| {
            let place = self.endpoints.get(url)?.place()?;
            Some((notes.address.clone()?, place.server.clone()))
        });
        named
            .filter(|(address, server)| address != server && !self.servers.contains_key(address))
            .collect()
    }
}
