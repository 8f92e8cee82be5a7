//! Decides, from files, instances and servers, which configuration each tenant runs. Pure: changes nothing.

use super::tenant_entry::TenantEntry;
use crate::budget::{
    AdmittedTenant, Claim, Conflict, ConnectionTarget, Contested, Decided, Decision,
    HeldConnections, OwnershipClaim, TenantClaim, TenantDemand, Verdict, decide,
};
use crate::budget_input;
use crate::config::TenantConfig;
use crate::servers::ServersView;
use brokkr_tenant::{PoolSize, TenantName};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// The decision for one tenant.
#[derive(Debug, Clone)]
pub(super) enum Admission {
    /// Run this configuration. The text says why the tenant file cannot be followed, if so.
    Run(Arc<TenantConfig>, Option<String>),
    /// Do not run, for this reason.
    Refused(String),
    /// Do not run, because the operator or the file says so.
    Stopped(String),
    /// The tenant file was removed.
    Gone,
}

/// The rulings, with the budget that they follow from.
#[derive(Debug)]
pub(super) struct FleetAdmission {
    pub(super) admissions: BTreeMap<TenantName, Admission>,
    pub(super) verdict: Verdict,
}

pub(super) fn judge(
    entries: &BTreeMap<TenantName, TenantEntry>,
    admitted: &[AdmittedTenant],
    view: &ServersView,
    headroom: u32,
) -> FleetAdmission {
    // A tenant that still waits for its server to be seen is not admitted yet, so it has no configuration to keep.
    let listed: BTreeSet<&TenantName> = admitted.iter().map(|a| &a.tenant).collect();
    let meant: BTreeMap<&TenantName, &Arc<TenantConfig>> = entries
        .iter()
        .filter(|(name, _)| listed.contains(name))
        .filter_map(|(name, entry)| Some((name, entry.meant()?)))
        .collect();
    let tenant_claims: Vec<TenantClaim> = entries
        .iter()
        .map(|(name, entry)| tenant_claim(name, entry, meant.get(name).copied(), view))
        .collect();
    let Decided { conflicts, verdict } = decide(admitted, &tenant_claims, &view.facts(), headroom);

    let mut admissions = BTreeMap::new();
    let mut candidates = BTreeMap::new();
    for (name, entry) in entries {
        match candidate(entry, meant.get(name).copied(), conflicts.get(name)) {
            Ok(found) => {
                candidates.insert(name, found);
            }
            Err(admission) => {
                admissions.insert(name.clone(), admission);
            }
        }
    }
    for (name, (config, pending)) in candidates {
        let at_pool = |text: &str| config.at("database.pool_size", text);
        let admission = match verdict.tenants.get(name) {
            Some(Decision::Refused(shortage)) => {
                Admission::Refused(at_pool(&format!("over budget: tenant {name} {shortage}")))
            }
            Some(Decision::Keep(shortage)) => {
                let why = at_pool(&format!("over budget: tenant {name} {shortage}"));
                match kept(name, &config, meant.get(name).copied(), &verdict, view) {
                    Some(kept) => Admission::Run(kept, Some(why)),
                    None => Admission::Refused(why),
                }
            }
            Some(Decision::Nothing) | None => Admission::Refused("not judged yet".into()),
            Some(Decision::Admitted | Decision::Wait) => Admission::Run(config, pending),
        };
        admissions.insert(name.clone(), admission);
    }
    FleetAdmission {
        admissions,
        verdict,
    }
}

/// Returns the configuration to judge against the budget, or the ruling if there is none.
fn candidate(
    entry: &TenantEntry,
    meant: Option<&Arc<TenantConfig>>,
    conflict: Option<&Conflict>,
) -> Result<(Arc<TenantConfig>, Option<String>), Admission> {
    let Some(file) = &entry.file else {
        return Err(Admission::Gone);
    };
    if let Ok(config) = file
        && !config.broker().supervision.enabled
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
fn kept(
    name: &TenantName,
    file: &Arc<TenantConfig>,
    meant: Option<&Arc<TenantConfig>>,
    verdict: &Verdict,
    view: &ServersView,
) -> Option<Arc<TenantConfig>> {
    let admission = verdict.admitted.iter().find(|a| a.tenant == *name)?;
    let candidate = meant.unwrap_or(file);
    let endpoint = view.endpoint(&candidate.broker().database.url);
    let elsewhere = match (endpoint.place(), &admission.server) {
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

fn tenant_claim(
    name: &TenantName,
    entry: &TenantEntry,
    meant: Option<&Arc<TenantConfig>>,
    view: &ServersView,
) -> TenantClaim {
    let priority = entry
        .asked()
        .map_or(0, |config| budget_input::priority(config));
    let schema_and_address =
        |config: &Arc<TenantConfig>| budget_input::schema_and_address(config, view);
    let wanted = |config: &Arc<TenantConfig>| budget_input::wanted(config, view);
    let asks = candidate(entry, meant, None).ok().map(|(config, _)| config);
    TenantClaim {
        stake: OwnershipClaim {
            tenant: name.clone(),
            priority,
            running: running(entry)
                .map(|(_, config)| schema_and_address(config))
                .collect(),
            wanted: asks.as_ref().map(schema_and_address),
        },
        claim: Claim {
            tenant: name.clone(),
            priority,
            wanted: asks.as_ref().map_or(TenantDemand::Nothing, wanted),
            held: held(entry, view),
        },
        fallback: meant.map_or(TenantDemand::Nothing, wanted),
    }
}

fn held(entry: &TenantEntry, view: &ServersView) -> Vec<HeldConnections> {
    running(entry)
        .filter_map(|(pool, config)| {
            let place: ConnectionTarget = view
                .endpoint(&config.broker().database.url)
                .place()?
                .clone();
            Some(HeldConnections {
                place,
                connections: pool,
            })
        })
        .collect()
}

fn running(entry: &TenantEntry) -> impl Iterator<Item = (u32, &Arc<TenantConfig>)> {
    entry
        .life
        .instances()
        .filter_map(|i| Some((entry.life.charge(i), entry.revisions.get(&i.revision)?)))
}
