//! The first start: administrator, special generators and the marker, all in one transaction.

use postgres::{Client, Transaction};
use uuid::Uuid;

use super::{Plan, StartError};
use crate::pak::{Pak, PakHash};

const ADMIN_GENERATOR: &str = "admin-generator";
const SYSTEM_GENERATOR: &str = "__system__";

/// Held by whoever has a temporary key file: its PAK is about to be, or has just become, the stored one.
pub(super) const LOCK_ADMIN: &str = "LOCK TABLE admin_role IN EXCLUSIVE MODE";

/// True when nothing is left to do: administrator, system generator and marker are there.
pub(super) fn is_done(client: &mut Client) -> Result<bool, postgres::Error> {
    const DONE: &str = "SELECT EXISTS (SELECT FROM admin_role) AND EXISTS (SELECT FROM app_initialization) \
                        AND EXISTS (SELECT FROM generators WHERE is_system AND deleted_at IS NULL)";
    Ok(client.query_one(DONE, &[])?.get(0))
}

/// Does what is not done yet. Idempotent: a start that failed half-way has left nothing but, perhaps, a key file whose
/// PAK is already the stored one.
pub(super) fn run(client: &mut Client, plan: &Plan) -> Result<(), StartError> {
    if is_done(client)? {
        return Ok(());
    }
    let mut tx = client.transaction()?;
    let mut minted = false;
    if stored_hash(&mut tx)?.is_none() {
        let hash = match &plan.pak_hash {
            Some(hash) => hash.clone(),
            None => {
                let pak = Pak::mint(&plan.pak_format)?;
                plan.key_file
                    .prepare(&pak)
                    .map_err(|error| StartError::key_file(&plan.key_file, &error))?;
                minted = true;
                pak.hash()
            }
        };
        set_admin(&mut tx, &hash)?;
    }
    system_generator(&mut tx)?;
    tx.execute(
        "INSERT INTO app_initialization SELECT WHERE NOT EXISTS (SELECT FROM app_initialization)",
        &[],
    )?;
    // An error here leaves the key file unpublished: whether the commit took place is found out by `finish_key_file`,
    // at the next attempt.
    tx.commit()?;
    if minted {
        plan.key_file
            .set_aside()
            .and_then(|()| plan.key_file.publish())
            .map_err(|error| StartError::key_file(&plan.key_file, &error))?;
        tracing::info!(path = %plan.key_file.path().display(), "first start: admin PAK written");
    }
    Ok(())
}

/// Publishes the key file of a start that died between commit and rename, and removes one that leads nowhere.
pub(super) fn finish_key_file(client: &mut Client, plan: &Plan) -> Result<(), StartError> {
    if !plan.key_file.is_pending() {
        return Ok(());
    }
    let mut tx = client.transaction()?;
    // A rotation holds this while its temporary file is meant to be there.
    tx.batch_execute(LOCK_ADMIN)?;
    let stored = stored_hash(&mut tx)?;
    let result = match stored {
        Some(hash) => plan.key_file.adopt(&hash).map(|adopted| {
            if adopted {
                tracing::info!(path = %plan.key_file.path().display(), "first start: admin PAK written");
            }
        }),
        None => plan.key_file.discard(),
    };
    result.map_err(|error| StartError::key_file(&plan.key_file, &error))?;
    tx.rollback()?;
    Ok(())
}

/// The hash of the administrator's PAK, if there is an administrator.
pub(super) fn stored_hash(tx: &mut Transaction<'_>) -> Result<Option<PakHash>, postgres::Error> {
    let row = tx.query_opt("SELECT pak_hash FROM admin_role", &[])?;
    Ok(row.and_then(|row| PakHash::parse(row.get(0))))
}

/// Stores the administrator's hash: on its role, and on the generator of the same name.
pub(super) fn set_admin(tx: &mut Transaction<'_>, hash: &PakHash) -> Result<(), postgres::Error> {
    tx.execute(
        "INSERT INTO admin_role (pak_hash) VALUES ($1) ON CONFLICT (only_row) DO UPDATE SET pak_hash = excluded.pak_hash",
        &[&hash.as_str()],
    )?;
    tx.execute(
        "INSERT INTO generators (name, description, pak_hash) VALUES ($1, 'The administrator as a generator', $2) \
         ON CONFLICT (name) WHERE deleted_at IS NULL DO UPDATE SET pak_hash = excluded.pak_hash",
        &[&ADMIN_GENERATOR, &hash.as_str()],
    )?;
    Ok(())
}

/// Creates the system generator if none lives, and registers every agent there is with it, deleted ones included.
fn system_generator(tx: &mut Transaction<'_>) -> Result<(), postgres::Error> {
    let created = tx.query_opt(
        "INSERT INTO generators (name, description, is_system) \
         SELECT $1, 'Stacks for the whole fleet', true \
         WHERE NOT EXISTS (SELECT FROM generators WHERE is_system AND deleted_at IS NULL) RETURNING id",
        &[&SYSTEM_GENERATOR],
    )?;
    if let Some(row) = created {
        let id: Uuid = row.get(0);
        tx.execute(
            "INSERT INTO agent_generator_registrations (agent_id, generator_id) SELECT id, $1 FROM agents \
             ON CONFLICT DO NOTHING",
            &[&id],
        )?;
    }
    Ok(())
}
