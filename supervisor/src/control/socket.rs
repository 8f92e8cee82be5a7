//! The control socket's file, which never has other permissions than it should, not even briefly.

use brokkr_tenant::SocketPath;
use nix::unistd::{Gid, Group, chown};
use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

/// Group whose members may use the control API, beside root and the supervisor's own user.
pub(crate) const GROUP: &str = "brokkr";
/// Name of the socket's file in the runtime folder.
pub(crate) const NAME: &str = "control.sock";

/// The bound control socket.
#[derive(Debug)]
pub(super) struct Socket {
    listener: UnixListener,
    file: BoundSocket,
    group: Option<Gid>,
    warning: Option<String>,
}

/// The socket's file; removed when dropped, unless another file has replaced it.
#[derive(Debug)]
pub(super) struct BoundSocket {
    path: PathBuf,
    inode: u64,
}

impl BoundSocket {
    /// Returns true when the file is still where it was put.
    pub(super) fn is_there(&self) -> bool {
        fs::symlink_metadata(&self.path).is_ok_and(|found| found.ino() == self.inode)
    }
}

impl Drop for BoundSocket {
    fn drop(&mut self) {
        if self.is_there() {
            // If this fails, the next supervisor replaces the file.
            let _ = fs::remove_file(&self.path);
        }
    }
}

impl Socket {
    /// Binds `runtime_dir/control.sock`, replacing an old file: only the holder of the runtime folder's lock may call
    /// this. The socket has mode 0660 and group `brokkr`, or mode 0600 where that group does not exist or this user may
    /// not give files to it: then [`warning`](Self::warning) says so.
    ///
    /// # Errors
    /// When the folder cannot be written; the text names the path.
    pub(super) fn bind(runtime_dir: &Path) -> io::Result<Self> {
        let group = Group::from_name(GROUP)
            .ok()
            .flatten()
            .map(|group| group.gid);
        let mut socket = Self::bind_for(runtime_dir, group)?;
        if socket.group.is_none() {
            let path = socket.file.path.display();
            let why = match group {
                Some(_) => format!("this user may not give it to group {GROUP}"),
                None => format!("there is no group {GROUP}"),
            };
            socket.warning = Some(format!("only root and this user may use {path}: {why}"));
        }
        Ok(socket)
    }

    /// Returns the reason why fewer users than intended may use the socket.
    pub(super) fn warning(&self) -> Option<&str> {
        self.warning.as_deref()
    }

    fn bind_for(runtime_dir: &Path, group: Option<Gid>) -> io::Result<Self> {
        let path = runtime_dir.join(NAME);
        let named = |error: io::Error| {
            io::Error::new(
                error.kind(),
                format!("cannot bind {}: {error}", path.display()),
            )
        };
        // Bind in a private folder: between `bind` and `chmod` the socket has the mode that the umask leaves, and a
        // connection made then would outlast the `chmod`.
        let private = runtime_dir.join(format!(".c{}", std::process::id()));
        let early = private.join("s");
        let _ = fs::remove_dir_all(&private);
        DirBuilder::new()
            .mode(0o700)
            .create(&private)
            .map_err(named)?;
        let bound = Self::place(&early, &path, group);
        let _ = fs::remove_dir_all(&private);
        bound.map_err(named)
    }

    fn place(early: &Path, path: &Path, group: Option<Gid>) -> io::Result<Self> {
        let listener = UnixListener::bind(SocketPath::of(early)?.as_path())?;
        // The file already has the right group under the unit, which does not permit `chown`.
        let has = fs::symlink_metadata(early)?.gid();
        let given =
            group.filter(|group| group.as_raw() == has || chown(early, None, Some(*group)).is_ok());
        let mode = if given.is_some() { 0o660 } else { 0o600 };
        fs::set_permissions(early, Permissions::from_mode(mode))?;
        let inode = fs::symlink_metadata(early)?.ino();
        fs::rename(early, path)?;
        Ok(Self {
            listener,
            file: BoundSocket {
                path: path.to_owned(),
                inode,
            },
            group: given,
            warning: None,
        })
    }

    /// Returns the group that the socket was given to.
    pub(super) fn group(&self) -> Option<Gid> {
        self.group
    }

    pub(super) fn into_tokio(self) -> io::Result<(tokio::net::UnixListener, BoundSocket)> {
        self.listener.set_nonblocking(true)?;
        Ok((
            tokio::net::UnixListener::from_std(self.listener)?,
            self.file,
        ))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use std::os::unix::fs::FileTypeExt;

    #[test]
    fn the_socket_has_its_mode_replaces_a_stale_one_and_goes_with_its_owner() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(NAME);
        fs::write(&path, "stale").unwrap();
        let own = nix::unistd::getegid();
        for (group, mode) in [(None, 0o600), (Some(own), 0o660)] {
            let socket = Socket::bind_for(dir.path(), group).unwrap();
            let found = fs::symlink_metadata(&path).unwrap();
            assert!(found.file_type().is_socket());
            assert_eq!(found.mode() & 0o777, mode);
            assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
            drop(socket);
            assert!(!path.exists());
        }
    }

    #[test]
    fn an_older_owner_does_not_remove_a_newer_ones_socket() {
        let dir = tempfile::tempdir().unwrap();
        let old = Socket::bind_for(dir.path(), None).unwrap();
        let _new = Socket::bind_for(dir.path(), None).unwrap();
        drop(old);
        assert!(dir.path().join(NAME).exists());
    }

    #[test]
    fn a_runtime_folder_may_be_too_deep_for_the_path_of_a_socket() {
        let dir = tempfile::tempdir().unwrap();
        let deep = dir.path().join("x".repeat(100));
        fs::create_dir(&deep).unwrap();
        let socket = Socket::bind_for(&deep, None).unwrap();
        let path = deep.join(NAME);
        let reached = SocketPath::of(&path).unwrap();
        assert!(std::os::unix::net::UnixStream::connect(reached.as_path()).is_ok());
        drop(socket);
        assert!(!path.exists());
    }
}
