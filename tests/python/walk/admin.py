"""Walks the admin's operations: the list of PAKs, the audit log, and the reload of the configuration."""

from talk import call


def walk(scene):
    admin = scene.admin
    assert scene.generator_id in [pak.id for pak in call(200, "list_paks", client=admin)]
    assert call(403, "list_paks", client=scene.generator).code == "admin_required"
    seen = call(
        200,
        "list_audit_logs",
        client=admin,
        action="agent.*",
        actor_type="admin",
        resource_type="agent",
        resource_id=scene.agent_id,
        limit=10,
        offset=0,
    )
    assert (seen.limit, seen.offset, seen.count) == (10, 0, len(seen.logs)) and seen.total >= seen.count
    created = [entry for entry in seen.logs if entry.action == "agent.created"]
    assert [entry.actor_name for entry in created] == ["admin"]
    by_generator = call(200, "list_audit_logs", client=admin, actor_id=scene.generator_id, from_=created[0].timestamp)
    assert {entry.actor_name for entry in by_generator.logs} == {f"generator-{scene.tag}"}
    assert call(403, "list_audit_logs", client=scene.agent).code == "admin_required"
    reloaded = call(200, "reload_config", client=admin)
    assert reloaded.success and reloaded.changes == []
    assert call(403, "reload_config", client=scene.generator).code == "admin_required"
