//! A tenant's database: a PostgreSQL URL as libpq writes it, read by us.
//!
//! Read here and not by the driver, because what the URL says decides more than one connection: which server a
//! tenant counts on, what TLS has to prove, what may be shown to people. What we do not implement is refused by name.

mod options;
mod parse;

use std::{
    fmt,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::{Deserialize, Serialize, Serializer};

use crate::{Invalid, Secret, secret::REDACTED};

/// The port of a URL without one.
pub const DEFAULT_PORT: u16 = 5432;

/// Where the server is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Host {
    /// A host name or an IP address (an IPv6 address without brackets).
    Tcp(String),
    /// The folder of a Unix socket, absolute.
    Unix(PathBuf),
}

/// What TLS has to do, as libpq means it.
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
    /// TLS, chain and host name.
    VerifyFull,
}

impl SslMode {
    /// The word of `sslmode=`.
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

/// What `channel_binding=` asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ChannelBinding {
    /// Never.
    Disable,
    /// If the server offers it.
    Prefer,
    /// Nothing else is accepted.
    Require,
}

/// TCP keepalives as the URL asks for them; what is `None` is left to whoever connects.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Keepalives {
    /// `keepalives=0` turns them off.
    pub enabled: Option<bool>,
    /// `keepalives_idle`: quiet time before the first.
    pub idle: Option<Duration>,
    /// `keepalives_interval`: time between two.
    pub interval: Option<Duration>,
    /// `keepalives_count`: how many unanswered ones end the connection.
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
    channel_binding: Option<ChannelBinding>,
    application_name: Option<String>,
    connect_timeout: Option<Duration>,
    tcp_user_timeout: Option<Duration>,
    keepalives: Keepalives,
}

impl DatabaseUrl {
    /// Takes a URL as libpq reads it: `postgres://user:password@host:port/database?option=value`.
    ///
    /// Without a host it is the Unix socket in `/var/run/postgresql`, without a port 5432, without a user the
    /// user this program runs as, without a database the user's name. The environment (`PGUSER` …) is not read.
    ///
    /// # Errors
    /// When it is not such a URL, names several hosts, or names an option that is not implemented (the message
    /// names it). No message ever holds the URL or a part of it that could be the password.
    pub fn parse(text: &str) -> Result<Self, Invalid> {
        parse::parse(text)
    }

    /// The server's host.
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// The server's port; also part of a Unix socket's name.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The role to log in as.
    pub fn user(&self) -> &str {
        &self.user
    }

    /// The role's password.
    pub fn password(&self) -> Option<&Secret> {
        self.password.as_ref()
    }

    /// The database.
    pub fn dbname(&self) -> &str {
        &self.dbname
    }

    /// What TLS has to do. Over a Unix socket there is no TLS, as in libpq.
    pub fn ssl_mode(&self) -> SslMode {
        self.ssl_mode
    }

    /// The file of trusted root certificates; `None`: the system's.
    pub fn ssl_root_cert(&self) -> Option<&Path> {
        self.ssl_root_cert.as_deref()
    }

    /// What `channel_binding=` asks for; `None`: not said.
    pub fn channel_binding(&self) -> Option<ChannelBinding> {
        self.channel_binding
    }

    /// The URL's own `application_name`. Brokers and supervisor do not use it: theirs is how connections are counted.
    pub fn application_name(&self) -> Option<&str> {
        self.application_name.as_deref()
    }

    /// The URL's `connect_timeout`; `None` also for 0, which in libpq is for ever.
    pub fn connect_timeout(&self) -> Option<Duration> {
        self.connect_timeout
    }

    /// The URL's `tcp_user_timeout`; `None` also for 0, which is the kernel's default.
    pub fn tcp_user_timeout(&self) -> Option<Duration> {
        self.tcp_user_timeout
    }

    /// The URL's keepalives.
    pub fn keepalives(&self) -> Keepalives {
        self.keepalives
    }

    /// The same database as another role.
    #[must_use]
    pub fn with_user(mut self, user: impl Into<String>, password: Option<Secret>) -> Self {
        self.user = user.into();
        self.password = password;
        self
    }

    /// The same server and role, another database.
    #[must_use]
    pub fn with_dbname(mut self, dbname: impl Into<String>) -> Self {
        self.dbname = dbname.into();
        self
    }

    /// The same URL with a relative `sslrootcert` taken from `base`.
    #[must_use]
    pub fn within(mut self, base: &Path) -> Self {
        self.ssl_root_cert = self.ssl_root_cert.map(|path| base.join(path));
        self
    }

    /// The URL for people: everything but the password, which is `***`.
    pub fn redacted(&self) -> String {
        self.write(Some(REDACTED))
    }

    /// The URL with the password in the clear. Reads back as an equal URL.
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
            // The port of a Unix socket has no place before the path where there is no host.
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

/// Percent-encodes everything that could mean something in a URL; what is left is also safe in a shell.
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
        // Not `try_from`: the text must not be echoed by serde.
        let text = String::deserialize(deserializer)?;
        Self::parse(&text).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests;
