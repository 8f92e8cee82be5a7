//! The HTTP client of webhooks: one request to an allowed address, within a time limit, with a bounded answer.
//!
//! Each request has a connection of its own. The client resolves the name once, judges every address
//! ([`AddressPolicy`]), and connects only to an allowed address, so a name that resolves otherwise a moment later
//! changes nothing. A redirect goes through the same steps, and keeps the `Authorization` value only within its origin.
//! The client uses no proxy, and ignores proxy variables of the environment.

mod connect;
mod read_limit;
mod redirect;
mod send_error;

use std::time::Duration;

use axum::http::{HeaderValue, Method, Request, StatusCode, header};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use tokio::time::{Instant, timeout_at};
use url::{Position, Url};

use super::address_policy::AddressPolicy;
use super::endpoint::Endpoint;
use connect::Connector;
use read_limit::ReadLimit;
use send_error::REDIRECTS;
pub use send_error::SendError;

/// The largest part read of an answer's body, and of its head, in bytes.
const MOST: usize = 64 * 1024;

/// The largest number of bytes read of a connection: a body, a head, and the interim answers before them.
const MOST_READ: usize = 2 * MOST;

/// The time limit of the body once the status is known. The body is for people, and the status is valid without it.
const BODY_TIMEOUT: Duration = Duration::from_secs(5);

const USER_AGENT: &str = concat!("brokkr-broker/", env!("CARGO_PKG_VERSION"));

/// The client that sends requests. All requests share the policy, and the trusted certificates once they are loaded.
#[derive(Debug)]
pub struct Client {
    connector: Connector,
}

/// The answer of an endpoint.
#[derive(Clone, Debug)]
pub struct WebhookResponse {
    /// The status.
    pub status: StatusCode,
    /// The beginning of the body.
    pub body: Vec<u8>,
}

impl WebhookResponse {
    /// Returns at most this many characters of the body.
    pub fn beginning(&self, characters: usize) -> String {
        String::from_utf8_lossy(&self.body)
            .chars()
            .take(characters)
            .collect()
    }
}

impl Client {
    /// Returns a client that obeys this policy.
    pub fn new(policy: AddressPolicy) -> Self {
        Self {
            connector: Connector::new(policy),
        }
    }

    /// Posts JSON to an endpoint, and returns the answer with any status.
    ///
    /// # Errors
    /// When there is no answer within `timeout`, redirects included, or the policy forbids the target.
    pub async fn post(
        &self,
        endpoint: &Endpoint,
        json: Bytes,
        timeout: Duration,
    ) -> Result<WebhookResponse, SendError> {
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

    /// Exchanges one request on a connection of its own. Returns the answer and its `Location`.
    async fn exchange(
        &self,
        url: &Url,
        request: Request<Full<Bytes>>,
        deadline: Instant,
    ) -> Result<(WebhookResponse, Option<HeaderValue>), SendError> {
        let stream = self.connector.connect(url, deadline).await?;
        let (mut sender, connection) = hyper::client::conn::http1::Builder::new()
            .max_buf_size(MOST)
            .handshake(TokioIo::new(ReadLimit::new(stream, MOST_READ)))
            .await
            .map_err(failed)?;
        let conversation = async {
            let response = sender.send_request(request).await.map_err(failed)?;
            let (head, body) = response.into_parts();
            let location = head.headers.get(header::LOCATION).cloned();
            // Do not read a redirect's body. Otherwise stop reading a moment before the caller's deadline, so that an
            // answer that has begun still counts.
            let body = if location.is_some() && head.status.is_redirection() {
                Vec::new()
            } else {
                let end = Instant::now() + BODY_TIMEOUT;
                read(body, end.min(deadline - LAST)).await
            };
            let status = head.status;
            Ok((WebhookResponse { status, body }, location))
        };
        let (mut conversation, mut connection) =
            (std::pin::pin!(conversation), std::pin::pin!(connection));
        // The connection's future moves the bytes. After its end, the conversation already has all received bytes.
        tokio::select! {
            biased;
            done = &mut conversation => done,
            _ = &mut connection => conversation.await,
        }
    }
}

/// The time between the end of reading a body and the deadline of the whole request.
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

/// Reads a body until it ends, fails, reaches `MOST` bytes, or its time is over. Returns the bytes read so far.
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
