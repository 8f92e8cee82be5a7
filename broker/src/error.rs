//! The answer to a failed request: one status, one stable code, one sentence.
//!
//! Every 4xx and 5xx of the API, also the router's own, is an [`Error`] and so has the body
//! `{"code", "message", "details"?}`. Clients match on codes, so codes never change; messages are for people. Only this
//! module classifies database failures: a broken rule of the schema is the caller's error (409, 422), and a lost server
//! is 503 with `Retry-After`. All others are logged and answered 500 without their text.

use std::borrow::Cow;

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use postgres::error::SqlState;
use serde::Serialize;

use crate::db::DbError;
use crate::domain::provisioning::ProvisioningError;
use crate::domain::report::ReportRefusal;
use crate::domain::text::InvalidText;

/// Seconds until a caller may try again, when the database gave no better figure.
const RETRY_AFTER_SECONDS: u64 = 1;

/// A refused or failed request.
#[derive(Clone, Debug)]
pub struct Error {
    status: StatusCode,
    code: &'static str,
    message: Cow<'static, str>,
    /// Boxed because few errors have details, and every result of the API is as large as an error.
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

/// The body of every refused or failed request.
// Has the fields of `Body`, for the OpenAPI document.
#[derive(utoipa::ToSchema)]
#[allow(dead_code, reason = "describes; never built")]
pub struct ErrorResponse {
    /// The stable code in snake_case, for programs.
    code: String,
    /// The message, for people.
    message: String,
    /// Further data, depending on the code.
    details: Option<std::collections::BTreeMap<String, serde_json::Value>>,
}

impl Error {
    /// Returns an error with a status, a stable snake_case code and a sentence for people.
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

    /// Returns a 400: the request is well-formed, but the API cannot act on it.
    pub fn bad_request(code: &'static str, message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, code, message)
    }

    /// Returns a 400 `bad_request`: the request cannot be read.
    pub fn unreadable(message: impl Into<Cow<'static, str>>) -> Self {
        Self::bad_request("bad_request", message)
    }

    /// Returns a 401: the request has no PAK, or a PAK that is not valid.
    pub fn unauthorized() -> Self {
        Self::new(
            StatusCode::UNAUTHORIZED,
            "unauthorized",
            "a valid PAK is required in the Authorization header",
        )
    }

    /// Returns a 429 with `Retry-After`: the PAK is not valid, like many before it from the same address.
    pub fn too_many_failures(retry_after_seconds: u64) -> Self {
        Self::new(
            StatusCode::TOO_MANY_REQUESTS,
            "too_many_failures",
            "too many requests without a valid PAK came from this address; try again later",
        )
        .retry_after(retry_after_seconds)
    }

    /// Returns a 403: the principal may not do this.
    pub fn forbidden(code: &'static str, message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(StatusCode::FORBIDDEN, code, message)
    }

    /// Returns a 404: the resource does not exist.
    pub fn not_found(code: &'static str, message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(StatusCode::NOT_FOUND, code, message)
    }

    /// Returns the 404 of an unknown path.
    pub fn no_path() -> Self {
        Self::not_found("not_found", "there is nothing at this path")
    }

    /// Returns the 405 of a known path.
    pub fn no_method() -> Self {
        Self::new(
            StatusCode::METHOD_NOT_ALLOWED,
            "method_not_allowed",
            "this path does not take this method",
        )
    }

    /// Returns a 409: the resource exists already.
    pub fn conflict(code: &'static str, message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(StatusCode::CONFLICT, code, message)
    }

    /// Returns a 422: the request is understood, but cannot be stored.
    pub fn unprocessable(code: &'static str, message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, code, message)
    }

    /// Returns a 422 `invalid_value`: no column can hold the value, because it is too long or has a NUL byte.
    pub fn invalid_value(message: impl Into<Cow<'static, str>>) -> Self {
        Self::unprocessable("invalid_value", message)
    }

    /// Returns a 500: the broker failed. The reason belongs in the log, not here.
    pub fn internal() -> Self {
        Self::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "internal_error",
            "the request failed inside the broker",
        )
    }

    /// Returns a 503 `database_unavailable` with `Retry-After`.
    pub fn unavailable(retry_after_seconds: u64) -> Self {
        let mut error = Self::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "database_unavailable",
            "the database is away, busy, or takes no writes at the moment; try again",
        );
        error.retry_after_seconds = Some(retry_after_seconds.max(1));
        error
    }

    /// Returns a 503 `too_busy` with `Retry-After`: the broker has as much work as it may take.
    pub fn busy(message: &'static str) -> Self {
        let mut error = Self::new(StatusCode::SERVICE_UNAVAILABLE, "too_busy", message);
        error.retry_after_seconds = Some(RETRY_AFTER_SECONDS);
        error
    }

    /// Returns the 503 of a broker that is not ready yet, with `Retry-After`.
    pub fn starting() -> Self {
        Self::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "database_unavailable",
            "the broker is starting",
        )
        .retry_after(RETRY_AFTER_SECONDS)
    }

    /// Adds one entry to `details`.
    #[must_use]
    pub fn detail(mut self, key: &str, value: impl Into<serde_json::Value>) -> Self {
        self.details
            .get_or_insert_default()
            .insert(key.to_owned(), value.into());
        self
    }

    /// Tells the caller to try again after this many seconds.
    #[must_use]
    pub fn retry_after(mut self, seconds: u64) -> Self {
        self.retry_after_seconds = Some(seconds);
        self
    }

    /// Returns the stable code.
    pub fn code(&self) -> &'static str {
        self.code
    }

    /// Returns the HTTP status.
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
        // Serialising strings and a map with string keys cannot fail.
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

impl From<InvalidText> for Error {
    fn from(InvalidText(message): InvalidText) -> Self {
        Self::invalid_value(message)
    }
}

impl From<ProvisioningError> for Error {
    fn from(refusal: ProvisioningError) -> Self {
        let text = refusal.to_string();
        match refusal {
            ProvisioningError::UnknownGenerator => Self::bad_request("invalid_generator_id", text),
            ProvisioningError::NoAgent => Self::not_found("agent_not_found", text),
            ProvisioningError::NoGenerator => Self::not_found("generator_not_found", text),
            ProvisioningError::Db(error) => error.into(),
        }
    }
}

impl From<ReportRefusal> for Error {
    fn from(refusal: ReportRefusal) -> Self {
        let text = refusal.to_string();
        match refusal {
            ReportRefusal::Text(invalid) => invalid.into(),
            ReportRefusal::HealthRecord(_) => Self::unprocessable("invalid_health_record", text),
            ReportRefusal::UnknownObject(constraint) => {
                Self::unprocessable("foreign_key_violation", text).detail("constraint", constraint)
            }
            ReportRefusal::NotAssociated => Self::forbidden("agent_not_associated", text),
            ReportRefusal::Db(error) => error.into(),
        }
    }
}

/// Returns the answer to a statement that the server refused.
fn from_postgres(error: &postgres::Error) -> Error {
    let Some(server) = error.as_db_error() else {
        tracing::error!(%error, "a statement failed in the client");
        return Error::internal();
    };
    let state = server.code();
    let constraint = server.constraint().unwrap_or_default();
    if *state == SqlState::UNIQUE_VIOLATION {
        return Error::conflict("unique_violation", "this exists already")
            .detail("constraint", constraint);
    }
    if *state == SqlState::FOREIGN_KEY_VIOLATION {
        return Error::unprocessable(
            "foreign_key_violation",
            "the request refers to something that does not exist",
        )
        .detail("constraint", constraint);
    }
    if *state == SqlState::CHECK_VIOLATION {
        return Error::unprocessable("check_violation", "a value is outside its allowed range");
    }
    if *state == SqlState::NOT_NULL_VIOLATION {
        return Error::unprocessable("not_null_violation", "a required value is missing");
    }
    if *state == SqlState::STRING_DATA_RIGHT_TRUNCATION {
        return Error::invalid_value("a value is too long");
    }
    if *state == SqlState::CHARACTER_NOT_IN_REPERTOIRE {
        return Error::invalid_value("a value contains a NUL byte");
    }
    match &state.code()[..2] {
        // The server lacks resources, has a lock or serialisation conflict, or a prepared statement no longer fits its
        // table inside a transaction: the same request may well succeed in a moment. (A lost server is handled before.)
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
