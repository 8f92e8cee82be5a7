//! Counts webhook secrets that could not be decrypted, because the key was lost or changed.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::webhook::endpoint::Field;

/// The party that was about to deliver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Carrier {
    /// The broker.
    Broker,
    /// An agent.
    Agent,
}

const FIELDS: [(Field, &str); 2] = [(Field::Url, "url"), (Field::AuthHeader, "auth_header")];
const CARRIERS: [(Carrier, &str); 2] = [(Carrier::Broker, "broker"), (Carrier::Agent, "agent")];

/// `brokkr_webhook_decrypt_failures_total`.
#[derive(Debug, Default)]
pub struct DecryptFailures([[AtomicU64; 2]; 2]);

impl DecryptFailures {
    /// Counts one failure.
    pub fn count(&self, field: Field, carrier: Carrier) {
        self.0[carrier as usize][field as usize].fetch_add(1, Ordering::Relaxed);
    }

    // Results are ignored below, because writing into a String cannot fail.
    pub(super) fn render(&self, out: &mut String) {
        let name = "brokkr_webhook_decrypt_failures_total";
        let _ = writeln!(
            out,
            "# HELP {name} Webhook secrets that could not be decrypted.\n# TYPE {name} counter"
        );
        for (carrier, path) in CARRIERS {
            for (field, label) in FIELDS {
                let count = self.0[carrier as usize][field as usize].load(Ordering::Relaxed);
                let _ = writeln!(out, "{name}{{field=\"{label}\",path=\"{path}\"}} {count}");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_are_counted_by_field_and_path() {
        let failures = DecryptFailures::default();
        failures.count(Field::AuthHeader, Carrier::Agent);
        failures.count(Field::AuthHeader, Carrier::Agent);
        failures.count(Field::Url, Carrier::Broker);
        let mut text = String::new();
        failures.render(&mut text);
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
