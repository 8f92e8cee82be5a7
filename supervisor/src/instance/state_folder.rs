//! A tenant's state folder (admin PAK, webhook key), which belongs to its schema and not to its name.
//!
//! The file `NAME.schema` beside each folder says which schema it belongs to. A renamed tenant that serves the schema
//! of a removed tenant takes that tenant's folder over; otherwise its admin PAK would be unknown and data encrypted
//! with its webhook key lost. The file belongs to the supervisor, so that no tenant can claim another tenant's folder.

use brokkr_tenant::{DatabaseConfig, TenantName};
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, open, openat};
use nix::sys::stat::Mode;
use nix::unistd::{Gid, Uid, fchownat};
use std::fs::{self, DirBuilder, File, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// The extension of the file beside a folder. A tenant's name has no dot.
const LABEL: &str = "schema";

/// Gives `tenant` the folder of its schema's last tenant, if that tenant is another one.
pub(super) fn follow_schema(
    folder: &Path,
    tenant: &TenantName,
    database: &DatabaseConfig,
) -> io::Result<()> {
    let identity = database.url.schema_identity(&database.schema);
    if let Some(parent) = folder.parent() {
        // Only the folders' owners may list the tenants.
        DirBuilder::new()
            .recursive(true)
            .mode(0o711)
            .create(parent)?;
        if let Some(old) = predecessor(parent, folder, &identity) {
            take_over(&old, folder, tenant);
        }
    }
    Ok(())
}

/// Prepares the folder for an instance of `tenant`: private to its owner. With an `owner` the folder and all files in it
/// become that user's; only root can do this.
pub(super) fn prepare(
    folder: &Path,
    tenant: &TenantName,
    database: &DatabaseConfig,
    owner: Option<u32>,
) -> io::Result<()> {
    let identity = database.url.schema_identity(&database.schema);
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)?;
    match owner {
        Some(uid) => give(folder, uid)?,
        None => fs::set_permissions(folder, Permissions::from_mode(0o700))?,
    }
    let label = folder.with_extension(LABEL);
    if fs::read_to_string(&label).ok().as_deref() != Some(&identity)
        && let Err(error) = fs::write(&label, &identity)
    {
        // The tenant runs without this file; only a later rename would not find its folder.
        tracing::warn!(%tenant, "cannot write {}: {error}", label.display());
    }
    Ok(())
}

/// Gives the folder and its files to a user.
///
/// The last owner may still write there, so a link could lead root to another file: nothing is followed, and every file
/// is examined and given by one descriptor.
///
/// # Errors
/// When an entry of another owner is no plain file with one name. Root must not give that away.
fn give(folder: &Path, uid: u32) -> io::Result<()> {
    let flags = OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let opened = File::from(open(folder, flags, Mode::empty())?);
    // The folder first, so that its last owner cannot enter it any more.
    opened.set_permissions(Permissions::from_mode(0o700))?;
    std::os::unix::fs::fchown(&opened, Some(uid), Some(uid))?;
    for entry in fs::read_dir(folder)? {
        let name = entry?.file_name();
        let path = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let file = match openat(&opened, name.as_os_str(), path, Mode::empty()) {
            Ok(file) => File::from(file),
            Err(Errno::ENOENT) => continue,
            Err(error) => return Err(error.into()),
        };
        let found = file.metadata()?;
        if found.uid() == uid {
            continue;
        }
        if !found.is_file() || found.nlink() != 1 {
            let path = folder.join(name);
            return Err(io::Error::other(format!(
                "{} is not a plain file with one name, and user {uid} cannot become its owner: remove it",
                path.display()
            )));
        }
        let (user, group) = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(uid)));
        fchownat(&file, c"", user, group, AtFlags::AT_EMPTY_PATH)?;
    }
    Ok(())
}

/// Finds the only other folder of the schema; `None` when there are several, because none can be preferred.
fn predecessor(parent: &Path, folder: &Path, identity: &str) -> Option<PathBuf> {
    if has_content(folder) {
        return None;
    }
    let mut found = fs::read_dir(parent).ok()?.flatten().filter_map(|entry| {
        let label = entry.path();
        let old = label.with_extension("");
        let fits = label.extension().is_some_and(|end| end == LABEL)
            && old != folder
            // First the cheaper question: a host's first boot asks it about every pair of tenants.
            && fs::read_to_string(&label).is_ok_and(|text| text == identity)
            && has_content(&old);
        fits.then_some(old)
    });
    let first = found.next()?;
    found.next().is_none().then_some(first)
}

fn has_content(folder: &Path) -> bool {
    fs::read_dir(folder).is_ok_and(|mut entries| entries.next().is_some())
}

fn take_over(old: &Path, folder: &Path, tenant: &TenantName) {
    let (from, to) = (old.display(), folder.display());
    // `rename` replaces an empty folder.
    match fs::rename(old, folder) {
        Ok(()) => {
            let _ = fs::remove_file(old.with_extension(LABEL));
            // The old login of its role: provisioning has written the present one under the new name.
            let _ = fs::remove_file(old.with_extension("url"));
            tracing::info!(%tenant, "serves the schema that belongs to {from}: that folder, with its admin PAK, is now {to}");
        }
        Err(error) => {
            tracing::warn!(%tenant, "serves the schema that belongs to {from}, which cannot become {to}: {error}");
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use brokkr_tenant::{Layer, Mode, resolve};

    fn database(schema: &str) -> DatabaseConfig {
        let url = "postgres://u:secret@h/d";
        let pairs = [("database.url", url), ("database.schema", schema)];
        let layer = Layer::from_pairs("test", pairs);
        resolve(&[layer], Mode::Alone).unwrap().config.database
    }

    struct Tenants(tempfile::TempDir);

    impl Tenants {
        fn prepare(&self, name: &str, schema: &str) {
            let tenant = TenantName::parse(name).unwrap();
            let (folder, database) = (self.0.path().join(name), database(schema));
            follow_schema(&folder, &tenant, &database).unwrap();
            prepare(&folder, &tenant, &database, None).unwrap();
        }

        fn pak(&self, name: &str) -> PathBuf {
            self.0.path().join(name).join("admin.pak")
        }
    }

    #[test]
    fn a_folder_follows_its_schema_to_another_name_and_no_other_schema() {
        let tenants = Tenants(tempfile::tempdir().unwrap());
        tenants.prepare("old", "a");
        fs::write(tenants.pak("old"), "pak of a").unwrap();
        let label = fs::read_to_string(tenants.0.path().join("old.schema")).unwrap();
        assert!(!label.contains("secret"), "{label}");

        tenants.prepare("other", "b");
        assert!(!tenants.pak("other").exists());
        // An empty folder from an earlier start that failed.
        fs::create_dir(tenants.0.path().join("new")).unwrap();
        tenants.prepare("new", "a");
        assert_eq!(fs::read_to_string(tenants.pak("new")).unwrap(), "pak of a");
        assert!(!tenants.pak("old").exists());
        // A rename back works too; a folder with content is never replaced.
        tenants.prepare("old", "a");
        assert!(tenants.pak("old").exists() && !tenants.pak("new").exists());
        fs::create_dir_all(tenants.0.path().join("third")).unwrap();
        fs::write(tenants.pak("third"), "its own").unwrap();
        tenants.prepare("third", "a");
        assert_eq!(fs::read_to_string(tenants.pak("third")).unwrap(), "its own");
        assert!(tenants.pak("old").exists());
        // With two candidates, neither is taken.
        tenants.prepare("fourth", "a");
        assert!(!tenants.pak("fourth").exists() && tenants.pak("old").exists());
    }

    #[test]
    fn root_gives_a_tenant_its_plain_files_and_follows_no_link() {
        if !nix::unistd::geteuid().is_root() {
            println!("skipped: only root may give files to other users");
            return;
        }
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("acme");
        fs::create_dir(&folder).unwrap();
        let owner = |path: &Path| fs::symlink_metadata(path).unwrap().uid();
        let (pak, secret) = (folder.join("admin.pak"), root.path().join("secret"));
        for path in [&pak, &secret] {
            fs::write(path, "x").unwrap();
        }
        give(&folder, 61_000).unwrap();
        assert_eq!((owner(&folder), owner(&pak)), (61_000, 61_000));
        // Another user's files, from an installation before, become the tenant's too.
        give(&folder, 61_001).unwrap();
        assert_eq!((owner(&folder), owner(&pak)), (61_001, 61_001));

        let link = folder.join("link");
        std::os::unix::fs::symlink(&secret, &link).unwrap();
        let error = give(&folder, 61_001).unwrap_err().to_string();
        assert!(error.contains(&link.display().to_string()), "{error}");
        // The tenant's own link is its own affair.
        std::os::unix::fs::lchown(&link, Some(61_001), None).unwrap();
        give(&folder, 61_001).unwrap();
        fs::remove_file(&link).unwrap();
        fs::hard_link(&secret, &link).unwrap();
        assert!(give(&folder, 61_001).is_err());
        assert_eq!(owner(&secret), 0);
        fs::rename(&folder, root.path().join("moved")).unwrap();
        std::os::unix::fs::symlink(root.path().join("moved"), &folder).unwrap();
        assert!(give(&folder, 61_001).is_err());
    }
}
