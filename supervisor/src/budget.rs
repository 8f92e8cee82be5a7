//! The budget: who may run on a server, and who is refused, in numbers an operator can act on.
//!
//! Pure: facts, claims and the admitted list go in, a verdict comes out. No clock, no I/O, no state.
//!
//! A *claim* is what one tenant wants and what its instances still hold; a *place* is where connections
//! land: server, database, role. Limits are nested sums over places: each server, each database across
//! roles, each role across databases. Within one scope a tenant is charged its largest pool there, for its
//! two instances together never hold more than that and the two connections a replacement starts with;
//! in different scopes it is charged in each, so a tenant that moves counts in both until it has moved.
//!
//! Three passes make admission sticky. First every admitted tenant is charged what it was admitted with
//! and what it holds, whether that still fits or not: nobody is evicted. Then, oldest first, what an
//! admitted tenant wants beyond that is granted if it fits. Then newcomers, by priority and name, get what
//! is left; one that does not fit is skipped, and smaller ones behind it are still tried.

mod admitted;
mod conflicts;
mod decide;
mod ledger;
mod shortage;
#[cfg(test)]
mod tests;

pub use admitted::{Admission, format_admitted, parse_admitted};
pub use conflicts::{Conflict, Contested, Seat, Stake, conflicts};
pub use decide::{Decided, Party, decide};
pub use shortage::{Remedy, Scope, Shortage};

use brokkr_tenant::TenantName;
use ledger::Ledger;
use std::collections::BTreeMap;
use std::fmt;

/// Connections a replacement instance starts with, beside the one it replaces.
pub const REPLACEMENT: u32 = 2;
/// The supervisor's own connection to each server.
pub const OWN: u32 = 1;
/// One `brokkr-broker` command run by a person.
pub const COMMAND: u32 = 1;

/// One PostgreSQL server, however many URLs lead to it. The same over its restarts.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServerId(String);

impl ServerId {
    /// An id as the prober gives it: no whitespace, never empty.
    pub fn new(id: &str) -> Self {
        // It is one word of a line of STATE_DIR/admitted.
        let id: String = id.split_whitespace().collect();
        Self(if id.is_empty() { "?".to_owned() } else { id })
    }

    /// The id as `status` shows it.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ServerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// Where connections land.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    /// The server.
    pub server: ServerId,
    /// The database's OID on that server.
    pub database: u32,
    /// The role that logs in.
    pub role: String,
    /// A superuser is exempt from the limits of databases and roles.
    pub superuser: bool,
}

/// What a tenant wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wanted {
    /// It is stopped, refused for another reason, or its file has gone: only what it holds counts.
    Nothing,
    /// To run with a pool.
    Pool {
        /// Most connections, at most.
        connections: u32,
        /// Where its URL leads; `None` until the prober has been there.
        at: Option<Place>,
    },
}

/// What an instance that still runs may hold, or what its backends still do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    /// Where.
    pub place: Place,
    /// Its pool size, in connections.
    pub connections: u32,
}

/// One tenant's claim.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    /// The tenant.
    pub tenant: TenantName,
    /// Order among newcomers: higher first.
    pub priority: i32,
    /// What it wants now.
    pub wanted: Wanted,
    /// What its running and draining instances hold, until they are gone.
    pub held: Vec<Held>,
}

/// A database, as far as its limit goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Database {
    /// Its name.
    pub name: String,
    /// `datconnlimit`; `None` is no limit.
    pub limit: Option<u32>,
}

/// A role, as far as its limit goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Role {
    /// `rolconnlimit`; `None` is no limit.
    pub limit: Option<u32>,
    /// `rolsuper`.
    pub superuser: bool,
}

/// What a server has to give, as read from it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Facts {
    /// `max_connections`.
    pub max_connections: u32,
    /// `superuser_reserved_connections`.
    pub superuser_reserved: u32,
    /// `reserved_connections`, from 16 on; 0 before.
    pub reserved: u32,
    /// Connections seen that are not ours.
    pub foreign: u32,
    /// Databases some tenant's URL names, by OID.
    pub databases: BTreeMap<u32, Database>,
    /// Roles some tenant's URL logs in with, by name.
    pub roles: BTreeMap<String, Role>,
    /// Where the supervisor's own connection lands.
    pub own: Option<Place>,
}

impl Facts {
    /// What tenants may take altogether, with `headroom` connections left for people.
    pub fn capacity(&self, headroom: u32) -> u32 {
        self.max_connections
            .saturating_sub(self.superuser_reserved)
            .saturating_sub(self.reserved)
            .saturating_sub(headroom.max(self.foreign))
    }
}

/// What the budget says of one tenant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// It may run with what it wants.
    Admitted,
    /// It stays admitted with what it had: the old configuration keeps running, the new one is pending.
    Keep(Shortage),
    /// Over budget. It is tried again whenever the budget changes.
    Refused(Shortage),
    /// Undecided: its server has not been seen yet.
    Wait,
    /// It wants nothing.
    Nothing,
}

/// The state of one server's budget after admission, in connections.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Account {
    /// What tenants may take; `None` while the server has not been seen.
    pub capacity: Option<u32>,
    /// The pools of all tenants together, if each got what it asks for; a tenant that asks for nothing counts with what it
    /// has. What a [`Shortage`] says that would fit is computed from the same sum.
    pub pools: u32,
    /// What is given out: pools, replacements, the supervisor's own and one command.
    pub committed: u32,
    /// What is left.
    pub free: u32,
    /// How many tenants may be replaced at once, at least one.
    pub replacements_at_once: u32,
    /// False: there is not even room for one replacement beside the instance it replaces, so it must stop
    /// first.
    pub overlap: bool,
}

/// The verdict for everybody.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Verdict {
    /// By tenant; exactly the tenants that made a claim.
    pub tenants: BTreeMap<TenantName, Decision>,
    /// By server; every server with facts or with a charge.
    pub servers: BTreeMap<ServerId, Account>,
    /// The admitted list to keep, oldest first.
    pub admitted: Vec<Admission>,
}

/// Decides who may run. `order` is the admitted list, oldest first; `facts` knows the servers seen so far;
/// `headroom` is in connections per server.
///
/// Claims of the same tenant are joined: the last one's `wanted` counts, everything held counts.
pub fn admit(
    order: &[Admission],
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

    // First pass: nobody is evicted, so what is already given is charged without being asked for.
    for claim in by_name.values() {
        for held in &claim.held {
            ledger.charge(&claim.tenant, &held.place, held.connections);
        }
        ledger.note_wish(claim);
    }
    for admission in order {
        if let Some(claim) = by_name.get(&admission.tenant)
            && !matches!(claim.wanted, Wanted::Nothing)
        {
            ledger.charge_admission(claim, admission);
        }
    }

    // Second pass: what admitted tenants want beyond that, oldest first.
    for admission in order {
        let Some(claim) = by_name.get(&admission.tenant) else {
            continue;
        };
        let Wanted::Pool { connections, at } = &claim.wanted else {
            continue;
        };
        if verdict.tenants.contains_key(&admission.tenant) {
            continue; // listed twice: the older entry counted
        }
        let (decision, kept) = readmit(&mut ledger, claim, admission, *connections, at.as_ref());
        verdict.tenants.insert(admission.tenant.clone(), decision);
        verdict.admitted.push(kept);
    }

    // Third pass: newcomers.
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
            Wanted::Nothing => Decision::Nothing,
            Wanted::Pool { at: None, .. } => Decision::Wait,
            Wanted::Pool {
                at: Some(place), ..
            } if !facts.contains_key(&place.server) => Decision::Wait,
            Wanted::Pool {
                connections,
                at: Some(place),
            } => match ledger.fits(&claim.tenant, place, *connections) {
                Ok(()) => {
                    ledger.charge(&claim.tenant, place, *connections);
                    verdict.admitted.push(Admission {
                        tenant: claim.tenant.clone(),
                        pool: *connections,
                        server: Some(place.server.clone()),
                        seat: None,
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

/// An admitted tenant's turn: what it has it keeps; what it wants beyond that must fit.
fn readmit(
    ledger: &mut Ledger<'_>,
    claim: &Claim,
    admission: &Admission,
    connections: u32,
    at: Option<&Place>,
) -> (Decision, Admission) {
    let Some(place) = at else {
        // Its server is away, and may be another than the one it was admitted on. It waits with what it was admitted
        // with; more than that is only granted by a server that can be seen.
        let decision = if connections <= admission.pool {
            Decision::Admitted
        } else {
            Decision::Keep(ledger.unseen(claim, admission, connections))
        };
        return (decision, admission.clone());
    };
    // An entry without a server is from a list written by hand; it counts where the URL leads.
    let stays = admission
        .server
        .as_ref()
        .is_none_or(|server| *server == place.server);
    let within =
        stays && connections <= admission.pool && ledger.covered(claim, place, connections);
    let granted = Admission {
        tenant: admission.tenant.clone(),
        pool: connections,
        server: Some(place.server.clone()),
        seat: admission.seat.clone(),
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
