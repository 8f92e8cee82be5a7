"""Walks a tenant's API with the published client, unmodified: what it cannot parse or does not expect ends the walk.

Usage: walk.py BASE_URL ADMIN_PAK_FILE

Every answer is parsed by the client's own models. Prints one line per step and "walk: N operations" at the end.
"""

import asyncio
import pathlib
import sys
import tempfile
import uuid

from brokkr import BrokkrClient
from brokkr_broker_client.api.agent_annotations import (
    agents_add_annotation,
    agents_list_annotations,
    agents_remove_annotation,
)
from brokkr_broker_client.api.agent_events import create_event, get_agent_event, list_agent_events, list_events
from brokkr_broker_client.api.agent_labels import agents_add_label, agents_list_labels, agents_remove_label
from brokkr_broker_client.api.agent_targets import add_target, list_targets, remove_target
from brokkr_broker_client.api.agents import (
    create_agent,
    delete_agent,
    get_agent,
    get_associated_stacks,
    get_target_state,
    list_agent_registrations,
    list_agents,
    record_heartbeat,
    rotate_agent_pak,
    search_agent,
    update_agent,
)
from brokkr_broker_client.api.auth import verify_pak
from brokkr_broker_client.api.deployment_objects import get_deployment_object
from brokkr_broker_client.api.generators import (
    create_generator,
    delete_generator,
    deregister_agent,
    get_generator,
    list_generator_registered_agents,
    list_generators,
    register_agent,
    rotate_generator_pak,
    update_generator,
)
from brokkr_broker_client.api.stacks import (
    create_deployment_object,
    create_stack,
    delete_stack,
    get_stack,
    list_deployment_objects,
    list_stacks,
    stacks_add_annotation,
    stacks_add_label,
    stacks_list_annotations,
    stacks_list_labels,
    stacks_remove_annotation,
    stacks_remove_label,
    update_stack,
)
from brokkr_broker_client.models import (
    AgentRegistrationBody,
    CreateAgentRequest,
    CreateDeploymentObjectRequest,
    ErrorResponse,
    HeartbeatReport,
    NewAgentAnnotation,
    NewAgentEvent,
    NewAgentLabel,
    NewAgentTarget,
    NewGenerator,
    NewStack,
    NewStackAnnotation,
)

STEPS = set()


def call(status, operation, *args, client, **kwargs):
    """One operation, which must answer with this status and, below 400, with a body the client understands."""
    response = operation.sync_detailed(*args, client=client.api, **kwargs)
    name = operation.__name__.rsplit(".", 1)[-1]
    assert int(response.status_code) == status, f"{name}: {response.status_code} {response.content!r}"
    if status >= 400 and response.parsed is not None:
        assert isinstance(response.parsed, ErrorResponse) and response.parsed.code, name
    if status in (200, 201) and name != "rotate_agent_pak":
        assert response.parsed is not None and not isinstance(response.parsed, ErrorResponse), name
    STEPS.add(name)
    print(f"{status} {name}")
    return response.parsed


async def apply_thrice(generator, stack, yaml):
    """The wrapper's own flow: once to create, once to find nothing changed, once to update."""
    with tempfile.TemporaryDirectory() as folder:
        manifest = pathlib.Path(folder) / "walked.yaml"
        for content, outcome in ((yaml, "created"), (yaml, "unchanged"), (yaml + "# more\n", "updated")):
            manifest.write_text(content)
            result = await generator.apply(stack, folder, targeting=["env:prod"])
            assert result.status == outcome, (result.status, outcome)


def walk(base_url, admin_pak):
    def connect(pak):
        return BrokkrClient(base_url, token=pak)

    admin = connect(admin_pak)
    tag = uuid.uuid4().hex[:8]

    # Who is who.
    assert call(200, verify_pak, client=admin).admin is True
    call(401, verify_pak, client=connect("brokkr_BRnobody_nothing"))
    made = call(201, create_generator, client=admin, body=NewGenerator(name=f"generator-{tag}"))
    generator_id, generator = made.generator.id, connect(made.pak)
    made = call(201, create_agent, client=admin, body=CreateAgentRequest(name=f"agent-{tag}", cluster_name="c"))
    agent_id, agent = made.agent.id, connect(made.initial_pak)
    assert call(200, verify_pak, client=agent).agent == str(agent_id)
    assert call(200, verify_pak, client=generator).generator == str(generator_id)

    # Agents.
    assert call(200, search_agent, client=agent, name=f"agent-{tag}", cluster_name="c").id == agent_id
    assert call(200, update_agent, agent_id, client=agent, body={"status": "ACTIVE"}).status == "ACTIVE"
    report = HeartbeatReport(k8s_reachable=True, k8s_api_latency_ms=12)
    call(204, record_heartbeat, agent_id, client=agent, body=report)
    assert call(200, get_agent, agent_id, client=agent).k8s_api_latency_ms == 12
    assert agent_id in [a.id for a in call(200, list_agents, client=admin)]
    label = NewAgentLabel(agent_id=agent_id, label="env:prod")
    call(201, agents_add_label, agent_id, client=admin, body=label)
    call(409, agents_add_label, agent_id, client=admin, body=label)
    assert [x.label for x in call(200, agents_list_labels, agent_id, client=agent)] == ["env:prod"]
    annotation = NewAgentAnnotation(agent_id=agent_id, key="team", value="a")
    call(201, agents_add_annotation, agent_id, client=admin, body=annotation)
    assert len(call(200, agents_list_annotations, agent_id, client=agent)) == 1
    call(204, agents_remove_annotation, agent_id, "team", client=admin)

    # Generators and consent.
    assert call(200, get_generator, generator_id, client=generator).name == f"generator-{tag}"
    assert generator_id in [g.id for g in call(200, list_generators, client=admin)]
    whole = call(200, get_generator, generator_id, client=generator)
    whole.description = "walked"
    assert call(200, update_generator, generator_id, client=generator, body=whole).description == "walked"
    call(201, register_agent, generator_id, client=agent, body=AgentRegistrationBody())
    call(409, register_agent, generator_id, client=agent, body=AgentRegistrationBody())
    assert generator_id in [r.generator_id for r in call(200, list_agent_registrations, agent_id, client=agent)]
    registered = call(200, list_generator_registered_agents, generator_id, client=generator)
    assert [r.agent_id for r in registered] == [agent_id]

    # Stacks.
    stack = call(201, create_stack, client=generator, body=NewStack(name=f"stack-{tag}", generator_id=generator_id))
    stack.description = "walked"
    assert call(200, update_stack, stack.id, client=generator, body=stack).description == "walked"
    assert call(200, get_stack, stack.id, client=generator).name == f"stack-{tag}"
    assert [s.id for s in call(200, list_stacks, client=generator)] == [stack.id]
    call(201, stacks_add_label, stack.id, client=generator, body="env:prod")
    call(409, stacks_add_label, stack.id, client=generator, body="env:prod")
    assert [x.label for x in call(200, stacks_list_labels, stack.id, client=agent)] == ["env:prod"]
    pair = NewStackAnnotation(stack_id=stack.id, key="team", value="a")
    call(201, stacks_add_annotation, stack.id, client=generator, body=pair)
    assert len(call(200, stacks_list_annotations, stack.id, client=generator)) == 1
    call(204, stacks_remove_annotation, stack.id, "team", client=generator)
    call(201, add_target, agent_id, client=generator, body=NewAgentTarget(agent_id=agent_id, stack_id=stack.id))
    assert [t.stack_id for t in call(200, list_targets, agent_id, client=agent)] == [stack.id]
    assert [s.id for s in call(200, get_associated_stacks, agent_id, client=agent)] == [stack.id]

    # Objects, target state, events.
    yaml = "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: walked\n"
    new = CreateDeploymentObjectRequest(yaml_content=yaml, is_deletion_marker=False)
    deployed = call(201, create_deployment_object, stack.id, client=generator, body=new)
    assert [o.id for o in call(200, list_deployment_objects, stack.id, client=generator)] == [deployed.id]
    assert call(200, get_deployment_object, deployed.id, client=agent).yaml_content == yaml
    assert [o.id for o in call(200, get_target_state, agent_id, client=agent)] == [deployed.id]
    done = NewAgentEvent(
        agent_id=agent_id, deployment_object_id=deployed.id, event_type="DEPLOY", status="SUCCESS", message="done"
    )
    event = call(201, create_event, agent_id, client=agent, body=done)
    assert call(201, create_event, agent_id, client=agent, body=done).id == event.id
    assert [e.id for e in call(200, list_events, agent_id, client=agent)] == [event.id]
    assert event.id in [e.id for e in call(200, list_agent_events, client=admin)]
    assert call(200, get_agent_event, event.id, client=admin).status == "SUCCESS"
    assert [o.id for o in call(200, get_target_state, agent_id, client=agent)] == [deployed.id]
    assert call(200, get_target_state, agent_id, client=agent, mode="incremental") == []
    call(403, get_stack, stack.id, client=agent)

    asyncio.run(apply_thrice(generator, f"applied-{tag}", yaml))
    assert len(call(200, get_target_state, agent_id, client=agent)) == 2, "the second stack is matched by its label"

    # Ends.
    call(204, delete_stack, stack.id, client=generator)
    markers = [o for o in call(200, get_target_state, agent_id, client=agent) if o.is_deletion_marker]
    assert [m.stack_id for m in markers] == [stack.id]
    gone = NewAgentEvent(
        agent_id=agent_id, deployment_object_id=markers[0].id, event_type="DEPLOY", status="SUCCESS"
    )
    call(201, create_event, agent_id, client=agent, body=gone)
    assert len(call(200, get_target_state, agent_id, client=agent)) == 1
    call(404, get_stack, stack.id, client=generator)
    other = call(201, create_stack, client=generator, body=NewStack(name=f"other-{tag}", generator_id=generator_id))
    call(201, add_target, agent_id, client=admin, body=NewAgentTarget(agent_id=agent_id, stack_id=other.id))
    call(204, remove_target, agent_id, other.id, client=admin)
    call(201, stacks_add_label, other.id, client=generator, body="env:prod")
    call(204, stacks_remove_label, other.id, "env:prod", client=generator)
    call(204, agents_remove_label, agent_id, "env:prod", client=admin)
    call(204, deregister_agent, generator_id, client=agent, body=AgentRegistrationBody())
    call(200, rotate_agent_pak, agent_id, client=agent)
    call(401, verify_pak, client=agent)
    rotated = call(201, rotate_generator_pak, generator_id, client=generator)
    call(401, verify_pak, client=generator)
    call(204, delete_generator, generator_id, client=connect(rotated.pak))
    call(204, delete_agent, agent_id, client=admin)
    call(404, get_agent, agent_id, client=admin)


if __name__ == "__main__":
    walk(sys.argv[1], pathlib.Path(sys.argv[2]).read_text().strip())
    print(f"walk: {len(STEPS)} operations")
