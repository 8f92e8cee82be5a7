//! Bringing a schema up to date before the first request: schema, migrations, first start.
//!
//! Two brokers may start on one schema at the same time (a replacement, two hosts by mistake). The lock between them is
//! a table of the tenant's own, `brokkr_lock`: one connection holds it in an open transaction while another migrates.
//! It is asked for with NOWAIT and asked again: a blocking waiter would queue up behind it. (An advisory lock would be
//! simpler, but any other tenant on the database can hold its key.)
//!
//! When everything is up to date already, one connection looks and nothing is locked: that is how most starts go.
//!
//! Nothing here is async; it runs on a blocking thread or in a command.

mod bootstrap;
mod key_file;
mod webhook_key;

use std::time::Duration;

use brokkr_pg::Reason;
use brokkr_tenant::{DatabaseUrl, SchemaName};
use postgres::Client;
use postgres::error::SqlState;

use super::error::{describe, server_lost};
use super::manager::set_path;
use crate::pak::{Format, MintError, PakHash};
use crate::webhook::key::KeySource;
pub use key_file::KeyFile;

mod embedded {
    refinery::embed_migrations!("../migrations");
}

/// Between two attempts to get the lock.
const LOCK_RETRY: Duration = Duration::from_millis(100);

/// How often a statement that lost a race against another start is tried again.
const RACES: usize = 20;

/// What a start needs to know.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Where the server is.
    pub url: DatabaseUrl,
    /// The tenant's schema.
    pub schema: SchemaName,
    /// As `pg_stat_activity` shows it.
    pub application_name: String,
    /// How an admin PAK is minted.
    pub pak_format: Format,
    /// `broker.pak_hash`: taken instead of minting one.
    pub pak_hash: Option<PakHash>,
    /// Where a minted admin PAK goes.
    pub key_file: KeyFile,
    /// Where the webhook key comes from.
    pub webhook_key: KeySource,
}

/// How far a start is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Waiting for another broker's start on the same schema.
    WaitingForLock,
    /// Applying migrations.
    Migrating,
    /// A migration has given way to somebody's transaction, and is tried again.
    MigratingAgain,
}

/// What a start has done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// The schema's version now.
    pub version: i32,
    /// Migrations applied by this start.
    pub applied: usize,
}

/// Why a start did not succeed.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The server is away, starting, full, or something else was in the way: the same start may succeed later.
    #[error("{0}")]
    Away(String),
    /// Refused credentials, a missing database, missing rights, a schema from the future: somebody has to change something.
    #[error("{0}")]
    Configuration(String),
    /// Anything else.
    #[error("{0}")]
    Failed(String),
}

impl StartError {
    fn key_file(file: &KeyFile, error: &std::io::Error) -> Self {
        StartError::Failed(format!("{}: {error}", file.path().display()))
    }
}

impl From<MintError> for StartError {
    fn from(error: MintError) -> Self {
        match error {
            MintError::Format(_) => StartError::Configuration(error.to_string()),
            MintError::Randomness(_) => StartError::Failed(error.to_string()),
        }
    }
}

impl From<postgres::Error> for StartError {
    fn from(error: postgres::Error) -> Self {
        let text = describe(&error);
        match error.code() {
            _ if server_lost(&error) || lost_a_race(&error) => StartError::Away(text),
            Some(code) if needs_a_person(code) => StartError::Configuration(text),
            _ => StartError::Failed(text),
        }
    }
}

impl From<brokkr_pg::ConnectError> for StartError {
    fn from(error: brokkr_pg::ConnectError) -> Self {
        let refused = matches!(error.reason(), Reason::Denied | Reason::NoDatabase);
        if refused || error.code().is_some_and(needs_a_person) {
            StartError::Configuration(error.to_string())
        } else {
            // Unreachable, no such host, a standby, full: all may be otherwise in a moment.
            StartError::Away(error.to_string())
        }
    }
}

/// 28xxx: authentication; 3D000: no such database; 42501: missing rights; 3F000: no such schema.
fn needs_a_person(code: &SqlState) -> bool {
    code.code().starts_with("28")
        || *code == SqlState::INVALID_CATALOG_NAME
        || *code == SqlState::INSUFFICIENT_PRIVILEGE
        || *code == SqlState::INVALID_SCHEMA_NAME
}

/// `IF NOT EXISTS` is not atomic: two starts at once see 23505, 42P06, 42P07 or 42710. And 55P03: `lock_timeout`.
fn lost_a_race(error: &postgres::Error) -> bool {
    error.code().is_some_and(|code| {
        *code == SqlState::UNIQUE_VIOLATION
            || *code == SqlState::DUPLICATE_SCHEMA
            || *code == SqlState::DUPLICATE_TABLE
            // 42710: a table brings its row type, which may be the one that lost.
            || *code == SqlState::DUPLICATE_OBJECT
            || *code == SqlState::LOCK_NOT_AVAILABLE
    })
}

/// Schema, migrations and first start, once. `step` hears when it takes longer than a look.
///
/// # Errors
///
/// [`StartError`]. Whatever it is, calling again is safe: what was done is kept, what was half done was rolled back.
pub fn start(plan: &Plan, step: &dyn Fn(Step)) -> Result<Outcome, StartError> {
    let mut client = connect(plan)?;
    ensure_schema(&mut client, &plan.schema)?;
    client.batch_execute(&set_path(&plan.schema))?;
    if let Some(version) = up_to_date(&mut client)?
        && bootstrap::is_done(&mut client)?
    {
        bootstrap::finish_key_file(&mut client, plan)?;
        webhook_key::check(&mut client, plan)?;
        return Ok(Outcome {
            version,
            applied: 0,
        });
    }
    let lock = Lock::take(plan, &mut client, step)?;
    let outcome = migrate_locked(&mut client, step)?;
    bootstrap::finish_key_file(&mut client, plan)?;
    bootstrap::run(&mut client, plan)?;
    lock.release();
    webhook_key::check(&mut client, plan)?;
    Ok(outcome)
}

/// Schema and migrations only; the administrator is left to the first start.
///
/// # Errors
///
/// As [`start`].
pub fn migrate(plan: &Plan, step: &dyn Fn(Step)) -> Result<Outcome, StartError> {
    let mut client = connect(plan)?;
    ensure_schema(&mut client, &plan.schema)?;
    client.batch_execute(&set_path(&plan.schema))?;
    if let Some(version) = up_to_date(&mut client)? {
        return Ok(Outcome {
            version,
            applied: 0,
        });
    }
    let lock = Lock::take(plan, &mut client, step)?;
    let outcome = migrate_locked(&mut client, step)?;
    lock.release();
    Ok(outcome)
}

/// Stores a new admin hash (minting a PAK if none is configured) and replaces the key file. `Some`: the minted PAK.
///
/// # Errors
///
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

fn connect(plan: &Plan) -> Result<Client, StartError> {
    let options = brokkr_pg::Options::new(plan.application_name.as_str()).read_write();
    let mut client = brokkr_pg::connect(&plan.url, &options)?;
    // A migration takes as long as it takes; what it waits for is bounded, so that it never stands in the way of the
    // instance that still serves this schema.
    client.batch_execute("SET statement_timeout = 0; SET lock_timeout = '2s'")?;
    Ok(client)
}

/// A connection for a command, to a schema that has been started: it neither creates nor migrates one.
pub(super) fn open(plan: &Plan) -> Result<Client, StartError> {
    let mut client = connect(plan)?;
    let state = if !exists(&mut client, &plan.schema)? {
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

fn exists(client: &mut Client, schema: &SchemaName) -> Result<bool, postgres::Error> {
    const THERE: &str = "SELECT 1 FROM pg_namespace WHERE nspname = $1";
    Ok(client.query_opt(THERE, &[&schema.as_str()])?.is_some())
}

/// Looks before it creates: `CREATE SCHEMA IF NOT EXISTS` fails without the right to create, even when there is nothing
/// to do.
fn ensure_schema(client: &mut Client, schema: &SchemaName) -> Result<(), StartError> {
    racing(|| {
        if exists(client, schema)? {
            Ok(())
        } else {
            client.batch_execute(&format!("CREATE SCHEMA {}", schema.quoted()))
        }
    })
}

/// Repeats a statement that another start on the same schema may have won.
fn racing(mut statement: impl FnMut() -> Result<(), postgres::Error>) -> Result<(), StartError> {
    let mut tries = 0;
    loop {
        match statement() {
            Err(error) if lost_a_race(&error) && tries < RACES => tries += 1,
            result => return result.map_err(StartError::from),
        }
        std::thread::sleep(Duration::from_millis(fastrand::u64(5..25)));
    }
}

/// The schema's version if every migration of this broker has been applied; `None` if something is to be done.
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

fn migrate_locked(client: &mut Client, step: &dyn Fn(Step)) -> Result<Outcome, StartError> {
    // Somebody else may have done it while this start waited for the lock; also refuses a schema from the future.
    if let Some(version) = up_to_date(client)? {
        return Ok(Outcome {
            version,
            applied: 0,
        });
    }
    step(Step::Migrating);
    let runner = embedded::migrations::runner()
        // One transaction for all, history included: a start that dies half-way leaves what was there.
        .set_grouped(true)
        .set_abort_divergent(true)
        // A schema that a newer broker has migrated further is fine, as long as `min_reader_version` allows it.
        .set_abort_missing(false);
    let newest = newest(&runner);
    let mut tries = 0;
    loop {
        match runner.run(client) {
            Ok(report) => {
                let applied = report.applied_migrations().len();
                tracing::info!(version = newest, applied, "schema is up to date");
                return Ok(Outcome {
                    version: newest,
                    applied,
                });
            }
            Err(error) => match migration_error(&error) {
                // `lock_timeout`: the serving instance was in the way for two seconds. Its transactions are short.
                StartError::Away(reason) if !client.is_closed() && tries < RACES => {
                    tries += 1;
                    tracing::info!(%reason, "migration gave way to running work; trying again");
                    step(Step::MigratingAgain);
                }
                error => return Err(error),
            },
        }
    }
}

fn migration_error(error: &refinery::Error) -> StartError {
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        if let Some(error) = cause.downcast_ref::<postgres::Error>() {
            let text = format!("migration: {}", describe(error));
            return match error.code() {
                _ if server_lost(error) || lost_a_race(error) => StartError::Away(text),
                Some(code) if needs_a_person(code) => StartError::Configuration(text),
                _ => StartError::Failed(text),
            };
        }
        source = cause.source();
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

/// `brokkr_lock`, held in an open transaction on a connection of its own.
struct Lock(Client);

impl Lock {
    fn take(plan: &Plan, client: &mut Client, step: &dyn Fn(Step)) -> Result<Self, StartError> {
        racing(|| {
            let there = client
                .query_one("SELECT to_regclass('brokkr_lock') IS NOT NULL", &[])?
                .get(0);
            if there {
                Ok(())
            } else {
                client.batch_execute("CREATE TABLE brokkr_lock ()")
            }
        })?;
        let mut holder = connect(plan)?;
        holder.batch_execute("SET idle_in_transaction_session_timeout = 0")?;
        holder.batch_execute(&set_path(&plan.schema))?;
        loop {
            match holder
                .batch_execute("BEGIN; LOCK TABLE brokkr_lock IN ACCESS EXCLUSIVE MODE NOWAIT")
            {
                Ok(()) => return Ok(Lock(holder)),
                Err(error) if error.code() == Some(&SqlState::LOCK_NOT_AVAILABLE) => {
                    holder.batch_execute("ROLLBACK")?;
                    step(Step::WaitingForLock);
                    std::thread::sleep(LOCK_RETRY);
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Gives it back. Dropping does too: the server ends the transaction with the connection.
    fn release(mut self) {
        if let Err(error) = self.0.batch_execute("ROLLBACK") {
            tracing::debug!(%error, "the lock's connection was gone already");
        }
    }
}
