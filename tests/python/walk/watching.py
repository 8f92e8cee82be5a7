"""Walks the reports on agents and their deployment objects: diagnostics, health, the fleet."""

import datetime
import json
import uuid

from brokkr_broker_client.models import (
    CreateDiagnosticRequest,
    DeploymentObjectHealthUpdate,
    HealthStatusUpdate,
    HealthSummary,
    ResourceHealth,
    SubmitDiagnosticResult,
)

from talk import call


def now():
    return datetime.datetime.now(datetime.timezone.utc)


def diagnostics(scene):
    admin, agent, agent_id = scene.admin, scene.agent, scene.agent_id
    body = CreateDiagnosticRequest(agent_id=agent_id, requested_by="walk", retention_minutes=5)
    asked = call(201, "create_diagnostic_request", scene.object_id, client=admin, body=body)
    assert (asked.status, asked.requested_by) == ("pending", "walk")
    pending = call(200, "get_pending_diagnostics", agent_id, client=agent)
    assert [d.id for d in pending] == [asked.id]
    # Read this answer without the client, because client 0.10.0 cannot parse the null `result` of a pending request.
    found = admin.api.get_httpx_client().request("GET", f"/diagnostics/{asked.id}")
    assert (found.status_code, found.json()["request"]["status"], found.json()["result"]) == (200, "pending", None)
    result = SubmitDiagnosticResult(pod_statuses="[]", events="[]", log_tails="{}", collected_at=now())
    early = call(409, "submit_diagnostic_result", asked.id, client=agent, body=result)
    assert early.code == "diagnostic_not_claimed"
    assert call(200, "claim_diagnostic", asked.id, client=agent).status == "claimed"
    assert call(409, "claim_diagnostic", asked.id, client=agent).code == "diagnostic_already_claimed"
    assert call(201, "submit_diagnostic_result", asked.id, client=agent, body=result).log_tails == "{}"
    seen = call(200, "get_diagnostic", asked.id, client=agent)
    assert (seen.request.status, seen.result.pod_statuses) == ("completed", "[]")


def health(scene):
    admin, agent, agent_id = scene.admin, scene.agent, scene.agent_id

    def report(status):
        resource = ResourceHealth(kind="Pod", name="p", namespace="n", ready=False, message="waits")
        summary = HealthSummary(conditions=["Waiting"], pods_ready=1, pods_total=2, resources=[resource])
        one = DeploymentObjectHealthUpdate(id=scene.object_id, status=status, checked_at=now(), summary=summary)
        return HealthStatusUpdate(deployment_objects=[one])

    call(200, "update_health_status", agent_id, client=agent, body=report("degraded"))
    refused = call(422, "update_health_status", agent_id, client=agent, body=report("odd"))
    assert refused.code == "invalid_health_record"
    seen = call(200, "get_deployment_health", scene.object_id, client=admin)
    assert seen.overall_status == "degraded"
    assert json.loads(seen.health_records[0].summary)["pods_total"] == 2
    seen = call(200, "get_stack_health", scene.stack_id, client=admin)
    assert seen.overall_status == "degraded"
    assert [(o.id, o.degraded_agents) for o in seen.deployment_objects] == [(scene.object_id, 1)]


def fleet(scene):
    admin, agent_id = scene.admin, scene.agent_id
    everybody = {r.agent_id: r for r in call(200, "list_fleet", client=admin)}
    record = everybody[agent_id]
    assert (record.status, record.health_degraded, record.k8s_api_latency_ms) == ("ACTIVE", 1, 12)
    assert record.heartbeat_age_seconds >= 0
    of_generator = call(200, "list_fleet", client=admin, pak_id=scene.generator_id)
    assert [r.agent_id for r in of_generator] == [agent_id]
    seen = call(200, "get_agent_fleet_status", agent_id, client=admin)
    assert seen.record.name == f"agent-{scene.tag}" and len(seen.recent_events) >= 1
    assert call(404, "get_agent_fleet_status", uuid.uuid4(), client=admin).code == "agent_not_found"


def walk(scene):
    diagnostics(scene)
    health(scene)
    fleet(scene)
