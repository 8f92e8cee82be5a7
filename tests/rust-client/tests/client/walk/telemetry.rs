//! Telemetry that an agent sends over its WebSocket and that is read afterwards, and the list of connections.

use std::net::TcpStream;
use std::sync::Arc;

use chrono::Utc;
use serde_json::{Value, json};
use tungstenite::client::IntoClientRequest;
use tungstenite::{Message, WebSocket, client};

use crate::walk::scene::Scene;
use crate::walk::talk::until;

/// Opens the agent's channel, which the published client does not have.
fn open(base_url: &str, pak: &str) -> WebSocket<TcpStream> {
    let at = base_url.strip_prefix("http://").unwrap();
    let mut request = format!("ws://{at}/internal/ws/agent")
        .into_client_request()
        .unwrap();
    let bearer = format!("Bearer {pak}").parse().unwrap();
    request.headers_mut().insert("authorization", bearer);
    let stream = TcpStream::connect(at).unwrap();
    client(request, stream).unwrap().0
}

fn frames(scene: &Scene) -> [Value; 2] {
    let now = Utc::now();
    [
        json!({ "type": "k8s_event", "body": {
            "agent_id": scene.agent_id, "stack_id": scene.stack, "observed_at": now, "reason": "Pulled",
            "message": "walked", "event_type": "Normal", "source": "kubelet",
            "involved_object": { "api_version": "v1", "kind": "Pod", "namespace": "n", "name": "p" },
        }}),
        json!({ "type": "pod_log_line", "body": {
            "agent_id": scene.agent_id, "stack_id": scene.stack, "namespace": "n", "pod": "p", "container": "c",
            "ts": now, "line": "hello",
        }}),
    ]
}

pub(crate) async fn walk(scene: Arc<Scene>) {
    let (admin, generator) = (&scene.admin, &scene.generator);
    let began = Utc::now();
    let speaker = scene.clone();
    // Returned so that the socket stays open.
    let socket = tokio::task::spawn_blocking(move || {
        let mut socket = open(&speaker.base_url, &speaker.agent_pak);
        for frame in frames(&speaker) {
            socket.send(Message::text(frame.to_string())).unwrap();
        }
        socket
    })
    .await
    .unwrap();

    let event = until("the event", async || {
        let seen = ok!(
            generator,
            200,
            list_telemetry_events.id(scene.stack).limit(10)
        );
        seen.events.into_iter().next()
    })
    .await;
    assert_eq!(
        (event.reason.as_str(), event.message.as_str()),
        ("Pulled", "walked")
    );
    let line = until("the line", async || {
        let seen = ok!(
            generator,
            200,
            list_telemetry_logs.id(scene.stack).limit(10)
        );
        seen.lines.into_iter().next()
    })
    .await;
    assert_eq!(line.line, "hello");
    let connections = ok!(admin, 200, list_ws_connections);
    let mine = connections
        .connections
        .iter()
        .find(|c| c.agent_id == scene.agent_id);
    assert!(mine.is_some_and(|c| c.messages_in >= 2));

    // The client's own methods for the same.
    let seen = generator
        .list_telemetry_events(scene.stack, Some(began), Some(1))
        .await
        .unwrap();
    assert_eq!(
        (seen.events.len(), seen.retention.retention_ceiling_seconds),
        (1, 6 * 3600)
    );
    let seen = generator
        .list_telemetry_logs(scene.stack, None, None)
        .await
        .unwrap();
    assert_eq!(seen.lines.len(), 1);
    assert!(admin.list_ws_connections().await.unwrap().connected_agents >= 1);

    drop(socket);
    until("the connection to be gone", async || {
        let connections = ok!(admin, 200, list_ws_connections).connections;
        connections
            .iter()
            .all(|c| c.agent_id != scene.agent_id)
            .then_some(())
    })
    .await;
    let code = refused!(scene.agent, 403, list_telemetry_logs.id(scene.stack));
    assert_eq!(code, "stack_not_owned");
}
