//! Enrolling agents and generators, and replacing their PAKs: the same steps whoever asks, a caller of the API or a person
//! with a command.
//!
//! Every function belongs in a transaction: what it writes, its audit entries and its events are there together or not at
//! all. Names are checked by whoever asks, who knows how to call them.

use serde_json::{Value, json};
use uuid::Uuid;

use crate::db::{DbError, Sql};
use crate::emit::{Actor, Audit, Event, emit};
use crate::error::Error;
use crate::pak::PakHash;
use crate::store::agents::{self, Agent};
use crate::store::generators::{self, Generator};
use crate::store::registrations;

/// Who asks.
#[derive(Clone, Copy, Debug)]
pub enum By {
    /// A caller of the API.
    Caller(Actor),
    /// A person at a terminal: the administrator, and the audit log says by which way.
    Command,
}

impl By {
    fn audit(self, action: &'static str, kind: &'static str, id: Uuid, details: Value) -> Audit {
        let (actor, details) = match (self, details) {
            (By::Caller(actor), details) => (actor, details),
            (By::Command, Value::Object(mut details)) => {
                details.insert("via".to_owned(), "cli".into());
                (Actor::Admin, Value::Object(details))
            }
            (By::Command, details) => (Actor::Admin, details),
        };
        Audit::new(actor, action, kind, Some(id)).details(details)
    }

    /// What a rotation's entry calls the name of the PAK's holder.
    fn name_key(self, api: &'static str) -> &'static str {
        match self {
            By::Caller(_) => api,
            By::Command => "name",
        }
    }
}

/// Why nobody was enrolled, and no PAK replaced.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// One of the generators that an agent was to be registered with is not there.
    #[error("`generator_ids` names a generator that does not exist")]
    UnknownGenerator,
    /// There is no such live agent.
    #[error("there is no such agent")]
    NoAgent,
    /// There is no such live generator.
    #[error("there is no such generator")]
    NoGenerator,
    /// A taken name, or a failed statement.
    #[error(transparent)]
    Db(#[from] DbError),
}

impl From<Refusal> for Error {
    fn from(refusal: Refusal) -> Self {
        let text = refusal.to_string();
        match refusal {
            Refusal::UnknownGenerator => Error::bad_request("invalid_generator_id", text),
            Refusal::NoAgent => Error::not_found("agent_not_found", text),
            Refusal::NoGenerator => Error::not_found("generator_not_found", text),
            Refusal::Db(error) => error.into(),
        }
    }
}

/// Adds an agent, and registers it with the system generator and with these.
///
/// # Errors
/// [`Refusal`].
pub fn agent(
    tx: &mut impl Sql,
    by: By,
    (name, cluster): (&str, &str),
    generators: &[Uuid],
    hash: &PakHash,
) -> Result<Agent, Refusal> {
    if !generators::all_live(tx, generators)? {
        return Err(Refusal::UnknownGenerator);
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
    let event = Event::new(
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
///
/// # Errors
/// [`Refusal`].
pub fn generator(
    tx: &mut impl Sql,
    by: By,
    name: &str,
    description: Option<&str>,
    hash: &PakHash,
) -> Result<Generator, Refusal> {
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

/// Replaces an agent's PAK by the one with this hash.
///
/// # Errors
/// [`Refusal`].
pub fn rotate_agent(tx: &mut impl Sql, by: By, id: Uuid, hash: &PakHash) -> Result<Agent, Refusal> {
    let agent = agents::set_pak_hash(tx, id, hash.as_str())?.ok_or(Refusal::NoAgent)?;
    let details = json!({ by.name_key("agent_name"): agent.name });
    emit(tx, &[by.audit("pak.rotated", "agent", id, details)], &[])?;
    Ok(agent)
}

/// Replaces a generator's PAK by the one with this hash.
///
/// # Errors
/// [`Refusal`].
pub fn rotate_generator(
    tx: &mut impl Sql,
    by: By,
    id: Uuid,
    hash: &PakHash,
) -> Result<Generator, Refusal> {
    let generator = generators::set_pak_hash(tx, id, hash.as_str())?.ok_or(Refusal::NoGenerator)?;
    let details = json!({ by.name_key("generator_name"): generator.name });
    emit(
        tx,
        &[by.audit("pak.rotated", "generator", id, details)],
        &[],
    )?;
    Ok(generator)
}
