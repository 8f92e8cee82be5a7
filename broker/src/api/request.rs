//! The request of an authenticated caller, as a handler reads it.

use std::time::Instant;

use axum::extract::Query;
use axum::http::{HeaderMap, HeaderName, StatusCode, Uri, header};
use bytes::Bytes;
use serde::de::DeserializeOwned;
use uuid::Uuid;

use super::bounded_json::BoundedJson;
use super::deserialize_errors;
use super::reply::Reply;
use super::request_body;
use crate::app::App;
use crate::auth::{ClientAddress, Principal};
use crate::config::pak_format;
use crate::db::Conn;
use crate::error::Error;
use crate::jobs::schedule::Job;
use crate::pak::Pak;

/// A request of an authenticated caller.
#[derive(Clone)]
pub(super) struct ApiRequest {
    /// State of the process: configuration, authentication cache, PAKs.
    pub(super) app: App,
    /// Authenticated caller.
    pub(super) principal: Principal,
    pub(super) request: Captured,
    /// Moment at which the request had arrived.
    pub(super) began: Instant,
}

/// Content of a request before authentication.
#[derive(Clone)]
pub(super) struct Captured {
    /// Address of the client.
    pub(super) client: ClientAddress,
    /// True for HEAD: GET routes answer HEAD too, and it must change nothing.
    pub(super) only_looks: bool,
    pub(super) headers: HeaderMap,
    pub(super) uri: Uri,
    pub(super) path: Result<Vec<(String, String)>, Error>,
    pub(super) body: Result<Bytes, Error>,
}

impl ApiRequest {
    /// Runs a further step on a connection, from within [`Reply::later`]; refused when the request's time is over.
    pub(super) async fn step(
        self,
        work: impl FnOnce(&Self, &mut Conn) -> Result<Reply, Error> + Send + 'static,
    ) -> Result<Reply, Error> {
        self.in_time()?;
        let db = self.app.db.clone();
        db.run(move |conn| {
            let done = self.work(conn, work);
            self.wake_for_events(conn);
            done
        })
        .await
    }

    /// Runs work on a connection, which is read-only for a HEAD. A GET operation that writes must check
    /// [`Self::only_looks`], otherwise its HEAD answers 500; the tests of the permission matrix detect that.
    pub(super) fn work(
        &self,
        conn: &mut Conn,
        work: impl FnOnce(&Self, &mut Conn) -> Result<Reply, Error>,
    ) -> Result<Reply, Error> {
        if self.only_looks() {
            conn.only_reads();
        }
        work(self, conn)
    }

    /// Returns true when the request is a HEAD.
    pub(super) fn only_looks(&self) -> bool {
        self.request.only_looks
    }

    /// Returns 503 once the request's time is over. Nothing may be written then, because the caller is told that the
    /// request failed.
    pub(super) fn in_time(&self) -> Result<(), Error> {
        if self.began.elapsed() < self.app.config.http.request_timeout {
            return Ok(());
        }
        Err(Error::busy(
            "the request took longer than it may; try again shortly",
        ))
    }

    /// Wakes the webhook job when the work has written events.
    pub(super) fn wake_for_events(&self, conn: &mut Conn) {
        if conn.take_wrote_events() {
            self.app.jobs.wake(Job::Webhooks);
        }
    }

    /// Mints a PAK in the configured format.
    pub(super) fn mint(&self) -> Result<Pak, Error> {
        Pak::mint(&pak_format(&self.app.config)).map_err(|error| {
            tracing::error!(%error, "no PAK could be minted");
            Error::internal()
        })
    }

    /// Returns a path parameter as text, percent-decoded.
    pub(super) fn path(&self, name: &str) -> Result<&str, Error> {
        let params = self
            .request
            .path
            .as_ref()
            .map_err(|_| Error::unreadable("the path is not UTF-8"))?;
        params
            .iter()
            .find_map(|(key, value)| (key == name).then_some(value.as_str()))
            // A name that the route does not have is a bug of the handler.
            .ok_or_else(Error::internal)
    }

    /// Returns a path parameter as a UUID; otherwise 400.
    pub(super) fn uuid(&self, name: &str) -> Result<Uuid, Error> {
        Uuid::parse_str(self.path(name)?)
            .map_err(|_| Error::unreadable(format!("`{name}` in the path is not a UUID")))
    }

    pub(super) fn id(&self) -> Result<Uuid, Error> {
        self.uuid("id")
    }

    /// Parses the query; otherwise 400.
    pub(super) fn query<T: DeserializeOwned>(&self) -> Result<T, Error> {
        Query::try_from_uri(&self.request.uri)
            .map(|Query(query)| query)
            .map_err(|error| Error::unreadable(deserialize_errors::of_query(&error.body_text())))
    }

    /// Returns a header's value, if it is present and text.
    pub(super) fn header(&self, name: HeaderName) -> Option<&str> {
        self.request.headers.get(name)?.to_str().ok()
    }

    /// Returns the body as received; otherwise 400, 408 or 413.
    pub(super) fn body(&self) -> Result<&Bytes, Error> {
        self.request.body.as_ref().map_err(Error::clone)
    }

    /// Parses the body as JSON: 415 for another content type, 400 when it is not JSON, 422 when its shape is wrong.
    pub(super) fn json<T: DeserializeOwned>(&self) -> Result<T, Error> {
        if !self.header(header::CONTENT_TYPE).is_some_and(is_json) {
            return Err(Error::new(
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "unsupported_media_type",
                "the body must be sent as application/json",
            ));
        }
        parse_json(self.body()?)
    }

    /// Parses the body as JSON of any shape, with bounded memory.
    pub(super) fn value(&self) -> Result<serde_json::Value, Error> {
        self.json().map(|BoundedJson(value)| value)
    }
}

/// Parses JSON: 400 when it is not JSON, 422 when its shape is wrong.
pub(super) fn parse_json<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Error> {
    serde_json::from_slice(bytes).map_err(|error| match error.classify() {
        serde_json::error::Category::Data => Error::unprocessable(
            "unprocessable",
            format!(
                "the body has the wrong shape: {}",
                deserialize_errors::of_json(&error)
            ),
        ),
        _ => Error::unreadable(format!(
            "the body is not JSON: {}",
            request_body::wrong_with_json(bytes, &error)
        )),
    })
}

/// Returns true for `application/json` and `application/…+json`, with any parameters.
fn is_json(content_type: &str) -> bool {
    let essence = content_type.split(';').next().unwrap_or_default().trim();
    let essence = essence.to_ascii_lowercase();
    essence
        .strip_prefix("application/")
        .is_some_and(|subtype| subtype == "json" || subtype.ends_with("+json"))
}

#[cfg(test)]
mod tests {
    use super::is_json;

    #[test]
    fn json_is_known_by_its_type_whatever_its_parameters() {
        for yes in [
            "application/json",
            "Application/JSON; charset=utf-8",
            "application/merge-patch+json",
        ] {
            assert!(is_json(yes), "{yes}");
        }
        for no in ["", "text/json", "application/yaml", "application/jsonx"] {
            assert!(!is_json(no), "{no}");
        }
    }
}
