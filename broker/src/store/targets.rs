//! Targets: stacks an agent is explicitly told to serve.

use postgres::Row;
use serde::Serialize;
use utoipa::ToSchema;
use uuid::Uuid;

use crate::db::{DbError, Sql};

/// A target as the API shows it.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = AgentTarget)]
#[allow(missing_docs, reason = "the fields are the API's")]
pub struct Target {
    pub id: Uuid,
    pub agent_id: Uuid,
    pub stack_id: Uuid,
}

impl Target {
    fn read(row: &Row) -> Result<Self, DbError> {
        Ok(Self {
            id: row.try_get(0)?,
            agent_id: row.try_get(1)?,
            stack_id: row.try_get(2)?,
        })
    }
}

/// What decides whether a target may be added or removed.
#[derive(Clone, Copy, Debug)]
pub struct Standing {
    /// Owner of the stack.
    pub generator: Uuid,
    /// The agent is registered with that owner.
    pub registered: bool,
}

/// How an agent stands to a live stack, or `None` when there is no such live stack.
///
/// # Errors
/// When the statement fails.
pub fn standing(db: &mut impl Sql, agent: Uuid, stack: Uuid) -> Result<Option<Standing>, DbError> {
    // The registration is held until the end of the transaction: an agent that leaves its generator meanwhile waits, and
    // then takes the target with it.
    const SQL: &str = "\
        SELECT s.generator_id,
               (SELECT r.id FROM agent_generator_registrations r
                 WHERE r.agent_id = $1 AND r.generator_id = s.generator_id FOR KEY SHARE) IS NOT NULL
          FROM stacks s WHERE s.id = $2 AND s.deleted_at IS NULL";
    db.query_opt(SQL, &[&agent, &stack])?
        .map(|row| {
            Ok(Standing {
                generator: row.try_get(0)?,
                registered: row.try_get(1)?,
            })
        })
        .transpose()
}

/// The targets of an agent, live or not.
///
/// # Errors
/// When the statement fails.
pub fn list(db: &mut impl Sql, agent: Uuid) -> Result<Vec<Target>, DbError> {
    const SQL: &str = "SELECT id, agent_id, stack_id FROM agent_targets WHERE agent_id = $1 ORDER BY created_at, id";
    super::all(db.query(SQL, &[&agent])?, Target::read)
}

/// Adds a target.
///
/// # Errors
/// An unknown agent or stack, a target that is there already, or a failed statement.
pub fn add(db: &mut impl Sql, agent: Uuid, stack: Uuid) -> Result<Target, DbError> {
    const SQL: &str = "\
        INSERT INTO agent_targets (agent_id, stack_id) VALUES ($1, $2) RETURNING id, agent_id, stack_id";
    Target::read(&db.query_one(SQL, &[&agent, &stack])?)
}

/// Takes a target away. False when there was none.
///
/// # Errors
/// When the statement fails.
pub fn remove(db: &mut impl Sql, agent: Uuid, stack: Uuid) -> Result<bool, DbError> {
    const SQL: &str = "DELETE FROM agent_targets WHERE agent_id = $1 AND stack_id = $2";
    Ok(db.execute(SQL, &[&agent, &stack])? > 0)
}
