//! Log of work orders that have ended.

use axum::Router;
use axum::routing::get;
use serde::Deserialize;
use utoipa::OpenApi;
use uuid::Uuid;

use super::openapi::responses::{Always, BadRequest, Forbidden, NotFound, Unstorable};
use super::operation::plain;
use super::reply::Reply;
use super::request::ApiRequest;
use super::{authorization, validation};
use crate::app::App;
use crate::db::Conn;
use crate::error::Error;
use crate::store::work_order_log::{self, WorkOrderLogEntry};

#[derive(OpenApi)]
#[openapi(paths(list, show))]
pub(super) struct Doc;

pub(super) fn routes() -> Router<App> {
    Router::new()
        .route("/work-order-log", get(plain(list)))
        .route("/work-order-log/{id}", get(plain(show)))
}

#[derive(Deserialize)]
struct Filter {
    work_type: Option<String>,
    success: Option<bool>,
    agent_id: Option<Uuid>,
    limit: Option<i64>,
}

#[utoipa::path(
    get, path = "/work-order-log", operation_id = "list_work_order_log", tag = "work-orders",
    params(
        ("work_type" = Option<String>, Query, description = "Of this type only"),
        ("success" = Option<bool>, Query, description = "Only those that did, or did not, succeed"),
        ("agent_id" = Option<Uuid>, Query, description = "Only what this agent did"),
        ("limit" = Option<i64>, Query, description = "At most so many; 10,000 at most, and by default"),
    ),
    responses(
        (status = 200, description = "Orders that ended, the last one first", body = [WorkOrderLogEntry]),
        Always, BadRequest, Forbidden, Unstorable,
    ),
    security(("admin_pak" = [])),
)]
fn list(call: &ApiRequest, db: &mut Conn) -> Result<Reply, Error> {
    let filter: Filter = call.query()?;
    authorization::admin(call.principal)?;
    let limit = filter.limit.unwrap_or(work_order_log::MOST);
    if limit < 0 {
        return Err(Error::unreadable("`limit` must not be negative"));
    }
    validation::no_nul(
        "`work_type`",
        filter.work_type.as_deref().unwrap_or_default(),
    )?;
    let wanted = work_order_log::WorkOrderLogFilter {
        agent: filter.agent_id,
        work_type: filter.work_type.as_deref(),
        success: filter.success,
    };
    Reply::ok(&work_order_log::list(db, wanted, limit)?)
}

#[utoipa::path(
    get, path = "/work-order-log/{id}", operation_id = "get_work_order_log", tag = "work-orders",
    params(("id" = Uuid, Path, description = "The order's id")),
    responses((status = 200, description = "How it ended", body = WorkOrderLogEntry), Always, BadRequest, Forbidden, NotFound),
    security(("admin_pak" = [])),
)]
fn show(call: &ApiRequest, db: &mut Conn) -> Result<Reply, Error> {
    let id = call.id()?;
    authorization::admin(call.principal)?;
    let entry = work_order_log::get(db, id)?.ok_or_else(|| {
        Error::not_found(
            "work_order_log_entry_not_found",
            "no such work order has ended",
        )
    })?;
    Reply::ok(&entry)
}
