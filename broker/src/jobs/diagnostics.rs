//! Diagnostics: requests that nobody answered in time end.

use std::time::Duration;

use crate::app::App;
use crate::db::DbError;

/// The column of the look around: seconds until something falls due.
macro_rules! due {
    () => {
        "NULL::float8 AS diagnostics_due"
    };
}
pub(super) use due;

/// Does what is due.
pub(super) async fn run(_app: &App) -> Result<Option<Duration>, DbError> {
    Ok(None)
}
