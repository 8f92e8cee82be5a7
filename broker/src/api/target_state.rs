//! Stacks that an agent serves, and objects that it should have applied.

use axum::Router;
use axum::routing::get;
use brokkr_tenant::TargetStateMode;
use serde::Deserialize;
use utoipa::OpenApi;

use super::authorization;
use super::openapi::responses::{Always, BadRequest, Forbidden};
use super::operation::plain;
use super::reply::Reply;
use super::request::ApiRequest;
use crate::app::App;
use crate::db::Conn;
use crate::error::Error;
use crate::store::objects::Object as DeploymentObject;
use crate::store::stack_matching::{self, Mode};
use crate::store::stacks::Stack;

#[derive(OpenApi)]
#[openapi(paths(stacks, target_state))]
pub(super) struct Doc;

pub(super) fn routes() -> Router<App> {
    Router::new()
        .route("/agents/{id}/stacks", get(plain(stacks)))
        .route("/agents/{id}/target-state", get(plain(target_state)))
}

#[utoipa::path(
    get, path = "/agents/{id}/stacks", operation_id = "get_associated_stacks", tag = "agents",
    params(("id" = Uuid, Path)),
    responses(
        (status = 200, description = "The stacks the agent serves", body = [Stack]),
        Always, BadRequest, Forbidden,
    ),
    security(("admin_pak" = []), ("agent_pak" = [])),
)]
fn stacks(call: &ApiRequest, db: &mut Conn) -> Result<Reply, Error> {
    let id = call.id()?;
    authorization::admin_or_agent(call.principal, id)?;
    Reply::ok(&stack_matching::stacks(db, id)?)
}

#[derive(Deserialize)]
struct Asked {
    mode: Option<String>,
}

/// Returns the objects that the agent should have applied. An absent mode means the configured mode. Its default is
/// full, because the published agent asks without a mode and removes objects that the answer lacks. An unknown mode
/// means incremental.
#[utoipa::path(
    get, path = "/agents/{id}/target-state", operation_id = "get_target_state", tag = "agents",
    params(
        ("id" = Uuid, Path),
        ("mode" = Option<String>, Query, description = "`full`, or `incremental`: without what it has applied"),
    ),
    responses(
        (status = 200, description = "What the agent should have applied", body = [DeploymentObject]),
        Always, BadRequest, Forbidden,
    ),
    security(("admin_pak" = []), ("agent_pak" = [])),
)]
fn target_state(call: &ApiRequest, db: &mut Conn) -> Result<Reply, Error> {
    let id = call.id()?;
    let asked: Asked = call.query()?;
    authorization::admin_or_agent(call.principal, id)?;
    let mode = match asked.mode.as_deref() {
        None => match call.app.config.broker.target_state_default {
            TargetStateMode::Full => Mode::Full,
            TargetStateMode::Incremental => Mode::Incremental,
        },
        Some("full") => Mode::Full,
        Some(_) => Mode::Incremental,
    };
    Reply::ok(&stack_matching::target_state(db, id, mode)?)
}
