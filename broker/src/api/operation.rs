//! Runs one request, from the socket to the handler and back.

use std::pin::Pin;
use std::time::Instant;

use axum::extract::rejection::RawPathParamsRejection;
use axum::extract::{FromRequestParts, Query, RawPathParams, Request, State};
use axum::handler::Handler;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::SemaphorePermit;
use uuid::Uuid;

use super::bounded_json::BoundedJson;
use super::request_body::{self, BodyProgress, IncomingBody};
use super::{audit, deserialize_errors, response_budget};
use crate::app::App;
use crate::auth::{self, Principal};
use crate::db::Conn;
use crate::error::Error;
use crate::pak::{self, Pak};

/// Largest body of most requests, in bytes; clients may rely on 2 MiB.
const BODY: usize = 4 * 1024 * 1024;

/// Largest body of requests that carry whole bundles, in bytes.
const BUNDLE: usize = 16 * 1024 * 1024;

/// Work of an operation; a plain function, so that it captures nothing but the request.
pub(super) type Work = fn(&ApiRequest, &mut Conn) -> Result<Reply, Error>;

/// A request of an authenticated caller.
#[derive(Clone)]
pub(super) struct ApiRequest {
    /// State of the process: configuration, authentication cache, PAKs.
    pub(super) app: App,
    /// Authenticated caller.
    pub(super) principal: Principal,
    request: Captured,
    /// Moment at which the request had arrived.
    began: Instant,
}

/// Content of a request before authentication.
#[derive(Clone)]
struct Captured {
    /// True for HEAD: GET routes answer HEAD too, and it must change nothing.
    only_looks: bool,
    headers: HeaderMap,
    uri: Uri,
    path: Result<Vec<(String, String)>, Error>,
    body: Result<Bytes, Error>,
}

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
pub(super) struct DeferredReply(Pin<Box<dyn Future<Output = Result<Reply, Error>> + Send>>);

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
            // `run` resolves this variant once; an answer deferred again is a bug.
            Self::Later(_) => Error::internal().into_response(),
        }
    }
}

/// An operation as the handler of a route.
#[derive(Clone, Copy)]
pub(super) struct Operation {
    work: Work,
    /// Largest number of bytes of the body; `None` for an operation without a body.
    body: Option<usize>,
}

/// Makes an operation that takes no body; a body that comes anyway is dropped.
pub(super) fn plain(work: Work) -> Operation {
    Operation { work, body: None }
}

/// Makes an operation that takes a body of at most [`BODY`] bytes.
pub(super) fn with_body(work: Work) -> Operation {
    Operation {
        work,
        body: Some(BODY),
    }
}

/// Makes an operation that takes a bundle of at most [`BUNDLE`] bytes.
pub(super) fn with_bundle(work: Work) -> Operation {
    Operation {
        work,
        body: Some(BUNDLE),
    }
}

impl Handler<(), App> for Operation {
    type Future = Pin<Box<dyn Future<Output = Response> + Send>>;

    fn call(self, request: Request, app: App) -> Self::Future {
        Box::pin(run(app, request, self))
    }
}

/// Answers a known path with an unknown method; authentication comes first here too.
pub(super) async fn method_not_allowed(State(app): State<App>, request: Request) -> Response {
    let refuse = plain(|_, _| {
        Err(Error::new(
            StatusCode::METHOD_NOT_ALLOWED,
            "method_not_allowed",
            "this path does not take this method",
        ))
    });
    run(app, request, refuse).await
}

/// Captures a request, and runs the operation on one connection.
async fn run(app: App, request: Request, operation: Operation) -> Response {
    let (mut parts, body) = request.into_parts();
    let path = match RawPathParams::from_request_parts(&mut parts, &app).await {
        Ok(params) => Ok(params
            .iter()
            .map(|(k, v)| (k.to_owned(), v.to_owned()))
            .collect()),
        Err(RawPathParamsRejection::InvalidUtf8InPathParam(_)) => {
            Err(bad_request("the path is not UTF-8"))
        }
        // The route has no parameters.
        Err(_) => Ok(Vec::new()),
    };
    if !parts.headers.contains_key(header::AUTHORIZATION) {
        return Error::unauthorized().into_response();
    }
    let mut request = Captured {
        only_looks: parts.method == Method::HEAD,
        headers: parts.headers,
        uri: parts.uri,
        path,
        body: Ok(Bytes::new()),
    };
    let db = app.db.clone();
    let mut room = None;
    match operation.body {
        Some(_) if let Some(refused) = request_body::encoded(&request.headers) => {
            request.body = Err(refused);
        }
        // Without a well-formed PAK the body is not read, because the answer is 401.
        Some(most) if is_pak(&request.headers) => {
            match IncomingBody::new(&request.headers, body, most)
                .of_anybody()
                .await
            {
                Ok(BodyProgress::Whole(bytes)) => request.body = Ok(bytes),
                Ok(BodyProgress::More(arriving)) => match admit(&app, request, arriving).await {
                    Ok((known, permit)) => (request, room) = (known, permit),
                    Err(refused) => return refused.into_response(),
                },
                // Answered later, because authentication comes first.
                Err(error) => request.body = Err(error),
            }
        }
        Some(_) => {}
        None => request_body::discard(&request.headers, body).await,
    }
    let began = Instant::now();
    let outcome = db
        .run(move |conn| {
            let principal = authenticate(&app, &request, conn)?;
            let call = ApiRequest {
                app,
                principal,
                request,
                began,
            };
            let done = call.work(conn, operation.work);
            call.wake_for_events(conn);
            Ok::<_, Error>((principal, done))
        })
        .await;
    match outcome {
        Ok((principal, done)) => {
            let answer = match done {
                Ok(Reply::Later(DeferredReply(answer))) => answer.await.into_response(),
                done => done.into_response(),
            };
            // A deferred answer holds the body too.
            drop(room);
            let mut response = response_budget::held(answer);
            // For the access log.
            response.extensions_mut().insert(principal);
            response
        }
        Err(error) => error.into_response(),
    }
}

/// Authenticates the caller of a large body, and reads the rest of the body.
async fn admit(
    app: &App,
    request: Captured,
    arriving: IncomingBody,
) -> Result<(Captured, Option<SemaphorePermit<'static>>), Error> {
    let caller = app.clone();
    let mut request = app
        .db
        .run(move |conn| authenticate(&caller, &request, conn).map(|_| request))
        .await?;
    let patience = app.config.database.acquire_timeout;
    match arriving.of_known(patience).await {
        Ok((bytes, room)) => {
            request.body = Ok(bytes);
            Ok((request, Some(room)))
        }
        Err(error) if error.status() == StatusCode::SERVICE_UNAVAILABLE => Err(error),
        Err(error) => {
            request.body = Err(error);
            Ok((request, None))
        }
    }
}

/// Returns true when the Authorization header has the form of a PAK.
fn is_pak(headers: &HeaderMap) -> bool {
    headers
        .get(header::AUTHORIZATION)
        .is_some_and(|value| auth::pak_hash(value.as_bytes()).is_some())
}

/// Makes a 400 for a request that cannot be read.
pub(super) fn bad_request(message: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::bad_request("bad_request", message)
}

/// Returns the caller, or 401.
fn authenticate(app: &App, request: &Captured, db: &mut Conn) -> Result<Principal, Error> {
    let Some(value) = request.headers.get(header::AUTHORIZATION) else {
        return Err(Error::unauthorized());
    };
    let found = match auth::pak_hash(value.as_bytes()) {
        Some(hash) => auth::resolve(&app.auth, db, &hash)?,
        None => None,
    };
    match found {
        Some(principal) => Ok(principal),
        None => {
            audit::refused_pak(db, request.uri.path(), &request.headers);
            Err(Error::unauthorized())
        }
    }
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
    fn work(
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

    fn wake_for_events(&self, conn: &mut Conn) {
        if conn.take_wrote_events() {
            self.app.jobs.wake(crate::jobs::Job::Webhooks);
        }
    }

    /// Mints a PAK in the configured format.
    pub(super) fn mint(&self) -> Result<Pak, Error> {
        let pak = &self.app.config.pak;
        let format = pak::PakFormat {
            prefix: pak.prefix.clone(),
            short_token_prefix: pak.short_token_prefix.clone(),
            short_token_length: pak.short_token_length,
            long_token_length: pak.long_token_length,
        };
        Pak::mint(&format).map_err(|error| {
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
            .map_err(|_| bad_request("the path is not UTF-8"))?;
        params
            .iter()
            .find_map(|(key, value)| (key == name).then_some(value.as_str()))
            // A name that the route does not have is a bug of the handler.
            .ok_or_else(Error::internal)
    }

    /// Returns a path parameter as a UUID; otherwise 400.
    pub(super) fn uuid(&self, name: &str) -> Result<Uuid, Error> {
        Uuid::parse_str(self.path(name)?)
            .map_err(|_| bad_request(format!("`{name}` in the path is not a UUID")))
    }

    pub(super) fn id(&self) -> Result<Uuid, Error> {
        self.uuid("id")
    }

    /// Parses the query; otherwise 400.
    pub(super) fn query<T: DeserializeOwned>(&self) -> Result<T, Error> {
        Query::try_from_uri(&self.request.uri)
            .map(|Query(query)| query)
            .map_err(|error| bad_request(deserialize_errors::of_query(&error.body_text())))
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
}

impl ApiRequest {
    /// Parses the body as JSON of any shape, with bounded memory.
    pub(super) fn value(&self) -> Result<serde_json::Value, Error> {
        self.json().map(|BoundedJson(value)| value)
    }
}

/// Parses JSON: 400 when it is not JSON, 422 when its shape is wrong.
pub(super) fn parse_json<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Error> {
    serde_json::from_slice(bytes).map_err(|error| match error.classify() {
        serde_json::error::Category::Data => Error::new(
            StatusCode::UNPROCESSABLE_ENTITY,
            "unprocessable",
            format!(
                "the body has the wrong shape: {}",
                deserialize_errors::of_json(&error)
            ),
        ),
        _ => bad_request(format!(
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
