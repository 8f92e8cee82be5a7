//! Answers `GET /v1/logs`.

use super::App;
use super::api_error::ApiError;
use super::peer_credentials::Peer;
use super::stream;
use crate::logs::{Filter, Followed, Level, Subscription, TextEncoder};
use axum::Extension;
use axum::body::Body;
use axum::extract::{RawQuery, State};
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use brokkr_tenant::TenantName;
use bytes::Bytes;
use percent_encoding::percent_decode_str;
use tokio::sync::OwnedSemaphorePermit;

/// Number of lines given when the request names none, and the largest number that a request may name.
const LINES: usize = 100;
const MOST: usize = 100_000;

#[derive(Debug, PartialEq, Eq)]
struct Query {
    filter: Filter,
    lines: usize,
    follow: bool,
    json: bool,
}

impl Query {
    /// Parses the query by hand, because `tenant` and `not` may occur more than once.
    fn parse(query: &str) -> Result<Self, ApiError> {
        let mut parsed = Query {
            filter: Filter::default(),
            lines: LINES,
            follow: false,
            json: false,
        };
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            let value = percent_decode_str(value).decode_utf8_lossy();
            let bad = || ApiError::bad(format!("{key}={value} is not understood"));
            match key {
                "tenant" | "not" => {
                    let name = TenantName::parse(&value);
                    let name = name.map_err(ApiError::bad)?;
                    if key == "not" {
                        parsed.filter.not.push(name);
                    } else {
                        parsed.filter.tenants.push(name);
                    }
                }
                "n" => parsed.lines = value.parse::<usize>().map_err(|_| bad())?.min(MOST),
                "level" => {
                    let level = <Level as clap::ValueEnum>::from_str(&value, true);
                    parsed.filter.level = Some(level.map_err(|_| bad())?);
                }
                "follow" => parsed.follow = flag(&value).ok_or_else(bad)?,
                "format" => match value.as_ref() {
                    "json" => parsed.json = true,
                    "text" => parsed.json = false,
                    _ => return Err(bad()),
                },
                _ => return Err(bad()),
            }
        }
        Ok(parsed)
    }
}

/// Parses any query, and panics when the result is not within its bounds. For fuzzing.
pub(super) fn check_parsing(query: &str) {
    if let Ok(query) = Query::parse(query) {
        assert!(query.lines <= MOST);
    }
}

/// Parses a yes or no in a query.
pub(super) fn flag(value: &str) -> Option<bool> {
    match value {
        "1" | "true" | "" => Some(true),
        "0" | "false" => Some(false),
        _ => None,
    }
}

/// Answers with the last lines, and with new lines as they come when asked to follow.
pub(super) async fn lines(
    State(app): State<App>,
    Extension(peer): Extension<Peer>,
    RawQuery(query): RawQuery,
) -> Result<Response, ApiError> {
    let query = Query::parse(query.as_deref().unwrap_or_default())?;
    let snapshot = app.context.fleet.snapshot();
    for name in query.filter.tenants.iter().chain(&query.filter.not) {
        if !snapshot
            .tenants
            .iter()
            .any(|tenant| tenant.name == name.as_str())
        {
            return Err(ApiError::no_tenant(name));
        }
    }
    let form = if query.json {
        Form::Json
    } else {
        Form::Text(TextEncoder::default())
    };
    let kind = if query.json {
        "application/x-ndjson"
    } else {
        "text/plain; charset=utf-8"
    };
    let permit = if query.follow {
        Some(app.stream()?)
    } else {
        None
    };
    // Megabytes of lines may become text here, which would block the event loop.
    let gathered = tokio::task::spawn_blocking(move || {
        let (tail, subscription) = if query.follow {
            let (tail, subscription) = app.context.logs.follow(query.filter, query.lines);
            (tail, Some(subscription))
        } else {
            (app.context.logs.tail(&query.filter, query.lines), None)
        };
        (form.all(&tail), subscription, form)
    });
    let (tail, subscription, form) = gathered.await.map_err(ApiError::internal)?;
    let body = match (subscription, permit) {
        (Some(subscription), Some(permit)) => {
            peer.patience().be_long();
            follow(tail, subscription, form, permit)
        }
        _ => Body::from(tail),
    };
    Ok(([(CONTENT_TYPE, kind)], body).into_response())
}

enum Form {
    Json,
    Text(TextEncoder),
}

impl Form {
    fn all(&self, lines: &[Bytes]) -> Bytes {
        let mut out = Vec::new();
        for line in lines {
            self.append(line, &mut out);
        }
        out.into()
    }

    fn append(&self, lines: &[u8], out: &mut Vec<u8>) {
        match self {
            Form::Json => out.extend_from_slice(lines),
            Form::Text(text) => {
                lines
                    .split_inclusive(|byte| *byte == b'\n')
                    .for_each(|line| text.encode(line, out));
            }
        }
    }
}

fn follow(
    tail: Bytes,
    mut subscription: Subscription,
    form: Form,
    permit: OwnedSemaphorePermit,
) -> Body {
    let (mut feed, body) = stream::channel(permit);
    tokio::spawn(async move {
        // Send the tail at once, even when empty, so that the client receives the head of the answer.
        let mut bytes = tail;
        while feed.send(bytes).await {
            bytes = match feed.unless_gone(subscription.next()).await {
                Some(Followed::Lines(lines)) => form.all(&[lines]),
                Some(Followed::Lost(count)) => lost(&form, count),
                None => break,
            };
        }
    });
    body
}

/// Returns a notice, in the form of a line, that `count` lines are missing here.
fn lost(form: &Form, count: u64) -> Bytes {
    let text = format!("{count} lines came faster than they were read here, and are not shown");
    form.all(&[crate::logs::notice(&text)])
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn a_query_is_taken_whole_or_refused() {
        let query =
            Query::parse("tenant=acme&tenant=globex&not=hooli&n=7&level=warn&follow=1&format=json")
                .unwrap();
        assert_eq!((query.filter.tenants.len(), query.filter.not.len()), (2, 1));
        assert_eq!(query.filter.level, Some(Level::Warn));
        assert_eq!((query.lines, query.follow, query.json), (7, true, true));
        for bad in [
            "tenant=A",
            "not=A",
            "n=x",
            "level=loud",
            "follow=maybe",
            "format=xml",
            "other=1",
            "tenant=%00",
        ] {
            assert!(Query::parse(bad).is_err(), "{bad}");
        }
    }
}
