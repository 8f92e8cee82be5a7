//! The settings of a start, and the steps that it reports.

use std::time::Duration;

use brokkr_tenant::{DatabaseUrl, SchemaName};
use postgres::Client;

use super::admin_pak_file::AdminPakFile;
use super::error::StartError;
use crate::pak::{PakFormat, PakHash};
use crate::webhook::key::KeySource;

/// The default time that a start waits for another start's lock. Shorter than the supervisor's default start timeout of
/// 60 s, so that the reason is reported before that timeout ends the start.
pub const PATIENCE: Duration = Duration::from_secs(50);

/// The settings of a start.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The server's URL.
    pub url: DatabaseUrl,
    /// The tenant's schema.
    pub schema: SchemaName,
    /// The name that `pg_stat_activity` shows.
    pub application_name: String,
    /// The format of a minted admin PAK.
    pub pak_format: PakFormat,
    /// `broker.pak_hash`: used instead of minting a PAK.
    pub pak_hash: Option<PakHash>,
    /// The file that receives a minted admin PAK.
    pub key_file: AdminPakFile,
    /// The source of the webhook key.
    pub webhook_key: KeySource,
    /// The longest wait for another start's lock.
    pub patience: Duration,
}

/// The current step of a start, reported only when more than a look is needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Waits for another broker's start on the same schema.
    WaitingForLock,
    /// Applies migrations.
    Migrating,
    /// Retries a migration that gave way to another transaction.
    MigratingAgain,
}

impl Plan {
    /// Connects without a statement timeout, because a migration may take long. Waits for locks are bounded, so that a
    /// migration never blocks the instance that still serves this schema.
    pub(super) fn connect(&self) -> Result<Client, StartError> {
        let options = brokkr_pg::Options::new(self.application_name.as_str())
            .read_write()
            .settings("SET lock_timeout = '2s'");
        Ok(brokkr_pg::connect(&self.url, &options)?)
    }
}
