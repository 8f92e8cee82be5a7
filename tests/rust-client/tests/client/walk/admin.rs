//! The admin's operations: PAKs, audit log, reload of the configuration.

use std::sync::Arc;

use crate::walk::scene::Scene;

pub(crate) async fn walk(scene: Arc<Scene>) {
    let (admin, generator) = (&scene.admin, &scene.generator);
    assert!(
        ok!(admin, 200, list_paks)
            .iter()
            .any(|pak| pak.id == scene.generator_id)
    );
    assert_eq!(refused!(generator, 403, list_paks), "admin_required");

    let seen = ok!(
        admin,
        200,
        list_audit_logs
            .action("agent.*")
            .actor_type("admin")
            .resource_id(scene.agent_id)
            .limit(10)
            .offset(0)
    );
    assert_eq!((seen.limit, seen.offset), (10, 0));
    let created = seen
        .logs
        .iter()
        .find(|entry| entry.action == "agent.created")
        .unwrap();
    assert_eq!(created.actor_name.as_deref(), Some("admin"));
    let since = created.timestamp;
    let seen = ok!(
        admin,
        200,
        list_audit_logs.actor_id(scene.generator_id).from(since)
    );
    assert!(!seen.logs.is_empty());
    let name = scene.name("generator");
    assert!(
        seen.logs
            .iter()
            .all(|entry| entry.actor_name.as_ref() == Some(&name))
    );
    assert_eq!(refused!(generator, 403, list_audit_logs), "admin_required");

    let reloaded = ok!(admin, 200, reload_config);
    assert!(reloaded.success && reloaded.changes.is_empty());
    assert_eq!(refused!(generator, 403, reload_config), "admin_required");
}
