//! The client's own flows: apply for oneself and for another, find by name, first setup.

use std::path::Path;
use std::sync::Arc;

use brokkr_client::{AGENT_ACTIVE, AGENT_INACTIVE, ApplyOutcome};
use brokkr_tests::TestDir;
use uuid::Uuid;

use crate::walk::scene::{Scene, YAML};

fn said(outcome: &ApplyOutcome) -> &'static str {
    match outcome {
        ApplyOutcome::Created(_) => "created",
        ApplyOutcome::Updated(_) => "updated",
        ApplyOutcome::Unchanged => "unchanged",
    }
}

/// Applies three times: to create, without a change, to update.
async fn apply_thrice(scene: &Scene, folder: &Path, owner: Option<&str>) {
    let labels = ["env:wrapped".to_owned()];
    let stack = scene.name(owner.map_or("applied", |_| "applied-for"));
    for (content, outcome) in [
        (YAML.to_owned(), "created"),
        (YAML.to_owned(), "unchanged"),
        (format!("{YAML}# more\n"), "updated"),
    ] {
        std::fs::write(folder.join("walked.yaml"), content).unwrap();
        let applied = match owner {
            None => scene.generator.apply(&stack, folder, &labels).await,
            Some(owner) => {
                let admin = &scene.admin;
                admin
                    .apply_for_generator(owner, &stack, folder, &labels)
                    .await
            }
        };
        assert_eq!(said(&applied.unwrap()), outcome);
    }
}

pub(crate) async fn walk(scene: Arc<Scene>) {
    let (admin, agent, generator) = (&scene.admin, &scene.agent, &scene.generator);
    let (agent_name, stack_name) = (scene.name("agent"), scene.name("stack"));
    let place = TestDir::new();
    let folder = place.folder("manifests", 0o700);
    scene.label("env:wrapped").await;
    let before = scene.target_state().await.len();
    apply_thrice(&scene, &folder, None).await;
    apply_thrice(&scene, &folder, Some(&scene.name("generator"))).await;
    assert_eq!(
        scene.target_state().await.len(),
        before + 2,
        "matched by their label"
    );
    let nobody = Uuid::new_v4().to_string();
    let error = admin
        .apply_for_generator(&nobody, "x", &folder, &[])
        .await
        .unwrap_err();
    assert!(error.to_string().contains("no tenant"), "{error}");
    let error = admin.apply("x", &folder, &[]).await.unwrap_err();
    assert_eq!(error.status(), None, "{error}");
    let applied = generator.find_stack(&scene.name("applied")).await.unwrap();
    let object = generator
        .submit_manifests(applied.id, &folder)
        .await
        .unwrap();
    assert_eq!(object.stack_id, applied.id);

    // Finds resources by name or id.
    assert_eq!(
        admin.resolve_agent_id(&agent_name).await.unwrap(),
        scene.agent_id
    );
    let by_name = admin
        .resolve_generator_id(&scene.name("generator"))
        .await
        .unwrap();
    assert_eq!(by_name, scene.generator_id);
    assert_eq!(
        admin
            .find_agent(&scene.agent_id.to_string())
            .await
            .unwrap()
            .name,
        agent_name
    );
    assert!(
        admin
            .list_agents()
            .await
            .unwrap()
            .iter()
            .any(|a| a.id == scene.agent_id)
    );
    assert!(generator.list_stacks().await.unwrap().len() >= 2);

    // The first setup of agent and generator.
    for status in [AGENT_INACTIVE, AGENT_ACTIVE] {
        let changed = admin.set_agent_status(&agent_name, status).await.unwrap();
        assert_eq!(changed.status, status);
    }
    for new in [true, false] {
        let (_, added) = admin
            .add_agent_label(&agent_name, "first:day")
            .await
            .unwrap();
        assert_eq!(added, new);
        let (_, added) = generator
            .add_stack_label(&stack_name, "first:day")
            .await
            .unwrap();
        assert_eq!(added, new);
    }
    assert_eq!(agent.agent_labels(scene.agent_id).await.unwrap().len(), 3);
    assert!(
        agent
            .stack_labels(scene.stack)
            .await
            .unwrap()
            .contains(&"first:day".to_owned())
    );
    let (_, _, added) = admin.target_stack(&stack_name, &agent_name).await.unwrap();
    assert!(!added, "it is targeted already");
    assert_eq!(
        agent
            .list_agent_registrations(scene.agent_id)
            .await
            .unwrap()
            .len(),
        2
    );
    let registered = generator
        .list_generator_registered_agents(scene.generator_id)
        .await;
    assert_eq!(registered.unwrap().len(), 1);
    let error = agent
        .register_agent(scene.generator_id, None)
        .await
        .unwrap_err();
    assert_eq!(error.code(), Some("already_registered"));

    // Only errors that may pass are retried.
    let unknown = Uuid::new_v4();
    let asked = generator.retry(|api| {
        let api = api.clone();
        async move { Ok(api.get_stack().id(unknown).send().await?.into_inner()) }
    });
    let error = asked.await.unwrap_err();
    assert_eq!(
        (error.code(), error.is_retryable()),
        (Some("stack_not_found"), false)
    );

    for stack in generator.list_stacks().await.unwrap() {
        if stack.name.starts_with("applied") {
            ok!(generator, 204, delete_stack.id(stack.id));
        }
    }
    ok!(
        generator,
        204,
        stacks_remove_label.id(scene.stack).label("first:day")
    );
    for label in ["env:wrapped", "first:day"] {
        ok!(
            admin,
            204,
            agents_remove_label.id(scene.agent_id).label(label)
        );
    }
}
