//! One request and its outcome: an answer, an excused failure, or a violation.

use super::super::account::Kind;
use super::super::allowed_failures::Allowed;
use super::Client;
use crate::http::{Connection, Response};
use serde_json::Value;
use std::io;
use std::time::{Duration, Instant};

/// Longest wait for an answer, far more than any fault of the plan lasts; after it the request has failed.
const PATIENCE: Duration = Duration::from_secs(40);

/// The outcome of a request.
#[derive(Debug)]
pub(super) enum Outcome {
    /// An answer other than 503.
    Answer(Response),
    /// No answer that tells the effect of the request.
    Unknown,
}

/// A connection that a client keeps.
#[derive(Debug)]
pub(super) struct Held {
    connection: Connection,
    opened: Instant,
}

/// Sends all but the last `late` bytes, then those after a pause, and reads the answer: the request is in flight for
/// long.
fn in_two_parts(
    connection: &mut Connection,
    bytes: &[u8],
    late: usize,
    pause: Duration,
) -> io::Result<Response> {
    let (early, late) = bytes.split_at(bytes.len() - late);
    connection.raw(early)?;
    std::thread::sleep(pause);
    // A server that answers before it has the whole request may close its end; the answer can still be read.
    let sent = connection.raw(late);
    connection.receive(false).map_err(|e| match sent {
        Err(e) => e,
        Ok(()) => e,
    })
}

impl Client {
    pub(super) fn read(&mut self, path: &str, pak: &str) -> Option<Response> {
        match self.call("GET", path, pak, None) {
            Outcome::Answer(answer) => self.expect("GET", path, answer, 200),
            Outcome::Unknown => None,
        }
    }

    /// Sends a write and returns the answer when the write was acknowledged.
    pub(super) fn write(
        &mut self,
        method: &str,
        path: &str,
        pak: &str,
        body: Option<&Value>,
        wanted: u16,
    ) -> Option<Response> {
        let acknowledged = match self.call(method, path, pak, body) {
            Outcome::Answer(answer) => self.expect(method, path, answer, wanted),
            Outcome::Unknown => None,
        };
        match acknowledged {
            Some(_) => self.tally.acknowledged += 1,
            None => self.tally.unknown += 1,
        }
        acknowledged
    }

    pub(super) fn call(
        &mut self,
        method: &str,
        path: &str,
        pak: &str,
        body: Option<&Value>,
    ) -> Outcome {
        self.ask(method, &format!("/api/v1{path}"), pak, body)
    }

    /// Sends a request and returns its outcome; notes violations.
    pub(super) fn ask(
        &mut self,
        method: &str,
        path: &str,
        pak: &str,
        body: Option<&Value>,
    ) -> Outcome {
        let pause = self.pause.take();
        let asked = Instant::now();
        let kept = self.kept.take();
        let Some(mut held) = kept.or_else(|| self.connect(method, path)) else {
            return Outcome::Unknown;
        };
        let bearer = format!("Bearer {pak}");
        let headers = self.headers(&bearer, body.is_some());
        let body = body.map(Value::to_string);
        let body = body.as_deref().map(str::as_bytes);
        let answer = match (pause, body) {
            (Some(pause), Some(body)) => {
                let head = |(name, value): &(&str, &str)| format!("{name}: {value}\r\n");
                let head: String = headers.iter().map(head).collect();
                let head = format!(
                    "{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n{head}\r\n",
                    body.len()
                );
                let bytes = [head.as_bytes(), body].concat();
                in_two_parts(&mut held.connection, &bytes, body.len() / 2, pause)
            }
            _ => held.connection.request(method, path, &headers, body),
        };
        self.judge(method, path, asked, held, answer)
    }

    /// Sends the same request on `many` new connections at once and returns the answers that came.
    pub(super) fn ask_at_once(&mut self, many: usize, path: &str, pak: &str) -> Vec<Response> {
        let asked = Instant::now();
        let bearer = format!("Bearer {pak}");
        let mut headers = self.headers(&bearer, false);
        headers.retain(|(name, _)| *name != "Connection");
        headers.push(("Connection", "close"));
        let mut sent = Vec::new();
        for _ in 0..many {
            if let Some(mut held) = self.connect("GET", path) {
                let gone = held.connection.send("GET", path, &headers, None);
                sent.push((held, gone));
            }
        }
        let mut answers = Vec::new();
        for (mut held, gone) in sent {
            let answer = gone.and_then(|()| held.connection.receive(false));
            if let Outcome::Answer(answer) = self.judge("GET", path, asked, held, answer) {
                answers.push(answer);
            }
        }
        answers
    }

    fn headers<'a>(&self, bearer: &'a str, has_body: bool) -> Vec<(&'static str, &'a str)> {
        let mut headers = Vec::new();
        if bearer != "Bearer " {
            headers.push(("Authorization", bearer));
        }
        if has_body {
            headers.push(("Content-Type", "application/json"));
        }
        if !self.keep_alive {
            headers.push(("Connection", "close"));
        }
        headers
    }

    fn connect(&mut self, method: &str, path: &str) -> Option<Held> {
        let opened = Instant::now();
        Connection::open_within(&self.address.addr, PATIENCE)
            .inspect_err(|e| self.bad(Kind::Refused, format!("for {method} {path}: {e}")))
            .map(|connection| Held { connection, opened })
            .ok()
    }

    fn judge(
        &mut self,
        method: &str,
        path: &str,
        asked: Instant,
        held: Held,
        answer: io::Result<Response>,
    ) -> Outcome {
        match answer {
            Ok(answer) => {
                *self.tally.answers.entry(answer.status).or_default() += 1;
                self.tally.slowest = self.tally.slowest.max(asked.elapsed());
                if self.keep_alive && !answer.closes() {
                    self.kept = Some(held);
                }
                if answer.status == 503 {
                    self.excuse(method, path, &answer, asked);
                    return Outcome::Unknown;
                }
                Outcome::Answer(answer)
            }
            Err(e) => {
                let Held { connection, opened } = held;
                let allowed_failures = &self.shared.allowed_failures;
                if allowed_failures.was_killed(&self.address.tenant, connection.own_port(), opened)
                {
                    self.tally.killed += 1;
                } else {
                    self.bad(
                        Kind::Failed,
                        format!(
                            "{method} {path} on a connection opened {:?} before (port {:?}): no answer after {:?}: {e}",
                            opened.elapsed(),
                            connection.own_port(),
                            asked.elapsed()
                        ),
                    );
                }
                Outcome::Unknown
            }
        }
    }

    fn excuse(&mut self, method: &str, path: &str, answer: &Response, asked: Instant) {
        let stand_in = answer.text().contains("broker is not running");
        let allowed = self
            .shared
            .allowed_failures
            .allows(&self.address.tenant, asked, stand_in);
        // A broker's /healthz answers 200 even while its server is away.
        let allowed = allowed.filter(|_| stand_in || path != "/healthz");
        match allowed {
            Some(_) if answer.header("retry-after").is_none() => {
                self.bad(
                    Kind::Failed,
                    format!("{method} {path}: 503 without Retry-After"),
                );
            }
            Some(Allowed::Unavailable) => self.tally.unavailable += 1,
            Some(Allowed::StoodIn) => self.tally.stood_in += 1,
            None => self.bad(
                Kind::Failed,
                format!(
                    "{method} {path}: 503 after {:?} when nothing excuses it: {}",
                    asked.elapsed(),
                    answer.text()
                ),
            ),
        }
    }

    pub(super) fn expect(
        &mut self,
        method: &str,
        path: &str,
        answer: Response,
        wanted: u16,
    ) -> Option<Response> {
        if answer.status == wanted {
            return Some(answer);
        }
        self.bad(
            Kind::Failed,
            format!(
                "{method} {path}: {} instead of {wanted}: {}",
                answer.status,
                answer.text()
            ),
        );
        None
    }

    pub(super) fn body(&mut self, answer: &Response) -> Option<Value> {
        serde_json::from_slice(&answer.body)
            .inspect_err(|e| self.bad(Kind::Failed, format!("{} is not JSON: {e}", answer.text())))
            .ok()
    }

    pub(super) fn is_named(&mut self, agent: &Value, name: &str) {
        if agent["name"] != name || agent["cluster_name"] != self.address.tenant {
            self.bad(Kind::WrongTenant, format!("agent {name} is {agent}"));
        }
    }

    pub(super) fn bad(&self, kind: Kind, text: impl std::fmt::Display) {
        let who = format!("{} ({})", self.address.tenant, self.name);
        self.shared.diary.violation(kind, format!("{who}: {text}"));
    }
}
