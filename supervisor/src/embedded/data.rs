//! The data folder: created once, and its access rules, written before every start.

use super::programs::Programs;
use super::{NAME, SUPERUSER, initdb};
use crate::instance::postgres::PostgresCommand;
use nix::unistd::{User, chown, geteuid};
use std::os::fd::OwnedFd;
use std::path::Path;

/// The way to log in with a password.
const BY_PASSWORD: &str = "scram-sha-256";

/// Creates the data folder if it is missing, and writes the access rules. Blocks for about a second the first time.
pub(super) fn prepare(
    programs: &Programs,
    data: &Path,
    user: Option<(u32, u32)>,
    passwords: bool,
) -> Result<(), String> {
    if !initdb::is_made(data) {
        initdb::make(data, user, |folder, held| {
            init(programs, folder, user, held)
        })?;
    }
    // At the first start with a password the role has none yet, and a login before it has would only be refused.
    let set_before = std::fs::read_to_string(data.join("pg_hba.conf"))
        .is_ok_and(|rules| rules.contains(BY_PASSWORD));
    write_rules(data, user, passwords && set_before).map(drop)
}

/// Writes the rules for logging in, and returns true when they were others before. With `passwords` tenants log in with the
/// role's password, because a user id without an account has no name for the rules.
pub(super) fn write_rules(
    data: &Path,
    user: Option<(u32, u32)>,
    passwords: bool,
) -> Result<bool, String> {
    let me = User::from_uid(geteuid())
        .map_err(|error| format!("cannot look up our own user: {error}"))?
        .ok_or_else(|| {
            format!(
                "user {} has no name, and PostgreSQL asks for one",
                geteuid()
            )
        })?;
    let tenants = match passwords {
        true => format!("local all {NAME} {BY_PASSWORD}\n"),
        false => String::new(),
    };
    let lines = [
        (
            "pg_hba.conf",
            format!("# Written at every start.\n{tenants}local all all peer map=brokkr\n"),
        ),
        (
            "pg_ident.conf",
            format!(
                "# Written at every start.\nbrokkr \"{me}\" {NAME}\nbrokkr \"{me}\" {SUPERUSER}\n",
                me = me.name
            ),
        ),
    ];
    let mut changed = false;
    for (file, text) in lines {
        let path = data.join(file);
        let said = |error: std::io::Error| format!("{}: {error}", path.display());
        if std::fs::read_to_string(&path).is_ok_and(|old| old == text) {
            continue;
        }
        changed = true;
        std::fs::write(&path, text).map_err(said)?;
        if let Some((uid, gid)) = user {
            chown(&path, Some(uid.into()), Some(gid.into())).map_err(|error| said(error.into()))?;
        }
    }
    Ok(changed)
}

fn init(
    programs: &Programs,
    data: &Path,
    user: Option<(u32, u32)>,
    held: OwnedFd,
) -> Result<(), String> {
    tracing::info!(target: "postgres", "making the embedded server's data folder {}", data.display());
    let arguments = [
        "-D",
        &data.display().to_string(),
        "-U",
        SUPERUSER,
        "-A",
        "reject",
        "-E",
        "UTF8",
        "--locale=C",
    ];
    let launch = PostgresCommand {
        program: programs.initdb.clone(),
        arguments: arguments.map(str::to_owned).to_vec(),
        user,
        folder: data.to_owned(),
    };
    let output = launch
        .output(held)
        .map_err(|error| format!("cannot start {}: {error}", programs.initdb.display()))?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!(
        "{} failed on {}: {}",
        programs.initdb.display(),
        data.display(),
        String::from_utf8_lossy(&output.stderr)
            .trim()
            .replace('\n', "; ")
    ))
}
