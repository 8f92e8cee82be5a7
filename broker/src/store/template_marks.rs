//! What a template must find on a stack: labels and annotations.

use chrono::{DateTime, Utc};
use postgres::Row;
use serde::Serialize;
use utoipa::ToSchema;
use uuid::Uuid;

use crate::db::{DbError, Sql};

/// A label of a template.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = TemplateLabel)]
#[allow(missing_docs, reason = "the fields are the API's")]
pub struct Label {
    pub id: Uuid,
    pub template_id: Uuid,
    pub label: String,
    pub created_at: DateTime<Utc>,
}

/// An annotation of a template. One value per key.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = TemplateAnnotation)]
#[allow(missing_docs, reason = "the fields are the API's")]
pub struct Annotation {
    pub id: Uuid,
    pub template_id: Uuid,
    pub key: String,
    pub value: String,
    pub created_at: DateTime<Utc>,
}

impl Label {
    fn read(row: &Row) -> Result<Self, DbError> {
        Ok(Self {
            id: row.try_get(0)?,
            template_id: row.try_get(1)?,
            label: row.try_get(2)?,
            created_at: row.try_get(3)?,
        })
    }
}

impl Annotation {
    fn read(row: &Row) -> Result<Self, DbError> {
        Ok(Self {
            id: row.try_get(0)?,
            template_id: row.try_get(1)?,
            key: row.try_get(2)?,
            value: row.try_get(3)?,
            created_at: row.try_get(4)?,
        })
    }
}

/// The labels of a template.
///
/// # Errors
/// When the statement fails.
pub fn labels(db: &mut impl Sql, template: Uuid) -> Result<Vec<Label>, DbError> {
    const SQL: &str = "\
        SELECT id, template_id, label, created_at FROM template_labels WHERE template_id = $1 ORDER BY created_at, id";
    super::all(db.query(SQL, &[&template])?, Label::read)
}

/// Adds a label.
///
/// # Errors
/// An unknown template, a label it has already, or a failed statement.
pub fn add_label(db: &mut impl Sql, template: Uuid, label: &str) -> Result<Label, DbError> {
    const SQL: &str = "\
        INSERT INTO template_labels (template_id, label) VALUES ($1, $2)
        RETURNING id, template_id, label, created_at";
    Label::read(&db.query_one(SQL, &[&template, &label])?)
}

/// Takes a label away. False when the template did not have it.
///
/// # Errors
/// When the statement fails.
pub fn remove_label(db: &mut impl Sql, template: Uuid, label: &str) -> Result<bool, DbError> {
    const SQL: &str = "DELETE FROM template_labels WHERE template_id = $1 AND label = $2";
    Ok(db.execute(SQL, &[&template, &label])? > 0)
}

/// The annotations of a template.
///
/// # Errors
/// When the statement fails.
pub fn annotations(db: &mut impl Sql, template: Uuid) -> Result<Vec<Annotation>, DbError> {
    const SQL: &str = "\
        SELECT id, template_id, key, value, created_at FROM template_annotations
         WHERE template_id = $1 ORDER BY created_at, id";
    super::all(db.query(SQL, &[&template])?, Annotation::read)
}

/// Adds an annotation.
///
/// # Errors
/// An unknown template, a key it has already, or a failed statement.
pub fn add_annotation(
    db: &mut impl Sql,
    template: Uuid,
    key: &str,
    value: &str,
) -> Result<Annotation, DbError> {
    const SQL: &str = "\
        INSERT INTO template_annotations (template_id, key, value) VALUES ($1, $2, $3)
        RETURNING id, template_id, key, value, created_at";
    Annotation::read(&db.query_one(SQL, &[&template, &key, &value])?)
}

/// Takes the annotation with this key away. False when the template had none.
///
/// # Errors
/// When the statement fails.
pub fn remove_annotation(db: &mut impl Sql, template: Uuid, key: &str) -> Result<bool, DbError> {
    const SQL: &str = "DELETE FROM template_annotations WHERE template_id = $1 AND key = $2";
    Ok(db.execute(SQL, &[&template, &key])? > 0)
}

/// What a template asks for and a stack does not have.
#[derive(Debug, Default)]
pub struct Missing {
    /// Labels, in order.
    pub labels: Vec<String>,
    /// Key and value, in order.
    pub annotations: Vec<(String, String)>,
}

impl Missing {
    /// The template may be used for the stack.
    pub fn is_nothing(&self) -> bool {
        self.labels.is_empty() && self.annotations.is_empty()
    }
}

/// What of a template's labels and annotations a stack lacks.
///
/// # Errors
/// When the statement fails.
pub fn missing(db: &mut impl Sql, template: Uuid, stack: Uuid) -> Result<Missing, DbError> {
    const SQL: &str = "\
        SELECT l.label, NULL
          FROM template_labels l
         WHERE l.template_id = $1
           AND NOT EXISTS (SELECT 1 FROM stack_labels s WHERE s.stack_id = $2 AND s.label = l.label)
        UNION ALL
        SELECT a.key, a.value
          FROM template_annotations a
         WHERE a.template_id = $1
           AND NOT EXISTS (SELECT 1 FROM stack_annotations s
                            WHERE s.stack_id = $2 AND s.key = a.key AND s.value = a.value)
         ORDER BY 1";
    let mut missing = Missing::default();
    for row in db.query(SQL, &[&template, &stack])? {
        let first: String = row.try_get(0)?;
        match row.try_get(1)? {
            None => missing.labels.push(first),
            Some(value) => missing.annotations.push((first, value)),
        }
    }
    Ok(missing)
}
