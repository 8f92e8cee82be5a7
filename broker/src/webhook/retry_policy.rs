//! The meaning of a delivery attempt's result: delivered, retry later, or given up. No clock, no I/O.

use std::time::Duration;

use super::client::{SendError, WebhookResponse};
use super::endpoint::Field;

/// The number of characters kept of an endpoint's answer.
const KEPT: usize = 200;

/// The largest number of characters kept of an agent's report.
const REPORTED: usize = 1000;

/// The result of an attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AttemptOutcome {
    /// The endpoint accepted the delivery.
    Delivered,
    /// The attempt failed.
    Failed(Failure),
}

/// An attempt that failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The reason, as `last_error` shows it.
    pub error: String,
    /// The endpoint's status, if it answered.
    pub status_code: Option<i32>,
    /// True when another attempt may succeed.
    pub retryable: bool,
}

/// The next state of a delivery after an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// The delivery has succeeded.
    Success,
    /// Another attempt follows after this long.
    Failed(Duration),
    /// The delivery is given up.
    Dead,
}

impl Next {
    /// Returns the value of the column `status`.
    pub fn status(self) -> &'static str {
        match self {
            Next::Success => "success",
            Next::Failed(_) => "failed",
            Next::Dead => "dead",
        }
    }
}

impl AttemptOutcome {
    /// Returns the outcome of an endpoint's answer.
    pub fn of_answer(answer: &WebhookResponse) -> Self {
        if answer.status.is_success() {
            return Self::Delivered;
        }
        let status = answer.status;
        let mut error = match status.canonical_reason() {
            Some(reason) => format!("HTTP {} {reason}", status.as_u16()),
            None => format!("HTTP {}", status.as_u16()),
        };
        let said = answer.beginning(KEPT);
        if !said.is_empty() {
            error = format!("{error}: {said}");
        }
        Self::Failed(Failure {
            error: storable(&error),
            status_code: Some(i32::from(status.as_u16())),
            retryable: is_retryable(Some(i32::from(status.as_u16()))),
        })
    }

    /// Returns the outcome of a request without an answer.
    pub fn of_error(error: &SendError) -> Self {
        Self::Failed(Failure {
            error: storable(&error.to_string()),
            status_code: None,
            retryable: true,
        })
    }

    /// Returns the outcome of a failure that an agent reports.
    pub fn of_report(status_code: Option<i32>, error: Option<&str>) -> Self {
        let said = error.map(str::trim).filter(|text| !text.is_empty());
        let error = match (status_code.map(|code| format!("HTTP {code}")), said) {
            (Some(code), Some(said)) if said.starts_with(&code) => said.to_owned(),
            (Some(code), Some(said)) => format!("{code}: {said}"),
            (Some(code), None) => code,
            (None, Some(said)) => said.to_owned(),
            (None, None) => "the agent could not deliver it and did not say why".to_owned(),
        };
        Self::Failed(Failure {
            error: storable(&error).chars().take(REPORTED).collect(),
            status_code,
            retryable: is_retryable(status_code),
        })
    }

    /// Returns the outcome of a delivery that cannot be sent, because its endpoint cannot be read.
    pub fn unreadable(field: Field) -> Self {
        let error = match field {
            Field::Url => "the URL cannot be decrypted with this broker's key",
            Field::AuthHeader => {
                "the Authorization value cannot be decrypted with this broker's key"
            }
        };
        Self::Failed(Failure {
            error: error.to_owned(),
            status_code: None,
            retryable: false,
        })
    }

    /// Returns the next state, after `attempts` earlier attempts of at most `cap`.
    pub fn next(&self, attempts: i32, cap: i32) -> Next {
        match self {
            Self::Delivered => Next::Success,
            Self::Failed(failure) => {
                let made = attempts.saturating_add(1);
                if !failure.retryable || made >= cap {
                    Next::Dead
                } else {
                    // Clamp against overflow; the configured cap is ten.
                    let seconds = 1_u64 << made.clamp(0, 20);
                    Next::Failed(Duration::from_secs(seconds))
                }
            }
        }
    }
}

/// Returns true unless the endpoint refused the delivery (4xx); 408, 425 and 429 mean a busy endpoint.
fn is_retryable(status_code: Option<i32>) -> bool {
    match status_code {
        Some(408 | 425 | 429) | None => true,
        Some(code) => !(400..500).contains(&code),
    }
}

/// Replaces NUL bytes because PostgreSQL stores none; otherwise an endpoint could make the record of its failure fail.
fn storable(text: &str) -> String {
    text.replace('\0', "\u{fffd}")
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic, reason = "tests")]
mod tests {
    use axum::http::StatusCode;

    use super::*;

    fn answered(status: u16, body: &str) -> AttemptOutcome {
        AttemptOutcome::of_answer(&WebhookResponse {
            status: StatusCode::from_u16(status).unwrap(),
            body: body.as_bytes().to_vec(),
        })
    }

    fn failure(outcome: AttemptOutcome) -> Failure {
        match outcome {
            AttemptOutcome::Failed(failure) => failure,
            AttemptOutcome::Delivered => panic!("delivered"),
        }
    }

    #[test]
    fn a_refusal_is_final_and_everything_else_that_fails_is_not() {
        for code in 200..300 {
            assert_eq!(answered(code, "x"), AttemptOutcome::Delivered);
        }
        for code in [300, 304, 307, 408, 425, 429, 500, 502, 503, 599, 600, 999] {
            assert!(failure(answered(code, "")).retryable, "{code}");
        }
        for code in [400, 401, 403, 404, 410, 418, 422, 451, 499] {
            assert!(!failure(answered(code, "")).retryable, "{code}");
        }
        assert!(failure(AttemptOutcome::of_error(&SendError::Timeout(3))).retryable);
        assert!(failure(AttemptOutcome::of_report(None, None)).retryable);
        assert!(failure(AttemptOutcome::of_report(Some(503), None)).retryable);
        assert!(!failure(AttemptOutcome::of_report(Some(404), None)).retryable);
        assert!(!failure(AttemptOutcome::unreadable(Field::Url)).retryable);
    }

    #[test]
    fn attempts_are_counted_altogether_and_pauses_double() {
        let fails = AttemptOutcome::of_report(None, None);
        let after = |attempts, cap| fails.next(attempts, cap);
        let seconds = |n| Next::Failed(Duration::from_secs(n));
        assert_eq!(
            [after(0, 5), after(1, 5), after(2, 5), after(3, 5)],
            [seconds(2), seconds(4), seconds(8), seconds(16)]
        );
        assert_eq!(after(4, 5), Next::Dead, "the fifth was the last");
        assert_eq!([after(0, 0), after(0, 1)], [Next::Dead, Next::Dead]);
        assert_eq!(after(7, 5), Next::Dead, "the cap was lowered meanwhile");
        assert_eq!(after(i32::MAX, i32::MAX), Next::Dead);
        assert_eq!(
            AttemptOutcome::unreadable(Field::Url).next(0, 10),
            Next::Dead
        );
        assert_eq!(AttemptOutcome::Delivered.next(9, 1), Next::Success);
    }

    #[test]
    fn the_error_is_the_status_and_the_beginning_of_what_the_endpoint_said() {
        let error = |status, body: &str| failure(answered(status, body)).error;
        assert_eq!(error(503, "busy"), "HTTP 503 Service Unavailable: busy");
        assert_eq!(error(404, ""), "HTTP 404 Not Found");
        assert_eq!(error(599, "x"), "HTTP 599: x");
        assert_eq!(
            error(500, "a\0b"),
            "HTTP 500 Internal Server Error: a\u{fffd}b"
        );
        let long = error(500, &"é".repeat(900));
        assert!(long.ends_with(&format!(": {}", "é".repeat(200))));
        assert!(!long.ends_with(&"é".repeat(201)));
    }

    #[test]
    fn an_agents_report_is_prefixed_with_its_status_once() {
        let error = |code, text| failure(AttemptOutcome::of_report(code, text)).error;
        assert_eq!(error(Some(503), Some("busy")), "HTTP 503: busy");
        assert_eq!(error(Some(503), Some("HTTP 503: busy")), "HTTP 503: busy");
        assert_eq!(error(Some(503), None), "HTTP 503");
        assert_eq!(error(Some(503), Some(" ")), "HTTP 503");
        assert_eq!(error(None, Some("refused")), "refused");
        assert!(!error(None, None).is_empty());
        assert_eq!(error(None, Some(&"x".repeat(5000))).len(), 1000);
    }
}
