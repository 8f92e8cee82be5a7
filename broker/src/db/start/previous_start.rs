//! Remembers in the state folder that a schema has been started, so that a lost schema is never taken for a first
//! start.
//!
//! A lost schema (renamed, not restored yet, or an empty server at its address) looks like a new schema. A first start
//! would give clients an empty fleet, and would replace the only copy of the lost schema's admin PAK.

use std::fs;
use std::path::PathBuf;

use postgres::Client;

use super::error::StartError;
use super::plan::Plan;

/// Name of the file in the state folder.
const NAME: &str = "started";

/// Refuses a schema without an administrator if the state folder knows that it had one. Writes nothing.
///
/// # Errors
/// [`StartError::Away`], because the schema may come back.
pub(super) fn check(client: &mut Client, plan: &Plan) -> Result<(), StartError> {
    const HAS_TABLE: &str = "SELECT EXISTS (SELECT FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
        WHERE n.nspname = $1 AND c.relname = 'admin_role')";
    if !is_noted(plan) {
        return Ok(());
    }
    if client
        .query_one(HAS_TABLE, &[&plan.schema.as_str()])?
        .try_get(0)?
    {
        return Ok(());
    }
    Err(StartError::Away(format!(
        "schema {} is gone: it was started before and holds nothing now. Bring it back, or remove {} to start with an empty one",
        plan.schema,
        path(plan).display()
    )))
}

/// Notes that the schema has been started, if the state folder holds its admin PAK. With a configured hash a broker
/// needs no such folder and has no PAK to lose.
pub(super) fn note(plan: &Plan) {
    let (path, identity) = (path(plan), plan.url.schema_identity(&plan.schema));
    if is_noted(plan) || !plan.key_file.path().exists() {
        return;
    }
    if let Err(error) = fs::write(&path, &identity) {
        // The broker serves all the same, but it would take a later loss of the schema for a first start.
        tracing::warn!(%error, path = %path.display(), "cannot note that the schema has been started");
    }
}

/// Returns true when the state folder says that this schema has been started.
pub(super) fn is_noted(plan: &Plan) -> bool {
    let identity = plan.url.schema_identity(&plan.schema);
    fs::read_to_string(path(plan)).is_ok_and(|text| text == identity)
}

fn path(plan: &Plan) -> PathBuf {
    plan.key_file.path().with_file_name(NAME)
}
