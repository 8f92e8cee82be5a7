//! The embedded server's user, and the folders that this user must own and reach.

use brokkr_tenant::MAX_UNIX_PATH;
use nix::unistd::{Uid, User, chown, geteuid};
use sha2::{Digest, Sha256};
use std::fs::DirBuilder;
use std::io::ErrorKind;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Name that PostgreSQL gives its socket at the default port.
pub(super) const SOCKET: &str = ".s.PGSQL.5432";
/// Unprivileged uid and gid, used where there is no user `postgres`.
const NOBODY: u32 = 65534;

/// Returns the server's user, because PostgreSQL refuses to run as root. `None` means the supervisor's own user. Data of an
/// earlier server stays that server's user's, for example of a supervisor that was not root.
pub(super) fn server_user(data: &Path) -> Result<Option<(u32, u32)>, String> {
    if !geteuid().is_root() {
        return Ok(None);
    }
    let found = std::fs::metadata(data.join("PG_VERSION")).ok();
    if let Some(found) = found.filter(|found| found.uid() != 0) {
        return Ok(Some((found.uid(), found.gid())));
    }
    let user = User::from_name("postgres")
        .map_err(|error| format!("cannot look for a user postgres: {error}"))?
        .map(|user| (user.uid.as_raw(), user.gid.as_raw()));
    Ok(user.or(Some((NOBODY, NOBODY))))
}

/// Returns the folder of the server's socket: under the runtime folder, or, where that path is too long for a socket, a
/// folder in `/tmp` derived from the runtime folder.
pub(super) fn socket_folder(runtime_dir: &Path) -> Result<PathBuf, String> {
    let usual = runtime_dir.join("postgres");
    if fits(&usual) {
        return Ok(usual);
    }
    let digest = Sha256::digest(runtime_dir.as_os_str().as_bytes());
    let short: String = digest
        .iter()
        .take(6)
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let short = PathBuf::from(format!("/tmp/brokkr-postgres-{}-{short}", geteuid()));
    if fits(&short) {
        Ok(short)
    } else {
        Err(format!("{}: too long for a socket", short.display()))
    }
}

fn fits(folder: &Path) -> bool {
    folder.join(SOCKET).as_os_str().len() <= MAX_UNIX_PATH
}

/// Creates a folder that only the server's user (and root) can enter.
pub(super) fn own(folder: &Path, user: Option<(u32, u32)>) -> Result<(), String> {
    let said = |error: std::io::Error| format!("{}: {error}", folder.display());
    match DirBuilder::new().mode(0o700).create(folder) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(said(error)),
        _ => {}
    }
    // Under /tmp any user may have created the path first, so a link or another user's folder is refused.
    let found = std::fs::symlink_metadata(folder).map_err(said)?;
    let (uid, gid) = user.unwrap_or((geteuid().as_raw(), found.gid()));
    if !found.is_dir() || (found.uid() != uid && found.uid() != geteuid().as_raw()) {
        return Err(format!(
            "{}: is not a folder of ours; remove it",
            folder.display()
        ));
    }
    if found.uid() != uid || found.gid() != gid {
        chown(folder, Some(Uid::from_raw(uid)), Some(gid.into()))
            .map_err(|error| said(error.into()))?;
    }
    std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o700)).map_err(said)
}

/// Lets every user reach the socket in its folder, where tenants have user ids of their own and log in with a password; else
/// only the server's user.
pub(super) fn open(sockets: &Path, to_all: bool) -> Result<(), String> {
    let mode = if to_all { 0o711 } else { 0o700 };
    std::fs::set_permissions(sockets, std::fs::Permissions::from_mode(mode))
        .map_err(|error| format!("{}: {error}", sockets.display()))
}

/// Checks that the server's user can reach `folder` through every folder above it.
pub(super) fn reachable(folder: &Path, user: Option<(u32, u32)>) -> Result<(), String> {
    let Some((uid, gid)) = user else {
        return Ok(());
    };
    for above in folder.ancestors().skip(1) {
        let Ok(found) = std::fs::metadata(above) else {
            continue;
        };
        let bit = if found.uid() == uid {
            0o100
        } else if found.gid() == gid {
            0o010
        } else {
            0o001
        };
        if found.mode() & bit == 0 {
            return Err(format!(
                "the embedded server runs as user {} and cannot reach {}: {} is closed to it; `chmod o+x {}`, or choose another \
                 state_dir, runtime_dir or [postgres] data_dir",
                name(uid),
                folder.display(),
                above.display(),
                above.display()
            ));
        }
    }
    Ok(())
}

fn name(uid: u32) -> String {
    User::from_uid(Uid::from_raw(uid))
        .ok()
        .flatten()
        .map_or_else(|| uid.to_string(), |user| user.name)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn a_socket_that_would_be_too_deep_gets_a_short_folder_of_its_own() {
        assert_eq!(
            socket_folder(Path::new("/run/brokkr")).unwrap(),
            Path::new("/run/brokkr/postgres")
        );
        let deep = PathBuf::from(format!("/{}", "d".repeat(100)));
        let deeper = deep.join("e");
        let (one, other) = (
            socket_folder(&deep).unwrap(),
            socket_folder(&deeper).unwrap(),
        );
        assert!(fits(&one) && one.starts_with("/tmp") && one != other);
    }

    #[test]
    fn a_link_is_not_taken_for_a_folder_of_ours() {
        let root = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("/", root.path().join("link")).unwrap();
        assert!(
            own(&root.path().join("link"), None)
                .unwrap_err()
                .contains("not a folder of ours")
        );
        own(&root.path().join("new"), None).unwrap();
        own(&root.path().join("new"), None).unwrap();
        assert_eq!(
            std::fs::metadata(root.path().join("new")).unwrap().mode() & 0o777,
            0o700
        );
    }

    #[test]
    fn a_closed_folder_above_is_named() {
        let root = tempfile::tempdir().unwrap();
        std::fs::set_permissions(root.path(), std::fs::Permissions::from_mode(0o700)).unwrap();
        let stranger = Some((NOBODY - 1, NOBODY - 1));
        let error = reachable(&root.path().join("state/postgres"), stranger).unwrap_err();
        assert!(
            error.contains(&format!("chmod o+x {}", root.path().display())),
            "{error}"
        );
        std::fs::set_permissions(root.path(), std::fs::Permissions::from_mode(0o711)).unwrap();
        reachable(&root.path().join("state/postgres"), stranger).unwrap();
    }
}
