//! Registrations: an agent's consent to serve a generator.

use chrono::{DateTime, Utc};
use serde::Serialize;
use utoipa::ToSchema;
use uuid::Uuid;

use super::row;
use crate::db::{DbError, Sql};

row! {
    columns = "";
    /// A registration as the API shows it.
    #[derive(Debug, Serialize, ToSchema)]
    #[schema(as = AgentGeneratorRegistration)]
    #[allow(missing_docs, reason = "the fields are the API's")]
    pub struct Registration {
        pub id: Uuid,
        pub agent_id: Uuid,
        pub generator_id: Uuid,
        pub registered_at: DateTime<Utc>,
    }
}

/// Returns the registrations of an agent.
pub fn of_agent(db: &mut impl Sql, agent: Uuid) -> Result<Vec<Registration>, DbError> {
    const SQL: &str = concat!(
        "SELECT ",
        columns!(),
        " FROM agent_generator_registrations WHERE agent_id = $1 ORDER BY registered_at, id"
    );
    row::all(db, SQL, &[&agent])
}

/// Returns the registrations with a generator.
pub fn with_generator(db: &mut impl Sql, generator: Uuid) -> Result<Vec<Registration>, DbError> {
    const SQL: &str = concat!(
        "SELECT ",
        columns!(),
        " FROM agent_generator_registrations WHERE generator_id = $1 ORDER BY registered_at, id"
    );
    row::all(db, SQL, &[&generator])
}

/// Registers an agent with a generator. Returns `None` when it is registered already.
///
/// # Errors
/// When the agent or generator is unknown.
pub fn add(
    db: &mut impl Sql,
    agent: Uuid,
    generator: Uuid,
) -> Result<Option<Registration>, DbError> {
    const SQL: &str = concat!(
        "INSERT INTO agent_generator_registrations (agent_id, generator_id) VALUES ($1, $2)
         ON CONFLICT (agent_id, generator_id) DO NOTHING RETURNING ",
        columns!()
    );
    row::optional(db, SQL, &[&agent, &generator])
}

/// Registers an agent with the system generator, if it exists, and with each of `generators`. Existing registrations
/// stay.
///
/// # Errors
/// When the agent or a generator is unknown.
pub fn add_first(db: &mut impl Sql, agent: Uuid, generators: &[Uuid]) -> Result<(), DbError> {
    const SQL: &str = "\
        INSERT INTO agent_generator_registrations (agent_id, generator_id)
        SELECT $1, first.id
          FROM ((SELECT id FROM generators WHERE is_system AND deleted_at IS NULL ORDER BY created_at, id LIMIT 1)
                UNION SELECT unnest($2::uuid[])) AS first
        ON CONFLICT (agent_id, generator_id) DO NOTHING";
    db.execute(SQL, &[&agent, &generators])?;
    Ok(())
}

/// Ends a registration, and removes the agent's targets on the generator's live stacks. Returns false when there was no
/// registration. Must run inside a transaction.
pub fn remove(db: &mut impl Sql, agent: Uuid, generator: Uuid) -> Result<bool, DbError> {
    const REGISTRATION: &str =
        "DELETE FROM agent_generator_registrations WHERE agent_id = $1 AND generator_id = $2";
    const TARGETS: &str = "\
        DELETE FROM agent_targets t USING stacks s
         WHERE t.agent_id = $1 AND s.id = t.stack_id AND s.generator_id = $2 AND s.deleted_at IS NULL";
    // Deletes the registration first, because a transaction that adds a target locks that row: the second statement's
    // snapshot is taken after the wait, so it sees that target too.
    let ended = db.execute(REGISTRATION, &[&agent, &generator])? > 0;
    db.execute(TARGETS, &[&agent, &generator])?;
    Ok(ended)
}
