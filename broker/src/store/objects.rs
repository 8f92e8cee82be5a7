//! Deployment objects: immutable, numbered by one sequence per schema.

use chrono::{DateTime, Utc};
use postgres::Row;
use serde::Serialize;
use utoipa::ToSchema;
use uuid::Uuid;

use crate::db::{DbError, Sql};

/// A deployment object as the API shows it.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(as = DeploymentObject)]
#[allow(missing_docs, reason = "the fields are the API's")]
pub struct Object {
    pub id: Uuid,
    pub created_at: DateTime<Utc>,
    pub updated_at: DateTime<Utc>,
    pub deleted_at: Option<DateTime<Utc>>,
    pub sequence_id: i64,
    pub stack_id: Uuid,
    pub yaml_content: String,
    pub yaml_checksum: String,
    pub submitted_at: DateTime<Utc>,
    pub is_deletion_marker: bool,
}

/// The columns of [`Object`], of the table or alias `o`.
macro_rules! columns {
    () => {
        "o.id, o.created_at, o.updated_at, o.deleted_at, o.sequence_id, o.stack_id, o.yaml_content, o.yaml_checksum, \
         o.submitted_at, o.is_deletion_marker"
    };
}
pub(super) use columns;

impl Object {
    /// Reads the first ten columns.
    pub(super) fn read(row: &Row) -> Result<Self, DbError> {
        Ok(Self {
            id: row.try_get(0)?,
            created_at: row.try_get(1)?,
            updated_at: row.try_get(2)?,
            deleted_at: row.try_get(3)?,
            sequence_id: row.try_get(4)?,
            stack_id: row.try_get(5)?,
            yaml_content: row.try_get(6)?,
            yaml_checksum: row.try_get(7)?,
            submitted_at: row.try_get(8)?,
            is_deletion_marker: row.try_get(9)?,
        })
    }
}

/// Returns the newest live objects of a stack, newest first, as many as a list may hold (`most_rows`, `most_bytes`).
pub fn list(db: &mut impl Sql, stack: Uuid) -> Result<Vec<Object>, DbError> {
    const SQL: &str = concat!(
        "SELECT ",
        columns!(),
        " FROM (SELECT ",
        columns!(),
        ", sum(octet_length(o.yaml_content)) OVER (ORDER BY o.sequence_id DESC ROWS UNBOUNDED PRECEDING)
           - octet_length(o.yaml_content) AS bytes_before
           FROM (SELECT ",
        columns!(),
        "         FROM deployment_objects o
                 WHERE o.stack_id = $1 AND o.deleted_at IS NULL ORDER BY o.sequence_id DESC LIMIT ",
        super::most_rows!(),
        ") AS o) AS o
          WHERE o.bytes_before < ",
        super::most_bytes!(),
        " ORDER BY o.sequence_id DESC"
    );
    super::all(db.query(SQL, &[&stack])?, Object::read)
}

/// Returns the live object with this id and the generator of its stack, which may be deleted.
pub fn get(db: &mut impl Sql, id: Uuid) -> Result<Option<(Object, Uuid)>, DbError> {
    const SQL: &str = concat!(
        "SELECT ",
        columns!(),
        ", s.generator_id FROM deployment_objects o JOIN stacks s ON s.id = o.stack_id
          WHERE o.id = $1 AND o.deleted_at IS NULL"
    );
    db.query_opt(SQL, &[&id])?
        .map(|row| Ok((Object::read(&row)?, row.try_get(10)?)))
        .transpose()
}

/// Adds an object to a live stack. Returns `None` when the stack is gone.
///
/// Locks the stack's row before taking the sequence id and until the end of the transaction, so that of all writers on
/// one stack the last to commit has the highest sequence id.
pub fn insert(
    db: &mut impl Sql,
    stack: Uuid,
    yaml: &str,
    checksum: &str,
    is_deletion_marker: bool,
) -> Result<Option<Object>, DbError> {
    const SQL: &str = concat!(
        "WITH held AS MATERIALIZED (
             SELECT id FROM stacks WHERE id = $1 AND deleted_at IS NULL FOR NO KEY UPDATE)
         INSERT INTO deployment_objects AS o
                (stack_id, yaml_content, yaml_checksum, submitted_at, is_deletion_marker)
         SELECT held.id, $2, $3, clock_timestamp(), $4 FROM held
         RETURNING ",
        columns!()
    );
    db.query_opt(SQL, &[&stack, &yaml, &checksum, &is_deletion_marker])?
        .as_ref()
        .map(Object::read)
        .transpose()
}
