//! The answer of a handler.

use std::pin::Pin;

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use crate::error::Error;

/// A successful answer, serialised on the thread that does the work, so that the event loop need not.
#[derive(Debug)]
pub(super) enum Reply {
    /// JSON body.
    Json(StatusCode, Vec<u8>),
    /// Stored YAML text, byte for byte.
    Yaml(String),
    Empty(StatusCode),
    /// Answer that is made without the connection, which other requests can use meanwhile; see [`Reply::later`].
    Later(DeferredReply),
}

/// An answer that has yet to be made.
pub(super) struct DeferredReply(
    pub(super) Pin<Box<dyn Future<Output = Result<Reply, Error>> + Send>>,
);

impl std::fmt::Debug for DeferredReply {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Later")
    }
}

impl Reply {
    /// Returns 200 with a JSON body.
    pub(super) fn ok(body: &impl Serialize) -> Result<Self, Error> {
        Self::json(StatusCode::OK, body)
    }

    /// Returns 201 with a JSON body.
    pub(super) fn created(body: &impl Serialize) -> Result<Self, Error> {
        Self::json(StatusCode::CREATED, body)
    }

    /// Returns 202 with a JSON body.
    pub(super) fn accepted(body: &impl Serialize) -> Result<Self, Error> {
        Self::json(StatusCode::ACCEPTED, body)
    }

    /// Returns 204.
    pub(super) fn no_content() -> Self {
        Self::Empty(StatusCode::NO_CONTENT)
    }

    /// Returns an answer that takes time but no connection: the handler releases its connection, and `answer` runs on
    /// the event loop.
    pub(super) fn later(
        answer: impl Future<Output = Result<Self, Error>> + Send + 'static,
    ) -> Self {
        Self::Later(DeferredReply(Box::pin(answer)))
    }

    fn json(status: StatusCode, body: &impl Serialize) -> Result<Self, Error> {
        serde_json::to_vec(body)
            .map(|json| Self::Json(status, json))
            .map_err(|error| {
                tracing::error!(%error, "an answer could not be serialised");
                Error::internal()
            })
    }
}

impl IntoResponse for Reply {
    fn into_response(self) -> Response {
        let typed = |kind| [(header::CONTENT_TYPE, HeaderValue::from_static(kind))];
        match self {
            Self::Json(status, json) => (status, typed("application/json"), json).into_response(),
            Self::Yaml(yaml) => (typed("application/yaml"), yaml).into_response(),
            Self::Empty(status) => status.into_response(),
            // `operation::run` resolves this variant once; an answer deferred again is a bug.
            Self::Later(_) => Error::internal().into_response(),
        }
    }
}
