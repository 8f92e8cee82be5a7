//! Work orders: retries that are due and claims that went stale become pending again.

use std::time::Duration;

use crate::app::App;
use crate::db::DbError;

/// The column of the look around: seconds until something falls due.
macro_rules! due {
    () => {
        "NULL::float8 AS work_orders_due"
    };
}
pub(super) use due;

/// Does what is due.
pub(super) async fn run(_app: &App) -> Result<Option<Duration>, DbError> {
    Ok(None)
}
