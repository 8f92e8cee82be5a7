//! Webhooks: subscriptions, and deliveries that an agent makes.

use std::sync::Arc;

use brokkr_client::types;

use crate::walk::scene::Scene;
use crate::walk::talk::until;

const URL: &str = "http://localhost:9/walked";

fn subscription(name: String, url: &str, labels: Vec<String>) -> types::CreateWebhookRequest {
    types::CreateWebhookRequest {
        name,
        url: url.to_owned(),
        event_types: vec!["stack.*".to_owned()],
        auth_header: Some("Bearer walked".to_owned()),
        filters: None,
        target_labels: Some(labels),
        max_retries: Some(3),
        timeout_seconds: Some(5),
    }
}

fn result(status_code: i32) -> types::DeliveryResultRequest {
    let success = status_code < 300;
    types::DeliveryResultRequest {
        success,
        status_code: Some(status_code),
        error: (!success).then(|| format!("HTTP {status_code}")),
        duration_ms: Some(3),
    }
}

pub(crate) async fn walk(scene: Arc<Scene>) {
    let (admin, agent, agent_id) = (&scene.admin, &scene.agent, scene.agent_id);
    assert_eq!(ok!(admin, 200, list_event_types).len(), 12);
    let nowhere = subscription(scene.name("nowhere"), "", Vec::new());
    assert_eq!(
        refused!(admin, 400, create_webhook.body(nowhere)),
        "url_required"
    );

    // The agent makes the deliveries, so nothing leaves this machine.
    let label = format!("hooks:{}", scene.tag);
    scene.label(&label).await;
    let body = subscription(scene.name("hook"), URL, vec![label.clone()]);
    let hook = ok!(admin, 201, create_webhook.body(body));
    assert!(hook.has_url && hook.has_auth_header);
    assert!(
        ok!(admin, 200, list_webhooks)
            .iter()
            .any(|h| h.id == hook.id)
    );
    let code = refused!(admin, 400, test_webhook.id(hook.id));
    assert_eq!(code, "webhook_test_failed");

    let stack = scene.new_stack("hooked").await;
    ok!(scene.generator, 204, delete_stack.id(stack));
    let mut pulled = Vec::new();
    until("two deliveries", async || {
        pulled.extend(ok!(
            agent,
            200,
            get_pending_agent_webhooks.agent_id(agent_id)
        ));
        (pulled.len() == 2).then_some(())
    })
    .await;
    for delivery in &pulled {
        assert_eq!(
            (delivery.url.as_str(), delivery.auth_header.as_deref()),
            (URL, Some("Bearer walked"))
        );
        assert!(delivery.payload.contains(&stack.to_string()));
    }
    ok!(
        agent,
        200,
        report_delivery_result.id(pulled[0].id).body(result(200))
    );
    ok!(
        agent,
        200,
        report_delivery_result.id(pulled[1].id).body(result(503))
    );
    for delivery in &pulled {
        let code = refused!(
            agent,
            403,
            report_delivery_result.id(delivery.id).body(result(200))
        );
        assert_eq!(code, "delivery_not_acquired_by_agent");
    }

    let deliveries = ok!(admin, 200, list_deliveries.id(hook.id).limit(10).offset(0));
    let of = |id| deliveries.iter().find(|d| d.id == id).unwrap();
    assert_eq!(of(pulled[0].id).status, "success");
    assert_eq!(of(pulled[1].id).attempts, 1);
    let won = ok!(
        admin,
        200,
        list_recent_deliveries
            .status("success")
            .limit(200)
            .offset(0)
    );
    let mine: Vec<_> = won
        .iter()
        .filter(|d| d.subscription_id == hook.id)
        .collect();
    assert_eq!(mine.len(), 1);
    assert_eq!(mine[0].subscription_name, Some(scene.name("hook")));
    refused!(admin, 400, list_recent_deliveries.status("odd"));

    let body = types::UpdateWebhookRequest {
        enabled: Some(false),
        name: Some("walked".to_owned()),
        url: None,
        event_types: None,
        auth_header: None,
        filters: None,
        target_labels: None,
        max_retries: None,
        timeout_seconds: None,
    };
    let changed = ok!(admin, 200, update_webhook.id(hook.id).body(body));
    assert_eq!((changed.enabled, changed.name.as_str()), (false, "walked"));
    assert_eq!(ok!(admin, 200, get_webhook.id(hook.id)).max_retries, 3);
    ok!(admin, 204, delete_webhook.id(hook.id));
    assert_eq!(
        refused!(admin, 404, get_webhook.id(hook.id)),
        "webhook_not_found"
    );
    ok!(admin, 204, agents_remove_label.id(agent_id).label(&label));
}
