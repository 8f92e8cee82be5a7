//! Agents: search, create, change, delete, rotate the PAK, and heartbeats.

use axum::Router;
use axum::routing::{get, post};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use utoipa::{OpenApi, ToSchema};
use uuid::Uuid;

use super::openapi::responses::{
    Always, BadRequest, Conflict, Forbidden, JsonBody, NotFound, Unstorable,
};
use super::operation::{plain, with_body};
use super::reply::Reply;
use super::request::{ApiRequest, parse_json};
use super::{audit, authorization, validation};
use crate::app::App;
use crate::auth::Principal;
use crate::db::Conn;
use crate::domain::outbox::{SubscriberEvent, emit};
use crate::domain::provisioning::{self, Caller};
use crate::error::Error;
use crate::store::agents::{self, Agent, ClusterReport, ListedBy};

#[derive(OpenApi)]
#[openapi(paths(list, search, create, show, update, remove, rotate, heartbeat))]
pub(super) struct Doc;

pub(super) fn routes() -> Router<App> {
    Router::new()
        .route("/agents", get(plain(list)).post(with_body(create)))
        // The path with a slash at its end is another operation: the search.
        .route("/agents/", get(plain(search)))
        .route(
            "/agents/{id}",
            get(plain(show))
                .put(with_body(update))
                .delete(plain(remove)),
        )
        .route("/agents/{id}/rotate-pak", post(plain(rotate)))
        .route("/agents/{id}/heartbeat", post(with_body(heartbeat)))
}

#[utoipa::path(
    get, path = "/agents", operation_id = "list_agents", tag = "agents",
    responses(
        (status = 200, description = "Agents, oldest first; a generator sees those registered with it", body = [Agent]),
        Always, Forbidden,
    ),
    security(("admin_pak" = []), ("generator_pak" = [])),
)]
fn list(call: &ApiRequest, db: &mut Conn) -> Result<Reply, Error> {
    match call.principal {
        Principal::Admin => Reply::ok(&agents::list(db)?),
        Principal::Agent(_) => Err(Error::forbidden(
            "generator_required",
            "only the admin and generators may list agents",
        )),
        Principal::Generator(id) => match agents::list_registered(db, id)? {
            ListedBy::NoGenerator => Err(Error::forbidden(
                "generator_not_found",
                "this generator has been deleted",
            )),
            ListedBy::System => Err(authorization::system_generator()),
            ListedBy::Tenant(agents) => Reply::ok(&agents),
        },
    }
}

#[derive(Deserialize)]
struct Search {
    name: Option<String>,
    cluster_name: Option<String>,
}

#[utoipa::path(
    get, path = "/agents/", operation_id = "search_agent", tag = "agents",
    params(
        ("name" = Option<String>, Query, description = "Required"),
        ("cluster_name" = Option<String>, Query, description = "Required"),
    ),
    responses(
        (status = 200, description = "The agent of that name in that cluster", body = Agent),
        Always, BadRequest, Forbidden, NotFound, Unstorable,
    ),
    security(("admin_pak" = []), ("agent_pak" = [])),
)]
fn search(call: &ApiRequest, db: &mut Conn) -> Result<Reply, Error> {
    let Search {
        name: Some(name),
        cluster_name: Some(cluster),
    } = call.query()?
    else {
        return Err(Error::bad_request(
            "name_and_cluster_required",
            "both `name` and `cluster_name` are required",
        ));
    };
    validation::no_nul("`name`", &name)?;
    validation::no_nul("`cluster_name`", &cluster)?;
    let agent = agents::find(db, &name, &cluster)?.ok_or_else(authorization::no_agent)?;
    authorization::admin_or_agent(call.principal, agent.id)?;
    Reply::ok(&agent)
}

#[derive(Deserialize, ToSchema)]
#[schema(as = CreateAgentRequest)]
struct NewAgent {
    name: String,
    cluster_name: String,
    #[serde(default)]
    generator_ids: Vec<Uuid>,
}

#[derive(Serialize, ToSchema)]
#[schema(as = CreateAgentResponse)]
struct Created<'a> {
    agent: Agent,
    initial_pak: &'a str,
}

#[utoipa::path(
    post, path = "/agents", operation_id = "create_agent", tag = "agents",
    request_body = NewAgent,
    responses(
        (status = 201, description = "The agent and its PAK, which is shown only now", body = Created),
        Always, JsonBody, Forbidden, Conflict,
    ),
    security(("admin_pak" = [])),
)]
fn create(call: &ApiRequest, db: &mut Conn) -> Result<Reply, Error> {
    let new: NewAgent = call.json()?;
    authorization::admin(call.principal)?;
    validation::not_blank("`name`", &new.name, "invalid_agent")?;
    validation::not_blank("`cluster_name`", &new.cluster_name, "invalid_agent")?;
    validation::storable("`name`", &new.name, validation::NAME)?;
    validation::storable("`cluster_name`", &new.cluster_name, validation::NAME)?;
    let pak = call.mint()?;
    let agent = db.transaction(|tx| {
        let names = (new.name.as_str(), new.cluster_name.as_str());
        let by = Caller::Caller(call.principal.into());
        provisioning::agent(tx, by, names, &new.generator_ids, &pak.hash())
    })?;
    Reply::created(&Created {
        agent,
        initial_pak: pak.expose(),
    })
}

#[utoipa::path(
    get, path = "/agents/{id}", operation_id = "get_agent", tag = "agents",
    params(("id" = Uuid, Path)),
    responses((status = 200, description = "The agent", body = Agent), Always, BadRequest, Forbidden, NotFound),
    security(("admin_pak" = []), ("agent_pak" = [])),
)]
fn show(call: &ApiRequest, db: &mut Conn) -> Result<Reply, Error> {
    let id = call.id()?;
    authorization::admin_or_agent(call.principal, id)?;
    Reply::ok(&agents::get(db, id)?.ok_or_else(authorization::no_agent)?)
}

/// Takes any JSON; only text under the keys `name`, `cluster_name` and `status` is used.
#[utoipa::path(
    put, path = "/agents/{id}", operation_id = "update_agent", tag = "agents",
    params(("id" = Uuid, Path)),
    request_body = Value,
    responses(
        (status = 200, description = "The agent as it is now", body = Agent),
        Always, JsonBody, Forbidden, NotFound, Conflict,
    ),
    security(("admin_pak" = []), ("agent_pak" = [])),
)]
fn update(call: &ApiRequest, db: &mut Conn) -> Result<Reply, Error> {
    let id = call.id()?;
    let body = call.value()?;
    authorization::admin_or_agent(call.principal, id)?;
    let text = |key| body.get(key).and_then(Value::as_str);
    let (name, cluster, status) = (text("name"), text("cluster_name"), text("status"));
    let changes = name.is_some() || cluster.is_some() || status.is_some();
    let current = agents::get(db, id)?.ok_or_else(authorization::no_agent)?;
    if !changes {
        return Reply::ok(&current);
    }
    for (what, value) in [("`name`", name), ("`cluster_name`", cluster)] {
        if let Some(value) = value {
            validation::not_blank(what, value, "invalid_agent")?;
            validation::storable(what, value, validation::NAME)?;
        }
    }
    if let Some(status) = status {
        validation::storable("`status`", status, 50)?;
    }
    let agent = db.transaction(|tx| {
        let agent =
            agents::update(tx, id, name, cluster, status)?.ok_or_else(authorization::no_agent)?;
        let audit = audit::audit(call.principal, "agent.updated", "agent", id).details(json!({
            "name": agent.name, "cluster_name": agent.cluster_name, "status": agent.status,
        }));
        emit(tx, &[audit], &[])?;
        Ok::<_, Error>(agent)
    })?;
    call.app.live.fleet_changed(id);
    Reply::ok(&agent)
}

/// Answers 204 even when there was no such agent; only a real deletion is recorded.
#[utoipa::path(
    delete, path = "/agents/{id}", operation_id = "delete_agent", tag = "agents",
    params(("id" = Uuid, Path)),
    responses((status = 204, description = "It is gone"), Always, BadRequest, Forbidden),
    security(("admin_pak" = [])),
)]
fn remove(call: &ApiRequest, db: &mut Conn) -> Result<Reply, Error> {
    let id = call.id()?;
    authorization::admin(call.principal)?;
    db.transaction(|tx| {
        let Some(deleted_at) = agents::delete(tx, id)? else {
            return Ok(());
        };
        let audit = audit::audit(call.principal, "agent.deleted", "agent", id);
        let event = SubscriberEvent::new(
            "agent.deregistered",
            json!({ "agent_id": id, "deleted_at": deleted_at }),
        );
        emit(tx, &[audit], &[event])?;
        Ok::<_, Error>(())
    })?;
    call.app.auth.forget(Principal::Agent(id));
    call.app.live.revoke(id);
    Ok(Reply::no_content())
}

#[derive(Serialize)]
struct Rotated<'a> {
    agent: Agent,
    pak: &'a str,
}

#[utoipa::path(
    post, path = "/agents/{id}/rotate-pak", operation_id = "rotate_agent_pak", tag = "agents",
    params(("id" = Uuid, Path)),
    responses(
        (status = 200, description = "The agent and its new PAK, which is shown only now", body = Value),
        Always, BadRequest, Forbidden, NotFound,
    ),
    security(("admin_pak" = []), ("agent_pak" = [])),
)]
fn rotate(call: &ApiRequest, db: &mut Conn) -> Result<Reply, Error> {
    let id = call.id()?;
    authorization::admin_or_agent(call.principal, id)?;
    let pak = call.mint()?;
    let by = Caller::Caller(call.principal.into());
    let agent = db.transaction(|tx| provisioning::rotate_agent(tx, by, id, &pak.hash()))?;
    call.app.auth.forget(Principal::Agent(id));
    call.app.live.revoke(id);
    Reply::ok(&Rotated {
        agent,
        pak: pak.expose(),
    })
}

#[derive(Deserialize, ToSchema)]
#[schema(as = HeartbeatReport)]
struct Heartbeat {
    k8s_reachable: Option<bool>,
    k8s_api_latency_ms: Option<i32>,
}

/// Ignores a body that cannot be read, because the request alone shows that the agent is alive.
#[utoipa::path(
    post, path = "/agents/{id}/heartbeat", operation_id = "record_heartbeat", tag = "agents",
    params(("id" = Uuid, Path)),
    request_body = Heartbeat,
    responses((status = 204, description = "Noted"), Always, BadRequest, Forbidden),
    security(("agent_pak" = [])),
)]
fn heartbeat(call: &ApiRequest, db: &mut Conn) -> Result<Reply, Error> {
    let id = call.id()?;
    authorization::agent_itself(call.principal, id)?;
    let report = call
        .body()
        .ok()
        .and_then(|body| parse_json::<Heartbeat>(body).ok())
        .and_then(|report| {
            Some(ClusterReport {
                reachable: report.k8s_reachable?,
                latency_ms: report.k8s_api_latency_ms,
            })
        });
    if agents::heartbeat(db, id, report, None)? {
        call.app.live.fleet_changed(id);
        return Ok(Reply::no_content());
    }
    // The cache still knew the agent, but another process has deleted it.
    call.app.auth.forget(call.principal);
    Err(Error::unauthorized())
}
