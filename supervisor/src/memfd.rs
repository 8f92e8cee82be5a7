//! Sealed files in memory, for a broker's configuration and for a supervisor's state at hand-over.

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use std::fs::{File, Permissions};
use std::io::{self, Read, Seek, Write};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileExt, PermissionsExt};

/// Returns a sealed file with this content, positioned at its beginning and readable only by its owner.
pub(crate) fn sealed(name: &str, content: &[u8]) -> io::Result<OwnedFd> {
    let fd = memfd_create(name, MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING)?;
    let mut file = File::from(fd);
    file.write_all(content)?;
    file.set_permissions(Permissions::from_mode(0o400))?;
    file.rewind()?;
    let seals = SealFlag::F_SEAL_SHRINK
        | SealFlag::F_SEAL_GROW
        | SealFlag::F_SEAL_WRITE
        | SealFlag::F_SEAL_SEAL;
    fcntl(&file, FcntlArg::F_ADD_SEALS(seals))?;
    Ok(file.into())
}

/// Reads a file of at most `most` bytes from its beginning, independent of the shared read position.
///
/// # Errors
/// When the file cannot be read, or is longer.
pub(crate) fn read(fd: BorrowedFd<'_>, most: u64) -> io::Result<Vec<u8>> {
    let file = File::from(fd.try_clone_to_owned()?);
    let mut content = Vec::new();
    let mut from_start = FromStart { file: &file, at: 0 };
    (&mut from_start).take(most + 1).read_to_end(&mut content)?;
    if content.len() as u64 > most {
        return Err(io::Error::other("too long"));
    }
    Ok(content)
}

struct FromStart<'f> {
    file: &'f File,
    at: u64,
}

impl Read for FromStart<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.file.read_at(buffer, self.at)?;
        self.at += count as u64;
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn a_sealed_memfd_can_be_read_and_not_be_written() {
        let fd = sealed("test", b"secret").unwrap();
        let mut file = File::from(fd);
        let mut text = String::new();
        file.read_to_string(&mut text).unwrap();
        assert_eq!(text, "secret");
        assert!(file.write_all(b"x").is_err());
        assert!(file.set_len(0).is_err());
        // Reads from the beginning at any shared position.
        assert_eq!(read(file.as_fd(), 6).unwrap(), b"secret");
        assert!(read(file.as_fd(), 5).is_err());
    }
}
