//! Merges layers into one effective configuration.

mod merged;

use std::{collections::BTreeMap, path::PathBuf, sync::Arc};

use crate::{
    BrokerConfig, DatabaseUrl, Diagnostic, Diagnostics, Layer, Listen, Origin, PoolSize, Source,
    config::{
        BrokerSection, CorsConfig, DatabaseConfig, HttpConfig, LimitsConfig, LogConfig, LogFormat,
        LogLevel, PakConfig, SupervisionConfig, TargetStateMode, TelemetryConfig, WebhooksConfig,
    },
    settings,
    source::read_bytes,
    tls::{TlsConfig, TlsPair},
    url_file,
    value::Value,
};
use merged::Merged;

/// The way the broker is run, on which some rules depend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// By a person or a plain unit: `http.listen` defaults to `0.0.0.0:3000`, and port 0 is allowed.
    Alone,
    /// By a person, for a command that serves nothing: as `Alone`, but TLS files are not read, because the person may
    /// not be permitted to read them.
    Command,
    /// By the supervisor: `http.listen` must be set, with a fixed port.
    Supervised,
}

/// The default limit of connections that work at once, because more only queue up inside the server.
const MAX_WORKING: u32 = 8;

/// The largest content of a TLS file, in bytes. A chain of certificates has a few thousand.
const MAX_TLS_FILE: u64 = 256 << 10;

/// An effective configuration and the origin of each of its values.
#[derive(Debug, Clone)]
pub struct Resolved {
    /// The effective configuration.
    pub config: BrokerConfig,
    /// Warnings about settings without effect, in the order of the layers.
    pub warnings: Vec<Diagnostic>,
    /// The other files that the configuration refers to. A change of such a file may change the configuration.
    pub files: Vec<PathBuf>,
    origins: BTreeMap<String, Origin>,
    home: Origin,
}

impl Resolved {
    /// Wraps a configuration that comes from no file; `who` names its source in messages.
    pub fn found(config: BrokerConfig, who: &'static str) -> Self {
        Self {
            config,
            warnings: Vec::new(),
            files: Vec::new(),
            origins: BTreeMap::new(),
            home: Origin::Default(who),
        }
    }

    /// Returns the origin of a dotted key's value; `None` for a key without value and default.
    pub fn origin(&self, key: &str) -> Option<&Origin> {
        self.origins.get(key)
    }

    /// Makes an error about the value of `key`: at the key, or at line 1, column 1 of the tenant's file where no file
    /// sets the key.
    pub fn diagnostic(
        &self,
        key: &str,
        message: impl Into<String>,
        hint: Option<String>,
    ) -> Diagnostic {
        let origin = match self.origins.get(key) {
            Some(origin @ (Origin::File(..) | Origin::Env(_))) => origin,
            _ => &self.home,
        };
        Diagnostic::at(origin, message, hint)
    }

    /// Returns the dotted key that gave the database URL: `database.url` or `database.url_file`.
    pub fn url_key(&self) -> &'static str {
        if self.origins.contains_key("database.url") {
            "database.url"
        } else {
            "database.url_file"
        }
    }
}

/// Merges layers, lowest first, above the built-in defaults.
///
/// # Errors
/// Every problem of every layer and of their combination. Also names the other files that were read or are missing,
/// because a change of such a file may remove an error.
pub fn resolve(layers: &[Layer], mode: Mode) -> Result<Resolved, Diagnostics> {
    let mut problems = Diagnostics::default();
    for layer in layers {
        problems.list.extend(layer.problems.list.iter().cloned());
    }
    if layers.iter().any(|layer| layer.unreadable) {
        return Err(problems);
    }
    // The highest file is the tenant's own, so errors about missing keys point there.
    let file = layers.iter().rev().find_map(|layer| layer.source.clone());
    let home = |key: &str| home(file.as_ref(), key);

    let mut merged = Merged::new(&settings::KEYS, layers);
    let url = database_url(&mut merged, &home("database.url"), &mut problems);
    let listen = listen(&mut merged, mode, &home("http.listen"), &mut problems);
    let tls = tls(&merged, mode, &mut problems);

    let pool_size: PoolSize = merged.required("database.pool_size");
    let max_working = match merged.optional("database.max_working") {
        Some(most) if most > pool_size.get() => {
            let origin = merged
                .origin("database.max_working")
                .cloned()
                .unwrap_or_else(|| home("database.max_working"));
            problems.push(Diagnostic::at(
                &origin,
                format!(
                    "`database.max_working` is {most}, but the pool has {pool_size} connections"
                ),
                Some(format!("write at most {pool_size}, or raise `pool_size`")),
            ));
            most
        }
        Some(most) => most,
        None => pool_size.get().min(MAX_WORKING),
    };
    let telemetry = TelemetryConfig {
        enabled: merged.first_of(["telemetry.broker.enabled", "telemetry.enabled"]),
        otlp_endpoint: merged
            .first_of(["telemetry.broker.otlp_endpoint", "telemetry.otlp_endpoint"]),
        service_name: merged.first_of(["telemetry.broker.service_name", "telemetry.service_name"]),
        sampling_rate: merged
            .first_of(["telemetry.broker.sampling_rate", "telemetry.sampling_rate"]),
    };
    let log = LogConfig {
        level: match merged.required::<String>("log.level").as_str() {
            "error" => LogLevel::Error,
            "warn" => LogLevel::Warn,
            "debug" => LogLevel::Debug,
            "trace" => LogLevel::Trace,
            _ => LogLevel::Info,
        },
        format: if merged.required::<String>("log.format") == "json" {
            LogFormat::Json
        } else {
            LogFormat::Text
        },
    };
    let limits = LimitsConfig {
        memory_max: merged.optional("limits.memory_max"),
        cpu_weight: merged.optional("limits.cpu_weight"),
        pids_max: merged.optional("limits.pids_max"),
    };
    let supervision = SupervisionConfig {
        enabled: merged.required("supervision.enabled"),
        priority: merged.required("supervision.priority"),
    };
    let broker = BrokerSection {
        state_dir: merged.optional("broker.state_dir"),
        target_state_default: match merged
            .required::<String>("broker.target_state_default")
            .as_str()
        {
            "incremental" => TargetStateMode::Incremental,
            _ => TargetStateMode::Full,
        },
        pak_hash: merged.optional_secret("broker.pak_hash"),
        auth_cache_ttl_seconds: merged.required("broker.auth_cache_ttl_seconds"),
        diagnostic_cleanup_interval_seconds: merged
            .required("broker.diagnostic_cleanup_interval_seconds"),
        diagnostic_max_age_hours: merged.required("broker.diagnostic_max_age_hours"),
        webhook_encryption_key: merged.optional_secret("broker.webhook_encryption_key"),
        webhook_delivery_interval_seconds: merged
            .required("broker.webhook_delivery_interval_seconds"),
        webhook_delivery_batch_size: merged.required("broker.webhook_delivery_batch_size"),
        webhook_cleanup_retention_days: merged.required("broker.webhook_cleanup_retention_days"),
        audit_log_retention_days: merged.required("broker.audit_log_retention_days"),
        agent_events_retention_days: merged.required("broker.agent_events_retention_days"),
    };
    let webhooks = WebhooksConfig {
        allowed_networks: merged.required("webhooks.allowed_networks"),
        allowed_ports: merged.required("webhooks.allowed_ports"),
    };
    let pak = PakConfig {
        prefix: merged.required("pak.prefix"),
        short_token_prefix: merged.required("pak.short_token_prefix"),
        short_token_length: merged.required("pak.short_token_length"),
        long_token_length: merged.required("pak.long_token_length"),
    };
    let cors = CorsConfig {
        allowed_origins: merged.required("cors.allowed_origins"),
        allowed_methods: merged.required("cors.allowed_methods"),
        allowed_headers: merged.required("cors.allowed_headers"),
        max_age_seconds: merged.required("cors.max_age_seconds"),
    };
    let schema = merged.required("database.schema");
    let acquire_timeout = merged.required("database.acquire_timeout");
    let statement_timeout = merged.required("database.statement_timeout");
    let idle_in_transaction_timeout = merged.required("database.idle_in_transaction_timeout");
    let work_mem = merged.optional("database.work_mem");
    let temp_file_limit = merged.optional("database.temp_file_limit");
    let request_timeout = merged.required("http.request_timeout");

    problems.list.extend(merged.mismatches());
    let (Some((url, mut files)), Some(listen), false) = (url, listen, problems.has_errors()) else {
        problems.files = merged.files();
        problems.files.extend(merged.tls_files());
        return Err(problems);
    };
    files.extend(url.ssl_files().map(ToOwned::to_owned));
    files.extend(merged.tls_files());
    Ok(Resolved {
        config: BrokerConfig {
            database: DatabaseConfig {
                url,
                schema,
                pool_size,
                acquire_timeout,
                max_working,
                statement_timeout,
                idle_in_transaction_timeout,
                work_mem,
                temp_file_limit,
            },
            http: HttpConfig {
                listen,
                request_timeout,
                tls,
            },
            log,
            limits,
            supervision,
            broker,
            webhooks,
            pak,
            cors,
            telemetry,
        },
        // The list holds only warnings here, because errors returned above.
        warnings: problems.list,
        files,
        origins: merged.origins(),
        home: home("database"),
    })
}

/// Returns the place of an error about a missing key: the beginning of the tenant's file, or the environment.
fn home(file: Option<&Arc<Source>>, key: &str) -> Origin {
    match file {
        Some(source) => Origin::File(source.clone(), 0..0),
        None => Origin::Env(format!(
            "BROKKR__{}",
            key.to_ascii_uppercase().replace('.', "__")
        )),
    }
}

/// Returns the URL and the file it was read from; `None` after adding the reason to `problems`.
fn database_url(
    merged: &mut Merged<'_>,
    home: &Origin,
    problems: &mut Diagnostics,
) -> Option<(DatabaseUrl, Vec<PathBuf>)> {
    let (url, file) = merged.url_or_file(problems);
    if let Some(url) = url {
        return Some((url, Vec::new()));
    }
    let Some((path, origin)) = file else {
        if !merged.is_broken("database.url") && !merged.is_broken("database.url_file") {
            let hint = "write [database] and below it url = \"postgres://brokkr@db.internal:5432/brokkr\", or url_file = \"…\"";
            problems.push(Diagnostic::at(
                home,
                "`database.url` is missing",
                Some(hint.to_owned()),
            ));
        }
        return None;
    };
    let refuse = |why: String, hint: Option<String>| {
        Diagnostic::at(
            &origin,
            format!("`database.url_file`: {}: {why}", path.display()),
            hint,
        )
    };
    match url_file::read(&path) {
        Ok(url) => Some((url, vec![path])),
        Err(error) => {
            problems.push(refuse(error.message, error.hint));
            None
        }
    }
}

/// Returns the certificate and key of the listener; `None` without TLS, or after adding the reason to `problems`.
fn tls(merged: &Merged<'_>, mode: Mode, problems: &mut Diagnostics) -> Option<TlsConfig> {
    const CERT: &str = "http.tls_cert";
    const KEY: &str = "http.tls_key";
    if merged.is_broken(CERT) || merged.is_broken(KEY) {
        return None;
    }
    let ((cert_file, cert_origin), (key_file, key_origin)) =
        match (merged.path(CERT), merged.path(KEY)) {
            (None, None) => return None,
            (Some(cert), Some(key)) => (cert, key),
            (Some((_, origin)), None) => {
                problems.push(lonely(&origin, "tls_cert", "tls_key"));
                return None;
            }
            (None, Some((_, origin))) => {
                problems.push(lonely(&origin, "tls_key", "tls_cert"));
                return None;
            }
        };
    if mode == Mode::Command {
        let pair = Arc::default();
        return Some(TlsConfig {
            cert_file,
            key_file,
            pair,
        });
    }
    let mut read = |key: &str, path: &PathBuf, origin: &Origin| {
        let read = read_bytes(path, MAX_TLS_FILE).map_err(|error| {
            let message = format!("`{key}`: {}: {error}", path.display());
            let hint = "name a PEM file that the user who reads this file may read";
            problems.push(Diagnostic::at(origin, message, Some(hint.to_owned())));
        });
        read.ok()
    };
    // Reads both first, so that both are reported.
    let certificates = read(CERT, &cert_file, &cert_origin);
    let key = read(KEY, &key_file, &key_origin);
    match TlsPair::parse(&certificates?, &key?) {
        Ok(pair) => Some(TlsConfig {
            cert_file,
            key_file,
            pair: Arc::new(pair),
        }),
        Err(error) => {
            let (key, file, origin) = if error.is_of_key() {
                (KEY, &key_file, &key_origin)
            } else {
                (CERT, &cert_file, &cert_origin)
            };
            let message = format!("`{key}`: {}: {error}", file.display());
            let hint = Some(error.hint().to_owned());
            problems.push(Diagnostic::at(origin, message, hint));
            None
        }
    }
}

/// Makes an error about a TLS key without its counterpart.
fn lonely(origin: &Origin, present: &str, missing: &str) -> Diagnostic {
    Diagnostic::at(
        origin,
        format!("`http.{present}` is there without `http.{missing}`"),
        Some(format!(
            "write {missing} = \"…\" beside it, or remove {present} for plain HTTP"
        )),
    )
}

fn listen(
    merged: &mut Merged<'_>,
    mode: Mode,
    home: &Origin,
    problems: &mut Diagnostics,
) -> Option<Listen> {
    const EXAMPLE: &str = "for example \"127.0.0.1:3001\" or \"unix:/run/brokkr/acme.sock\"";
    match (merged.take("http.listen"), mode) {
        (Some((Value::Listen(listen), origin)), Mode::Supervised) if listen.is_any_port() => {
            let message = format!("`http.listen` is {listen}: port 0 would move with every start");
            problems.push(Diagnostic::at(&origin, message, Some(EXAMPLE.to_owned())));
            None
        }
        (Some((Value::Listen(listen), _)), _) => Some(listen),
        (_, Mode::Alone | Mode::Command) if !merged.is_broken("http.listen") => {
            Some(Listen::Tcp(([0, 0, 0, 0], 3000).into()))
        }
        (_, Mode::Supervised) if !merged.is_broken("http.listen") => {
            let hint = format!("write [http] and below it listen = …, {EXAMPLE}");
            problems.push(Diagnostic::at(home, "`http.listen` is missing", Some(hint)));
            None
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests;
