//! The types of WebSocket frames, as the wire and the metrics name them.

/// Types of frame, with two more for unknown types and for invalid input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameKind {
    /// An agent is alive.
    Heartbeat,
    /// An agent reports on an object.
    AgentEvent,
    /// An agent reports an object's health.
    AgentHealth,
    /// Something happened in a cluster.
    K8sEvent,
    /// A line of a pod's log.
    PodLogLine,
    /// Lines are missing.
    LogGap,
    /// To an agent: it has a work order.
    WorkOrder,
    /// To an agent: its targets changed.
    TargetChanged,
    /// To an agent: a stack it serves changed.
    StackChanged,
    /// To a fleet subscriber: an agent's record.
    FleetUpdate,
    /// A type of frame this broker does not know.
    Other,
    /// Input that is not a frame.
    Invalid,
}

impl FrameKind {
    /// Every kind, in the order of the variants.
    pub const ALL: [FrameKind; 12] = [
        FrameKind::Heartbeat,
        FrameKind::AgentEvent,
        FrameKind::AgentHealth,
        FrameKind::K8sEvent,
        FrameKind::PodLogLine,
        FrameKind::LogGap,
        FrameKind::WorkOrder,
        FrameKind::TargetChanged,
        FrameKind::StackChanged,
        FrameKind::FleetUpdate,
        FrameKind::Other,
        FrameKind::Invalid,
    ];

    /// Returns the type's name on the wire and in the metrics.
    pub fn name(self) -> &'static str {
        match self {
            FrameKind::Heartbeat => "heartbeat",
            FrameKind::AgentEvent => "agent_event",
            FrameKind::AgentHealth => "agent_health",
            FrameKind::K8sEvent => "k8s_event",
            FrameKind::PodLogLine => "pod_log_line",
            FrameKind::LogGap => "log_gap",
            FrameKind::WorkOrder => "work_order",
            FrameKind::TargetChanged => "target_changed",
            FrameKind::StackChanged => "stack_changed",
            FrameKind::FleetUpdate => "fleet_update",
            FrameKind::Other => "other",
            FrameKind::Invalid => "invalid",
        }
    }

    /// Returns the kind with this name, or [`FrameKind::Other`].
    pub fn named(name: &str) -> Self {
        FrameKind::ALL
            .into_iter()
            .find(|kind| kind.name() == name)
            .unwrap_or(FrameKind::Other)
    }
}
