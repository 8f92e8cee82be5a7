//! Reads a request's body into memory, within limits that depend on the caller.
//!
//! At most [`SMALL`] bytes are read before the caller is authenticated. Larger bodies share `ROOM`, and must keep
//! arriving: a body that stalls is refused long before its time is over, so that it releases its room.

use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderMap, StatusCode, header};
use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::{Instant, timeout, timeout_at};

use super::deserialize_errors;
use crate::error::Error;

/// Largest number of bytes read from an unauthenticated caller.
const SMALL: usize = 8 * 1024;

/// Longest time for a body to arrive.
const WHOLE: Duration = Duration::from_secs(30);

/// Least progress of a body that holds room: this many bytes in this time.
const PACE: (usize, Duration) = (128 * 1024, Duration::from_secs(3));

/// Memory for all larger bodies that are being read or handled, in KiB. Further bodies wait, and are refused with 503
/// after the time that a request may wait for a connection.
static ROOM: Semaphore = Semaphore::const_new(64 * 1024);

/// A body that is being read.
pub(super) struct IncomingBody {
    body: Body,
    have: BytesMut,
    /// Largest number of bytes that the operation takes.
    most: usize,
    announced: Option<u64>,
    until: Instant,
}

/// Result of reading before authentication.
pub(super) enum BodyProgress {
    /// The whole body.
    Whole(Bytes),
    /// The start of a larger body; the rest is read for an authenticated caller.
    More(IncomingBody),
}

impl IncomingBody {
    pub(super) fn new(headers: &HeaderMap, body: Body, most: usize) -> Self {
        Self {
            body,
            have: BytesMut::new(),
            most,
            announced: announced(headers),
            until: Instant::now() + WHOLE,
        }
    }

    /// Reads the part of a body that an unauthenticated caller may send.
    ///
    /// # Errors
    /// 413, 408, or 400 when the body ends early.
    pub(super) async fn of_anybody(mut self) -> Result<BodyProgress, Error> {
        if self
            .announced
            .is_some_and(|length| length > self.most as u64)
        {
            return Err(too_large(self.most));
        }
        if self.announced.is_some_and(|length| length > SMALL as u64) {
            return Ok(BodyProgress::More(self));
        }
        let until = self.until;
        while self.have.len() <= SMALL {
            match timeout_at(until, self.body.frame()).await {
                Err(_) => return Err(too_slow()),
                Ok(None) => return Ok(BodyProgress::Whole(self.have.freeze())),
                Ok(Some(frame)) => self.take(frame)?,
            }
        }
        Ok(BodyProgress::More(self))
    }

    /// Reads the rest of an authenticated caller's body. Hold the permit as long as the bytes: it is their share of
    /// `ROOM`.
    ///
    /// # Errors
    /// 413, 408, 400 when the body ends early, or 503 when no room became free within `patience`.
    pub(super) async fn of_known(
        mut self,
        patience: Duration,
    ) -> Result<(Bytes, SemaphorePermit<'static>), Error> {
        let length = self.announced.unwrap_or(self.most as u64);
        let kibibytes = u32::try_from(length.div_ceil(1024)).unwrap_or(u32::MAX);
        let room = match timeout(patience, ROOM.acquire_many(kibibytes)).await {
            Ok(Ok(room)) => room,
            Ok(Err(_)) | Err(_) => {
                return Err(Error::busy(
                    "too many large bodies at once; try again shortly",
                ));
            }
        };
        self.until = Instant::now() + WHOLE;
        let mut lap = (self.have.len(), Instant::now() + PACE.1);
        loop {
            match timeout_at(self.until.min(lap.1), self.body.frame()).await {
                Ok(None) => return Ok((self.have.freeze(), room)),
                Ok(Some(frame)) => self.take(frame)?,
                Err(_) if Instant::now() >= self.until => return Err(too_slow()),
                Err(_) => {}
            }
            if Instant::now() >= lap.1 {
                if self.have.len() - lap.0 < PACE.0 {
                    return Err(too_slow());
                }
                lap = (self.have.len(), Instant::now() + PACE.1);
            }
        }
    }

    fn take(&mut self, frame: Result<hyper::body::Frame<Bytes>, axum::Error>) -> Result<(), Error> {
        let frame = frame.map_err(|_| Error::unreadable("the body ended early"))?;
        // Trailers are ignored.
        let Ok(data) = frame.into_data() else {
            return Ok(());
        };
        if self.have.len() + data.len() > self.most {
            return Err(too_large(self.most));
        }
        self.have.extend_from_slice(&data);
        Ok(())
    }
}

/// Reads and drops a small unwanted body, so that its connection can be reused.
pub(super) async fn discard(headers: &HeaderMap, body: Body) {
    if announced(headers).is_some_and(|length| length <= SMALL as u64) {
        let _ = IncomingBody::new(headers, body, SMALL).of_anybody().await;
    }
}

/// Returns the error for a body with a content encoding, because the broker decodes none. The caller answers it after
/// authentication.
pub(super) fn encoded(headers: &HeaderMap) -> Option<Error> {
    let encoding = headers
        .get_all(header::CONTENT_ENCODING)
        .iter()
        .flat_map(|value| value.as_bytes().split(|byte| *byte == b','))
        .map(|word| String::from_utf8_lossy(word).trim().to_owned())
        .find(|word| !word.is_empty() && !word.eq_ignore_ascii_case("identity"))?;
    Some(Error::new(
        StatusCode::UNSUPPORTED_MEDIA_TYPE,
        "unsupported_content_encoding",
        format!("the body is sent as it is, without Content-Encoding: {encoding}"),
    ))
}

fn announced(headers: &HeaderMap) -> Option<u64> {
    headers
        .get(header::CONTENT_LENGTH)
        .and_then(|value| value.to_str().ok()?.parse().ok())
}

/// Explains why `bytes` are not JSON, with a remedy where the parser's message would not help.
pub(super) fn wrong_with_json(bytes: &[u8], error: &serde_json::Error) -> String {
    // Editors and shells on Windows put these invisible marks at the start of a file.
    if bytes.starts_with(b"\xef\xbb\xbf") {
        "it begins with a byte order mark (EF BB BF); send UTF-8 without one".to_owned()
    } else if bytes.starts_with(&[0xff, 0xfe]) || bytes.starts_with(&[0xfe, 0xff]) {
        "it is UTF-16; send UTF-8".to_owned()
    } else {
        deserialize_errors::of_json(error)
    }
}

fn too_slow() -> Error {
    Error::new(
        StatusCode::REQUEST_TIMEOUT,
        "request_timeout",
        "the body took too long to arrive",
    )
}

fn too_large(most: usize) -> Error {
    Error::new(
        StatusCode::PAYLOAD_TOO_LARGE,
        "payload_too_large",
        format!("this request's body may have at most {most} bytes"),
    )
}
