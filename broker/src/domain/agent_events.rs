//! Events that agents report about objects, by REST or over a socket.

use serde::Deserialize;
use serde_json::json;
use utoipa::ToSchema;
use uuid::Uuid;

use super::outbox::{SubscriberEvent, emit};
use super::report::ReportRefusal;
use super::text;
use crate::db::Conn;
use crate::store::events::{self, AgentEvent, AgentEventReport};
use crate::store::stack_matching;

/// A report of an agent, by REST or over its socket. Other fields that the agent sends (an id, times) are ignored.
#[derive(Debug, Deserialize, ToSchema)]
#[schema(as = NewAgentEvent)]
pub struct NewAgentEvent {
    pub(crate) agent_id: Uuid,
    deployment_object_id: Uuid,
    event_type: String,
    status: String,
    message: Option<String>,
}

/// Checks and stores an agent's report, and emits an event if the report is new.
pub fn take(db: &mut Conn, agent: Uuid, new: &NewAgentEvent) -> Result<AgentEvent, ReportRefusal> {
    text::storable("`event_type`", &new.event_type, 50)?;
    text::storable("`status`", &new.status, 10)?;
    text::no_nul("`message`", new.message.as_deref().unwrap_or_default())?;
    let subject = events::subject(db, new.deployment_object_id)?
        .ok_or(ReportRefusal::UnknownObject("fk_deployment_object"))?;
    if !stack_matching::serves(db, agent, subject.stack)? {
        return Err(ReportRefusal::NotAssociated);
    }
    let report = AgentEventReport {
        agent,
        object: new.deployment_object_id,
        event_type: &new.event_type,
        status: &new.status,
        message: new.message.as_deref(),
    };
    db.transaction(|tx| {
        let (event, is_new) = events::insert(tx, &report)?;
        // A repeated success emits nothing, because its first report did.
        if is_new {
            let name = if report.is_success() {
                "deployment.applied"
            } else {
                "deployment.failed"
            };
            let announced = SubscriberEvent::new(
                name,
                json!({
                    "agent_event_id": event.id,
                    "agent_id": event.agent_id,
                    "deployment_object_id": event.deployment_object_id,
                    "stack_id": subject.live.then_some(subject.stack),
                    "event_type": event.event_type,
                    "status": event.status,
                    "message": event.message,
                    "created_at": event.created_at,
                }),
            );
            emit(tx, &[], &[announced])?;
        }
        Ok(event)
    })
}
