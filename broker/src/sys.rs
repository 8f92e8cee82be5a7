//! The broker's only unsafe code: descriptors inherited by number, and giving memory back.

#![allow(unsafe_code, reason = "what std and nix have no safe call for")]

use std::fs::File;
use std::io;
use std::os::fd::{FromRawFd, RawFd};

/// Takes ownership of the inherited descriptor `fd`.
///
/// # Errors
///
/// When `fd` is not open, or is one of the standard three.
pub(crate) fn inherited_file(fd: RawFd) -> io::Result<File> {
    if fd < 3 {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("descriptor {fd} is not one to be inherited"),
        ));
    }
    // Asked first, so that a wrong number is an error and not a descriptor of ours closed by surprise.
    nix::fcntl::fcntl(borrowed(fd), nix::fcntl::FcntlArg::F_GETFD)?;
    // SAFETY: the descriptor is open (above) and was put there by whoever started this process, for this call alone:
    // nothing else in this program knows its number. Called once, before any thread or file of our own exists.
    Ok(unsafe { File::from_raw_fd(fd) })
}

fn borrowed(fd: RawFd) -> std::os::fd::BorrowedFd<'static> {
    // SAFETY: only used to ask whether the descriptor is open; a closed one gives EBADF and nothing is dropped.
    unsafe { std::os::fd::BorrowedFd::borrow_raw(fd) }
}

/// Gives free memory back to the system: after a burst, the allocator keeps what eight threads have used.
///
/// Takes some milliseconds; not for the event loop.
#[cfg(target_env = "gnu")]
pub(crate) fn trim_memory() {
    // SAFETY: takes the allocator's own locks and touches free memory only; may be called at any time, from any thread.
    unsafe { libc::malloc_trim(0) };
}

/// Nothing to do: this allocator gives memory back by itself.
#[cfg(not(target_env = "gnu"))]
pub(crate) fn trim_memory() {}
