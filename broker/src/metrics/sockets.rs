//! Counters and gauges of WebSocket connections and of telemetry.

use prometheus::{IntCounter, IntCounterVec, IntGauge, Registry};

use super::frame_kind::FrameKind;
use super::registration::{counter, counters, gauge};

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
#[derive(Debug)]
pub struct Sockets {
    /// Agents connected now.
    pub agents: IntGauge,
    /// Subscribers of stacks connected now.
    pub live_subscribers: IntGauge,
    /// Subscribers of the fleet connected now.
    pub fleet_subscribers: IntGauge,
    frames: IntCounterVec,
    lost: IntCounterVec,
    eviction_runs: IntCounter,
    evicted: IntCounterVec,
}

impl Sockets {
    /// Creates the figures, all zero.
    pub(super) fn new(registry: &Registry) -> prometheus::Result<Self> {
        let lost = counters(
            registry,
            "brokkr_ws_telemetry_dropped_total",
            "Telemetry of agents that was not kept.",
            &["reason"],
        )?;
        let evicted = counters(
            registry,
            "brokkr_ws_telemetry_evicted_total",
            "Rows of telemetry past their retention removed.",
            &["table"],
        )?;
        for why in Loss::ALL {
            lost.with_label_values(&[why.name()]);
        }
        for table in TELEMETRY_TABLES {
            evicted.with_label_values(&[table]);
        }
        Ok(Self {
            agents: gauge(
                registry,
                "brokkr_ws_connected_agents",
                "Agents connected by WebSocket.",
            )?,
            live_subscribers: gauge(
                registry,
                "brokkr_ws_live_subscribers",
                "Subscribers of stacks' live channels.",
            )?,
            fleet_subscribers: gauge(
                registry,
                "brokkr_fleet_live_subscribers",
                "Subscribers of the fleet's live channel.",
            )?,
            frames: counters(
                registry,
                "brokkr_ws_messages_total",
                "Frames received and sent.",
                &["direction", "type"],
            )?,
            lost,
            eviction_runs: counter(
                registry,
                "brokkr_ws_log_eviction_runs_total",
                "Sweeps of tables of telemetry.",
            )?,
            evicted,
        })
    }

    /// Counts one frame.
    pub fn frame(&self, direction: Direction, kind: FrameKind) {
        let direction = match direction {
            Direction::In => "in",
            Direction::Out => "out",
        };
        self.frames
            .with_label_values(&[direction, kind.name()])
            .inc();
    }

    /// Counts rows of telemetry that were not stored.
    pub fn lost(&self, why: Loss, rows: u64) {
        self.lost.with_label_values(&[why.name()]).inc_by(rows);
    }

    /// Counts one sweep of a telemetry table; ignores any other table.
    pub fn swept(&self, table: &str, rows: u64) {
        if TELEMETRY_TABLES.contains(&table) {
            self.eviction_runs.inc();
            self.evicted.with_label_values(&[table]).inc_by(rows);
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use prometheus::TextEncoder;

    use super::*;

    #[test]
    fn frames_are_counted_by_direction_and_type_and_sweeps_by_table() {
        let registry = Registry::new();
        let sockets = Sockets::new(&registry).unwrap();
        sockets.agents.set(3);
        sockets.frame(Direction::In, FrameKind::Heartbeat);
        sockets.frame(Direction::Out, FrameKind::FleetUpdate);
        sockets.swept("agent_pod_logs", 7);
        sockets.swept("audit_log", 9);
        sockets.lost(Loss::NoRoom, 3);
        let text = TextEncoder::new()
            .encode_to_string(&registry.gather())
            .unwrap();
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
