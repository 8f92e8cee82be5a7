//! The log of ended work orders: one row per order, with the order's id, kept for ever.

use chrono::{DateTime, Utc};
use postgres::types::ToSql;
use serde::Serialize;
use utoipa::ToSchema;
use uuid::Uuid;

use super::row;
use crate::db::{DbError, Sql};

/// The largest number of entries in one list.
pub const MOST: i64 = 10_000;

row! {
    columns = "";
    /// An entry as the API shows it.
    #[derive(Clone, Debug, Serialize, ToSchema)]
    #[schema(as = WorkOrderLog)]
    #[allow(missing_docs, reason = "the fields are the API's")]
    pub struct WorkOrderLogEntry {
        /// The work order's id.
        pub id: Uuid,
        pub work_type: String,
        pub created_at: DateTime<Utc>,
        pub claimed_at: Option<DateTime<Utc>>,
        pub claimed_by: Option<Uuid>,
        pub completed_at: DateTime<Utc>,
        pub success: bool,
        pub retries_attempted: i32,
        pub result_message: Option<String>,
        pub yaml_content: String,
    }
}

/// Removes a work order from the queue and logs its result. The caller must have locked the order.
pub fn finish(
    db: &mut impl Sql,
    order: Uuid,
    success: bool,
    message: Option<&str>,
) -> Result<WorkOrderLogEntry, DbError> {
    const SQL: &str = concat!(
        "WITH ended AS (
             DELETE FROM work_orders WHERE id = $1
             RETURNING id, work_type, created_at, claimed_at, claimed_by, retry_count, yaml_content)
         INSERT INTO work_order_log (id, work_type, created_at, claimed_at, claimed_by, completed_at, success,
                                     retries_attempted, result_message, yaml_content)
         SELECT id, work_type, created_at, claimed_at, claimed_by, now(), $2, retry_count, $3, yaml_content
           FROM ended
         RETURNING ",
        columns!()
    );
    row::one(db, SQL, &[&order, &success, &message])
}

/// The conditions of a list; each that is set must hold.
#[derive(Clone, Copy, Debug, Default)]
#[allow(missing_docs, reason = "the fields are the API's")]
pub struct WorkOrderLogFilter<'a> {
    pub agent: Option<Uuid>,
    pub work_type: Option<&'a str>,
    pub success: Option<bool>,
}

/// Returns the entries that ended last, latest first, at most `most` and at most [`MOST`].
pub fn list(
    db: &mut impl Sql,
    filter: WorkOrderLogFilter<'_>,
    most: i64,
) -> Result<Vec<WorkOrderLogEntry>, DbError> {
    // One text per set of filters, so that each is planned for its own index.
    macro_rules! sql {
        ($filter:literal) => {
            concat!(
                "SELECT ",
                columns!(),
                " FROM work_order_log ",
                $filter,
                " ORDER BY completed_at DESC, id DESC LIMIT $1"
            )
        };
    }
    let WorkOrderLogFilter {
        agent,
        work_type,
        success,
    } = filter;
    let sql = match (agent.is_some(), work_type.is_some(), success.is_some()) {
        (false, false, false) => sql!(""),
        (true, false, false) => sql!("WHERE claimed_by = $2"),
        (false, true, false) => sql!("WHERE work_type = $2"),
        (false, false, true) => sql!("WHERE success = $2"),
        (true, true, false) => sql!("WHERE claimed_by = $2 AND work_type = $3"),
        (true, false, true) => sql!("WHERE claimed_by = $2 AND success = $3"),
        (false, true, true) => sql!("WHERE work_type = $2 AND success = $3"),
        (true, true, true) => sql!("WHERE claimed_by = $2 AND work_type = $3 AND success = $4"),
    };
    let most = most.min(MOST);
    let mut params: Vec<&(dyn ToSql + Sync)> = vec![&most];
    params.extend(agent.as_ref().map(|p| p as &(dyn ToSql + Sync)));
    params.extend(work_type.as_ref().map(|p| p as &(dyn ToSql + Sync)));
    params.extend(success.as_ref().map(|p| p as &(dyn ToSql + Sync)));
    row::all(db, sql, &params)
}

/// Returns the log entry of this work order.
pub fn get(db: &mut impl Sql, id: Uuid) -> Result<Option<WorkOrderLogEntry>, DbError> {
    const SQL: &str = concat!("SELECT ", columns!(), " FROM work_order_log WHERE id = $1");
    row::optional(db, SQL, &[&id])
}
