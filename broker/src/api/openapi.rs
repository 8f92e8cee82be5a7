//! The OpenAPI document: each resource describes its own operations beside its handlers; here they become one.

use utoipa::OpenApi;
use utoipa::openapi::OpenApi as Document;
use utoipa::openapi::security::{ApiKey, ApiKeyValue, SecurityScheme};

use super::{
    admin, agent_marks, agents, auth, connections, deployment_health, diagnostics, events, fleet,
    generators, instantiate, objects, paks, registrations, stack_marks, stacks, target_state,
    targets, telemetry, template_marks, templates, webhook_deliveries, webhooks, work_order_log,
    work_orders,
};

/// What the whole document says besides its operations.
#[derive(OpenApi)]
#[openapi(
    info(title = "brokkr-broker", description = "One tenant's Brokkr broker: hands Kubernetes objects to agents in many clusters."),
    servers((url = "/api/v1")),
)]
struct Root;

/// The document of this broker's API.
pub fn document() -> Document {
    let mut document = Root::openapi();
    for part in [
        admin::Doc::openapi(),
        agent_marks::Doc::openapi(),
        agents::Doc::openapi(),
        auth::Doc::openapi(),
        connections::Doc::openapi(),
        deployment_health::Doc::openapi(),
        diagnostics::Doc::openapi(),
        events::Doc::openapi(),
        fleet::Doc::openapi(),
        generators::Doc::openapi(),
        instantiate::Doc::openapi(),
        objects::Doc::openapi(),
        paks::Doc::openapi(),
        registrations::Doc::openapi(),
        stack_marks::Doc::openapi(),
        stacks::Doc::openapi(),
        target_state::Doc::openapi(),
        targets::Doc::openapi(),
        telemetry::Doc::openapi(),
        template_marks::Doc::openapi(),
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
