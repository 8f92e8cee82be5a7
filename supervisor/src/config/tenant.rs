//! One tenant's effective configuration, with the places its values came from.

use brokkr_tenant::{
    BrokerConfig, Diagnostic, Diagnostics, Layer, Mode, PoolSize, Resolved, TenantName, resolve,
};
use std::path::{Path, PathBuf};

/// A good tenant file, merged with what lies under it.
#[derive(Debug, Clone)]
pub(crate) struct TenantConfig {
    resolved: Resolved,
    /// Of the effective configuration; differs when any value does.
    pub(crate) digest: [u8; 32],
    /// What the file asks for that has no effect.
    pub(crate) warnings: Vec<String>,
}

impl TenantConfig {
    /// Reads and merges `path`; the paths are those of the files it refers to.
    ///
    /// # Errors
    /// Every problem, each with its place.
    pub(crate) fn load(
        name: &TenantName,
        path: &Path,
        under: &[Layer],
    ) -> Result<(Self, Vec<PathBuf>), Diagnostics> {
        let mut layers = under.to_vec();
        layers.push(Layer::from_file(path));
        let resolved = resolve(&layers, Mode::Supervised)?;
        let mut warnings: Vec<String> =
            resolved.warnings.iter().map(Diagnostic::headline).collect();
        let limits = &resolved.config.limits;
        if limits.memory_max.is_some() || limits.cpu_weight.is_some() || limits.pids_max.is_some() {
            warnings.push(format!(
                "tenant {name}: [limits] is checked but not enforced yet"
            ));
        }
        let digest = resolved.config.digest().0;
        let files = resolved.files.clone();
        Ok((
            Self {
                resolved,
                digest,
                warnings,
            },
            files,
        ))
    }

    /// The effective configuration.
    pub(crate) fn broker(&self) -> &BrokerConfig {
        &self.resolved.config
    }

    /// A problem with the value of `key`, as one line that begins with its place.
    pub(crate) fn at(&self, key: &str, problem: &str) -> String {
        self.resolved.diagnostic(key, problem, None).headline()
    }

    /// The same with another pool.
    pub(crate) fn with_pool(&self, pool: PoolSize) -> Self {
        let mut changed = self.clone();
        changed.resolved.config.database.pool_size = pool;
        changed.resolved.config.database.max_working =
            changed.resolved.config.database.max_working.min(pool.get());
        changed.digest = changed.resolved.config.digest().0;
        changed
    }
}
