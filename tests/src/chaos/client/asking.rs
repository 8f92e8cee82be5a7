//! One request and what became of it: an answer, an excuse, or a violation.

use super::super::account::Kind;
use super::super::excuse::Allowed;
use super::Client;
use crate::http::{Connection, Response};
use serde_json::Value;
use std::time::{Duration, Instant};

/// No answer for so long is a failed request. Far more than any fault of the plan lasts.
const PATIENCE: Duration = Duration::from_secs(40);

/// How one request ended.
#[derive(Debug)]
pub(super) enum Outcome {
    /// With an answer that is not 503.
    Answer(Response),
    /// With nothing that says what came of it.
    Unknown,
}

impl Client {
    pub(super) fn read(&mut self, path: &str, pak: &str) -> Option<Response> {
        match self.call("GET", path, pak, None) {
            Outcome::Answer(answer) => self.expect("GET", path, answer, 200),
            Outcome::Unknown => None,
        }
    }

    /// The answer, when the write was acknowledged.
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

    /// One request and its answer, or why there is none; violations are noted.
    pub(super) fn ask(
        &mut self,
        method: &str,
        path: &str,
        pak: &str,
        body: Option<&Value>,
    ) -> Outcome {
        let asked = Instant::now();
        let (mut connection, opened) = match self.kept.take() {
            Some(kept) => kept,
            None => match Connection::open_within(&self.address.addr, PATIENCE) {
                Ok(connection) => (connection, asked),
                Err(e) => {
                    self.bad(Kind::Refused, format!("for {method} {path}: {e}"));
                    return Outcome::Unknown;
                }
            },
        };
        let bearer = format!("Bearer {pak}");
        let mut headers = Vec::new();
        if !pak.is_empty() {
            headers.push(("Authorization", bearer.as_str()));
        }
        if body.is_some() {
            headers.push(("Content-Type", "application/json"));
        }
        if !self.keep_alive {
            headers.push(("Connection", "close"));
        }
        let body = body.map(Value::to_string);
        let answer = connection.request(method, path, &headers, body.as_deref().map(str::as_bytes));
        match answer {
            Ok(answer) => {
                *self.tally.answers.entry(answer.status).or_default() += 1;
                self.tally.slowest = self.tally.slowest.max(asked.elapsed());
                if self.keep_alive && !answer.closes() {
                    self.kept = Some((connection, opened));
                }
                if answer.status == 503 {
                    self.excuse(method, path, &answer, asked);
                    return Outcome::Unknown;
                }
                Outcome::Answer(answer)
            }
            Err(e) => {
                let excuses = &self.shared.excuses;
                if excuses.was_killed(&self.address.tenant, connection.own_port(), opened) {
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
            .excuses
            .allows(&self.address.tenant, asked, stand_in);
        // A broker says that it lives whatever its server does.
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
