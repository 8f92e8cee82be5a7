#![allow(clippy::unwrap_used, reason = "tests")]
use super::*;
use brokkr_tenant::{DatabaseUrl, TenantName};

fn wish() -> RoleWish {
    RoleWish {
        tenant: TenantName::parse("acme").unwrap(),
        schema: SchemaName::parse("tenant_acme").unwrap(),
        url: DatabaseUrl::parse("postgres://brokkr_t_@h/shop").unwrap(),
        admin: DatabaseUrl::parse("postgres://postgres@h/shop").unwrap(),
        earlier: "brokkr".to_owned(),
        keep_earlier: false,
        own_pool: 10,
        keep: std::collections::BTreeSet::new(),
        pool: 10,
        settings: vec![
            ("statement_timeout", "30000ms".to_owned()),
            ("temp_file_limit", "1024kB".to_owned()),
        ],
        supervisor: "brokkr:0a1b2c3d".to_owned(),
        credentials: "/nowhere/acme.url".into(),
    }
}

/// The server as it is before the tenant's first start.
fn fresh() -> RoleFacts {
    RoleFacts {
        admin: "postgres".to_owned(),
        superuser: true,
        version: 150_000,
        database: "shop".to_owned(),
        database_oid: 5,
        earlier_exists: true,
        ..RoleFacts::default()
    }
}

fn name() -> String {
    role_name(5, &wish().schema)
}

/// The server after the tenant's first start.
fn provisioned() -> RoleFacts {
    RoleFacts {
        role_exists: true,
        role_comment: Some("Brokkr Supervisor brokkr:0a1b2c3d: database shop, tenant acme".into()),
        owner: Some(name()),
        ..fresh()
    }
}

fn sql(facts: &RoleFacts, wish: &RoleWish) -> String {
    statements(facts, wish, "SCRAM-SHA-256$4096:x").unwrap()
}

#[test]
fn a_first_start_makes_the_role_and_its_schema_and_a_later_one_neither() {
    let first = sql(&fresh(), &wish());
    let role = name();
    for part in [
        format!("CREATE ROLE \"{role}\";"),
        "CONNECTION LIMIT 14 ".to_owned(),
        format!("CREATE SCHEMA \"tenant_acme\" AUTHORIZATION \"{role}\";"),
        "SET search_path TO \"tenant_acme\", pg_temp;".to_owned(),
        "SET temp_file_limit TO E'1024kB';".to_owned(),
    ] {
        assert!(first.contains(&part), "{part} is not in\n{first}");
    }
    let later = sql(&provisioned(), &wish());
    for part in ["CREATE ", "OWNER TO", "SET LOCAL ROLE", "GRANT \"brokkr_t_"] {
        assert!(!later.contains(part), "{part} is in\n{later}");
    }
    assert!(later.contains("PASSWORD E'SCRAM-SHA-256$4096:x';"));
}

#[test]
fn what_belongs_to_the_shared_role_changes_hands_and_the_old_instance_may_go_on() {
    let mut facts = fresh();
    facts.owner = Some("brokkr".to_owned());
    facts.objects = vec![ObjectFacts {
        words: "TABLE tenant_acme.agents".to_owned(),
        owner: "brokkr".to_owned(),
    }];
    let mut wish = wish();
    wish.keep_earlier = true;
    let taken = sql(&facts, &wish);
    for part in [
        "ALTER SCHEMA \"tenant_acme\" OWNER TO \"brokkr_t_",
        "ALTER TABLE tenant_acme.agents OWNER TO \"brokkr_t_",
        "GRANT ALL ON SCHEMA \"tenant_acme\" TO \"brokkr\";",
        "GRANT ALL ON ALL TABLES IN SCHEMA \"tenant_acme\" TO \"brokkr\";",
    ] {
        assert!(taken.contains(part), "{part} is not in\n{taken}");
    }
    let mut after = provisioned();
    after.earlier_may_use = true;
    wish.keep_earlier = false;
    let ended = sql(&after, &wish);
    assert!(ended.contains("REVOKE ALL ON ALL TABLES IN SCHEMA \"tenant_acme\" FROM \"brokkr\";"));
}

#[test]
fn what_another_program_made_is_left_alone() {
    let mut facts = provisioned();
    facts.role_comment = Some("made by hand".to_owned());
    let refused = statements(&facts, &wish(), "v").unwrap_err();
    assert!(
        refused.contains("was not made by a Brokkr Supervisor"),
        "{refused}"
    );

    let mut facts = fresh();
    facts.owner = Some("shop".to_owned());
    let refused = statements(&facts, &wish(), "v").unwrap_err();
    let remedy = "belongs to role \"shop\": ALTER SCHEMA \"tenant_acme\" OWNER TO \"postgres\"";
    assert!(refused.contains(remedy), "{refused}");

    let mut facts = provisioned();
    facts.objects = vec![ObjectFacts {
        words: "TABLE tenant_acme.theirs".to_owned(),
        owner: "shop".to_owned(),
    }];
    let refused = statements(&facts, &wish(), "v").unwrap_err();
    assert!(
        refused.contains("ALTER TABLE tenant_acme.theirs OWNER TO"),
        "{refused}"
    );
}

#[test]
fn a_role_that_another_supervisor_uses_now_is_left_to_it() {
    let mut facts = provisioned();
    facts.role_comment =
        Some("Brokkr Supervisor brokkr:ffffffff: database shop, tenant acme".into());
    facts.role_sessions = 1;
    let refused = statements(&facts, &wish(), "v").unwrap_err();
    assert!(refused.contains("brokkr:ffffffff"), "{refused}");
    facts.role_sessions = 0;
    assert!(statements(&facts, &wish(), "v").is_ok());
}

#[test]
fn an_administrator_without_superuser_names_no_attribute_of_superusers() {
    let mut facts = fresh();
    facts.superuser = false;
    let before_16 = sql(&facts, &wish());
    assert!(!before_16.contains("SUPERUSER") && !before_16.contains("temp_file_limit"));
    assert!(before_16.contains("\" TO CURRENT_USER;"));
    facts.version = 160_000;
    assert!(sql(&facts, &wish()).contains(" TO CURRENT_USER WITH INHERIT FALSE, SET TRUE;"));
}

#[test]
fn memberships_and_own_settings_do_not_survive_a_start() {
    let mut facts = provisioned();
    facts.member_of = vec!["pg_read_all_data".to_owned()];
    facts.members = vec!["brokkr".to_owned()];
    let sql = sql(&facts, &wish());
    assert!(sql.contains("REVOKE \"pg_read_all_data\" FROM \"brokkr_t_"));
    assert!(sql.contains(&format!("REVOKE \"{}\" FROM \"brokkr\";", name())));
    assert!(sql.contains("RESET ALL;"));
}
