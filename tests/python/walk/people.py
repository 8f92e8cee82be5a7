"""Walks PAKs, agents with their labels and annotations, generators and registrations."""

from brokkr_broker_client.models import AgentRegistrationBody, HeartbeatReport, NewAgentAnnotation, NewAgentLabel

from talk import call


def walk(scene):
    admin, agent, generator = scene.admin, scene.agent, scene.generator
    agent_id, generator_id = scene.agent_id, scene.generator_id

    assert call(200, "verify_pak", client=admin).admin is True
    assert call(200, "verify_pak", client=agent).agent == str(agent_id)
    assert call(200, "verify_pak", client=generator).generator == str(generator_id)
    call(401, "verify_pak", client=scene.connect("brokkr_BRnobody_nothing"))

    # Agents.
    found = call(200, "search_agent", client=agent, name=f"agent-{scene.tag}", cluster_name="c")
    assert found.id == agent_id
    assert call(200, "update_agent", agent_id, client=agent, body={"status": "ACTIVE"}).status == "ACTIVE"
    report = HeartbeatReport(k8s_reachable=True, k8s_api_latency_ms=12)
    call(204, "record_heartbeat", agent_id, client=agent, body=report)
    assert call(200, "get_agent", agent_id, client=agent).k8s_api_latency_ms == 12
    assert agent_id in [a.id for a in call(200, "list_agents", client=admin)]
    again = NewAgentLabel(agent_id=agent_id, label="env:prod")
    assert call(409, "agents_add_label", agent_id, client=admin, body=again).code == "unique_violation"
    assert [x.label for x in call(200, "agents_list_labels", agent_id, client=agent)] == ["env:prod"]
    annotation = NewAgentAnnotation(agent_id=agent_id, key="team", value="a")
    call(201, "agents_add_annotation", agent_id, client=admin, body=annotation)
    assert len(call(200, "agents_list_annotations", agent_id, client=agent)) == 1
    call(204, "agents_remove_annotation", agent_id, "team", client=admin)

    # Generators and registrations.
    assert generator_id in [g.id for g in call(200, "list_generators", client=admin)]
    whole = call(200, "get_generator", generator_id, client=generator)
    whole.description = "walked"
    assert call(200, "update_generator", generator_id, client=generator, body=whole).description == "walked"
    again = AgentRegistrationBody()
    assert call(409, "register_agent", generator_id, client=agent, body=again).code == "already_registered"
    registrations = call(200, "list_agent_registrations", agent_id, client=agent)
    assert generator_id in [r.generator_id for r in registrations]
    registered = call(200, "list_generator_registered_agents", generator_id, client=generator)
    assert [r.agent_id for r in registered] == [agent_id]
