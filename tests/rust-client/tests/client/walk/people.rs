//! Principals: PAKs, agents with their labels and annotations, generators, consent.

use std::sync::Arc;

use brokkr_client::types;
use serde_json::json;

use crate::walk::scene::Scene;

pub(crate) async fn walk(scene: Arc<Scene>) {
    let (admin, agent, generator) = (&scene.admin, &scene.agent, &scene.generator);
    let (agent_id, generator_id) = (scene.agent_id, scene.generator_id);

    assert!(ok!(admin, 200, verify_pak).admin);
    assert_eq!(
        ok!(agent, 200, verify_pak).agent,
        Some(agent_id.to_string())
    );
    let who = ok!(generator, 200, verify_pak);
    assert_eq!(who.generator, Some(generator_id.to_string()));
    let nobody = scene.connect("brokkr_BRnobody_nothing");
    assert_eq!(refused!(nobody, 401, verify_pak), "unauthorized");

    let found = ok!(
        agent,
        200,
        search_agent.name(scene.name("agent")).cluster_name("c")
    );
    assert_eq!(found.id, agent_id);
    let status = ok!(
        agent,
        200,
        update_agent
            .id(agent_id)
            .body(json!({ "status": "ACTIVE" }))
    );
    assert_eq!(status.status, "ACTIVE");
    let report = types::HeartbeatReport {
        k8s_reachable: Some(true),
        k8s_api_latency_ms: Some(12),
    };
    ok!(agent, 204, record_heartbeat.id(agent_id).body(report));
    let seen = ok!(agent, 200, get_agent.id(agent_id));
    assert_eq!(seen.k8s_api_latency_ms, Some(12));
    assert!(
        ok!(admin, 200, list_agents)
            .iter()
            .any(|a| a.id == agent_id)
    );

    let again = types::NewAgentLabel {
        agent_id,
        label: "env:prod".to_owned(),
    };
    let code = refused!(admin, 409, agents_add_label.id(agent_id).body(again));
    assert_eq!(code, "unique_violation");
    let labels = ok!(agent, 200, agents_list_labels.id(agent_id));
    assert_eq!(labels.len(), 1);
    let pair = types::NewAgentAnnotation {
        agent_id,
        key: "team".to_owned(),
        value: "a".to_owned(),
    };
    ok!(admin, 201, agents_add_annotation.id(agent_id).body(pair));
    assert_eq!(
        ok!(agent, 200, agents_list_annotations.id(agent_id)).len(),
        1
    );
    ok!(
        admin,
        204,
        agents_remove_annotation.id(agent_id).key("team")
    );

    assert!(
        ok!(admin, 200, list_generators)
            .iter()
            .any(|g| g.id == generator_id)
    );
    let mut whole = ok!(generator, 200, get_generator.id(generator_id));
    whole.description = Some("walked".to_owned());
    let changed = ok!(
        generator,
        200,
        update_generator.id(generator_id).body(whole)
    );
    assert_eq!(changed.description.as_deref(), Some("walked"));
    let again = types::AgentRegistrationBody { agent_id: None };
    let code = refused!(agent, 409, register_agent.id(generator_id).body(again));
    assert_eq!(code, "already_registered");
    let registrations = ok!(agent, 200, list_agent_registrations.id(agent_id));
    assert!(registrations.iter().any(|r| r.generator_id == generator_id));
    let registered = ok!(
        generator,
        200,
        list_generator_registered_agents.id(generator_id)
    );
    assert_eq!(registered.len(), 1);
}
