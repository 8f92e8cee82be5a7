//! Handles the frames of one agent.
//!
//! Heartbeats, events and health reports have the same effect as in the REST API; failures are logged, because the
//! agent gets no answer. Telemetry goes to the stack's subscribers first and then to the telemetry writer. Telemetry is
//! accepted only for stacks that the agent serves, because an agent must not write into another stack.

mod stack_access_cache;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::Deserialize;
use serde_json::Value;
use tokio::time::Instant;
use uuid::Uuid;

use super::credential_recheck;
use super::frames::{GapReason, HealthFrame, K8sEvent, LogGap, PodLogLine, Uplink};
use super::registry::Peer;
use super::telemetry_queue::Row;
use crate::app::App;
use crate::db::Conn;
use crate::domain::agent_events::{self, NewAgentEvent};
use crate::domain::deployment_health;
use crate::domain::report::ReportRefusal;
use crate::error::Error;
use crate::jobs::schedule::Job;
use crate::metrics::frame_kind::FrameKind;
use crate::metrics::sockets::{Direction, Loss};
use crate::store::agents::{self, ClusterReport};
use crate::store::telemetry;
use stack_access_cache::StackAccessCache;

/// Shortest time between two reports of rows dropped from one stack.
const TELL_GAPS: Duration = Duration::from_secs(1);

/// Reader of an agent's socket.
pub(super) struct Ingest {
    app: App,
    peer: Arc<Peer>,
    agent: Uuid,
    served: StackAccessCache,
    gap: Option<Gap>,
}

/// Consecutive dropped rows of one stack.
struct Gap {
    stack: Uuid,
    since: DateTime<Utc>,
    began: Instant,
    dropped: u64,
}

impl Ingest {
    pub(super) fn new(app: App, peer: Arc<Peer>, agent: Uuid) -> Self {
        Self {
            app,
            peer,
            agent,
            served: StackAccessCache::default(),
            gap: None,
        }
    }

    /// Handles one frame. Returns when the next frame may come.
    pub(super) async fn take(&mut self, text: &str) {
        if self.peer.is_revoked() {
            return;
        }
        let frame: Uplink = match serde_json::from_str(text) {
            Ok(frame) => frame,
            Err(error) => {
                self.app
                    .metrics
                    .sockets
                    .frame(Direction::In, FrameKind::Invalid);
                tracing::debug!(agent = %self.agent, %error, "a frame was dropped");
                return;
            }
        };
        self.peer.received.fetch_add(1, Ordering::Relaxed);
        self.app.metrics.sockets.frame(Direction::In, frame.kind());
        let sender = match &frame {
            Uplink::Heartbeat(_) => self.agent,
            Uplink::AgentEvent(event) => event.agent_id,
            Uplink::AgentHealth(report) => report.agent_id,
            Uplink::K8sEvent(event) => event.agent_id,
            Uplink::PodLogLine(line) => line.agent_id,
            Uplink::LogGap(gap) => gap.agent_id,
        };
        if sender != self.agent {
            tracing::debug!(agent = %self.agent, "a frame in another agent's name was dropped");
            if matches!(
                frame,
                Uplink::K8sEvent(_) | Uplink::PodLogLine(_) | Uplink::LogGap(_)
            ) {
                self.lost(Loss::OtherAgent, None);
            }
            return;
        }
        match frame {
            Uplink::Heartbeat(body) => self.heartbeat(&body).await,
            Uplink::AgentEvent(event) => self.event(event).await,
            Uplink::AgentHealth(report) => self.health(report).await,
            Uplink::K8sEvent(event) => self.k8s_event(event).await,
            Uplink::PodLogLine(line) => self.pod_log_line(line).await,
            Uplink::LogGap(gap) => {
                if self.serves(gap.stack_id).await {
                    self.app.live.fan_out(gap.stack_id, FrameKind::LogGap, &gap);
                }
            }
        }
    }

    async fn heartbeat(&self, body: &Value) {
        let report = Heartbeat::deserialize(body)
            .ok()
            .and_then(Heartbeat::report);
        let (agent, peer) = (self.agent, self.peer.clone());
        let beat = self
            .app
            .db
            .run(move |db| agents::heartbeat(db, agent, report, Some(peer.hash.as_str())))
            .await;
        match beat {
            Ok(true) => {
                self.peer.confirm();
                self.app.live.fleet_changed(agent);
            }
            // Another process has deleted the agent or rotated its PAK.
            Ok(false) => credential_recheck::revoked(&self.app, &self.peer),
            Err(error) => self.failed(FrameKind::Heartbeat, &error.into()),
        }
    }

    async fn event(&self, event: NewAgentEvent) {
        self.report(FrameKind::AgentEvent, move |db, agent| {
            agent_events::take(db, agent, &event).map(drop)
        })
        .await;
    }

    async fn health(&self, report: HealthFrame) {
        let live = self.app.live.clone();
        self.report(FrameKind::AgentHealth, move |db, agent| {
            let HealthFrame {
                deployment_object_id: object,
                status,
                summary,
                checked_at,
                ..
            } = report;
            let report = deployment_health::report_on(object, &status, summary, checked_at)?;
            if deployment_health::take(db, agent, &[report])? {
                live.fleet_changed(agent);
            }
            Ok(())
        })
        .await;
    }

    /// Runs the work of a REST report on a connection.
    async fn report<F>(&self, kind: FrameKind, work: F)
    where
        F: FnOnce(&mut Conn, Uuid) -> Result<(), ReportRefusal> + Send + 'static,
    {
        let (agent, peer, jobs) = (self.agent, self.peer.clone(), self.app.jobs.clone());
        let done = self
            .app
            .db
            .run(move |db| {
                // The PAK may have been revoked while this waited for a connection.
                if peer.is_revoked() {
                    return Ok(());
                }
                let done = work(db, agent);
                if db.take_wrote_events() {
                    jobs.wake(Job::Webhooks);
                }
                done
            })
            .await;
        if let Err(error) = done {
            self.failed(kind, &error.into());
        }
    }

    /// Logs a refused report at debug, because the agent caused it, and a failed report as a warning to the operator.
    fn failed(&self, kind: FrameKind, error: &Error) {
        let (agent, kind, code) = (self.agent, kind.name(), error.code());
        if error.status().is_server_error() {
            tracing::warn!(%agent, kind, code, "a frame was lost");
        } else {
            tracing::debug!(%agent, kind, code, "a frame was refused");
        }
    }

    async fn k8s_event(&mut self, mut event: K8sEvent) {
        if !self.serves(event.stack_id).await {
            return;
        }
        event.tidy();
        let stack = event.stack_id;
        self.app.live.fan_out(stack, FrameKind::K8sEvent, &event);
        let size = event.size();
        let Ok(involved_object) = serde_json::to_value(&event.involved_object) else {
            return;
        };
        let row = Row::Event(telemetry::NewKubeEvent {
            agent_id: event.agent_id,
            stack_id: stack,
            observed_at: event.observed_at,
            reason: event.reason,
            message: event.message,
            event_type: event.event_type,
            source: event.source,
            involved_object,
        });
        self.keep(stack, row, size).await;
    }

    async fn pod_log_line(&mut self, mut line: PodLogLine) {
        if !self.serves(line.stack_id).await {
            return;
        }
        line.tidy();
        let (stack, size) = (line.stack_id, line.size());
        self.app.live.fan_out(stack, FrameKind::PodLogLine, &line);
        let row = Row::Line(telemetry::NewLogLine {
            agent_id: line.agent_id,
            stack_id: stack,
            namespace: line.namespace,
            pod: line.pod,
            container: line.container,
            ts: line.ts,
            line: line.line,
        });
        self.keep(stack, row, size).await;
    }

    /// Returns true when the agent serves the stack; the answer may be up to 30 s old.
    async fn serves(&mut self, stack: Uuid) -> bool {
        let serves = self.served.ask(&self.app.db, self.agent, stack).await;
        if !serves {
            self.lost(Loss::NotAssociated, Some(stack));
        }
        serves
    }

    /// Counts a lost frame, and warns once an hour per agent.
    fn lost(&self, why: Loss, stack: Option<Uuid>) {
        self.app.metrics.sockets.lost(why, 1);
        if self.app.live.0.warned.is_due(self.agent) {
            let (reason, stack) = (why.name(), stack.map(tracing::field::display));
            tracing::warn!(
                agent = %self.agent, stack, reason,
                "telemetry of the agent is dropped, which is said once an hour: brokkr_ws_telemetry_dropped_total counts it. \
                 not_associated: target the stack at the agent, or look whose stack ids it sends"
            );
        }
    }

    /// Hands a row to the telemetry writer. A row without room is counted, and the stack's subscribers are sent a gap.
    async fn keep(&mut self, stack: Uuid, row: Row, size: usize) {
        let kept = self.app.live.0.telemetry_queue.take(row, size).await;
        let due = self
            .gap
            .as_ref()
            .is_some_and(|gap| kept || gap.stack != stack || gap.began.elapsed() >= TELL_GAPS);
        if due {
            self.tell_gap();
        }
        if !kept {
            self.lost(Loss::NoRoom, Some(stack));
            let gap = self.gap.get_or_insert_with(|| Gap {
                stack,
                since: Utc::now(),
                began: Instant::now(),
                dropped: 0,
            });
            gap.dropped += 1;
        }
    }

    fn tell_gap(&mut self) {
        let Some(gap) = self.gap.take() else { return };
        tracing::debug!(agent = %self.agent, stack = %gap.stack, rows = gap.dropped, "telemetry was dropped: no room");
        let body = LogGap {
            agent_id: self.agent,
            stack_id: gap.stack,
            since_ts: gap.since,
            dropped_count: gap.dropped,
            reason: GapReason::BufferFull,
        };
        self.app.live.fan_out(gap.stack, FrameKind::LogGap, &body);
    }
}

impl Drop for Ingest {
    /// Reports the last dropped rows, even if no frame came after them.
    fn drop(&mut self) {
        self.tell_gap();
    }
}

#[derive(Deserialize)]
struct Heartbeat {
    k8s_reachable: Option<bool>,
    k8s_api_latency_ms: Option<i32>,
}

impl Heartbeat {
    fn report(self) -> Option<ClusterReport> {
        Some(ClusterReport {
            reachable: self.k8s_reachable?,
            latency_ms: self.k8s_api_latency_ms,
        })
    }
}
