//! Reading a tenant's admin PAK, from a folder the tenant itself can write to.

use brokkr_tenant::TenantName;
use nix::errno::Errno;
use nix::fcntl::{OFlag, open, openat};
use nix::sys::stat::Mode;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// No PAK is longer, in bytes.
const LONGEST: u64 = 4096;

/// What is in `STATE_DIR/tenants/NAME/admin.pak`, without white space around it. `None`: there is none yet.
///
/// # Errors
/// When it cannot be read, or is not a plain file of one name: a link would have us, who may be root, read another file.
pub(super) fn read(state_dir: &Path, tenant: &TenantName) -> io::Result<Option<String>> {
    let folder = OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    // Non-blocking, or a FIFO in its place would hold us for ever.
    let plain = OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK;
    let opened = open(&state_dir.join("tenants"), folder, Mode::empty())
        .and_then(|tenants| openat(&tenants, tenant.as_str(), folder, Mode::empty()))
        .and_then(|own| openat(&own, "admin.pak", plain, Mode::empty()));
    let file = match opened {
        Ok(file) => File::from(file),
        Err(Errno::ENOENT) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let found = file.metadata()?;
    if !found.is_file() || found.nlink() != 1 || found.len() > LONGEST {
        let text = "it is not a small plain file with one name";
        return Err(io::Error::new(io::ErrorKind::InvalidData, text));
    }
    let mut pak = String::new();
    file.take(LONGEST).read_to_string(&mut pak)?;
    Ok(Some(pak.trim().to_owned()))
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
    }
}
