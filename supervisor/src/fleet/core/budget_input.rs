//! Translates a tenant's configuration into the budget's terms, for `run` and `check`.

use crate::budget::{ConnectionTarget, SchemaAndAddress, TenantDemand};
use crate::servers::provision::role_name;
use crate::servers::{Endpoint, ServersView};
use brokkr_tenant::{DatabaseUrl, Listen, PoolSize, SchemaName, TlsPair};
use std::sync::Arc;

/// The part of a tenant's configuration that decides about the tenant.
pub(crate) trait TenantSettings {
    /// Returns `database.url`.
    fn url(&self) -> &DatabaseUrl;
    /// Returns `database.schema`.
    fn schema(&self) -> &SchemaName;
    /// Returns `http.listen`.
    fn listen(&self) -> &Listen;
    /// Returns `database.pool_size`.
    fn pool(&self) -> u32;
    /// Returns `supervision.priority`, clamped to the range of `i32`.
    fn priority(&self) -> i32;
    /// Returns `supervision.enabled`.
    fn enabled(&self) -> bool;
    /// Returns the certificate and key of the listener, which an instance takes while it runs. `None` without TLS, and
    /// where the key is not known.
    fn tls(&self) -> Option<&Arc<TlsPair>>;
    /// Returns true when an instance of `other` need not be replaced by an instance of this configuration.
    fn same_instance(&self, other: &Self) -> bool;
    /// Returns the same configuration with another pool.
    fn with_pool(&self, pool: PoolSize) -> Self;
    /// Formats a problem with the value of `key` as one line that begins with its place.
    fn at(&self, key: &str, problem: &str) -> String;

    /// Returns the URL that the prober logs in with.
    fn probe_url(&self) -> &DatabaseUrl {
        self.url()
    }
    /// Returns true when the tenant has a login role of its own.
    fn has_own_role(&self) -> bool {
        false
    }

    /// Returns the endpoint of the URL that the prober logs in with.
    fn endpoint<'v>(&self, view: &'v ServersView) -> &'v Endpoint {
        view.endpoint(self.probe_url())
    }

    /// Returns the reason why the tenant cannot use its server now, if any.
    fn server_problem(&self, view: &ServersView) -> Option<String> {
        let problem = self.endpoint(view).problem()?;
        Some(match self.has_own_role() {
            true => format!("by [provision] admin_url: {problem}"),
            false => problem.to_owned(),
        })
    }

    /// Returns the target of its connections, once the prober has been there.
    fn place(&self, view: &ServersView) -> Option<ConnectionTarget> {
        let mut place = self.endpoint(view).place()?.clone();
        if self.has_own_role() {
            place.role = role_name(place.database, self.schema());
            place.superuser = false;
        }
        Some(place)
    }

    /// Returns the database, schema and address that this configuration needs exclusively.
    fn schema_and_address(&self, view: &ServersView) -> SchemaAndAddress {
        let url = self.url();
        let place = self.place(view);
        SchemaAndAddress {
            database: place.map(|place| (place.server, place.database)),
            // The text is one word in a line of STATE_DIR/admitted.
            spelled: format!("{:?}:{}/{}", url.host(), url.port(), url.dbname())
                .replace(char::is_whitespace, "%20"),
            schema: self.schema().clone(),
            listen: self.listen().clone(),
        }
    }

    /// Returns the tenant's wish for the budget.
    fn demand(&self, view: &ServersView) -> TenantDemand {
        TenantDemand::Pool {
            connections: self.pool(),
            at: self.place(view),
        }
    }
}
