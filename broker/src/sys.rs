//! The broker's only unsafe code: taking over a descriptor that was inherited by number.

#![allow(
    unsafe_code,
    reason = "descriptors given by number in the environment become owned values here"
)]

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
