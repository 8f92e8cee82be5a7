//! Why there is no connection, in the words of whoever has to decide about trying again.

use std::{error::Error, fmt};

use postgres::error::SqlState;

/// What a refusal means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reason {
    /// No server answered: refused, no route, no such name, no such socket, timeout, connection lost.
    Unreachable,
    /// The server does not let this role in (class 28): unknown role, wrong password, no line in pg_hba.conf.
    Denied,
    /// The database does not exist (3D000).
    NoDatabase,
    /// Every connection the server, the database or the role may have is taken (53300).
    TooManyConnections,
    /// The server is starting, stopping or recovering (57P01 to 57P03).
    NotReady,
    /// The server takes no writes, and one that does was asked for.
    ReadOnly,
    /// TLS is not offered, or the certificate does not prove what `sslmode` asks for.
    Tls,
    /// Something else; the text says what.
    Other,
}

/// No connection. The text names the server and what it said; it never holds the password.
pub struct ConnectError {
    reason: Reason,
    text: String,
    source: Option<Box<dyn Error + Send + Sync>>,
}

/// How the driver begins the text of its errors of that kind; it offers no other way to tell. Tried by a test.
const TLS: &str = "error performing TLS handshake";
/// Likewise.
const AUTHENTICATION: &str = "authentication error";
/// Likewise.
const CONFIGURATION: &str = "invalid configuration";

/// Functions of the server, 14 to 18, that turn a login away before they look at its role or database.
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
                // A pooler says with 08P01 what a server says with its own code.
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
            // What is left is the network: connecting, timeout, closed, broken off.
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

    /// What it means.
    pub fn reason(&self) -> Reason {
        self.reason
    }

    /// The server's SQLSTATE, if it said one.
    pub fn code(&self) -> Option<&SqlState> {
        self.source
            .as_ref()?
            .downcast_ref::<postgres::Error>()?
            .code()
    }

    /// Whether the server says it to every login, whatever its role and database: it starts or stops (57P03), or all of its
    /// connections are taken (53300).
    ///
    /// A role or a database that has reached its own limit is 53300 as well, and a pooler passes on what one of the servers
    /// behind it said. So the function of the server that reports it decides: those below know no role yet. The text would
    /// not do, because `lc_messages` changes it. What is reserved for superusers is left out, because some roles may have it.
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

    /// Whether waiting may help without anybody changing a configuration.
    pub fn is_transient(&self) -> bool {
        matches!(
            self.reason,
            Reason::Unreachable | Reason::TooManyConnections | Reason::NotReady | Reason::ReadOnly
        )
    }

    /// Whether libpq's `prefer` would try again without TLS.
    pub(crate) fn may_do_without_tls(&self) -> bool {
        self.reason == Reason::Tls
            || self.code() == Some(&SqlState::INVALID_AUTHORIZATION_SPECIFICATION)
    }
}

/// The driver's text and what is below it: alone it only says that something failed.
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

// No `source()`: the text already says all of it, and a chain would say it twice.
impl Error for ConnectError {}
