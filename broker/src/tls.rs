//! TLS of the tenant's listener: the certificate that new handshakes get, which can be replaced while the broker runs.
//!
//! A replacement is a whole new server configuration, so that no session of the old certificate is resumed. Connections
//! keep what their handshake agreed on. The cryptography is chosen here explicitly, because two crates could set a
//! process-wide default differently.

use std::sync::{Arc, PoisonError, RwLock};

use brokkr_tenant::{TlsError, TlsPair};
use rustls::ServerConfig;
use rustls::crypto::ring;
use rustls::sign::SingleCertAndKey;
use tokio_rustls::TlsAcceptor;

/// The protocols that the listener speaks, for ALPN; HTTP/1.1 first, because it is preferred.
const PROTOCOLS: [&[u8]; 2] = [b"http/1.1", b"http/1.0"];

/// Handle to the present certificate. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Tls(Arc<RwLock<Arc<ServerConfig>>>);

impl Tls {
    /// Returns a handle that serves with this pair.
    ///
    /// # Errors
    /// The reason why no server can use the pair.
    pub fn new(pair: &TlsPair) -> Result<Self, TlsError> {
        Ok(Self(Arc::new(RwLock::new(server_config(pair)?))))
    }

    /// Serves new handshakes with this pair. After an error the old pair stays.
    ///
    /// # Errors
    /// The reason why no server can use the pair.
    pub fn replace(&self, pair: &TlsPair) -> Result<(), TlsError> {
        let config = server_config(pair)?;
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = config;
        Ok(())
    }

    /// Returns the acceptor for the next handshake.
    pub fn acceptor(&self) -> TlsAcceptor {
        let config = self.0.read().unwrap_or_else(PoisonError::into_inner);
        TlsAcceptor::from(Arc::clone(&config))
    }
}

fn server_config(pair: &TlsPair) -> Result<Arc<ServerConfig>, TlsError> {
    let key = SingleCertAndKey::from(pair.certified_key()?);
    #[expect(
        clippy::expect_used,
        reason = "fails only for a provider that supports no suite of a version, and ring supports both"
    )]
    let builder = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
        .expect("ring supports TLS 1.2 and 1.3");
    let mut config = builder
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(key));
    config.alpn_protocols = PROTOCOLS.map(<[u8]>::to_vec).into();
    Ok(Arc::new(config))
}
