"""Walks webhooks: subscriptions, and deliveries that an agent sends."""

from brokkr_broker_client.models import (
    CreateWebhookRequest,
    DeliveryResultRequest,
    UpdateWebhookRequest,
    WebhookFilters,
)

from talk import call, until


def walk(scene):
    admin, agent, agent_id = scene.admin, scene.agent, scene.agent_id
    assert len(call(200, "list_event_types", client=admin)) == 12
    nowhere = CreateWebhookRequest(name="x", url="", event_types=["*"])
    assert call(400, "create_webhook", client=admin, body=nowhere).code == "url_required"

    # The agent sends this subscription's deliveries, so no request leaves this machine.
    scene.label(f"hooks:{scene.tag}")
    body = CreateWebhookRequest(
        name=f"hook-{scene.tag}",
        url="http://localhost:9/walked",
        event_types=["stack.*"],
        auth_header="Bearer walked",
        filters=WebhookFilters(),
        target_labels=[f"hooks:{scene.tag}"],
        max_retries=3,
        timeout_seconds=5,
    )
    hook = call(201, "create_webhook", client=admin, body=body)
    assert hook.has_url and hook.has_auth_header and hook.target_labels == [f"hooks:{scene.tag}"]
    assert hook.id in [h.id for h in call(200, "list_webhooks", client=admin)]
    assert call(400, "test_webhook", hook.id, client=admin).code == "webhook_test_failed"

    stack = scene.new_stack("hooked")
    call(204, "delete_stack", stack, client=scene.generator)
    pulled = []

    def pull():
        pulled.extend(call(200, "get_pending_agent_webhooks", agent_id, client=agent))
        return len(pulled) == 2

    until("two deliveries", pull)
    assert {d.event_type for d in pulled} == {"stack.created", "stack.deleted"}
    for delivery in pulled:
        assert (delivery.url, delivery.auth_header) == ("http://localhost:9/walked", "Bearer walked")
        assert str(stack) in delivery.payload
    well = DeliveryResultRequest(success=True, status_code=200, duration_ms=3)
    call(200, "report_delivery_result", pulled[0].id, client=agent, body=well)
    badly = DeliveryResultRequest(success=False, status_code=503, error="HTTP 503", duration_ms=3)
    call(200, "report_delivery_result", pulled[1].id, client=agent, body=badly)
    for delivery in pulled:
        refused = call(403, "report_delivery_result", delivery.id, client=agent, body=well)
        assert refused.code == "delivery_not_acquired_by_agent"
    assert call(403, "report_delivery_result", pulled[0].id, client=admin, body=well).code == "agent_pak_required"

    deliveries = call(200, "list_deliveries", hook.id, client=admin, limit=10, offset=0)
    assert {d.id: d.status for d in deliveries}[pulled[0].id] == "success"
    assert {d.id: d.attempts for d in deliveries}[pulled[1].id] == 1
    won = call(200, "list_recent_deliveries", client=admin, status="success", limit=200, offset=0)
    mine = [d for d in won if d.subscription_id == hook.id]
    assert [(d.id, d.subscription_name) for d in mine] == [(pulled[0].id, f"hook-{scene.tag}")]
    call(400, "list_recent_deliveries", client=admin, status="odd")

    body = UpdateWebhookRequest(enabled=False, auth_header=None, name="walked")
    changed = call(200, "update_webhook", hook.id, client=admin, body=body)
    assert (changed.enabled, changed.has_auth_header, changed.name) == (False, False, "walked")
    assert call(200, "get_webhook", hook.id, client=admin).max_retries == 3
    call(204, "delete_webhook", hook.id, client=admin)
    assert call(404, "get_webhook", hook.id, client=admin).code == "webhook_not_found"
    call(204, "agents_remove_label", agent_id, f"hooks:{scene.tag}", client=admin)
