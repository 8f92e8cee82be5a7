//! `admin.pak`: the one file in which the administrator's PAK ever is.
//!
//! The PAK is in the file before its hash is in the schema, and the file has its name before anybody is told that the
//! start is done: temporary file written and synced, transaction committed, file renamed, folder synced. A process
//! that dies between commit and rename leaves the temporary file; the next start finds that its PAK is the one in the
//! schema and finishes the rename ([`KeyFile::adopt`]).

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::pak::{Pak, PakHash};

/// Where a tenant's admin PAK goes.
#[derive(Clone, Debug)]
pub struct KeyFile {
    folder: PathBuf,
}

impl KeyFile {
    /// In this folder, the tenant's state folder.
    pub fn in_folder(folder: &Path) -> Self {
        KeyFile {
            folder: folder.to_owned(),
        }
    }

    /// The file's final path.
    pub fn path(&self) -> PathBuf {
        self.folder.join("admin.pak")
    }

    fn temporary(&self) -> PathBuf {
        self.folder.join(".admin.pak.new")
    }

    /// Whether there is a temporary file.
    pub fn is_pending(&self) -> bool {
        fs::symlink_metadata(self.temporary()).is_ok()
    }

    /// Writes the PAK to the temporary file, on the disk when this returns.
    ///
    /// # Errors
    ///
    /// When the folder cannot be made or written.
    pub fn prepare(&self, pak: &Pak) -> io::Result<()> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.folder)?;
        self.discard()?;
        // `create_new` follows no link and takes over no file that somebody else has put there.
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(self.temporary())?;
        file.write_all(pak.expose().as_bytes())?;
        file.write_all(b"\n")?;
        file.sync_all()?;
        self.sync_folder()
    }

    /// Gives the temporary file its name.
    ///
    /// # Errors
    ///
    /// When the folder cannot be written.
    pub fn publish(&self) -> io::Result<()> {
        fs::rename(self.temporary(), self.path())?;
        self.sync_folder()
    }

    /// Keeps the PAK of the schema that the folder was used with before, as `admin.pak.old`.
    ///
    /// # Errors
    ///
    /// When the folder cannot be written.
    pub fn set_aside(&self) -> io::Result<()> {
        if fs::symlink_metadata(self.path()).is_ok_and(|found| found.is_file()) {
            fs::rename(self.path(), self.folder.join("admin.pak.old"))?;
        }
        Ok(())
    }

    /// Removes the temporary file, if there is one.
    ///
    /// # Errors
    ///
    /// When the folder cannot be written.
    pub fn discard(&self) -> io::Result<()> {
        match fs::remove_file(self.temporary()) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// Finishes what a process that died after its commit has left. True when there was something to finish.
    ///
    /// # Errors
    ///
    /// When the folder cannot be read or written.
    pub fn adopt(&self, stored: &PakHash) -> io::Result<bool> {
        let text = match fs::read_to_string(self.temporary()) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(error),
        };
        if PakHash::of(text.trim()).as_ref() == Some(stored) {
            self.publish()?;
            return Ok(true);
        }
        self.discard()?;
        Ok(false)
    }

    fn sync_folder(&self) -> io::Result<()> {
        File::open(&self.folder)?.sync_all()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::pak::Format;

    #[test]
    fn a_published_pak_is_readable_by_its_owner_only() {
        let folder = tempfile::tempdir().unwrap();
        let file = KeyFile::in_folder(&folder.path().join("tenants/acme"));
        let pak = Pak::mint(&Format::default()).unwrap();
        file.prepare(&pak).unwrap();
        assert!(!file.path().exists());
        file.publish().unwrap();
        assert_eq!(
            fs::read_to_string(file.path()).unwrap(),
            format!("{}\n", pak.expose())
        );
        assert_eq!(
            fs::metadata(file.path()).unwrap().permissions().mode() & 0o777,
            0o600
        );
        assert_eq!(
            fs::metadata(folder.path().join("tenants/acme"))
                .unwrap()
                .permissions()
                .mode()
                & 0o777,
            0o700
        );
    }

    #[test]
    fn what_a_dead_process_left_is_adopted_only_if_it_is_the_stored_pak() {
        let folder = tempfile::tempdir().unwrap();
        let file = KeyFile::in_folder(folder.path());
        let (pak, other) = (
            Pak::mint(&Format::default()).unwrap(),
            Pak::mint(&Format::default()).unwrap(),
        );
        assert!(!file.adopt(&pak.hash()).unwrap());
        file.prepare(&other).unwrap();
        assert!(!file.adopt(&pak.hash()).unwrap());
        assert!(!file.path().exists() && !file.temporary().exists());
        file.prepare(&pak).unwrap();
        assert!(file.adopt(&pak.hash()).unwrap());
        assert!(file.path().exists());
    }
}
