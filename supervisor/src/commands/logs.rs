//! The command `logs`.

use super::client::ControlClient;
use super::{Failure, say};
use crate::cli::{LogFormat, Logs};
use std::fmt::Write;

pub(super) fn logs(client: &ControlClient, options: &Logs) -> Result<(), Failure> {
    let format = match options.format {
        LogFormat::Text => "text",
        LogFormat::Json => "json",
    };
    let mut path = format!("/v1/logs?format={format}&n={}", options.lines);
    for tenant in &options.tenants {
        // Writing into a string cannot fail; a tenant's name needs no escapes.
        let _ = write!(path, "&tenant={tenant}");
    }
    for tenant in &options.not {
        let _ = write!(path, "&not={tenant}");
    }
    if let Some(level) = options.level {
        let _ = write!(path, "&level={}", level.as_str());
    }
    if options.follow {
        path.push_str("&follow=1");
    }
    client.stream(&path, say)
}
