//! The API under `/api/v1`: one file per resource, with its routes and its handlers.
//!
//! The broker first captures the whole request (headers, path, query, body). One closure on one connection (`call`)
//! then authenticates, reads path, query and body, authorises, checks that the resource exists, validates, and does the
//! work. That order is part of the API, because it decides which of several possible errors a caller sees. A handler is
//! a plain function from a `call::Call` and a connection to a reply; it holds no SQL. A new resource needs a file here,
//! a file in `store`, and a line in [`router`].

mod access;
mod admin;
mod agent_marks;
mod agents;
mod auth;
mod body;
mod call;
mod check;
mod connections;
pub(crate) mod deployment_health;
mod diagnostics;
pub(crate) mod events;
mod fleet;
mod generators;
mod instantiate;
mod large;
mod objects;
pub mod openapi;
mod paks;
mod push;
mod record;
mod registrations;
mod sockets;
mod stack_marks;
mod stacks;
mod target_state;
mod targets;
mod telemetry;
mod template_marks;
mod templates;
mod value;
mod webhook_deliveries;
mod webhooks;
mod wording;
mod work_order_log;
mod work_orders;

use axum::Router;
use axum::response::{IntoResponse, Response};

use crate::app::App;
use crate::error::Error;

/// Returns every route of the API, relative to `/api/v1`.
pub fn router() -> Router<App> {
    Router::new()
        .merge(auth::routes())
        .merge(agents::routes())
        .merge(agent_marks::routes())
        .merge(targets::routes())
        .merge(events::routes())
        .merge(target_state::routes())
        .merge(generators::routes())
        .merge(registrations::routes())
        .merge(stacks::routes())
        .merge(stack_marks::routes())
        .merge(objects::routes())
        .merge(templates::routes())
        .merge(template_marks::routes())
        .merge(instantiate::routes())
        .merge(work_orders::routes())
        .merge(work_order_log::routes())
        .merge(webhooks::routes())
        .merge(webhook_deliveries::routes())
        .merge(diagnostics::routes())
        .merge(deployment_health::routes())
        .merge(fleet::routes())
        .merge(telemetry::routes())
        .merge(connections::routes())
        .merge(sockets::routes())
        .merge(admin::routes())
        .merge(paks::routes())
        .method_not_allowed_fallback(call::method_not_allowed)
        .fallback(not_found)
}

/// Returns the only route under `/internal`: the agents' WebSocket.
pub fn internal_router() -> Router<App> {
    Router::new()
        .merge(sockets::agent_route())
        .method_not_allowed_fallback(call::method_not_allowed)
        .fallback(not_found)
}

/// Answers 404 as JSON on unknown paths, with or without a PAK.
async fn not_found() -> Response {
    Error::not_found("not_found", "there is nothing at this path").into_response()
}
