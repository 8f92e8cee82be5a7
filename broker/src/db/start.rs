//! Brings a schema up to date before the first request: schema, migrations, first start.
//!
//! Two brokers may start on one schema at the same time (a replacement, or two hosts by mistake). The lock between them
//! is a table of the tenant's own, `brokkr_lock`: one connection holds it in an open transaction while another
//! connection migrates. It is requested with NOWAIT in a loop, because a blocking request would wait in the server's
//! lock queue. (An advisory lock would be simpler, but any other tenant of the database can hold its key.)
//!
//! Most starts find everything up to date: one connection looks, and nothing is locked.
//!
//! Nothing here is async. It runs on a blocking thread or in a command.

mod admin_pak_file;
mod bootstrap;
mod error;
mod lock;
mod plan;
mod previous_start;
mod schema;
mod webhook_key;

use std::time::Duration;

use postgres::Client;

use super::error::describe;
use super::manager::set_path;
pub use admin_pak_file::AdminPakFile;
pub use error::StartError;
use error::{contended, sort};
use lock::StartLock;
pub use plan::{PATIENCE, Plan, Step};
use schema::SchemaState;

mod embedded {
    refinery::embed_migrations!("../migrations");
}

/// The number of retries of a migration that gave way to running work, before the whole start begins again.
const MIGRATION_TRIES: usize = 20;

/// The pause between two of these retries.
const MIGRATION_PAUSE: Duration = Duration::from_millis(100);

/// The result of a start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StartReport {
    /// The schema's version after the start.
    pub version: i32,
    /// The number of migrations that this start applied.
    pub applied: usize,
}

/// Makes one attempt to create the schema, apply the migrations and do the first start. Reports each slow step to
/// `step`.
///
/// # Errors
/// After any error a new call is safe: finished parts are kept, and unfinished parts were rolled back.
pub fn start(plan: &Plan, step: &dyn Fn(Step)) -> Result<StartReport, StartError> {
    let mut client = plan.connect()?;
    let schema = SchemaState::look(&mut client, &plan.schema)?;
    previous_start::check(&mut client, plan)?;
    schema.ensure(&mut client)?;
    client.batch_execute(&set_path(&plan.schema))?;
    if let Some(version) = up_to_date(&mut client)?
        && bootstrap::is_done(&mut client)?
    {
        bootstrap::finish_key_file(&mut client, plan)?;
        webhook_key::check(&mut client, plan)?;
        previous_start::note(plan);
        webhook_key::make(plan);
        return Ok(StartReport {
            version,
            applied: 0,
        });
    }
    schema.writable()?;
    let lock = StartLock::take(plan, &mut client, step)?;
    let outcome = migrate_locked(&mut client, step)?;
    bootstrap::finish_key_file(&mut client, plan)?;
    bootstrap::run(&mut client, plan)?;
    lock.release();
    webhook_key::check(&mut client, plan)?;
    previous_start::note(plan);
    webhook_key::make(plan);
    Ok(outcome)
}

/// Returns true when a start may have to write the state folder: until the first start is done, and its PAK and webhook
/// key are there.
pub fn writes_state(plan: &Plan) -> bool {
    let settled = previous_start::is_noted(plan)
        // With a configured hash nothing is noted, unless there is a PAK from before.
        || plan.pak_hash.is_some() && !plan.key_file.path().exists();
    plan.key_file.is_pending() || !settled || !matches!(plan.webhook_key.find(), Ok(Some(_)))
}

/// Creates and migrates the schema, but leaves the administrator to the first start.
pub fn migrate(plan: &Plan, step: &dyn Fn(Step)) -> Result<StartReport, StartError> {
    let mut client = plan.connect()?;
    let schema = SchemaState::look(&mut client, &plan.schema)?;
    schema.ensure(&mut client)?;
    client.batch_execute(&set_path(&plan.schema))?;
    if let Some(version) = up_to_date(&mut client)? {
        return Ok(StartReport {
            version,
            applied: 0,
        });
    }
    schema.writable()?;
    let lock = StartLock::take(plan, &mut client, step)?;
    let outcome = migrate_locked(&mut client, step)?;
    lock.release();
    Ok(outcome)
}

/// Stores a new admin hash, minting a PAK if none is configured, and replaces the key file. Returns the minted PAK.
///
/// # Errors
/// [`StartError::Configuration`] when the schema has not been started yet.
pub fn rotate_admin(plan: &Plan) -> Result<Option<crate::pak::Pak>, StartError> {
    let mut client = open(plan)?;
    let minted = match plan.pak_hash {
        Some(_) => None,
        None => Some(crate::pak::Pak::mint(&plan.pak_format)?),
    };
    bootstrap::finish_key_file(&mut client, plan)?;
    let mut tx = client.transaction()?;
    tx.batch_execute(bootstrap::LOCK_ADMIN)?;
    if let Some(pak) = &minted {
        plan.key_file
            .prepare(pak)
            .map_err(|error| StartError::key_file(&plan.key_file, &error))?;
    }
    let hash = minted
        .as_ref()
        .map(crate::pak::Pak::hash)
        .or_else(|| plan.pak_hash.clone());
    if let Some(hash) = &hash {
        bootstrap::set_admin(&mut tx, hash)?;
    }
    tx.execute(
        "INSERT INTO audit_log (actor_type, action, resource_type, details) \
         VALUES ('admin', 'pak.rotated', 'admin', jsonb_build_object('via', 'cli'))",
        &[],
    )?;
    tx.commit()?;
    if minted.is_some() {
        plan.key_file
            .publish()
            .map_err(|error| StartError::key_file(&plan.key_file, &error))?;
    }
    Ok(minted)
}

/// Opens a connection for a command to a schema that has been started. Creates and migrates nothing.
pub(super) fn open(plan: &Plan) -> Result<Client, StartError> {
    let mut client = plan.connect()?;
    let state = if !SchemaState::look(&mut client, &plan.schema)?.is_there() {
        "does not exist"
    } else {
        client.batch_execute(&set_path(&plan.schema))?;
        if up_to_date(&mut client)?.is_some() {
            return Ok(client);
        }
        "is not up to date"
    };
    Err(StartError::Configuration(format!(
        "schema {} {state}: run `brokkr-broker migrate` or start the broker",
        plan.schema
    )))
}

/// Returns the schema's version if every migration of this broker has been applied, otherwise `None`.
fn up_to_date(client: &mut Client) -> Result<Option<i32>, StartError> {
    let history = "SELECT to_regclass('refinery_schema_history') IS NOT NULL AND to_regclass('brokkr_meta') IS NOT NULL";
    if !client.query_one(history, &[])?.get::<_, bool>(0) {
        return Ok(None);
    }
    let rows = client.query(
        "SELECT version, checksum FROM refinery_schema_history ORDER BY version",
        &[],
    )?;
    let applied: std::collections::BTreeMap<i32, String> = rows
        .iter()
        .map(|row| Ok((row.try_get(0)?, row.try_get(1)?)))
        .collect::<Result<_, postgres::Error>>()?;
    let runner = embedded::migrations::runner();
    let newest = newest(&runner);
    let wanted: i32 = client
        .query_one("SELECT min_reader_version FROM brokkr_meta", &[])?
        .get(0);
    if wanted > newest {
        return Err(StartError::Configuration(format!(
            "the schema needs a broker that knows migration {wanted}; this one knows {newest}: install a newer broker"
        )));
    }
    let done = runner.get_migrations().iter().all(|m| {
        applied
            .get(&m.version())
            .is_some_and(|checksum| *checksum == m.checksum().to_string())
    });
    Ok(done.then(|| applied.keys().next_back().copied().unwrap_or_default()))
}

fn newest(runner: &refinery::Runner) -> i32 {
    runner
        .get_migrations()
        .iter()
        .map(|m| m.version())
        .max()
        .unwrap_or_default()
}

fn migrate_locked(client: &mut Client, step: &dyn Fn(Step)) -> Result<StartReport, StartError> {
    // Another start may have migrated while this start waited for the lock. This also refuses a schema that needs a
    // newer broker.
    if let Some(version) = up_to_date(client)? {
        return Ok(StartReport {
            version,
            applied: 0,
        });
    }
    step(Step::Migrating);
    let runner = embedded::migrations::runner()
        // One transaction for all migrations and the history, so that a start that dies half-way changes nothing.
        .set_grouped(true)
        .set_abort_divergent(true)
        // A newer broker may have migrated the schema further, as far as `min_reader_version` allows.
        .set_abort_missing(false);
    let newest = newest(&runner);
    let mut tries = 0;
    loop {
        match runner.run(client) {
            Ok(report) => {
                let applied = report.applied_migrations().len();
                tracing::info!(version = newest, applied, "schema is up to date");
                return Ok(StartReport {
                    version: newest,
                    applied,
                });
            }
            Err(error) => match driver_error(&error) {
                // `lock_timeout`: transactions of the serving instance blocked the migration for two seconds. They are
                // short.
                Some(cause) if contended(cause) && tries < MIGRATION_TRIES => {
                    tries += 1;
                    let reason = describe(cause);
                    tracing::info!(%reason, "migration gave way to running work; trying again");
                    step(Step::MigratingAgain);
                    std::thread::sleep(MIGRATION_PAUSE);
                }
                _ => return Err(migration_error(&error)),
            },
        }
    }
}

/// Returns the server's error behind a failed migration, if there is one.
fn driver_error(error: &refinery::Error) -> Option<&postgres::Error> {
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        if let Some(error) = cause.downcast_ref() {
            return Some(error);
        }
        source = cause.source();
    }
    None
}

fn migration_error(error: &refinery::Error) -> StartError {
    if let Some(cause) = driver_error(error) {
        return sort(cause, format!("migration: {}", describe(cause)));
    }
    match error.kind() {
        refinery::error::Kind::DivergentVersion(applied, ours) => {
            StartError::Configuration(format!(
                "the schema was migrated by a different {applied}; this broker's {ours} is not the same file"
            ))
        }
        _ => StartError::Failed(format!("migration: {error}")),
    }
}
