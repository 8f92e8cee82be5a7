//! The end of the walk: a deleted stack reaches its agent, rotated PAKs are refused, agent and generator are deleted.

use std::sync::Arc;

use brokkr_client::types;
use uuid::Uuid;

use crate::walk::scene::Scene;

/// Returns the marker of a deleted stack while it is in the agent's target state.
async fn marker(scene: &Scene, stack: Uuid) -> Option<types::DeploymentObject> {
    let state = scene.target_state().await;
    state
        .into_iter()
        .find(|object| object.stack_id == stack && object.is_deletion_marker)
}

pub(crate) async fn walk(scene: Arc<Scene>) {
    let (admin, agent, generator) = (&scene.admin, &scene.agent, &scene.generator);
    let (agent_id, generator_id) = (scene.agent_id, scene.generator_id);

    ok!(generator, 204, delete_stack.id(scene.stack));
    let found = marker(&scene, scene.stack).await.unwrap();
    scene.report(found.id).await;
    assert!(marker(&scene, scene.stack).await.is_none());
    let code = refused!(generator, 404, get_stack.id(scene.stack));
    assert_eq!(code, "stack_not_found");

    let other = scene.new_stack("other").await;
    let body = types::NewAgentTarget {
        agent_id,
        stack_id: other,
    };
    ok!(admin, 201, add_target.id(agent_id).body(body));
    ok!(admin, 204, remove_target.id(agent_id).stack_id(other));
    ok!(generator, 201, stacks_add_label.id(other).body("env:prod"));
    ok!(
        generator,
        204,
        stacks_remove_label.id(other).label("env:prod")
    );
    ok!(
        admin,
        204,
        agents_remove_label.id(agent_id).label("env:prod")
    );
    let body = types::AgentRegistrationBody { agent_id: None };
    ok!(agent, 204, deregister_agent.id(generator_id).body(body));
    let rotated = ok!(agent, 200, rotate_agent_pak.id(agent_id));
    let pak = rotated["pak"].as_str().unwrap();
    assert_eq!(refused!(agent, 401, verify_pak), "unauthorized");
    ok!(scene.connect(pak), 200, verify_pak);
    let rotated = ok!(generator, 201, rotate_generator_pak.id(generator_id));
    assert_eq!(refused!(generator, 401, verify_pak), "unauthorized");
    ok!(
        scene.connect(&rotated.pak),
        204,
        delete_generator.id(generator_id)
    );
    ok!(admin, 204, delete_agent.id(agent_id));
    assert_eq!(
        refused!(admin, 404, get_agent.id(agent_id)),
        "agent_not_found"
    );
}
