//! The budget: decides which tenants may run on a server, and gives the reasons in numbers for the operator.
//!
//! Pure functions: facts, claims and the admitted list go in, a verdict comes out. No clock, no I/O, no state.
//!
//! A *claim* holds the pool that a tenant wants and the connections that its instances still hold. A *place* is the
//! target of connections: server, database, role. Limits are nested sums over places: each server, each database across
//! roles, each role across databases. Within one scope a tenant is charged its largest pool there, because its two
//! instances together never hold more than that pool and the two connections that a replacement starts with. In
//! different scopes a tenant is charged in each, so a tenant that moves to another server counts in both until the move
//! is complete.
//!
//! Admission takes three passes. First every admitted tenant is charged its admitted pool and the connections it holds,
//! even where that no longer fits: no tenant is evicted. Then, oldest first, larger pools of admitted tenants are
//! granted if they fit. Then new tenants get the remaining connections, by priority and name. A tenant that does not
//! fit is skipped, and smaller tenants behind it are still tried.

mod admitted;
mod conflicts;
mod decide;
mod ledger;
mod shortage;
#[cfg(test)]
mod tests;

pub use admitted::{AdmittedTenant, format_admitted, parse_admitted};
pub use conflicts::{Conflict, Contested, OwnershipClaim, SchemaAndAddress, conflicts};
pub use decide::{Decided, TenantClaim, decide};
pub use shortage::{Remedy, Scope, Shortage};

use brokkr_tenant::TenantName;
use ledger::Ledger;
use std::collections::BTreeMap;
use std::fmt;

/// The connections that a replacement instance starts with, beside those of the instance it replaces.
pub const REPLACEMENT: u32 = 2;
/// The supervisor's own connection to each server.
pub const OWN: u32 = 1;
/// The supervisor's further connections to a server on which it provisions roles: one to provision, two of the sweeper.
pub const PROVISION: u32 = 3;
/// The connection of one `brokkr-broker` command run by a person.
pub const COMMAND: u32 = 1;

/// The identity of one PostgreSQL server, the same for all URLs that lead to it, and over its restarts.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServerId(String);

impl ServerId {
    /// Makes an id from the prober's text: without whitespace, never empty.
    pub fn new(id: &str) -> Self {
        // The id is one word in a line of STATE_DIR/admitted.
        let id: String = id.split_whitespace().collect();
        Self(if id.is_empty() { "?".to_owned() } else { id })
    }

    /// Returns the id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ServerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// The target of connections.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnectionTarget {
    /// The server.
    pub server: ServerId,
    /// The database's OID on that server.
    pub database: u32,
    /// The role that logs in.
    pub role: String,
    /// True for a superuser, who is exempt from the limits of databases and roles.
    pub superuser: bool,
}

/// The connections that a tenant wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TenantDemand {
    /// None: the tenant is stopped, refused for another reason, or without a file. Only the connections it holds count.
    Nothing,
    /// A pool to run with.
    Pool {
        /// The pool size, in connections.
        connections: u32,
        /// The place that its URL leads to; `None` until the prober has been there.
        at: Option<ConnectionTarget>,
    },
}

/// The connections that a running instance may hold, or that the backends of an ended instance still use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeldConnections {
    /// The place of the connections.
    pub place: ConnectionTarget,
    /// The pool size, in connections.
    pub connections: u32,
}

/// One tenant's claim.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    /// The tenant.
    pub tenant: TenantName,
    /// The order among new tenants: higher first.
    pub priority: i32,
    /// The connections that the tenant wants now.
    pub wanted: TenantDemand,
    /// The connections of its running and draining instances, until they end.
    pub held: Vec<HeldConnections>,
}

/// A database and its limit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Database {
    /// The name of the database.
    pub name: String,
    /// `datconnlimit`; `None` is no limit.
    pub limit: Option<u32>,
}

/// A role and its limit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Role {
    /// `rolconnlimit`; `None` is no limit.
    pub limit: Option<u32>,
    /// `rolsuper`.
    pub superuser: bool,
}

/// The limits of a server, as read from it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Facts {
    /// `max_connections`.
    pub max_connections: u32,
    /// `superuser_reserved_connections`.
    pub superuser_reserved: u32,
    /// `reserved_connections`, from PostgreSQL 16 on; 0 before.
    pub reserved: u32,
    /// The number of connections of other programs.
    pub foreign: u32,
    /// The databases in tenants' URLs, by OID.
    pub databases: BTreeMap<u32, Database>,
    /// The roles in tenants' URLs, by name.
    pub roles: BTreeMap<String, Role>,
    /// The place of the supervisor's own connection.
    pub own: Option<ConnectionTarget>,
    /// True when the supervisor provisions roles there.
    pub provisions: bool,
}

impl Facts {
    /// Returns the number of the supervisor's own connections.
    pub fn own_connections(&self) -> u32 {
        OWN + if self.provisions { PROVISION } else { 0 }
    }
}

impl Facts {
    /// Returns the connections for all tenants together, less `headroom` connections for people.
    pub fn capacity(&self, headroom: u32) -> u32 {
        self.max_connections
            .saturating_sub(self.superuser_reserved)
            .saturating_sub(self.reserved)
            .saturating_sub(headroom.max(self.foreign))
    }
}

/// The budget's decision on one tenant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// The tenant may run with the pool it wants.
    Admitted,
    /// The tenant keeps its admitted pool: the old configuration runs on, and the new configuration is pending.
    Keep(Shortage),
    /// The tenant is over budget. Each change of the budget tries it again.
    Refused(Shortage),
    /// Undecided, because the tenant's server has not been seen yet.
    Wait,
    /// The tenant wants no connections.
    Nothing,
}

/// The state of one server's budget after admission, in connections.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Account {
    /// The connections for all tenants together; `None` until the server has been seen.
    pub capacity: Option<u32>,
    /// The sum of all tenants' wanted pools; a tenant that wants none counts with the connections it holds. The
    /// suggestions in a [`Shortage`] use the same sum.
    pub pools: u32,
    /// The committed connections: pools, replacements, the supervisor's own and one command.
    pub committed: u32,
    /// The connections that are free.
    pub free: u32,
    /// The number of tenants that may be replaced at once, at least one.
    pub replacements_at_once: u32,
    /// False when a replacement does not fit beside the instance it replaces, so that the old instance must stop first.
    pub overlap: bool,
}

/// The verdict on all tenants.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Verdict {
    /// The decision for each tenant that made a claim.
    pub tenants: BTreeMap<TenantName, Decision>,
    /// The account of each server with facts or with a charge.
    pub servers: BTreeMap<ServerId, Account>,
    /// The new admitted list, oldest first.
    pub admitted: Vec<AdmittedTenant>,
}

/// Decides which tenants may run. `order` is the admitted list, oldest first; `facts` holds the servers seen so far;
/// `headroom` is in connections per server.
///
/// Claims of the same tenant are joined: the last claim's `wanted` counts, and the connections held by all.
pub fn admit(
    order: &[AdmittedTenant],
    claims: &[Claim],
    facts: &BTreeMap<ServerId, Facts>,
    headroom: u32,
) -> Verdict {
    let mut by_name: BTreeMap<TenantName, Claim> = BTreeMap::new();
    for claim in claims {
        let held = by_name
            .remove(&claim.tenant)
            .map(|c| c.held)
            .unwrap_or_default();
        let mut claim = claim.clone();
        claim.held.extend(held);
        by_name.insert(claim.tenant.clone(), claim);
    }

    let mut ledger = Ledger::new(facts, headroom);
    let mut verdict = Verdict::default();

    // First pass: charges existing grants without a check, because no tenant is evicted.
    for claim in by_name.values() {
        for held in &claim.held {
            ledger.charge(&claim.tenant, &held.place, held.connections);
        }
        ledger.note_wish(claim);
    }
    for admission in order {
        if let Some(claim) = by_name.get(&admission.tenant)
            && !matches!(claim.wanted, TenantDemand::Nothing)
        {
            ledger.charge_admission(claim, admission);
        }
    }

    // Second pass: larger pools of admitted tenants, oldest first.
    for admission in order {
        let Some(claim) = by_name.get(&admission.tenant) else {
            continue;
        };
        let TenantDemand::Pool { connections, at } = &claim.wanted else {
            continue;
        };
        if verdict.tenants.contains_key(&admission.tenant) {
            continue; // listed twice: the older entry counts
        }
        let (decision, kept) = readmit(&mut ledger, claim, admission, *connections, at.as_ref());
        verdict.tenants.insert(admission.tenant.clone(), decision);
        verdict.admitted.push(kept);
    }

    // Third pass: new tenants.
    let mut newcomers: Vec<&Claim> = by_name
        .values()
        .filter(|claim| !verdict.tenants.contains_key(&claim.tenant))
        .collect();
    newcomers.sort_by(|a, b| {
        b.priority
            .cmp(&a.priority)
            .then_with(|| a.tenant.cmp(&b.tenant))
    });
    for claim in newcomers {
        let decision = match &claim.wanted {
            TenantDemand::Nothing => Decision::Nothing,
            TenantDemand::Pool { at: None, .. } => Decision::Wait,
            TenantDemand::Pool {
                at: Some(place), ..
            } if !facts.contains_key(&place.server) => Decision::Wait,
            TenantDemand::Pool {
                connections,
                at: Some(place),
            } => match ledger.fits(&claim.tenant, place, *connections) {
                Ok(()) => {
                    ledger.charge(&claim.tenant, place, *connections);
                    verdict.admitted.push(AdmittedTenant {
                        tenant: claim.tenant.clone(),
                        pool: *connections,
                        server: Some(place.server.clone()),
                        schema_and_address: None,
                    });
                    Decision::Admitted
                }
                Err(shortage) => Decision::Refused(shortage),
            },
        };
        verdict.tenants.insert(claim.tenant.clone(), decision);
    }

    verdict.servers = ledger.accounts();
    verdict
}

/// Decides on an admitted tenant: it keeps its pool, and a larger pool must fit.
fn readmit(
    ledger: &mut Ledger<'_>,
    claim: &Claim,
    admission: &AdmittedTenant,
    connections: u32,
    at: Option<&ConnectionTarget>,
) -> (Decision, AdmittedTenant) {
    let Some(place) = at else {
        // The server is away, and may differ from the server of the admission. The tenant keeps its admitted pool; a
        // larger pool needs a server that is seen.
        let decision = if connections <= admission.pool {
            Decision::Admitted
        } else {
            Decision::Keep(ledger.unseen(claim, admission, connections))
        };
        return (decision, admission.clone());
    };
    // An entry without a server comes from a list written by hand, and counts at the place of the URL.
    let stays = admission
        .server
        .as_ref()
        .is_none_or(|server| *server == place.server);
    let within =
        stays && connections <= admission.pool && ledger.covered(claim, place, connections);
    let granted = AdmittedTenant {
        tenant: admission.tenant.clone(),
        pool: connections,
        server: Some(place.server.clone()),
        schema_and_address: admission.schema_and_address.clone(),
    };
    if within {
        return (Decision::Admitted, granted);
    }
    match ledger.fits(&claim.tenant, place, connections) {
        Ok(()) => {
            ledger.charge(&claim.tenant, place, connections);
            (Decision::Admitted, granted)
        }
        Err(shortage) => (Decision::Keep(shortage), admission.clone()),
    }
}
