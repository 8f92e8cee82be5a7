//! Templates, of which each change is a new version, and the record of objects rendered from them.

use chrono::{DateTime, Utc};
use serde::Serialize;
use utoipa::ToSchema;
use uuid::Uuid;

use super::row;
use crate::db::{DbError, Sql};

/// The number of attempts to take the next version number. Each failed attempt means that another writer of the same
/// name has succeeded.
const ATTEMPTS: usize = 100;

row! {
    columns = "";
    /// One version of a template as the API shows it.
    #[derive(Clone, Debug, Serialize, ToSchema)]
    #[schema(as = StackTemplate)]
    #[allow(missing_docs, reason = "the fields are the API's")]
    pub struct Template {
        pub id: Uuid,
        pub created_at: DateTime<Utc>,
        pub updated_at: DateTime<Utc>,
        pub deleted_at: Option<DateTime<Utc>>,
        /// The owner; null for the system's templates.
        pub generator_id: Option<Uuid>,
        pub name: String,
        pub description: Option<String>,
        pub version: i32,
        pub template_content: String,
        pub parameters_schema: String,
        /// SHA-256 of the content.
        pub checksum: String,
    }
}

/// A new version of a template, before it has a number.
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs, reason = "as in `Template`")]
pub struct NewTemplate<'a> {
    pub generator_id: Option<Uuid>,
    pub name: &'a str,
    pub description: Option<&'a str>,
    pub template_content: &'a str,
    pub parameters_schema: &'a str,
    pub checksum: &'a str,
}

/// Returns every live template.
pub fn list(db: &mut impl Sql) -> Result<Vec<Template>, DbError> {
    const SQL: &str = concat!(
        "SELECT ",
        columns!(),
        " FROM stack_templates WHERE deleted_at IS NULL ORDER BY created_at, id"
    );
    row::all(db, SQL, &[])
}

/// Returns the live templates that a generator may use: the system's, then its own.
pub fn list_for(db: &mut impl Sql, generator: Uuid) -> Result<Vec<Template>, DbError> {
    const SQL: &str = concat!(
        "SELECT ",
        columns!(),
        " FROM stack_templates WHERE generator_id IS NULL AND deleted_at IS NULL
          UNION ALL
         SELECT ",
        columns!(),
        " FROM stack_templates WHERE generator_id = $1 AND deleted_at IS NULL
          ORDER BY generator_id NULLS FIRST, created_at, id"
    );
    row::all(db, SQL, &[&generator])
}

/// Returns the live template with this id.
pub fn get(db: &mut impl Sql, id: Uuid) -> Result<Option<Template>, DbError> {
    const SQL: &str = concat!(
        "SELECT ",
        columns!(),
        " FROM stack_templates WHERE id = $1 AND deleted_at IS NULL"
    );
    row::optional(db, SQL, &[&id])
}

/// Adds a version, numbered after the highest live version of this owner and name. Returns `None` when other writers
/// took the number in every attempt.
///
/// The unique index decides between concurrent writers, because there may be no row yet to lock. The later writer waits
/// for the first to commit, inserts nothing, and counts again in its next statement, which sees the first writer's row.
///
/// # Errors
/// When the generator is unknown.
pub fn insert(db: &mut impl Sql, new: &NewTemplate<'_>) -> Result<Option<Template>, DbError> {
    const SQL: &str = concat!(
        "INSERT INTO stack_templates
                (generator_id, name, description, template_content, parameters_schema, checksum, version)
         SELECT $1, $2::varchar, $3, $4, $5, $6,
                coalesce((SELECT max(t.version) FROM stack_templates t
                           WHERE coalesce(t.generator_id, '00000000-0000-0000-0000-000000000000'::uuid)
                               = coalesce($1::uuid, '00000000-0000-0000-0000-000000000000'::uuid)
                             AND t.name = $2::varchar AND t.deleted_at IS NULL), 0) + 1
         ON CONFLICT DO NOTHING RETURNING ",
        columns!()
    );
    for _ in 0..ATTEMPTS {
        let row = row::optional(
            db,
            SQL,
            &[
                &new.generator_id,
                &new.name,
                &new.description,
                &new.template_content,
                &new.parameters_schema,
                &new.checksum,
            ],
        )?;
        if row.is_some() {
            return Ok(row);
        }
    }
    Ok(None)
}

/// Marks a live template as deleted. Other versions stay.
pub fn delete(db: &mut impl Sql, id: Uuid) -> Result<bool, DbError> {
    const SQL: &str =
        "UPDATE stack_templates SET deleted_at = now() WHERE id = $1 AND deleted_at IS NULL";
    Ok(db.execute(SQL, &[&id])? > 0)
}

/// Stores the template, version and parameters that an object was rendered from.
pub fn rendered(
    db: &mut impl Sql,
    object: Uuid,
    template: &Template,
    parameters: &str,
) -> Result<(), DbError> {
    const SQL: &str = "\
        INSERT INTO rendered_objects (deployment_object_id, template_id, template_version, parameters)
        VALUES ($1, $2, $3, $4)";
    db.execute(
        SQL,
        &[&object, &template.id, &template.version, &parameters],
    )?;
    Ok(())
}
