//! Frames as they are on the wire: `{"type": <snake_case>, "body": {…}}`, and the limits of their contents.
//!
//! Telemetry is made storable here: characters that PostgreSQL cannot hold are replaced and long texts are cut, so that
//! one line of an agent cannot fail the batch that stores it.

use axum::extract::ws::Utf8Bytes;
use chrono::{DateTime, Datelike, Utc};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use uuid::Uuid;

use crate::domain::agent_events::NewAgentEvent;
use crate::metrics::frame_kind::FrameKind;

/// Largest number of bytes of a log line or of an event's message.
const TEXT: usize = 16 * 1024;
/// Largest number of bytes of any other telemetry text: names in Kubernetes have at most 253.
const NAME: usize = 512;

/// A frame ready to be sent. All receivers share the text.
#[derive(Clone, Debug)]
pub(crate) struct Frame {
    /// Kind, for the counters.
    pub(crate) kind: FrameKind,
    /// JSON text of the frame.
    pub(crate) text: Utf8Bytes,
}

#[derive(Serialize)]
struct Envelope<'a, T: Serialize> {
    r#type: &'a str,
    body: &'a T,
}

/// Returns a frame of a known kind.
pub(super) fn downlink(kind: FrameKind, body: &impl Serialize) -> Frame {
    Frame {
        kind,
        text: encode(kind.name(), body),
    }
}

/// Returns the text of a frame; empty, and logged, if the body cannot be serialised.
pub(super) fn encode(name: &str, body: &impl Serialize) -> Utf8Bytes {
    match serde_json::to_string(&Envelope { r#type: name, body }) {
        Ok(text) => text.into(),
        Err(error) => {
            tracing::error!(%error, name, "a frame could not be serialised");
            String::new().into()
        }
    }
}

/// A frame that an agent sends.
#[derive(Debug, Deserialize)]
#[serde(tag = "type", content = "body", rename_all = "snake_case")]
pub(super) enum Uplink {
    /// Any JSON: the frame shows that the agent is alive, with any content.
    Heartbeat(Value),
    AgentEvent(NewAgentEvent),
    AgentHealth(HealthFrame),
    K8sEvent(K8sEvent),
    PodLogLine(PodLogLine),
    LogGap(LogGap),
}

impl Uplink {
    pub(super) fn kind(&self) -> FrameKind {
        match self {
            Uplink::Heartbeat(_) => FrameKind::Heartbeat,
            Uplink::AgentEvent(_) => FrameKind::AgentEvent,
            Uplink::AgentHealth(_) => FrameKind::AgentHealth,
            Uplink::K8sEvent(_) => FrameKind::K8sEvent,
            Uplink::PodLogLine(_) => FrameKind::PodLogLine,
            Uplink::LogGap(_) => FrameKind::LogGap,
        }
    }
}

/// Health of one object, as in the REST API: the summary is JSON in a string.
#[derive(Debug, Deserialize)]
pub(super) struct HealthFrame {
    pub(super) agent_id: Uuid,
    pub(super) deployment_object_id: Uuid,
    pub(super) status: String,
    pub(super) summary: Option<String>,
    pub(super) checked_at: DateTime<Utc>,
}

/// A Kubernetes event.
#[derive(Debug, Deserialize, Serialize)]
pub(super) struct K8sEvent {
    pub(super) agent_id: Uuid,
    pub(super) stack_id: Uuid,
    pub(super) observed_at: DateTime<Utc>,
    pub(super) reason: String,
    pub(super) message: String,
    pub(super) event_type: String,
    pub(super) source: Option<String>,
    pub(super) involved_object: InvolvedObject,
}

/// Object that the event is about.
#[derive(Debug, Deserialize, Serialize)]
pub(super) struct InvolvedObject {
    pub(super) api_version: String,
    pub(super) kind: String,
    pub(super) namespace: Option<String>,
    pub(super) name: String,
    pub(super) uid: Option<String>,
}

#[derive(Debug, Deserialize, Serialize)]
pub(super) struct PodLogLine {
    pub(super) agent_id: Uuid,
    pub(super) stack_id: Uuid,
    pub(super) namespace: String,
    pub(super) pod: String,
    pub(super) container: String,
    pub(super) ts: DateTime<Utc>,
    pub(super) line: String,
}

/// A gap in a pod's log.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(super) struct LogGap {
    pub(super) agent_id: Uuid,
    pub(super) stack_id: Uuid,
    pub(super) since_ts: DateTime<Utc>,
    pub(super) dropped_count: u64,
    pub(super) reason: GapReason,
}

/// Reason why lines are missing.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum GapReason {
    RateLimit,
    BufferFull,
    Disconnected,
}

impl K8sEvent {
    /// Replaces characters that cannot be stored and cuts long texts.
    pub(super) fn tidy(&mut self) {
        tidy_time(&mut self.observed_at);
        tidy(&mut self.reason, NAME);
        tidy(&mut self.message, TEXT);
        tidy(&mut self.event_type, NAME);
        let object = &mut self.involved_object;
        for text in [&mut object.api_version, &mut object.kind, &mut object.name] {
            tidy(text, NAME);
        }
        let optional = [&mut self.source, &mut object.namespace, &mut object.uid];
        optional
            .into_iter()
            .flatten()
            .for_each(|text| tidy(text, NAME));
    }

    /// Returns the approximate size in memory.
    pub(super) fn size(&self) -> usize {
        size_of::<Self>() + self.reason.len() + self.message.len() + self.event_type.len()
    }
}

impl PodLogLine {
    /// Replaces characters that cannot be stored and cuts long texts.
    pub(super) fn tidy(&mut self) {
        tidy_time(&mut self.ts);
        for text in [&mut self.namespace, &mut self.pod, &mut self.container] {
            tidy(text, NAME);
        }
        tidy(&mut self.line, TEXT);
    }

    /// Returns the approximate size in memory.
    pub(super) fn size(&self) -> usize {
        size_of::<Self>()
            + self.namespace.len()
            + self.pod.len()
            + self.container.len()
            + self.line.len()
    }
}

/// Replaces NUL characters, which PostgreSQL's text cannot hold, and cuts the text at a character boundary. Releases
/// the memory of the rest.
fn tidy(text: &mut String, most: usize) {
    if text.contains('\0') {
        *text = text.replace('\0', "\u{fffd}");
    }
    if text.len() > most {
        text.truncate(text.floor_char_boundary(most));
        text.shrink_to_fit();
    }
}

/// Replaces a time outside the years 1970 to 9999 by now, because not every year fits the column.
fn tidy_time(time: &mut DateTime<Utc>) {
    if !(1970..=9999).contains(&time.year()) {
        *time = Utc::now();
    }
}

/// Parses any bytes as an agent's frame, and panics when a text that would be stored is not storable. For fuzzing.
pub(crate) fn check_parsing(data: &[u8]) {
    let storable = |text: &str, most: usize| assert!(!text.contains('\0') && text.len() <= most);
    let in_time = |time: &DateTime<Utc>| assert!((1970..=9999).contains(&time.year()));
    match std::str::from_utf8(data).map(serde_json::from_str::<Uplink>) {
        Ok(Ok(Uplink::K8sEvent(mut event))) => {
            event.tidy();
            in_time(&event.observed_at);
            storable(&event.message, TEXT);
            let object = &event.involved_object;
            let names = [&event.reason, &event.event_type, &object.api_version];
            for name in names.into_iter().chain([&object.kind, &object.name]) {
                storable(name, NAME);
            }
            let optional = [&event.source, &object.namespace, &object.uid];
            optional
                .into_iter()
                .flatten()
                .for_each(|text| storable(text, NAME));
        }
        Ok(Ok(Uplink::PodLogLine(mut line))) => {
            line.tidy();
            in_time(&line.ts);
            storable(&line.line, TEXT);
            for name in [&line.namespace, &line.pod, &line.container] {
                storable(name, NAME);
            }
        }
        _ => {}
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use serde_json::json;

    use super::*;

    fn line(line: &str, ts: &str) -> Value {
        let id = Uuid::nil();
        json!({ "type": "pod_log_line", "body": { "agent_id": id, "stack_id": id, "namespace": "n", "pod": "p",
                "container": "c", "ts": ts, "line": line, "not": "known" } })
    }

    fn read(value: &Value) -> Result<Uplink, serde_json::Error> {
        serde_json::from_str(&value.to_string())
    }

    #[test]
    fn a_line_that_no_column_holds_is_made_one_that_does() {
        let long = format!("a\0{}é", "x".repeat(TEXT - 5));
        let Uplink::PodLogLine(mut line) = read(&line(&long, "0001-01-01T00:00:00Z")).unwrap()
        else {
            panic!("another frame");
        };
        line.tidy();
        assert!(line.line.starts_with("a\u{fffd}x"));
        assert!(line.line.len() <= TEXT && line.line.ends_with('x'));
        assert!((2024..3000).contains(&line.ts.year()));
    }

    #[test]
    fn every_type_is_read_by_its_name_and_any_offset_is_a_time() {
        let frame = read(&line("x", "2024-01-01T02:00:00+02:00")).unwrap();
        let Uplink::PodLogLine(line) = &frame else {
            panic!("another frame");
        };
        assert_eq!(line.ts.to_rfc3339(), "2024-01-01T00:00:00+00:00");
        assert_eq!(frame.kind(), FrameKind::PodLogLine);
        for kind in FrameKind::ALL {
            assert_eq!(FrameKind::named(kind.name()), kind);
        }
        assert_eq!(FrameKind::named("x"), FrameKind::Other);
    }

    #[test]
    fn what_is_no_frame_is_refused() {
        for text in [
            "",
            "1",
            "{}",
            r#"{"type":"stack_changed","body":{}}"#,
            r#"{"type":"log_gap","body":{}}"#,
        ] {
            assert!(serde_json::from_str::<Uplink>(text).is_err(), "{text}");
        }
    }
}
