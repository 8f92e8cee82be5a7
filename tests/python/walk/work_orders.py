"""Walks work orders from their creation to the log."""

from brokkr_broker_client.models import (
    ClaimWorkOrderRequest,
    CompleteWorkOrderRequest,
    CreateWorkOrderRequest,
    WorkOrderTargeting,
)

from scene import YAML
from talk import call


def walk(scene):
    admin, agent, agent_id = scene.admin, scene.agent, scene.agent_id
    # A work type of this walk's own keeps other walks' work orders out of both lists.
    kind = f"custom-{scene.tag}"

    def create(**targeting):
        body = CreateWorkOrderRequest(
            work_type=kind,
            yaml_content=YAML,
            targeting=WorkOrderTargeting(**targeting),
            max_retries=1,
            backoff_seconds=3600,
            claim_timeout_seconds=600,
        )
        return call(201, "create_work_order", client=admin, body=body)

    nobody = CreateWorkOrderRequest(work_type=kind, yaml_content=YAML)
    assert call(400, "create_work_order", client=admin, body=nobody).code == "no_targeting_specified"
    by_id, by_label = create(agent_ids=[agent_id]), create(labels=["env:prod"])
    orders = {by_id.id, by_label.id}
    assert {o.id for o in call(200, "list_work_orders", client=admin, status="PENDING", work_type=kind)} == orders
    assert call(200, "get_work_order", by_id.id, client=admin).status == "PENDING"
    pending = call(200, "list_pending_for_agent", agent_id, client=agent, work_type=kind)
    assert [o.id for o in pending] == [by_id.id, by_label.id], "oldest first"

    claim = ClaimWorkOrderRequest(agent_id=agent_id)
    for order in (by_id, by_label):
        claimed = call(200, "claim_work_order", order.id, client=agent, body=claim)
        assert (claimed.status, claimed.claimed_by) == ("CLAIMED", agent_id)
    refused = call(404, "claim_work_order", by_id.id, client=agent, body=claim)
    assert refused.code == "work_order_not_claimable"

    done = CompleteWorkOrderRequest(success=True, message="walked")
    refused = call(403, "complete_work_order", by_id.id, client=scene.generator, body=done)
    assert refused.code == "work_order_not_claimed_by_agent"
    logged = call(200, "complete_work_order", by_id.id, client=agent, body=done)
    assert (logged.id, logged.success, logged.result_message) == (by_id.id, True, "walked")
    assert call(200, "get_work_order", by_id.id, client=admin).status == "COMPLETED"
    failed = CompleteWorkOrderRequest(success=False, message="not yet", retryable=True)
    call(202, "complete_work_order", by_label.id, client=agent, body=failed)
    waiting = call(200, "get_work_order", by_label.id, client=admin)
    assert (waiting.status, waiting.retry_count, waiting.last_error) == ("RETRY_PENDING", 1, "not yet")

    log = call(200, "list_work_order_log", client=admin, work_type=kind, success=True, agent_id=agent_id, limit=5)
    assert [entry.id for entry in log] == [by_id.id]
    assert call(200, "get_work_order_log", by_id.id, client=admin).claimed_by == agent_id
    call(204, "delete_work_order", by_label.id, client=admin)
    assert call(404, "delete_work_order", by_label.id, client=admin).code == "work_order_not_found"
