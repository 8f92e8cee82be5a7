//! Decides which tenant owns a schema or an address that two tenants want.
//!
//! A running tenant keeps its own. Otherwise the admitted list decides, oldest first; then priority, then name. A
//! tenant refused here claims neither its schema nor its address, so that it blocks no other tenant.

use super::{AdmittedTenant, ServerId};
use brokkr_tenant::{Listen, SchemaName, TenantName};
use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::path::Path;

/// The schema and address that a configuration needs for itself alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SchemaAndAddress {
    /// The server and the database's OID; `None` until the prober has been there.
    pub database: Option<(ServerId, u32)>,
    /// Host, port and database as the URL spells them, compared until `database` is known.
    pub spelled: String,
    /// The schema.
    pub schema: SchemaName,
    /// The address.
    pub listen: Listen,
}

/// The schemas and addresses that a tenant has and wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnershipClaim {
    /// The tenant.
    pub tenant: TenantName,
    /// Order among newcomers: higher first.
    pub priority: i32,
    /// Those of its instances now.
    pub running: Vec<SchemaAndAddress>,
    /// Those that its file asks for; `None` when it wants nothing.
    pub wanted: Option<SchemaAndAddress>,
}

/// The thing that two tenants want.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Contested {
    /// The same schema on the same database.
    Schema(SchemaName),
    /// The same address, as the owner spells it.
    Address(Listen),
}

/// A tenant refused because another owns its schema or address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conflict {
    /// The refused tenant.
    pub tenant: TenantName,
    /// The owner.
    pub owner: TenantName,
    /// The contested schema or address.
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

/// Returns every tenant whose schema or address another tenant owns, with the first conflict found. `order` is the
/// admitted list, oldest first.
pub fn conflicts(
    order: &[AdmittedTenant],
    stakes: &[OwnershipClaim],
) -> BTreeMap<TenantName, Conflict> {
    let place: BTreeMap<&TenantName, usize> = order
        .iter()
        .enumerate()
        .map(|(place, admission)| (&admission.tenant, place))
        .collect();
    let mut owners = Owners::default();
    for stake in stakes {
        for own in &stake.running {
            owners.take(&stake.tenant, own);
        }
    }
    let mut turns: Vec<&OwnershipClaim> = stakes.iter().collect();
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
        let conflict = owners
            .contested(&stake.tenant, wanted)
            .map(|(owner, contested)| Conflict {
                tenant: stake.tenant.clone(),
                owner: owner.clone(),
                contested,
            });
        match conflict {
            Some(conflict) => {
                refused.insert(stake.tenant.clone(), conflict);
            }
            None => owners.take(&stake.tenant, wanted),
        }
    }
    refused
}

/// A tenant and a schema and address that it owns.
type Owned<'s> = (&'s TenantName, &'s SchemaAndAddress);

/// The owners, indexed by schema and by port or path, so that a thousand tenants are not compared pairwise.
#[derive(Default)]
struct Owners<'s> {
    by_schema: BTreeMap<&'s SchemaName, Vec<Owned<'s>>>,
    by_address: BTreeMap<Result<u16, &'s Path>, Vec<Owned<'s>>>,
}

impl<'s> Owners<'s> {
    fn take(&mut self, tenant: &'s TenantName, own: &'s SchemaAndAddress) {
        let by_schema = self.by_schema.entry(&own.schema).or_default();
        by_schema.push((tenant, own));
        let by_address = self.by_address.entry(bucket(&own.listen)).or_default();
        by_address.push((tenant, own));
    }

    fn contested(
        &self,
        tenant: &TenantName,
        wanted: &SchemaAndAddress,
    ) -> Option<(&'s TenantName, Contested)> {
        let by_schema = self.by_schema.get(&wanted.schema).into_iter().flatten();
        let by_address = self.by_address.get(&bucket(&wanted.listen));
        let schema = by_schema
            .filter(|(owner, own)| *owner != tenant && same_database(own, wanted))
            .map(|(owner, own)| (*owner, Contested::Schema(own.schema.clone())));
        let address = by_address
            .into_iter()
            .flatten()
            .filter(|(owner, own)| *owner != tenant && overlap(&own.listen, &wanted.listen))
            .map(|(owner, own)| (*owner, Contested::Address(own.listen.clone())));
        schema.chain(address).next()
    }
}

/// Returns the port or path of an address: addresses that differ in it never conflict.
fn bucket(listen: &Listen) -> Result<u16, &Path> {
    match listen {
        Listen::Tcp(address) => Ok(address.port()),
        Listen::Unix(path) => Err(path),
    }
}

fn same_database(a: &SchemaAndAddress, b: &SchemaAndAddress) -> bool {
    match (&a.database, &b.database) {
        (Some(a), Some(b)) => a == b,
        // One database is not known yet. Different spellings may still be the same database; that is decided after the
        // prober has been there, before the newcomer can start.
        _ => a.spelled == b.spelled,
    }
}

/// Returns true when the two addresses cannot both be bound.
fn overlap(a: &Listen, b: &Listen) -> bool {
    match (a, b) {
        (Listen::Tcp(a), Listen::Tcp(b)) => a.port() == b.port() && same_interface(a, b),
        (Listen::Unix(a), Listen::Unix(b)) => a == b,
        _ => false,
    }
}

/// Returns true when the addresses share an interface; the unspecified address of either family covers them all.
fn same_interface(a: &SocketAddr, b: &SocketAddr) -> bool {
    let (a, b) = (a.ip().to_canonical(), b.ip().to_canonical());
    a == b || a.is_unspecified() || b.is_unspecified()
}
