//! Rows for diagnostics and deployment health.

use super::*;
use brokkr_tests::api_fixture::id;
use serde_json::json;

const DNO: &str = "403 diagnostic_not_owned";

#[rustfmt::skip]
pub(crate) const ROWS: &[Row] = &[
    ("POST /deployment-objects/{object}/diagnostics", r#"{"agent_id":"{self}"}"#, "DiagnosticRequest",
        ["201", AR, AR, AR, AR]),
    ("GET /agents/{self}/diagnostics/pending", "", "[DiagnosticRequest]", ["200", "200", APM, APM, APM]),
    ("GET /diagnostics/{diagnostic}", "", "DiagnosticResponse", ["200", "200", DNO, DNO, DNO]),
    ("GET /diagnostics/{answered}", "", "DiagnosticResponse", ["200", "200", DNO, DNO, DNO]),
    ("POST /diagnostics/{diagnostic}/claim", "", "DiagnosticRequest", ["200", "200", DNO, DNO, DNO]),
    ("POST /diagnostics/{claimed_request}/result",
        r#"{"pod_statuses":"[]","events":"[]","collected_at":"2024-01-01T00:00:00Z"}"#,
        "DiagnosticResult", [DNO, "201", DNO, DNO, DNO]),

    ("PATCH /agents/{self}/health-status",
        r#"{"deployment_objects":[{"id":"{object}","status":"healthy","checked_at":"2024-01-01T00:00:00Z"}]}"#,
        "", ["200", "200", APM, APM, APM]),
    ("GET /deployment-objects/{object}/health", "", "DeploymentHealthResponse", ["200", AR, AR, AR, AR]),
    ("GET /stacks/{stack}/health", "", "StackHealthResponse", ["200", AR, AR, AR, AR]),
];

pub(crate) fn names(scene: &Scene<'_>) -> Names {
    let ask = || {
        let path = format!("/deployment-objects/{}/diagnostics", scene.object);
        let body = json!({ "agent_id": scene.own.id });
        id(&scene.world.create(&path, &body))
    };
    let claim = |request: &str| {
        scene
            .own
            .post(&format!("/diagnostics/{request}/claim"), &json!({}))
            .expect(200);
    };
    let (pending, claimed, answered) = (ask(), ask(), ask());
    claim(&claimed);
    claim(&answered);
    let found =
        json!({ "pod_statuses": "[]", "events": "[]", "collected_at": "2024-01-01T00:00:00Z" });
    scene
        .own
        .create(&format!("/diagnostics/{answered}/result"), &found);
    let health = json!({ "deployment_objects": [
        { "id": scene.object, "status": "degraded", "checked_at": "2024-01-01T00:00:00Z" },
    ] });
    scene
        .own
        .call(
            "PATCH",
            &format!("/agents/{}/health-status", scene.own.id),
            Some(&health),
        )
        .expect(200);
    vec![
        ("diagnostic", pending),
        ("claimed_request", claimed),
        ("answered", answered),
    ]
}
