//! Conflicts and budget together: who is refused for one reason must not stand in anybody's way for the other.

use super::{
    Admission, Claim, Conflict, Decision, Facts, ServerId, Stake, Verdict, Wanted, admit, conflicts,
};
use brokkr_tenant::TenantName;
use std::collections::{BTreeMap, BTreeSet};

/// What one tenant puts before the judge.
#[derive(Debug, Clone)]
pub struct Party {
    /// What it wants to have for itself alone, and has.
    pub stake: Stake,
    /// What it claims of the budget.
    pub claim: Claim,
    /// What it claims instead when somebody else has what it wants: the configuration it runs with, or nothing.
    pub fallback: Wanted,
}

/// Who is refused what, and what the budget says of the others.
#[derive(Debug, Clone, Default)]
pub struct Decided {
    /// Tenants whose schema or address is somebody else's.
    pub conflicts: BTreeMap<TenantName, Conflict>,
    /// The budget.
    pub verdict: Verdict,
}

/// Judges everybody. A tenant that is refused claims neither schema nor address: whoever lost one to a tenant that
/// then turns out to be over budget is tried again without it.
pub fn decide(
    order: &[Admission],
    parties: &[Party],
    facts: &BTreeMap<ServerId, Facts>,
    headroom: u32,
) -> Decided {
    let mut over_budget: BTreeSet<TenantName> = BTreeSet::new();
    // Each round takes at least one more tenant out of the others' way, so there are no more rounds than tenants.
    loop {
        let stakes: Vec<Stake> = parties
            .iter()
            .map(|party| {
                let mut stake = party.stake.clone();
                if over_budget.contains(&stake.tenant) {
                    stake.wanted = None;
                }
                stake
            })
            .collect();
        let conflicts = conflicts(order, &stakes);
        let claims: Vec<Claim> = parties
            .iter()
            .map(|party| {
                let mut claim = party.claim.clone();
                if conflicts.contains_key(&claim.tenant) {
                    claim.wanted = party.fallback.clone();
                }
                claim
            })
            .collect();
        let verdict = admit(order, &claims, facts, headroom);
        let refused: BTreeSet<TenantName> = verdict
            .tenants
            .iter()
            .filter(|(_, decision)| matches!(decision, Decision::Refused(_)))
            .map(|(tenant, _)| tenant.clone())
            .collect();
        if refused.is_subset(&over_budget) {
            return Decided { conflicts, verdict };
        }
        over_budget.extend(refused);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::super::{Place, Seat};
    use super::*;
    use brokkr_tenant::{Listen, SchemaName};

    fn party(name: &str, schema: &str, pool: u32, priority: i32) -> Party {
        let tenant = TenantName::parse(name).unwrap();
        let place = Place {
            server: ServerId::new("s"),
            database: 1,
            role: "r".into(),
            superuser: false,
        };
        let port = 1000 + u32::from(name.as_bytes()[0]);
        let seat = Seat {
            database: Some((place.server.clone(), 1)),
            spelled: "s/d".into(),
            schema: SchemaName::parse(schema).unwrap(),
            listen: Listen::parse(&format!("127.0.0.1:{port}")).unwrap(),
        };
        let wanted = Wanted::Pool {
            connections: pool,
            at: Some(place),
        };
        Party {
            stake: Stake {
                tenant: tenant.clone(),
                priority,
                running: vec![],
                wanted: Some(seat),
            },
            claim: Claim {
                tenant,
                priority,
                wanted,
                held: vec![],
            },
            fallback: Wanted::Nothing,
        }
    }

    #[test]
    fn a_tenant_over_budget_does_not_keep_its_schema_from_one_that_fits() {
        let facts = Facts {
            max_connections: 100,
            superuser_reserved: 3,
            ..Facts::default()
        };
        let facts = BTreeMap::from([(ServerId::new("s"), facts)]);
        let parties = [
            party("a", "one", 500, 9),
            party("b", "one", 10, 0),
            party("c", "two", 10, 0),
        ];
        let decided = decide(&[], &parties, &facts, 3);
        assert!(decided.conflicts.is_empty(), "{:?}", decided.conflicts);
        let state = |name: &str| &decided.verdict.tenants[&TenantName::parse(name).unwrap()];
        assert!(matches!(state("a"), Decision::Refused(_)));
        assert_eq!(*state("b"), Decision::Admitted);
        assert_eq!(*state("c"), Decision::Admitted);
    }
}
