//! Counters and gauges of WebSocket connections and of telemetry.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::websocket::FrameKind;

/// The tables that hold telemetry, as a label names them.
pub const TELEMETRY_TABLES: [&str; 2] = ["agent_k8s_events", "agent_pod_logs"];

/// Reason why telemetry of an agent is not stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loss {
    /// The agent does not serve the stack of the telemetry.
    NotAssociated,
    /// The telemetry names another agent.
    OtherAgent,
    /// The queue for the database was full.
    NoRoom,
    /// The database refused the telemetry.
    Refused,
}

impl Loss {
    /// All reasons, in the order of their values.
    pub const ALL: [Loss; 4] = [
        Loss::NotAssociated,
        Loss::OtherAgent,
        Loss::NoRoom,
        Loss::Refused,
    ];

    /// Returns the reason's name in labels and log lines.
    pub fn name(self) -> &'static str {
        match self {
            Loss::NotAssociated => "not_associated",
            Loss::OtherAgent => "other_agent",
            Loss::NoRoom => "no_room",
            Loss::Refused => "refused",
        }
    }
}

/// Direction of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// Received by the broker.
    In,
    /// Sent by the broker.
    Out,
}

/// The counters and gauges of WebSockets. The set of possible series is fixed.
#[derive(Debug, Default)]
pub struct Sockets {
    /// Agents connected now.
    pub agents: AtomicU64,
    /// Subscribers of stacks connected now.
    pub live_subscribers: AtomicU64,
    /// Subscribers of the fleet connected now.
    pub fleet_subscribers: AtomicU64,
    frames: [[AtomicU64; FrameKind::ALL.len()]; 2],
    lost: [AtomicU64; Loss::ALL.len()],
    eviction_runs: AtomicU64,
    evicted: [AtomicU64; TELEMETRY_TABLES.len()],
}

impl Sockets {
    /// Counts one frame.
    pub fn frame(&self, direction: Direction, kind: FrameKind) {
        self.frames[direction as usize][kind as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// Counts rows of telemetry that were not stored.
    pub fn lost(&self, why: Loss, rows: u64) {
        self.lost[why as usize].fetch_add(rows, Ordering::Relaxed);
    }

    /// Counts one sweep of a telemetry table; ignores any other table.
    pub fn swept(&self, table: &str, rows: u64) {
        if let Some(index) = TELEMETRY_TABLES.iter().position(|known| *known == table) {
            self.eviction_runs.fetch_add(1, Ordering::Relaxed);
            self.evicted[index].fetch_add(rows, Ordering::Relaxed);
        }
    }

    pub(super) fn render(&self, out: &mut String) {
        let gauges = [
            (
                "brokkr_ws_connected_agents",
                "Agents connected by WebSocket.",
                &self.agents,
            ),
            (
                "brokkr_ws_live_subscribers",
                "Subscribers of stacks' live channels.",
                &self.live_subscribers,
            ),
            (
                "brokkr_fleet_live_subscribers",
                "Subscribers of the fleet's live channel.",
                &self.fleet_subscribers,
            ),
        ];
        // Results are ignored, because writing into a String cannot fail.
        for (name, help, value) in gauges {
            let value = value.load(Ordering::Relaxed);
            let _ = writeln!(
                out,
                "# HELP {name} {help}\n# TYPE {name} gauge\n{name} {value}"
            );
        }
        self.render_frames(out);
        let name = "brokkr_ws_telemetry_dropped_total";
        let _ = writeln!(
            out,
            "# HELP {name} Telemetry of agents that was not kept.\n# TYPE {name} counter"
        );
        for (why, rows) in Loss::ALL.iter().zip(&self.lost) {
            let (why, rows) = (why.name(), rows.load(Ordering::Relaxed));
            let _ = writeln!(out, "{name}{{reason=\"{why}\"}} {rows}");
        }
        let name = "brokkr_ws_log_eviction_runs_total";
        let runs = self.eviction_runs.load(Ordering::Relaxed);
        let _ = writeln!(
            out,
            "# HELP {name} Sweeps of tables of telemetry.\n# TYPE {name} counter\n{name} {runs}"
        );
        let name = "brokkr_ws_telemetry_evicted_total";
        let _ = writeln!(
            out,
            "# HELP {name} Rows of telemetry past their retention removed.\n# TYPE {name} counter"
        );
        for (table, rows) in TELEMETRY_TABLES.iter().zip(&self.evicted) {
            let rows = rows.load(Ordering::Relaxed);
            let _ = writeln!(out, "{name}{{table=\"{table}\"}} {rows}");
        }
    }

    fn render_frames(&self, out: &mut String) {
        let name = "brokkr_ws_messages_total";
        let _ = writeln!(
            out,
            "# HELP {name} Frames received and sent.\n# TYPE {name} counter"
        );
        for (direction, frames) in ["in", "out"].iter().zip(&self.frames) {
            for kind in FrameKind::ALL {
                let count = frames[kind as usize].load(Ordering::Relaxed);
                if count > 0 {
                    let kind = kind.name();
                    let _ = writeln!(
                        out,
                        "{name}{{direction=\"{direction}\",type=\"{kind}\"}} {count}"
                    );
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_counted_by_direction_and_type_and_sweeps_by_table() {
        let sockets = Sockets::default();
        sockets.agents.store(3, Ordering::Relaxed);
        sockets.frame(Direction::In, FrameKind::Heartbeat);
        sockets.frame(Direction::Out, FrameKind::FleetUpdate);
        sockets.swept("agent_pod_logs", 7);
        sockets.swept("audit_log", 9);
        sockets.lost(Loss::NoRoom, 3);
        let mut text = String::new();
        sockets.render(&mut text);
        for line in [
            "brokkr_ws_connected_agents 3",
            "brokkr_ws_live_subscribers 0",
            "brokkr_fleet_live_subscribers 0",
            "brokkr_ws_messages_total{direction=\"in\",type=\"heartbeat\"} 1",
            "brokkr_ws_messages_total{direction=\"out\",type=\"fleet_update\"} 1",
            "brokkr_ws_log_eviction_runs_total 1",
            "brokkr_ws_telemetry_dropped_total{reason=\"not_associated\"} 0",
            "brokkr_ws_telemetry_dropped_total{reason=\"no_room\"} 3",
            "brokkr_ws_telemetry_evicted_total{table=\"agent_k8s_events\"} 0",
            "brokkr_ws_telemetry_evicted_total{table=\"agent_pod_logs\"} 7",
        ] {
            assert!(text.lines().any(|l| l == line), "missing {line} in\n{text}");
        }
        assert!(!text.contains("pod_log_line"), "{text}");
    }
}
