//! Labels and annotations of stacks, which match them to agents.

use postgres::Row;
use serde::Serialize;
use utoipa::ToSchema;
use uuid::Uuid;

use super::stacks::Stack;
use crate::db::{DbError, Sql};

/// A label of a stack.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = StackLabel)]
#[allow(missing_docs, reason = "the fields are the API's")]
pub struct StackLabel {
    pub id: Uuid,
    pub stack_id: Uuid,
    pub label: String,
}

/// An annotation of a stack. Each key has one value.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = StackAnnotation)]
#[allow(missing_docs, reason = "the fields are the API's")]
pub struct StackAnnotation {
    pub id: Uuid,
    pub stack_id: Uuid,
    pub key: String,
    pub value: String,
}

impl StackLabel {
    fn read(row: &Row) -> Result<Self, DbError> {
        Ok(Self {
            id: row.try_get(0)?,
            stack_id: row.try_get(1)?,
            label: row.try_get(2)?,
        })
    }
}

impl StackAnnotation {
    fn read(row: &Row) -> Result<Self, DbError> {
        Ok(Self {
            id: row.try_get(0)?,
            stack_id: row.try_get(1)?,
            key: row.try_get(2)?,
            value: row.try_get(3)?,
        })
    }
}

/// Returns the labels of a stack, also of a deleted stack.
pub fn labels(db: &mut impl Sql, stack: Uuid) -> Result<Vec<StackLabel>, DbError> {
    const SQL: &str =
        "SELECT id, stack_id, label FROM stack_labels WHERE stack_id = $1 ORDER BY created_at, id";
    super::all(db.query(SQL, &[&stack])?, StackLabel::read)
}

/// Adds a label.
///
/// # Errors
/// When the stack is unknown or has the label already.
pub fn add_label(db: &mut impl Sql, stack: &Stack, label: &str) -> Result<StackLabel, DbError> {
    const SQL: &str = "\
        INSERT INTO stack_labels (stack_id, generator_id, label) VALUES ($1, $2, $3)
        RETURNING id, stack_id, label";
    StackLabel::read(&db.query_one(SQL, &[&stack.id, &stack.generator_id, &label])?)
}

/// Removes a label. Returns false when the stack did not have it.
pub fn remove_label(db: &mut impl Sql, stack: Uuid, label: &str) -> Result<bool, DbError> {
    const SQL: &str = "DELETE FROM stack_labels WHERE stack_id = $1 AND label = $2";
    Ok(db.execute(SQL, &[&stack, &label])? > 0)
}

/// Returns the annotations of a stack, also of a deleted stack.
pub fn annotations(db: &mut impl Sql, stack: Uuid) -> Result<Vec<StackAnnotation>, DbError> {
    const SQL: &str = "\
        SELECT id, stack_id, key, value FROM stack_annotations WHERE stack_id = $1 ORDER BY created_at, id";
    super::all(db.query(SQL, &[&stack])?, StackAnnotation::read)
}

/// Adds an annotation.
///
/// # Errors
/// When the stack is unknown or has the key already.
pub fn add_annotation(
    db: &mut impl Sql,
    stack: &Stack,
    key: &str,
    value: &str,
) -> Result<StackAnnotation, DbError> {
    const SQL: &str = "\
        INSERT INTO stack_annotations (stack_id, generator_id, key, value) VALUES ($1, $2, $3, $4)
        RETURNING id, stack_id, key, value";
    StackAnnotation::read(&db.query_one(SQL, &[&stack.id, &stack.generator_id, &key, &value])?)
}

/// Removes the annotation with this key. Returns false when the stack had none.
pub fn remove_annotation(db: &mut impl Sql, stack: Uuid, key: &str) -> Result<bool, DbError> {
    const SQL: &str = "DELETE FROM stack_annotations WHERE stack_id = $1 AND key = $2";
    Ok(db.execute(SQL, &[&stack, &key])? > 0)
}
