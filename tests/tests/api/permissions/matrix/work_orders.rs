//! Rows for work orders and their log.

use super::*;
use brokkr_tests::api_fixture::id;
use serde_json::json;

const NCA: &str = "403 work_order_not_claimed_by_agent";

// `claimed` is claimed by the agent itself; `order` is pending for it.
#[rustfmt::skip]
pub(crate) const ROWS: &[Row] = &[
    ("GET /work-orders", "", "[WorkOrder]", ["200", AR, AR, AR, AR]),
    ("POST /work-orders", r#"{"work_type":"build","yaml_content":"a: 1","targeting":{"agent_ids":["{self}"]}}"#,
        "WorkOrder", ["201", AR, AR, AR, AR]),
    ("GET /work-orders/{order}", "", "WorkOrder", ["200", AR, AR, AR, AR]),
    ("DELETE /work-orders/{order}", "", "", ["204", AR, AR, AR, AR]),
    ("GET /agents/{self}/work-orders/pending", "", "[WorkOrder]", ["200", "200", APM, APM, APM]),
    ("POST /work-orders/{order}/claim", r#"{"agent_id":"{self}"}"#, "WorkOrder", ["200", "200", APM, APM, APM]),
    ("POST /work-orders/{claimed}/complete", r#"{"success":true}"#, "WorkOrderLog", ["200", "200", NCA, NCA, NCA]),
    ("POST /work-orders/{claimed}/complete", r#"{"success":false}"#, "RetryScheduled", ["202", "202", NCA, NCA, NCA]),
    ("POST /work-orders/{order}/complete", r#"{"success":true}"#, "WorkOrderLog", ["200", NCA, NCA, NCA, NCA]),
    ("GET /work-order-log", "", "[WorkOrderLog]", ["200", AR, AR, AR, AR]),
    ("GET /work-order-log/{ended}", "", "WorkOrderLog", ["200", AR, AR, AR, AR]),
];

pub(crate) fn names(scene: &Scene<'_>) -> Names {
    let admin = &scene.world.admin;
    let make = || {
        let body = json!({
            "work_type": "build", "yaml_content": "a: 1", "targeting": { "agent_ids": [scene.own.id] },
        });
        id(&admin.create("/work-orders", &body))
    };
    let (order, claimed, ended) = (make(), make(), make());
    let claim = json!({ "agent_id": scene.own.id });
    for id in [&claimed, &ended] {
        let path = format!("/work-orders/{id}/claim");
        scene.own.post(&path, &claim).expect(200);
    }
    let path = format!("/work-orders/{ended}/complete");
    scene
        .own
        .post(&path, &json!({ "success": true }))
        .expect(200);
    vec![("order", order), ("claimed", claimed), ("ended", ended)]
}
