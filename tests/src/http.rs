//! A blocking HTTP/1.1 client whose connections a test can hold open.

use crate::tls::TlsWire;
use serde_json::Value;
use std::fmt;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// The address of a listener.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Addr {
    /// `127.0.0.1:3001`
    Tcp(String),
    /// `unix:/run/brokkr/acme.sock`
    Unix(PathBuf),
    /// `127.0.0.1:3001` over TLS, with the PEM file of the certificate that the server must present.
    Tls(String, PathBuf),
}

impl Addr {
    /// Parses an address as a tenant file writes it.
    pub fn parse(text: &str) -> Self {
        text.strip_prefix("unix:")
            .map_or_else(|| Self::Tcp(text.into()), |path| Self::Unix(path.into()))
    }

    /// Returns a loopback address with this port.
    pub fn port(port: u16) -> Self {
        Self::Tcp(format!("127.0.0.1:{port}"))
    }
}

impl fmt::Display for Addr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(text) | Self::Tls(text, _) => f.write_str(text),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// A connected stream of either kind.
pub(crate) trait Wire: Read + Write + Send + fmt::Debug {
    /// Sets the timeout of every later read.
    fn bound_reads(&self, bound: Duration) -> io::Result<()>;
}

impl Wire for TcpStream {
    fn bound_reads(&self, bound: Duration) -> io::Result<()> {
        self.set_read_timeout(Some(bound))
    }
}

impl Wire for UnixStream {
    fn bound_reads(&self, bound: Duration) -> io::Result<()> {
        self.set_read_timeout(Some(bound))
    }
}

/// An answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Response {
    /// The status code.
    pub status: u16,
    /// The headers in order, with names in lower case.
    pub headers: Vec<(String, String)>,
    /// The body, joined from its chunks where it was chunked.
    pub body: Vec<u8>,
    /// Time from the first byte sent to the last byte received.
    pub took: Duration,
}

impl Response {
    /// Returns the first header of this name.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(n, _)| n.eq_ignore_ascii_case(name))
            .map(|(_, v)| v.as_str())
    }

    /// Returns the body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// Returns the body as JSON.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|e| panic!("{} is not JSON ({e}): {}", self.status, self.text()))
    }

    /// Returns true when the server closes the connection after this answer.
    pub fn closes(&self) -> bool {
        self.header("connection")
            .is_some_and(|v| v.eq_ignore_ascii_case("close"))
    }

    /// Returns the answer itself when it has this status.
    #[track_caller]
    pub fn expect(self, status: u16) -> Self {
        assert_eq!(self.status, status, "{}", self.text());
        self
    }

    /// Checks an error answer of the API, which is JSON with this code and a message. Returns its `details`.
    #[track_caller]
    pub fn refused(&self, status: u16, code: &str) -> Value {
        let text = self.text();
        assert_eq!(self.status, status, "{text}");
        assert_eq!(
            self.header("content-type"),
            Some("application/json"),
            "{text}"
        );
        let mut body = self.json();
        assert_eq!(body["code"], code, "{body}");
        assert!(
            body["message"]
                .as_str()
                .is_some_and(|text| !text.is_empty()),
            "{body}"
        );
        body["details"].take()
    }
}

/// A connection; requests on it follow one another.
#[derive(Debug)]
pub struct Connection {
    wire: BufReader<Box<dyn Wire>>,
    port: Option<u16>,
}

impl Connection {
    /// Connects; every read and write is limited to thirty seconds.
    pub fn open(addr: &Addr) -> io::Result<Self> {
        Self::open_within(addr, Duration::from_secs(30))
    }

    /// Connects; every read and write is limited to `bound`.
    pub fn open_within(addr: &Addr, bound: Duration) -> io::Result<Self> {
        let mut port = None;
        let wire: Box<dyn Wire> = match addr {
            Addr::Tcp(text) | Addr::Tls(text, _) => {
                let to = text
                    .parse()
                    .map_err(|_| io::Error::other(format!("not an address: {text}")))?;
                let stream = TcpStream::connect_timeout(&to, bound)?;
                stream.set_read_timeout(Some(bound))?;
                stream.set_write_timeout(Some(bound))?;
                stream.set_nodelay(true)?;
                port = Some(stream.local_addr()?.port());
                match addr {
                    Addr::Tls(_, trusted) => Box::new(TlsWire::connect(
                        stream,
                        trusted,
                        rustls::DEFAULT_VERSIONS,
                        &["http/1.1"],
                    )?),
                    _ => Box::new(stream),
                }
            }
            Addr::Unix(path) => {
                let stream = UnixStream::connect(path)?;
                stream.set_read_timeout(Some(bound))?;
                stream.set_write_timeout(Some(bound))?;
                Box::new(stream)
            }
        };
        Ok(Self {
            wire: BufReader::new(wire),
            port,
        })
    }

    /// Returns the local port of a TCP connection, by which the kernel's table identifies it.
    pub fn own_port(&self) -> Option<u16> {
        self.port
    }

    /// Sends a request and reads its answer; the connection stays open unless the server closes it.
    ///
    /// # Errors
    /// When the connection fails or the answer is not HTTP.
    pub fn request(
        &mut self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: Option<&[u8]>,
    ) -> io::Result<Response> {
        let start = Instant::now();
        self.send(method, path, headers, body)?;
        let mut response = self.receive(method == "HEAD")?;
        response.took = start.elapsed();
        Ok(response)
    }

    /// Sends a request without reading the answer.
    pub fn send(
        &mut self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: Option<&[u8]>,
    ) -> io::Result<()> {
        let mut head = format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\n").into_bytes();
        for (name, value) in headers {
            head.extend_from_slice(format!("{name}: {value}\r\n").as_bytes());
        }
        if let Some(body) = body {
            head.extend_from_slice(format!("Content-Length: {}\r\n", body.len()).as_bytes());
        }
        head.extend_from_slice(b"\r\n");
        head.extend_from_slice(body.unwrap_or_default());
        let wire = self.wire.get_mut();
        wire.write_all(&head)?;
        wire.flush()
    }

    /// Sends bytes as they are, for example half a request.
    pub fn raw(&mut self, bytes: &[u8]) -> io::Result<()> {
        let wire = self.wire.get_mut();
        wire.write_all(bytes)?;
        wire.flush()
    }

    /// Reads an answer.
    ///
    /// # Errors
    /// When the connection fails or the answer is not HTTP.
    pub fn receive(&mut self, without_body: bool) -> io::Result<Response> {
        let line = self.line()?;
        let status = line
            .strip_prefix("HTTP/1.")
            .and_then(|rest| rest.get(2..5))
            .and_then(|code| code.parse::<u16>().ok())
            .ok_or_else(|| io::Error::other(format!("not HTTP: {line:?}")))?;
        let mut headers = Vec::new();
        loop {
            let line = self.line()?;
            if line.is_empty() {
                break;
            }
            if let Some((name, value)) = line.split_once(':') {
                headers.push((name.trim().to_ascii_lowercase(), value.trim().to_owned()));
            }
        }
        let mut response = Response {
            status,
            headers,
            body: Vec::new(),
            took: Duration::ZERO,
        };
        if without_body || status == 204 || status == 304 || status < 200 {
            return Ok(response);
        }
        if response
            .header("transfer-encoding")
            .is_some_and(|v| v.eq_ignore_ascii_case("chunked"))
        {
            loop {
                let size = self.line()?;
                let size =
                    usize::from_str_radix(size.split(';').next().unwrap_or_default().trim(), 16)
                        .map_err(|_| io::Error::other(format!("bad chunk size {size:?}")))?;
                let mut chunk = vec![0; size];
                self.wire.read_exact(&mut chunk)?;
                self.line()?;
                if size == 0 {
                    break;
                }
                response.body.extend_from_slice(&chunk);
            }
        } else if let Some(length) = response.header("content-length") {
            let length = length
                .parse()
                .map_err(|_| io::Error::other("bad content-length"))?;
            response.body = vec![0; length];
            self.wire.read_exact(&mut response.body)?;
        } else {
            self.wire.read_to_end(&mut response.body)?;
        }
        Ok(response)
    }

    /// Waits until the server closes the connection and returns true; returns false when bytes arrive instead.
    ///
    /// # Errors
    /// When the connection fails or its time limit ends.
    pub fn is_closed(&mut self) -> io::Result<bool> {
        match self.wire.fill_buf() {
            Ok(bytes) => Ok(bytes.is_empty()),
            Err(e) if e.kind() == io::ErrorKind::ConnectionReset => Ok(true),
            Err(e) => Err(e),
        }
    }

    /// Returns the stream and the bytes that were read beyond the last answer.
    pub(crate) fn into_wire(self) -> (Box<dyn Wire>, Vec<u8>) {
        let read = self.wire.buffer().to_vec();
        (self.wire.into_inner(), read)
    }

    fn line(&mut self) -> io::Result<String> {
        let mut line = Vec::new();
        self.wire.read_until(b'\n', &mut line)?;
        if line.pop() != Some(b'\n') {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "closed before an answer",
            ));
        }
        if line.last() == Some(&b'\r') {
            line.pop();
        }
        Ok(String::from_utf8_lossy(&line).into_owned())
    }
}

/// Sends a request on a new connection.
pub fn request(
    addr: &Addr,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: Option<&[u8]>,
) -> io::Result<Response> {
    let mut all = vec![("Connection", "close")];
    all.extend_from_slice(headers);
    Connection::open(addr)?.request(method, path, &all, body)
}

/// Sends `GET` on a new connection.
pub fn get(addr: &Addr, path: &str) -> io::Result<Response> {
    request(addr, "GET", path, &[], None)
}

/// A client of a tenant's API, `/api/v1`, with one PAK.
#[derive(Debug, Clone)]
pub struct Api {
    /// The address of the tenant.
    pub addr: Addr,
    /// The PAK, sent as `Authorization: Bearer`; an empty PAK is not sent.
    pub pak: String,
}

impl Api {
    /// Makes a client of `addr` with `pak`.
    pub fn new(addr: Addr, pak: impl Into<String>) -> Self {
        Self {
            addr,
            pak: pak.into(),
        }
    }

    /// Returns a client of the same tenant with another PAK.
    #[must_use]
    pub fn with_pak(&self, pak: impl Into<String>) -> Self {
        Self {
            addr: self.addr.clone(),
            pak: pak.into(),
        }
    }

    /// Sends `GET /api/v1PATH`.
    pub fn get(&self, path: &str) -> Response {
        self.call("GET", path, None)
    }

    /// Sends `GET /api/v1PATH` and returns the JSON of an answer 200.
    #[track_caller]
    pub fn get_json(&self, path: &str) -> Value {
        self.get(path).expect(200).json()
    }

    /// Sends `POST /api/v1PATH` with a JSON body and returns the JSON of an answer 201.
    #[track_caller]
    pub fn create(&self, path: &str, body: &Value) -> Value {
        self.post(path, body).expect(201).json()
    }

    /// Sends `DELETE /api/v1PATH`.
    pub fn delete(&self, path: &str) -> Response {
        self.call("DELETE", path, None)
    }

    /// Sends `DELETE /api/v1PATH`, whose answer must be 204.
    #[track_caller]
    pub fn remove(&self, path: &str) {
        self.delete(path).expect(204);
    }

    /// Sends `POST /api/v1PATH` with a JSON body.
    pub fn post(&self, path: &str, body: &Value) -> Response {
        self.call("POST", path, Some(body))
    }

    /// Sends `PUT /api/v1PATH` with a JSON body.
    pub fn put(&self, path: &str, body: &Value) -> Response {
        self.call("PUT", path, Some(body))
    }

    /// Sends any request with a JSON body or none.
    pub fn call(&self, method: &str, path: &str, body: Option<&Value>) -> Response {
        self.try_call(method, path, body)
            .unwrap_or_else(|e| panic!("{method} {path} at {}: {e}", self.addr))
    }

    /// Sends any request with a JSON body or none.
    pub fn try_call(&self, method: &str, path: &str, body: Option<&Value>) -> io::Result<Response> {
        let bytes = body.map(Value::to_string);
        self.try_bytes(
            method,
            path,
            "application/json",
            bytes.as_deref().map(str::as_bytes),
        )
    }

    /// Sends any request with any body.
    pub fn try_bytes(
        &self,
        method: &str,
        path: &str,
        content_type: &str,
        body: Option<&[u8]>,
    ) -> io::Result<Response> {
        let bearer = format!("Bearer {}", self.pak);
        let mut headers = Vec::new();
        if !self.pak.is_empty() {
            headers.push(("Authorization", bearer.as_str()));
        }
        if body.is_some() {
            headers.push(("Content-Type", content_type));
        }
        request(
            &self.addr,
            method,
            &format!("/api/v1{path}"),
            &headers,
            body,
        )
    }
}
