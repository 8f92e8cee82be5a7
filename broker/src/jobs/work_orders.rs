//! Work orders: retries that are due and claims that went stale become pending again.
//!
//! Claims and failures of this broker say themselves when their order is due ([`super::Jobs::due_in`]); those of another
//! process are found by the look around.

use std::time::Duration;

use crate::app::App;
use crate::db::DbError;
use crate::store::work_orders::release;

/// The column of the look around: seconds until something falls due.
macro_rules! due {
    () => {
        "(SELECT extract(epoch FROM min(due_at) - now())::float8 FROM work_orders) AS work_orders_due"
    };
}
pub(super) use due;

/// Does what is due.
pub(super) async fn run(app: &App) -> Result<Option<Duration>, DbError> {
    loop {
        let released = app
            .db
            .run(|conn| {
                let released = release(conn);
                conn.leave_nothing_behind();
                released
            })
            .await?;
        if released.orders > 0 {
            tracing::info!(orders = released.orders, "work orders are pending again");
        }
        if !released.more {
            return Ok(released
                .next
                .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok()));
        }
    }
}
