//! Counts webhook secrets that could not be decrypted, because the key was lost or changed.

use prometheus::{IntCounterVec, Registry};

use super::registration::counters;
use crate::webhook::endpoint::Field;

/// The party that was about to deliver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Carrier {
    /// The broker.
    Broker,
    /// An agent.
    Agent,
}

/// Labels of [`Field`], in the order of its variants.
const FIELDS: [&str; 2] = ["url", "auth_header"];

/// Labels of [`Carrier`], in the order of its variants.
const CARRIERS: [&str; 2] = ["broker", "agent"];

/// `brokkr_webhook_decrypt_failures_total`.
#[derive(Debug)]
pub struct DecryptFailures(IntCounterVec);

impl DecryptFailures {
    pub(super) fn new(registry: &Registry) -> prometheus::Result<Self> {
        let failures = counters(
            registry,
            "brokkr_webhook_decrypt_failures_total",
            "Webhook secrets that could not be decrypted.",
            &["field", "path"],
        )?;
        for field in FIELDS {
            for carrier in CARRIERS {
                failures.with_label_values(&[field, carrier]);
            }
        }
        Ok(Self(failures))
    }

    /// Counts one failure.
    pub fn count(&self, field: Field, carrier: Carrier) {
        let labels = [FIELDS[field as usize], CARRIERS[carrier as usize]];
        self.0.with_label_values(&labels).inc();
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use prometheus::TextEncoder;

    use super::*;

    #[test]
    fn failures_are_counted_by_field_and_path() {
        let registry = Registry::new();
        let failures = DecryptFailures::new(&registry).unwrap();
        failures.count(Field::AuthHeader, Carrier::Agent);
        failures.count(Field::AuthHeader, Carrier::Agent);
        failures.count(Field::Url, Carrier::Broker);
        let text = TextEncoder::new()
            .encode_to_string(&registry.gather())
            .unwrap();
        for line in [
            "brokkr_webhook_decrypt_failures_total{field=\"url\",path=\"broker\"} 1",
            "brokkr_webhook_decrypt_failures_total{field=\"auth_header\",path=\"broker\"} 0",
            "brokkr_webhook_decrypt_failures_total{field=\"url\",path=\"agent\"} 0",
            "brokkr_webhook_decrypt_failures_total{field=\"auth_header\",path=\"agent\"} 2",
        ] {
            assert!(text.lines().any(|l| l == line), "missing {line} in\n{text}");
        }
    }
}
