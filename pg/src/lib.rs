//! One connection to one PostgreSQL server, as a tenant's database URL means it.
//!
//! Both programs connect through here, so that a URL proves the same thing to the supervisor's prober and to the
//! broker's pool: [`config`] turns the URL into the driver's configuration, [`Connector`] adds TLS as `sslmode` asks
//! for it, and [`ConnectError`] says in one word what a refusal means for whoever has to decide about trying again.
//!
//! Server settings are not passed in the startup packet (`options=`): a pooler in front refuses those. They are set by the
//! first message of a session: [`SETTINGS`], which correctness rests on, and the caller's ([`Options::settings`]). Only
//! [`Connector::open`] leaves them to its caller.

#![forbid(unsafe_code)]

mod error;
mod identity;
mod session;
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
/// Makes a connection's TLS; see [`Connector::with_tls`].
pub use tokio_postgres_rustls::MakeRustlsConnect;

/// Longest time to reach the server, unless the URL says otherwise.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// Longest time sent data may stay unacknowledged, unless the URL says otherwise.
pub const TCP_USER_TIMEOUT: Duration = Duration::from_secs(5);

/// Quiet time before the first keepalive, unless the URL says otherwise; the system's own is two hours. A connection that
/// something in between has forgotten while a statement was out is found by nothing else, and holds one of few places until
/// then: as long as for data that is not acknowledged, and no longer.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(3);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(2);
const KEEPALIVE_COUNT: u32 = 2;

/// What keeps an asynchronous connection going; the connection ends when it does.
pub type Work = Pin<Box<dyn Future<Output = Result<(), postgres::Error>> + Send>>;

/// What the URL does not say about a connection.
#[derive(Debug, Clone)]
pub struct Options {
    /// `application_name`; see [`application_name`].
    pub application_name: String,
    /// Longest time to reach the server; `None`: the URL's, else [`CONNECT_TIMEOUT`].
    pub connect_timeout: Option<Duration>,
    /// Refuse a standby or a read-only server. Costs a round trip for each connection.
    pub read_write: bool,
    /// `SET …;` statements sent behind [`SETTINGS`], in the same message.
    pub settings: &'static str,
}

impl Options {
    /// A connection of this name that takes any server.
    pub fn new(application_name: impl Into<String>) -> Self {
        Self {
            application_name: application_name.into(),
            connect_timeout: None,
            read_write: false,
            settings: "",
        }
    }

    /// The same, but only to a server that takes writes.
    #[must_use]
    pub fn read_write(mut self) -> Self {
        self.read_write = true;
        self
    }

    /// The same with settings of its own.
    #[must_use]
    pub fn settings(mut self, settings: &'static str) -> Self {
        self.settings = settings;
        self
    }

    /// The same with its own time to reach the server.
    #[must_use]
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.connect_timeout = Some(timeout);
        self
    }
}

/// The driver's configuration for `url`. `sslmode` is in it only as far as the driver knows it: what a certificate has
/// to prove is in [`Connector`]. `target_session_attrs` is left to the caller.
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

/// What TLS has to do for this URL: nothing over a Unix socket, whatever it says, as in libpq.
fn ssl_mode(url: &DatabaseUrl) -> SslMode {
    match url.host() {
        Host::Unix(_) => SslMode::Disable,
        Host::Tcp(_) => url.ssl_mode(),
    }
}

/// Connects again and again to one URL. Trusted roots are read once, when it is made.
#[derive(Clone)]
pub struct Connector {
    config: tokio_postgres::Config,
    mode: SslMode,
    /// `None` when there is to be no TLS.
    tls: Option<MakeRustlsConnect>,
    server: String,
    /// The first message of a session.
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
        let server = match url.host() {
            Host::Tcp(host) if host.contains(':') => format!("[{host}]:{}", url.port()),
            Host::Tcp(host) => format!("{host}:{}", url.port()),
            Host::Unix(folder) => format!("{}/.s.PGSQL.{}", folder.display(), url.port()),
        };
        let mut config = driver_config(url, &options.application_name);
        if let Some(timeout) = options.connect_timeout {
            config.connect_timeout(timeout);
        }
        if options.read_write {
            config.target_session_attrs(TargetSessionAttrs::ReadWrite);
        }
        let mode = ssl_mode(url);
        let tls = tls::client(mode, url.ssl_root_cert())
            .map_err(|error| ConnectError::tls(&server, error))?;
        Ok(Self {
            config,
            mode,
            tls: tls.map(MakeRustlsConnect::new),
            server,
            settings: [session::SETTINGS, session::CATALOG_ONLY, options.settings].concat(),
        })
    }

    /// Opens one connection. Blocks; not for an event loop.
    ///
    /// The timeout covers reaching the server. A server that accepts and then says nothing (stopped, swapped out) is
    /// waited for as long as its kernel acknowledges: a caller that cannot wait must bound this from outside.
    ///
    /// # Errors
    /// The reason says what it means; the text names the server and never holds the password.
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

    /// Opens one connection for an event loop: the client, and the work to be run beside it. Without a bound of its
    /// own beyond reaching the server, and dropped without harm at any time.
    ///
    /// Sets nothing in the session: a pooler that shares its sessions would hand the settings on to others, and it is for
    /// the caller to find out that there is none.
    ///
    /// # Errors
    /// As [`Connector::connect`].
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

    /// Returns what it takes to connect with TLS, unless there is to be none. With [`Connector::without_tls`], [`Connector::falls_back`] and
    /// [`Connector::failure`] all that [`Connector::connect`] does but the settings, for a pool that connects by itself.
    pub fn with_tls(&self) -> Option<(Config, MakeRustlsConnect)> {
        let tls = self.tls.clone()?;
        Some((self.config.clone().into(), tls))
    }

    /// Returns what it takes to connect without TLS.
    pub fn without_tls(&self) -> Config {
        self.plain().into()
    }

    /// Says what the driver's error means, and which server it is about.
    pub fn failure(&self, error: postgres::Error) -> ConnectError {
        ConnectError::new(&self.server, error)
    }

    /// Returns true when the next try is without TLS. `prefer` is the only mode that may end so: where the handshake fails, and where
    /// the server's pg_hba.conf has no line for TLS (the server itself saying that it has no TLS is seen by the driver).
    pub fn falls_back(&self, error: &ConnectError) -> bool {
        self.mode == SslMode::Prefer && error.may_do_without_tls()
    }

    /// When plain fails too, what it says is the newer of two truths, as in libpq.
    fn plain(&self) -> tokio_postgres::Config {
        let mut plain = self.config.clone();
        plain.ssl_mode(PgSslMode::Disable);
        plain
    }
}

/// Opens one connection to `url`: [`Connector::new`] and [`Connector::connect`].
///
/// # Errors
/// As those.
pub fn connect(url: &DatabaseUrl, options: &Options) -> Result<Client, ConnectError> {
    Connector::new(url, options)?.connect()
}
