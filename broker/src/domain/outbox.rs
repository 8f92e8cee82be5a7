//! The audit entries and webhook events that a write leaves besides its rows.
//!
//! The transaction that makes the change writes both in one statement, so an entry exists exactly when its change does.
//! The audit log keeps entries for `broker.audit_log_retention_days`. Events go to `event_outbox`, and only while
//! `brokkr_meta.wants_events` is true, otherwise events without a subscriber would pile up.

use serde_json::{Value, json};
use uuid::Uuid;

use crate::db::{DbError, Sql};
use crate::store::outbox;

/// The author of a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Actor {
    /// The administrator, or a person who runs a command.
    Admin,
    /// An agent, by its id.
    Agent(Uuid),
    /// A generator, by its id.
    Generator(Uuid),
    /// The broker itself, or a caller that could not be identified.
    System,
}

impl Actor {
    fn parts(self) -> (&'static str, Option<Uuid>) {
        match self {
            Actor::Admin => ("admin", None),
            Actor::Agent(id) => ("agent", Some(id)),
            Actor::Generator(id) => ("generator", Some(id)),
            Actor::System => ("system", None),
        }
    }
}

/// An entry of the audit log.
#[derive(Clone, Debug)]
pub struct AuditRecord {
    /// The author of the action.
    pub actor: Actor,
    /// The action, such as `stack.created`.
    pub action: &'static str,
    /// The kind of resource that the action changed.
    pub resource_type: &'static str,
    /// The id of the resource.
    pub resource_id: Option<Uuid>,
    /// Further data about the action.
    pub details: Option<Value>,
    /// The address that the caller claims; only on failed authentication.
    pub ip_address: Option<String>,
    /// The user agent that the caller claims; only on failed authentication.
    pub user_agent: Option<String>,
}

impl AuditRecord {
    /// Returns an entry without details.
    pub fn new(
        actor: Actor,
        action: &'static str,
        resource_type: &'static str,
        resource_id: Option<Uuid>,
    ) -> Self {
        AuditRecord {
            actor,
            action,
            resource_type,
            resource_id,
            details: None,
            ip_address: None,
            user_agent: None,
        }
    }

    /// Adds details to the entry.
    #[must_use]
    pub fn details(mut self, details: Value) -> Self {
        self.details = Some(details);
        self
    }
}

/// An event for subscribers.
#[derive(Clone, Debug)]
pub struct SubscriberEvent {
    /// The type, such as `stack.created`.
    pub event_type: &'static str,
    /// The data, with the keys that the contract lists.
    pub data: Value,
}

impl SubscriberEvent {
    /// Returns an event.
    pub fn new(event_type: &'static str, data: Value) -> Self {
        SubscriberEvent { event_type, data }
    }
}

/// Records audit entries and events in the caller's transaction, in one statement. Call it once per write, with
/// everything.
///
/// # Errors
///
/// As any statement; the transaction is then lost, and the change with it.
pub fn emit(
    sql: &mut impl Sql,
    audits: &[AuditRecord],
    events: &[SubscriberEvent],
) -> Result<(), DbError> {
    if audits.is_empty() && events.is_empty() {
        return Ok(());
    }
    let audits: Value = audits.iter().map(audit_row).collect();
    let events: Value = events
        .iter()
        .map(|e| json!({ "event_type": e.event_type, "data": e.data }))
        .collect();
    if outbox::insert(sql, &audits, &events)? > 0 {
        sql.wrote_events();
    }
    Ok(())
}

fn audit_row(audit: &AuditRecord) -> Value {
    let (actor_type, actor_id) = audit.actor.parts();
    json!({
        "actor_type": actor_type,
        "actor_id": actor_id,
        "action": audit.action,
        "resource_type": audit.resource_type,
        "resource_id": audit.resource_id,
        "details": audit.details,
        "ip_address": audit.ip_address.as_deref().map(without_nul),
        "user_agent": audit.user_agent.as_deref().map(without_nul),
    })
}

/// Replaces NUL bytes because PostgreSQL stores none; otherwise an anonymous header could make the entry about it fail.
fn without_nul(text: &str) -> String {
    text.replace('\0', "\u{fffd}")
}
