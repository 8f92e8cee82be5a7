//! Schemas that no operation uses but that the published document has, mostly stored rows. They stay in the document,
//! because clients generated from it may use the types.
#![allow(dead_code, reason = "they describe; none is ever built")]

use utoipa::{OpenApi, ToSchema};
use uuid::Uuid;

#[derive(OpenApi)]
#[openapi(components(schemas(
    ListDeliveriesQuery,
    NewAgent,
    NewDeploymentObject,
    NewStackLabel,
    NewStackTemplate,
    NewTemplateAnnotation,
    NewTemplateLabel,
    WebhookSubscription,
)))]
pub(super) struct Doc;

/// Filters of the list of deliveries.
#[derive(ToSchema)]
struct ListDeliveriesQuery {
    status: Option<String>,
    limit: Option<i64>,
    offset: Option<i64>,
}

/// An agent to create.
#[derive(ToSchema)]
struct NewAgent {
    name: String,
    cluster_name: String,
}

/// A deployment object to create.
#[derive(ToSchema)]
struct NewDeploymentObject {
    stack_id: Uuid,
    yaml_content: String,
    yaml_checksum: String,
    is_deletion_marker: bool,
}

/// A stack's label to create.
#[derive(ToSchema)]
struct NewStackLabel {
    stack_id: Uuid,
    label: String,
}

/// A template version to create.
#[derive(ToSchema)]
struct NewStackTemplate {
    generator_id: Option<Uuid>,
    name: String,
    description: Option<String>,
    version: i32,
    template_content: String,
    parameters_schema: String,
    checksum: String,
}

/// A template's annotation to create.
#[derive(ToSchema)]
struct NewTemplateAnnotation {
    template_id: Uuid,
    key: String,
    value: String,
}

/// A template's label to create.
#[derive(ToSchema)]
struct NewTemplateLabel {
    template_id: Uuid,
    label: String,
}

/// A webhook subscription without its secrets.
#[derive(ToSchema)]
struct WebhookSubscription {
    id: Uuid,
    name: String,
    event_types: Vec<Option<String>>,
    /// JSON as text.
    filters: Option<String>,
    target_labels: Option<Vec<Option<String>>>,
    enabled: bool,
    max_retries: i32,
    timeout_seconds: i32,
    created_by: Option<String>,
    created_at: chrono::DateTime<chrono::Utc>,
    updated_at: chrono::DateTime<chrono::Utc>,
}
