//! Deployment objects: immutable, numbered by one sequence per schema.

use chrono::{DateTime, Utc};
use serde::Serialize;
use utoipa::ToSchema;
use uuid::Uuid;

use super::row;
use crate::db::{DbError, Sql};

row! {
    columns = "o.";
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
}

pub(super) use columns;

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
    row::all(db, SQL, &[&stack])
}

/// Returns the live object with this id and the generator of its stack, which may be deleted.
pub fn get(db: &mut impl Sql, id: Uuid) -> Result<Option<(Object, Uuid)>, DbError> {
    const SQL: &str = concat!(
        "SELECT ",
        columns!(),
        ", s.generator_id FROM deployment_objects o JOIN stacks s ON s.id = o.stack_id
          WHERE o.id = $1 AND o.deleted_at IS NULL"
    );
    row::optional(db, SQL, &[&id])
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
    row::optional(db, SQL, &[&stack, &yaml, &checksum, &is_deletion_marker])
}
