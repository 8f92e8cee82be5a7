//! `GET /admin/ws/connections`: lists the agents that are connected to this process.

use axum::Router;
use axum::routing::get;
use chrono::{DateTime, Utc};
use serde::Serialize;
use utoipa::{OpenApi, ToSchema};
use uuid::Uuid;

use super::authorization;
use super::openapi::responses::{Always, Forbidden};
use super::operation::plain;
use super::reply::Reply;
use super::request::ApiRequest;
use crate::app::App;
use crate::db::Conn;
use crate::error::Error;

#[derive(OpenApi)]
#[openapi(paths(list))]
pub(super) struct Doc;

pub(super) fn routes() -> Router<App> {
    Router::new().route("/admin/ws/connections", get(plain(list)))
}

/// Open sockets of one process.
#[derive(Serialize, ToSchema)]
struct WsConnectionsResponse {
    /// Number of connected agents.
    connected_agents: usize,
    /// Sockets of the agents, the longest connected first.
    connections: Vec<WsConnectionInfo>,
    /// Number of subscribers of all stacks' live channels.
    live_subscribers: usize,
}

/// Socket of one agent.
#[derive(Serialize, ToSchema)]
struct WsConnectionInfo {
    agent_id: Uuid,
    connected_since: DateTime<Utc>,
    /// Number of frames received that could be read.
    messages_in: u64,
    /// Number of frames sent.
    messages_out: u64,
}

#[utoipa::path(
    get, path = "/admin/ws/connections", operation_id = "list_ws_connections", tag = "admin",
    responses(
        (status = 200, description = "The sockets open in this process", body = WsConnectionsResponse),
        Always, Forbidden,
    ),
    security(("admin_pak" = [])),
)]
fn list(call: &ApiRequest, _: &mut Conn) -> Result<Reply, Error> {
    authorization::admin(call.principal)?;
    let (agents, subscribers) = call.app.live.connections();
    let connections: Vec<_> = agents
        .into_iter()
        .map(|socket| WsConnectionInfo {
            agent_id: socket.agent,
            connected_since: socket.since,
            messages_in: socket.received,
            messages_out: socket.sent,
        })
        .collect();
    Reply::ok(&WsConnectionsResponse {
        connected_agents: connections.len(),
        connections,
        live_subscribers: usize::try_from(subscribers).unwrap_or(usize::MAX),
    })
}
