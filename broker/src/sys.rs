//! The broker's only unsafe code: taking over inherited descriptors, and returning memory.

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
    // Ask first, so that a wrong number is an error and does not close another descriptor of this process.
    nix::fcntl::fcntl(borrowed(fd), nix::fcntl::FcntlArg::F_GETFD)?;
    // SAFETY: the descriptor is open (above) and the starter of this process put it there for this call alone, so no
    // other code in this program knows its number. This function is called once, before any thread or file of this
    // process exists.
    Ok(unsafe { File::from_raw_fd(fd) })
}

fn borrowed(fd: RawFd) -> std::os::fd::BorrowedFd<'static> {
    // SAFETY: only used to ask if the descriptor is open; a closed descriptor gives EBADF, and nothing is dropped.
    unsafe { std::os::fd::BorrowedFd::borrow_raw(fd) }
}

/// Returns free memory to the system, because after a burst the allocator keeps the memory of eight threads.
///
/// Takes some milliseconds, so do not call it on the event loop.
#[cfg(target_env = "gnu")]
pub(crate) fn trim_memory() {
    // SAFETY: malloc_trim takes the allocator's own locks and touches free memory only; any thread may call it at any
    // time.
    unsafe { libc::malloc_trim(0) };
}

/// Does nothing, because this allocator returns memory by itself.
#[cfg(not(target_env = "gnu"))]
pub(crate) fn trim_memory() {}
