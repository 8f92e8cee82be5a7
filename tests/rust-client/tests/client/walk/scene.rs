//! The principals and data of every part of the walk: the admin, a generator, an agent that serves one of its stacks,
//! an object.

use brokkr_client::BrokkrClient;
use brokkr_client::types;
use uuid::Uuid;

pub(crate) const YAML: &str = "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: walked\n";

pub(crate) struct Scene {
    pub(crate) base_url: String,
    /// A part of every name, so that two walks of one tenant do not collide.
    pub(crate) tag: String,
    pub(crate) admin: BrokkrClient,
    pub(crate) generator: BrokkrClient,
    pub(crate) generator_id: Uuid,
    pub(crate) agent: BrokkrClient,
    pub(crate) agent_id: Uuid,
    pub(crate) agent_pak: String,
    pub(crate) stack: Uuid,
    pub(crate) object: Uuid,
}

pub(crate) fn connect(base_url: &str, pak: &str) -> BrokkrClient {
    BrokkrClient::builder(base_url).token(pak).build().unwrap()
}

impl Scene {
    pub(crate) async fn new(base_url: String, admin_pak: String) -> Self {
        let tag = Uuid::new_v4().simple().to_string()[..8].to_owned();
        let admin = connect(&base_url, &admin_pak);
        let nobody = connect(&base_url, "brokkr_BRnobody_nothing");
        let mut scene = Self {
            generator: nobody.clone(),
            agent: nobody,
            base_url,
            tag,
            admin,
            generator_id: Uuid::nil(),
            agent_id: Uuid::nil(),
            agent_pak: String::new(),
            stack: Uuid::nil(),
            object: Uuid::nil(),
        };
        let body = types::NewGenerator {
            name: scene.name("generator"),
            description: None,
        };
        let made = ok!(scene.admin, 201, create_generator.body(body));
        scene.generator_id = made.generator.id;
        scene.generator = scene.connect(&made.pak);
        let body = types::CreateAgentRequest {
            name: scene.name("agent"),
            cluster_name: "c".to_owned(),
            generator_ids: Vec::new(),
        };
        let made = ok!(scene.admin, 201, create_agent.body(body));
        scene.agent_id = made.agent.id;
        scene.agent = scene.connect(&made.initial_pak);
        scene.agent_pak = made.initial_pak;

        let body = types::AgentRegistrationBody { agent_id: None };
        ok!(
            scene.agent,
            201,
            register_agent.id(scene.generator_id).body(body)
        );
        scene.label("env:prod").await;
        scene.stack = scene.new_stack("stack").await;
        let body = types::NewAgentTarget {
            agent_id: scene.agent_id,
            stack_id: scene.stack,
        };
        ok!(
            scene.generator,
            201,
            add_target.id(scene.agent_id).body(body)
        );
        let body = types::CreateDeploymentObjectRequest {
            yaml_content: YAML.to_owned(),
            is_deletion_marker: Some(false),
        };
        let object = ok!(
            scene.generator,
            201,
            create_deployment_object.id(scene.stack).body(body)
        );
        scene.object = object.id;
        scene
    }

    pub(crate) fn connect(&self, pak: &str) -> BrokkrClient {
        connect(&self.base_url, pak)
    }

    pub(crate) fn name(&self, what: &str) -> String {
        format!("{what}-{}", self.tag)
    }

    pub(crate) async fn label(&self, label: &str) {
        let body = types::NewAgentLabel {
            agent_id: self.agent_id,
            label: label.to_owned(),
        };
        ok!(
            self.admin,
            201,
            agents_add_label.id(self.agent_id).body(body)
        );
    }

    pub(crate) async fn new_stack(&self, name: &str) -> Uuid {
        let body = types::NewStack {
            name: self.name(name),
            description: None,
            generator_id: self.generator_id,
        };
        ok!(self.generator, 201, create_stack.body(body)).id
    }

    pub(crate) async fn target_state(&self) -> Vec<types::DeploymentObject> {
        ok!(self.agent, 200, get_target_state.id(self.agent_id))
    }

    /// Reports that the agent has applied an object.
    pub(crate) async fn report(&self, object: Uuid) -> types::AgentEvent {
        let body = types::NewAgentEvent {
            agent_id: self.agent_id,
            deployment_object_id: object,
            event_type: "DEPLOY".to_owned(),
            status: "SUCCESS".to_owned(),
            message: Some("done".to_owned()),
        };
        ok!(self.agent, 201, create_event.id(self.agent_id).body(body))
    }
}
