#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

mod random;

use super::*;
use brokkr_tenant::{Listen, SchemaName};

fn name(text: &str) -> TenantName {
    TenantName::parse(text).unwrap()
}

fn place(server: &str, database: u32, role: &str) -> ConnectionTarget {
    ConnectionTarget {
        server: ServerId::new(server),
        database,
        role: role.into(),
        superuser: false,
    }
}

fn claim(tenant: &str, pool: u32, at: Option<ConnectionTarget>) -> Claim {
    Claim {
        tenant: name(tenant),
        priority: 0,
        wanted: TenantDemand::Pool {
            connections: pool,
            at,
        },
        held: vec![],
    }
}

fn on_a(tenant: &str, pool: u32) -> Claim {
    claim(tenant, pool, Some(place("A", 1, "brokkr")))
}

fn on_b(tenant: &str, pool: u32) -> Claim {
    claim(tenant, pool, Some(place("B", 1, "brokkr")))
}

/// Adds connections that the tenant still holds on server A.
fn holding(connections: u32, claim: Claim) -> Claim {
    let held = vec![HeldConnections {
        place: place("A", 1, "brokkr"),
        connections,
    }];
    Claim { held, ..claim }
}

fn database(name: &str, limit: Option<u32>) -> Database {
    Database {
        name: name.into(),
        limit,
    }
}

fn role(limit: Option<u32>, superuser: bool) -> Role {
    Role { limit, superuser }
}

fn facts(max_connections: u32) -> Facts {
    Facts {
        max_connections,
        superuser_reserved: 3,
        ..Facts::default()
    }
}

/// Admits with the headroom of three connections.
fn admit(order: &[AdmittedTenant], claims: &[Claim], facts: &BTreeMap<ServerId, Facts>) -> Verdict {
    super::admit(order, claims, facts, 3)
}

fn account<'v>(verdict: &'v Verdict, server: &str) -> &'v Account {
    &verdict.servers[&ServerId::new(server)]
}

fn servers(list: &[(&str, Facts)]) -> BTreeMap<ServerId, Facts> {
    list.iter()
        .map(|(id, facts)| (ServerId::new(id), facts.clone()))
        .collect()
}

fn decision<'v>(verdict: &'v Verdict, tenant: &str) -> &'v Decision {
    &verdict.tenants[&name(tenant)]
}

fn names(verdict: &Verdict) -> Vec<&str> {
    verdict.admitted.iter().map(|a| a.tenant.as_str()).collect()
}

fn refusal(verdict: &Verdict, tenant: &str) -> String {
    match decision(verdict, tenant) {
        Decision::Refused(shortage) | Decision::Keep(shortage) => shortage.to_string(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_second_of_two_default_pools_is_refused_with_numbers_and_advice() {
    let facts = servers(&[("A", facts(100))]);
    let verdict = admit(&[], &[on_a("acme", 50), on_a("globex", 50)], &facts);
    assert_eq!(*decision(&verdict, "acme"), Decision::Admitted);
    assert_eq!(
        refusal(&verdict, "globex"),
        "needs 50 and 4 more of 94 on server A; 40 are free; \
         pool_size = 45 at most for each would fit everyone, or max_connections = 110"
    );
    let account = account(&verdict, "A");
    assert_eq!(
        (account.capacity, account.committed, account.free),
        (Some(94), 54, 40)
    );
    assert_eq!((account.replacements_at_once, account.overlap), (21, true));
    for (pool, max) in [(45, 100), (50, 110)] {
        let facts = servers(&[(
            "A",
            super::Facts {
                max_connections: max,
                ..facts[&ServerId::new("A")].clone()
            },
        )]);
        let verdict = admit(&[], &[on_a("acme", pool), on_a("globex", pool)], &facts);
        assert_eq!(names(&verdict), ["acme", "globex"], "the advice holds");
    }
}

#[test]
fn newcomers_are_ordered_by_priority_then_name_and_a_large_one_blocks_no_other() {
    let facts = servers(&[("A", facts(50))]);
    let mut urgent = on_a("zebra", 20);
    urgent.priority = 5;
    let verdict = admit(
        &[],
        &[on_a("big", 30), on_a("acme", 10), urgent, on_a("cat", 10)],
        &facts,
    );
    assert_eq!(names(&verdict), ["zebra", "acme", "cat"]);
    assert!(matches!(decision(&verdict, "big"), Decision::Refused(_)));
}

#[test]
fn priority_never_evicts() {
    let facts = servers(&[("A", facts(50))]);
    let first = admit(&[], &[on_a("acme", 30)], &facts);
    let mut urgent = on_a("aaa", 30);
    urgent.priority = 100;
    let verdict = admit(&first.admitted, &[on_a("acme", 30), urgent], &facts);
    assert_eq!(names(&verdict), ["acme"]);
}

#[test]
fn a_pool_raised_beyond_what_is_free_keeps_the_old_one_even_over_a_reboot() {
    let facts = servers(&[("A", facts(100))]);
    let first = admit(&[], &[on_a("acme", 50), on_a("bolt", 20)], &facts);
    let raised = holding(50, on_a("acme", 90));
    for raised in [raised, on_a("acme", 90)] {
        let verdict = admit(&first.admitted, &[raised, on_a("bolt", 20)], &facts);
        assert!(
            refusal(&verdict, "acme").contains("with the 50 it has"),
            "{}",
            refusal(&verdict, "acme")
        );
        assert_eq!(*decision(&verdict, "bolt"), Decision::Admitted);
        assert_eq!(verdict.admitted, first.admitted);
    }
    let verdict = admit(
        &first.admitted,
        &[on_a("acme", 70), on_a("bolt", 20)],
        &facts,
    );
    assert_eq!(*decision(&verdict, "acme"), Decision::Admitted);
    assert_eq!(verdict.admitted[0].pool, 70);
}

#[test]
fn a_smaller_pool_frees_connections_only_when_the_old_instance_has_ended() {
    let facts = servers(&[("A", facts(100))]);
    let first = admit(&[], &[on_a("acme", 80)], &facts);
    let shrunk = holding(80, on_a("acme", 10));
    let verdict = admit(&first.admitted, &[shrunk, on_a("bolt", 50)], &facts);
    assert_eq!(*decision(&verdict, "acme"), Decision::Admitted);
    assert!(matches!(decision(&verdict, "bolt"), Decision::Refused(_)));
    let verdict = admit(
        &verdict.admitted,
        &[on_a("acme", 10), on_a("bolt", 50)],
        &facts,
    );
    assert_eq!(names(&verdict), ["acme", "bolt"]);
}

#[test]
fn a_tenant_that_moves_counts_on_both_servers_until_the_move_is_complete() {
    let facts = servers(&[("A", facts(100)), ("B", facts(100))]);
    let first = admit(&[], &[on_a("acme", 80)], &facts);
    let moving = holding(80, on_b("acme", 80));
    let verdict = admit(&first.admitted, &[moving, on_a("bolt", 50)], &facts);
    assert_eq!(*decision(&verdict, "acme"), Decision::Admitted);
    assert!(matches!(decision(&verdict, "bolt"), Decision::Refused(_)));
    assert_eq!(account(&verdict, "A").committed, 84);
    assert_eq!(account(&verdict, "B").committed, 84);
    let moved = on_b("acme", 80);
    let verdict = admit(&verdict.admitted, &[moved, on_a("bolt", 50)], &facts);
    assert_eq!(*decision(&verdict, "bolt"), Decision::Admitted);
}

#[test]
fn a_move_to_a_full_server_keeps_the_old_place() {
    let facts = servers(&[("A", facts(100)), ("B", facts(20))]);
    let first = admit(&[], &[on_a("acme", 80)], &facts);
    let moving = on_b("acme", 80);
    let verdict = admit(&first.admitted, &[moving], &facts);
    assert!(refusal(&verdict, "acme").contains("server B"));
    assert_eq!(verdict.admitted, first.admitted);
    assert_eq!(account(&verdict, "A").committed, 84);
}

#[test]
fn a_place_kept_because_the_new_server_is_full_is_kept_whole_while_no_instance_runs() {
    let facts = servers(&[("A", facts(100)), ("B", facts(12))]);
    let order = admit(&[], &[on_a("mover", 60)], &facts).admitted;
    // The tenant wants less on another server, which is full, and its broker has just crashed.
    let mover = on_b("mover", 10);
    let verdict = admit(&order, &[mover, on_a("new", 50)], &facts);
    assert!(matches!(decision(&verdict, "mover"), Decision::Keep(_)));
    assert!(refusal(&verdict, "new").contains("30 are free"));
    assert_eq!(names(&verdict), ["mover"]);
}

#[test]
fn databases_and_roles_are_sums_within_the_server() {
    let mut limited = facts(1000);
    limited.databases.insert(1, database("app", Some(33)));
    limited.roles.insert("small".into(), role(Some(13), false));
    limited.own = Some(place("A", 9, "other"));
    let facts = servers(&[("A", limited)]);
    let claims = [
        claim("a", 10, Some(place("A", 1, "small"))),
        claim("b", 5, Some(place("A", 2, "small"))),
        claim("c", 20, Some(place("A", 1, "brokkr"))),
        claim("d", 5, Some(place("A", 1, "brokkr"))),
        claim("e", 500, Some(place("A", 3, "brokkr"))),
    ];
    let verdict = admit(&[], &claims, &facts);
    assert_eq!(names(&verdict), ["a", "c", "e"]);
    let role = refusal(&verdict, "b");
    assert!(
        role.contains("role small") && role.contains("ALTER ROLE small CONNECTION LIMIT 18"),
        "{role}"
    );
    let database = refusal(&verdict, "d");
    assert!(
        database.contains("database app") && database.contains("CONNECTION LIMIT 38"),
        "{database}"
    );
}

#[test]
fn a_superuser_is_exempt_but_not_at_the_cost_of_others() {
    let mut limited = facts(1000);
    limited.databases.insert(1, database("app", Some(20)));
    limited.roles.insert("root".into(), role(Some(1), true));
    let facts = servers(&[("A", limited)]);
    let root = |tenant, pool| {
        claim(
            tenant,
            pool,
            Some(ConnectionTarget {
                superuser: true,
                ..place("A", 1, "root")
            }),
        )
    };
    assert_eq!(names(&admit(&[], &[root("a", 50)], &facts)), ["a"]);
    let verdict = admit(&[], &[on_a("a", 10), root("b", 50)], &facts);
    assert_eq!(names(&verdict), ["a"]);
}

#[test]
fn an_unseen_server_decides_nothing_and_costs_no_tenant_its_place() {
    let known = servers(&[("A", facts(100))]);
    let first = admit(&[], &[on_a("acme", 50)], &known);
    let verdict = admit(
        &first.admitted,
        &[claim("acme", 50, None), claim("new", 5, None)],
        &BTreeMap::new(),
    );
    assert_eq!(*decision(&verdict, "acme"), Decision::Admitted);
    assert_eq!(*decision(&verdict, "new"), Decision::Wait);
    assert_eq!(verdict.admitted, first.admitted);
    let verdict = admit(
        &first.admitted,
        &[claim("acme", 60, None)],
        &BTreeMap::new(),
    );
    assert!(refusal(&verdict, "acme").contains("cannot be asked now"));
    // The tenant's URL is broken, but its admission stays counted.
    let verdict = admit(
        &first.admitted,
        &[claim("acme", 50, None), on_a("new", 50)],
        &known,
    );
    assert!(matches!(decision(&verdict, "new"), Decision::Refused(_)));
}

#[test]
fn a_shrunken_server_evicts_and_admits_no_tenant_and_replaces_without_overlap() {
    let claims = [on_a("a", 30), on_a("b", 30)];
    let first = admit(&[], &claims, &servers(&[("A", facts(100))]));
    let mut more = claims.to_vec();
    more.push(on_a("c", 2));
    let verdict = admit(&first.admitted, &more, &servers(&[("A", facts(40))]));
    assert_eq!(names(&verdict), ["a", "b"]);
    assert!(matches!(decision(&verdict, "c"), Decision::Refused(_)));
    let account = account(&verdict, "A");
    assert_eq!(
        (account.overlap, account.replacements_at_once, account.free),
        (false, 1, 0)
    );
}

#[test]
fn a_stopped_tenant_gives_up_its_place_but_its_held_connections_count() {
    let facts = servers(&[("A", facts(100))]);
    let first = admit(&[], &[on_a("acme", 80)], &facts);
    let stopped = Claim {
        wanted: TenantDemand::Nothing,
        ..holding(80, on_a("acme", 80))
    };
    let verdict = admit(&first.admitted, &[stopped, on_a("bolt", 50)], &facts);
    assert!(verdict.admitted.is_empty());
    assert!(matches!(decision(&verdict, "bolt"), Decision::Refused(_)));
}

#[test]
fn foreign_connections_count_when_they_exceed_the_headroom() {
    assert_eq!(facts(100).capacity(3), 94);
    assert_eq!(
        Facts {
            foreign: 20,
            reserved: 2,
            ..facts(100)
        }
        .capacity(3),
        75
    );
    assert_eq!(
        Facts {
            foreign: 200,
            ..facts(100)
        }
        .capacity(3),
        0
    );
}

#[test]
fn the_admitted_list_reads_back_and_a_damaged_line_costs_only_itself() {
    let text = "acme 10 730122\nglobex 50 730122\nACME 1 x\nacme 3 y\nbolt\nx y z\n\n";
    let (admitted, bad) = parse_admitted(text);
    assert_eq!(
        admitted
            .iter()
            .map(|a| a.tenant.as_str())
            .collect::<Vec<_>>(),
        ["acme", "globex", "bolt"]
    );
    assert_eq!(bad.iter().map(|(n, _)| *n).collect::<Vec<_>>(), [3, 4, 6]);
    assert_eq!(
        parse_admitted(&format_admitted(&admitted)),
        (admitted, vec![])
    );
}

fn schema_and_address(schema: &str, listen: &str) -> SchemaAndAddress {
    SchemaAndAddress {
        database: Some((ServerId::new("A"), 1)),
        spelled: "a:5432/app".into(),
        schema: SchemaName::parse(schema).unwrap(),
        listen: Listen::parse(listen).unwrap(),
    }
}

fn stake(tenant: &str, wanted: SchemaAndAddress) -> OwnershipClaim {
    OwnershipClaim {
        tenant: name(tenant),
        priority: 0,
        running: vec![],
        wanted: Some(wanted),
    }
}

#[test]
fn a_schema_wanted_twice_on_one_database_belongs_to_the_earlier_tenant() {
    let (a, b) = (
        schema_and_address("t_x", "127.0.0.1:1001"),
        schema_and_address("T_X", "127.0.0.1:1002"),
    );
    let found = conflicts(&[], &[stake("bolt", b.clone()), stake("acme", a.clone())]);
    assert_eq!(
        found.keys().map(TenantName::as_str).collect::<Vec<_>>(),
        ["bolt"]
    );
    let text = found[&name("bolt")].to_string();
    assert!(
        text.contains("tenant acme") && text.contains("tenant bolt") && text.contains("t_x"),
        "{text}"
    );
    let order = [AdmittedTenant {
        tenant: name("bolt"),
        pool: 5,
        server: None,
        schema_and_address: None,
    }];
    let found = conflicts(
        &order,
        &[stake("bolt", b.clone()), stake("acme", a.clone())],
    );
    assert!(found.contains_key(&name("acme")) && found.len() == 1);
    let mut running = stake("bolt", b);
    running.running = vec![a.clone()];
    running.wanted = Some(schema_and_address("t_y", "127.0.0.1:1003"));
    let found = conflicts(&[], &[running, stake("acme", a)]);
    assert!(
        found.contains_key(&name("acme")),
        "what runs keeps what it has until it has gone"
    );
}

#[test]
fn the_same_schema_elsewhere_is_no_conflict_and_unseen_databases_are_compared_as_spelled() {
    let a = schema_and_address("t_x", "127.0.0.1:1001");
    let other = SchemaAndAddress {
        database: Some((ServerId::new("A"), 2)),
        ..schema_and_address("t_x", "127.0.0.1:1002")
    };
    assert!(conflicts(&[], &[stake("acme", a.clone()), stake("bolt", other)]).is_empty());
    let unseen = SchemaAndAddress {
        database: None,
        ..schema_and_address("t_x", "127.0.0.1:1002")
    };
    assert_eq!(
        conflicts(
            &[],
            &[stake("acme", a.clone()), stake("bolt", unseen.clone())]
        )
        .len(),
        1
    );
    let elsewhere = SchemaAndAddress {
        spelled: "b:5432/app".into(),
        ..unseen
    };
    assert!(conflicts(&[], &[stake("acme", a), stake("bolt", elsewhere)]).is_empty());
}

#[test]
fn an_unspecified_address_takes_its_port_everywhere() {
    let clash = |a: &str, b: &str| {
        !conflicts(
            &[],
            &[
                stake("acme", schema_and_address("x_a", a)),
                stake("bolt", schema_and_address("x_b", b)),
            ],
        )
        .is_empty()
    };
    assert!(clash("0.0.0.0:80", "127.0.0.1:80"));
    assert!(clash("[::]:80", "127.0.0.1:80"));
    assert!(clash("127.0.0.1:80", "[::ffff:127.0.0.1]:80"));
    assert!(clash("unix:/run/a.sock", "unix:/run/a.sock"));
    assert!(!clash("127.0.0.1:80", "127.0.0.2:80"));
    assert!(!clash("0.0.0.0:80", "0.0.0.0:81"));
    assert!(!clash("unix:/run/a.sock", "unix:/run/b.sock"));
}
