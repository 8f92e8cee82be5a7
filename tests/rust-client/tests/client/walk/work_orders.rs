//! Work orders from their creation to the log.

use std::sync::Arc;

use brokkr_client::types;

use crate::walk::scene::{Scene, YAML};

/// Returns an order of this kind for the agents of `targeting`.
fn order(
    kind: &str,
    targeting: Option<types::WorkOrderTargeting>,
) -> types::CreateWorkOrderRequest {
    types::CreateWorkOrderRequest {
        work_type: kind.to_owned(),
        yaml_content: YAML.to_owned(),
        targeting,
        target_agent_ids: None,
        max_retries: Some(1),
        backoff_seconds: Some(3600),
        claim_timeout_seconds: Some(600),
    }
}

pub(crate) async fn walk(scene: Arc<Scene>) {
    let (admin, agent, agent_id) = (&scene.admin, &scene.agent, scene.agent_id);
    // A kind of its own, so that neither list has other orders.
    let kind = scene.name("custom");
    let targeting = |agent_ids, labels| {
        Some(types::WorkOrderTargeting {
            agent_ids,
            labels,
            annotations: None,
        })
    };

    let code = refused!(admin, 400, create_work_order.body(order(&kind, None)));
    assert_eq!(code, "no_targeting_specified");
    let body = order(&kind, targeting(Some(vec![agent_id]), None));
    let by_id = ok!(admin, 201, create_work_order.body(body));
    let body = order(&kind, targeting(None, Some(vec!["env:prod".to_owned()])));
    let by_label = ok!(admin, 201, create_work_order.body(body));
    let listed = ok!(
        admin,
        200,
        list_work_orders.status("PENDING").work_type(&kind)
    );
    assert_eq!(listed.len(), 2);
    assert_eq!(
        ok!(admin, 200, get_work_order.id(by_id.id)).status,
        "PENDING"
    );
    let pending = ok!(
        agent,
        200,
        list_pending_for_agent.agent_id(agent_id).work_type(&kind)
    );
    let ids: Vec<_> = pending.iter().map(|order| order.id).collect();
    assert_eq!(ids, [by_id.id, by_label.id], "oldest first");

    let claim = types::ClaimWorkOrderRequest { agent_id };
    for id in ids {
        let claimed = ok!(agent, 200, claim_work_order.id(id).body(claim.clone()));
        assert_eq!(
            (claimed.status.as_str(), claimed.claimed_by),
            ("CLAIMED", Some(agent_id))
        );
    }
    let code = refused!(agent, 404, claim_work_order.id(by_id.id).body(claim));
    assert_eq!(code, "work_order_not_claimable");

    let complete = |success, message: &str| types::CompleteWorkOrderRequest {
        success,
        message: Some(message.to_owned()),
        retryable: Some(true),
    };
    let done = complete(true, "walked");
    let code = refused!(
        scene.generator,
        403,
        complete_work_order.id(by_id.id).body(done.clone())
    );
    assert_eq!(code, "work_order_not_claimed_by_agent");
    let logged = ok!(agent, 200, complete_work_order.id(by_id.id).body(done));
    assert_eq!((logged.id, logged.success), (by_id.id, true));
    assert_eq!(
        ok!(admin, 200, get_work_order.id(by_id.id)).status,
        "COMPLETED"
    );
    // The client's document does not name 202; its callers know it by that.
    let failed = complete(false, "not yet");
    let code = refused!(agent, 202, complete_work_order.id(by_label.id).body(failed));
    assert_eq!(code, "", "no error");
    let waiting = ok!(admin, 200, get_work_order.id(by_label.id));
    assert_eq!(
        (waiting.status.as_str(), waiting.retry_count),
        ("RETRY_PENDING", 1)
    );

    let log = ok!(
        admin,
        200,
        list_work_order_log
            .work_type(&kind)
            .success(true)
            .agent_id(agent_id)
            .limit(5)
    );
    assert_eq!(
        log.iter().map(|entry| entry.id).collect::<Vec<_>>(),
        [by_id.id]
    );
    let entry = ok!(admin, 200, get_work_order_log.id(by_id.id));
    assert_eq!(entry.claimed_by, Some(agent_id));
    ok!(admin, 204, delete_work_order.id(by_label.id));
    let code = refused!(admin, 404, delete_work_order.id(by_label.id));
    assert_eq!(code, "work_order_not_found");
}
