//! The commands `tenant add`, `tenant remove` and `tenant list`.

use super::client::{ControlClient, parse};
use super::{Failure, drop_data, harmless, reload, say};
use crate::cli::{Add, Tenant};
use crate::config::{SupervisorConfig, TenantConfig};
use crate::status::{Snapshot, State, TenantStatus};
use brokkr_tenant::{DatabaseUrl, Layer, TenantName};
use std::fs::{self, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub(super) fn tenant(
    client: &ControlClient,
    config: &SupervisorConfig,
    command: &Tenant,
) -> Result<(), Failure> {
    match command {
        Tenant::List => list(&config.tenants_dir),
        Tenant::RotateCredentials { tenant } => {
            let path = format!("/v1/tenants/{tenant}/rotate-credentials");
            let role: String = client.post(&path, &())?;
            say(
                format!("rotated the credentials of {tenant}: role {role} has a new password\n")
                    .as_bytes(),
            )
        }
        Tenant::Add(options) => {
            let tenant = &options.tenant;
            let written = add(config, options)?;
            let report = reload::ask(client, false)?;
            let status = status_of(client, tenant)?;
            let Some(status) = status else {
                return Err(unseen(tenant, &written.path));
            };
            if status.state == State::Refused {
                let reason = status.reason.unwrap_or_default();
                return Err(take_back(client, tenant, &written, &reason));
            }
            say(format!("added {tenant}\n").as_bytes())?;
            // Report only this tenant's problems; `reload` and `status` report those of other tenants.
            let problems = report.of_tenants.get(tenant.as_str());
            reload::complain_of(problems.map_or(&[], Vec::as_slice))
        }
        Tenant::Remove(options) => {
            let tenant = &options.tenant;
            let path = file_of(&config.tenants_dir, tenant);
            let absent = || {
                let path = path.display();
                Failure::Problem(format!("there is no tenant {tenant}: no file {path}"))
            };
            let mut data = None;
            if options.drop_data {
                // Without the supervisor the tenant would run on.
                status_of(client, tenant)?;
                let kept = drop_data::kept_file(config, tenant);
                let file = [&path, &kept].into_iter().find(|file| file.exists());
                let file = file.ok_or_else(absent)?;
                data = Some(drop_data::confirm(config, file, options)?);
                if *file == path {
                    fs::rename(&path, &kept).map_err(|error| unwritable(tenant, &path, &error))?;
                }
            } else {
                fs::remove_file(&path).map_err(|error| match error.kind() {
                    ErrorKind::NotFound => absent(),
                    _ => unwritable(tenant, &path, &error),
                })?;
            }
            let report = reload::ask(client, false)?;
            let Some(status) = status_of(client, tenant)? else {
                say(format!("removed {tenant}\n").as_bytes())?;
                return data.map_or(Ok(()), |data| data.drop());
            };
            let reason = status
                .reason
                .map(|reason| format!(": {}", harmless(&reason)));
            let problems: Vec<String> = std::iter::once(format!(
                "tenant {tenant}: its file is removed, and it is {}{}",
                status.state,
                reason.unwrap_or_default()
            ))
            .chain(data.map(|_| format!("tenant {tenant}: its data is not dropped")))
            // For example removals that are held because there are too many.
            .chain(report.general().cloned())
            .collect();
            reload::complain_of(&problems)
        }
    }
}

/// Reports that the supervisor does not see the file, because it runs with another `tenants_dir`.
fn unseen(tenant: &TenantName, path: &Path) -> Failure {
    Failure::Problem(format!(
        "tenant {tenant}: {} is written, and the supervisor does not know the tenant: restart it if its tenants_dir has changed",
        path.display()
    ))
}

fn file_of(folder: &Path, tenant: &TenantName) -> PathBuf {
    folder.join(format!("{tenant}.toml"))
}

fn unwritable(tenant: &TenantName, path: &Path, error: &io::Error) -> Failure {
    Failure::Problem(format!(
        "tenant {tenant}: cannot change {}: {error}",
        path.display()
    ))
}

/// Prints the tenants' names from their files alone; `check` reports bad files.
fn list(folder: &Path) -> Result<(), Failure> {
    let unreadable = |error: io::Error| {
        Failure::Problem(format!(
            "cannot read tenants_dir {}: {error}",
            folder.display()
        ))
    };
    let mut names = Vec::new();
    for entry in fs::read_dir(folder).map_err(unreadable)? {
        let name = entry.map_err(unreadable)?.file_name();
        let stem = name.to_str().and_then(|name| name.strip_suffix(".toml"));
        names.extend(stem.and_then(|stem| TenantName::parse(stem).ok()));
    }
    names.sort();
    say(names
        .iter()
        .map(|name| format!("{name}\n"))
        .collect::<String>()
        .as_bytes())
}

/// Returns the supervisor's status of the tenant. Only the supervisor knows whether schema, address or budget prevent
/// the tenant, and it decides only when it sees the file.
fn status_of(client: &ControlClient, tenant: &TenantName) -> Result<Option<TenantStatus>, Failure> {
    let snapshot: Snapshot = parse(&client.get("/v1/status")?)?;
    let mut tenants = snapshot.tenants.into_iter();
    let status = tenants.find(|status| status.name == tenant.as_str());
    Ok(status.map(Arc::unwrap_or_clone))
}

/// Removes the file of a refused tenant, and returns the failure to report.
fn take_back(
    client: &ControlClient,
    tenant: &TenantName,
    written: &Written,
    reason: &str,
) -> Failure {
    let reason = harmless(reason);
    // Keep a file that another user has replaced meanwhile.
    let ours = fs::metadata(&written.path).is_ok_and(|now| (now.dev(), now.ino()) == written.inode);
    if !ours {
        return Failure::Problem(format!("tenant {tenant} is refused: {reason}"));
    }
    if let Err(error) = fs::remove_file(&written.path) {
        return Failure::Problem(format!(
            "tenant {tenant} is refused: {reason}\n{}",
            unwritable(tenant, &written.path, &error)
        ));
    }
    match reload::ask(client, false) {
        Ok(_) => Failure::Problem(format!("tenant {tenant} is not added: {reason}")),
        Err(failure) => failure,
    }
}

/// A file that `add` has written.
#[derive(Debug)]
struct Written {
    path: PathBuf,
    /// Device and inode, which identify the file.
    inode: (u64, u64),
}

/// Writes the file once it is known to be good, and never over another file.
fn add(config: &SupervisorConfig, options: &Add) -> Result<Written, Failure> {
    let tenant = &options.tenant;
    let path = file_of(&config.tenants_dir, tenant);
    // The supervisor ignores a file whose name begins with a dot.
    let early = config
        .tenants_dir
        .join(format!(".{tenant}.toml.{}", std::process::id()));
    let written = write(&early, &content(options)?)
        .map_err(|error| unwritable(tenant, &path, &error))
        .and_then(|()| judge(config, tenant, &early, &path))
        // Unlike a rename, a hard link fails when the file exists.
        .and_then(|()| {
            fs::hard_link(&early, &path).map_err(|error| match error.kind() {
                ErrorKind::AlreadyExists => {
                    Failure::Problem(format!("tenant {tenant} exists: {}", path.display()))
                }
                _ => unwritable(tenant, &path, &error),
            })
        })
        .and_then(|()| {
            let file = fs::metadata(&early).map_err(|error| unwritable(tenant, &path, &error))?;
            let inode = (file.dev(), file.ino());
            Ok(Written {
                path: path.clone(),
                inode,
            })
        });
    // If this fails, the supervisor ignores the file, and a later `add` with the same pid overwrites it.
    let _ = fs::remove_file(&early);
    written
}

fn write(path: &Path, text: &str) -> io::Result<()> {
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o640)
        .open(path)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

fn judge(
    config: &SupervisorConfig,
    tenant: &TenantName,
    early: &Path,
    path: &Path,
) -> Result<(), Failure> {
    TenantConfig::load(early, &layers_under(config), None)
        .map(drop)
        .map_err(|problems| {
            let text = problems
                .to_string()
                .replace(&*early.to_string_lossy(), &path.to_string_lossy());
            Failure::Problem(format!("tenant {tenant} is not added:\n{text}"))
        })
}

/// Returns the layers under a tenant's file. With an embedded server its URL is below them all.
pub(super) fn layers_under(config: &SupervisorConfig) -> Vec<Layer> {
    let embedded = config.postgres.embedded.then(|| {
        let url = crate::embedded::url(config).map(|url| url.expose());
        // Without its URL a tenant's file can still be judged.
        let url = url.unwrap_or_else(|_| "postgres:///brokkr?host=/".to_owned());
        Layer::from_pairs("the embedded server", [("database.url", url.as_str())])
    });
    embedded
        .into_iter()
        .chain([config.defaults.clone()])
        .collect()
}

fn content(options: &Add) -> Result<String, Failure> {
    let tenant = &options.tenant;
    let mut database = toml::Table::new();
    if let Some(url) = &options.url {
        // Other errors in the URL are reported later, with their line in the file.
        if DatabaseUrl::parse(url).is_ok_and(|url| url.password().is_some()) {
            let text = "a password has no place in an argument: put the URL into a file and use --url-file";
            return Err(Failure::Problem(format!(
                "tenant {tenant} is not added: {text}"
            )));
        }
        database.insert("url".into(), url.clone().into());
    }
    if let Some(file) = &options.url_file {
        let absolute = std::path::absolute(file).ok();
        let text = absolute.as_ref().and_then(|path| path.to_str());
        let text = text.ok_or_else(|| {
            Failure::Problem(format!(
                "tenant {tenant}: --url-file is not UTF-8: {}",
                file.display()
            ))
        })?;
        database.insert("url_file".into(), text.into());
    }
    let schema = options.schema.clone();
    let schema = schema.unwrap_or_else(|| format!("tenant_{}", tenant.as_str().replace('-', "_")));
    database.insert("schema".into(), schema.into());
    if let Some(size) = options.pool_size {
        database.insert("pool_size".into(), i64::from(size).into());
    }
    let mut http = toml::Table::new();
    http.insert("listen".into(), options.listen.clone().into());
    let mut all = toml::Table::new();
    all.insert("database".into(), database.into());
    all.insert("http".into(), http.into());
    Ok(all.to_string())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn host() -> (tempfile::TempDir, SupervisorConfig) {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("supervisor.toml");
        fs::write(
            &file,
            "tenants_dir = \"t\"\n[defaults.database]\nurl = \"postgres://brokkr@127.0.0.1/brokkr\"\n",
        )
        .unwrap();
        fs::create_dir(dir.path().join("t")).unwrap();
        let config = crate::config::load(&file).unwrap();
        (dir, config)
    }

    fn options(schema: &str) -> Add {
        Add {
            tenant: TenantName::parse("acme").unwrap(),
            url: None,
            url_file: None,
            schema: Some(schema.to_owned()),
            listen: "127.0.0.1:3001".to_owned(),
            pool_size: Some(7),
        }
    }

    #[test]
    fn a_good_file_is_written_once_and_never_over_another() {
        let (dir, config) = host();
        add(&config, &options("tenant_acme")).unwrap();
        let files: Vec<_> = fs::read_dir(dir.path().join("t")).unwrap().collect();
        assert_eq!(files.len(), 1);
        let text = fs::read_to_string(dir.path().join("t/acme.toml")).unwrap();
        assert!(
            text.contains("pool_size = 7") && text.contains("listen = \"127.0.0.1:3001\""),
            "{text}"
        );
        let again = add(&config, &options("other")).unwrap_err().to_string();
        assert!(again.contains("tenant acme exists"), "{again}");
        assert_eq!(
            fs::read_to_string(dir.path().join("t/acme.toml")).unwrap(),
            text
        );
    }

    #[test]
    fn a_password_is_not_taken_from_an_argument() {
        let (dir, config) = host();
        let mut options = options("tenant_acme");
        options.url = Some("postgres://u:hunter2@127.0.0.1/b".to_owned());
        let error = add(&config, &options).unwrap_err().to_string();
        assert!(
            error.contains("--url-file") && !error.contains("hunter2"),
            "{error}"
        );
        options.url = Some("postgres://u@127.0.0.1/b".to_owned());
        add(&config, &options).unwrap();
        assert_eq!(fs::read_dir(dir.path().join("t")).unwrap().count(), 1);
    }

    #[test]
    fn a_bad_one_is_refused_with_the_line_and_nothing_is_left() {
        let (dir, config) = host();
        let error = add(&config, &options("drop table;"))
            .unwrap_err()
            .to_string();
        assert!(error.contains("t/acme.toml:"), "{error}");
        assert_eq!(fs::read_dir(dir.path().join("t")).unwrap().count(), 0);
    }
}
