//! A blocking WebSocket client; frames are `{"type", "body"}` as everywhere in the product.

use std::io::{self, ErrorKind, Write as _};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tungstenite::protocol::Role;
use tungstenite::protocol::frame::CloseFrame;
use tungstenite::{Error, Message, WebSocket};

use crate::http::{Addr, Connection, Response, Wire};

/// The key of RFC 6455's example, and the answer that proves that the server read it.
const KEY: (&str, &str) = ("dGhlIHNhbXBsZSBub25jZQ==", "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");

/// Longest wait for a frame that must come.
const SOON: Duration = Duration::from_secs(20);

/// The result of reading from a socket.
#[derive(Debug, Clone, PartialEq)]
pub enum Came {
    /// A text frame.
    Frame(Value),
    /// A close frame with this code (1005 without a code), or an end without a close frame (1006).
    End(u16),
    /// Nothing within the given time.
    Nothing,
}

/// An open socket, which answers pings during every read.
#[derive(Debug)]
pub struct Socket {
    socket: WebSocket<Box<dyn Wire>>,
    /// The answer to the handshake.
    pub answer: Response,
}

impl Socket {
    /// Opens a socket with a PAK.
    pub fn open(addr: &Addr, path: &str, pak: &str) -> Self {
        let bearer = format!("Bearer {pak}");
        Self::ask(addr, path, &[("Authorization", &bearer)])
            .unwrap_or_else(|refused| panic!("{path}: {} {}", refused.status, refused.text()))
    }

    /// Asks for a socket with these headers.
    ///
    /// # Errors
    /// The answer, when it is not 101.
    pub fn ask(addr: &Addr, path: &str, headers: &[(&str, &str)]) -> Result<Self, Box<Response>> {
        Self::try_ask(addr, path, headers).unwrap_or_else(|e| panic!("GET {path} at {addr}: {e}"))
    }

    /// Asks for a socket as [`Self::ask`] does, where a broker may be gone.
    ///
    /// # Errors
    /// The outer error when the connection fails; the inner error is the answer when it is not 101.
    pub fn try_ask(
        addr: &Addr,
        path: &str,
        headers: &[(&str, &str)],
    ) -> io::Result<Result<Self, Box<Response>>> {
        let mut connection = Connection::open(addr)?;
        let mut all = vec![
            ("Connection", "Upgrade"),
            ("Upgrade", "websocket"),
            ("Sec-WebSocket-Version", "13"),
            ("Sec-WebSocket-Key", KEY.0),
        ];
        all.extend_from_slice(headers);
        let answer = connection.request("GET", path, &all, None)?;
        if answer.status != 101 {
            return Ok(Err(Box::new(answer)));
        }
        assert_eq!(answer.header("sec-websocket-accept"), Some(KEY.1));
        let (wire, read) = connection.into_wire();
        Ok(Ok(Self {
            socket: WebSocket::from_partially_read(wire, read, Role::Client, None),
            answer,
        }))
    }

    /// Sends a frame.
    pub fn send(&mut self, kind: &str, body: &Value) {
        self.text(json!({ "type": kind, "body": body }).to_string());
    }

    /// Sends any text.
    pub fn text(&mut self, text: String) {
        self.message(Message::Text(text.into()))
            .unwrap_or_else(|e| panic!("cannot send: {e}"));
    }

    /// Sends any message.
    pub fn message(&mut self, message: Message) -> tungstenite::Result<()> {
        self.socket.send(message)
    }

    /// Sends bytes as they are, which need not be a frame.
    pub fn raw(&mut self, bytes: &[u8]) -> io::Result<()> {
        let wire = self.socket.get_mut();
        wire.write_all(bytes)?;
        wire.flush()
    }

    /// Waits at most `bound` for a frame or the end; pings and pongs are skipped.
    pub fn within(&mut self, bound: Duration) -> Came {
        let until = Instant::now() + bound;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Came::Nothing;
            }
            // A failure shows in the read.
            let _ = self.socket.get_ref().bound_reads(left);
            match self.socket.read() {
                Ok(Message::Text(text)) => {
                    let frame = serde_json::from_str(&text)
                        .unwrap_or_else(|e| panic!("not JSON ({e}): {text}"));
                    return Came::Frame(frame);
                }
                Ok(Message::Close(frame)) => {
                    // The next read sends the answer to the close frame, and finds the end.
                    let _ = self.socket.read();
                    return Came::End(frame.map_or(1005, |CloseFrame { code, .. }| code.into()));
                }
                Ok(_) => {}
                Err(Error::Io(e)) if waits(&e) => return Came::Nothing,
                Err(_) => return Came::End(1006),
            }
        }
    }

    /// Returns the next frame.
    #[track_caller]
    pub fn frame(&mut self) -> Value {
        match self.within(SOON) {
            Came::Frame(frame) => frame,
            other => panic!("no frame came, but {other:?}"),
        }
    }

    /// Returns the body of the next frame, which must be of this type.
    #[track_caller]
    pub fn expect(&mut self, kind: &str) -> Value {
        let mut frame = self.frame();
        assert_eq!(frame["type"], kind, "{frame}");
        frame["body"].take()
    }

    /// Returns the body of the next frame of this type that `want` accepts; skips other frames.
    #[track_caller]
    pub fn find(&mut self, kind: &str, want: impl Fn(&Value) -> bool) -> Value {
        let until = Instant::now() + SOON;
        while Instant::now() < until {
            let mut frame = self.frame();
            if frame["type"] == kind && want(&frame["body"]) {
                return frame["body"].take();
            }
        }
        panic!("no {kind} as wanted within {SOON:?}");
    }

    /// Waits for the close and returns its code; skips frames before it.
    #[track_caller]
    pub fn end(&mut self) -> u16 {
        loop {
            match self.within(SOON) {
                Came::Frame(_) => {}
                Came::End(code) => return code,
                Came::Nothing => panic!("the socket stays open"),
            }
        }
    }

    /// Checks that no frame comes for `span`.
    #[track_caller]
    pub fn silent(&mut self, span: Duration) {
        assert_eq!(self.within(span), Came::Nothing);
    }
}

/// Returns true when the read has timed out.
fn waits(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut)
}
