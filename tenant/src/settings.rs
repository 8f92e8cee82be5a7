//! The table of all keys in the file of a tenant or of a broker that runs alone.
//!
//! A new key needs a line here, a field in `config.rs` and a line in `resolve.rs`. A key without effect is
//! [`Key::idle`].

use crate::keys::{Key, Keys, Kind};

const SECOND: u64 = 1000;
const HOUR: u64 = 3_600_000;
const MAX: i64 = i64::MAX;

/// The keys of a tenant's file. Deployments share the file with agents, so their section `[agent]` is accepted.
pub static KEYS: Keys = Keys::new(TABLE).with_foreign(&["agent"]);

const TABLE: &[Key] = &[
    // Has no default, because a broker that guesses its database may use another tenant's.
    Key::new("database.url", Kind::Url, None),
    Key::new("database.url_file", Kind::Path, None),
    Key::new("database.schema", Kind::Schema, Some("public")),
    Key::new("database.pool_size", Kind::Pool, Some("50")),
    Key::duration("database.acquire_timeout", 10, 10 * 60 * SECOND, "5s"),
    // Defaults to the smaller of pool_size and 8.
    Key::new("database.max_working", Kind::Int(1, 1000), None),
    Key::duration("database.statement_timeout", 100, HOUR, "30s"),
    Key::duration("database.idle_in_transaction_timeout", 100, HOUR, "30s"),
    // Settings of a provisioned role; without one they have no effect.
    Key::new("database.work_mem", Kind::Size, None),
    Key::new("database.temp_file_limit", Kind::Size, None),
    Key::new("http.listen", Kind::Listen, None),
    Key::new("http.tls_cert", Kind::Path, None),
    Key::new("http.tls_key", Kind::Path, None),
    Key::duration("http.request_timeout", 100, HOUR, "30s"),
    Key::new(
        "log.level",
        Kind::Choice(&["error", "warn", "info", "debug", "trace"]),
        Some("info"),
    ),
    Key::new("log.format", Kind::Choice(&["text", "json"]), Some("text")),
    Key::new("limits.memory_max", Kind::Size, None),
    Key::new("limits.cpu_weight", Kind::Int(1, 10_000), None),
    Key::new("limits.pids_max", Kind::Int(1, 4_194_304), None),
    Key::new("supervision.enabled", Kind::Bool, Some("true")),
    Key::int("supervision.priority", -1_000_000, 1_000_000, "0"),
    Key::new("broker.state_dir", Kind::Path, None),
    Key::new(
        "broker.target_state_default",
        Kind::Choice(&["full", "incremental"]),
        Some("full"),
    ),
    Key::new("broker.pak_hash", Kind::SecretHex(64), None),
    Key::int("broker.auth_cache_ttl_seconds", 0, MAX, "60"),
    Key::int("broker.diagnostic_cleanup_interval_seconds", 1, MAX, "900"),
    Key::int("broker.diagnostic_max_age_hours", 0, 1_000_000, "1"),
    Key::new("broker.webhook_encryption_key", Kind::SecretHex(64), None),
    Key::int("broker.webhook_delivery_interval_seconds", 1, MAX, "5"),
    Key::int("broker.webhook_delivery_batch_size", 1, 10_000, "50"),
    Key::int("broker.webhook_cleanup_retention_days", 0, 100_000, "7"),
    Key::int("broker.audit_log_retention_days", 0, 100_000, "90"),
    Key::int("broker.agent_events_retention_days", 0, 100_000, "30"),
    // By default webhooks cannot reach networks that are not public.
    Key::new("webhooks.allowed_networks", Kind::Networks, Some("")),
    // Empty allows every port.
    Key::new("webhooks.allowed_ports", Kind::Ports, Some("")),
    Key::new("pak.prefix", Kind::NoUnderscore, Some("brokkr")),
    Key::new("pak.short_token_prefix", Kind::NoUnderscore, Some("BR")),
    Key::int("pak.short_token_length", 1, 64, "8"),
    // Random bytes before base58; fewer than 16 could be guessed.
    Key::int("pak.long_token_length", 16, 128, "24"),
    Key::idle("pak.rng", Kind::Ignored, None),
    Key::idle("pak.digest", Kind::Ignored, None),
    Key::new(
        "cors.allowed_origins",
        Kind::List,
        Some("http://localhost:3001"),
    ),
    // Includes PATCH, because the API uses it.
    Key::new(
        "cors.allowed_methods",
        Kind::List,
        Some("GET,POST,PUT,PATCH,DELETE,OPTIONS"),
    ),
    Key::new(
        "cors.allowed_headers",
        Kind::List,
        Some("Authorization,Content-Type"),
    ),
    Key::int("cors.max_age_seconds", 0, MAX, "3600"),
    Key::idle("telemetry.enabled", Kind::Bool, Some("false")),
    Key::idle(
        "telemetry.otlp_endpoint",
        Kind::Text,
        Some("http://localhost:4317"),
    ),
    Key::idle("telemetry.service_name", Kind::Text, Some("brokkr")),
    Key::idle(
        "telemetry.sampling_rate",
        Kind::Float(0.0, 1.0),
        Some("0.1"),
    ),
    Key::idle("telemetry.broker.enabled", Kind::Bool, None),
    Key::idle("telemetry.broker.otlp_endpoint", Kind::Text, None),
    Key::idle(
        "telemetry.broker.service_name",
        Kind::Text,
        Some("brokkr-broker"),
    ),
    Key::idle(
        "telemetry.broker.sampling_rate",
        Kind::Float(0.0, 1.0),
        None,
    ),
];
