//! The exits of commands that fail.

use uuid::Uuid;

use super::output::one_line;
use crate::config::{ConfigError, Instance};
use crate::db::DbError;
use crate::db::start::StartError;
use crate::domain::provisioning::ProvisioningError;
use crate::http::ServeError;
use crate::pak::Pak;

const CONFIGURATION: u8 = 78;
const UNAVAILABLE: u8 = 69;

/// Creates a PAK in the configured format.
pub(super) fn mint(instance: &Instance) -> Result<Pak, ServeError> {
    Pak::mint(&instance.pak_format()).map_err(|error| failed(instance, error.into()))
}

/// Parses a UUID that a person typed.
pub(super) fn uuid(instance: &Instance, flag: &str, text: &str) -> Result<Uuid, ServeError> {
    Uuid::parse_str(text.trim()).map_err(|_| {
        wrong(
            instance,
            format!("{flag}: `{}` is not a UUID", one_line(text)),
        )
    })
}

/// Returns the exit for a wrong argument.
pub(super) fn wrong(instance: &Instance, reason: impl std::fmt::Display) -> ServeError {
    ServeError::failed(&instance.tenant, reason)
}

pub(super) fn refused(instance: &Instance, refusal: ProvisioningError) -> ServeError {
    match refusal {
        ProvisioningError::Db(error) => lost(instance, &error),
        refusal => wrong(instance, refusal),
    }
}

/// Returns the exit for a failed database request.
pub(super) fn lost(instance: &Instance, error: &DbError) -> ServeError {
    let code = if error.is_unavailable() {
        UNAVAILABLE
    } else {
        1
    };
    ServeError {
        code,
        ..wrong(instance, error)
    }
}

pub(super) fn failed(instance: &Instance, error: StartError) -> ServeError {
    let code = match &error {
        StartError::Away(_) => UNAVAILABLE,
        StartError::Configuration(_) => CONFIGURATION,
        StartError::Failed(_) => 1,
    };
    ServeError {
        code,
        ..wrong(instance, error)
    }
}

impl From<ConfigError> for ServeError {
    fn from(error: ConfigError) -> Self {
        ServeError {
            code: CONFIGURATION,
            reason: error.to_string(),
        }
    }
}
