//! The server's log: read to the last line by a thread of its own, so that the server never waits for us.

use std::collections::VecDeque;
use std::fmt;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tracing::Level;

use crate::instance::postgres::Server;

/// A longer line is cut here, as brokers' lines are.
const LONGEST: u64 = 16 * 1024;
/// How many lines an error message repeats, and how far back: what is older has nothing to do with it.
const KEPT: usize = 5;
const RECENT: Duration = Duration::from_secs(10);

/// The last lines, for the error when it does not start.
#[derive(Debug, Default)]
pub(super) struct LastLines(Mutex<VecDeque<(Instant, String)>>, AtomicBool);

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

/// Starts the thread; it ends with the server.
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

/// Reads what a server says from now on, if its standard error is ours: a pipe that nobody reads stops the server at its
/// sixty-fourth KiB.
///
/// # Errors
/// When there is neither a descriptor nor a thread for it.
pub(super) fn follow(server: &Server, last: Arc<LastLines>) -> Result<(), String> {
    let Some(pipe) = &server.left().log else {
        return Ok(());
    };
    pipe.try_clone()
        .and_then(|pipe| read(File::from(pipe), last))
        .map_err(|error| format!("cannot read the server's log: {error}"))
}

/// What PostgreSQL puts before each line, its `log_line_prefix`.
pub(super) const PREFIX: &str = "%e ";

/// A line without [`PREFIX`], and what that said: the SQLSTATE.
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
        // Said before it had read its settings, or the rest of a message of several lines.
        _ => ("", line),
    }
}

/// The level of a line that begins so.
fn level(state: &str, word: &str) -> Option<Level> {
    match word {
        "LOG" | "HINT" | "DETAIL" | "STATEMENT" | "CONTEXT" | "INFO" | "NOTICE" => {
            Some(Level::INFO)
        }
        "WARNING" => Some(Level::WARN),
        // A constraint that holds is no failure of the server: somebody wanted a name that is taken, and was told so.
        "ERROR" if state.starts_with("23") => Some(Level::INFO),
        // It starts or ends, and says so to whoever asks meanwhile.
        "FATAL" if state == "57P03" => Some(Level::INFO),
        "ERROR" | "FATAL" | "PANIC" => Some(Level::ERROR),
        _ => None,
    }
}

/// One line, with the level PostgreSQL begins it with.
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
