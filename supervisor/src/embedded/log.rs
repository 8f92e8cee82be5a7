//! Reads the server's log in a thread of its own, so that the server never waits for the supervisor.

use std::collections::VecDeque;
use std::fmt;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tracing::Level;

use crate::instance::postgres::PostgresProcess;

/// Longest line in bytes; a longer line is cut, as brokers' lines are.
const LONGEST: u64 = 16 * 1024;
/// Number of last lines that an error message repeats, and their greatest age: older lines are unrelated to the error.
const KEPT: usize = 5;
const RECENT: Duration = Duration::from_secs(10);

/// The server's last lines, for the error message when the server ends; the flag is true once all lines are read.
#[derive(Debug, Default)]
pub(super) struct LastLines(Mutex<VecDeque<(Instant, String)>>, AtomicBool);

/// Time limit for reading the last lines of an ended server, and the interval between two checks.
const LAST: (Duration, Duration) = (Duration::from_secs(1), Duration::from_millis(10));

impl LastLines {
    /// Waits until all lines of an ended server are read, one second at most.
    pub(super) async fn complete(&self) {
        let deadline = tokio::time::Instant::now() + LAST.0;
        while !self.1.load(Ordering::Acquire) && tokio::time::Instant::now() < deadline {
            tokio::time::sleep(LAST.1).await;
        }
    }

    fn begin(&self) {
        self.1.store(false, Ordering::Release);
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clear();
    }

    fn push(&self, line: &str) {
        let mut lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if lines.len() == KEPT {
            lines.pop_front();
        }
        lines.push_back((Instant::now(), line.to_owned()));
    }
}

impl fmt::Display for LastLines {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let recent = lines.iter().filter(|(at, _)| at.elapsed() < RECENT);
        let lines: Vec<&str> = recent.map(|(_, line)| line.as_str()).collect();
        f.write_str(if lines.is_empty() {
            "it said nothing"
        } else {
            "it said "
        })?;
        f.write_str(&lines.join("; "))
    }
}

/// Starts the reading thread, which ends with the server.
fn read(pipe: impl Read + Send + 'static, last: Arc<LastLines>) -> io::Result<()> {
    last.begin();
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
                    let (state, text) = parted(text);
                    last.push(text);
                    say(state, text);
                }
            }
        })?;
    Ok(())
}

/// Reads the server's log from now on, if the supervisor holds its pipe. A pipe that is not read stops the server after
/// 64 KiB.
pub(super) fn follow(server: &PostgresProcess, last: Arc<LastLines>) -> Result<(), String> {
    let Some(pipe) = &server.left().log else {
        return Ok(());
    };
    pipe.try_clone()
        .and_then(|pipe| read(File::from(pipe), last))
        .map_err(|error| format!("cannot read the server's log: {error}"))
}

/// `log_line_prefix` of the server: the SQLSTATE before each line.
pub(super) const PREFIX: &str = "%e ";

/// Splits a line into the SQLSTATE from [`PREFIX`] and the rest.
fn parted(line: &str) -> (&str, &str) {
    match line.split_at_checked(5) {
        Some((state, rest))
            if rest.starts_with(' ')
                && state
                    .bytes()
                    .all(|b| b.is_ascii_digit() || b.is_ascii_uppercase()) =>
        {
            (state, &rest[1..])
        }
        // The server wrote this before it read its settings, or it continues a message of several lines.
        _ => ("", line),
    }
}

/// Returns the level of a line that begins with `word`.
fn level(state: &str, word: &str) -> Option<Level> {
    match word {
        "LOG" | "HINT" | "DETAIL" | "STATEMENT" | "CONTEXT" | "INFO" | "NOTICE" => {
            Some(Level::INFO)
        }
        "WARNING" => Some(Level::WARN),
        // A violated constraint (SQLSTATE class 23) is no failure of the server: a client asked for a taken name and
        // was refused.
        "ERROR" if state.starts_with("23") => Some(Level::INFO),
        // The server is starting or stopping, and refuses a client for that reason (SQLSTATE 57P03).
        "FATAL" if state == "57P03" => Some(Level::INFO),
        "ERROR" | "FATAL" | "PANIC" => Some(Level::ERROR),
        _ => None,
    }
}

/// Logs one line at the level that PostgreSQL begins it with.
fn say(state: &str, line: &str) {
    let (word, text) = line.split_once(':').unwrap_or(("", line));
    let text = text.trim_start();
    match level(state, word) {
        Some(Level::ERROR) => tracing::error!(target: "postgres", "{word}: {text}"),
        Some(Level::WARN) => tracing::warn!(target: "postgres", "{text}"),
        Some(_) => tracing::info!(target: "postgres", "{text}"),
        None => tracing::info!(target: "postgres", "{line}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_failure_of_the_server_is_no_error() {
        for (line, wanted) in [
            ("23505 ERROR:  duplicate key value", Some(Level::INFO)),
            ("42P01 ERROR:  relation does not exist", Some(Level::ERROR)),
            (
                "57P03 FATAL:  the database system is starting up",
                Some(Level::INFO),
            ),
            ("53100 PANIC:  no space left", Some(Level::ERROR)),
            ("00000 LOG:  starting PostgreSQL", Some(Level::INFO)),
            ("01000 WARNING:  x", Some(Level::WARN)),
            ("FATAL:  could not open file", Some(Level::ERROR)),
            ("\tthe rest of it", None),
            ("é", None),
        ] {
            let (state, text) = parted(line);
            let (word, _) = text.split_once(':').unwrap_or(("", text));
            assert_eq!(level(state, word), wanted, "{line}");
        }
        assert_eq!(parted("23505 ERROR:  x"), ("23505", "ERROR:  x"));
    }
}
