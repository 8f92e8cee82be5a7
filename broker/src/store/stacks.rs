//! Stacks: create, read and change them, and delete them with their objects.

use chrono::{DateTime, Utc};
use serde::Serialize;
use utoipa::ToSchema;
use uuid::Uuid;

use super::row;
use crate::db::{DbError, Sql};

row! {
    columns = "";
    /// A stack as the API shows it.
    #[derive(Clone, Debug, Serialize, ToSchema)]
    #[allow(missing_docs, reason = "the fields are the API's")]
    pub struct Stack {
        pub id: Uuid,
        pub created_at: DateTime<Utc>,
        pub updated_at: DateTime<Utc>,
        pub deleted_at: Option<DateTime<Utc>>,
        pub name: String,
        pub description: Option<String>,
        pub generator_id: Uuid,
    }
}

/// Selects the ids of the agents that serve a stack. Goes from the stack's few labels and annotations to the agents that
/// share them.
macro_rules! agents_serving {
    ($stack:literal) => {
        concat!(
            "(SELECT t.agent_id FROM agent_targets t WHERE t.stack_id = ",
            $stack,
            " UNION
              SELECT al.agent_id
                FROM stack_labels sl
                JOIN agent_labels al ON al.label = sl.label
                JOIN agent_generator_registrations r
                  ON r.agent_id = al.agent_id AND r.generator_id = sl.generator_id
               WHERE sl.stack_id = ",
            $stack,
            " UNION
              SELECT aa.agent_id
                FROM stack_annotations sa
                JOIN agent_annotations aa ON aa.key = sa.key AND aa.value = sa.value
                JOIN agent_generator_registrations r
                  ON r.agent_id = aa.agent_id AND r.generator_id = sa.generator_id
               WHERE sa.stack_id = ",
            $stack,
            ")"
        )
    };
}
pub(super) use agents_serving;

/// Returns every live stack.
pub fn list(db: &mut impl Sql) -> Result<Vec<Stack>, DbError> {
    const SQL: &str = concat!(
        "SELECT ",
        columns!(),
        " FROM stacks WHERE deleted_at IS NULL ORDER BY created_at, id"
    );
    row::all(db, SQL, &[])
}

/// Returns the live stacks of a generator; none when it is unknown.
pub fn list_of(db: &mut impl Sql, generator: Uuid) -> Result<Vec<Stack>, DbError> {
    const SQL: &str = concat!(
        "SELECT ",
        columns!(),
        " FROM stacks WHERE generator_id = $1 AND deleted_at IS NULL ORDER BY created_at, id"
    );
    row::all(db, SQL, &[&generator])
}

/// Returns the live stack with this id.
pub fn get(db: &mut impl Sql, id: Uuid) -> Result<Option<Stack>, DbError> {
    const SQL: &str = concat!(
        "SELECT ",
        columns!(),
        " FROM stacks WHERE id = $1 AND deleted_at IS NULL"
    );
    row::optional(db, SQL, &[&id])
}

/// Does the same as [`get`], and locks the stack against all other writers of its objects, labels and targets until the
/// end of the transaction.
///
/// Takes the strongest lock, which also blocks new references: an agent targeted at the stack during its deletion would
/// otherwise be missing from its departures.
pub fn get_locked(db: &mut impl Sql, id: Uuid) -> Result<Option<Stack>, DbError> {
    const SQL: &str = concat!(
        "SELECT ",
        columns!(),
        " FROM stacks WHERE id = $1 AND deleted_at IS NULL FOR UPDATE"
    );
    row::optional(db, SQL, &[&id])
}

/// Locks a generator's live stacks as [`get_locked`] does, and returns their ids. Always locks in order of id, so that
/// two callers cannot deadlock.
pub fn lock_all_of(db: &mut impl Sql, generator: Uuid) -> Result<Vec<Uuid>, DbError> {
    const SQL: &str = "\
        SELECT id FROM stacks WHERE generator_id = $1 AND deleted_at IS NULL ORDER BY id FOR UPDATE";
    row::all(db, SQL, &[&generator])
}

/// Adds a stack. Returns `None` when there is no such live generator.
///
/// # Errors
/// When the name is taken.
pub fn insert(
    db: &mut impl Sql,
    name: &str,
    description: Option<&str>,
    generator: Uuid,
) -> Result<Option<Stack>, DbError> {
    // The lock waits for a running deletion of the generator and then finds no live row, so no live stack outlives its
    // generator.
    const SQL: &str = concat!(
        "INSERT INTO stacks (name, description, generator_id)
         SELECT $1, $2, g.id
           FROM (SELECT id FROM generators WHERE id = $3 AND deleted_at IS NULL FOR KEY SHARE) AS g
         RETURNING ",
        columns!()
    );
    row::optional(db, SQL, &[&name, &description, &generator])
}

/// Changes a live stack. Without a description the old description stays.
///
/// # Errors
/// When the name is taken.
pub fn update(
    db: &mut impl Sql,
    id: Uuid,
    name: &str,
    description: Option<&str>,
) -> Result<Option<Stack>, DbError> {
    const SQL: &str = concat!(
        "UPDATE stacks SET name = $2, description = coalesce($3, description)
          WHERE id = $1 AND deleted_at IS NULL RETURNING ",
        columns!()
    );
    row::optional(db, SQL, &[&id, &name, &description])
}

/// Marks these live stacks and their live objects as deleted, adds a deletion marker to each stack, and notes every
/// agent that served it, so that the marker reaches them. Returns the time of deletion.
///
/// The caller must have locked the stacks in an earlier statement of the same transaction. Only then does this
/// statement's snapshot include every object committed before, and only then does the marker get a higher sequence id
/// than all of them.
pub fn delete_locked(db: &mut impl Sql, stacks: &[Uuid]) -> Result<DateTime<Utc>, DbError> {
    // The checksum is the MD5 of the empty text, by which agents recognise a marker.
    const SQL: &str = concat!(
        "WITH gone AS (
            UPDATE stacks SET deleted_at = now() WHERE id = ANY ($1) AND deleted_at IS NULL RETURNING id),
        objects AS (
            UPDATE deployment_objects o SET deleted_at = now() FROM gone
             WHERE o.stack_id = gone.id AND o.deleted_at IS NULL),
        markers AS (
            INSERT INTO deployment_objects (stack_id, yaml_content, yaml_checksum, submitted_at, is_deletion_marker)
            SELECT gone.id, '', 'd41d8cd98f00b204e9800998ecf8427e', now(), true FROM gone
            RETURNING id, stack_id),
        departures AS (
            INSERT INTO stack_departures (agent_id, stack_id, deployment_object_id)
            SELECT served.agent_id, m.stack_id, m.id
              FROM markers m,
                   LATERAL ",
        agents_serving!("m.stack_id"),
        "     AS served
              JOIN agents a ON a.id = served.agent_id AND a.deleted_at IS NULL)
        SELECT now()"
    );
    row::one(db, SQL, &[&stacks])
}
