//! Targets: stacks that an agent is explicitly told to serve.

use serde::Serialize;
use utoipa::ToSchema;
use uuid::Uuid;

use super::row;
use crate::db::{DbError, Sql};

row! {
    columns = "";
    /// A target as the API shows it.
    #[derive(Debug, Serialize, ToSchema)]
    #[schema(as = AgentTarget)]
    #[allow(missing_docs, reason = "the fields are the API's")]
    pub struct Target {
        pub id: Uuid,
        pub agent_id: Uuid,
        pub stack_id: Uuid,
    }
}

row! {
    /// The facts that decide if a target may be added or removed.
    #[derive(Clone, Copy, Debug)]
    pub struct TargetEligibility {
        /// The generator that owns the stack.
        pub generator: Uuid,
        /// True when the agent is registered with that generator.
        pub registered: bool,
    }
}

/// Returns an agent's standing to a live stack, or `None` when there is no such live stack.
pub fn standing(
    db: &mut impl Sql,
    agent: Uuid,
    stack: Uuid,
) -> Result<Option<TargetEligibility>, DbError> {
    // Locks the registration until the end of the transaction. An agent that leaves its generator meanwhile waits, and
    // then removes this target too.
    const SQL: &str = "\
        SELECT s.generator_id,
               (SELECT r.id FROM agent_generator_registrations r
                 WHERE r.agent_id = $1 AND r.generator_id = s.generator_id FOR KEY SHARE) IS NOT NULL
          FROM stacks s WHERE s.id = $2 AND s.deleted_at IS NULL";
    row::optional(db, SQL, &[&agent, &stack])
}

/// Returns the targets of an agent, also of a deleted agent or stack.
pub fn list(db: &mut impl Sql, agent: Uuid) -> Result<Vec<Target>, DbError> {
    const SQL: &str = concat!(
        "SELECT ",
        columns!(),
        " FROM agent_targets WHERE agent_id = $1 ORDER BY created_at, id"
    );
    row::all(db, SQL, &[&agent])
}

/// Adds a target.
///
/// # Errors
/// When the agent or stack is unknown, or the target exists already.
pub fn add(db: &mut impl Sql, agent: Uuid, stack: Uuid) -> Result<Target, DbError> {
    const SQL: &str = concat!(
        "INSERT INTO agent_targets (agent_id, stack_id) VALUES ($1, $2) RETURNING ",
        columns!()
    );
    row::one(db, SQL, &[&agent, &stack])
}

/// Removes a target. Returns false when there was none.
pub fn remove(db: &mut impl Sql, agent: Uuid, stack: Uuid) -> Result<bool, DbError> {
    const SQL: &str = "DELETE FROM agent_targets WHERE agent_id = $1 AND stack_id = $2";
    Ok(db.execute(SQL, &[&agent, &stack])? > 0)
}
