//! Checks in the catalogue that a tenant's role can work in its schema. Writes nothing.

use super::provision::ROLE_PREFIX;
use super::session::{ProbeFailure, Session, within};
use brokkr_tenant::{DatabaseUrl, SchemaName};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;
use tokio::sync::Semaphore;

/// The largest number of connections at once, to all servers together.
const AT_ONCE: usize = 4;
/// The longest time for one URL, login and answer together.
const ANSWER: Duration = Duration::from_secs(5);

/// Tables that tell schemas apart: the published broker's migrations create the first, this broker's the second.
const FOREIGN: &str = "__diesel_schema_migrations";
const OURS: &str = "brokkr_meta";

/// Reasons why a tenant's broker cannot work in a schema, by URL and schema.
pub type SchemaProblems = BTreeMap<(DatabaseUrl, SchemaName), String>;

/// Asks each URL once about all its schemas. Leaves out URLs that cannot be asked; the broker's start reports those.
///
/// # Errors
/// When the event loop cannot be made.
pub fn schema_problems(
    wanted: &BTreeMap<DatabaseUrl, BTreeSet<SchemaName>>,
    name: &str,
) -> std::io::Result<SchemaProblems> {
    let runtime = super::event_loop()?;
    let places = Rc::new(Semaphore::new(AT_ONCE));
    let name = format!("{name}.supervisor");
    let work = async {
        let asked: Vec<_> = wanted
            .iter()
            .map(|(url, schemas)| {
                let (url, schemas) = (url.clone(), schemas.clone());
                let (places, name) = (places.clone(), name.clone());
                tokio::task::spawn_local(async move {
                    // The semaphore is never closed, so this cannot fail.
                    let _place = places.acquire().await;
                    let found = within("the answer", ANSWER, ask(&url, &schemas, &name)).await;
                    (url, found)
                })
            })
            .collect();
        let mut problems = SchemaProblems::new();
        for asking in asked {
            if let Ok((url, Ok(found))) = asking.await {
                let keyed = found.into_iter();
                problems.extend(keyed.map(|(schema, problem)| ((url.clone(), schema), problem)));
            }
        }
        problems
    };
    let problems = tokio::task::LocalSet::new().block_on(&runtime, work);
    runtime.shutdown_background();
    Ok(problems)
}

async fn ask(
    url: &DatabaseUrl,
    schemas: &BTreeSet<SchemaName>,
    name: &str,
) -> Result<Vec<(SchemaName, String)>, ProbeFailure> {
    let session = Session::open(url, name).await?;
    session.set_own_settings().await?;
    // A schema's name has letters, digits and underscores only, so it needs no escaping.
    let names: Vec<String> = schemas.iter().map(|s| format!("('{s}')")).collect();
    let sql = format!(
        "SELECT w.name, current_user, current_database(), \
                has_database_privilege(current_database(), 'CREATE'), n.oid IS NOT NULL, o.rolname, \
                coalesce(has_schema_privilege(n.oid, 'USAGE') AND has_schema_privilege(n.oid, 'CREATE'), false), \
                EXISTS (SELECT FROM pg_class c WHERE c.relnamespace = n.oid AND c.relname = '{FOREIGN}'), \
                EXISTS (SELECT FROM pg_class c WHERE c.relnamespace = n.oid AND c.relname = '{OURS}'), \
                (SELECT r.rolname FROM pg_class c JOIN pg_roles r ON r.oid = c.relowner \
                  WHERE c.relnamespace = n.oid AND c.relname = '{OURS}' AND NOT pg_has_role(c.relowner, 'USAGE')) \
           FROM (VALUES {}) w(name) \
           LEFT JOIN pg_namespace n ON n.nspname = w.name::name \
           LEFT JOIN pg_roles o ON o.oid = n.nspowner",
        names.join(", ")
    );
    let mut problems = Vec::new();
    for row in session.ask(&sql).await? {
        let Ok(schema) = SchemaName::parse(row.text(0)?) else {
            continue;
        };
        let (role, database) = (row.text(1)?, row.text(2)?);
        let (may_create, exists) = (row.flag(3)?, row.flag(4)?);
        let (may_use, foreign, ours) = (row.flag(6)?, row.flag(7)?, row.flag(8)?);
        let owner = row.nullable(5).unwrap_or("?");
        let problem = if !exists && !may_create {
            format!(
                "role \"{role}\" may not create schema \"{schema}\" in database \"{database}\": GRANT CREATE ON DATABASE {} TO {}, \
                 or CREATE SCHEMA {} AUTHORIZATION {}",
                identifier(database),
                identifier(role),
                identifier(schema.as_str()),
                identifier(role),
            )
        } else if exists && foreign && !ours {
            format!(
                "this schema was made by Brokkr 0.9 (it holds {FOREIGN}); choose another schema, its tables are left as \
                 they are"
            )
        } else if exists && !may_use && owner.starts_with(ROLE_PREFIX) {
            format!(
                "role \"{role}\" may not use schema \"{schema}\", which belongs to its tenant's own role {owner}: with [provision] write \
                 host and port of admin_url as in the tenant's URL; without it, GRANT {owner} TO {}",
                identifier(role),
            )
        } else if exists && !may_use {
            format!(
                "role \"{role}\" may not use schema \"{schema}\", which belongs to role \"{owner}\": ALTER SCHEMA {} OWNER TO {}",
                identifier(schema.as_str()),
                identifier(role),
            )
        } else if let Some(owner) = row.nullable(9) {
            format!(
                "role \"{role}\" may not use the tables of schema \"{schema}\", which belong to role \"{owner}\": GRANT {} TO {}",
                identifier(owner),
                identifier(role),
            )
        } else {
            continue;
        };
        problems.push((schema, problem));
    }
    Ok(problems)
}

/// Quotes a name for SQL where needed.
fn identifier(name: &str) -> String {
    // The same names need quotes, whether of a schema, a role or a database.
    let plain = SchemaName::parse(name).is_ok_and(|parsed| parsed.as_str() == name);
    if plain {
        name.to_owned()
    } else {
        format!("\"{}\"", name.replace('"', "\"\""))
    }
}

#[cfg(test)]
mod tests {
    use super::identifier;

    #[test]
    fn a_name_is_quoted_where_sql_would_read_another() {
        assert_eq!(identifier("brokkr_1"), "brokkr_1");
        assert_eq!(identifier("Brokkr"), "\"Brokkr\"");
        assert_eq!(identifier("a-b\"c"), "\"a-b\"\"c\"");
        assert_eq!(identifier("user"), "\"user\"");
    }
}
