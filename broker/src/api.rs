//! The API under `/api/v1`: one file per resource, with its routes and its handlers.
//!
//! The broker first captures the whole request (headers, path, query, body). One closure on one connection
//! (`operation`) then authenticates, reads path, query and body, authorises, checks that the resource exists,
//! validates, and does the work. That order is part of the API, because it decides which of several possible errors a
//! caller sees. A handler is a plain function from a `request::ApiRequest` and a connection to a reply; it holds no
//! SQL. A new resource needs a file here, a file in `store`, and a line in [`router`].

mod admin;
mod agent_events;
mod agents;
mod audit;
mod authorization;
mod bounded_json;
mod connections;
mod deployment_health;
mod deployment_objects;
mod deserialize_errors;
mod diagnostics;
mod failed_authentication;
mod fleet;
mod generators;
mod labels;
mod notifications;
pub mod openapi;
mod operation;
mod pak_lookup;
mod paks;
mod registrations;
mod reply;
mod request;
mod request_body;
mod response_budget;
mod stacks;
mod target_state;
mod targets;
mod telemetry;
mod template_instantiation;
mod templates;
mod validation;
mod webhook_deliveries;
mod webhooks;
mod websockets;
mod work_order_log;
mod work_orders;

use axum::Router;

use crate::app::App;
use crate::error::Error;

/// Returns every route of the API, relative to `/api/v1`.
pub fn router() -> Router<App> {
    Router::new()
        .merge(pak_lookup::routes())
        .merge(agents::routes())
        .merge(labels::routes())
        .merge(targets::routes())
        .merge(agent_events::routes())
        .merge(target_state::routes())
        .merge(generators::routes())
        .merge(registrations::routes())
        .merge(stacks::routes())
        .merge(deployment_objects::routes())
        .merge(templates::routes())
        .merge(template_instantiation::routes())
        .merge(work_orders::routes())
        .merge(work_order_log::routes())
        .merge(webhooks::routes())
        .merge(webhook_deliveries::routes())
        .merge(diagnostics::routes())
        .merge(deployment_health::routes())
        .merge(fleet::routes())
        .merge(telemetry::routes())
        .merge(connections::routes())
        .merge(websockets::routes())
        .merge(admin::routes())
        .merge(paks::routes())
        .method_not_allowed_fallback(operation::method_not_allowed)
        .fallback(|| async { Error::no_path() })
}

/// Returns the only route under `/internal`: the agents' WebSocket.
pub fn internal_router() -> Router<App> {
    Router::new()
        .merge(websockets::agent_route())
        .method_not_allowed_fallback(operation::method_not_allowed)
        .fallback(|| async { Error::no_path() })
}
