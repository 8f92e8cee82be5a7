"""Walks the telemetry that an agent sends over its WebSocket, and the list of connected agents."""

import asyncio
import datetime

from talk import call, until
from websocket import Socket


def walk(scene):
    admin, generator = scene.admin, scene.generator
    began = datetime.datetime.now(datetime.timezone.utc)
    with Socket(scene.base_url, "/internal/ws/agent", scene.agent_pak) as socket:
        now = began.isoformat()
        said = {"agent_id": str(scene.agent_id), "stack_id": str(scene.stack_id)}
        thing = {"api_version": "v1", "kind": "Pod", "namespace": "n", "name": "p"}
        socket.say(
            "k8s_event",
            said | {"observed_at": now, "reason": "Pulled", "message": "walked", "event_type": "Normal"}
            | {"source": "kubelet", "involved_object": thing},
        )
        socket.say("pod_log_line", said | {"namespace": "n", "pod": "p", "container": "c", "ts": now, "line": "hello"})

        def events():
            return call(200, "list_telemetry_events", scene.stack_id, client=generator, limit=10).events

        def lines():
            return call(200, "list_telemetry_logs", scene.stack_id, client=generator, limit=10).lines

        event = until("the event", events)[0]
        assert (event.reason, event.message, event.agent_id) == ("Pulled", "walked", scene.agent_id)
        assert until("the line", lines)[0].line == "hello"
        connections = call(200, "list_ws_connections", client=admin)
        mine = [c for c in connections.connections if c.agent_id == scene.agent_id]
        assert len(mine) == 1 and mine[0].messages_in >= 2 and connections.connected_agents >= 1
        fleet = {r.agent_id: r for r in call(200, "list_fleet", client=admin)}
        assert fleet[scene.agent_id].ws_connected

        asyncio.run(own_ways(scene, began))

    def gone():
        connections = call(200, "list_ws_connections", client=admin).connections
        return scene.agent_id not in [c.agent_id for c in connections]

    until("the connection to be gone", gone)
    assert call(403, "list_telemetry_logs", scene.stack_id, client=scene.agent).code == "stack_not_owned"


async def own_ways(scene, began):
    """Reads the same telemetry with the client's own methods, on new connections, which belong to this event loop."""
    admin, generator = scene.connect(scene.admin_pak), scene.connect(scene.generator_pak)
    seen = await generator.list_telemetry_events(scene.stack_id, since=began, limit=1)
    assert len(seen.events) == 1 and seen.retention.retention_ceiling_seconds == 6 * 3600
    assert len((await generator.list_telemetry_logs(scene.stack_id)).lines) == 1
    assert (await admin.list_ws_connections()).connected_agents >= 1
