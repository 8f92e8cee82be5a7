//! The OpenAPI document, merged from the parts that stand beside the handlers.
//!
//! The document is served at `/docs/openapi.json` without a PAK, and printed by `brokkr-broker openapi`. It is built at
//! the first request, because most brokers never get that request and the document is larger than the rest of an idle
//! broker's memory.

mod models;
pub(in crate::api) mod responses;

use std::sync::LazyLock;

use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use utoipa::OpenApi;
use utoipa::openapi::OpenApi as Document;
use utoipa::openapi::security::{ApiKey, ApiKeyValue, SecurityScheme};

use super::{
    admin, agent_events, agents, connections, deployment_health, deployment_objects, diagnostics,
    fleet, generators, labels, pak_lookup, paks, registrations, stacks, target_state, targets,
    telemetry, template_instantiation, templates, webhook_deliveries, webhooks, work_order_log,
    work_orders,
};
use crate::error::{Error, ErrorResponse};

/// Root of the document: title, server and the shape of errors.
#[derive(OpenApi)]
#[openapi(
    info(title = "brokkr-broker", description = "One tenant's Brokkr broker: hands Kubernetes objects to agents in many clusters."),
    servers((url = "/api/v1")),
    components(schemas(ErrorResponse)),
)]
struct Root;

/// Builds the document of this broker's API.
pub fn document() -> Document {
    let mut document = Root::openapi();
    for part in [
        admin::Doc::openapi(),
        agents::Doc::openapi(),
        pak_lookup::Doc::openapi(),
        connections::Doc::openapi(),
        deployment_health::Doc::openapi(),
        diagnostics::Doc::openapi(),
        agent_events::Doc::openapi(),
        fleet::Doc::openapi(),
        generators::Doc::openapi(),
        labels::Doc::openapi(),
        template_instantiation::Doc::openapi(),
        models::Doc::openapi(),
        deployment_objects::Doc::openapi(),
        paks::Doc::openapi(),
        registrations::Doc::openapi(),
        stacks::Doc::openapi(),
        target_state::Doc::openapi(),
        targets::Doc::openapi(),
        telemetry::Doc::openapi(),
        templates::Doc::openapi(),
        webhook_deliveries::Doc::openapi(),
        webhooks::Doc::openapi(),
        work_order_log::Doc::openapi(),
        work_orders::Doc::openapi(),
    ] {
        document.merge(part);
    }
    let schemes = &mut document.components.get_or_insert_default().security_schemes;
    for name in ["admin_pak", "agent_pak", "generator_pak"] {
        let header = ApiKey::Header(ApiKeyValue::new("Authorization"));
        schemes.insert(name.to_owned(), SecurityScheme::ApiKey(header));
    }
    document
}

/// Returns the document as JSON.
///
/// # Errors
/// When the document cannot be serialised, which would be a bug.
pub fn json() -> serde_json::Result<String> {
    serde_json::to_string_pretty(&document())
}

/// Serves `GET /docs/openapi.json`.
pub async fn serve() -> Response {
    static JSON: LazyLock<Option<Bytes>> =
        LazyLock::new(|| match serde_json::to_vec(&document()) {
            Ok(json) => Some(json.into()),
            Err(error) => {
                tracing::error!(%error, "the OpenAPI document could not be serialised");
                None
            }
        });
    let Some(json) = JSON.clone() else {
        return Error::internal().into_response();
    };
    let kind = HeaderValue::from_static("application/json");
    ([(header::CONTENT_TYPE, kind)], json).into_response()
}
