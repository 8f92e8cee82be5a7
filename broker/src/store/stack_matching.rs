//! Matches agents to stacks, and computes the objects that an agent should have applied.
//!
//! An agent serves a live stack when it is targeted at the stack, shares a label with it, or shares an annotation (key
//! and value) with it. Labels and annotations count only while the agent is registered with the stack's generator.
//! Matching is exact and case-sensitive, is computed anew on each call, and takes one statement.

use uuid::Uuid;

use super::objects::{self, Object};
use super::row;
use super::stacks::{self, Stack};
use crate::db::{DbError, Sql};

/// Selects the ids of the stacks that agent `$1` serves, deleted stacks included; the caller joins `stacks` to exclude
/// them.
///
/// Three arms instead of one condition with OR, because each arm begins at the agent's own few rows and goes on by
/// index.
macro_rules! served {
    () => {
        "(SELECT t.stack_id FROM agent_targets t WHERE t.agent_id = $1
          UNION
          SELECT sl.stack_id
            FROM agent_labels al
            JOIN agent_generator_registrations r ON r.agent_id = al.agent_id
            JOIN stack_labels sl ON sl.generator_id = r.generator_id AND sl.label = al.label
           WHERE al.agent_id = $1
          UNION
          SELECT sa.stack_id
            FROM agent_annotations aa
            JOIN agent_generator_registrations r ON r.agent_id = aa.agent_id
            JOIN stack_annotations sa
              ON sa.generator_id = r.generator_id AND sa.key = aa.key AND sa.value = aa.value
           WHERE aa.agent_id = $1)"
    };
}

/// Builds an expression that is true when agent `$1` serves a stack now, or served it when it was deleted.
///
/// `OFFSET 0` keeps the planner from turning a look-up of one row into a hash of all the agent's rows.
macro_rules! serving {
    ($stack:literal) => {
        concat!("(EXISTS (SELECT 1 FROM stacks s
                  WHERE s.id = ", $stack, " AND s.deleted_at IS NULL
                    AND (EXISTS (SELECT 1 FROM agent_targets t WHERE t.agent_id = $1 AND t.stack_id = s.id OFFSET 0)
                      OR (EXISTS (SELECT 1 FROM agent_generator_registrations r
                                   WHERE r.agent_id = $1 AND r.generator_id = s.generator_id OFFSET 0)
                          AND (EXISTS (SELECT 1 FROM stack_labels sl
                                         JOIN agent_labels al ON al.agent_id = $1 AND al.label = sl.label
                                        WHERE sl.stack_id = s.id OFFSET 0)
                            OR EXISTS (SELECT 1 FROM stack_annotations sa
                                         JOIN agent_annotations aa
                                           ON aa.agent_id = $1 AND aa.key = sa.key AND aa.value = sa.value
                                        WHERE sa.stack_id = s.id OFFSET 0)))))
          OR EXISTS (SELECT 1 FROM stack_departures d WHERE d.agent_id = $1 AND d.stack_id = ", $stack, "))")
    };
}
pub(super) use serving;

/// Returns the live stacks that an agent serves, ordered by id.
pub fn stacks(db: &mut impl Sql, agent: Uuid) -> Result<Vec<Stack>, DbError> {
    const SQL: &str = concat!(
        "SELECT s.id, s.created_at, s.updated_at, s.deleted_at, s.name, s.description, s.generator_id
           FROM ",
        served!(),
        " AS served JOIN stacks s ON s.id = served.stack_id AND s.deleted_at IS NULL ORDER BY s.id"
    );
    row::all(db, SQL, &[&agent])
}

/// Returns true when an agent serves a stack now, or served it when it was deleted.
pub fn serves(db: &mut impl Sql, agent: Uuid, stack: Uuid) -> Result<bool, DbError> {
    const SQL: &str = concat!("SELECT ", serving!("$2"));
    row::one(db, SQL, &[&agent, &stack])
}

/// Returns those of the given agents that serve a stack now.
pub fn agents_serving(
    db: &mut impl Sql,
    stack: Uuid,
    among: &[Uuid],
) -> Result<Vec<Uuid>, DbError> {
    const SQL: &str = concat!(
        "SELECT served.agent_id FROM ",
        stacks::agents_serving!("$1"),
        " AS served WHERE served.agent_id = ANY ($2)"
    );
    row::all(db, SQL, &[&stack, &among])
}

/// Returns those of the given agents that served any of these stacks when they were deleted.
pub fn departing(db: &mut impl Sql, stacks: &[Uuid], among: &[Uuid]) -> Result<Vec<Uuid>, DbError> {
    const SQL: &str = "\
        SELECT DISTINCT agent_id FROM stack_departures WHERE agent_id = ANY ($2) AND stack_id = ANY ($1)";
    row::all(db, SQL, &[&stacks, &among])
}

/// The part of its target state that an agent asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// The newest object of every stack that the agent serves.
    Full,
    /// Only the objects that the agent has not yet reported as a success.
    Incremental,
}

/// Returns the objects that an agent should have applied, newest first.
///
/// These are the live object with the highest sequence id of each live stack that it serves, and the deletion marker of
/// each deleted stack that it served, until it has answered that marker.
pub fn target_state(db: &mut impl Sql, agent: Uuid, mode: Mode) -> Result<Vec<Object>, DbError> {
    const SQL: &str = concat!(
        "SELECT ",
        objects::columns!(),
        "  FROM ",
        served!(),
        " AS served
           JOIN stacks s ON s.id = served.stack_id AND s.deleted_at IS NULL
           CROSS JOIN LATERAL (
                SELECT ",
        objects::columns!(),
        "         FROM deployment_objects o
                 WHERE o.stack_id = s.id AND o.deleted_at IS NULL ORDER BY o.sequence_id DESC LIMIT 1) AS o
          WHERE NOT ($2 AND EXISTS (
                SELECT 1 FROM agent_events e
                 WHERE e.agent_id = $1 AND e.deployment_object_id = o.id
                   AND e.success_digest IS NOT NULL AND e.deleted_at IS NULL OFFSET 0))
         UNION ALL
         SELECT ",
        objects::columns!(),
        "  FROM stack_departures d
           JOIN deployment_objects o ON o.id = d.deployment_object_id AND o.deleted_at IS NULL
          WHERE d.agent_id = $1 AND d.answered_at IS NULL
          ORDER BY 5 DESC"
    );
    let incremental = mode == Mode::Incremental;
    row::all(db, SQL, &[&agent, &incremental])
}
