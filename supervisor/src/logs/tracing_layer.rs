//! Sends the supervisor's own events through the same hub as the brokers' lines.

use super::json_scan::escape_into;
use super::line_format::{LineOrigin, timestamp};
use super::queue::Shared;
use super::record::LogChunk;
use brokkr_tenant::TenantName;
use chrono::Utc;
use std::fmt::{Debug, Write};
use std::sync::Arc;
use tracing::field::{Field, Visit};
use tracing_subscriber::layer::{Context, Layer};

/// A `tracing` layer that hands events to the hub. An event's field `tenant` becomes the line's tenant.
pub(crate) struct HubLayer {
    shared: Arc<Shared>,
}

impl HubLayer {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }
}

impl<S: tracing::Subscriber> Layer<S> for HubLayer {
    fn on_event(&self, event: &tracing::Event<'_>, _: Context<'_, S>) {
        let mut fields = Fields::default();
        event.record(&mut fields);
        let metadata = event.metadata();
        let tenant = fields
            .tenant
            .as_deref()
            .and_then(|name| TenantName::parse(name).ok());
        let origin = LineOrigin::supervisor(tenant);
        let mut out = Vec::new();
        origin.write_at(
            &mut out,
            &timestamp(Utc::now()),
            metadata.level().as_str(),
            metadata.target(),
            &fields.message,
            &fields.others,
        );
        self.shared.push(LogChunk {
            origin: Arc::new(origin),
            bytes: out.into(),
            lines: 1,
        });
    }
}

#[derive(Default)]
struct Fields {
    message: String,
    tenant: Option<String>,
    /// Further fields as JSON, `,"key":value…`.
    others: String,
}

impl Fields {
    fn bare(&mut self, field: &Field, value: impl std::fmt::Display) {
        match field.name() {
            "tenant" | "pid" | "message" | "timestamp" | "level" | "target" => {
                self.record_str(field, &value.to_string());
            }
            name => {
                // Writing into a string cannot fail.
                let _ = write!(self.others, ",\"{name}\":{value}");
            }
        }
    }
}

impl Visit for Fields {
    fn record_str(&mut self, field: &Field, value: &str) {
        let name = match field.name() {
            "message" => {
                value.clone_into(&mut self.message);
                return;
            }
            "tenant" => {
                self.tenant = Some(value.to_owned());
                return;
            }
            // These keys are the line's own, so an event's field of the same name is renamed.
            "pid" => "of_pid",
            "timestamp" => "of_timestamp",
            "level" => "of_level",
            "target" => "of_target",
            name => name,
        };
        let mut escaped = Vec::new();
        escape_into(&mut escaped, value);
        let _ = write!(
            self.others,
            ",\"{name}\":\"{}\"",
            String::from_utf8_lossy(&escaped)
        );
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.record_str(field, &format!("{value:?}"));
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.bare(field, value);
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.bare(field, value);
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.bare(field, value);
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        if value.is_finite() {
            self.bare(field, value);
        } else {
            self.record_str(field, &value.to_string());
        }
    }
}
