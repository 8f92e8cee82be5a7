//! Files in memory that nobody can change any more: a broker's configuration, and what one supervisor leaves to the next.

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use std::fs::{File, Permissions};
use std::io::{self, Read, Seek, Write};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileExt, PermissionsExt};

/// A sealed file of this content, at its beginning, for its owner's eyes only.
///
/// # Errors
/// When the kernel is out of memory or descriptors.
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

/// All of a file from its beginning, wherever whoever shares the descriptor has read to; at most `most` bytes.
///
/// # Errors
/// When it cannot be read, or is longer.
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
        // Wherever the shared offset is.
        assert_eq!(read(file.as_fd(), 6).unwrap(), b"secret");
        assert!(read(file.as_fd(), 5).is_err());
    }
}
