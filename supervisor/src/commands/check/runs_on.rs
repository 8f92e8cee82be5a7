//! Tenants whose file is bad, or asks for another tenant's schema or address. The supervisor runs them on with their
//! old configuration, so their pools stay taken.

use super::super::client::ControlClient;
use crate::budget::{AdmittedTenant, Claim, OwnershipClaim, TenantClaim, TenantDemand};
use crate::config::{SupervisorConfig, TenantConfig};
use crate::fleet::core::TenantSettings;
use crate::servers::ServersView;
use crate::status::Snapshot;
use brokkr_tenant::TenantName;
use std::collections::{BTreeMap, BTreeSet};

/// Tenants with a bad file, and all tenants with a process.
#[derive(Debug, Default)]
pub(super) struct RunsOn {
    /// Tenants with a bad file that run, and their admissions.
    pub(super) counted: BTreeMap<TenantName, AdmittedTenant>,
    /// The other tenants with a bad file, and why their pools are not counted.
    pub(super) uncounted: BTreeMap<TenantName, &'static str>,
    /// Tenants that have a process.
    running: BTreeSet<String>,
}

impl RunsOn {
    /// Asks the supervisor which of `bad` run.
    pub(super) fn find(
        config: &SupervisorConfig,
        bad: &BTreeSet<TenantName>,
        admitted: &[AdmittedTenant],
    ) -> Self {
        let running = running(config);
        let mut found = Self {
            running: running.clone().unwrap_or_default(),
            ..Self::default()
        };
        for tenant in bad {
            let admission = admitted.iter().find(|a| a.tenant == *tenant);
            let why = match (&running, admission) {
                (None, None) => "it counts nothing",
                (None, Some(_)) => {
                    "no supervisor says whether it runs, and its pool is not counted"
                }
                (Some(running), _) if !running.contains(tenant.as_str()) => "it counts nothing",
                (Some(_), Some(admission)) if admission.server.is_some() => {
                    found.counted.insert(tenant.clone(), admission.clone());
                    continue;
                }
                (Some(_), _) => {
                    "it runs on with what it had, and its pool, which is not on the list of those admitted, is not counted"
                }
            };
            found.uncounted.insert(tenant.clone(), why);
        }
        found
    }

    /// Returns a tenant's claim while another tenant has the schema or address that its file asks for: its admitted
    /// pool if the tenant runs, else nothing.
    pub(super) fn fallback(
        &self,
        tenant: &TenantName,
        config: &TenantConfig,
        admitted: &[AdmittedTenant],
        view: &ServersView,
    ) -> TenantDemand {
        let place = config.place(view);
        let admission = admitted.iter().find(|a| a.tenant == *tenant);
        match admission.filter(|_| self.running.contains(tenant.as_str())) {
            Some(admission) => TenantDemand::Pool {
                connections: admission.pool,
                // The admission does not name database and role, so those of the file are assumed.
                at: place.filter(|place| Some(&place.server) == admission.server.as_ref()),
            },
            None => TenantDemand::Nothing,
        }
    }

    /// Returns the running tenants as parties that hold their admitted pools. Their database and role are unknown and
    /// not needed, because the budget charges the server with every admission.
    pub(super) fn tenant_claims(&self) -> impl Iterator<Item = TenantClaim> {
        self.counted.values().map(|admission| TenantClaim {
            stake: OwnershipClaim {
                tenant: admission.tenant.clone(),
                priority: 0,
                running: admission.schema_and_address.iter().cloned().collect(),
                wanted: admission.schema_and_address.clone(),
            },
            claim: Claim {
                tenant: admission.tenant.clone(),
                priority: 0,
                wanted: TenantDemand::Pool {
                    connections: admission.pool,
                    at: None,
                },
                held: Vec::new(),
            },
            fallback: TenantDemand::Nothing,
        })
    }
}

/// Returns the tenants that have a process, or `None` where no supervisor answers this user.
fn running(config: &SupervisorConfig) -> Option<BTreeSet<String>> {
    let answer = ControlClient::new(&config.runtime_dir)
        .ok()?
        .get("/v1/status");
    let snapshot: Snapshot = serde_json::from_slice(&answer.ok()?).ok()?;
    let alive = snapshot.tenants.into_iter().filter(|t| t.pid.is_some());
    Some(alive.map(|tenant| tenant.name.clone()).collect())
}
