//! The audit log, and the configuration.

use axum::Router;
use axum::http::StatusCode;
use axum::routing::{get, post};
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::json;
use utoipa::{IntoParams, OpenApi, ToSchema};
use uuid::Uuid;

use super::call::{Call, Reply, plain};
use super::{access, check};
use crate::app::App;
use crate::db::Conn;
use crate::emit::{Actor, Audit, emit};
use crate::error::{Error, ErrorResponse};
use crate::hot::Change;
use crate::reload;
use crate::store::audit_log::{self, Action, AuditLogEntry, Filter};

/// Entries in an answer if nobody says.
const LIMIT: i64 = 100;
/// And at most.
const MOST: i64 = 1000;

/// This resource in the OpenAPI document.
#[derive(OpenApi)]
#[openapi(paths(audit_logs, reload_config))]
pub(super) struct Doc;

pub(super) fn routes() -> Router<App> {
    Router::new()
        .route("/admin/audit-logs", get(plain(audit_logs)))
        .route("/admin/config/reload", post(plain(reload_config)))
}

/// Which entries are wanted: those to which all of it applies.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct Wanted {
    /// `admin`, `agent`, `generator` or `system`.
    #[param(nullable)]
    actor_type: Option<String>,
    /// The agent or generator.
    #[param(nullable)]
    actor_id: Option<Uuid>,
    /// What was done; with `*` at its end, everything that begins so.
    #[param(nullable)]
    action: Option<String>,
    /// The kind of thing it was done to.
    #[param(nullable)]
    resource_type: Option<String>,
    /// The thing.
    #[param(nullable)]
    resource_id: Option<Uuid>,
    /// Not before this.
    #[param(nullable)]
    from: Option<DateTime<Utc>>,
    /// Before this.
    #[param(nullable)]
    to: Option<DateTime<Utc>>,
    /// How many: 100 if absent, 1000 at most.
    #[param(nullable)]
    limit: Option<i64>,
    /// How many of the newest to leave out.
    #[param(nullable)]
    offset: Option<i64>,
}

impl Wanted {
    fn filter(self) -> Result<Filter, Error> {
        for (what, text) in [
            ("`actor_type`", &self.actor_type),
            ("`action`", &self.action),
            ("`resource_type`", &self.resource_type),
        ] {
            check::no_nul(what, text.as_deref().unwrap_or_default())?;
        }
        for (what, time) in [("`from`", self.from), ("`to`", self.to)] {
            time.map_or(Ok(()), |time| check::time(what, time))?;
        }
        Ok(Filter {
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

/// A part of the audit log.
#[derive(Serialize, ToSchema)]
struct AuditLogListResponse {
    /// The entries, newest first.
    logs: Vec<AuditLogEntry>,
    /// How many there are in all to which the filters apply.
    total: i64,
    /// How many are here.
    count: usize,
    /// The limit in effect.
    limit: i64,
    /// The offset in effect.
    offset: i64,
}

#[utoipa::path(
    get,
    path = "/admin/audit-logs",
    operation_id = "list_audit_logs",
    tag = "Admin",
    params(Wanted),
    responses(
        (status = 200, description = "Entries, newest first", body = AuditLogListResponse),
        (status = 400, description = "A value in the query cannot be read", body = ErrorResponse),
        (status = 401, description = "No valid PAK", body = ErrorResponse),
        (status = 403, description = "Not the admin", body = ErrorResponse),
        (status = 422, description = "A value in the query cannot be in the log", body = ErrorResponse),
        (status = 500, description = "Failed inside the broker", body = ErrorResponse),
        (status = 503, description = "No database, no room, or still starting; try again", body = ErrorResponse),
    ),
    security(("admin_pak" = [])),
)]
fn audit_logs(call: &Call, db: &mut Conn) -> Result<Reply, Error> {
    let wanted: Wanted = call.query()?;
    access::admin(call.principal)?;
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

/// What reading the configuration again has changed.
#[derive(Serialize, ToSchema)]
struct ConfigReloadResponse {
    /// When.
    reloaded_at: DateTime<Utc>,
    /// What is in effect now and was not before.
    changes: Vec<Change>,
    /// True: a failure is an error answer.
    success: bool,
    /// What else there is to know.
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<String>,
}

#[utoipa::path(
    post,
    path = "/admin/config/reload",
    operation_id = "reload_config",
    tag = "Admin",
    responses(
        (status = 200, description = "Read again; what can change at run time has", body = ConfigReloadResponse),
        (status = 401, description = "No valid PAK", body = ErrorResponse),
        (status = 403, description = "Not the admin", body = ErrorResponse),
        (status = 500, description = "There is something wrong with the configuration; nothing has changed", body = ErrorResponse),
        (status = 503, description = "The database is away; nothing has changed", body = ErrorResponse),
    ),
    security(("admin_pak" = [])),
)]
fn reload_config(call: &Call, db: &mut Conn) -> Result<Reply, Error> {
    access::admin(call.principal)?;
    let app = &call.app;
    let pending = app.reloader.read(app).map_err(|problems| {
        let told: Vec<String> = problems.errors().map(reload::told).collect();
        Error::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "config_reload_failed",
            told.join("\n"),
        )
    })?;
    let (changes, needs_restart) = (pending.changes.clone(), pending.needs_restart.clone());
    // First the entry, then the change: a change that nobody can look up must not be.
    let audit = Audit::new(Actor::Admin, "config.reloaded", "config", None)
        .details(json!({ "changes": changes }));
    emit(db, &[audit], &[])?;
    let log_follows = pending.apply(app);
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
