//! The authenticated caller of a request.

use std::fmt;

use uuid::Uuid;

use crate::domain::outbox::Actor;

/// An authenticated caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Principal {
    /// Holder of the admin PAK.
    Admin,
    /// A live agent.
    Agent(Uuid),
    /// A live generator.
    Generator(Uuid),
}

/// Formats the principal as the access log shows it.
impl fmt::Display for Principal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Principal::Admin => f.write_str("admin"),
            Principal::Agent(id) => write!(f, "agent:{id}"),
            Principal::Generator(id) => write!(f, "generator:{id}"),
        }
    }
}

impl From<Principal> for Actor {
    fn from(principal: Principal) -> Self {
        match principal {
            Principal::Admin => Actor::Admin,
            Principal::Agent(id) => Actor::Agent(id),
            Principal::Generator(id) => Actor::Generator(id),
        }
    }
}
