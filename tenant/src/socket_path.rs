//! Shortens the path of a Unix socket to the length that the kernel accepts.

use std::{
    fs::{File, OpenOptions},
    io,
    os::{fd::AsRawFd, unix::fs::OpenOptionsExt},
    path::{Path, PathBuf},
};

use crate::MAX_UNIX_PATH;

/// A path to bind or reach a Unix socket, valid in this process while this value lives.
#[derive(Debug)]
pub struct SocketPath {
    path: PathBuf,
    /// The open folder, through which a longer path goes.
    _folder: Option<File>,
}

impl SocketPath {
    /// Returns the path itself if it fits a socket's address, otherwise the same name in `/proc/self/fd`.
    ///
    /// # Errors
    /// When the path is too long and its folder cannot be opened.
    pub fn of(path: &Path) -> io::Result<Self> {
        let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else {
            return Ok(Self::plain(path));
        };
        if path.as_os_str().len() <= MAX_UNIX_PATH {
            return Ok(Self::plain(path));
        }
        let folder = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_PATH | libc::O_DIRECTORY)
            .open(folder)?;
        Ok(Self {
            path: Path::new("/proc/self/fd")
                .join(folder.as_raw_fd().to_string())
                .join(name),
            _folder: Some(folder),
        })
    }

    fn plain(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
            _folder: None,
        }
    }

    /// Returns the path, borrowed because the folder must stay open while the path is used.
    pub fn as_path(&self) -> &Path {
        &self.path
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use std::os::unix::net::{UnixListener, UnixStream};

    #[test]
    fn a_socket_is_bound_and_reached_however_long_its_path_is() {
        let root = tempfile::tempdir().unwrap();
        for depth in [1, 4] {
            let mut folder = root.path().to_owned();
            for _ in 0..depth {
                folder.push("d".repeat(50));
            }
            std::fs::create_dir_all(&folder).unwrap();
            let path = folder.join("socket");
            let bound = UnixListener::bind(SocketPath::of(&path).unwrap().as_path()).unwrap();
            assert!(path.exists());
            UnixStream::connect(SocketPath::of(&path).unwrap().as_path()).unwrap();
            drop(bound);
            std::fs::remove_file(&path).unwrap();
        }
        let missing = root.path().join("m".repeat(200)).join("socket");
        assert!(SocketPath::of(&missing).is_err());
    }
}
