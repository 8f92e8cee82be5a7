//! Lists the holders of PAKs that a person may choose from: the generators.

use serde::Serialize;
use utoipa::ToSchema;
use uuid::Uuid;

use super::row;
use crate::db::{DbError, Sql};

row! {
    columns = "";
    /// A holder of a PAK, to choose by name.
    #[derive(Clone, Debug, Serialize, ToSchema)]
    pub struct PakSummary {
        /// The generator's id, for `?pak_id=`.
        pub id: Uuid,
        /// The generator's name.
        pub name: String,
    }
}

/// Returns every live generator except the system generator.
pub fn list(db: &mut impl Sql) -> Result<Vec<PakSummary>, DbError> {
    const SQL: &str = concat!(
        "SELECT ",
        columns!(),
        " FROM generators WHERE deleted_at IS NULL AND NOT is_system ORDER BY created_at, id"
    );
    row::all(db, SQL, &[])
}
