//! Lists the holders of PAKs that a person may choose from: the generators.

use serde::Serialize;
use utoipa::ToSchema;
use uuid::Uuid;

use crate::db::{DbError, Sql};

/// A holder of a PAK, to choose by name.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct PakSummary {
    /// The generator's id, for `?pak_id=`.
    pub id: Uuid,
    /// The generator's name.
    pub name: String,
}

/// Returns every live generator except the system generator.
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
