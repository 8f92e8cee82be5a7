//! Sums up the connections that each tenant is charged in each scope: server, database, role.

use super::{
    Account, AdmittedTenant, COMMAND, Claim, ConnectionTarget, Facts, OWN, REPLACEMENT, Remedy,
    Scope, ServerId, Shortage, TenantDemand,
};
use brokkr_tenant::TenantName;
use std::collections::{BTreeMap, BTreeSet};

type ByTenant = BTreeMap<TenantName, u32>;

/// The charges of one admission run.
pub(super) struct Ledger<'f> {
    facts: &'f BTreeMap<ServerId, Facts>,
    headroom: u32,
    /// Connections charged to each tenant, by scope: its largest pool there.
    charged: BTreeMap<Key, ByTenant>,
    /// Admissions from the list that are not charged at a known place, by server.
    recorded: BTreeMap<ServerId, ByTenant>,
    /// Connections each tenant asks for, by scope; used only for advice.
    wished: BTreeMap<Key, ByTenant>,
    /// Tenants that each database's limit applies to.
    bound: BTreeMap<Key, BTreeSet<TenantName>>,
}

/// Key of a scope.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Key {
    Server(ServerId),
    Database(ServerId, u32),
    Role(ServerId, String),
}

impl Key {
    fn all(place: &ConnectionTarget) -> [Key; 3] {
        [
            Key::Server(place.server.clone()),
            Key::Database(place.server.clone(), place.database),
            Key::Role(place.server.clone(), place.role.clone()),
        ]
    }

    fn server(&self) -> &ServerId {
        match self {
            Key::Server(server) | Key::Database(server, _) | Key::Role(server, _) => server,
        }
    }
}

impl<'f> Ledger<'f> {
    pub(super) fn new(facts: &'f BTreeMap<ServerId, Facts>, headroom: u32) -> Self {
        Self {
            facts,
            headroom,
            charged: BTreeMap::new(),
            recorded: BTreeMap::new(),
            wished: BTreeMap::new(),
            bound: BTreeMap::new(),
        }
    }

    /// Charges a tenant in every scope of a place, regardless of the limits.
    pub(super) fn charge(
        &mut self,
        tenant: &TenantName,
        place: &ConnectionTarget,
        connections: u32,
    ) {
        for key in Key::all(place) {
            if let Key::Role(server, role) = &key
                && place.superuser
                && !self.role_is_bound(server, role)
            {
                continue;
            }
            if matches!(key, Key::Database(..)) && !place.superuser {
                self.bound
                    .entry(key.clone())
                    .or_default()
                    .insert(tenant.clone());
            }
            raise(self.charged.entry(key).or_default(), tenant, connections);
        }
        // This charge covers the tenant's recorded admission on the same server.
        if let Some(recorded) = self.recorded.get_mut(&place.server)
            && recorded
                .get(tenant)
                .is_some_and(|pool| *pool <= connections)
        {
            recorded.remove(tenant);
        }
    }

    /// Charges an admitted tenant its admission, or less if it now asks for less and will surely get it.
    pub(super) fn charge_admission(&mut self, claim: &Claim, admission: &AdmittedTenant) {
        let TenantDemand::Pool { connections, at } = &claim.wanted else {
            return;
        };
        if let Some(place) = at
            && admission.server.as_ref().is_none_or(|server| *server == place.server)
            // The list has neither database nor role: running instances show them; otherwise they are assumed
            // unchanged.
            && (claim.held.is_empty() || claim.held.iter().any(|held| held.place == *place))
        {
            self.charge(&claim.tenant, place, admission.pool.min(*connections));
        } else if let Some(server) = &admission.server {
            // A tenant that moves, or may move, keeps its whole admission on the old server.
            raise(
                self.recorded.entry(server.clone()).or_default(),
                &claim.tenant,
                admission.pool,
            );
        }
    }

    /// Notes the connections a tenant asks for, for the advice in a refusal.
    pub(super) fn note_wish(&mut self, claim: &Claim) {
        if let TenantDemand::Pool {
            connections,
            at: Some(place),
        } = &claim.wanted
        {
            for key in Key::all(place) {
                raise(
                    self.wished.entry(key).or_default(),
                    &claim.tenant,
                    *connections,
                );
            }
        }
    }

    /// Returns true when the tenant is charged this much already, in every scope of the place.
    pub(super) fn covered(
        &self,
        claim: &Claim,
        place: &ConnectionTarget,
        connections: u32,
    ) -> bool {
        Key::all(place).iter().all(|key| {
            (place.superuser && !matches!(key, Key::Server(_)))
                || self
                    .charged
                    .get(key)
                    .and_then(|c| c.get(&claim.tenant))
                    .is_some_and(|c| *c >= connections)
        })
    }

    /// Checks that the tenant's charge can be raised to `connections` in every scope of the place.
    pub(super) fn fits(
        &self,
        tenant: &TenantName,
        place: &ConnectionTarget,
        connections: u32,
    ) -> Result<(), Shortage> {
        if !self.facts.contains_key(&place.server) {
            let server = Key::Server(place.server.clone());
            return Err(self.shortage(&server, tenant, connections, &[]));
        }
        let bound: Vec<Key> = Key::all(place)
            .into_iter()
            .filter(|key| self.limit(key).is_some() && !self.is_exempt(key, tenant, place))
            .collect();
        for key in &bound {
            let Some(limit) = self.limit(key) else {
                continue;
            };
            let others = self.sum_of_others(key, tenant);
            let own = self.charge_of(key, tenant).max(connections);
            if others.saturating_add(own).saturating_add(self.extra(key)) > limit {
                return Err(self.shortage(key, tenant, connections, &bound));
            }
        }
        Ok(())
    }

    /// Returns true when the scope's limit does not apply to the tenant, because its role is a superuser.
    fn is_exempt(&self, key: &Key, tenant: &TenantName, place: &ConnectionTarget) -> bool {
        place.superuser
            && match key {
                Key::Server(_) => false,
                Key::Role(..) => true,
                // PostgreSQL exempts a superuser from the database's limit but counts its connections against other
                // roles. So it is exempt only if no other tenant is bound by the limit.
                Key::Database(..) => self
                    .bound
                    .get(key)
                    .is_none_or(|b| b.iter().all(|other| other == tenant)),
            }
    }

    /// Returns the shortage of an admitted tenant that wants more from a server that is down.
    pub(super) fn unseen(&self, claim: &Claim, admission: &AdmittedTenant, needs: u32) -> Shortage {
        let server = admission
            .server
            .clone()
            .unwrap_or_else(|| ServerId::new("?"));
        let server = Key::Server(server);
        let bound = std::slice::from_ref(&server);
        self.shortage(&server, &claim.tenant, needs, bound)
    }

    /// Returns the accounts of every server with facts or a charge.
    pub(super) fn accounts(&self) -> BTreeMap<ServerId, Account> {
        let charged = self.charged.keys().map(Key::server);
        let servers: BTreeSet<&ServerId> = self
            .facts
            .keys()
            .chain(charged)
            .chain(self.recorded.keys())
            .collect();
        servers
            .into_iter()
            .map(|server| (server.clone(), self.account(server)))
            .collect()
    }

    fn account(&self, server: &ServerId) -> Account {
        let key = Key::Server(server.clone());
        let committed = self.sum(&key).saturating_add(self.extra(&key));
        let capacity = self.limit(&key);
        // Replacements need room in every scope they connect in.
        let rooms = self
            .charged
            .keys()
            .filter(|key| key.server() == server)
            .chain([&key])
            .filter_map(|key| {
                let limit = self.limit(key)?;
                Some(limit.checked_sub(self.sum(key).saturating_add(self.extra(key))))
            });
        let overlap = rooms.clone().all(|room| room.is_some());
        let more = rooms.flatten().min().unwrap_or(0) / REPLACEMENT;
        let pools = self.demand(&key);
        Account {
            capacity,
            pools: pools.values().copied().fold(0, u32::saturating_add),
            committed,
            free: capacity.map_or(0, |capacity| capacity.saturating_sub(committed)),
            replacements_at_once: if overlap { 1 + more } else { 1 },
            overlap,
        }
    }

    /// Returns the connections that a scope has to give; `None` without a known limit.
    fn limit(&self, key: &Key) -> Option<u32> {
        let facts = self.facts.get(key.server())?;
        match key {
            Key::Server(_) => Some(facts.capacity(self.headroom)),
            Key::Database(_, oid) => facts.databases.get(oid)?.limit,
            Key::Role(_, role) => facts.roles.get(role)?.limit,
        }
    }

    /// Returns the connections kept beside the pools: a replacement, a command and, in its own scopes, the supervisor's
    /// connection.
    fn extra(&self, key: &Key) -> u32 {
        let facts = self.facts.get(key.server());
        let own = facts.and_then(|facts| facts.own.as_ref());
        let ours = match key {
            Key::Server(_) => facts.map_or(OWN, Facts::own_connections),
            Key::Database(_, oid) if own.is_some_and(|own| own.database == *oid) => OWN,
            Key::Role(_, role) if own.is_some_and(|own| own.role == *role && !own.superuser) => OWN,
            Key::Database(..) | Key::Role(..) => 0,
        };
        REPLACEMENT + COMMAND + ours
    }

    fn role_is_bound(&self, server: &ServerId, role: &str) -> bool {
        self.facts
            .get(server)
            .and_then(|f| f.roles.get(role))
            .is_some_and(|r| !r.superuser)
    }

    fn charge_of(&self, key: &Key, tenant: &TenantName) -> u32 {
        let charges = self.charges(key).filter_map(|charges| charges.get(tenant));
        charges.copied().max().unwrap_or(0)
    }

    /// Returns the charges and the recorded admissions in a scope.
    fn charges(&self, key: &Key) -> impl Iterator<Item = &ByTenant> {
        let recorded = match key {
            Key::Server(server) => self.recorded.get(server),
            _ => None,
        };
        self.charged.get(key).into_iter().chain(recorded)
    }

    fn tenants(&self, key: &Key) -> BTreeSet<&TenantName> {
        self.charges(key).flat_map(BTreeMap::keys).collect()
    }

    fn sum(&self, key: &Key) -> u32 {
        let tenants = self.tenants(key).into_iter();
        tenants
            .map(|tenant| self.charge_of(key, tenant))
            .fold(0, u32::saturating_add)
    }

    fn sum_of_others(&self, key: &Key, tenant: &TenantName) -> u32 {
        self.sum(key).saturating_sub(self.charge_of(key, tenant))
    }

    /// Returns each tenant's wanted pool in a scope, or its charge if it asks for nothing there.
    fn demand(&self, key: &Key) -> ByTenant {
        let mut pools = self.wished.get(key).cloned().unwrap_or_default();
        for other in self.tenants(key) {
            pools
                .entry(other.clone())
                .or_insert_with(|| self.charge_of(key, other));
        }
        pools
    }

    fn scope(&self, key: &Key) -> Scope {
        let facts = self.facts.get(key.server());
        match key {
            Key::Server(server) => Scope::Server(server.clone()),
            Key::Database(server, oid) => Scope::Database {
                server: server.clone(),
                name: facts
                    .and_then(|f| f.databases.get(oid))
                    .map_or_else(|| format!("with OID {oid}"), |d| d.name.clone()),
            },
            Key::Role(server, role) => Scope::Role {
                server: server.clone(),
                role: role.clone(),
            },
        }
    }

    /// Computes a remedy with which every tenant gets its wanted pool in one scope; `None` without a limit.
    fn remedy(&self, key: &Key, tenant: &TenantName, needs: u32) -> Option<Remedy> {
        let capacity = self.limit(key)?;
        let extra = self.extra(key);
        let mut pools = self.demand(key);
        raise(&mut pools, tenant, needs);
        let all = pools
            .values()
            .copied()
            .fold(0, u32::saturating_add)
            .saturating_add(extra);
        // Connections that are lost before tenants get any stay lost when the limit is raised.
        let lost = match (key, self.facts.get(key.server())) {
            (Key::Server(_), Some(facts)) => facts
                .superuser_reserved
                .saturating_add(facts.reserved)
                .saturating_add(self.headroom.max(facts.foreign)),
            _ => 0,
        };
        Some(Remedy {
            scope: self.scope(key),
            short: all > capacity,
            pool: super::shortage::pool_that_fits(
                &pools.values().copied().collect::<Vec<_>>(),
                capacity.saturating_sub(extra),
            ),
            limit: all.saturating_add(lost),
        })
    }

    /// Returns the shortage in the scope `key`, with remedies for all scopes of `bound`.
    fn shortage(&self, key: &Key, tenant: &TenantName, needs: u32, bound: &[Key]) -> Shortage {
        let scope = self.scope(key);
        let Some(capacity) = self.limit(key) else {
            return Shortage::unseen(scope, needs);
        };
        let extra = self.extra(key);
        let limit = match (key, self.facts.get(key.server())) {
            (Key::Server(_), Some(facts)) => facts.max_connections,
            _ => capacity,
        };
        let taken = self.sum_of_others(key, tenant).saturating_add(extra);
        let remedies = bound
            .iter()
            .filter_map(|key| self.remedy(key, tenant, needs));
        Shortage {
            scope,
            needs,
            has: self.charge_of(key, tenant),
            extra,
            capacity: Some(capacity),
            free: capacity.saturating_sub(taken),
            limit,
            remedies: remedies.filter(|remedy| remedy.short).collect(),
        }
    }
}

fn raise(map: &mut ByTenant, tenant: &TenantName, connections: u32) {
    let entry = map.entry(tenant.clone()).or_insert(0);
    *entry = (*entry).max(connections);
}
