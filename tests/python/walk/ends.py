"""Walks deletions: a deleted stack reaches its agent, rotated PAKs are refused, agent and generator are deleted."""

from brokkr_broker_client.models import AgentRegistrationBody, NewAgentEvent, NewAgentTarget

from talk import call


def walk(scene):
    admin, agent, generator = scene.admin, scene.agent, scene.generator
    agent_id, generator_id, stack_id = scene.agent_id, scene.generator_id, scene.stack_id

    def markers():
        return {o.stack_id: o for o in scene.target_state() if o.is_deletion_marker}

    call(204, "delete_stack", stack_id, client=generator)
    marker = markers()[stack_id]
    gone = NewAgentEvent(agent_id=agent_id, deployment_object_id=marker.id, event_type="DEPLOY", status="SUCCESS")
    call(201, "create_event", agent_id, client=agent, body=gone)
    assert stack_id not in markers()
    assert call(404, "get_stack", stack_id, client=generator).code == "stack_not_found"

    other = scene.new_stack("other")
    call(201, "add_target", agent_id, client=admin, body=NewAgentTarget(agent_id=agent_id, stack_id=other))
    call(204, "remove_target", agent_id, other, client=admin)
    call(201, "stacks_add_label", other, client=generator, body="env:prod")
    call(204, "stacks_remove_label", other, "env:prod", client=generator)
    call(204, "agents_remove_label", agent_id, "env:prod", client=admin)
    call(204, "deregister_agent", generator_id, client=agent, body=AgentRegistrationBody())
    call(200, "rotate_agent_pak", agent_id, client=agent)
    call(401, "verify_pak", client=agent)
    rotated = call(201, "rotate_generator_pak", generator_id, client=generator)
    call(401, "verify_pak", client=generator)
    call(204, "delete_generator", generator_id, client=scene.connect(rotated.pak))
    call(204, "delete_agent", agent_id, client=admin)
    call(404, "get_agent", agent_id, client=admin)
