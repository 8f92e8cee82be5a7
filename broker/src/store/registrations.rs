//! Registrations: an agent's consent to serve a generator.

use chrono::{DateTime, Utc};
use postgres::Row;
use serde::Serialize;
use utoipa::ToSchema;
use uuid::Uuid;

use crate::db::{DbError, Sql};

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

impl Registration {
    fn read(row: &Row) -> Result<Self, DbError> {
        Ok(Self {
            id: row.try_get(0)?,
            agent_id: row.try_get(1)?,
            generator_id: row.try_get(2)?,
            registered_at: row.try_get(3)?,
        })
    }
}

/// The registrations of an agent.
///
/// # Errors
/// When the statement fails.
pub fn of_agent(db: &mut impl Sql, agent: Uuid) -> Result<Vec<Registration>, DbError> {
    const SQL: &str = "\
        SELECT id, agent_id, generator_id, registered_at FROM agent_generator_registrations
         WHERE agent_id = $1 ORDER BY registered_at, id";
    super::all(db.query(SQL, &[&agent])?, Registration::read)
}

/// The registrations with a generator.
///
/// # Errors
/// When the statement fails.
pub fn with_generator(db: &mut impl Sql, generator: Uuid) -> Result<Vec<Registration>, DbError> {
    const SQL: &str = "\
        SELECT id, agent_id, generator_id, registered_at FROM agent_generator_registrations
         WHERE generator_id = $1 ORDER BY registered_at, id";
    super::all(db.query(SQL, &[&generator])?, Registration::read)
}

/// Registers an agent with a generator. `None` when it is registered already.
///
/// # Errors
/// An unknown agent or generator, or a failed statement.
pub fn add(
    db: &mut impl Sql,
    agent: Uuid,
    generator: Uuid,
) -> Result<Option<Registration>, DbError> {
    const SQL: &str = "\
        INSERT INTO agent_generator_registrations (agent_id, generator_id) VALUES ($1, $2)
        ON CONFLICT (agent_id, generator_id) DO NOTHING
        RETURNING id, agent_id, generator_id, registered_at";
    db.query_opt(SQL, &[&agent, &generator])?
        .as_ref()
        .map(Registration::read)
        .transpose()
}

/// Registers an agent with the system generator, if there is one, and with each of these. What is there already stays.
///
/// # Errors
/// An unknown agent or generator, or a failed statement.
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

/// Ends a registration and with it the agent's targets on that generator's live stacks. False when there was none. To be
/// called inside a transaction.
///
/// # Errors
/// When a statement fails.
pub fn remove(db: &mut impl Sql, agent: Uuid, generator: Uuid) -> Result<bool, DbError> {
    const REGISTRATION: &str =
        "DELETE FROM agent_generator_registrations WHERE agent_id = $1 AND generator_id = $2";
    const TARGETS: &str = "\
        DELETE FROM agent_targets t USING stacks s
         WHERE t.agent_id = $1 AND s.id = t.stack_id AND s.generator_id = $2 AND s.deleted_at IS NULL";
    // The registration first: whoever is adding a target holds its row, so the second statement, whose snapshot is taken
    // after that wait, sees their target too.
    let ended = db.execute(REGISTRATION, &[&agent, &generator])? > 0;
    db.execute(TARGETS, &[&agent, &generator])?;
    Ok(ended)
}
