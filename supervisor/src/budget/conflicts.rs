//! Who owns a schema or an address that two tenants want.
//!
//! What runs keeps what it has; then the admitted list decides, oldest first; then priority, then name. A
//! tenant that is refused here claims neither its schema nor its address, so it stands in nobody's way.

use super::{Admission, ServerId};
use brokkr_tenant::{Listen, SchemaName, TenantName};
use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;

/// What one configuration of a tenant takes exclusively.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seat {
    /// Server and database OID its URL leads to; `None` until the prober has been there.
    pub database: Option<(ServerId, u32)>,
    /// Host, port and database as its URL spells them: all there is to compare until then.
    pub spelled: String,
    /// Its schema.
    pub schema: SchemaName,
    /// Its address.
    pub listen: Listen,
}

/// One tenant at stake.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stake {
    /// The tenant.
    pub tenant: TenantName,
    /// Order among newcomers: higher first.
    pub priority: i32,
    /// What its instances have now.
    pub running: Vec<Seat>,
    /// What its file wants; `None` when it wants nothing.
    pub wanted: Option<Seat>,
}

/// What is contested.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Contested {
    /// The same schema on the same database.
    Schema(SchemaName),
    /// The same address: this one, as the owner has it.
    Address(Listen),
}

/// A tenant refused because another has what it wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conflict {
    /// The refused tenant.
    pub tenant: TenantName,
    /// The tenant that keeps it.
    pub owner: TenantName,
    /// What.
    pub contested: Contested,
}

impl fmt::Display for Conflict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            tenant,
            owner,
            contested,
        } = self;
        match contested {
            Contested::Schema(schema) => write!(
                f,
                "schema {} is taken: tenant {owner} has it on the same database, tenant {tenant} needs one of its own",
                schema.as_str()
            ),
            Contested::Address(listen) => write!(
                f,
                "address is taken: tenant {owner} has {listen}, tenant {tenant} needs one of its own"
            ),
        }
    }
}

/// Every tenant whose wish is somebody else's already, with the first thing contested. `order` is the
/// admitted list, oldest first.
pub fn conflicts(order: &[Admission], stakes: &[Stake]) -> BTreeMap<TenantName, Conflict> {
    let place: BTreeMap<&TenantName, usize> = order
        .iter()
        .enumerate()
        .map(|(place, admission)| (&admission.tenant, place))
        .collect();
    let mut owned: Vec<(&TenantName, &Seat)> = stakes
        .iter()
        .flat_map(|stake| stake.running.iter().map(move |seat| (&stake.tenant, seat)))
        .collect();
    let mut turns: Vec<&Stake> = stakes.iter().collect();
    turns.sort_by_key(|stake| {
        (
            stake.running.is_empty(),
            place.get(&stake.tenant).copied().unwrap_or(usize::MAX),
            std::cmp::Reverse(stake.priority),
            &stake.tenant,
        )
    });
    let mut refused = BTreeMap::new();
    for stake in turns {
        let Some(wanted) = &stake.wanted else {
            continue;
        };
        let conflict = owned
            .iter()
            .filter(|(owner, _)| **owner != stake.tenant)
            .find_map(|(owner, seat)| {
                Some(Conflict {
                    tenant: stake.tenant.clone(),
                    owner: (*owner).clone(),
                    contested: contested(seat, wanted)?,
                })
            });
        match conflict {
            Some(conflict) => {
                refused.insert(stake.tenant.clone(), conflict);
            }
            None => owned.push((&stake.tenant, wanted)),
        }
    }
    refused
}

fn contested(owner: &Seat, wanted: &Seat) -> Option<Contested> {
    if owner.schema == wanted.schema && same_database(owner, wanted) {
        return Some(Contested::Schema(owner.schema.clone()));
    }
    overlap(&owner.listen, &wanted.listen).then(|| Contested::Address(owner.listen.clone()))
}

fn same_database(a: &Seat, b: &Seat) -> bool {
    match (&a.database, &b.database) {
        (Some(a), Some(b)) => a == b,
        // One of them has not been seen. Spelled alike they are the same; spelled differently they may be
        // yet, which is decided when the prober has been there, before the newcomer can start.
        _ => a.spelled == b.spelled,
    }
}

/// Whether two addresses cannot both be bound.
fn overlap(a: &Listen, b: &Listen) -> bool {
    match (a, b) {
        (Listen::Tcp(a), Listen::Tcp(b)) => a.port() == b.port() && same_interface(a, b),
        (Listen::Unix(a), Listen::Unix(b)) => a == b,
        _ => false,
    }
}

/// The unspecified address of either family takes the port on every address.
fn same_interface(a: &SocketAddr, b: &SocketAddr) -> bool {
    let (a, b) = (a.ip().to_canonical(), b.ip().to_canonical());
    a == b || a.is_unspecified() || b.is_unspecified()
}
