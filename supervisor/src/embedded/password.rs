//! The password of the tenants' role, where tenants have user ids of their own.
//!
//! Such a user id has no account, so the server cannot identify the user by the kernel. The password is in
//! `STATE_DIR/postgres.password`, which only root can read; brokers get it in their configuration.

use crate::config::SupervisorConfig;
use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;

/// The number of random bytes.
const LENGTH: usize = 24;

fn path(config: &SupervisorConfig) -> PathBuf {
    config.state_dir.join("postgres.password")
}

/// Returns the password; `None` where tenants need none, and before the first start.
pub(super) fn read(config: &SupervisorConfig) -> Result<Option<String>, String> {
    if config.own_uids().is_none() {
        return Ok(None);
    }
    let path = path(config);
    match std::fs::read_to_string(&path) {
        Ok(text) if text.len() == 2 * LENGTH && text.chars().all(|c| c.is_ascii_hexdigit()) => {
            Ok(Some(text))
        }
        Ok(_) => Err(format!(
            "{} is no password of ours: remove it, and restart the supervisor",
            path.display()
        )),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(format!("{}: {error}", path.display())),
    }
}

/// Makes the password unless there is one, or none is needed.
pub(super) fn make(config: &SupervisorConfig) -> Result<(), String> {
    if config.own_uids().is_none() || read(config)?.is_some() {
        return Ok(());
    }
    let path = path(config);
    let written = || {
        let mut bytes = [0; LENGTH];
        File::open("/dev/urandom")?.read_exact(&mut bytes)?;
        let text: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        // A file without its whole content would never be read, so it is written under another name first.
        let new = path.with_extension("new");
        let _ = std::fs::remove_file(&new);
        let mut options = OpenOptions::new();
        let mut file = options
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&new)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        std::fs::rename(&new, &path)
    };
    written().map_err(|error: std::io::Error| format!("{}: {error}", path.display()))
}
