//! The reasons why the broker refuses an agent's report, the same by REST and over a socket.

use super::text::InvalidText;
use crate::db::DbError;

/// Reason why an agent's report was not stored.
#[derive(Debug, thiserror::Error)]
pub enum ReportRefusal {
    /// No column can hold a text of the report.
    #[error(transparent)]
    Text(#[from] InvalidText),
    /// The health record is invalid, for the reason given.
    #[error("{0}")]
    HealthRecord(String),
    /// The object does not exist; the name is that of the constraint that the report breaks.
    #[error("there is no such deployment object")]
    UnknownObject(&'static str),
    /// The agent does not serve the object's stack.
    #[error("the agent does not serve the object's stack")]
    NotAssociated,
    /// A statement failed.
    #[error(transparent)]
    Db(#[from] DbError),
}
