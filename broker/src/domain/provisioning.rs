//! Creation of agents and generators, and replacement of their PAKs, for both the API and the commands.
//!
//! Call every function in a transaction, so that its rows, audit entries and events are stored together or not at all.
//! Callers check names, because only they know the name of the field or option.

use serde_json::{Value, json};
use uuid::Uuid;

use super::outbox::{Actor, AuditRecord, SubscriberEvent, emit};
use crate::db::{DbError, Sql};
use crate::pak::PakHash;
use crate::store::agents::{self, Agent};
use crate::store::generators::{self, Generator};
use crate::store::registrations;

/// The source of the request.
#[derive(Clone, Copy, Debug)]
pub enum Caller {
    /// A caller of the API.
    Caller(Actor),
    /// A person at a terminal: the audit log records the administrator, `via` the command line.
    Command,
}

impl Caller {
    fn audit(
        self,
        action: &'static str,
        kind: &'static str,
        id: Uuid,
        details: Value,
    ) -> AuditRecord {
        let (actor, details) = match (self, details) {
            (Caller::Caller(actor), details) => (actor, details),
            (Caller::Command, Value::Object(mut details)) => {
                details.insert("via".to_owned(), "cli".into());
                (Actor::Admin, Value::Object(details))
            }
            (Caller::Command, details) => (Actor::Admin, details),
        };
        AuditRecord::new(actor, action, kind, Some(id)).details(details)
    }

    /// Returns the key of the holder's name in a rotation's audit entry.
    fn name_key(self, api: &'static str) -> &'static str {
        match self {
            Caller::Caller(_) => api,
            Caller::Command => "name",
        }
    }
}

/// Reason why the agent, generator or PAK was not created.
#[derive(Debug, thiserror::Error)]
pub enum ProvisioningError {
    /// A requested generator of a new agent does not exist.
    #[error("`generator_ids` names a generator that does not exist")]
    UnknownGenerator,
    /// No live agent has this id.
    #[error("there is no such agent")]
    NoAgent,
    /// No live generator has this id.
    #[error("there is no such generator")]
    NoGenerator,
    /// The name is taken, or a statement failed.
    #[error(transparent)]
    Db(#[from] DbError),
}

/// Adds an agent, and registers it with the system generator and with the given generators.
pub fn agent(
    tx: &mut impl Sql,
    by: Caller,
    (name, cluster): (&str, &str),
    generators: &[Uuid],
    hash: &PakHash,
) -> Result<Agent, ProvisioningError> {
    if !generators::all_live(tx, generators)? {
        return Err(ProvisioningError::UnknownGenerator);
    }
    let agent = agents::insert(tx, name, cluster, hash.as_str())?;
    registrations::add_first(tx, agent.id, generators)?;
    let audits = [
        by.audit(
            "agent.created",
            "agent",
            agent.id,
            json!({ "name": agent.name, "cluster_name": agent.cluster_name }),
        ),
        by.audit(
            "pak.created",
            "pak",
            agent.id,
            json!({ "entity": "agent", "name": agent.name }),
        ),
    ];
    let event = SubscriberEvent::new(
        "agent.registered",
        json!({
            "agent_id": agent.id,
            "name": agent.name,
            "cluster_name": agent.cluster_name,
            "status": agent.status,
            "created_at": agent.created_at,
        }),
    );
    emit(tx, &audits, &[event])?;
    Ok(agent)
}

/// Adds a generator.
pub fn generator(
    tx: &mut impl Sql,
    by: Caller,
    name: &str,
    description: Option<&str>,
    hash: &PakHash,
) -> Result<Generator, ProvisioningError> {
    let generator = generators::insert(tx, name, description, hash.as_str())?;
    let audits = [
        by.audit(
            "generator.created",
            "generator",
            generator.id,
            json!({ "name": generator.name }),
        ),
        by.audit(
            "pak.created",
            "pak",
            generator.id,
            json!({ "entity": "generator", "name": generator.name }),
        ),
    ];
    emit(tx, &audits, &[])?;
    Ok(generator)
}

/// Replaces an agent's PAK by the PAK with this hash.
pub fn rotate_agent(
    tx: &mut impl Sql,
    by: Caller,
    id: Uuid,
    hash: &PakHash,
) -> Result<Agent, ProvisioningError> {
    let agent = agents::set_pak_hash(tx, id, hash.as_str())?.ok_or(ProvisioningError::NoAgent)?;
    let details = json!({ by.name_key("agent_name"): agent.name });
    emit(tx, &[by.audit("pak.rotated", "agent", id, details)], &[])?;
    Ok(agent)
}

/// Replaces a generator's PAK by the PAK with this hash.
pub fn rotate_generator(
    tx: &mut impl Sql,
    by: Caller,
    id: Uuid,
    hash: &PakHash,
) -> Result<Generator, ProvisioningError> {
    let generator =
        generators::set_pak_hash(tx, id, hash.as_str())?.ok_or(ProvisioningError::NoGenerator)?;
    let details = json!({ by.name_key("generator_name"): generator.name });
    emit(
        tx,
        &[by.audit("pak.rotated", "generator", id, details)],
        &[],
    )?;
    Ok(generator)
}
