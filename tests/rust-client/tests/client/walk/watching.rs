//! The state of agents and of applied objects: diagnostics, health, the fleet.

use std::sync::Arc;

use brokkr_client::types;
use chrono::Utc;
use uuid::Uuid;

use crate::walk::scene::Scene;

async fn diagnostics(scene: &Scene) {
    let (admin, agent, agent_id) = (&scene.admin, &scene.agent, scene.agent_id);
    let body = types::CreateDiagnosticRequest {
        agent_id,
        requested_by: Some("walk".to_owned()),
        retention_minutes: Some(5),
    };
    let asked = ok!(
        admin,
        201,
        create_diagnostic_request.id(scene.object).body(body)
    );
    assert_eq!(asked.status, "pending");
    let pending = ok!(agent, 200, get_pending_diagnostics.id(agent_id));
    assert_eq!(pending.iter().map(|d| d.id).collect::<Vec<_>>(), [asked.id]);
    assert!(
        ok!(admin, 200, get_diagnostic.id(asked.id))
            .result
            .is_none()
    );
    let result = types::SubmitDiagnosticResult {
        pod_statuses: "[]".to_owned(),
        events: "[]".to_owned(),
        log_tails: Some("{}".to_owned()),
        collected_at: Utc::now(),
    };
    let code = refused!(
        agent,
        409,
        submit_diagnostic_result.id(asked.id).body(result.clone())
    );
    assert_eq!(code, "diagnostic_not_claimed");
    assert_eq!(
        ok!(agent, 200, claim_diagnostic.id(asked.id)).status,
        "claimed"
    );
    let code = refused!(agent, 409, claim_diagnostic.id(asked.id));
    assert_eq!(code, "diagnostic_already_claimed");
    ok!(
        agent,
        201,
        submit_diagnostic_result.id(asked.id).body(result)
    );
    let seen = ok!(agent, 200, get_diagnostic.id(asked.id));
    assert_eq!(seen.request.status, "completed");
    assert_eq!(seen.result.unwrap().log_tails.as_deref(), Some("{}"));
}

fn report(object: Uuid, status: &str) -> types::HealthStatusUpdate {
    let resource = types::ResourceHealth {
        kind: "Pod".to_owned(),
        name: "p".to_owned(),
        namespace: "n".to_owned(),
        ready: false,
        message: Some("waits".to_owned()),
    };
    let summary = types::HealthSummary {
        conditions: vec!["Waiting".to_owned()],
        pods_ready: 1,
        pods_total: 2,
        resources: Some(vec![resource]),
    };
    types::HealthStatusUpdate {
        deployment_objects: vec![types::DeploymentObjectHealthUpdate {
            id: object,
            status: status.to_owned(),
            checked_at: Utc::now(),
            summary: Some(summary),
        }],
    }
}

async fn health(scene: &Scene) {
    let (admin, agent, agent_id) = (&scene.admin, &scene.agent, scene.agent_id);
    let body = report(scene.object, "degraded");
    ok!(agent, 200, update_health_status.id(agent_id).body(body));
    // The client's document does not name 422.
    let code = refused!(
        agent,
        422,
        update_health_status
            .id(agent_id)
            .body(report(scene.object, "odd"))
    );
    assert_eq!(code, "invalid_health_record");
    let seen = ok!(admin, 200, get_deployment_health.id(scene.object));
    assert_eq!(seen.overall_status, "degraded");
    let summary = seen.health_records[0].summary.as_deref().unwrap();
    let summary: serde_json::Value = serde_json::from_str(summary).unwrap();
    assert_eq!(summary["pods_total"], 2);
    let seen = ok!(admin, 200, get_stack_health.id(scene.stack));
    assert_eq!(
        (seen.overall_status.as_str(), seen.deployment_objects.len()),
        ("degraded", 1)
    );
}

async fn fleet(scene: &Scene) {
    let (admin, agent_id) = (&scene.admin, scene.agent_id);
    let everybody = ok!(admin, 200, list_fleet);
    let record = everybody.iter().find(|r| r.agent_id == agent_id).unwrap();
    assert_eq!(
        (record.health_degraded, record.k8s_api_latency_ms),
        (1, Some(12))
    );
    let of_generator = ok!(admin, 200, list_fleet.pak_id(scene.generator_id));
    assert_eq!(of_generator.len(), 1);
    let seen = ok!(admin, 200, get_agent_fleet_status.id(agent_id));
    assert_eq!(seen.record.name, scene.name("agent"));
    assert!(!seen.recent_events.is_empty());
    let code = refused!(admin, 404, get_agent_fleet_status.id(Uuid::new_v4()));
    assert_eq!(code, "agent_not_found");
}

pub(crate) async fn walk(scene: Arc<Scene>) {
    diagnostics(&scene).await;
    health(&scene).await;
    fleet(&scene).await;
}
