//! The file that keeps a tenant's login, so that its role has the same password after a restart of the supervisor.
//!
//! The file lies beside the tenant's state folder, belongs to the supervisor, and holds the whole URL, so that a person
//! can run a command as this tenant with it as `url_file`.

use brokkr_tenant::{DatabaseUrl, Secret, url_file};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// The number of random bytes of a password.
const RANDOM: usize = 24;

/// Returns `url` with the role and its password: the password of the file, or a new one, which is then in the file.
/// Blocks on the file system.
pub(super) fn login(path: &Path, url: &DatabaseUrl, role: &str) -> io::Result<DatabaseUrl> {
    let known = url_file::read(path).ok();
    let password = known
        .as_ref()
        .filter(|known| known.user() == role)
        .and_then(|known| known.password().cloned());
    let password = match password {
        Some(password) => password,
        None => new_password()?,
    };
    let login = url.clone().with_user(role, Some(password));
    if known.as_ref() != Some(&login) {
        write(path, &login)?;
    }
    Ok(login)
}

/// Returns `url` with the role and a new password, which is then in the file. Blocks on the file system.
pub(super) fn renew(path: &Path, url: &DatabaseUrl, role: &str) -> io::Result<DatabaseUrl> {
    let login = url.clone().with_user(role, Some(new_password()?));
    write(path, &login)?;
    Ok(login)
}

fn new_password() -> io::Result<Secret> {
    let mut random = [0; RANDOM];
    getrandom::fill(&mut random).map_err(|error| io::Error::other(error.to_string()))?;
    let hex: String = random.iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(Secret::new(hex))
}

fn write(path: &Path, login: &DatabaseUrl) -> io::Result<()> {
    let early = path.with_extension("url.new");
    // A leftover may have another mode.
    let _ = fs::remove_file(&early);
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&early)?;
    writeln!(file, "{}", login.expose())?;
    file.sync_all()?;
    fs::rename(&early, path)?;
    match path.parent() {
        Some(folder) => File::open(folder)?.sync_all(),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_password_is_kept_for_its_role_only_and_is_readable_by_its_owner_only() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("acme.url");
        let url = DatabaseUrl::parse("postgres://brokkr_t_@127.0.0.1:5433/shop").unwrap();
        let first = login(&path, &url, "brokkr_t_acme").unwrap();
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(first.password().unwrap().expose().len(), 2 * RANDOM);
        assert_eq!(login(&path, &url, "brokkr_t_acme").unwrap(), first);

        let moved = DatabaseUrl::parse("postgres://brokkr_t_@db:5432/shop").unwrap();
        let elsewhere = login(&path, &moved, "brokkr_t_acme").unwrap();
        assert_eq!(elsewhere.password(), first.password());
        assert_eq!(url_file::read(&path).unwrap(), elsewhere);

        let other = login(&path, &url, "brokkr_t_other").unwrap();
        assert_ne!(other.password(), first.password());
        let renewed = renew(&path, &url, "brokkr_t_other").unwrap();
        assert_ne!(renewed.password(), other.password());
    }
}
