//! The number of connections that a tenant may hold.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::Invalid;

/// The largest number of connections that a tenant may hold in all: 2 to 1000.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub struct PoolSize(u32);

impl PoolSize {
    /// The pool of a tenant whose file sets none, as in the reference.
    pub const DEFAULT: Self = Self(50);
    /// The smallest pool: a start holds the lock on one connection and runs the migrations on another.
    pub const MIN: u32 = 2;
    /// The largest pool, because no PostgreSQL server works well with more connections from one client.
    pub const MAX: u32 = 1000;

    /// Makes a pool size, which must be within 2 to 1000.
    pub fn new(connections: u32) -> Result<Self, Invalid> {
        if (Self::MIN..=Self::MAX).contains(&connections) {
            Ok(Self(connections))
        } else {
            Err(Invalid::new(format!(
                "a pool of {connections} connections is not possible"
            ))
            .hint(format!(
                "write a number from {} to {}",
                Self::MIN,
                Self::MAX
            )))
        }
    }

    /// Returns the number of connections.
    pub fn get(self) -> u32 {
        self.0
    }
}

impl Default for PoolSize {
    fn default() -> Self {
        Self::DEFAULT
    }
}

impl fmt::Display for PoolSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl TryFrom<u32> for PoolSize {
    type Error = Invalid;
    fn try_from(connections: u32) -> Result<Self, Invalid> {
        Self::new(connections)
    }
}

impl From<PoolSize> for u32 {
    fn from(size: PoolSize) -> Self {
        size.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pool_holds_2_to_1000_connections() {
        for good in [2, 50, 1000] {
            assert_eq!(PoolSize::new(good).map(PoolSize::get), Ok(good));
        }
        for bad in [0, 1, 1001, u32::MAX] {
            assert!(PoolSize::new(bad).is_err());
        }
    }
}
