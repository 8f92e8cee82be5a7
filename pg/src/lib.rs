//! Connections to one PostgreSQL server, as a tenant's database URL defines them.
//!
//! Both programs connect through this crate, so that a URL means the same to the supervisor's prober and to the
//! broker's pool. [`config`] turns the URL into the driver's configuration, [`Connector`] adds TLS as `sslmode`
//! requires, and [`ConnectError`] classifies a failure so that the caller can decide whether to retry.
//!
//! The first message of a session carries the server settings, because a pooler refuses them in the startup packet
//! (`options=`). The message holds [`SETTINGS`], which correctness depends on, and the caller's own
//! ([`Options::settings`]). Only [`Connector::open`] leaves both to its caller.

#![forbid(unsafe_code)]

mod error;
mod identity;
mod session;
#[cfg(test)]
#[allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "a test that cannot go on says why and ends"
)]
mod tests;
mod tls;

use std::{pin::Pin, time::Duration};

use brokkr_tenant::{ChannelBinding, DatabaseUrl, Host, SslMode};
use postgres::{
    Client, Config, NoTls,
    config::{ChannelBinding as PgChannelBinding, SslMode as PgSslMode, TargetSessionAttrs},
};

pub use error::{ConnectError, Reason};
pub use identity::{application_name, application_prefix};
pub use session::{SETTINGS, set_up};
pub use tls::unverified as unverified_tls;
/// The TLS half of a connection; see [`Connector::with_tls`].
pub use tokio_postgres_rustls::MakeRustlsConnect;

/// The longest time to reach the server, unless the URL sets another.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// The longest time that sent data may stay unacknowledged, unless the URL sets another.
pub const TCP_USER_TIMEOUT: Duration = Duration::from_secs(5);

/// The quiet time before the first keepalive, unless the URL sets another; the system's default is two hours.
///
/// Only keepalives find a connection that a device on the way has forgotten during a statement, and the connection
/// occupies a place in the pool until then. So the limit is as long as that for unacknowledged data.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(3);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(2);
const KEEPALIVE_COUNT: u32 = 2;

/// The task that drives an asynchronous connection; the connection closes when the task ends.
pub type Work = Pin<Box<dyn Future<Output = Result<(), postgres::Error>> + Send>>;

/// The settings of a connection that the URL does not hold.
#[derive(Debug, Clone)]
pub struct Options {
    /// The `application_name`; see [`application_name`].
    pub application_name: String,
    /// The longest time to reach the server; `None` takes the URL's, else [`CONNECT_TIMEOUT`].
    pub connect_timeout: Option<Duration>,
    /// True to refuse a standby or a read-only server. Costs a round trip for each connection.
    pub read_write: bool,
    /// `SET …;` statements sent after [`SETTINGS`], in the same message.
    pub settings: &'static str,
}

impl Options {
    /// Returns options with this `application_name` that accept any server.
    pub fn new(application_name: impl Into<String>) -> Self {
        Self {
            application_name: application_name.into(),
            connect_timeout: None,
            read_write: false,
            settings: "",
        }
    }

    /// Requires a server that takes writes.
    #[must_use]
    pub fn read_write(mut self) -> Self {
        self.read_write = true;
        self
    }

    /// Sets the caller's own `SET …;` statements.
    #[must_use]
    pub fn settings(mut self, settings: &'static str) -> Self {
        self.settings = settings;
        self
    }

    /// Sets the longest time to reach the server.
    #[must_use]
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.connect_timeout = Some(timeout);
        self
    }
}

/// Returns the driver's configuration for `url`. Certificate checks belong to [`Connector`], because the driver knows
/// only a part of `sslmode`. The caller sets `target_session_attrs`.
pub fn config(url: &DatabaseUrl, application_name: &str) -> Config {
    driver_config(url, application_name).into()
}

fn driver_config(url: &DatabaseUrl, application_name: &str) -> tokio_postgres::Config {
    let mut config = tokio_postgres::Config::new();
    match url.host() {
        Host::Tcp(host) => config.host(host),
        Host::Unix(folder) => config.host_path(folder),
    };
    config
        .port(url.port())
        .user(url.user())
        .dbname(url.dbname())
        .application_name(application_name);
    if let Some(password) = url.password() {
        config.password(password.expose());
    }
    config.ssl_mode(match ssl_mode(url) {
        SslMode::Disable => PgSslMode::Disable,
        SslMode::Prefer => PgSslMode::Prefer,
        SslMode::Require | SslMode::VerifyCa | SslMode::VerifyFull => PgSslMode::Require,
    });
    if let Some(binding) = url.channel_binding() {
        config.channel_binding(match binding {
            ChannelBinding::Disable => PgChannelBinding::Disable,
            ChannelBinding::Prefer => PgChannelBinding::Prefer,
            ChannelBinding::Require => PgChannelBinding::Require,
        });
    }
    let keepalives = url.keepalives();
    config
        .connect_timeout(url.connect_timeout().unwrap_or(CONNECT_TIMEOUT))
        .tcp_user_timeout(url.tcp_user_timeout().unwrap_or(TCP_USER_TIMEOUT))
        .keepalives(keepalives.enabled.unwrap_or(true))
        .keepalives_idle(keepalives.idle.unwrap_or(KEEPALIVE_IDLE))
        .keepalives_interval(keepalives.interval.unwrap_or(KEEPALIVE_INTERVAL))
        .keepalives_retries(keepalives.count.unwrap_or(KEEPALIVE_COUNT));
    config
}

/// Returns the effective `sslmode`: over a Unix socket there is no TLS, as in libpq.
fn ssl_mode(url: &DatabaseUrl) -> SslMode {
    match url.host() {
        Host::Unix(_) => SslMode::Disable,
        Host::Tcp(_) => url.ssl_mode(),
    }
}

/// Opens connections to one URL. The trusted roots are read once, when the connector is made.
#[derive(Clone)]
pub struct Connector {
    config: tokio_postgres::Config,
    mode: SslMode,
    /// `None` when connections use no TLS.
    tls: Option<MakeRustlsConnect>,
    server: String,
    settings: String,
}

impl std::fmt::Debug for Connector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connector")
            .field("server", &self.server)
            .field("mode", &self.mode)
            .finish_non_exhaustive()
    }
}

impl Connector {
    /// Prepares connections to `url`.
    ///
    /// # Errors
    /// [`Reason::Tls`] when the trusted roots cannot be read.
    pub fn new(url: &DatabaseUrl, options: &Options) -> Result<Self, ConnectError> {
        let server = url.host().server(url.port());
        let mut config = driver_config(url, &options.application_name);
        if let Some(timeout) = options.connect_timeout {
            config.connect_timeout(timeout);
        }
        if options.read_write {
            config.target_session_attrs(TargetSessionAttrs::ReadWrite);
        }
        let mode = ssl_mode(url);
        let tls = tls::client(mode, url.ssl_root_cert(), url.ssl_client())
            .map_err(|error| ConnectError::tls(&server, error))?;
        Ok(Self {
            config,
            mode,
            tls: tls.map(MakeRustlsConnect::new),
            server,
            settings: [session::SETTINGS, session::CATALOG_ONLY, options.settings].concat(),
        })
    }

    /// Opens one connection. Blocks, so an event loop must not call it.
    ///
    /// The timeout covers reaching the server only. A server that accepts and then stays silent (stopped, swapped out)
    /// is waited for as long as its kernel acknowledges: a caller that cannot wait must set its own limit.
    pub fn connect(&self) -> Result<Client, ConnectError> {
        let fail = |error| self.failure(error);
        let plain = || self.without_tls().connect(NoTls).map_err(fail);
        let mut client = match self.with_tls() {
            None => plain()?,
            Some((config, tls)) => match config.connect(tls).map_err(fail) {
                Err(error) if self.falls_back(&error) => plain()?,
                result => result?,
            },
        };
        session::set_up(&mut client, &self.settings).map_err(fail)?;
        Ok(client)
    }

    /// Opens one connection for an event loop, and returns the client and the task that drives it.
    ///
    /// The timeout covers reaching the server only. The future may be dropped at any time.
    ///
    /// Leaves the session's settings to the caller, because a pooler that shares its sessions would pass the settings
    /// on to other clients: the caller must first find out that there is no such pooler.
    pub async fn open(&self) -> Result<(tokio_postgres::Client, Work), ConnectError> {
        let fail = |error| self.failure(error);
        if let Some(tls) = &self.tls {
            match self.config.connect(tls.clone()).await.map_err(fail) {
                Ok((client, work)) => return Ok((client, Box::pin(work))),
                Err(error) if self.falls_back(&error) => {}
                Err(error) => return Err(error),
            }
        }
        let (client, work) = self.plain().connect(NoTls).await.map_err(fail)?;
        Ok((client, Box::pin(work)))
    }

    /// Returns the parts to connect with TLS, or `None` for a connection without TLS.
    ///
    /// With [`Connector::without_tls`], [`Connector::falls_back`] and [`Connector::failure`] a pool can connect by
    /// itself as [`Connector::connect`] does, except for the settings.
    pub fn with_tls(&self) -> Option<(Config, MakeRustlsConnect)> {
        let tls = self.tls.clone()?;
        Some((self.config.clone().into(), tls))
    }

    /// Returns the configuration to connect without TLS.
    pub fn without_tls(&self) -> Config {
        self.plain().into()
    }

    /// Converts the driver's error, adding the server's name.
    pub fn failure(&self, error: postgres::Error) -> ConnectError {
        ConnectError::new(&self.server, error)
    }

    /// Returns true when the next try must go without TLS: in mode `prefer`, after a failed handshake or where
    /// pg_hba.conf has no line for TLS. (The driver itself handles a server that offers no TLS.)
    pub fn falls_back(&self, error: &ConnectError) -> bool {
        self.mode == SslMode::Prefer && error.may_do_without_tls()
    }

    /// The configuration without TLS. If this fails too, its error is reported, as in libpq.
    fn plain(&self) -> tokio_postgres::Config {
        let mut plain = self.config.clone();
        plain.ssl_mode(PgSslMode::Disable);
        plain
    }
}

/// Opens one connection to `url`: [`Connector::new`] and [`Connector::connect`].
pub fn connect(url: &DatabaseUrl, options: &Options) -> Result<Client, ConnectError> {
    Connector::new(url, options)?.connect()
}
