//! A simulated tenant file.

use crate::fleet::core::TenantSettings;
use brokkr_tenant::{DatabaseUrl, Listen, PoolSize, SchemaName, TlsPair};
use std::sync::Arc;

/// Behaviour of a broker with this configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Habit {
    Good,
    Crashes,
    Misconfigured,
    NeverReady,
}

/// A tenant file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct File {
    pub(crate) pool: u32,
    pub(crate) server: usize,
    pub(crate) url: DatabaseUrl,
    pub(crate) schema: SchemaName,
    pub(crate) listen: Listen,
    pub(crate) priority: i32,
    pub(crate) enabled: bool,
    pub(crate) habit: Habit,
}

impl TenantSettings for File {
    fn url(&self) -> &DatabaseUrl {
        &self.url
    }

    fn schema(&self) -> &SchemaName {
        &self.schema
    }

    fn listen(&self) -> &Listen {
        &self.listen
    }

    fn pool(&self) -> u32 {
        self.pool
    }

    fn priority(&self) -> i32 {
        self.priority
    }

    fn enabled(&self) -> bool {
        self.enabled
    }

    fn tls(&self) -> Option<&Arc<TlsPair>> {
        None
    }

    fn same_instance(&self, other: &Self) -> bool {
        let (priority, enabled) = (self.priority, self.enabled);
        let other = other.clone();
        *self
            == Self {
                priority,
                enabled,
                ..other
            }
    }

    fn with_pool(&self, pool: PoolSize) -> Self {
        let pool = pool.get();
        Self {
            pool,
            ..self.clone()
        }
    }

    fn at(&self, _: &str, problem: &str) -> String {
        problem.to_owned()
    }
}
