//! `rotate`: replaces a PAK by a new PAK.

use clap::Subcommand;
use uuid::Uuid;

use super::exit::{failed, mint, refused, uuid};
use super::output::{Stream, one_line, say};
use crate::config::Instance;
use crate::db::start::rotate_admin;
use crate::db::{CliConnection, Tx};
use crate::domain::provisioning::{self, Caller, ProvisioningError};
use crate::http::ServeError;
use crate::pak::PakHash;

/// Holders whose PAK can be rotated.
#[derive(Subcommand)]
pub(super) enum RotateTarget {
    /// The administrator's PAK; prints the new PAK and replaces admin.pak
    Admin,
    /// An agent's PAK
    Agent {
        /// The agent's id
        #[arg(long, value_name = "ID")]
        uuid: String,
    },
    /// A generator's PAK
    Generator {
        /// The generator's id
        #[arg(long, value_name = "ID")]
        uuid: String,
    },
}

/// The time is the bound that `auth/cache.rs` guarantees.
const OLD_PAK: &str = "The old PAK is dead: a running broker refuses it within a second.\n";

pub(super) fn run(instance: &Instance, what: &RotateTarget) -> Result<(), ServeError> {
    match what {
        RotateTarget::Admin => admin(instance),
        RotateTarget::Agent { uuid } => holder(instance, "Agent", uuid, |tx, id, hash| {
            Ok(provisioning::rotate_agent(tx, Caller::Command, id, hash)?.name)
        }),
        RotateTarget::Generator { uuid } => holder(instance, "Generator", uuid, |tx, id, hash| {
            Ok(provisioning::rotate_generator(tx, Caller::Command, id, hash)?.name)
        }),
    }
}

fn holder(
    instance: &Instance,
    kind: &str,
    id: &str,
    rotate: impl FnOnce(&mut Tx<'_>, Uuid, &PakHash) -> Result<String, ProvisioningError>,
) -> Result<(), ServeError> {
    let id = uuid(instance, "--uuid", id)?;
    let pak = mint(instance)?;
    let mut db = CliConnection::open(&instance.plan()).map_err(|error| failed(instance, error))?;
    let name = db
        .transaction(|tx| rotate(tx, id, &pak.hash()))
        .map_err(|refusal| refused(instance, refusal))?;
    say(
        Stream::Out,
        &format!(
            "{kind} PAK rotated successfully:\nID: {id}\nName: {}\nNew PAK: {}\n\n{OLD_PAK}",
            one_line(&name),
            pak.expose()
        ),
    )
}

fn admin(instance: &Instance) -> Result<(), ServeError> {
    let plan = instance.plan();
    match rotate_admin(&plan).map_err(|error| failed(instance, error))? {
        Some(pak) => say(
            Stream::Out,
            &format!(
                "Admin PAK of {} rotated.\nNew PAK: {}\nHash: {}\nWritten to {}\n\n{OLD_PAK}",
                instance.tenant,
                pak.expose(),
                pak.hash().as_str(),
                plan.key_file.path().display()
            ),
        ),
        None => {
            let hash = plan.pak_hash.as_ref().map_or("", PakHash::as_str);
            say(
                Stream::Out,
                &format!(
                    "Admin hash of {} replaced by broker.pak_hash of the configuration; no PAK was minted.\nHash: {hash}\n",
                    instance.tenant
                ),
            )
        }
    }
}
