//! `[provision]`: a login role for each tenant.

use super::Read;
use crate::servers::provision::{ROLE_PREFIX, SessionLimits};
use brokkr_tenant::{
    BrokerConfig, DatabaseUrl, Diagnostics, Layer, Origin, Resolved, Value, url_file,
};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// `[provision]`.
#[derive(Debug, Clone)]
pub struct Provision {
    /// The URL of a role that may create roles on its server.
    pub admin: DatabaseUrl,
    /// True when the server serves only this supervisor, so that other databases are closed to tenants.
    pub exclusive: bool,
    /// `[provision.limits]`.
    pub limits: SessionLimits,
    /// The user in the URL of `[defaults.database]`, which tenants share.
    shared: Option<String>,
}

/// The role that a tenant's broker logs in as.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum TenantRole {
    /// The role in the tenant's URL. Holds the reason if `[provision]` is configured and provides no other.
    OfUrl(Option<String>),
    /// A role of the tenant's own, provisioned before each start.
    Own {
        /// The administrator's URL, with the tenant's database.
        admin: Box<DatabaseUrl>,
        /// The role in the tenant's URL, which owned the schema before.
        earlier: String,
    },
}

impl Provision {
    /// Reads the section. `None` without an `admin_url`. Tenants with user ids of their own cannot read the supervisor's
    /// files; other tenants are kept from them by Landlock.
    ///
    /// # Errors
    /// When the URL cannot be read, or tenants could read it.
    pub(super) fn read(
        read: &Read<'_>,
        defaults: &Layer,
        has_uids: bool,
    ) -> Result<Option<Self>, Diagnostics> {
        const URL: &str = "provision.admin_url";
        const URL_FILE: &str = "provision.admin_url_file";
        let url = read.optional::<Box<DatabaseUrl>>(URL);
        let (key, admin) = match (url, read.path(URL_FILE)) {
            (Some(_), Some(_)) => {
                let message = format!("`{URL_FILE}` and `{URL}` are both there");
                return Err(read.at(URL_FILE, &message, "keep one of the two").into());
            }
            (Some(url), None) => (URL, *url),
            (None, Some(path)) => {
                let url = url_file::read(&path).map_err(|error| {
                    let message = format!("`{URL_FILE}`: {}: {}", path.display(), error.message);
                    read.at(URL_FILE, &message, &error.hint.unwrap_or_default())
                })?;
                (URL_FILE, url)
            }
            (None, None) => return Ok(None),
        };
        if !has_uids && !crate::sys::knows_landlock() {
            let message = format!(
                "`{key}` would be readable by every broker: tenants have no user ids of their own, and this kernel has no Landlock"
            );
            let hint = "set [isolation] uids, or use a kernel with Landlock (5.13 or later, with landlock in `lsm=`)";
            return Err(read.at(key, &message, hint).into());
        }
        let shared = match (
            defaults.get("database.url"),
            defaults.get("database.url_file"),
        ) {
            (Some(Value::Url(url)), _) => Some(url.user().to_owned()),
            // A file that cannot be read is each tenant's problem.
            (None, Some(Value::Path(path))) => {
                url_file::read(path).ok().map(|url| url.user().to_owned())
            }
            _ => None,
        };
        Ok(Some(Self {
            admin,
            exclusive: read.required("provision.exclusive"),
            limits: SessionLimits {
                locks: read.required("provision.limits.locks"),
                transaction: read.required("provision.limits.transaction"),
                statement: read.required("provision.limits.statement"),
            },
            shared,
        }))
    }

    /// Returns the role for a tenant with this configuration, read from the file at `path`.
    fn role(&self, resolved: &Resolved, path: &Path) -> TenantRole {
        let database = &resolved.config.database;
        let url = &database.url;
        let left = |why: String| TenantRole::OfUrl(Some(why));
        if (url.host(), url.port()) != (self.admin.host(), self.admin.port()) {
            return left(format!(
                "its url names {}, and [provision] admin_url names {}",
                url.address(),
                self.admin.address()
            ));
        }
        let in_its_file = resolved.origin(resolved.url_key()).is_some_and(
            |origin| matches!(origin, Origin::File(source, _) if source.path() == path),
        );
        let shared = self.shared.as_deref() == Some(url.user()) || names_no_user(url);
        if in_its_file && !shared {
            return left(format!("its file names the role {}", url.user()));
        }
        if database.schema.as_str() == "public" {
            return left("schema public belongs to no tenant alone".to_owned());
        }
        TenantRole::Own {
            admin: Box::new(self.admin.clone().with_dbname(url.dbname())),
            earlier: url.user().to_owned(),
        }
    }
}

/// Returns true for a URL without a user, which means the user that this program runs as.
fn names_no_user(url: &DatabaseUrl) -> bool {
    DatabaseUrl::parse("postgres://localhost/").is_ok_and(|none| none.user() == url.user())
}

/// Returns the warning that no tenant has a role of its own, although `[provision]` is configured.
pub(crate) fn provides_for_none<'r>(
    provision: &Provision,
    mut roles: impl Iterator<Item = &'r TenantRole>,
) -> Option<String> {
    let first = roles.next()?;
    let none = |role: &TenantRole| matches!(role, TenantRole::OfUrl(Some(_)));
    let TenantRole::OfUrl(Some(why)) = first else {
        return None;
    };
    roles.all(none).then(|| {
        format!(
            "[provision]: no tenant has a role of its own; of the first tenant {why}. Write host and port of admin_url ({}) as in \
             the tenants' URLs",
            provision.admin.address()
        )
    })
}

impl TenantRole {
    /// Returns the role for a tenant, and takes the user out of the configuration's URL if the tenant gets one of its
    /// own.
    pub(super) fn choose(
        provision: Option<&Arc<Provision>>,
        resolved: &mut Resolved,
        path: &Path,
    ) -> Self {
        let Some(provision) = provision else {
            return Self::OfUrl(None);
        };
        let role = provision.role(resolved, path);
        if let Self::Own { .. } = &role {
            let url = resolved.config.database.url.clone();
            resolved.config.database.url = url.with_user(ROLE_PREFIX, None);
        }
        role
    }

    /// Returns the role of an instance that was found running with this configuration.
    pub(super) fn found(config: &BrokerConfig, provision: Option<&Provision>) -> Self {
        let url = &config.database.url;
        match provision {
            Some(provision) if url.user() == ROLE_PREFIX => Self::Own {
                admin: Box::new(provision.admin.clone().with_dbname(url.dbname())),
                earlier: provision.shared.clone().unwrap_or_default(),
            },
            _ => Self::OfUrl(None),
        }
    }
}

/// Returns the file that keeps a tenant's login.
pub(crate) fn credentials_file(state_dir: &Path, tenant: &str) -> PathBuf {
    state_dir.join("tenants").join(format!("{tenant}.url"))
}
