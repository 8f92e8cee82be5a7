//! Connections to webhook targets: resolve, judge, connect, TLS.

use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::{Mutex, Semaphore, oneshot};
use tokio::time::{Instant, timeout_at};
use tokio_rustls::TlsConnector;
use url::{Host, Url};

use super::send_error::SendError;
use crate::webhook::address_policy::AddressPolicy;

/// The largest number of names resolved at once; others wait within their own time limit. Each takes a thread until the
/// system's resolver returns, even if the caller has gone. That thread is not from the runtime's pool, which the
/// database needs.
const LOOKUPS: usize = 16;

/// The largest number of addresses of one name that are tried.
const ADDRESSES: usize = 8;

/// The time limit for an address while there are others.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// The time after which the system's certificates are read again.
const ROOTS_LAST: Duration = Duration::from_secs(60 * 60);

/// A connection, encrypted or not.
pub(super) trait WebhookStream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> WebhookStream for T {}

/// The source of connections.
#[derive(Debug)]
pub(super) struct Connector {
    policy: AddressPolicy,
    lookups: Arc<Semaphore>,
    /// The system's trusted certificates, and the time of reading them. They are read only when needed, for most
    /// brokers never.
    tls: Mutex<Option<(Instant, Arc<ClientConfig>)>>,
}

impl Connector {
    pub(super) fn new(policy: AddressPolicy) -> Self {
        Self {
            policy,
            lookups: Arc::new(Semaphore::new(LOOKUPS)),
            tls: Mutex::new(None),
        }
    }

    /// Connects to the URL's host, at an address that the policy allows.
    pub(super) async fn connect(
        &self,
        url: &Url,
        deadline: Instant,
    ) -> Result<Box<dyn WebhookStream>, SendError> {
        let (Some(host), Some(port)) = (url.host(), url.port_or_known_default()) else {
            return Err(SendError::Location);
        };
        if !self.policy.allows_port(port) {
            return Err(SendError::Port(port));
        }
        let addresses = self.addresses(&host, port).await?;
        let tcp = connect_first(&addresses, deadline).await?;
        // The whole request is in one segment or two, so waiting for more data gains nothing.
        let _ = tcp.set_nodelay(true);
        if url.scheme() != "https" {
            return Ok(Box::new(tcp));
        }
        let name = match host {
            Host::Domain(name) => ServerName::try_from(name.to_owned())
                .map_err(|error| SendError::Tls(error.to_string()))?,
            Host::Ipv4(address) => ServerName::from(IpAddr::V4(address)),
            Host::Ipv6(address) => ServerName::from(IpAddr::V6(address)),
        };
        let config = self.tls_config().await?;
        let tls = TlsConnector::from(config)
            .connect(name, tcp)
            .await
            .map_err(|error| SendError::Tls(error.to_string()))?;
        Ok(Box::new(tls))
    }

    /// Returns every allowed address of the host, at least one.
    async fn addresses(&self, host: &Host<&str>, port: u16) -> Result<Vec<SocketAddr>, SendError> {
        let mut addresses = match host {
            Host::Ipv4(address) => vec![SocketAddr::from((*address, port))],
            Host::Ipv6(address) => vec![SocketAddr::from((*address, port))],
            Host::Domain(name) => self.resolve(name, port).await?,
        };
        addresses.retain(|address| self.policy.allows(address.ip()));
        addresses.truncate(ADDRESSES);
        if addresses.is_empty() {
            return Err(SendError::Address);
        }
        Ok(addresses)
    }

    async fn resolve(&self, name: &str, port: u16) -> Result<Vec<SocketAddr>, SendError> {
        let failed = |error: &dyn std::fmt::Display| SendError::Resolve(error.to_string());
        let permit = self
            .lookups
            .clone()
            .acquire_owned()
            .await
            .map_err(|error| failed(&error))?;
        let (tell, told) = oneshot::channel();
        let name = name.to_owned();
        std::thread::Builder::new()
            .name("dns".to_owned())
            .spawn(move || {
                let found = (name.as_str(), port)
                    .to_socket_addrs()
                    .map(|addresses| addresses.collect::<Vec<_>>());
                drop(permit);
                // Ignore that the caller may have gone.
                let _ = tell.send(found);
            })
            .map_err(|error| failed(&error))?;
        told.await
            .map_err(|error| failed(&error))?
            .map_err(|error| failed(&error))
    }

    async fn tls_config(&self) -> Result<Arc<ClientConfig>, SendError> {
        let mut kept = self.tls.lock().await;
        if let Some((since, config)) = &*kept
            && since.elapsed() < ROOTS_LAST
        {
            return Ok(config.clone());
        }
        let config = tokio::task::spawn_blocking(system_tls)
            .await
            .map_err(|error| SendError::Tls(error.to_string()))??;
        let config = Arc::new(config);
        *kept = Some((Instant::now(), config.clone()));
        Ok(config)
    }

    /// Trusts these certificates instead of the system's.
    #[cfg(test)]
    pub(super) async fn trust(&self, roots: RootCertStore) {
        let config = tls_with(roots).ok().map(Arc::new);
        *self.tls.lock().await = config.map(|config| (Instant::now(), config));
    }
}

fn system_tls() -> Result<ClientConfig, SendError> {
    let mut roots = RootCertStore::empty();
    // Skip unparsable certificates, as other programs do, because the broker does not own the store.
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if roots.is_empty() {
        let why = "the system has no trusted root certificates; install ca-certificates";
        return Err(SendError::Tls(why.to_owned()));
    }
    tls_with(roots)
}

fn tls_with(roots: RootCertStore) -> Result<ClientConfig, SendError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    Ok(ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| SendError::Tls(error.to_string()))?
        .with_root_certificates(roots)
        .with_no_client_auth())
}

/// Connects to the first address that answers.
async fn connect_first(
    addresses: &[SocketAddr],
    deadline: Instant,
) -> Result<TcpStream, SendError> {
    let mut error = String::new();
    for (at, address) in addresses.iter().enumerate() {
        let is_last = at + 1 == addresses.len();
        let until = if is_last {
            deadline
        } else {
            deadline.min(Instant::now() + CONNECT_TIMEOUT)
        };
        // Connect to the address itself, so that no name is resolved again.
        match timeout_at(until, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(refused)) => error = refused.to_string(),
            Err(_) => error = "it does not answer".to_owned(),
        }
    }
    Err(SendError::Connect(error))
}
