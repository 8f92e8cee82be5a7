//! What a caller is told when a request fails: one status, one stable code, one sentence.
//!
//! Every 4xx and 5xx of the API, the router's own included, is an [`Error`] and so has the body
//! `{"code", "message", "details"?}`. Codes are matched on by clients and never change; messages are for people. Database
//! failures are classified here and nowhere else: a broken rule of the schema is the caller's (409, 422), a lost server is
//! 503 with `Retry-After`, and what is left is logged and answered 500 without its text.

use std::borrow::Cow;

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use postgres::error::SqlState;
use serde::Serialize;

use crate::db::DbError;

/// Seconds after which a caller may try again when the database gave no better figure.
const RETRY_AFTER_SECONDS: u64 = 1;

/// A refused or failed request.
#[derive(Clone, Debug)]
pub struct Error {
    status: StatusCode,
    code: &'static str,
    message: Cow<'static, str>,
    /// Boxed because few errors have any, and every result of the API is as large as this.
    details: Option<Box<Details>>,
    retry_after_seconds: Option<u64>,
}

type Details = serde_json::Map<String, serde_json::Value>;

/// The body of every error answer.
#[derive(Serialize)]
struct Body<'a> {
    code: &'a str,
    message: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    details: Option<&'a Details>,
}

/// What every refused or failed request is answered with.
// As `Body`, in the words of the OpenAPI document.
#[derive(utoipa::ToSchema)]
#[allow(dead_code, reason = "describes; never built")]
pub struct ErrorResponse {
    /// Stable, in snake_case; to be matched on.
    code: String,
    /// For people.
    message: String,
    /// More about it, by the code.
    details: Option<std::collections::BTreeMap<String, serde_json::Value>>,
}

impl Error {
    /// An error with a status, a stable snake_case code and a sentence for people.
    pub fn new(
        status: StatusCode,
        code: &'static str,
        message: impl Into<Cow<'static, str>>,
    ) -> Self {
        Self {
            status,
            code,
            message: message.into(),
            details: None,
            retry_after_seconds: None,
        }
    }

    /// 400: the request is well-formed but says something the API cannot act on.
    pub fn bad_request(code: &'static str, message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, code, message)
    }

    /// 401: no PAK, or none this broker knows.
    pub fn unauthorized() -> Self {
        Self::new(
            StatusCode::UNAUTHORIZED,
            "unauthorized",
            "a valid PAK is required in the Authorization header",
        )
    }

    /// 403: the principal may not do this.
    pub fn forbidden(code: &'static str, message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(StatusCode::FORBIDDEN, code, message)
    }

    /// 404: what the request names does not exist.
    pub fn not_found(code: &'static str, message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(StatusCode::NOT_FOUND, code, message)
    }

    /// 409: it exists already.
    pub fn conflict(code: &'static str, message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(StatusCode::CONFLICT, code, message)
    }

    /// 422 `invalid_value`: a value that no column can hold (too long, or with a NUL byte).
    pub fn invalid_value(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid_value", message)
    }

    /// 500: our own fault. The reason belongs in the log, not here.
    pub fn internal() -> Self {
        Self::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "internal_error",
            "the request failed inside the broker",
        )
    }

    /// 503 `database_unavailable` with `Retry-After`.
    pub fn unavailable(retry_after_seconds: u64) -> Self {
        let mut error = Self::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "database_unavailable",
            "the database is away, busy, or takes no writes at the moment; try again",
        );
        error.retry_after_seconds = Some(retry_after_seconds.max(1));
        error
    }

    /// 503 `too_busy` with `Retry-After`: the broker has as much in hand as it may.
    pub fn busy(message: &'static str) -> Self {
        let mut error = Self::new(StatusCode::SERVICE_UNAVAILABLE, "too_busy", message);
        error.retry_after_seconds = Some(RETRY_AFTER_SECONDS);
        error
    }

    /// Adds one entry to `details`.
    #[must_use]
    pub fn detail(mut self, key: &str, value: impl Into<serde_json::Value>) -> Self {
        self.details
            .get_or_insert_default()
            .insert(key.to_owned(), value.into());
        self
    }

    /// Tells the caller to try again after so many seconds.
    #[must_use]
    pub fn retry_after(mut self, seconds: u64) -> Self {
        self.retry_after_seconds = Some(seconds);
        self
    }

    /// The stable code.
    pub fn code(&self) -> &'static str {
        self.code
    }

    /// The HTTP status.
    pub fn status(&self) -> StatusCode {
        self.status
    }
}

impl IntoResponse for Error {
    fn into_response(self) -> Response {
        let body = Body {
            code: self.code,
            message: &self.message,
            details: self.details.as_deref(),
        };
        // Three strings and a map with string keys always serialise.
        let json = serde_json::to_vec(&body).unwrap_or_default();
        let mut response = (
            self.status,
            [(
                header::CONTENT_TYPE,
                HeaderValue::from_static("application/json"),
            )],
            json,
        )
            .into_response();
        if let Some(seconds) = self.retry_after_seconds {
            response
                .headers_mut()
                .insert(header::RETRY_AFTER, seconds.into());
        }
        response
    }
}

impl From<DbError> for Error {
    fn from(error: DbError) -> Self {
        match error {
            DbError::Unavailable {
                retry_after,
                reason,
            } => {
                tracing::debug!(reason, "the database is unavailable");
                Self::unavailable(retry_after.as_secs())
            }
            DbError::Postgres(error) => from_postgres(&error),
            DbError::Panicked | DbError::Refused(_) | DbError::Setup(_) => {
                tracing::error!(%error, "a request failed");
                Self::internal()
            }
        }
    }
}

/// The answer to a statement the server refused.
fn from_postgres(error: &postgres::Error) -> Error {
    let Some(server) = error.as_db_error() else {
        tracing::error!(%error, "a statement failed in the client");
        return Error::internal();
    };
    let state = server.code();
    let constraint = server.constraint().unwrap_or_default();
    let unprocessable =
        |code, message: &'static str| Error::new(StatusCode::UNPROCESSABLE_ENTITY, code, message);
    if *state == SqlState::UNIQUE_VIOLATION {
        return Error::conflict("unique_violation", "this exists already")
            .detail("constraint", constraint);
    }
    if *state == SqlState::FOREIGN_KEY_VIOLATION {
        return unprocessable(
            "foreign_key_violation",
            "the request refers to something that does not exist",
        )
        .detail("constraint", constraint);
    }
    if *state == SqlState::CHECK_VIOLATION {
        return unprocessable("check_violation", "a value is outside its allowed range");
    }
    if *state == SqlState::NOT_NULL_VIOLATION {
        return unprocessable("not_null_violation", "a required value is missing");
    }
    if *state == SqlState::STRING_DATA_RIGHT_TRUNCATION {
        return Error::invalid_value("a value is too long");
    }
    if *state == SqlState::CHARACTER_NOT_IN_REPERTOIRE {
        return Error::invalid_value("a value contains a NUL byte");
    }
    match &state.code()[..2] {
        // Out of resources, lock or serialisation conflicts, a prepared statement that no longer fits its table inside a
        // transaction: the same request may well succeed in a moment. (A lost server is never seen here.)
        "53" | "40" | "55" | "57" | "0A" | "26" => {
            tracing::warn!(sqlstate = state.code(), error = %server, "the database refused work");
            Error::unavailable(RETRY_AFTER_SECONDS)
        }
        _ => {
            tracing::error!(sqlstate = state.code(), error = %server, "a statement failed");
            Error::internal()
        }
    }
}
