//! Audit log and configuration reload.

use axum::Router;
use axum::http::StatusCode;
use axum::routing::{get, post};
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::json;
use utoipa::{IntoParams, OpenApi, ToSchema};
use uuid::Uuid;

use super::openapi::responses::{Always, BadRequest, Forbidden, Unstorable};
use super::operation::plain;
use super::reply::Reply;
use super::request::ApiRequest;
use super::{authorization, validation};
use crate::app::App;
use crate::db::Conn;
use crate::domain::outbox::{Actor, AuditRecord, emit};
use crate::error::Error;
use crate::reload;
use crate::runtime_config::ConfigChange;
use crate::store::audit_log::{self, Action, AuditFilter, AuditLogEntry};

/// Default number of entries in an answer.
const LIMIT: i64 = 100;
/// Largest number of entries in an answer.
const MOST: i64 = 1000;

#[derive(OpenApi)]
#[openapi(paths(audit_logs, reload_config))]
pub(super) struct Doc;

pub(super) fn routes() -> Router<App> {
    Router::new()
        .route("/admin/audit-logs", get(plain(audit_logs)))
        .route("/admin/config/reload", post(plain(reload_config)))
}

/// Filters of the audit log: an entry must match all of them.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct Wanted {
    /// `admin`, `agent`, `generator` or `system`.
    #[param(nullable)]
    actor_type: Option<String>,
    /// Id of the agent or generator that acted.
    #[param(nullable)]
    actor_id: Option<Uuid>,
    /// Action; with `*` at its end, every action with this prefix.
    #[param(nullable)]
    action: Option<String>,
    /// Kind of the resource that the action changed.
    #[param(nullable)]
    resource_type: Option<String>,
    /// Id of that resource.
    #[param(nullable)]
    resource_id: Option<Uuid>,
    /// Earliest time.
    #[param(nullable)]
    from: Option<DateTime<Utc>>,
    /// Time before which the entries lie.
    #[param(nullable)]
    to: Option<DateTime<Utc>>,
    /// Largest number of entries: 100 if absent, 1000 at most.
    #[param(nullable)]
    limit: Option<i64>,
    /// Number of newest entries to skip.
    #[param(nullable)]
    offset: Option<i64>,
}

impl Wanted {
    fn filter(self) -> Result<AuditFilter, Error> {
        for (what, text) in [
            ("`actor_type`", &self.actor_type),
            ("`action`", &self.action),
            ("`resource_type`", &self.resource_type),
        ] {
            validation::no_nul(what, text.as_deref().unwrap_or_default())?;
        }
        for (what, time) in [("`from`", self.from), ("`to`", self.to)] {
            time.map_or(Ok(()), |time| validation::time(what, time))?;
        }
        Ok(AuditFilter {
            actor_type: self.actor_type,
            actor_id: self.actor_id,
            action: self.action.map(|action| match action.strip_suffix('*') {
                Some(prefix) => Action::Prefix(prefix.to_owned()),
                None => Action::Exactly(action),
            }),
            resource_type: self.resource_type,
            resource_id: self.resource_id,
            from: self.from,
            to: self.to,
        })
    }
}

/// A page of the audit log.
#[derive(Serialize, ToSchema)]
struct AuditLogListResponse {
    /// The entries, newest first.
    logs: Vec<AuditLogEntry>,
    /// Number of all entries that match the filters.
    total: i64,
    /// Number of entries in this page.
    count: usize,
    /// The limit in effect.
    limit: i64,
    /// The offset in effect.
    offset: i64,
}

#[utoipa::path(
    get, path = "/admin/audit-logs", operation_id = "list_audit_logs", tag = "Admin",
    params(Wanted),
    responses(
        (status = 200, description = "Entries, newest first", body = AuditLogListResponse),
        Always, BadRequest, Forbidden, Unstorable,
    ),
    security(("admin_pak" = [])),
)]
fn audit_logs(call: &ApiRequest, db: &mut Conn) -> Result<Reply, Error> {
    let wanted: Wanted = call.query()?;
    authorization::admin(call.principal)?;
    let limit = wanted.limit.unwrap_or(LIMIT).clamp(1, MOST);
    let offset = wanted.offset.unwrap_or(0).max(0);
    let page = audit_log::page(db, wanted.filter()?, limit, offset)?;
    Reply::ok(&AuditLogListResponse {
        total: page.total,
        count: page.entries.len(),
        limit,
        offset,
        logs: page.entries,
    })
}

/// Result of a configuration reload.
#[derive(Serialize, ToSchema)]
struct ConfigReloadResponse {
    /// Time of the reload.
    reloaded_at: DateTime<Utc>,
    /// Settings that the reload changed.
    changes: Vec<ConfigChange>,
    /// Always true: a failure is an error answer.
    success: bool,
    /// Remarks, such as changes that need a restart.
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<String>,
}

#[utoipa::path(
    post, path = "/admin/config/reload", operation_id = "reload_config", tag = "Admin",
    responses(
        (status = 200, description = "Read again; what can change at run time has", body = ConfigReloadResponse),
        Always, Forbidden,
    ),
    security(("admin_pak" = [])),
)]
fn reload_config(call: &ApiRequest, db: &mut Conn) -> Result<Reply, Error> {
    authorization::admin(call.principal)?;
    let app = &call.app;
    let pending = app.reloader.read().map_err(|problems| {
        let told: Vec<String> = problems.errors().map(reload::told).collect();
        Error::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "config_reload_failed",
            told.join("\n"),
        )
    })?;
    let (changes, needs_restart) = (pending.changes.clone(), pending.needs_restart.clone());
    // The entry is written before the change, because no change may happen without an entry.
    let audit = AuditRecord::new(Actor::Admin, "config.reloaded", "config", None)
        .details(json!({ "changes": changes }));
    emit(db, &[audit], &[])?;
    let log_follows = pending.apply();
    let mut message = Vec::new();
    if app.reloader.is_supervised() {
        message.push(
            "nothing was read: the supervisor replaces this broker when the tenant's file changes"
                .to_owned(),
        );
    }
    if !needs_restart.is_empty() {
        message.push(format!(
            "changed, but needs a restart: {}",
            needs_restart.join(", ")
        ));
    }
    if !log_follows {
        message.push("RUST_LOG decides what is logged".to_owned());
    }
    Reply::ok(&ConfigReloadResponse {
        reloaded_at: Utc::now(),
        changes,
        success: true,
        message: (!message.is_empty()).then(|| message.join("; ")),
    })
}
