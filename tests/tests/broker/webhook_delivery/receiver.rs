//! An HTTP server on loopback that records its requests.

use brokkr_tests::until;
use serde_json::Value;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Duration;

/// A recorded request.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) method: String,
    pub(crate) path: String,
    /// Names in lower case.
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: String,
}

impl Seen {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(n, _)| n == name)?;
        Some(&found.1)
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|e| panic!("{e}: {}", self.body))
    }
}

/// A reply to a request.
#[derive(Clone, Debug)]
pub(crate) enum Reply {
    Status(u16, String),
    Redirect(u16, String),
    /// No answer until [`Receiver::release`]; then 200.
    Hang,
}

type Plan = dyn Fn(usize, &Seen) -> Reply + Send + Sync;

struct Shared {
    plan: Box<Plan>,
    seen: Mutex<Vec<Seen>>,
    released: Mutex<bool>,
    changed: Condvar,
    over: AtomicBool,
}

impl Shared {
    fn seen(&self) -> MutexGuard<'_, Vec<Seen>> {
        self.seen.lock().unwrap()
    }
}

/// The server; it ends when dropped.
pub(crate) struct Receiver {
    address: SocketAddr,
    shared: Arc<Shared>,
}

impl Receiver {
    /// Starts a server that answers 200 to every request.
    pub(crate) fn new() -> Self {
        Self::answering(|_, _| Reply::Status(200, "ok".to_owned()))
    }

    /// Starts a server that answers the nth request (from 0) by `plan`.
    pub(crate) fn answering(plan: impl Fn(usize, &Seen) -> Reply + Send + Sync + 'static) -> Self {
        Self::at(Ipv4Addr::LOCALHOST, plan)
    }

    /// Starts a server at another address of the loopback network.
    pub(crate) fn at(
        address: Ipv4Addr,
        plan: impl Fn(usize, &Seen) -> Reply + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind((address, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared {
            plan: Box::new(plan),
            seen: Mutex::default(),
            released: Mutex::new(false),
            changed: Condvar::new(),
            over: AtomicBool::new(false),
        });
        let serving = shared.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                if serving.over.load(Ordering::Relaxed) {
                    return;
                }
                let (stream, shared) = (stream.unwrap(), serving.clone());
                // A client that hangs up is no failure of the test.
                std::thread::spawn(move || converse(stream, &shared));
            }
        });
        Self { address, shared }
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    pub(crate) fn port(&self) -> u16 {
        self.address.port()
    }

    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.shared.seen().clone()
    }

    pub(crate) fn count(&self, wanted: impl Fn(&Seen) -> bool) -> usize {
        self.shared
            .seen()
            .iter()
            .filter(|seen| wanted(seen))
            .count()
    }

    #[track_caller]
    pub(crate) fn wait(&self, requests: usize) -> Vec<Seen> {
        until(
            Duration::from_secs(30),
            format!("{requests} requests at the endpoint"),
            || {
                let seen = self.seen();
                (seen.len() >= requests).then_some(seen)
            },
        )
    }

    /// Answers all hanging requests, and hangs no more.
    pub(crate) fn release(&self) {
        *self.shared.released.lock().unwrap() = true;
        self.shared.changed.notify_all();
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.shared.over.store(true, Ordering::Relaxed);
        self.release();
        // Wakes the accepting thread.
        let _ = TcpStream::connect(self.address);
    }
}

fn converse(mut stream: TcpStream, shared: &Shared) -> Option<()> {
    stream
        .set_read_timeout(Some(Duration::from_secs(10)))
        .ok()?;
    let mut bytes = Vec::new();
    let mut buffer = [0; 8192];
    let seen = loop {
        let n = stream.read(&mut buffer).ok().filter(|n| *n > 0)?;
        bytes.extend_from_slice(&buffer[..n]);
        if let Some(seen) = parse(&bytes) {
            break seen;
        }
    };
    let nth = {
        let mut all = shared.seen();
        all.push(seen.clone());
        all.len() - 1
    };
    let (status, headers, body) = match (shared.plan)(nth, &seen) {
        Reply::Status(status, body) => (status, String::new(), body),
        Reply::Redirect(status, to) => (status, format!("Location: {to}\r\n"), String::new()),
        Reply::Hang => {
            let mut released = shared.released.lock().unwrap();
            while !*released {
                released = shared.changed.wait(released).unwrap();
            }
            (200, String::new(), String::new())
        }
    };
    let head = format!(
        "HTTP/1.1 {status} Said\r\nContent-Length: {}\r\n{headers}\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).ok()?;
    stream.write_all(body.as_bytes()).ok()
}

/// Parses a complete request.
fn parse(bytes: &[u8]) -> Option<Seen> {
    let text = String::from_utf8_lossy(bytes);
    let (head, body) = text.split_once("\r\n\r\n")?;
    let mut lines = head.lines();
    let mut first = lines.next()?.split(' ');
    let (method, path) = (first.next()?.to_owned(), first.next()?.to_owned());
    let headers: Vec<(String, String)> = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
        .collect();
    let length = headers
        .iter()
        .find(|(name, _)| name == "content-length")
        .map_or(0, |(_, length)| length.parse().unwrap());
    (body.len() >= length).then(|| Seen {
        method,
        path,
        headers,
        body: body.to_owned(),
    })
}
