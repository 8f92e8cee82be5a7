//! One request, from the socket to the handler and back.

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

use super::body::{self, Arriving, Read};
use super::value::Bounded;
use super::{large, record, wording};
use crate::app::App;
use crate::auth::{self, Principal};
use crate::db::Conn;
use crate::error::Error;
use crate::pak::{self, Pak};

/// Largest body of most requests; clients may count on 2 MiB.
const BODY: usize = 4 * 1024 * 1024;

/// Largest body of those that bring whole bundles.
const BUNDLE: usize = 16 * 1024 * 1024;

/// The work of one operation. Plain functions only, so that nothing is captured but what the request says.
pub(super) type Work = fn(&Call, &mut Conn) -> Result<Reply, Error>;

/// A captured request of an authenticated caller.
#[derive(Clone)]
pub(super) struct Call {
    /// The process's state: configuration, authentication cache, PAKs.
    pub(super) app: App,
    /// Who is calling.
    pub(super) principal: Principal,
    request: Captured,
    /// When it had arrived.
    began: Instant,
}

/// What a request says, before anybody knows who says it.
#[derive(Clone)]
struct Captured {
    /// HEAD: routes of GET answer it too, and it changes nothing.
    only_looks: bool,
    headers: HeaderMap,
    uri: Uri,
    path: Result<Vec<(String, String)>, Error>,
    body: Result<Bytes, Error>,
}

/// A successful answer, built where the work is done so that serialising is not the event loop's work.
#[derive(Debug)]
pub(super) enum Reply {
    /// A JSON body.
    Json(StatusCode, Vec<u8>),
    /// A stored YAML text, byte for byte.
    Yaml(String),
    /// No body.
    Empty(StatusCode),
    /// To be made without the connection, which somebody else can use meanwhile; see [`Reply::later`].
    Later(Later),
}

/// An answer still to be made.
pub(super) struct Later(Pin<Box<dyn Future<Output = Result<Reply, Error>> + Send>>);

impl std::fmt::Debug for Later {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Later")
    }
}

impl Reply {
    /// 200 with a JSON body.
    pub(super) fn ok(body: &impl Serialize) -> Result<Self, Error> {
        Self::json(StatusCode::OK, body)
    }

    /// 201 with a JSON body.
    pub(super) fn created(body: &impl Serialize) -> Result<Self, Error> {
        Self::json(StatusCode::CREATED, body)
    }

    /// 202 with a JSON body.
    pub(super) fn accepted(body: &impl Serialize) -> Result<Self, Error> {
        Self::json(StatusCode::ACCEPTED, body)
    }

    /// 204.
    pub(super) fn no_content() -> Self {
        Self::Empty(StatusCode::NO_CONTENT)
    }

    /// An answer that takes time but no connection: what the handler does on its connection ends here, and this runs on the
    /// event loop.
    pub(super) fn later(
        answer: impl Future<Output = Result<Self, Error>> + Send + 'static,
    ) -> Self {
        Self::Later(Later(Box::pin(answer)))
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
            // Made by `run`, once; what comes then is not put off again.
            Self::Later(_) => Error::internal().into_response(),
        }
    }
}

/// An operation as a route's handler.
#[derive(Clone, Copy)]
pub(super) struct Operation {
    work: Work,
    /// Most bytes of body, if it takes one.
    body: Option<usize>,
}

/// An operation that takes no body; one that comes anyway counts for nothing.
pub(super) fn plain(work: Work) -> Operation {
    Operation { work, body: None }
}

/// An operation that takes a body, at most [`BODY`] bytes.
pub(super) fn with_body(work: Work) -> Operation {
    Operation {
        work,
        body: Some(BODY),
    }
}

/// An operation that takes a whole bundle, at most [`BUNDLE`] bytes.
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

/// Answers a known path asked with an unknown method: 401 comes first here too.
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

/// Captures a request, and does the rest on one connection.
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
        // A route without parameters.
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
        Some(_) if let Some(refused) = body::encoded(&request.headers) => {
            request.body = Err(refused);
        }
        // Whoever has nothing that could be a PAK is told so, whatever is in the body.
        Some(most) if is_pak(&request.headers) => {
            match Arriving::new(&request.headers, body, most)
                .of_anybody()
                .await
            {
                Ok(Read::Whole(bytes)) => request.body = Ok(bytes),
                Ok(Read::More(arriving)) => match admit(&app, request, arriving).await {
                    Ok((known, permit)) => (request, room) = (known, permit),
                    Err(refused) => return refused.into_response(),
                },
                // Told later: who is calling comes first.
                Err(error) => request.body = Err(error),
            }
        }
        Some(_) => {}
        None => body::discard(&request.headers, body).await,
    }
    let began = Instant::now();
    let outcome = db
        .run(move |conn| {
            let principal = authenticate(&app, &request, conn)?;
            let call = Call {
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
                Ok(Reply::Later(Later(answer))) => answer.await.into_response(),
                done => done.into_response(),
            };
            // What is put off holds the body as well.
            drop(room);
            let mut response = large::held(answer);
            // For the access log.
            response.extensions_mut().insert(principal);
            response
        }
        Err(error) => error.into_response(),
    }
}

/// Reads the rest of a body that is not small: nobody's but a known caller's, and only so much at a time.
async fn admit(
    app: &App,
    request: Captured,
    arriving: Arriving,
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

/// Whether what came as a PAK has the form of one.
fn is_pak(headers: &HeaderMap) -> bool {
    headers
        .get(header::AUTHORIZATION)
        .is_some_and(|value| auth::pak_hash(value.as_bytes()).is_some())
}

/// 400 for what cannot be read at all.
pub(super) fn bad_request(message: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::bad_request("bad_request", message)
}

/// Who is calling, or 401.
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
            record::refused_pak(db, request.uri.path(), &request.headers);
            Err(Error::unauthorized())
        }
    }
}

impl Call {
    /// Another step on a connection, from within [`Reply::later`]. Not begun when the request's time is over.
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

    /// Works on a connection, on which a HEAD can only read. A GET that does more than read asks [`Self::only_looks`]; one
    /// that forgets to answers its HEAD with 500, and the permission matrix sees that.
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

    /// Whether this is a HEAD.
    pub(super) fn only_looks(&self) -> bool {
        self.request.only_looks
    }

    /// 503 once the request's time is over: its caller has been or will be told that nothing came of it, so nothing may be
    /// written any more.
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

    /// A new PAK in the configured format.
    pub(super) fn mint(&self) -> Result<Pak, Error> {
        let pak = &self.app.config.pak;
        let format = pak::Format {
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

    /// A path parameter as text, percent-decoded.
    pub(super) fn path(&self, name: &str) -> Result<&str, Error> {
        let params = self
            .request
            .path
            .as_ref()
            .map_err(|_| bad_request("the path is not UTF-8"))?;
        params
            .iter()
            .find_map(|(key, value)| (key == name).then_some(value.as_str()))
            // Routes and handlers are written side by side; a name that is in none of them is our mistake.
            .ok_or_else(Error::internal)
    }

    /// A path parameter as a UUID, else 400.
    pub(super) fn uuid(&self, name: &str) -> Result<Uuid, Error> {
        Uuid::parse_str(self.path(name)?)
            .map_err(|_| bad_request(format!("`{name}` in the path is not a UUID")))
    }

    /// The path parameter `id`.
    pub(super) fn id(&self) -> Result<Uuid, Error> {
        self.uuid("id")
    }

    /// The query, else 400.
    pub(super) fn query<T: DeserializeOwned>(&self) -> Result<T, Error> {
        Query::try_from_uri(&self.request.uri)
            .map(|Query(query)| query)
            .map_err(|error| bad_request(wording::of_query(&error.body_text())))
    }

    /// A header's value, if it is there and is text.
    pub(super) fn header(&self, name: HeaderName) -> Option<&str> {
        self.request.headers.get(name)?.to_str().ok()
    }

    /// The body as it came, else 400, 408 or 413.
    pub(super) fn body(&self) -> Result<&Bytes, Error> {
        self.request.body.as_ref().map_err(Error::clone)
    }

    /// The body as JSON. 415 when it does not say that it is, 400 when it is not, 422 when it is another shape.
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

impl Call {
    /// The body as JSON of any shape, of bounded size in memory.
    pub(super) fn value(&self) -> Result<serde_json::Value, Error> {
        self.json().map(|Bounded(value)| value)
    }
}

/// Reads JSON: 400 when it is none, 422 when it has another shape.
pub(super) fn parse_json<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Error> {
    serde_json::from_slice(bytes).map_err(|error| match error.classify() {
        serde_json::error::Category::Data => Error::new(
            StatusCode::UNPROCESSABLE_ENTITY,
            "unprocessable",
            format!("the body has the wrong shape: {}", wording::of_json(&error)),
        ),
        _ => bad_request(format!(
            "the body is not JSON: {}",
            body::wrong_with_json(bytes, &error)
        )),
    })
}

/// `application/json` or `application/…+json`, whatever its parameters.
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
