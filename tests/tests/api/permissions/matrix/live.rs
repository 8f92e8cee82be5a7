//! Rows for fleet, telemetry and connections.

use super::*;

#[rustfmt::skip]
pub(crate) const ROWS: &[Row] = &[
    ("GET /fleet", "", "[FleetAgentRecord]", ["200", AR, AR, AR, AR]),
    ("GET /fleet?pak_id={gen}", "", "[FleetAgentRecord]", ["200", AR, AR, AR, AR]),
    ("GET /agents/{self}/fleet-status", "", "AgentFleetStatusResponse", ["200", AR, AR, AR, AR]),
    ("GET /stacks/{stack}/events", "", "K8sEventHistoryResponse", ["200", SNO, SNO, "200", SNO]),
    ("GET /stacks/{stack}/logs", "", "PodLogHistoryResponse", ["200", SNO, SNO, "200", SNO]),
    ("GET /admin/ws/connections", "", "WsConnectionsResponse", ["200", AR, AR, AR, AR]),
    // The WebSocket channels, asked for without an upgrade.
    ("GET /stacks/{stack}/live", "", "", ["400 websocket_required", SNO, SNO, "400 websocket_required", SNO]),
    ("GET /fleet/live", "", "", ["400 websocket_required", AR, AR, AR, AR]),
];

pub(crate) fn names(_scene: &Scene<'_>) -> Names {
    Vec::new()
}
