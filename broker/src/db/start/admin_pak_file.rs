//! `admin.pak`: the only file that ever holds the administrator's PAK.
//!
//! The PAK is in the file before its hash is in the schema, and the file has its final name before the start is
//! reported as done: temporary file written and synced, transaction committed, file renamed, folder synced. A process
//! that dies between commit and rename leaves the temporary file. The next start finds that its PAK is the stored one
//! and finishes the rename ([`AdminPakFile::adopt`]).

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::pak::{Pak, PakHash};

/// The file for a tenant's admin PAK.
#[derive(Clone, Debug)]
pub struct AdminPakFile {
    folder: PathBuf,
}

impl AdminPakFile {
    /// Returns the key file in the tenant's state folder.
    pub fn in_folder(folder: &Path) -> Self {
        AdminPakFile {
            folder: folder.to_owned(),
        }
    }

    /// Returns the file's final path.
    pub fn path(&self) -> PathBuf {
        self.folder.join("admin.pak")
    }

    fn temporary(&self) -> PathBuf {
        self.folder.join(".admin.pak.new")
    }

    /// Returns true when there is a temporary file.
    pub fn is_pending(&self) -> bool {
        fs::symlink_metadata(self.temporary()).is_ok()
    }

    /// Writes the PAK to the temporary file and syncs it to disk. Creates the folder if needed.
    pub fn prepare(&self, pak: &Pak) -> io::Result<()> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.folder)?;
        self.discard()?;
        // `create_new` follows no link and never takes over a file that another process has put there.
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

    /// Renames the temporary file to its final name.
    pub fn publish(&self) -> io::Result<()> {
        fs::rename(self.temporary(), self.path())?;
        self.sync_folder()
    }

    /// Renames the key file of the folder's previous schema to `admin.pak.old`, so that its PAK is kept.
    pub fn set_aside(&self) -> io::Result<()> {
        if fs::symlink_metadata(self.path()).is_ok_and(|found| found.is_file()) {
            fs::rename(self.path(), self.folder.join("admin.pak.old"))?;
        }
        Ok(())
    }

    /// Removes the temporary file, if there is one.
    pub fn discard(&self) -> io::Result<()> {
        match fs::remove_file(self.temporary()) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// Publishes the temporary file of a process that died after its commit, if its PAK is the stored one; otherwise
    /// removes the file. Returns true when the file was published.
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
    use crate::pak::PakFormat;

    #[test]
    fn a_published_pak_is_readable_by_its_owner_only() {
        let folder = tempfile::tempdir().unwrap();
        let file = AdminPakFile::in_folder(&folder.path().join("tenants/acme"));
        let pak = Pak::mint(&PakFormat::default()).unwrap();
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
        let file = AdminPakFile::in_folder(folder.path());
        let (pak, other) = (
            Pak::mint(&PakFormat::default()).unwrap(),
            Pak::mint(&PakFormat::default()).unwrap(),
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
