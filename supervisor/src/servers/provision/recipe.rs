//! The SQL that makes a tenant's role and schema, or brings them back to how they must be.
//!
//! Pure: the server's answers go in, one text of statements comes out. The text is sent as one message, which the server
//! carries out whole or not at all.

use super::RoleWish;
use super::role::{comment, role_name, supervisor_of};
use super::sql::{identifier, literal};
use brokkr_tenant::SchemaName;

/// The connections that a role may hold beside its tenant's pool: two of a replacement, one of a command, and one while
/// old ones end.
const BESIDE_POOL: u32 = 4;

/// The setting that only a superuser may give a role.
pub(super) const SUPERUSERS_SETTING: &str = "temp_file_limit";

/// The state of a tenant's role and schema, as the server shows it.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct RoleFacts {
    /// The administrator's role.
    pub(super) admin: String,
    pub(super) superuser: bool,
    /// `server_version_num`.
    pub(super) version: u32,
    pub(super) database: String,
    pub(super) database_oid: u32,
    /// True when the tenant's role exists, and its comment.
    pub(super) role_exists: bool,
    pub(super) role_comment: Option<String>,
    /// The number of the role's sessions.
    pub(super) role_sessions: u32,
    /// The roles that the role is a member of.
    pub(super) member_of: Vec<String>,
    /// The members of the role, without the administrator.
    pub(super) members: Vec<String>,
    /// The schema's owner; `None` if there is no such schema.
    pub(super) owner: Option<String>,
    /// True when the earlier role exists, and when it may use the schema.
    pub(super) earlier_exists: bool,
    pub(super) earlier_may_use: bool,
    /// Every object of the schema that does not belong to the tenant's role.
    pub(super) objects: Vec<ObjectFacts>,
}

/// An object of the schema that belongs to another role.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct ObjectFacts {
    /// The words of `ALTER`: the kind and the object's name with its schema.
    pub(super) words: String,
    pub(super) owner: String,
}

/// Returns the query for the database's OID, on which the role's name depends.
pub(super) const DATABASE: &str =
    "SELECT oid FROM pg_catalog.pg_database WHERE datname = current_database()";

/// Returns the query whether a role may connect to this database.
pub(super) fn may_connect(role: &str) -> String {
    format!(
        "SELECT pg_catalog.has_database_privilege({}, current_database(), 'CONNECT')",
        literal(role)
    )
}

/// Returns the query for [`RoleFacts`], one row.
pub(super) fn facts_query(role: &str, schema: &SchemaName, earlier: &str) -> String {
    format!(
        "SELECT current_user, me.rolsuper, current_setting('server_version_num'), d.datname, \
                r.oid IS NOT NULL, pg_catalog.shobj_description(r.oid, 'pg_authid'), \
                (SELECT count(*) FROM pg_catalog.pg_stat_activity a WHERE a.usesysid = r.oid), \
                (SELECT string_agg(g.rolname, chr(10)) FROM pg_catalog.pg_auth_members m \
                   JOIN pg_catalog.pg_roles g ON g.oid = m.roleid WHERE m.member = r.oid), \
                (SELECT string_agg(g.rolname, chr(10)) FROM pg_catalog.pg_auth_members m \
                   JOIN pg_catalog.pg_roles g ON g.oid = m.member WHERE m.roleid = r.oid AND m.member <> me.oid), \
                o.rolname, \
                e.oid IS NOT NULL, coalesce(pg_catalog.has_schema_privilege(e.oid, n.oid, 'USAGE'), false) \
           FROM pg_catalog.pg_database d \
           JOIN pg_catalog.pg_roles me ON me.rolname = current_user \
           LEFT JOIN pg_catalog.pg_roles r ON r.rolname = {role} \
           LEFT JOIN pg_catalog.pg_namespace n ON n.nspname = {schema} \
           LEFT JOIN pg_catalog.pg_roles o ON o.oid = n.nspowner \
           LEFT JOIN pg_catalog.pg_roles e ON e.rolname = {earlier} \
          WHERE d.datname = current_database()",
        role = literal(role),
        schema = literal(schema.as_str()),
        earlier = literal(earlier),
    )
}

/// Returns the query for the objects of the schema that do not belong to the role: words of `ALTER`, owner. Leaves out
/// what follows its table, and what belongs to an extension.
pub(super) fn objects_query(role: &str, schema: &SchemaName) -> String {
    format!(
        "WITH n AS (SELECT oid, nspname FROM pg_catalog.pg_namespace WHERE nspname = {schema}), \
              objects(class, object, owner, words) AS ( \
          SELECT 'pg_class'::regclass, c.oid, c.relowner, \
                 CASE c.relkind WHEN 'v' THEN 'VIEW' WHEN 'm' THEN 'MATERIALIZED VIEW' WHEN 'S' THEN 'SEQUENCE' \
                                WHEN 'f' THEN 'FOREIGN TABLE' ELSE 'TABLE' END || ' ' || format('%I.%I', n.nspname, c.relname) \
            FROM pg_catalog.pg_class c JOIN n ON n.oid = c.relnamespace WHERE c.relkind IN ('r', 'p', 'v', 'm', 'S', 'f') \
          UNION ALL \
          SELECT 'pg_proc'::regclass, p.oid, p.proowner, \
                 format('ROUTINE %I.%I(%s)', n.nspname, p.proname, pg_catalog.pg_get_function_identity_arguments(p.oid)) \
            FROM pg_catalog.pg_proc p JOIN n ON n.oid = p.pronamespace \
          UNION ALL \
          SELECT 'pg_type'::regclass, t.oid, t.typowner, format('TYPE %I.%I', n.nspname, t.typname) \
            FROM pg_catalog.pg_type t JOIN n ON n.oid = t.typnamespace \
            LEFT JOIN pg_catalog.pg_class c ON c.oid = t.typrelid \
           WHERE t.typtype IN ('d', 'e', 'r') OR (t.typtype = 'c' AND c.relkind = 'c')) \
         SELECT words, pg_catalog.pg_get_userbyid(owner) FROM objects \
          WHERE pg_catalog.pg_get_userbyid(owner) <> {role} \
            AND NOT EXISTS (SELECT FROM pg_catalog.pg_depend d WHERE d.classid = objects.class AND d.objid = objects.object AND d.objsubid = 0 \
                               AND d.deptype IN ('e', 'a', 'i')) \
          ORDER BY words",
        schema = literal(schema.as_str()),
        role = literal(role),
    )
}

/// Returns the statements that bring role and schema to how they must be. `verifier` is the password as the server
/// stores it, so that the password itself reaches no server log.
///
/// # Errors
/// The reason, with the remedy, why the role or the schema is left as it is.
pub(super) fn statements(
    facts: &RoleFacts,
    wish: &RoleWish,
    verifier: &str,
) -> Result<String, String> {
    let name = role_name(facts.database_oid, &wish.schema);
    let (role, database) = (identifier(&name), identifier(&facts.database));
    let schema = identifier(wish.schema.as_str());
    let mut sql = String::new();
    let mut add = |text: String| {
        sql.push_str(&text);
        sql.push_str(";\n");
    };

    may_alter(facts, wish, &name)?;
    if !facts.role_exists {
        add(format!("CREATE ROLE {role}"));
    }
    // Only a superuser may name the attributes of superusers. No role can give them to itself.
    let attributes = match facts.superuser {
        true => "NOSUPERUSER NOCREATEDB NOREPLICATION NOBYPASSRLS ",
        false => "",
    };
    add(format!(
        "ALTER ROLE {role} WITH {attributes}NOCREATEROLE LOGIN NOINHERIT CONNECTION LIMIT {} PASSWORD {}",
        wish.pool.saturating_add(BESIDE_POOL),
        literal(verifier)
    ));
    let comment = comment(&wish.supervisor, &facts.database, &wish.tenant);
    add(format!("COMMENT ON ROLE {role} IS {}", literal(&comment)));
    for group in &facts.member_of {
        add(format!("REVOKE {} FROM {role}", identifier(group)));
    }
    for member in &facts.members {
        add(format!("REVOKE {role} FROM {}", identifier(member)));
    }
    // A role may change its own settings.
    add(format!("ALTER ROLE {role} RESET ALL"));
    let within = format!("ALTER ROLE {role} IN DATABASE {database}");
    add(format!("{within} RESET ALL"));
    add(format!("{within} SET search_path TO {schema}, pg_temp"));
    for (setting, value) in &wish.settings {
        if *setting == SUPERUSERS_SETTING && !facts.superuser {
            continue;
        }
        add(format!("{within} SET {setting} TO {}", literal(value)));
    }
    if !facts.superuser {
        let options = match facts.version >= 160_000 {
            true => " WITH INHERIT FALSE, SET TRUE",
            false => "",
        };
        add(format!("GRANT {role} TO CURRENT_USER{options}"));
    }
    add(format!("GRANT CONNECT ON DATABASE {database} TO {role}"));
    match &facts.owner {
        None => add(format!("CREATE SCHEMA {schema} AUTHORIZATION {role}")),
        Some(owner) if *owner != name => {
            add(format!("ALTER SCHEMA {schema} OWNER TO {role}"));
        }
        Some(_) => {}
    }
    for object in &facts.objects {
        add(format!("ALTER {} OWNER TO {role}", object.words));
    }
    let changes_hands = facts.owner.as_ref().is_some_and(|owner| *owner != name);
    let of_earlier = match wish.keep_earlier {
        true => changes_hands || !facts.objects.is_empty() || !facts.earlier_may_use,
        // Its rights as an owner go with the ownership.
        false => facts.earlier_may_use && !changes_hands,
    };
    if facts.earlier_exists && facts.owner.is_some() && of_earlier {
        add(format!("SET LOCAL ROLE {role}"));
        for text in earlier_rights(wish, &schema) {
            add(text);
        }
        add("RESET ROLE".to_owned());
    }
    Ok(sql)
}

/// Returns the grants that the earlier role needs as long as an instance still uses it, or their end.
fn earlier_rights(wish: &RoleWish, schema: &str) -> Vec<String> {
    let earlier = identifier(&wish.earlier);
    let (verb, preposition) = match wish.keep_earlier {
        true => ("GRANT", "TO"),
        false => ("REVOKE", "FROM"),
    };
    let of_schema = std::iter::once(format!(
        "{verb} ALL ON SCHEMA {schema} {preposition} {earlier}"
    ));
    let of_objects = ["TABLES", "SEQUENCES", "ROUTINES"]
        .map(|kind| format!("{verb} ALL ON ALL {kind} IN SCHEMA {schema} {preposition} {earlier}"));
    of_schema.chain(of_objects).collect()
}

/// Refuses to alter a role that another program made or another supervisor uses, and to take what belongs to a third
/// role.
pub(super) fn may_alter(facts: &RoleFacts, wish: &RoleWish, name: &str) -> Result<(), String> {
    if facts.role_exists {
        let comment = facts.role_comment.as_deref().unwrap_or_default();
        match supervisor_of(comment) {
            None => {
                return Err(format!(
                    "role {name} exists and was not made by a Brokkr Supervisor, so it is left as it is: rename or drop it"
                ));
            }
            Some(other) if other != wish.supervisor && facts.role_sessions > 0 => {
                return Err(format!(
                    "role {name} is in use by the supervisor {other}: stop the tenant there first"
                ));
            }
            Some(_) => {}
        }
    }
    let ours = |owner: &str| owner == name || owner == wish.earlier || owner == facts.admin;
    let schema = identifier(wish.schema.as_str());
    if let Some(owner) = facts.owner.as_deref().filter(|owner| !ours(owner)) {
        return Err(format!(
            "schema {schema} belongs to role \"{owner}\": ALTER SCHEMA {schema} OWNER TO {}",
            identifier(&facts.admin)
        ));
    }
    match facts.objects.iter().find(|object| !ours(&object.owner)) {
        Some(ObjectFacts { words, owner }) => Err(format!(
            "{} in schema {schema} belongs to role \"{owner}\": ALTER {words} OWNER TO {}",
            words.to_lowercase(),
            identifier(&facts.admin)
        )),
        None => Ok(()),
    }
}

/// The statements that drop a role.
pub(crate) struct RoleRemoval {
    /// Drops what the role owns and was granted in one database.
    pub(crate) owned: String,
    /// Drops the same in this database, and the role.
    pub(crate) whole: String,
}

/// Returns the statements that drop a role whose schema is dropped. `comment` is the role's comment.
///
/// # Errors
/// The reason why the role is left as it is.
pub(crate) fn role_removal(name: &str, comment: Option<&str>) -> Result<RoleRemoval, String> {
    made_here(name, comment)?;
    let role = identifier(name);
    let owned = format!("DROP OWNED BY {role}");
    Ok(RoleRemoval {
        whole: format!("{owned}; DROP ROLE {role}"),
        owned,
    })
}

/// Returns the statements that keep a role from logging in, and end its sessions.
///
/// # Errors
/// The reason why the role is left as it is.
pub(crate) fn role_lockout(name: &str, comment: Option<&str>) -> Result<String, String> {
    made_here(name, comment)?;
    Ok(format!(
        "ALTER ROLE {} NOLOGIN; \
         SELECT pg_catalog.pg_terminate_backend(a.pid) FROM pg_catalog.pg_stat_activity a WHERE a.usename = {}",
        identifier(name),
        literal(name)
    ))
}

fn made_here(name: &str, comment: Option<&str>) -> Result<(), String> {
    match comment.and_then(supervisor_of) {
        Some(_) => Ok(()),
        None => Err(format!("role {name} was not made by a Brokkr Supervisor")),
    }
}

#[cfg(test)]
mod tests;
