"""Walks stacks, their deployment objects, an agent's target state and its events."""

from brokkr_broker_client.models import CreateDeploymentObjectRequest, NewAgentEvent, NewStackAnnotation

from scene import YAML
from talk import call


def walk(scene):
    admin, agent, generator = scene.admin, scene.agent, scene.generator
    agent_id, stack_id = scene.agent_id, scene.stack_id

    stack = call(200, "get_stack", stack_id, client=generator)
    stack.description = "walked"
    assert call(200, "update_stack", stack_id, client=generator, body=stack).description == "walked"
    assert [s.id for s in call(200, "list_stacks", client=generator)] == [stack_id]
    assert [s.id for s in call(200, "list_stacks", client=admin, pak_id=scene.generator_id)] == [stack_id]
    call(201, "stacks_add_label", stack_id, client=generator, body="env:prod")
    call(409, "stacks_add_label", stack_id, client=generator, body="env:prod")
    assert [x.label for x in call(200, "stacks_list_labels", stack_id, client=agent)] == ["env:prod"]
    pair = NewStackAnnotation(stack_id=stack_id, key="team", value="a")
    call(201, "stacks_add_annotation", stack_id, client=generator, body=pair)
    assert len(call(200, "stacks_list_annotations", stack_id, client=generator)) == 1
    call(204, "stacks_remove_annotation", stack_id, "team", client=generator)
    assert [t.stack_id for t in call(200, "list_targets", agent_id, client=agent)] == [stack_id]
    assert [s.id for s in call(200, "get_associated_stacks", agent_id, client=agent)] == [stack_id]
    assert call(403, "get_stack", stack_id, client=agent).code == "stack_not_owned"

    new = CreateDeploymentObjectRequest(yaml_content=YAML, is_deletion_marker=False)
    deployed = call(201, "create_deployment_object", stack_id, client=generator, body=new)
    scene.object_id = deployed.id
    assert [o.id for o in call(200, "list_deployment_objects", stack_id, client=generator)] == [deployed.id]
    assert call(200, "get_deployment_object", deployed.id, client=agent).yaml_content == YAML
    assert [o.id for o in scene.target_state()] == [deployed.id]
    done = NewAgentEvent(
        agent_id=agent_id, deployment_object_id=deployed.id, event_type="DEPLOY", status="SUCCESS", message="done"
    )
    event = call(201, "create_event", agent_id, client=agent, body=done)
    assert call(201, "create_event", agent_id, client=agent, body=done).id == event.id
    assert [e.id for e in call(200, "list_events", agent_id, client=agent)] == [event.id]
    assert event.id in [e.id for e in call(200, "list_agent_events", client=admin)]
    of_generator = call(200, "list_agent_events", client=admin, pak_id=scene.generator_id)
    assert event.id in [e.id for e in of_generator]
    assert call(200, "get_agent_event", event.id, client=admin).status == "SUCCESS"
    assert [o.id for o in scene.target_state()] == [deployed.id]
    assert scene.target_state(mode="incremental") == []
