//! Decides, from files, instances and servers, which configuration each tenant runs. Pure: changes nothing.

use super::TenantSettings;
use super::tenant_entry::TenantEntry;
use crate::budget::{
    AdmittedTenant, Claim, Conflict, Contested, Decided, Decision, HeldConnections, OwnershipClaim,
    TenantClaim, TenantDemand,
};
use crate::servers::ServersView;
use brokkr_tenant::{PoolSize, TenantName};
use std::collections::BTreeSet;
use std::sync::Arc;

/// The decision for one tenant.
#[derive(Debug, Clone)]
pub(super) enum Admission<C> {
    /// Run this configuration. The text says why the tenant file cannot be followed, if so.
    Run(Arc<C>, Option<String>),
    /// Do not run, for this reason.
    Refused(String),
    /// Do not run, because the operator or the file says so.
    Stopped(String),
    /// The tenant file was removed.
    Gone,
}

/// Returns the tenants of the admitted list.
pub(super) fn names(admitted: &[AdmittedTenant]) -> BTreeSet<&TenantName> {
    admitted.iter().map(|a| &a.tenant).collect()
}

/// Returns the configuration that the tenant keeps. A tenant that still waits for its server to be seen is not `listed`
/// as admitted yet, so it has none.
fn meant<C: TenantSettings>(entry: &TenantEntry<C>, listed: bool) -> Option<&Arc<C>> {
    entry.meant().filter(|_| listed)
}

/// Returns the decision for one tenant. `listed` holds the tenants that were admitted before.
pub(super) fn admission<C: TenantSettings>(
    name: &TenantName,
    entry: &TenantEntry<C>,
    listed: &BTreeSet<&TenantName>,
    decided: &Decided,
    view: &ServersView,
) -> Admission<C> {
    let meant = meant(entry, listed.contains(name));
    let (config, pending) = match candidate(entry, meant, decided.conflicts.get(name)) {
        Ok(candidate) => candidate,
        Err(admission) => return admission,
    };
    let at_pool = |text: &str| config.at("database.pool_size", text);
    match decided.verdict.tenants.get(name) {
        Some(Decision::Refused(shortage)) => {
            Admission::Refused(at_pool(&format!("over budget: tenant {name} {shortage}")))
        }
        Some(Decision::Keep(shortage)) => {
            let why = at_pool(&format!("over budget: tenant {name} {shortage}"));
            match kept(name, &config, meant, &decided.verdict.admitted, view) {
                Some(kept) => Admission::Run(kept, Some(why)),
                None => Admission::Refused(why),
            }
        }
        Some(Decision::Nothing) | None => Admission::Refused("not judged yet".into()),
        Some(Decision::Admitted | Decision::Wait) => Admission::Run(config, pending),
    }
}

/// Returns the configuration to judge against the budget, or the ruling if there is none.
fn candidate<C: TenantSettings>(
    entry: &TenantEntry<C>,
    meant: Option<&Arc<C>>,
    conflict: Option<&Conflict>,
) -> Result<(Arc<C>, Option<String>), Admission<C>> {
    let Some(file) = &entry.file else {
        return Err(Admission::Gone);
    };
    if let Ok(config) = file
        && !config.enabled()
    {
        return Err(Admission::Stopped("enabled = false in its file".into()));
    }
    if entry.stopped {
        return Err(Admission::Stopped("by the operator".into()));
    }
    // A problem in its file never stops a tenant that already runs.
    let (problem, running) = match (file, conflict) {
        (Ok(config), None) => return Ok((config.clone(), None)),
        (Err(problem), _) => (problem.brief.clone(), meant),
        (Ok(config), Some(conflict)) => {
            let key = match conflict.contested {
                Contested::Schema(_) => "database.schema",
                Contested::Address(_) => "http.listen",
            };
            (config.at(key, &conflict.to_string()), meant)
        }
    };
    match running {
        Some(running) => Ok((running.clone(), Some(problem))),
        None => Err(Admission::Refused(problem)),
    }
}

/// Returns the configuration that a tenant keeps when the budget refuses its file: the current one or, if the tenant
/// was admitted before this supervisor began, the file's with the admitted pool. `None` if that configuration is on
/// another server than the tenant was admitted on, because its configuration for that server is unknown.
fn kept<C: TenantSettings>(
    name: &TenantName,
    file: &Arc<C>,
    meant: Option<&Arc<C>>,
    admitted: &[AdmittedTenant],
    view: &ServersView,
) -> Option<Arc<C>> {
    let admission = admitted.iter().find(|a| a.tenant == *name)?;
    let elsewhere = match (meant.unwrap_or(file).place(view), &admission.server) {
        (Some(place), Some(server)) => place.server != *server,
        _ => false,
    };
    if elsewhere {
        return None;
    }
    Some(match (meant, PoolSize::new(admission.pool)) {
        (Some(meant), _) => meant.clone(),
        (None, Ok(pool)) => Arc::new(file.with_pool(pool)),
        // A list edited by hand may have no valid pool size: use the file's.
        (None, Err(_)) => file.clone(),
    })
}

/// Returns the tenant's claim. A tenant is `listed` when it was admitted before.
pub(super) fn tenant_claim<C: TenantSettings>(
    name: &TenantName,
    entry: &TenantEntry<C>,
    listed: bool,
    view: &ServersView,
) -> TenantClaim {
    let meant = meant(entry, listed);
    let priority = entry.asked().map_or(0, |config| config.priority());
    let demand = |config: Option<&Arc<C>>| config.map_or(TenantDemand::Nothing, |c| c.demand(view));
    let asks = candidate(entry, meant, None).ok().map(|(config, _)| config);
    let asks = asks.filter(|_| !entry.out_of_descriptors && !entry.lacks_uid());
    let instances = entry.life.instances();
    let running: Vec<(u32, &Arc<C>)> = instances
        .filter_map(|i| Some((entry.life.charge(i), entry.revisions.get(&i.revision)?)))
        .collect();
    TenantClaim {
        stake: OwnershipClaim {
            tenant: name.clone(),
            priority,
            running: running
                .iter()
                .map(|(_, config)| config.schema_and_address(view))
                .collect(),
            wanted: asks.as_ref().map(|config| config.schema_and_address(view)),
        },
        claim: Claim {
            tenant: name.clone(),
            priority,
            wanted: demand(asks.as_ref()),
            held: running
                .iter()
                .filter_map(|(pool, config)| {
                    Some(HeldConnections {
                        place: config.place(view)?,
                        connections: *pool,
                    })
                })
                .collect(),
        },
        fallback: demand(meant),
    }
}

/// Returns the claim of an admitted tenant without the instances that hold the very pool, schema and address that the
/// tenant is admitted with. They change no decision, because the tenant is charged that pool and owns that place anyway.
pub(super) fn newly_held(claim: &TenantClaim, admitted: &AdmittedTenant) -> TenantClaim {
    let mut claim = claim.clone();
    let TenantDemand::Pool {
        connections,
        at: Some(place),
    } = &claim.claim.wanted
    else {
        return claim;
    };
    let wanted = claim.stake.wanted.as_ref();
    let granted = admitted.pool == *connections
        && admitted.server.as_ref() == Some(&place.server)
        && admitted.schema_and_address.as_ref() == wanted;
    let mut held = claim.claim.held.iter();
    if granted
        && held.all(|held| held.place == *place && held.connections <= *connections)
        && claim
            .stake
            .running
            .iter()
            .all(|running| Some(running) == wanted)
    {
        claim.claim.held.clear();
        claim.stake.running.clear();
    }
    claim
}
