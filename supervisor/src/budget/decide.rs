//! Decides conflicts and budget together, because a tenant refused for one must not block others in the other.

use super::{
    AdmittedTenant, Claim, Conflict, Decision, Facts, OwnershipClaim, SchemaAndAddress, ServerId,
    TenantDemand, Verdict, admit, conflicts,
};
use brokkr_tenant::TenantName;
use std::collections::{BTreeMap, BTreeSet};

/// A tenant's claims.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TenantClaim {
    /// The schema and address it wants and has.
    pub stake: OwnershipClaim,
    /// The connections it claims.
    pub claim: Claim,
    /// The connections it claims after losing a conflict: those of the configuration it runs, or none.
    pub fallback: TenantDemand,
}

/// The conflicts and the budget's verdict.
#[derive(Debug, Clone, Default)]
pub struct Decided {
    /// Tenants whose schema or address belongs to another tenant.
    pub conflicts: BTreeMap<TenantName, Conflict>,
    /// The budget's verdict.
    pub verdict: Verdict,
}

/// Decides which tenants may run. A refused tenant claims neither schema nor address, so the conflicts of a tenant over
/// budget are decided once more without it.
pub fn decide(
    order: &[AdmittedTenant],
    tenant_claims: &[TenantClaim],
    facts: &BTreeMap<ServerId, Facts>,
    headroom: u32,
) -> Decided {
    let schemas_and_addresses: BTreeMap<&TenantName, &SchemaAndAddress> = order
        .iter()
        .filter_map(|admission| Some((&admission.tenant, admission.schema_and_address.as_ref()?)))
        .collect();
    let mut over_budget: BTreeSet<TenantName> = BTreeSet::new();
    // Each round excludes at least one more tenant, so there are no more rounds than tenants.
    loop {
        let stakes: Vec<OwnershipClaim> = tenant_claims
            .iter()
            .map(|tenant_claim| {
                let mut stake = tenant_claim.stake.clone();
                // An admitted tenant keeps its schema and address while no instance runs, after a crash and over a reboot.
                if stake.wanted.is_some()
                    && let Some(schema_and_address) = schemas_and_addresses.get(&stake.tenant)
                {
                    stake.running.push((*schema_and_address).clone());
                }
                if over_budget.contains(&stake.tenant) {
                    stake.wanted = None;
                }
                stake
            })
            .collect();
        let conflicts = conflicts(order, &stakes);
        let claims: Vec<Claim> = tenant_claims
            .iter()
            .map(|tenant_claim| {
                let mut claim = tenant_claim.claim.clone();
                if conflicts.contains_key(&claim.tenant) {
                    claim.wanted = tenant_claim.fallback.clone();
                }
                claim
            })
            .collect();
        let mut verdict = admit(order, &claims, facts, headroom);
        let refused: BTreeSet<TenantName> = verdict
            .tenants
            .iter()
            .filter(|(_, decision)| matches!(decision, Decision::Refused(_)))
            .map(|(tenant, _)| tenant.clone())
            .collect();
        if refused.is_subset(&over_budget) {
            seat_the_admitted(
                &mut verdict,
                tenant_claims,
                &conflicts,
                &schemas_and_addresses,
            );
            return Decided { conflicts, verdict };
        }
        over_budget.extend(refused);
    }
}

/// Records each admitted tenant's schema and address: those it asked for if they were granted, else the old ones.
fn seat_the_admitted(
    verdict: &mut Verdict,
    tenant_claims: &[TenantClaim],
    conflicts: &BTreeMap<TenantName, Conflict>,
    before: &BTreeMap<&TenantName, &SchemaAndAddress>,
) {
    let wanted: BTreeMap<&TenantName, &SchemaAndAddress> = tenant_claims
        .iter()
        .filter_map(|TenantClaim { stake, .. }| Some((&stake.tenant, stake.wanted.as_ref()?)))
        .collect();
    for admission in &mut verdict.admitted {
        let had = before.get(&admission.tenant).copied();
        let granted = verdict.tenants.get(&admission.tenant) == Some(&Decision::Admitted)
            && !conflicts.contains_key(&admission.tenant);
        let schema_and_address = match (wanted.get(&admission.tenant).copied(), had) {
            (Some(asked), None) if granted => Some(asked),
            (Some(asked), Some(had)) if granted => {
                // While the server is down, the database is known only from the old record.
                let same = asked.schema == had.schema
                    && asked.listen == had.listen
                    && asked.spelled == had.spelled;
                Some(if same && asked.database.is_none() {
                    had
                } else {
                    asked
                })
            }
            _ => had,
        };
        admission.schema_and_address = schema_and_address.cloned();
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::super::{ConnectionTarget, SchemaAndAddress};
    use super::*;
    use brokkr_tenant::{Listen, SchemaName};

    fn tenant_claim(name: &str, schema: &str, pool: u32, priority: i32) -> TenantClaim {
        let tenant = TenantName::parse(name).unwrap();
        let place = ConnectionTarget {
            server: ServerId::new("s"),
            database: 1,
            role: "r".into(),
            superuser: false,
        };
        let port = 1000 + u32::from(name.as_bytes()[0]);
        let schema_and_address = SchemaAndAddress {
            database: Some((place.server.clone(), 1)),
            spelled: "s/d".into(),
            schema: SchemaName::parse(schema).unwrap(),
            listen: Listen::parse(&format!("127.0.0.1:{port}")).unwrap(),
        };
        let wanted = TenantDemand::Pool {
            connections: pool,
            at: Some(place),
        };
        TenantClaim {
            stake: OwnershipClaim {
                tenant: tenant.clone(),
                priority,
                running: vec![],
                wanted: Some(schema_and_address),
            },
            claim: Claim {
                tenant,
                priority,
                wanted,
                held: vec![],
            },
            fallback: TenantDemand::Nothing,
        }
    }

    fn server() -> BTreeMap<ServerId, Facts> {
        let facts = Facts {
            max_connections: 100,
            superuser_reserved: 3,
            ..Facts::default()
        };
        BTreeMap::from([(ServerId::new("s"), facts)])
    }

    #[test]
    fn a_tenant_over_budget_does_not_block_its_schema() {
        let facts = server();
        let tenant_claims = [
            tenant_claim("a", "one", 500, 9),
            tenant_claim("b", "one", 10, 0),
            tenant_claim("c", "two", 10, 0),
        ];
        let decided = decide(&[], &tenant_claims, &facts, 3);
        assert!(decided.conflicts.is_empty(), "{:?}", decided.conflicts);
        let state = |name: &str| &decided.verdict.tenants[&TenantName::parse(name).unwrap()];
        assert!(matches!(state("a"), Decision::Refused(_)));
        assert_eq!(*state("b"), Decision::Admitted);
        assert_eq!(*state("c"), Decision::Admitted);
    }

    #[test]
    fn an_admitted_tenant_keeps_its_schema_while_it_is_down_and_over_a_reboot() {
        let facts = server();
        let both = [
            tenant_claim("a", "one", 8, 0),
            tenant_claim("b", "two", 8, 0),
        ];
        let first = decide(&[], &both, &facts, 3).verdict.admitted;
        let text = super::super::format_admitted(&first);
        let (order, bad) = super::super::parse_admitted(&text);
        assert_eq!((&order, bad.len()), (&first, 0), "{text}");
        // b is older in the list and asks for a's schema while a has no instance.
        let order: Vec<AdmittedTenant> = order.into_iter().rev().collect();
        let greedy = [
            tenant_claim("a", "one", 8, 0),
            tenant_claim("b", "one", 8, 9),
        ];
        let decided = decide(&order, &greedy, &facts, 3);
        let names: Vec<_> = decided.conflicts.keys().map(TenantName::as_str).collect();
        assert_eq!(names, ["b"]);
        // b gets the schema once a is removed.
        let decided = decide(&decided.verdict.admitted, &greedy[1..], &facts, 3);
        assert!(decided.conflicts.is_empty());
    }
}
