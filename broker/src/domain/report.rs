//! The reasons why the broker refuses an agent's report, the same by REST and over a socket.

use super::text::InvalidText;
use crate::db::DbError;

/// Reason why an agent's report was not stored.
#[derive(Debug)]
pub enum ReportRefusal {
    /// No column can hold a text of the report.
    Text(InvalidText),
    /// The health record is invalid, for the reason given.
    HealthRecord(String),
    /// The object does not exist; the name is that of the constraint that the report breaks.
    UnknownObject(&'static str),
    /// The agent does not serve the object's stack.
    NotAssociated,
    /// A statement failed.
    Db(DbError),
}

impl From<InvalidText> for ReportRefusal {
    fn from(invalid: InvalidText) -> Self {
        Self::Text(invalid)
    }
}

impl From<DbError> for ReportRefusal {
    fn from(error: DbError) -> Self {
        Self::Db(error)
    }
}
