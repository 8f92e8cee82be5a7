//! Health reports of agents about the objects that they applied, and the admin's views of them.

use axum::Router;
use axum::http::StatusCode;
use axum::routing::{get, patch};
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use utoipa::{OpenApi, ToSchema};
use uuid::Uuid;

use super::authorization;
use super::openapi::responses::{Always, BadRequest, Forbidden, JsonBody};
use super::operation::{plain, with_body};
use super::reply::Reply;
use super::request::ApiRequest;
use crate::app::App;
use crate::db::Conn;
use crate::domain::deployment_health::{report_on, take};
use crate::error::Error;
use crate::store::deployment_health::{self, HealthRecord, HealthReport, HealthStatus};

#[derive(OpenApi)]
#[openapi(paths(update, of_object, of_stack))]
pub(super) struct Doc;

pub(super) fn routes() -> Router<App> {
    Router::new()
        .route("/agents/{id}/health-status", patch(with_body(update)))
        .route("/deployment-objects/{id}/health", get(plain(of_object)))
        .route("/stacks/{id}/health", get(plain(of_stack)))
}

/// Health report of an agent about the objects that it has applied.
#[derive(Deserialize, ToSchema)]
struct HealthStatusUpdate {
    /// One entry for each object.
    deployment_objects: Vec<DeploymentObjectHealthUpdate>,
}

/// Health of one object, as reported by an agent.
#[derive(Deserialize, ToSchema)]
struct DeploymentObjectHealthUpdate {
    /// Id of the object.
    id: Uuid,
    /// `healthy`, `degraded`, `failing` or `unknown`.
    status: String,
    /// Details of the status.
    summary: Option<HealthSummary>,
    /// Time of the agent's check.
    checked_at: DateTime<Utc>,
}

/// Details of a status.
#[derive(Deserialize, Serialize, ToSchema)]
struct HealthSummary {
    /// Number of ready pods.
    pods_ready: i32,
    /// Number of all pods.
    pods_total: i32,
    /// Problems, such as `ImagePullBackOff`.
    conditions: Vec<String>,
    /// Health of each resource.
    #[serde(skip_serializing_if = "Option::is_none")]
    resources: Option<Vec<ResourceHealth>>,
}

/// Health of one Kubernetes resource.
#[derive(Deserialize, Serialize, ToSchema)]
struct ResourceHealth {
    /// Kind, such as `Deployment`.
    kind: String,
    /// Name.
    name: String,
    /// Namespace.
    namespace: String,
    /// True when the resource is ready.
    ready: bool,
    /// Further details.
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<String>,
}

#[utoipa::path(
    patch, path = "/agents/{id}/health-status", operation_id = "update_health_status", tag = "health",
    params(("id" = Uuid, Path, description = "The agent")),
    request_body = HealthStatusUpdate,
    responses(
        (status = 200, description = "Taken, all of it"),
        Always, JsonBody, Forbidden,
    ),
    security(("agent_pak" = [])),
)]
fn update(call: &ApiRequest, db: &mut Conn) -> Result<Reply, Error> {
    let agent = call.id()?;
    let update: HealthStatusUpdate = call.json()?;
    authorization::admin_or_agent(call.principal, agent)?;
    let reports: Vec<HealthReport> = update
        .deployment_objects
        .into_iter()
        .map(checked)
        .collect::<Result<_, _>>()?;
    if take(db, agent, &reports)? {
        call.app.live.fleet_changed(agent);
    }
    Ok(Reply::Empty(StatusCode::OK))
}

fn checked(update: DeploymentObjectHealthUpdate) -> Result<HealthReport, Error> {
    let summary = update
        .summary
        .as_ref()
        .map(serde_json::to_string)
        .transpose()
        .map_err(|error| {
            tracing::error!(%error, "a health summary could not be serialised");
            Error::internal()
        })?;
    Ok(report_on(
        update.id,
        &update.status,
        summary,
        update.checked_at,
    )?)
}

/// Health of an object, with the reports of its agents.
#[derive(Serialize, ToSchema)]
#[schema(as = DeploymentHealthResponse)]
struct ObjectHealth {
    /// Id of the object.
    deployment_object_id: Uuid,
    /// Latest report of each agent, newest first.
    health_records: Vec<HealthRecord>,
    /// Worst of the reported statuses.
    overall_status: &'static str,
}

#[utoipa::path(
    get, path = "/deployment-objects/{id}/health", operation_id = "get_deployment_health", tag = "health",
    params(("id" = Uuid, Path, description = "The deployment object")),
    responses(
        (status = 200, description = "What agents say of it; nothing if there is no such object", body = ObjectHealth),
        Always, BadRequest, Forbidden,
    ),
    security(("admin_pak" = [])),
)]
fn of_object(call: &ApiRequest, db: &mut Conn) -> Result<Reply, Error> {
    let id = call.id()?;
    authorization::admin(call.principal)?;
    let health_records = deployment_health::of_object(db, id)?;
    let said = health_records
        .iter()
        .filter_map(|record| HealthStatus::parse(&record.status));
    Reply::ok(&ObjectHealth {
        deployment_object_id: id,
        overall_status: HealthStatus::worst(said).as_str(),
        health_records,
    })
}

/// Health of a stack.
#[derive(Serialize, ToSchema)]
#[schema(as = StackHealthResponse)]
struct StackHealth {
    /// Id of the stack.
    stack_id: Uuid,
    /// Worst status of its objects.
    overall_status: &'static str,
    /// Live objects of the stack that have a report, newest first.
    deployment_objects: Vec<DeploymentObjectHealthSummary>,
}

/// Number of agents that report each status of an object.
#[derive(Serialize, ToSchema)]
struct DeploymentObjectHealthSummary {
    /// Id of the object.
    id: Uuid,
    /// Worst of the reported statuses.
    status: &'static str,
    /// Number of agents that report `healthy`.
    healthy_agents: usize,
    /// Number of agents that report `degraded`.
    degraded_agents: usize,
    /// Number of agents that report `failing`.
    failing_agents: usize,
}

#[utoipa::path(
    get, path = "/stacks/{id}/health", operation_id = "get_stack_health", tag = "health",
    params(("id" = Uuid, Path, description = "The stack")),
    responses(
        (status = 200, description = "How its live objects do; nothing if there is no such stack", body = StackHealth),
        Always, BadRequest, Forbidden,
    ),
    security(("admin_pak" = [])),
)]
fn of_stack(call: &ApiRequest, db: &mut Conn) -> Result<Reply, Error> {
    let id = call.id()?;
    authorization::admin(call.principal)?;
    let tallies = deployment_health::of_stack(db, id)?;
    let worst = HealthStatus::worst(tallies.iter().map(deployment_health::Tally::status));
    Reply::ok(&StackHealth {
        stack_id: id,
        overall_status: worst.as_str(),
        deployment_objects: tallies
            .into_iter()
            .map(|tally| DeploymentObjectHealthSummary {
                id: tally.object,
                status: tally.status().as_str(),
                healthy_agents: tally.healthy,
                degraded_agents: tally.degraded,
                failing_agents: tally.failing,
            })
            .collect(),
    })
}
