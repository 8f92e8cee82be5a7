//! One tenant's effective configuration, with the origins of its values.

use super::{ConfigSummary, Provision, SecretConfig, Stamp, TenantRole};
use brokkr_tenant::{
    BrokerConfig, Diagnostic, Diagnostics, Digest, Layer, Mode, PoolSize, Resolved, resolve,
};
use serde_json::value::RawValue;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

/// The origin of a configuration that comes from no file.
const FOUND: &str = "the instance that was found running";

/// A valid tenant file, merged with the layers under it.
#[derive(Debug, Clone)]
pub(crate) struct TenantConfig {
    resolved: Resolved,
    /// The role that its broker logs in as.
    role: TenantRole,
    /// The digest of the effective configuration.
    pub(crate) digest: [u8; 32],
    /// Warnings about settings without effect.
    pub(crate) warnings: Vec<String>,
    clear: OnceLock<SecretConfig>,
}

impl TenantConfig {
    /// Returns the configuration of an instance from an earlier supervisor: the complete configuration if it was handed
    /// over, else that of the lock file, where secrets are masked. `None` when neither can be read.
    pub(crate) fn found(
        clear: Option<&SecretConfig>,
        what: Option<&ConfigSummary>,
    ) -> Option<Self> {
        let whole = clear.and_then(|clear| BrokerConfig::from_json(clear.0.get()));
        // Computes the digest of a complete configuration again, because another version may compute another digest.
        let (config, digest) = match (whole, what) {
            (Some(config), _) => {
                let digest = config.digest().0;
                (config, digest)
            }
            (None, Some(what)) => {
                let config = serde_json::from_value(what.config.clone()).ok()?;
                (config, digest_of(&what.digest)?)
            }
            (None, None) => return None,
        };
        Some(Self {
            resolved: Resolved::found(config, FOUND),
            role: TenantRole::OfUrl(None),
            digest,
            warnings: Vec::new(),
            clear: OnceLock::new(),
        })
    }

    /// Returns a found configuration with the role that its instance has under this `[provision]`.
    pub(crate) fn under_provision(mut self, provision: Option<&Provision>) -> Self {
        self.role = TenantRole::found(self.broker(), provision);
        self
    }

    /// Returns the role that its broker logs in as.
    pub(crate) fn role(&self) -> &TenantRole {
        &self.role
    }

    /// Describes an instance of this configuration, started from `program`, for the next supervisor.
    pub(crate) fn described(&self, program: Option<Stamp>) -> ConfigSummary {
        ConfigSummary::brief(self.broker(), Digest(self.digest), program)
    }

    /// Returns the effective configuration with its secrets in the clear, only for a sealed memfd.
    pub(crate) fn clear(&self) -> Option<SecretConfig> {
        if let Some(clear) = self.clear.get() {
            return Some(clear.clone());
        }
        let json = RawValue::from_string(self.broker().to_clear_json()).ok()?;
        Some(self.clear.get_or_init(|| SecretConfig(json.into())).clone())
    }

    /// Reads `path` and merges it with the layers `under` it. Also returns the files that the configuration refers to.
    pub(crate) fn load(
        path: &Path,
        under: &[Layer],
        provision: Option<&Arc<Provision>>,
    ) -> Result<(Self, Vec<PathBuf>), Diagnostics> {
        let mut layers = under.to_vec();
        layers.push(Layer::from_file(path));
        let mut resolved = resolve(&layers, Mode::Supervised)?;
        let role = TenantRole::choose(provision, &mut resolved, path);
        let warnings = resolved.warnings.iter().map(Diagnostic::headline).collect();
        let digest = resolved.config.digest().0;
        let files = resolved.files.clone();
        Ok((
            Self {
                resolved,
                role,
                digest,
                warnings,
                clear: OnceLock::new(),
            },
            files,
        ))
    }

    pub(crate) fn broker(&self) -> &BrokerConfig {
        &self.resolved.config
    }

    /// Returns true when `other` would change neither the instance, nor its supervision, nor its TLS files.
    pub(crate) fn same_effect(&self, other: &Self) -> bool {
        let (ours, theirs) = (self.broker(), other.broker());
        self.digest == other.digest
            && ours.supervision == theirs.supervision
            && ours.http.tls == theirs.http.tls
    }

    /// Formats a problem with the value of `key` as one line that begins with its place.
    pub(crate) fn at(&self, key: &str, problem: &str) -> String {
        self.resolved.diagnostic(key, problem, None).headline()
    }

    /// Returns the same configuration with another pool.
    pub(crate) fn with_pool(&self, pool: PoolSize) -> Self {
        let mut changed = self.clone();
        changed.clear = OnceLock::new();
        changed.resolved.config.database.pool_size = pool;
        changed.resolved.config.database.max_working =
            changed.resolved.config.database.max_working.min(pool.get());
        changed.digest = changed.resolved.config.digest().0;
        changed
    }
}

/// Parses the 64 hexadecimal digits of a digest.
fn digest_of(text: &str) -> Option<[u8; 32]> {
    let mut digest = [0; 32];
    if text.len() != 2 * digest.len() || !text.is_ascii() {
        return None;
    }
    for (at, byte) in digest.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&text[2 * at..2 * at + 2], 16).ok()?;
    }
    Some(digest)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn load(text: &str) -> TenantConfig {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("acme.toml");
        std::fs::write(&path, text).unwrap();
        TenantConfig::load(&path, &[], None).unwrap().0
    }

    #[test]
    fn what_an_instance_runs_is_known_whole_from_what_was_left_and_by_its_digest_from_its_lock() {
        let text = "[database]\nurl = \"postgres://u:hunter2@h/d\"\nschema = \"acme\"\n[http]\nlisten = \"127.0.0.1:3001\"\n";
        let config = load(text);
        let what = ConfigSummary::of(config.broker(), None);
        assert!(!serde_json::to_string(&what).unwrap().contains("hunter2"));
        let clear = config.clear().unwrap();
        assert!(clear.0.get().contains("hunter2") && !format!("{config:?}").contains("hunter2"));

        let whole = TenantConfig::found(Some(&clear), Some(&what)).unwrap();
        assert_eq!(
            (whole.broker(), whole.digest),
            (config.broker(), config.digest)
        );
        let masked = TenantConfig::found(None, Some(&what)).unwrap();
        assert_eq!(masked.digest, config.digest);
        assert_eq!(masked.broker().http, config.broker().http);
        assert!(TenantConfig::found(None, None).is_none());
        let nonsense = SecretConfig(RawValue::from_string("{}".into()).unwrap().into());
        assert!(TenantConfig::found(Some(&nonsense), None).is_none());
        let pool = PoolSize::new(7).unwrap();
        assert!(
            config
                .with_pool(pool)
                .clear()
                .unwrap()
                .0
                .get()
                .contains("\"pool_size\":7")
        );
    }
}
