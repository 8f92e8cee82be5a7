//! The sources of a tenant's webhook key: `broker.webhook_encryption_key`, or else a file of the tenant's own.
//!
//! The first instance with a value to seal creates the file. The file gets its name by a hard link, which fails when
//! the name is taken: of two instances that create it at once one wins, and both read the winner's key. The file is
//! never written again.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::crypto::{Key, SealError};

/// The configured source of the webhook key.
#[derive(Clone, Debug)]
pub struct KeySource {
    configured: Option<Key>,
    folder: PathBuf,
}

/// Reason why there is no key.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The file cannot be read or written.
    #[error("{}: {error}", path.display())]
    File {
        /// The path of the file.
        path: PathBuf,
        /// The error of the system.
        #[source]
        error: io::Error,
    },
    /// The file holds no key.
    #[error("{} does not hold 64 hexadecimal digits", .0.display())]
    Malformed(PathBuf),
    /// No key could be generated.
    #[error(transparent)]
    Randomness(#[from] SealError),
}

impl KeySource {
    /// Returns a source with the configured key if there is one, else the file in the tenant's state directory.
    pub fn new(configured: Option<Key>, folder: &Path) -> Self {
        Self {
            configured,
            folder: folder.to_owned(),
        }
    }

    /// Returns the file's path.
    pub fn path(&self) -> PathBuf {
        self.folder.join("webhook.key")
    }

    /// Returns the key, if there is one.
    ///
    /// # Errors
    /// When the file exists but cannot be used.
    pub fn find(&self) -> Result<Option<Key>, KeyError> {
        if let Some(key) = &self.configured {
            return Ok(Some(key.clone()));
        }
        match fs::read_to_string(self.path()) {
            Ok(text) => Key::parse(text.trim())
                .map(Some)
                .ok_or_else(|| KeyError::Malformed(self.path())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                Err(KeyError::Malformed(self.path()))
            }
            Err(error) => Err(self.failed(error)),
        }
    }

    /// Returns the key; if there is none, creates one and syncs it to disk.
    pub fn find_or_make(&self) -> Result<Key, KeyError> {
        if let Some(key) = self.find()? {
            return Ok(key);
        }
        let key = Key::generate()?;
        self.publish(&key).map_err(|error| self.failed(error))?;
        // Read the file again, because another instance may have been faster.
        self.find()?
            .ok_or_else(|| self.failed(io::ErrorKind::NotFound.into()))
    }

    fn failed(&self, error: io::Error) -> KeyError {
        KeyError::File {
            path: self.path(),
            error,
        }
    }

    fn publish(&self, key: &Key) -> io::Result<()> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.folder)?;
        let temporary = self
            .folder
            .join(format!(".webhook.key.{:016x}", fastrand::u64(..)));
        let written = self.write(&temporary, key);
        // Remove the temporary file, otherwise an unused key would stay on disk.
        let removed = fs::remove_file(&temporary);
        written?;
        removed?;
        File::open(&self.folder)?.sync_all()
    }

    fn write(&self, temporary: &Path, key: &Key) -> io::Result<()> {
        // `create_new` follows no link and opens no existing file.
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(temporary)?;
        file.write_all(format!("{}\n", key.to_hex()).as_bytes())?;
        file.sync_all()?;
        match fs::hard_link(temporary, self.path()) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn the_key_is_made_once_and_readable_by_its_owner_only() {
        let folder = tempfile::tempdir().unwrap();
        let source = KeySource::new(None, &folder.path().join("tenants/acme"));
        assert!(source.find().unwrap().is_none());
        assert!(!source.path().exists(), "looking makes nothing");
        let made = source.find_or_make().unwrap();
        assert_eq!(source.find_or_make().unwrap().to_hex(), made.to_hex());
        assert_eq!(
            fs::read_to_string(source.path()).unwrap(),
            format!("{}\n", made.to_hex())
        );
        let mode = fs::metadata(source.path()).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o600);
        let files = fs::read_dir(folder.path().join("tenants/acme")).unwrap();
        assert_eq!(files.count(), 1, "nothing temporary is left");
    }

    #[test]
    fn of_many_who_make_it_at_once_all_get_the_same() {
        let folder = tempfile::tempdir().unwrap();
        let source = KeySource::new(None, folder.path());
        let keys: Vec<String> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..16)
                .map(|_| scope.spawn(|| source.find_or_make().unwrap().to_hex()))
                .collect();
            threads.into_iter().map(|t| t.join().unwrap()).collect()
        });
        assert!(keys.iter().all(|key| *key == keys[0]));
    }

    #[test]
    fn a_configured_key_needs_no_file_and_a_broken_file_is_said() {
        let folder = tempfile::tempdir().unwrap();
        let configured = Key::parse(&"ab".repeat(32)).unwrap();
        let source = KeySource::new(Some(configured.clone()), folder.path());
        assert_eq!(source.find_or_make().unwrap().to_hex(), configured.to_hex());
        assert!(!source.path().exists());
        let source = KeySource::new(None, folder.path());
        for bad in ["", "x", "abc\n", &"ab".repeat(31)] {
            fs::write(source.path(), bad).unwrap();
            assert!(matches!(source.find(), Err(KeyError::Malformed(_))));
        }
        fs::write(source.path(), [0xff, 0xfe]).unwrap();
        assert!(matches!(source.find(), Err(KeyError::Malformed(_))));
        assert!(!format!("{source:?}").contains("abab"));
    }
}
