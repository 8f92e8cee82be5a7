//! Generators: create, read, change and delete them.

use chrono::{DateTime, Utc};
use serde::Serialize;
use utoipa::ToSchema;
use uuid::Uuid;

use super::row;
use crate::db::{DbError, Sql};

row! {
    columns = "";
    /// A generator as the API shows it.
    #[derive(Clone, Debug, Serialize, ToSchema)]
    #[allow(missing_docs, reason = "the fields are the API's")]
    pub struct Generator {
        pub id: Uuid,
        pub created_at: DateTime<Utc>,
        pub updated_at: DateTime<Utc>,
        pub deleted_at: Option<DateTime<Utc>>,
        pub name: String,
        pub description: Option<String>,
        pub last_active_at: Option<DateTime<Utc>>,
        pub is_active: bool,
        pub is_system: bool,
    }
}

/// Returns every live generator except the system generator.
pub fn list(db: &mut impl Sql) -> Result<Vec<Generator>, DbError> {
    const SQL: &str = concat!(
        "SELECT ",
        columns!(),
        " FROM generators WHERE deleted_at IS NULL AND NOT is_system ORDER BY created_at, id"
    );
    row::all(db, SQL, &[])
}

/// Returns the live generator with this id, which may be the system generator.
pub fn get(db: &mut impl Sql, id: Uuid) -> Result<Option<Generator>, DbError> {
    const SQL: &str = concat!(
        "SELECT ",
        columns!(),
        " FROM generators WHERE id = $1 AND deleted_at IS NULL"
    );
    row::optional(db, SQL, &[&id])
}

/// Returns the live generator with exactly this name.
pub fn find(db: &mut impl Sql, name: &str) -> Result<Option<Generator>, DbError> {
    const SQL: &str = concat!(
        "SELECT ",
        columns!(),
        " FROM generators WHERE name = $1 AND deleted_at IS NULL"
    );
    row::optional(db, SQL, &[&name])
}

/// Returns the system generator, with which every agent is registered, if it exists yet.
pub fn system(db: &mut impl Sql) -> Result<Option<Generator>, DbError> {
    const SQL: &str = concat!(
        "SELECT ",
        columns!(),
        " FROM generators WHERE is_system AND deleted_at IS NULL ORDER BY created_at, id LIMIT 1"
    );
    row::optional(db, SQL, &[])
}

/// Does the same as [`get`], and locks the generator until the end of the transaction against change, deletion and new
/// references.
pub fn get_locked(db: &mut impl Sql, id: Uuid) -> Result<Option<Generator>, DbError> {
    const SQL: &str = concat!(
        "SELECT ",
        columns!(),
        " FROM generators WHERE id = $1 AND deleted_at IS NULL FOR UPDATE"
    );
    row::optional(db, SQL, &[&id])
}

/// Returns true when each of these ids is a live generator.
pub fn all_live(db: &mut impl Sql, ids: &[Uuid]) -> Result<bool, DbError> {
    const SQL: &str = "\
        SELECT count(*) = (SELECT count(DISTINCT wanted) FROM unnest($1::uuid[]) AS wanted)
          FROM generators WHERE id = ANY ($1) AND deleted_at IS NULL";
    row::one(db, SQL, &[&ids])
}

/// Adds a generator with the hash of its PAK (lower-case hex).
///
/// # Errors
/// When the name is taken.
pub fn insert(
    db: &mut impl Sql,
    name: &str,
    description: Option<&str>,
    pak_hash: &str,
) -> Result<Generator, DbError> {
    const SQL: &str = concat!(
        "INSERT INTO generators (name, description, pak_hash) VALUES ($1, $2, $3) RETURNING ",
        columns!()
    );
    row::one(db, SQL, &[&name, &description, &pak_hash])
}

/// Changes a generator, deleted or not. Without a description the old description stays.
///
/// # Errors
/// When the name is taken.
pub fn update(
    db: &mut impl Sql,
    id: Uuid,
    name: &str,
    description: Option<&str>,
    is_active: bool,
) -> Result<Option<Generator>, DbError> {
    const SQL: &str = concat!(
        "UPDATE generators SET name = $2, description = coalesce($3, description), is_active = $4
          WHERE id = $1 RETURNING ",
        columns!()
    );
    row::optional(db, SQL, &[&id, &name, &description, &is_active])
}

/// Replaces the hash of a live generator's PAK.
pub fn set_pak_hash(
    db: &mut impl Sql,
    id: Uuid,
    pak_hash: &str,
) -> Result<Option<Generator>, DbError> {
    const SQL: &str = concat!(
        "UPDATE generators SET pak_hash = $2 WHERE id = $1 AND deleted_at IS NULL RETURNING ",
        columns!()
    );
    row::optional(db, SQL, &[&id, &pak_hash])
}

/// Marks a live generator as deleted. The caller must delete its stacks in the same transaction.
pub fn delete(db: &mut impl Sql, id: Uuid) -> Result<bool, DbError> {
    const SQL: &str =
        "UPDATE generators SET deleted_at = now() WHERE id = $1 AND deleted_at IS NULL";
    Ok(db.execute(SQL, &[&id])? > 0)
}
