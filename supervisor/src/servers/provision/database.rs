//! The SQL that keeps provisioned roles from what every role of a database may do by default.

use super::sql::{identifier, literal};
use std::collections::BTreeSet;

/// Functions that take shared locks under keys of the caller's choice, and large objects, which belong to no schema.
/// Returns the words of `REVOKE` for each that every role may still execute.
pub(super) const OPEN_FUNCTIONS: &str = "\
SELECT format('%I.%I(%s)', n.nspname, p.proname, pg_catalog.pg_get_function_identity_arguments(p.oid)) \
  FROM pg_catalog.pg_proc p JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace \
 WHERE n.nspname = 'pg_catalog' \
   AND (p.proname ~ '^pg_(try_)?advisory_' OR p.proname ~ '^lo_' OR p.proname IN ('loread', 'lowrite')) \
   AND pg_catalog.has_function_privilege('public', p.oid, 'EXECUTE')";

/// Returns the query for each database that every role may connect to: its name, then the roles that are connected to it
/// now, one a line, without superusers and provisioned roles.
pub(super) fn open_databases(prefix: &str) -> String {
    format!(
        "SELECT d.datname, (SELECT string_agg(DISTINCT r.rolname, chr(10)) \
           FROM pg_catalog.pg_stat_activity a JOIN pg_catalog.pg_roles r ON r.oid = a.usesysid \
          WHERE a.datid = d.oid AND NOT r.rolsuper AND NOT pg_catalog.starts_with(r.rolname, {})) \
       FROM pg_catalog.pg_database d \
      WHERE d.datallowconn AND (pg_catalog.has_database_privilege('public', d.oid, 'CONNECT') \
         OR d.datname = current_database() AND pg_catalog.has_database_privilege('public', d.oid, 'TEMP')) \
      ORDER BY 1",
        literal(prefix)
    )
}

/// Returns the query for those of these roles that exist.
pub(super) fn existing(roles: &BTreeSet<String>) -> String {
    let roles: Vec<String> = std::iter::once("''".to_owned())
        .chain(roles.iter().map(|role| literal(role)))
        .collect();
    format!(
        "SELECT rolname FROM pg_catalog.pg_roles WHERE rolname IN ({})",
        roles.join(", ")
    )
}

/// Returns the statements that close these functions.
pub(super) fn close_functions(functions: &[String]) -> String {
    functions
        .iter()
        .map(|function| format!("REVOKE EXECUTE ON FUNCTION {function} FROM PUBLIC;\n"))
        .collect()
}

/// Returns the statements that close a database to every role but those that `keep` it.
pub(super) fn close_database(database: &str, keep: &BTreeSet<&str>, is_tenants: bool) -> String {
    let name = identifier(database);
    let mut sql = String::new();
    for role in keep {
        let role = identifier(role);
        sql.push_str(&format!(
            "GRANT CONNECT, TEMPORARY ON DATABASE {name} TO {role};\n"
        ));
    }
    sql.push_str(&format!(
        "REVOKE CONNECT, TEMPORARY ON DATABASE {name} FROM PUBLIC;\n"
    ));
    if is_tenants {
        // Until PostgreSQL 14 every role may create tables there.
        sql.push_str("REVOKE CREATE ON SCHEMA public FROM PUBLIC;\n");
    }
    sql
}
