//! Certificates of tests, and the client's side of TLS.

use crate::http::Wire;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{
    ClientConfig, ClientConnection, RootCertStore, StreamOwned, SupportedProtocolVersion,
};
use std::fmt;
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

/// The files of a certificate for `localhost` that signs itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Certificate {
    /// The PEM file of the certificate.
    pub cert: PathBuf,
    /// The PEM file of its key.
    pub key: PathBuf,
}

impl Certificate {
    /// Makes a certificate in `folder`, in files named after `name`.
    ///
    /// # Panics
    /// Without the program `openssl`.
    pub fn make(folder: &Path, name: &str) -> Self {
        let made = Self {
            cert: folder.join(format!("{name}.pem")),
            key: folder.join(format!("{name}.key")),
        };
        let status = Command::new("openssl")
            .args(["req", "-x509", "-newkey", "ec", "-pkeyopt"])
            .args(["ec_paramgen_curve:P-256", "-nodes", "-days", "30"])
            .args(["-subj", "/CN=localhost", "-keyout"])
            .arg(&made.key)
            .arg("-out")
            .arg(&made.cert)
            .args(["-addext", "subjectAltName=DNS:localhost"])
            // A certificate authority's own certificate is refused as a server's.
            .args(["-addext", "basicConstraints=critical,CA:FALSE"])
            .stderr(Stdio::null())
            .status()
            .expect("openssl is needed: it belongs to PostgreSQL's packages");
        assert!(status.success(), "openssl req");
        made
    }
}

/// A stream over TLS.
pub(crate) struct TlsWire(StreamOwned<ClientConnection, TcpStream>);

impl TlsWire {
    /// Shakes hands with a server that must present the certificate in this file, in one of these versions.
    pub(crate) fn connect(
        stream: TcpStream,
        trusted: &Path,
        versions: &[&'static SupportedProtocolVersion],
        protocols: &[&str],
    ) -> io::Result<Self> {
        let mut roots = RootCertStore::empty();
        let certificate = CertificateDer::from_pem_file(trusted).map_err(io::Error::other)?;
        roots.add(certificate).map_err(io::Error::other)?;
        let mut config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_protocol_versions(versions)
            .map_err(io::Error::other)?
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = protocols.iter().map(|p| p.as_bytes().to_vec()).collect();
        let name = ServerName::try_from("localhost").map_err(io::Error::other)?;
        let mut client = ClientConnection::new(Arc::new(config), name).map_err(io::Error::other)?;
        let mut stream = stream;
        while client.is_handshaking() {
            client.complete_io(&mut stream)?;
        }
        Ok(Self(StreamOwned::new(client, stream)))
    }

    /// Returns the protocol that the server has chosen.
    pub(crate) fn protocol(&self) -> Option<String> {
        let chosen = self.0.conn.alpn_protocol()?;
        Some(String::from_utf8_lossy(chosen).into_owned())
    }
}

impl fmt::Debug for TlsWire {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("TlsWire").field(&self.0.sock).finish()
    }
}

impl Read for TlsWire {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.0.read(buf)
    }
}

impl Write for TlsWire {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.0.write(buf)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

impl Wire for TlsWire {
    fn bound_reads(&self, bound: Duration) -> io::Result<()> {
        self.0.sock.set_read_timeout(Some(bound))
    }
}

/// Shakes hands once, and returns the protocol that the server has chosen among these.
///
/// # Errors
/// When the server refuses the versions or protocols, or presents another certificate.
pub fn handshake(
    address: &str,
    trusted: &Path,
    versions: &[&'static SupportedProtocolVersion],
    protocols: &[&str],
) -> io::Result<Option<String>> {
    let stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(30)))?;
    TlsWire::connect(stream, trusted, versions, protocols).map(|wire| wire.protocol())
}
