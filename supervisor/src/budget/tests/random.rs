//! Random claims and servers against the rules that must always hold.

use super::*;
use proptest::prelude::*;

/// Claims on few servers, databases and roles, so that tenants share them.
fn a_claim() -> impl Strategy<Value = Claim> {
    let at = proptest::option::weighted(
        0.9,
        (0..2usize, 1..3u32, 0..3usize).prop_map(|(server, database, role)| ConnectionTarget {
            superuser: role == 2,
            ..place(["A", "B"][server], database, ["r", "s", "root"][role])
        }),
    );
    (0..12u32, 2..60u32, -2..3i32, at).prop_map(|(tenant, pool, priority, at)| Claim {
        priority,
        ..claim(&format!("t{tenant}"), pool, at)
    })
}

fn claims() -> impl Strategy<Value = Vec<Claim>> {
    proptest::collection::vec(a_claim(), 0..14).prop_map(|claims| {
        let by_name: BTreeMap<_, _> = claims.into_iter().map(|c| (c.tenant.clone(), c)).collect();
        by_name.into_values().collect()
    })
}

fn some_facts() -> impl Strategy<Value = Facts> {
    let limit = || proptest::option::of(0..80u32);
    (20..200u32, 0..30u32, limit(), limit(), limit()).prop_map(|(max, foreign, d, r, s)| Facts {
        foreign,
        databases: [(1, database("one", d)), (2, database("two", None))].into(),
        roles: [
            ("r".into(), role(r, false)),
            ("s".into(), role(s, false)),
            ("root".into(), role(Some(1), true)),
        ]
        .into(),
        own: Some(place("A", 1, "r")),
        ..facts(max)
    })
}

fn world() -> impl Strategy<Value = BTreeMap<ServerId, Facts>> {
    (some_facts(), proptest::option::weighted(0.8, some_facts())).prop_map(|(a, b)| {
        let b = b.map(|b| (ServerId::new("B"), b));
        std::iter::once((ServerId::new("A"), a)).chain(b).collect()
    })
}

/// Returns the sum of admitted pools in a scope, computed without the ledger.
fn sum(verdict: &Verdict, claims: &[Claim], within: impl Fn(&ConnectionTarget) -> bool) -> u32 {
    claims
        .iter()
        .filter(|c| *decision(verdict, c.tenant.as_str()) == Decision::Admitted)
        .filter_map(|c| match &c.wanted {
            TenantDemand::Pool {
                connections,
                at: Some(at),
            } if within(at) => Some(*connections),
            _ => None,
        })
        .sum()
}

proptest! {
    #[test]
    fn admission_never_exceeds_any_capacity(claims in claims(), world in world()) {
        let verdict = admit(&[], &claims, &world);
        for (id, facts) in &world {
            let total = sum(&verdict, &claims, |p| p.server == *id);
            prop_assert!(total == 0 || total + 4 <= facts.capacity(3));
            for (role, limit) in &facts.roles {
                let total = sum(&verdict, &claims, |p| p.server == *id && p.role == *role && !p.superuser);
                prop_assert!(total == 0 || limit.limit.is_none_or(|limit| total + 3 <= limit));
            }
            for (oid, database) in &facts.databases {
                let bound = sum(&verdict, &claims, |p| p.server == *id && p.database == *oid && !p.superuser);
                let all = sum(&verdict, &claims, |p| p.server == *id && p.database == *oid);
                prop_assert!(bound == 0 || database.limit.is_none_or(|limit| all + 3 <= limit));
            }
        }
    }

    #[test]
    fn adding_tenants_never_evicts_an_admitted_one_even_over_reboots(
        before in claims(), more in claims(), world in world(),
    ) {
        let first = admit(&[], &before, &world);
        let known: std::collections::BTreeSet<_> = before.iter().map(|c| c.tenant.clone()).collect();
        let all: Vec<Claim> =
            before.iter().cloned().chain(more.into_iter().filter(|c| !known.contains(&c.tenant))).collect();
        let (admitted, bad) = parse_admitted(&format_admitted(&first.admitted));
        prop_assert_eq!(&admitted, &first.admitted);
        prop_assert!(bad.is_empty());
        let second = admit(&admitted, &all, &world);
        prop_assert_eq!(&second.admitted[..first.admitted.len()], &first.admitted[..]);
        for admission in &first.admitted {
            prop_assert_eq!(&second.tenants[&admission.tenant], &Decision::Admitted);
        }
    }

    #[test]
    fn a_newcomer_too_large_blocks_no_other(claims in claims(), world in world()) {
        let without = admit(&[], &claims, &world);
        let mut with = claims.clone();
        with.push(Claim { priority: 99, ..claim("giant", 1000, Some(place("A", 1, "r"))) });
        let with = admit(&[], &with, &world);
        prop_assert!(matches!(with.tenants[&name("giant")], Decision::Refused(_)));
        prop_assert_eq!(with.admitted, without.admitted);
    }

    #[test]
    fn the_order_of_claims_changes_nothing(claims in claims(), world in world(), seed in any::<u64>()) {
        let first = admit(&[], &claims, &world);
        let mut shuffled = claims.clone();
        fastrand::Rng::with_seed(seed).shuffle(&mut shuffled);
        prop_assert_eq!(admit(&first.admitted, &shuffled, &world), admit(&first.admitted, &claims, &world));
        prop_assert_eq!(admit(&[], &shuffled, &world), first);
    }

    #[test]
    fn a_smaller_capacity_evicts_no_tenant_and_admits_none_where_it_is_short(
        before in claims(), more in claims(), world in world(), smaller in 0..60u32,
    ) {
        let first = admit(&[], &before, &world);
        let shrunk: BTreeMap<_, _> = world
            .iter()
            .map(|(id, facts)| (id.clone(), Facts { max_connections: smaller, ..facts.clone() }))
            .collect();
        let known: std::collections::BTreeSet<_> = before.iter().map(|c| c.tenant.clone()).collect();
        let all: Vec<Claim> =
            before.iter().cloned().chain(more.into_iter().filter(|c| !known.contains(&c.tenant))).collect();
        let second = admit(&first.admitted, &all, &shrunk);
        prop_assert_eq!(&second.admitted[..first.admitted.len()], &first.admitted[..]);
        for newcomer in &second.admitted[first.admitted.len()..] {
            let account = &second.servers[newcomer.server.as_ref().unwrap()];
            prop_assert!(account.committed <= account.capacity.unwrap());
        }
        for account in second.servers.values() {
            prop_assert!(account.replacements_at_once >= 1);
            prop_assert!(!account.overlap || account.capacity.is_none_or(|c| account.committed <= c));
        }
    }

    #[test]
    fn the_advised_pools_and_limits_fit(pools in proptest::collection::vec(2..60u32, 1..8), max in 20..120u32) {
        let claims: Vec<Claim> = pools.iter().zip(0..).map(|(pool, n)| on_a(&format!("t{n}"), *pool)).collect();
        let verdict = admit(&[], &claims, &servers(&[("A", facts(max))]));
        let shortage = verdict.tenants.values().find_map(|d| match d { Decision::Refused(s) => Some(s), _ => None });
        if let Some(shortage) = shortage {
            let larger = servers(&[("A", facts(shortage.remedies[0].limit))]);
            prop_assert_eq!(admit(&[], &claims, &larger).admitted.len(), claims.len());
            if let Some(most) = shortage.pool_that_fits() {
                let cut: Vec<Claim> =
                    pools.iter().zip(0..).map(|(pool, n)| on_a(&format!("t{n}"), (*pool).min(most))).collect();
                let verdict = admit(&[], &cut, &servers(&[("A", facts(max))]));
                prop_assert_eq!(verdict.admitted.len(), claims.len());
            }
        }
    }
}
