//! Logging in to the server, by `r2d2_postgres`.
//!
//! Its manager always connects the same way, with TLS or without. `sslmode=prefer` tries both, so [`Login`] holds a manager
//! for each.

use brokkr_pg::{ConnectError, Connector, MakeRustlsConnect, Options};
use brokkr_tenant::DatabaseUrl;
use postgres::{Client, NoTls};
use r2d2::ManageConnection;
use r2d2_postgres::PostgresConnectionManager;

/// Connects to one URL, and recognises a connection that has ended. Sets nothing in the session.
pub(in crate::db) struct Login {
    connector: Connector,
    /// `None` when there is to be no TLS.
    tls: Option<PostgresConnectionManager<MakeRustlsConnect>>,
    plain: PostgresConnectionManager<NoTls>,
}

impl Login {
    /// Prepares connections to `url`.
    pub(super) fn new(url: &DatabaseUrl, options: &Options) -> Result<Self, ConnectError> {
        let connector = Connector::new(url, options)?;
        let tls = connector.with_tls();
        Ok(Login {
            tls: tls.map(|(config, tls)| PostgresConnectionManager::new(config, tls)),
            plain: PostgresConnectionManager::new(connector.without_tls(), NoTls),
            connector,
        })
    }
}

impl ManageConnection for Login {
    type Connection = Client;
    type Error = ConnectError;

    fn connect(&self) -> Result<Client, ConnectError> {
        let fail = |error| self.connector.failure(error);
        let plain = || self.plain.connect().map_err(fail);
        match &self.tls {
            None => plain(),
            Some(tls) => match tls.connect().map_err(fail) {
                Err(error) if self.connector.falls_back(&error) => plain(),
                result => result,
            },
        }
    }

    /// Sends an empty query, and waits for its answer.
    fn is_valid(&self, client: &mut Client) -> Result<(), ConnectError> {
        // Either manager will do: TLS is a matter of connecting only.
        self.plain
            .is_valid(client)
            .map_err(|error| self.connector.failure(error))
    }

    fn has_broken(&self, client: &mut Client) -> bool {
        self.plain.has_broken(client)
    }
}
