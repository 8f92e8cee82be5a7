//! Runs one request, from the socket to the handler and back.

use std::pin::Pin;
use std::time::Instant;

use axum::extract::rejection::RawPathParamsRejection;
use axum::extract::{FromRequestParts, RawPathParams, Request, State};
use axum::handler::Handler;
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, SemaphorePermit};

use super::reply::{DeferredReply, Reply};
use super::request::{ApiRequest, Captured};
use super::request_body::{self, BodyProgress, IncomingBody};
use super::{audit, failed_authentication, response_budget};
use crate::app::App;
use crate::auth::{self, Principal};
use crate::db::Conn;
use crate::error::Error;

/// Largest body of most requests, in bytes; clients may rely on 2 MiB.
const BODY: usize = 4 * 1024 * 1024;

/// Largest body of requests that carry whole bundles, in bytes.
const BUNDLE: usize = 16 * 1024 * 1024;

/// Work of an operation; a plain function, so that it captures nothing but the request.
pub(super) type Work = fn(&ApiRequest, &mut Conn) -> Result<Reply, Error>;

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
    run(app, request, plain(|_, _| Err(Error::no_method()))).await
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
            Err(Error::unreadable("the path is not UTF-8"))
        }
        // The route has no parameters.
        Err(_) => Ok(Vec::new()),
    };
    if !parts.headers.contains_key(header::AUTHORIZATION) {
        return Error::unauthorized().into_response();
    }
    let mut request = Captured {
        client: failed_authentication::client(parts.extensions.get()),
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
    // After the body, because a slow sender must not keep the turn from others.
    let turn = match wait_for_turn(&app, &request).await {
        Ok(turn) => turn,
        Err(refused) => return refused.into_response(),
    };
    let began = Instant::now();
    let outcome = db
        .run(move |conn| {
            let principal = authenticate(&app, &request, conn)?;
            drop(turn);
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
    let turn = wait_for_turn(app, &request).await?;
    let caller = app.clone();
    let mut request = app
        .db
        .run(move |conn| {
            let _turn = turn;
            authenticate(&caller, &request, conn).map(|_| request)
        })
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

/// Waits for the right to look up the caller's PAK.
async fn wait_for_turn(
    app: &App,
    request: &Captured,
) -> Result<Option<OwnedSemaphorePermit>, Error> {
    let authorization = request.headers.get(header::AUTHORIZATION);
    let authorization = authorization.map_or(&[][..], |value| value.as_bytes());
    failed_authentication::wait_for_turn(app, request.client, authorization).await
}

/// Returns true when the Authorization header has the form of a PAK.
fn is_pak(headers: &HeaderMap) -> bool {
    headers
        .get(header::AUTHORIZATION)
        .is_some_and(|value| auth::pak_hash(value.as_bytes()).is_some())
}

/// Returns the caller, or 401 or 429.
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
            Err(failed_authentication::refuse(app, request.client))
        }
    }
}
