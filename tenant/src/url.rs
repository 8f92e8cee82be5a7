//! A tenant's database, as a PostgreSQL URL in libpq's form.
//!
//! This crate reads the URL instead of the driver, because the budget, the TLS checks and messages need its parts.
//! Options that are not implemented are refused by name.

mod options;
mod parse;
mod parts;

use std::{
    fmt,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::{Deserialize, Serialize, Serializer};

use crate::{Invalid, SchemaName, Secret, secret::REDACTED};

/// The port of a URL without one.
pub const DEFAULT_PORT: u16 = 5432;

/// The address of the server.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Host {
    /// A host name or an IP address (an IPv6 address without brackets).
    Tcp(String),
    /// The folder of a Unix socket, absolute.
    Unix(PathBuf),
}

impl Host {
    /// Names the server at this host and port in messages.
    pub fn server(&self, port: u16) -> String {
        match self {
            Self::Tcp(host) if host.contains(':') => format!("[{host}]:{port}"),
            Self::Tcp(host) => format!("{host}:{port}"),
            Self::Unix(folder) => format!("{}/.s.PGSQL.{port}", folder.display()),
        }
    }
}

/// The mode of TLS, as in libpq.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SslMode {
    /// Never TLS.
    Disable,
    /// TLS if the server offers it, not verified.
    Prefer,
    /// TLS, not verified.
    Require,
    /// TLS, and the certificate's chain must lead to a trusted root.
    VerifyCa,
    /// TLS, with the certificate's chain and host name verified.
    VerifyFull,
}

impl SslMode {
    /// Returns the word for `sslmode=`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Disable => "disable",
            Self::Prefer => "prefer",
            Self::Require => "require",
            Self::VerifyCa => "verify-ca",
            Self::VerifyFull => "verify-full",
        }
    }
}

/// The use of channel binding, as in `channel_binding=`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ChannelBinding {
    /// Never use it.
    Disable,
    /// Use it if the server offers it.
    Prefer,
    /// Refuse a connection without it.
    Require,
}

/// The TCP keepalives that the URL asks for; `None` leaves the choice to the connecting code.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Keepalives {
    /// `keepalives=0` turns them off.
    pub enabled: Option<bool>,
    /// `keepalives_idle`: the quiet time before the first keepalive.
    pub idle: Option<Duration>,
    /// `keepalives_interval`: the time between two keepalives.
    pub interval: Option<Duration>,
    /// `keepalives_count`: the number of unanswered keepalives that ends the connection.
    pub count: Option<u32>,
}

/// A PostgreSQL URL. `Debug`, `Display` and `Serialize` hide the password; equality, order and hash do not.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DatabaseUrl {
    host: Host,
    port: u16,
    user: String,
    password: Option<Secret>,
    dbname: String,
    ssl_mode: SslMode,
    ssl_root_cert: Option<PathBuf>,
    /// The client's certificate and its key. Boxed, because few URLs have them.
    ssl_client: Option<Box<(PathBuf, PathBuf)>>,
    channel_binding: Option<ChannelBinding>,
    application_name: Option<String>,
    connect_timeout: Option<Duration>,
    tcp_user_timeout: Option<Duration>,
    keepalives: Keepalives,
}

impl DatabaseUrl {
    /// Parses a URL in libpq's form: `postgres://user:password@host:port/database?option=value`.
    ///
    /// The defaults are the Unix socket in `/var/run/postgresql`, port 5432, the user that this program runs as, and
    /// the database with the user's name. The environment (`PGUSER` …) is not read.
    ///
    /// # Errors
    /// When the text is not such a URL, names several hosts, or names an option that is not implemented. No message
    /// holds the URL or a part of it that could be the password.
    pub fn parse(text: &str) -> Result<Self, Invalid> {
        parse::parse(text)
    }

    /// Returns the server's host.
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// Returns the server's port, which is also part of a Unix socket's name.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Returns host and port as the URL spells them.
    pub fn address(&self) -> String {
        match &self.host {
            Host::Tcp(host) => format!("{host}:{}", self.port),
            Host::Unix(folder) => format!("{}:{}", folder.display(), self.port),
        }
    }

    /// Identifies a schema by its address in the URL, on a line of its own. A tenant that moves to another server has
    /// another schema there.
    pub fn schema_identity(&self, schema: &SchemaName) -> String {
        let host = match &self.host {
            Host::Tcp(host) => host.to_ascii_lowercase(),
            Host::Unix(folder) => folder.display().to_string(),
        };
        format!("{host}:{}/{} {schema}\n", self.port, self.dbname)
    }

    /// Returns the role to log in as.
    pub fn user(&self) -> &str {
        &self.user
    }

    /// Returns the role's password.
    pub fn password(&self) -> Option<&Secret> {
        self.password.as_ref()
    }

    /// Returns the name of the database.
    pub fn dbname(&self) -> &str {
        &self.dbname
    }

    /// Returns the mode of TLS. Over a Unix socket there is no TLS, as in libpq.
    pub fn ssl_mode(&self) -> SslMode {
        self.ssl_mode
    }

    /// Returns the file of trusted root certificates; `None` means the system's.
    pub fn ssl_root_cert(&self) -> Option<&Path> {
        self.ssl_root_cert.as_deref()
    }

    /// Returns the files of the client's certificate and of its key (`sslcert`, `sslkey`).
    pub fn ssl_client(&self) -> Option<(&Path, &Path)> {
        let (cert, key) = self.ssl_client.as_deref()?;
        Some((cert, key))
    }

    /// Returns every file that a connection reads: `sslrootcert`, `sslcert`, `sslkey`.
    pub fn ssl_files(&self) -> impl Iterator<Item = &Path> {
        let client = self.ssl_client.as_deref().into_iter();
        let of_client = client.flat_map(|(cert, key)| [cert.as_path(), key.as_path()]);
        self.ssl_root_cert().into_iter().chain(of_client)
    }

    /// Returns the use of channel binding; `None` if the URL does not set it.
    pub fn channel_binding(&self) -> Option<ChannelBinding> {
        self.channel_binding
    }

    /// Returns the URL's own `application_name`. Both programs set another, because connections are counted by it.
    pub fn application_name(&self) -> Option<&str> {
        self.application_name.as_deref()
    }

    /// Returns the URL's `connect_timeout`; `None` also for 0, which in libpq means no limit.
    pub fn connect_timeout(&self) -> Option<Duration> {
        self.connect_timeout
    }

    /// Returns the URL's `tcp_user_timeout`; `None` also for 0, which means the kernel's default.
    pub fn tcp_user_timeout(&self) -> Option<Duration> {
        self.tcp_user_timeout
    }

    /// Returns the URL's keepalives.
    pub fn keepalives(&self) -> Keepalives {
        self.keepalives
    }

    /// Changes the role and its password.
    #[must_use]
    pub fn with_user(mut self, user: impl Into<String>, password: Option<Secret>) -> Self {
        self.user = user.into();
        self.password = password;
        self
    }

    /// Changes the database.
    #[must_use]
    pub fn with_dbname(mut self, dbname: impl Into<String>) -> Self {
        self.dbname = dbname.into();
        self
    }

    /// Resolves relative `sslrootcert`, `sslcert` and `sslkey` against `base`.
    #[must_use]
    pub fn within(mut self, base: &Path) -> Self {
        self.ssl_root_cert = self.ssl_root_cert.map(|path| base.join(path));
        self.ssl_client = self
            .ssl_client
            .map(|client| Box::new((base.join(&client.0), base.join(&client.1))));
        self
    }

    /// Returns the URL for display, with `***` for the password.
    pub fn redacted(&self) -> String {
        self.write(Some(REDACTED))
    }

    /// Returns the URL with the password in the clear; parsing it gives an equal URL.
    pub fn expose(&self) -> String {
        let password = self
            .password
            .as_ref()
            .map(|password| encode(password.expose()));
        self.write(password.as_deref())
    }

    fn write(&self, password: Option<&str>) -> String {
        let mut url = format!("postgres://{}", encode(&self.user));
        if let (Some(_), Some(password)) = (&self.password, password) {
            url.push(':');
            url.push_str(password);
        }
        url.push('@');
        match &self.host {
            Host::Tcp(host) if host.contains(':') => {
                url.push_str(&format!("[{host}]:{}", self.port))
            }
            Host::Tcp(host) => url.push_str(&format!("{}:{}", encode(host), self.port)),
            // Without a host the port of a Unix socket has no place before the path; it is written as an option.
            Host::Unix(_) => {}
        }
        url.push('/');
        url.push_str(&encode(&self.dbname));
        for (n, (name, value)) in self.options().into_iter().enumerate() {
            url.push(if n == 0 { '?' } else { '&' });
            url.push_str(name);
            url.push('=');
            url.push_str(&encode(&value));
        }
        url
    }
}

/// Percent-encodes every character with a meaning in a URL or a shell.
fn encode(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

impl fmt::Display for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.redacted())
    }
}

impl fmt::Debug for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.redacted(), f)
    }
}

impl std::str::FromStr for DatabaseUrl {
    type Err = Invalid;
    fn from_str(text: &str) -> Result<Self, Invalid> {
        Self::parse(text)
    }
}

impl Serialize for DatabaseUrl {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.redacted())
    }
}

impl<'de> Deserialize<'de> for DatabaseUrl {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // Reads a text first, because `try_from` would let serde echo it.
        let text = String::deserialize(deserializer)?;
        Self::parse(&text).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests;
