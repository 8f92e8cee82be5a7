//! A blocking WebSocket client: frames are `{"type", "body"}`, as everywhere in the product.

use std::io::{self, ErrorKind};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tungstenite::protocol::Role;
use tungstenite::protocol::frame::CloseFrame;
use tungstenite::{Error, Message, WebSocket};

use crate::http::{Addr, Connection, Response, Wire};

/// The key of RFC 6455's example, and the answer that proves it was read.
const KEY: (&str, &str) = ("dGhlIHNhbXBsZSBub25jZQ==", "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");

/// How long a frame may take that must come.
const SOON: Duration = Duration::from_secs(20);

/// What can come over a socket.
#[derive(Debug, Clone, PartialEq)]
pub enum Came {
    /// A text frame.
    Frame(Value),
    /// A close frame with this code (1005 without one), or an end without any (1006).
    End(u16),
    /// Nothing in the time given.
    Nothing,
}

/// An open socket. It answers pings whenever something is read.
#[derive(Debug)]
pub struct Socket {
    socket: WebSocket<Box<dyn Wire>>,
    /// The answer to the handshake.
    pub answer: Response,
}

impl Socket {
    /// Opens a socket as the holder of a PAK.
    ///
    /// # Panics
    /// When it is refused.
    pub fn open(addr: &Addr, path: &str, pak: &str) -> Self {
        let bearer = format!("Bearer {pak}");
        Self::ask(addr, path, &[("Authorization", &bearer)])
            .unwrap_or_else(|refused| panic!("{path}: {} {}", refused.status, refused.text()))
    }

    /// Asks for a socket with these headers.
    ///
    /// # Errors
    /// The answer, when it is not 101.
    ///
    /// # Panics
    /// When there is no answer, or it is no WebSocket's.
    pub fn ask(addr: &Addr, path: &str, headers: &[(&str, &str)]) -> Result<Self, Box<Response>> {
        Self::try_ask(addr, path, headers).unwrap_or_else(|e| panic!("GET {path} at {addr}: {e}"))
    }

    /// As [`Self::ask`], where a broker may be gone.
    ///
    /// # Errors
    /// As the connection says; inside, the answer when it is not 101.
    ///
    /// # Panics
    /// When the answer is no WebSocket's.
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
    ///
    /// # Panics
    /// When it cannot be sent.
    pub fn send(&mut self, kind: &str, body: &Value) {
        self.text(json!({ "type": kind, "body": body }).to_string());
    }

    /// Sends any text.
    ///
    /// # Panics
    /// When it cannot be sent.
    pub fn text(&mut self, text: String) {
        self.message(Message::Text(text.into()))
            .unwrap_or_else(|e| panic!("cannot send: {e}"));
    }

    /// Sends any message.
    ///
    /// # Errors
    /// As the socket says.
    pub fn message(&mut self, message: Message) -> tungstenite::Result<()> {
        self.socket.send(message)
    }

    /// Waits for what comes next, at most `bound`. Pings and pongs are nobody's business.
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
                    // The answer to it is sent by the next read, which finds the end.
                    let _ = self.socket.read();
                    return Came::End(frame.map_or(1005, |CloseFrame { code, .. }| code.into()));
                }
                Ok(_) => {}
                Err(Error::Io(e)) if waits(&e) => return Came::Nothing,
                Err(_) => return Came::End(1006),
            }
        }
    }

    /// The next frame.
    ///
    /// # Panics
    /// When none comes.
    #[track_caller]
    pub fn frame(&mut self) -> Value {
        match self.within(SOON) {
            Came::Frame(frame) => frame,
            other => panic!("no frame came, but {other:?}"),
        }
    }

    /// The body of the next frame, which must be of this type.
    ///
    /// # Panics
    /// When another or none comes.
    #[track_caller]
    pub fn expect(&mut self, kind: &str) -> Value {
        let mut frame = self.frame();
        assert_eq!(frame["type"], kind, "{frame}");
        frame["body"].take()
    }

    /// The body of the next frame of this type that is as wanted; others are passed over.
    ///
    /// # Panics
    /// When none comes in time.
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

    /// The code it is closed with; frames before that are passed over.
    ///
    /// # Panics
    /// When it is not closed.
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

    /// Checks that no frame comes for a while.
    ///
    /// # Panics
    /// When one does, or the socket ends.
    #[track_caller]
    pub fn silent(&mut self, span: Duration) {
        assert_eq!(self.within(span), Came::Nothing);
    }
}

/// The time given for a read is over.
fn waits(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut)
}
