//! Errors of connecting to a server, classified so that a caller can decide whether to retry.

use std::{error::Error, fmt};

use postgres::error::SqlState;

/// The class of a connection error.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reason {
    /// No server answered: connection refused, no route, unknown host or socket, timeout, or connection lost.
    Unreachable,
    /// The server refuses the role (class 28): unknown role, wrong password, or no matching line in pg_hba.conf.
    Denied,
    /// The database does not exist (3D000).
    NoDatabase,
    /// All connections that the server, the database or the role allows are taken (53300).
    TooManyConnections,
    /// The server is starting, stopping or recovering (57P01 to 57P03).
    NotReady,
    /// The server is read-only, but the caller requires a server that takes writes.
    ReadOnly,
    /// The server offers no TLS, or its certificate fails the check that `sslmode` requires.
    Tls,
    /// Any other error; the text has the details.
    Other,
}

/// A failed connection. The text names the server and gives the cause; it never holds the password.
pub struct ConnectError {
    reason: Reason,
    text: String,
    source: Option<Box<dyn Error + Send + Sync>>,
}

/// Beginning of the driver's text for a failed TLS handshake. The driver offers no other way to tell; a test checks it.
const TLS: &str = "error performing TLS handshake";
/// Beginning of the driver's text for a failed authentication.
const AUTHENTICATION: &str = "authentication error";
/// Beginning of the driver's text for an invalid configuration.
const CONFIGURATION: &str = "invalid configuration";

/// Functions of PostgreSQL 14 to 18 that refuse a login before the server knows its role or database.
const BEFORE_ANY_ROLE: [&str; 3] = ["ProcessStartupPacket", "BackendInitialize", "InitProcess"];

impl ConnectError {
    pub(crate) fn new(server: &str, error: postgres::Error) -> Self {
        let shown = error.to_string();
        let causes = causes(&error);
        let (reason, text) = if let Some(db) = error.as_db_error() {
            let reason = match db.code() {
                code if *code == SqlState::TOO_MANY_CONNECTIONS => Reason::TooManyConnections,
                code if *code == SqlState::INVALID_CATALOG_NAME => Reason::NoDatabase,
                code if ["57P01", "57P02", "57P03"].contains(&code.code()) => Reason::NotReady,
                code if code.code().starts_with("28") => Reason::Denied,
                // A pooler reports 08P01 where a server reports its own code.
                _ => Reason::Other,
            };
            (reason, format!("{} ({})", db.message(), db.code().code()))
        } else if causes.contains("does not allow writes") || causes.contains("read only") {
            (Reason::ReadOnly, causes)
        } else if shown.starts_with(TLS) {
            (Reason::Tls, causes)
        } else if shown.starts_with(AUTHENTICATION) || causes.contains("password missing") {
            (Reason::Denied, causes)
        } else if shown.starts_with(CONFIGURATION) {
            (Reason::Other, causes)
        } else {
            // All other errors come from the network: connecting, timeout, or a closed or broken connection.
            (Reason::Unreachable, causes)
        };
        Self {
            reason,
            text: format!("{server}: {text}"),
            source: Some(Box::new(error)),
        }
    }

    pub(crate) fn tls(server: &str, error: crate::tls::TlsError) -> Self {
        Self {
            reason: Reason::Tls,
            text: format!("{server}: {error}"),
            source: Some(Box::new(error)),
        }
    }

    /// Returns the class of this error.
    pub fn reason(&self) -> Reason {
        self.reason
    }

    /// Returns the SQLSTATE, if the server sent one.
    pub fn code(&self) -> Option<&SqlState> {
        self.source
            .as_ref()?
            .downcast_ref::<postgres::Error>()?
            .code()
    }

    /// Returns true when the server refuses every login, for any role and database: it is starting or stopping (57P03),
    /// or all of its connections are taken (53300).
    ///
    /// The function of the server that reports the error decides, because a role or a database that has reached its own
    /// limit also reports 53300, and a pooler passes on the errors of the servers behind it. The text cannot decide,
    /// because `lc_messages` changes it. A shortage that only spares reserved connections does not count, because some
    /// roles may use those.
    pub fn concerns_every_login(&self) -> bool {
        let db = self
            .source
            .as_ref()
            .and_then(|source| source.downcast_ref::<postgres::Error>())
            .and_then(postgres::Error::as_db_error);
        db.is_some_and(|db| {
            let code = db.code();
            (*code == SqlState::CANNOT_CONNECT_NOW || *code == SqlState::TOO_MANY_CONNECTIONS)
                && db
                    .routine()
                    .is_some_and(|routine| BEFORE_ANY_ROLE.contains(&routine))
        })
    }

    /// Returns true when a retry may succeed without a change of configuration.
    pub fn is_transient(&self) -> bool {
        matches!(
            self.reason,
            Reason::Unreachable | Reason::TooManyConnections | Reason::NotReady | Reason::ReadOnly
        )
    }

    /// Returns true when libpq's `prefer` would retry without TLS.
    pub(crate) fn may_do_without_tls(&self) -> bool {
        self.reason == Reason::Tls
            || self.code() == Some(&SqlState::INVALID_AUTHORIZATION_SPECIFICATION)
    }
}

/// Joins the driver's text with the texts of its causes, because the first alone only says that something failed.
fn causes(error: &postgres::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.ends_with(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        cause = error.source();
    }
    text
}

impl fmt::Display for ConnectError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for ConnectError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}({})", self.reason, self.text)
    }
}

// No `source()`, because the text already holds the causes and a printed chain would repeat them.
impl Error for ConnectError {}
