//! The first start: creates the administrator, the special generators and the marker in one transaction.

use postgres::{Client, Transaction};
use uuid::Uuid;

use super::error::StartError;
use super::plan::Plan;
use crate::pak::{Pak, PakHash};

const ADMIN_GENERATOR: &str = "admin-generator";
const SYSTEM_GENERATOR: &str = "__system__";

/// Locks the admin role. A rotation takes this lock before it writes a temporary key file, and `finish_key_file` before
/// it handles such a file, so that neither disturbs the other.
pub(super) const LOCK_ADMIN: &str = "LOCK TABLE admin_role IN EXCLUSIVE MODE";

/// Returns true when administrator, system generator and marker exist.
pub(super) fn is_done(client: &mut Client) -> Result<bool, postgres::Error> {
    const DONE: &str = "SELECT EXISTS (SELECT FROM admin_role) AND EXISTS (SELECT FROM app_initialization) \
                        AND EXISTS (SELECT FROM generators WHERE is_system AND deleted_at IS NULL)";
    Ok(client.query_one(DONE, &[])?.get(0))
}

/// Does the parts of a first start that are not done yet. Safe to repeat: a start that failed half-way leaves at most a
/// key file whose PAK is already stored.
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
    // An error here leaves the key file unpublished. The next attempt finds out in `finish_key_file` whether the commit
    // took place.
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

/// Publishes the key file of a start that died between commit and rename, and removes a key file whose PAK is not
/// stored.
pub(super) fn finish_key_file(client: &mut Client, plan: &Plan) -> Result<(), StartError> {
    if !plan.key_file.is_pending() {
        return Ok(());
    }
    let mut tx = client.transaction()?;
    // Waits for a rotation, which holds this lock while its temporary file must stay.
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

/// Returns the hash of the administrator's PAK, if there is an administrator.
pub(super) fn stored_hash(tx: &mut Transaction<'_>) -> Result<Option<PakHash>, postgres::Error> {
    let row = tx.query_opt("SELECT pak_hash FROM admin_role", &[])?;
    Ok(row.and_then(|row| PakHash::parse(row.get(0))))
}

/// Stores the administrator's hash for the admin role and for the generator `admin-generator`.
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

/// Creates the system generator if none is live, and registers every agent with it, deleted agents included.
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
