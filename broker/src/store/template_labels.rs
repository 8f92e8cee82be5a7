//! Labels and annotations of templates, which a stack must have too.

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
pub struct TemplateLabel {
    pub id: Uuid,
    pub template_id: Uuid,
    pub label: String,
    pub created_at: DateTime<Utc>,
}

/// An annotation of a template. Each key has one value.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = TemplateAnnotation)]
#[allow(missing_docs, reason = "the fields are the API's")]
pub struct TemplateAnnotation {
    pub id: Uuid,
    pub template_id: Uuid,
    pub key: String,
    pub value: String,
    pub created_at: DateTime<Utc>,
}

impl TemplateLabel {
    fn read(row: &Row) -> Result<Self, DbError> {
        Ok(Self {
            id: row.try_get(0)?,
            template_id: row.try_get(1)?,
            label: row.try_get(2)?,
            created_at: row.try_get(3)?,
        })
    }
}

impl TemplateAnnotation {
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

/// Returns the labels of a template.
pub fn labels(db: &mut impl Sql, template: Uuid) -> Result<Vec<TemplateLabel>, DbError> {
    const SQL: &str = "\
        SELECT id, template_id, label, created_at FROM template_labels WHERE template_id = $1 ORDER BY created_at, id";
    super::all(db.query(SQL, &[&template])?, TemplateLabel::read)
}

/// Adds a label.
///
/// # Errors
/// When the template is unknown or has the label already.
pub fn add_label(db: &mut impl Sql, template: Uuid, label: &str) -> Result<TemplateLabel, DbError> {
    const SQL: &str = "\
        INSERT INTO template_labels (template_id, label) VALUES ($1, $2)
        RETURNING id, template_id, label, created_at";
    TemplateLabel::read(&db.query_one(SQL, &[&template, &label])?)
}

/// Removes a label. Returns false when the template did not have it.
pub fn remove_label(db: &mut impl Sql, template: Uuid, label: &str) -> Result<bool, DbError> {
    const SQL: &str = "DELETE FROM template_labels WHERE template_id = $1 AND label = $2";
    Ok(db.execute(SQL, &[&template, &label])? > 0)
}

/// Returns the annotations of a template.
pub fn annotations(db: &mut impl Sql, template: Uuid) -> Result<Vec<TemplateAnnotation>, DbError> {
    const SQL: &str = "\
        SELECT id, template_id, key, value, created_at FROM template_annotations
         WHERE template_id = $1 ORDER BY created_at, id";
    super::all(db.query(SQL, &[&template])?, TemplateAnnotation::read)
}

/// Adds an annotation.
///
/// # Errors
/// When the template is unknown or has the key already.
pub fn add_annotation(
    db: &mut impl Sql,
    template: Uuid,
    key: &str,
    value: &str,
) -> Result<TemplateAnnotation, DbError> {
    const SQL: &str = "\
        INSERT INTO template_annotations (template_id, key, value) VALUES ($1, $2, $3)
        RETURNING id, template_id, key, value, created_at";
    TemplateAnnotation::read(&db.query_one(SQL, &[&template, &key, &value])?)
}

/// Removes the annotation with this key. Returns false when the template had none.
pub fn remove_annotation(db: &mut impl Sql, template: Uuid, key: &str) -> Result<bool, DbError> {
    const SQL: &str = "DELETE FROM template_annotations WHERE template_id = $1 AND key = $2";
    Ok(db.execute(SQL, &[&template, &key])? > 0)
}

/// The labels and annotations that a template requires and a stack lacks.
#[derive(Debug, Default)]
pub struct Missing {
    /// Missing labels, sorted.
    pub labels: Vec<String>,
    /// Keys and values of missing annotations, sorted by key.
    pub annotations: Vec<(String, String)>,
}

impl Missing {
    /// Returns true when the stack lacks nothing, so the template may be used for it.
    pub fn is_nothing(&self) -> bool {
        self.labels.is_empty() && self.annotations.is_empty()
    }
}

/// Returns the labels and annotations of a template that a stack lacks.
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
