//! The server's log: read to the last line by a thread of its own, so that the server never waits for us.

use std::collections::VecDeque;
use std::fmt;
use std::io::{self, BufRead, BufReader, Read};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// A longer line is cut here, as brokers' lines are.
const LONGEST: u64 = 16 * 1024;
/// How many lines an error message repeats.
const KEPT: usize = 5;

/// The last lines, for the error when it does not start.
#[derive(Debug, Default)]
pub(super) struct LastLines(Mutex<VecDeque<String>>, AtomicBool);

/// What the thread gets to read what a server that has ended wrote last, and how often that is looked at.
const LAST: (Duration, Duration) = (Duration::from_secs(1), Duration::from_millis(10));

impl LastLines {
    /// Waits until all is read of a server that has ended; a little while at most.
    pub(super) async fn complete(&self) {
        let deadline = tokio::time::Instant::now() + LAST.0;
        while !self.1.load(Ordering::Acquire) && tokio::time::Instant::now() < deadline {
            tokio::time::sleep(LAST.1).await;
        }
    }

    fn push(&self, line: &str) {
        let mut lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if lines.len() == KEPT {
            lines.pop_front();
        }
        lines.push_back(line.to_owned());
    }
}

impl fmt::Display for LastLines {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
        f.write_str(if lines.is_empty() {
            "it said nothing"
        } else {
            "it said "
        })?;
        f.write_str(&lines.join("; "))
    }
}

/// Starts the thread; it ends with the server.
pub(super) fn read(pipe: impl Read + Send + 'static, last: Arc<LastLines>) -> io::Result<()> {
    last.1.store(false, Ordering::Release);
    std::thread::Builder::new()
        .name("postgres-log".to_owned())
        .spawn(move || {
            let mut pipe = BufReader::new(pipe);
            let mut line = Vec::new();
            loop {
                line.clear();
                match (&mut pipe).take(LONGEST).read_until(b'\n', &mut line) {
                    Ok(0) | Err(_) => {
                        last.1.store(true, Ordering::Release);
                        return;
                    }
                    Ok(_) => {}
                }
                let text = String::from_utf8_lossy(&line);
                let text = text.trim_end();
                if !text.is_empty() {
                    last.push(text);
                    say(text);
                }
            }
        })?;
    Ok(())
}

/// One line, with the level PostgreSQL begins it with.
fn say(line: &str) {
    let (level, text) = line.split_once(':').unwrap_or(("", line));
    let text = text.trim_start();
    match level {
        "LOG" | "HINT" | "DETAIL" | "STATEMENT" | "CONTEXT" | "INFO" | "NOTICE" => {
            tracing::info!(target: "postgres", "{text}");
        }
        "WARNING" => tracing::warn!(target: "postgres", "{text}"),
        "ERROR" | "FATAL" | "PANIC" => tracing::error!(target: "postgres", "{level}: {text}"),
        _ => tracing::info!(target: "postgres", "{line}"),
    }
}
