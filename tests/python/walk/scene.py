"""Makes the callers that every part of the walk needs: the admin, a generator, and an agent that serves its stack."""

import uuid

from brokkr_broker_client.models import (
    AgentRegistrationBody,
    CreateAgentRequest,
    NewAgentLabel,
    NewAgentTarget,
    NewGenerator,
    NewStack,
)

from talk import call, connect

YAML = "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: walked\n"


class Scene:
    def __init__(self, base_url, admin_pak):
        self.base_url, self.admin_pak = base_url, admin_pak
        self.tag = uuid.uuid4().hex[:8]
        self.admin = self.connect(admin_pak)

        made = call(201, "create_generator", client=self.admin, body=NewGenerator(name=f"generator-{self.tag}"))
        self.generator_id, self.generator, self.generator_pak = made.generator.id, self.connect(made.pak), made.pak
        body = CreateAgentRequest(name=f"agent-{self.tag}", cluster_name="c")
        made = call(201, "create_agent", client=self.admin, body=body)
        self.agent_id, self.agent, self.agent_pak = made.agent.id, self.connect(made.initial_pak), made.initial_pak

        call(201, "register_agent", self.generator_id, client=self.agent, body=AgentRegistrationBody())
        self.label("env:prod")
        self.stack_id = self.new_stack("stack")
        target = NewAgentTarget(agent_id=self.agent_id, stack_id=self.stack_id)
        call(201, "add_target", self.agent_id, client=self.generator, body=target)
        self.object_id = None

    def connect(self, pak):
        return connect(self.base_url, pak)

    def label(self, label):
        body = NewAgentLabel(agent_id=self.agent_id, label=label)
        call(201, "agents_add_label", self.agent_id, client=self.admin, body=body)

    def new_stack(self, name):
        """Creates a stack of the generator and returns its id."""
        body = NewStack(name=f"{name}-{self.tag}", generator_id=self.generator_id)
        return call(201, "create_stack", client=self.generator, body=body).id

    def target_state(self, **mode):
        return call(200, "get_target_state", self.agent_id, client=self.agent, **mode)
