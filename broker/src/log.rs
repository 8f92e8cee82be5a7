//! Logging: each tracing event becomes one line on standard error, through a writer thread.
//!
//! Standard error is a blocking pipe, and its reader may pause (while a supervisor is replaced). So lines go through a
//! queue of 4096 lines to one writer thread, and no request ever waits for the log. A full queue drops and counts the
//! line; the writer adds the count after the next line that gets through. A reader that has gone (EPIPE) only loses the
//! lines.
//!
//! `tracing-appender` does not do this. While its queue is full, its guard prints to standard output as the process
//! ends, which can block for ever; and it panics when its thread cannot be started.

use std::fmt::{self, Write as _};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, channel, sync_channel};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::Duration;

use brokkr_tenant::LogLevel;
use chrono::{SecondsFormat, Utc};
use serde_json::{Map, Value};
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
use tracing_subscriber::{Registry, reload};

/// The number of lines that can wait for the writer; a line is a few hundred bytes.
const QUEUE: usize = 4096;

/// The largest number of bytes written together.
const BATCH: usize = 32 * 1024;

/// The format of a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// One flat JSON object, for a supervisor or a collector.
    Json,
    /// Text for people.
    Text,
}

/// Keeps the writer alive. Dropping the guard writes the queued lines (for at most a second) and ends the writer.
pub struct Guard {
    sink: Sink,
    stopping: Arc<AtomicBool>,
    writer: Option<JoinHandle<()>>,
    finished: Receiver<()>,
}

impl Guard {
    /// Returns the count of dropped lines, shared with the writer.
    pub fn dropped(&self) -> Arc<AtomicU64> {
        self.sink.dropped.clone()
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.stopping.store(true, Ordering::Relaxed);
        // Wake a writer that waits for a line; a busy writer sees the flag after its batch.
        let _ = self.sink.lines.try_send(String::new());
        // Wait for at most a second, otherwise a reader that never reads would keep the process from ending.
        let done = self.finished.recv_timeout(Duration::from_secs(1));
        if let (Ok(()) | Err(RecvTimeoutError::Disconnected), Some(writer)) =
            (done, self.writer.take())
        {
            let _ = writer.join();
        }
    }
}

/// The filter of the process's subscriber; not set when `RUST_LOG` decides.
static FILTER: OnceLock<reload::Handle<Targets, Registry>> = OnceLock::new();

/// Changes the least severe level that is logged. Returns false when the change has no effect, because `RUST_LOG`
/// decides or the log is not installed.
pub fn set_level(level: LogLevel) -> bool {
    let Ok(targets) = level.as_str().parse::<Targets>() else {
        return false;
    };
    FILTER
        .get()
        .is_some_and(|filter| filter.reload(targets).is_ok())
}

/// Installs the subscriber and the panic hook.
///
/// `level` is a level or a list of `target=level`; `RUST_LOG` overrides it. `tenant` is on every line; it is `None`
/// under a supervisor, which adds the name itself.
///
/// # Errors
///
/// When the writer's thread cannot be started, or a subscriber is installed already.
pub fn init(level: &str, format: LogFormat, tenant: Option<&str>) -> std::io::Result<Guard> {
    let wished = std::env::var("RUST_LOG")
        .ok()
        .and_then(|text| text.trim().parse::<Targets>().ok());
    let overridden = wished.is_some();
    let filter = wished
        .or_else(|| level.parse().ok())
        .unwrap_or_else(|| Targets::new().with_default(Level::INFO));
    let (filter, handle) = reload::Layer::new(filter);
    let tenant = tenant.map(str::to_owned);
    let (sink, guard) = writer(std::io::stderr(), QUEUE, format, tenant.clone())?;
    let lines = Lines {
        sink,
        format,
        tenant,
    };
    let subscriber = tracing_subscriber::registry().with(lines.with_filter(filter));
    tracing::subscriber::set_global_default(subscriber).map_err(std::io::Error::other)?;
    if !overridden {
        // The cell is empty, because a second subscriber would have been refused above.
        let _ = FILTER.set(handle);
    }
    std::panic::set_hook(Box::new(|panic| {
        let location = panic
            .location()
            .map(ToString::to_string)
            .unwrap_or_default();
        if std::thread::current().name() == Some(crate::template::THREAD) {
            // The panic came from a library on an unforeseen template. The caller gets an error; the message holds the
            // caller's text.
            tracing::debug!(target: "panic", location, "on a template");
            return;
        }
        tracing::error!(target: "panic", location, "{}", panic_message(panic.payload()));
    }));
    Ok(guard)
}

fn panic_message(payload: &(dyn std::any::Any + Send)) -> &str {
    payload
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| payload.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("panicked")
}

/// The queue of formatted lines.
#[derive(Clone)]
struct Sink {
    lines: SyncSender<String>,
    dropped: Arc<AtomicU64>,
}

impl Sink {
    fn send(&self, line: String) {
        if self.lines.try_send(line).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }
}

fn writer(
    mut out: impl std::io::Write + Send + 'static,
    queue: usize,
    format: LogFormat,
    tenant: Option<String>,
) -> std::io::Result<(Sink, Guard)> {
    let (lines, queued) = sync_channel::<String>(queue);
    let (finish, finished) = channel();
    let stopping = Arc::new(AtomicBool::new(false));
    let sink = Sink {
        lines,
        dropped: Arc::new(AtomicU64::new(0)),
    };
    let (count, stop) = (sink.dropped.clone(), stopping.clone());
    let writer = std::thread::Builder::new()
        .name("log".to_owned())
        .spawn(move || {
            let mut told = 0;
            loop {
                // When stopping, write the queued lines and wait for no more.
                let first = if stop.load(Ordering::Relaxed) {
                    queued.try_recv().ok()
                } else {
                    queued.recv().ok()
                };
                let Some(mut batch) = first else { break };
                // Write all queued lines together, up to `BATCH`.
                while batch.len() < BATCH
                    && let Ok(line) = queued.try_recv()
                {
                    batch.push_str(&line);
                }
                let lost = count.load(Ordering::Relaxed);
                if lost > told {
                    batch.push_str(&dropped_line(format, tenant.as_deref(), lost - told));
                    told = lost;
                }
                // Ignore EPIPE and the like: the reader has gone, so the error cannot be reported either.
                let _ = out.write_all(batch.as_bytes()).and_then(|()| out.flush());
            }
            let _ = finish.send(());
        })?;
    let guard = Guard {
        sink: sink.clone(),
        stopping,
        writer: Some(writer),
        finished,
    };
    Ok((sink, guard))
}

fn dropped_line(format: LogFormat, tenant: Option<&str>, lost: u64) -> String {
    let mut fields = Fields {
        message: "log lines dropped, because their reader is too slow".to_owned(),
        ..Fields::default()
    };
    fields.name(tenant);
    fields.other.insert("dropped".to_owned(), lost.into());
    line(format, Level::WARN, "brokkr_broker::log", fields)
}

/// The layer that turns events into lines.
struct Lines {
    sink: Sink,
    format: LogFormat,
    tenant: Option<String>,
}

impl<S: Subscriber> Layer<S> for Lines {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut fields = Fields::default();
        event.record(&mut fields);
        fields.name(self.tenant.as_deref());
        let metadata = event.metadata();
        self.sink.send(line(
            self.format,
            *metadata.level(),
            metadata.target(),
            fields,
        ));
    }
}

/// The data of an event: its message, and its other fields in order of their names.
#[derive(Default)]
struct Fields {
    message: String,
    other: Map<String, Value>,
}

impl Fields {
    /// Names the tenant, unless a supervisor does that.
    fn name(&mut self, tenant: Option<&str>) {
        if let Some(tenant) = tenant {
            self.other.insert("tenant".to_owned(), tenant.into());
        }
    }

    fn put(&mut self, field: &Field, value: Value) {
        match (field.name(), value) {
            ("message", Value::String(text)) => self.message = text,
            // A field must not replace one of the line's own keys.
            (name @ ("timestamp" | "level" | "target"), value) => {
                self.other.insert(format!("field_{name}"), value);
            }
            (name, value) => {
                self.other.insert(name.to_owned(), value);
            }
        }
    }
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.put(field, format!("{value:?}").into());
    }
    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field, value.into());
    }
    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field, value.into());
    }
    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field, value.into());
    }
    fn record_f64(&mut self, field: &Field, value: f64) {
        self.put(field, value.into());
    }
    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field, value.into());
    }
}

fn line(format: LogFormat, level: Level, target: &str, fields: Fields) -> String {
    let now = Utc::now().to_rfc3339_opts(SecondsFormat::Micros, true);
    let mut out = String::with_capacity(256);
    // Writing into a String cannot fail, and all of these values can become JSON.
    match format {
        LogFormat::Json => {
            let message = Value::String(fields.message);
            let target = Value::from(target);
            let _ = write!(
                out,
                r#"{{"timestamp":"{now}","level":"{level}","target":{target},"message":{message}"#
            );
            for (name, value) in fields.other {
                let _ = write!(out, ",{}:{value}", Value::String(name));
            }
            out.push_str("}\n");
        }
        LogFormat::Text => {
            let _ = write!(
                out,
                "{now} {level:>5} {target}: {}",
                fields.message.replace('\n', "\\n")
            );
            for (name, value) in fields.other {
                match value {
                    Value::String(text) if !text.contains([' ', '"', '\n']) => {
                        let _ = write!(out, " {name}={text}");
                    }
                    value => {
                        let _ = write!(out, " {name}={value}");
                    }
                }
            }
            out.push('\n');
        }
    }
    out
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic, reason = "tests")]
mod tests {
    use std::io::Read;
    use std::os::unix::net::UnixStream;

    use super::*;

    fn log_into(out: UnixStream, queue: usize, format: LogFormat, work: impl FnOnce()) -> u64 {
        let (sink, guard) = writer(out, queue, format, None).unwrap();
        let subscriber = tracing_subscriber::registry().with(Lines {
            sink,
            format,
            tenant: Some("acme".to_owned()),
        });
        tracing::subscriber::with_default(subscriber, work);
        guard.dropped().load(Ordering::Relaxed)
    }

    #[test]
    fn an_event_is_one_flat_json_object_a_line() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let dropped = log_into(ours, 10, LogFormat::Json, || {
            tracing::info!(target: "somewhere", number = 7, text = "a \"b\"\nc", level = "mine", "said {}", "so");
            tracing::warn!("again");
        });
        assert_eq!(dropped, 0);
        let mut text = String::new();
        theirs.read_to_string(&mut text).unwrap();
        let lines: Vec<Value> = text
            .lines()
            .map(|l| serde_json::from_str(l).unwrap())
            .collect();
        let [first, second] = &lines[..] else {
            panic!("{text}")
        };
        assert_eq!(first["message"], "said so");
        assert_eq!(first["level"], "INFO");
        assert_eq!(first["target"], "somewhere");
        assert_eq!(first["number"], 7);
        assert_eq!(first["text"], "a \"b\"\nc");
        assert_eq!(first["field_level"], "mine");
        assert_eq!(
            (&first["tenant"], &second["tenant"]),
            (&"acme".into(), &"acme".into())
        );
        assert_eq!(second["message"], "again");
        let timestamp = first["timestamp"].as_str().unwrap();
        assert!(
            timestamp.ends_with('Z') && timestamp.len() == "2026-01-02T03:04:05.123456Z".len(),
            "{timestamp}"
        );
    }

    #[test]
    fn a_reader_that_does_not_read_costs_lines_and_never_blocks_and_the_count_is_logged() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let (sink, guard) = writer(ours, 16, LogFormat::Json, None).unwrap();
        let subscriber = tracing_subscriber::registry().with(Lines {
            sink,
            format: LogFormat::Json,
            tenant: None,
        });
        let filler = "x".repeat(1000);
        tracing::subscriber::with_default(subscriber, || {
            // Send far more than socket buffer, batch and queue hold together.
            for _ in 0..20_000 {
                tracing::info!("{filler}");
            }
        });
        let dropped = guard.dropped().load(Ordering::Relaxed);
        assert!(dropped > 0);
        let reader = std::thread::spawn(move || {
            let mut text = String::new();
            theirs.read_to_string(&mut text).unwrap();
            text
        });
        drop(guard);
        let text = reader.join().unwrap();
        let lines: Vec<Value> = text
            .lines()
            .map(|l| serde_json::from_str(l).unwrap())
            .collect();
        let told: u64 = lines.iter().filter_map(|l| l["dropped"].as_u64()).sum();
        let arrived = lines.iter().filter(|l| l["level"] == "INFO").count() as u64;
        assert_eq!((told, arrived + told), (dropped, 20_000));
    }

    #[test]
    fn a_reader_that_has_gone_costs_nothing_but_the_lines() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        drop(theirs);
        log_into(ours, 10, LogFormat::Text, || {
            for n in 0..100 {
                tracing::info!(n, "to nobody");
            }
        });
    }
}
