//! Figures about WebSockets and what comes over them.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::live::Kind;

/// The tables that telemetry is kept in, as a label names them.
pub const TELEMETRY_TABLES: [&str; 2] = ["agent_k8s_events", "agent_pod_logs"];

/// Why telemetry of an agent is not kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loss {
    /// The agent does not serve the stack it speaks of.
    NotAssociated,
    /// It speaks in another agent's name.
    OtherAgent,
    /// There was no room to wait for the database.
    NoRoom,
    /// The database refused it.
    Refused,
}

impl Loss {
    /// All of them, in order.
    pub const ALL: [Loss; 4] = [
        Loss::NotAssociated,
        Loss::OtherAgent,
        Loss::NoRoom,
        Loss::Refused,
    ];

    /// The reason as a label and a log line name it.
    pub fn name(self) -> &'static str {
        match self {
            Loss::NotAssociated => "not_associated",
            Loss::OtherAgent => "other_agent",
            Loss::NoRoom => "no_room",
            Loss::Refused => "refused",
        }
    }
}

/// Which way a frame went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// To the broker.
    In,
    /// From the broker.
    Out,
}

/// See the module's comment. Every series there can be is known beforehand.
#[derive(Debug, Default)]
pub struct Sockets {
    /// Agents connected now.
    pub agents: AtomicU64,
    /// Subscribers of stacks now.
    pub live_subscribers: AtomicU64,
    /// Subscribers of the fleet now.
    pub fleet_subscribers: AtomicU64,
    frames: [[AtomicU64; Kind::ALL.len()]; 2],
    lost: [AtomicU64; Loss::ALL.len()],
    eviction_runs: AtomicU64,
    evicted: [AtomicU64; TELEMETRY_TABLES.len()],
}

impl Sockets {
    /// Counts one frame.
    pub fn frame(&self, direction: Direction, kind: Kind) {
        self.frames[direction as usize][kind as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// Counts telemetry that is not kept.
    pub fn lost(&self, why: Loss, rows: u64) {
        self.lost[why as usize].fetch_add(rows, Ordering::Relaxed);
    }

    /// Counts one sweep of a table of telemetry; any other table is none of this.
    pub fn swept(&self, table: &str, rows: u64) {
        if let Some(index) = TELEMETRY_TABLES.iter().position(|known| *known == table) {
            self.eviction_runs.fetch_add(1, Ordering::Relaxed);
            self.evicted[index].fetch_add(rows, Ordering::Relaxed);
        }
    }

    /// Adds its lines to the exposition text.
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
        // Writing into a String cannot fail; the results are ignored for that reason.
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
            for kind in Kind::ALL {
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
        sockets.frame(Direction::In, Kind::Heartbeat);
        sockets.frame(Direction::Out, Kind::FleetUpdate);
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
