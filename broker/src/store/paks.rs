//! Who holds a PAK, as far as a person chooses among them: the generators.

use serde::Serialize;
use utoipa::ToSchema;
use uuid::Uuid;

use crate::db::{DbError, Sql};

/// A holder of a PAK, to be chosen by name.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct PakSummary {
    /// The generator's id, as `?pak_id=` takes it.
    pub id: Uuid,
    /// The generator's name.
    pub name: String,
}

/// Every live generator that is not the system's own.
///
/// # Errors
/// When the statement fails.
pub fn list(db: &mut impl Sql) -> Result<Vec<PakSummary>, DbError> {
    const SQL: &str = "\
        SELECT id, name FROM generators WHERE deleted_at IS NULL AND NOT is_system ORDER BY created_at, id";
    super::all(db.query(SQL, &[])?, |row| {
        Ok(PakSummary {
            id: row.try_get(0)?,
            name: row.try_get(1)?,
        })
    })
}
