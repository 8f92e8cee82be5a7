//! Makes work orders pending again when their retry is due or their claim is stale.
//!
//! This broker's own claims and failures announce when their order is due ([`super::schedule::Schedule::due_in`]);
//! those of another process are found by `look`.

use std::time::Duration;

use crate::app::App;
use crate::db::DbError;
use crate::store::work_orders::release;

/// Column of the `look` statement: seconds until a work order falls due.
macro_rules! due {
    () => {
        "(SELECT extract(epoch FROM min(due_at) - now())::float8 FROM work_orders) AS work_orders_due"
    };
}
pub(super) use due;

/// Releases every order that is due, and returns the time until the next falls due.
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
