//! One HTTP request out: to an allowed address, within a time, with a bounded answer.
//!
//! A connection is made for one request and closed after it. The name is resolved once, every address it has is judged
//! ([`Policy`]), and only a judged one is connected to: a name that resolves otherwise a moment later changes nothing. A
//! redirect goes through the same, and takes the `Authorization` value along only within its origin. No proxy is used,
//! whatever the environment says.

mod connect;
mod redirect;

use std::time::Duration;

use axum::http::{HeaderValue, Method, Request, StatusCode, header};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use tokio::time::{Instant, timeout_at};
use url::{Position, Url};

use super::endpoint::Endpoint;
use super::target::Policy;
use connect::Connector;

/// Most redirects followed for one request.
const REDIRECTS: usize = 5;

/// Most bytes read of an answer's body, and of its head.
const MOST: usize = 64 * 1024;

/// Once the status is known, this long for the body: it is for people, and the status stands without it.
const BODY_TIMEOUT: Duration = Duration::from_secs(5);

const USER_AGENT: &str = concat!("brokkr-broker/", env!("CARGO_PKG_VERSION"));

/// Sends requests. What it holds is shared by all: the policy, and the trusted certificates once they are needed.
#[derive(Debug)]
pub struct Client {
    connector: Connector,
}

/// What an endpoint answered.
#[derive(Clone, Debug)]
pub struct Answer {
    /// Its status.
    pub status: StatusCode,
    /// The beginning of its body.
    pub body: Vec<u8>,
}

impl Answer {
    /// At most that many characters of the body.
    pub fn beginning(&self, characters: usize) -> String {
        String::from_utf8_lossy(&self.body)
            .chars()
            .take(characters)
            .collect()
    }
}

/// Why there was no answer. The texts name neither URL nor address.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "each is what it says")]
pub enum SendError {
    #[error("the name of the host cannot be resolved: {0}")]
    Resolve(String),
    #[error("the address of the target is not allowed here")]
    Address,
    #[error("port {0} is not allowed here")]
    Port(u16),
    #[error("cannot connect: {0}")]
    Connect(String),
    #[error("TLS: {0}")]
    Tls(String),
    #[error("no answer within {0} s")]
    Timeout(u64),
    #[error("HTTP: {0}")]
    Http(String),
    #[error("more than {REDIRECTS} redirects")]
    Redirects,
    #[error("redirected from https to http, which is not followed")]
    Downgrade,
    #[error("redirected to what is no http or https URL")]
    Location,
}

impl Client {
    /// A client that goes where it may.
    pub fn new(policy: Policy) -> Self {
        Self {
            connector: Connector::new(policy),
        }
    }

    /// Posts JSON to an endpoint; the answer, whatever its status.
    ///
    /// # Errors
    /// When there is no answer within `timeout`, redirects included, or the target may not be reached.
    pub async fn post(
        &self,
        endpoint: &Endpoint,
        json: Bytes,
        timeout: Duration,
    ) -> Result<Answer, SendError> {
        let deadline = Instant::now() + timeout;
        let late = |_| SendError::Timeout(timeout.as_secs());
        let mut url = endpoint.url().clone();
        let mut authorization = endpoint.authorization().cloned();
        let mut method = Method::POST;
        for _ in 0..=REDIRECTS {
            let request = request(&url, &method, authorization.as_ref(), &json)?;
            let (answer, location) = timeout_at(deadline, self.exchange(&url, request, deadline))
                .await
                .map_err(late)??;
            let Some(next) = redirect::next(&url, answer.status, location.as_ref())? else {
                return Ok(answer);
            };
            if answer.status == StatusCode::SEE_OTHER {
                method = Method::GET;
            }
            if !redirect::same_origin(&url, &next) {
                authorization = None;
            }
            url = next;
        }
        Err(SendError::Redirects)
    }

    /// One request and its answer, on a connection of its own; also where it redirects to.
    async fn exchange(
        &self,
        url: &Url,
        request: Request<Full<Bytes>>,
        deadline: Instant,
    ) -> Result<(Answer, Option<HeaderValue>), SendError> {
        let stream = self.connector.connect(url, deadline).await?;
        let (mut sender, connection) = hyper::client::conn::http1::Builder::new()
            .max_buf_size(MOST)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(failed)?;
        let conversation = async {
            let response = sender.send_request(request).await.map_err(failed)?;
            let (head, body) = response.into_parts();
            let location = head.headers.get(header::LOCATION).cloned();
            // A redirect's body is read by nobody. And the caller's time ends a moment after the body's does, never before:
            // an answer that has begun counts.
            let body = if location.is_some() && head.status.is_redirection() {
                Vec::new()
            } else {
                let end = Instant::now() + BODY_TIMEOUT;
                read(body, end.min(deadline - LAST)).await
            };
            let status = head.status;
            Ok((Answer { status, body }, location))
        };
        let (mut conversation, mut connection) =
            (std::pin::pin!(conversation), std::pin::pin!(connection));
        // The connection's future moves the bytes. When it ends, all that came is in the conversation's hands.
        tokio::select! {
            biased;
            done = &mut conversation => done,
            _ = &mut connection => conversation.await,
        }
    }
}

/// Between the end of a body's time and that of the whole request.
const LAST: Duration = Duration::from_millis(50);

fn failed(error: hyper::Error) -> SendError {
    use std::error::Error as _;
    match error.source() {
        Some(cause) => SendError::Http(format!("{error}: {cause}")),
        None => SendError::Http(error.to_string()),
    }
}

fn request(
    url: &Url,
    method: &Method,
    authorization: Option<&HeaderValue>,
    json: &Bytes,
) -> Result<Request<Full<Bytes>>, SendError> {
    let mut request = Request::builder()
        .method(method.clone())
        .uri(&url[Position::BeforePath..Position::AfterQuery])
        .header(
            header::HOST,
            &url[Position::BeforeHost..Position::AfterPort],
        )
        .header(header::USER_AGENT, USER_AGENT)
        .header(header::ACCEPT, "*/*")
        .header(header::CONNECTION, "close");
    if let Some(value) = authorization {
        request = request.header(header::AUTHORIZATION, value);
    }
    let body = if *method == Method::POST {
        request = request.header(header::CONTENT_TYPE, "application/json");
        json.clone()
    } else {
        Bytes::new()
    };
    request
        .body(Full::new(body))
        .map_err(|error| SendError::Http(error.to_string()))
}

/// The beginning of a body: what has come when it ends, breaks off, is long enough, or its time is over.
async fn read(mut body: Incoming, until: Instant) -> Vec<u8> {
    let mut read = Vec::new();
    while read.len() < MOST {
        let Ok(Some(Ok(frame))) = timeout_at(until, body.frame()).await else {
            break;
        };
        if let Ok(data) = frame.into_data() {
            let room = MOST - read.len();
            read.extend_from_slice(&data[..data.len().min(room)]);
        }
    }
    read
}

#[cfg(test)]
mod tests;
