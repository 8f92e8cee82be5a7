//! `healthcheck`: probes the broker of this configuration, for containers that have no HTTP client.
//!
//! Over TLS the certificate is not verified, because its names are those of the tenant's clients and not of this host's
//! loopback address. The request holds no secret.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use brokkr_pg::unverified_tls;
use brokkr_tenant::{HttpConfig, Listen};
use rustls::pki_types::ServerName;
use rustls::{ClientConnection, StreamOwned};

/// Longest wait for an answer; longer than the broker's own probe of its database takes.
const TIMEOUT: Duration = Duration::from_secs(3);

/// Requests `/readyz` at the configured address. The error holds the answer.
pub(super) fn run(http: &HttpConfig) -> Result<(), String> {
    let listen = &http.listen;
    let answer = ask(listen, http.tls.is_some()).map_err(|error| format!("{listen}: {error}"))?;
    let status = answer.lines().next().unwrap_or_default();
    if status.split(' ').nth(1) == Some("200") {
        return Ok(());
    }
    let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    Err(format!("{listen}: {status}: {}", body.trim()))
}

fn ask(listen: &Listen, tls: bool) -> std::io::Result<String> {
    match listen {
        Listen::Tcp(address) => {
            let stream = TcpStream::connect_timeout(&reachable(*address), TIMEOUT)?;
            stream.set_read_timeout(Some(TIMEOUT))?;
            stream.set_write_timeout(Some(TIMEOUT))?;
            ask_over(stream, tls)
        }
        Listen::Unix(path) => {
            let stream = UnixStream::connect(path)?;
            stream.set_read_timeout(Some(TIMEOUT))?;
            stream.set_write_timeout(Some(TIMEOUT))?;
            ask_over(stream, tls)
        }
    }
}

fn ask_over(stream: impl Read + Write, tls: bool) -> std::io::Result<String> {
    if !tls {
        return exchange(stream);
    }
    let config = unverified_tls().map_err(std::io::Error::other)?;
    let name = ServerName::IpAddress(Ipv4Addr::LOCALHOST.into());
    let client = ClientConnection::new(Arc::new(config), name).map_err(std::io::Error::other)?;
    exchange(StreamOwned::new(client, stream))
}

fn exchange(mut stream: impl Read + Write) -> std::io::Result<String> {
    stream.write_all(b"GET /readyz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
    let mut answer = Vec::new();
    // A broker's answer is short; the limit guards against another program at this address.
    stream.take(16 * 1024).read_to_end(&mut answer)?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

/// Replaces the unspecified address by loopback, because not every platform can connect to the unspecified address.
fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}
