//! Decides which server a URL leads to. A URL that may not read its server's identity is matched with other URLs by
//! start time, which is unique to the microsecond, or by address when it may not read the start time either.

use super::*;

impl Coordinator {
    /// Returns the name of the server that a URL leads to. A server keeps its name over restarts.
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

    /// Returns the identifier, with the address appended for a second server of it (a copied folder, a restored
    /// snapshot).
    fn name_of_identified(
        &self,
        url: &DatabaseUrl,
        was: Option<&ServerId>,
        identifier: &str,
        marks: &ServerMarks,
    ) -> ServerId {
        let same = |watched: &Watched| {
            watched.marks.identifier.is_some() && watched.marks.same_server(marks)
        };
        if let Some((id, _)) = self.servers.iter().find(|(_, watched)| same(watched)) {
            return id.clone();
        }
        let plain = ServerId::new(identifier);
        let addressed = ServerId::new(&format!("{plain}@{}", url.address()));
        let was = was.filter(|id| {
            let watched = self.servers.get(id);
            watched.is_some_and(|w| w.marks.identifier.as_deref() == Some(identifier))
        });
        let mut names = was.into_iter().chain([&plain, &addressed]);
        // A name is free when no server has it, or when its server is down: then this is that server after a restart.
        let free = names.find(|name| {
            self.servers.get(name).is_none_or(|watched| {
                watched.marks.identifier.as_deref() == Some(identifier) && !watched.view.up
            })
        });
        free.unwrap_or(&addressed).clone()
    }

    /// Returns the server that other URLs found at the same place, or else the address.
    fn name_by_others(&self, was: Option<&ServerId>, identity: &Identity) -> ServerId {
        let marks = &identity.marks;
        let find = |is: &dyn Fn(&ServerId, &Watched) -> bool| {
            let identified = |watched: &Watched| watched.marks.identifier.is_some();
            let mut found = self.servers.iter().filter(|(id, watched)| is(id, watched));
            let first = found.clone().find(|(_, watched)| identified(watched));
            first.or_else(|| found.next()).map(|(id, _)| id.clone())
        };
        find(&|_, watched| watched.marks.same_server(marks))
            // The server was restarted, and this is the first URL to get an answer.
            .or_else(|| find(&|id, watched| !watched.view.up && Some(id) == was))
            .or_else(|| {
                find(&|_, watched| !watched.view.up && watched.marks.share_an_address(marks))
            })
            .unwrap_or_else(|| ServerId::new(&identity.address))
    }

    /// Adds the identity that a URL read to the server's known identity.
    pub(super) fn mark(&mut self, id: &ServerId, marks: &ServerMarks) {
        let watched = self.servers.entry(id.clone()).or_insert_with(|| Watched {
            view: ServerView::unseen(Facts::default()),
            marks: marks.clone(),
            roles: BTreeSet::new(),
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
            // The probe's connection belongs to the server before its restart.
            probe.abort();
        }
    }

    /// Removes the addresses of one server from all others, because an address leads to one server at a time.
    pub(super) fn keep_addresses(&mut self, id: &ServerId, marks: &ServerMarks) {
        for (other, watched) in &mut self.servers {
            if other != id {
                let addresses = &mut watched.marks.addresses;
                addresses.retain(|address| !marks.addresses.contains(address));
            }
        }
    }

    /// Merges servers that were named by address and turn out to be this server into it, for every URL.
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

    /// Publishes URLs that may not read their server's identity once no pending URL can read it; until then the budget
    /// could count one server as two.
    pub(super) fn settle_names(&mut self) {
        // Another spelling of the host may lead to the same server, but another port hardly ever does.
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

    /// Maps the address names that servers have had, or would have, to their present names.
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
