//! Health reports of agents about objects, by REST or over a socket.

use chrono::{DateTime, Utc};
use uuid::Uuid;

use super::report::ReportRefusal;
use crate::db::Conn;
use crate::store::deployment_health::{self, HealthOutcome, HealthReport};

/// Makes a report that can be stored.
pub fn report_on(
    object: Uuid,
    status: &str,
    summary: Option<String>,
    checked_at: DateTime<Utc>,
) -> Result<HealthReport, ReportRefusal> {
    HealthReport::new(object, status, summary, checked_at)
        .map_err(|wrong| ReportRefusal::HealthRecord(format!("object {object}: {wrong}")))
}

/// Stores all of an agent's reports or none. Returns true when the agent's fleet record changed.
pub fn take(db: &mut Conn, agent: Uuid, reports: &[HealthReport]) -> Result<bool, ReportRefusal> {
    match deployment_health::report(db, agent, reports)? {
        HealthOutcome::Stored { news } => Ok(news),
        HealthOutcome::UnknownObject => Err(ReportRefusal::UnknownObject(
            "deployment_health_deployment_object_id_fkey",
        )),
        HealthOutcome::NotAssociated => Err(ReportRefusal::NotAssociated),
    }
}
