//! Stacks, their objects, the target state of an agent, and its reports.

use std::sync::Arc;

use brokkr_client::types;

use crate::walk::scene::{Scene, YAML};

pub(crate) async fn walk(scene: Arc<Scene>) {
    let (admin, agent, generator) = (&scene.admin, &scene.agent, &scene.generator);
    let (agent_id, stack_id, object) = (scene.agent_id, scene.stack, scene.object);

    let mut stack = ok!(generator, 200, get_stack.id(stack_id));
    stack.description = Some("walked".to_owned());
    let changed = ok!(generator, 200, update_stack.id(stack_id).body(stack));
    assert_eq!(changed.description.as_deref(), Some("walked"));
    assert_eq!(ok!(generator, 200, list_stacks).len(), 1);
    assert_eq!(
        ok!(admin, 200, list_stacks.pak_id(scene.generator_id)).len(),
        1
    );
    ok!(
        generator,
        201,
        stacks_add_label.id(stack_id).body("env:prod")
    );
    let code = refused!(
        generator,
        409,
        stacks_add_label.id(stack_id).body("env:prod")
    );
    assert_eq!(code, "unique_violation");
    assert_eq!(ok!(agent, 200, stacks_list_labels.id(stack_id)).len(), 1);
    let pair = types::NewStackAnnotation {
        stack_id,
        key: "team".to_owned(),
        value: "a".to_owned(),
    };
    ok!(
        generator,
        201,
        stacks_add_annotation.id(stack_id).body(pair)
    );
    assert_eq!(
        ok!(generator, 200, stacks_list_annotations.id(stack_id)).len(),
        1
    );
    ok!(
        generator,
        204,
        stacks_remove_annotation.id(stack_id).key("team")
    );
    assert_eq!(ok!(agent, 200, list_targets.id(agent_id)).len(), 1);
    assert_eq!(ok!(agent, 200, get_associated_stacks.id(agent_id)).len(), 1);
    assert_eq!(
        refused!(agent, 403, get_stack.id(stack_id)),
        "stack_not_owned"
    );

    let objects = ok!(generator, 200, list_deployment_objects.id(stack_id));
    assert_eq!(objects.iter().map(|o| o.id).collect::<Vec<_>>(), [object]);
    let seen = ok!(agent, 200, get_deployment_object.id(object));
    assert_eq!(seen.yaml_content, YAML);
    assert_eq!(scene.target_state().await.len(), 1);
    let event = scene.report(object).await;
    assert_eq!(scene.report(object).await.id, event.id);
    assert_eq!(ok!(agent, 200, list_events.id(agent_id)).len(), 1);
    assert!(
        ok!(admin, 200, list_agent_events)
            .iter()
            .any(|e| e.id == event.id)
    );
    let of_generator = ok!(admin, 200, list_agent_events.pak_id(scene.generator_id));
    assert!(of_generator.iter().any(|e| e.id == event.id));
    assert_eq!(
        ok!(admin, 200, get_agent_event.id(event.id)).status,
        "SUCCESS"
    );
    assert_eq!(scene.target_state().await.len(), 1);
    let left = ok!(
        agent,
        200,
        get_target_state.id(agent_id).mode("incremental")
    );
    assert!(left.is_empty());
}
