//! Reads a tenant's admin PAK from a folder that the tenant can write to.

use brokkr_tenant::TenantName;
use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, open, openat, openat2};
use nix::sys::stat::Mode;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Largest size of a PAK file in bytes.
const LONGEST: u64 = 4096;
/// Largest number of paths in one message.
const NAMED: usize = 3;

/// Returns the trimmed text of `STATE_DIR/tenants/NAME/admin.pak`, or `None` when there is no such file yet.
///
/// # Errors
/// When the file cannot be read, or is not a plain file with a single name and of the folder's owner (or of root),
/// because a link would make the supervisor, possibly as root, read another file.
pub(super) fn read(state_dir: &Path, tenant: &TenantName) -> io::Result<Option<String>> {
    let folder = OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    // A FIFO in the file's place would otherwise block the supervisor for ever.
    let plain = OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK;
    let opened = open(&state_dir.join("tenants"), folder, Mode::empty())
        .and_then(|tenants| open_in(&tenants, tenant.as_str(), folder))
        .and_then(|own| Ok((open_in(&own, "admin.pak", plain)?, own)));
    let (file, own) = match opened {
        Ok((file, own)) => (File::from(file), File::from(own)),
        Err(Errno::ENOENT) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let found = file.metadata()?;
    let owners = [own.metadata()?.uid(), 0];
    if !found.is_file()
        || found.nlink() != 1
        || found.len() > LONGEST
        || !owners.contains(&found.uid())
    {
        let text = "it is not a small plain file of its tenant with one name";
        return Err(io::Error::new(io::ErrorKind::InvalidData, text));
    }
    let mut pak = String::new();
    file.take(LONGEST).read_to_string(&mut pak)?;
    Ok(Some(pak.trim().to_owned()))
}

/// Opens an entry of a folder, and nothing that a link leads to.
fn open_in(folder: &OwnedFd, name: &str, flags: OFlag) -> nix::Result<OwnedFd> {
    let beneath = ResolveFlag::RESOLVE_NO_SYMLINKS | ResolveFlag::RESOLVE_BENEATH;
    match openat2(folder, name, OpenHow::new().flags(flags).resolve(beneath)) {
        // systemd forbids the call under `RestrictSUIDSGID=`. For a name without a slash, O_NOFOLLOW does the same.
        Err(Errno::ENOSYS) => openat(folder, name, flags, Mode::empty()),
        opened => opened,
    }
}

/// Lists the admin PAKs in the folders of names that are no tenant's now.
pub(super) fn left_by_others(state_dir: &Path, is_tenant: impl Fn(&str) -> bool) -> Vec<PathBuf> {
    let folders = std::fs::read_dir(state_dir.join("tenants"));
    let mut left: Vec<PathBuf> = folders
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| !is_tenant(&entry.file_name().to_string_lossy()))
        .map(|entry| entry.path().join("admin.pak"))
        .filter(|pak| pak.symlink_metadata().is_ok_and(|found| found.is_file()))
        .collect();
    left.sort();
    left
}

/// Explains where the admin PAK of a tenant may be whose schema had one before the tenant first started.
pub(super) fn is_elsewhere(tenant: &TenantName, left: &[PathBuf]) -> String {
    let mut paths: Vec<String> = left
        .iter()
        .take(NAMED)
        .map(|path| path.display().to_string())
        .collect();
    if left.len() > NAMED {
        paths.push(format!("{} more", left.len() - NAMED));
    }
    let before = if paths.is_empty() {
        "by another host or by a broker alone".to_owned()
    } else {
        format!(
            "if under another name here, it is in {}",
            paths.join(" or ")
        )
    };
    format!(
        "the schema of {tenant} was given its admin PAK before {tenant} first started, {before}; \
         `brokkr-broker rotate admin` with the tenant's file makes a new one"
    )
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use std::fs;

    #[test]
    fn only_the_tenants_own_plain_file_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let acme = TenantName::parse("acme").unwrap();
        assert_eq!(read(dir.path(), &acme).unwrap(), None);
        let own = dir.path().join("tenants/acme");
        fs::create_dir_all(&own).unwrap();
        assert_eq!(read(dir.path(), &acme).unwrap(), None);
        let pak = own.join("admin.pak");
        fs::write(&pak, "brokkr_BRx\n").unwrap();
        assert_eq!(
            read(dir.path(), &acme).unwrap().as_deref(),
            Some("brokkr_BRx")
        );

        let secret = dir.path().join("secret");
        fs::rename(&pak, &secret).unwrap();
        std::os::unix::fs::symlink(&secret, &pak).unwrap();
        assert!(read(dir.path(), &acme).is_err());
        fs::remove_file(&pak).unwrap();
        fs::hard_link(&secret, &pak).unwrap();
        assert!(read(dir.path(), &acme).is_err());
        fs::remove_file(&pak).unwrap();
        nix::unistd::mkfifo(&pak, Mode::S_IRUSR).unwrap();
        assert!(read(dir.path(), &acme).is_err());

        if nix::unistd::geteuid().is_root() {
            fs::remove_file(&pak).unwrap();
            fs::write(&pak, "brokkr_BRx").unwrap();
            let give = |path: &Path, uid| std::os::unix::fs::chown(path, Some(uid), None).unwrap();
            give(&own, 61_000);
            assert!(read(dir.path(), &acme).unwrap().is_some());
            give(&pak, 61_000);
            assert!(read(dir.path(), &acme).unwrap().is_some());
            give(&pak, 61_001);
            assert!(read(dir.path(), &acme).is_err());
        }
    }
}
