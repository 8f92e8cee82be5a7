//! `tenant remove --drop-data`: removes a tenant with its schema, its role and its state folder.

use super::{Failure, say};
use crate::cli::Remove;
use crate::config::{SupervisorConfig, TenantConfig, TenantRole, credentials_file};
use crate::servers::provision::{role_name, role_removal};
use brokkr_tenant::{DatabaseUrl, SchemaName, Secret, TenantName};
use postgres::Client;
use std::fs::{self, OpenOptions};
use std::io::{self, BufRead, ErrorKind, IsTerminal, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// A table that only this broker's migrations create.
const OURS: &str = "brokkr_meta";

/// A tenant's data, found and confirmed before its file is removed.
pub(super) struct Data {
    tenant: TenantName,
    schema: SchemaName,
    /// The URL of the role that may drop the schema.
    url: DatabaseUrl,
    own_role: bool,
    state_dir: PathBuf,
}

/// Finds the tenant's data, asks for a confirmation, and writes the dump that is asked for. Changes nothing else.
pub(super) fn confirm(
    config: &SupervisorConfig,
    file: &Path,
    options: &Remove,
) -> Result<Data, Failure> {
    let tenant = &options.tenant;
    let problem =
        |text: String| Failure::Problem(format!("tenant {tenant}: {text}; nothing is changed"));
    let load = |path: &Path| {
        TenantConfig::load(
            path,
            &super::tenant::layers_under(config),
            config.provision.as_ref(),
        )
    };
    let (settings, _) = load(file).map_err(|problems| Failure::Problem(problems.to_string()))?;
    let database = &settings.broker().database;
    let url = match settings.role() {
        TenantRole::Own { admin, .. } => (**admin).clone(),
        TenantRole::OfUrl(_) => database.url.clone(),
    };
    let data = Data {
        tenant: tenant.clone(),
        schema: database.schema.clone(),
        url,
        own_role: matches!(settings.role(), TenantRole::Own { .. }),
        state_dir: config.state_dir.clone(),
    };
    if data.schema.as_str() == "public" {
        return Err(problem("schema public is not dropped, because other programs may use it: drop its tables by hand".into()));
    }
    let identity = database.url.schema_identity(&database.schema);
    for other in fs::read_dir(&config.tenants_dir)
        .into_iter()
        .flatten()
        .flatten()
    {
        let path = other.path();
        if path == file || path.extension().is_none_or(|end| end != "toml") {
            continue;
        }
        if let Ok((other, _)) = load(&path)
            && other
                .broker()
                .database
                .url
                .schema_identity(&other.broker().database.schema)
                == identity
        {
            return Err(problem(format!("{} names the same schema", path.display())));
        }
    }
    let mut client = data.connect()?;
    if data.exists(&mut client)? == Some(false) {
        return Err(problem(format!(
            "schema {} has no table {OURS}, so no Brokkr broker has made it: drop it by hand",
            data.schema
        )));
    }
    drop(client);
    let dump = match &options.yes_drop {
        Some(name) if name == tenant => options.dump.clone(),
        Some(name) => return Err(problem(format!("--yes-drop names {name}"))),
        None => ask(&data, options.dump.clone())?,
    };
    if let Some(path) = dump {
        data.dump(config, &path)?;
    }
    Ok(data)
}

/// Asks at the terminal for the tenant's name and for the file of a dump.
fn ask(data: &Data, dump: Option<PathBuf>) -> Result<Option<PathBuf>, Failure> {
    let Data {
        tenant,
        schema,
        url,
        ..
    } = data;
    if !io::stdin().is_terminal() {
        return Err(Failure::Problem(format!(
            "tenant {tenant}: --drop-data asks for a confirmation: give --yes-drop {tenant}; nothing is changed"
        )));
    }
    let role = if data.own_role { ", its role" } else { "" };
    say(format!(
        "This drops schema {schema} of database {} at {} with all its data{role}, and {}.\n",
        url.dbname(),
        url.address(),
        data.folder().display()
    )
    .as_bytes())?;
    let dump = match dump {
        Some(path) => Some(path),
        None => {
            let answer = prompt("File for a dump of the schema before that (empty for none): ")?;
            (!answer.is_empty()).then(|| answer.into())
        }
    };
    match prompt("Type the tenant's name to go on: ")? == tenant.as_str() {
        true => Ok(dump),
        false => Err(Failure::Problem(format!(
            "tenant {tenant}: not its name; nothing is changed"
        ))),
    }
}

fn prompt(text: &str) -> Result<String, Failure> {
    say(text.as_bytes())?;
    let mut answer = String::new();
    io::stdin()
        .lock()
        .read_line(&mut answer)
        .map_err(|error| Failure::Problem(format!("standard input: {error}")))?;
    Ok(answer.trim().to_owned())
}

impl Data {
    fn folder(&self) -> PathBuf {
        self.state_dir.join("tenants").join(self.tenant.as_str())
    }

    fn problem(&self, what: &str, error: &dyn std::fmt::Display) -> Failure {
        Failure::Problem(format!("tenant {}: {what}: {error}", self.tenant))
    }

    fn connect(&self) -> Result<Client, Failure> {
        let options = brokkr_pg::Options::new(brokkr_pg::application_name(self.tenant.as_str()));
        brokkr_pg::connect(&self.url, &options)
            .map_err(|error| self.problem("cannot reach its database", &error))
    }

    /// Returns true when the schema was made by a Brokkr broker, false when not, and `None` without a schema.
    fn exists(&self, client: &mut Client) -> Result<Option<bool>, Failure> {
        let sql = "SELECT EXISTS (SELECT FROM pg_class c WHERE c.relnamespace = n.oid AND c.relname = $2::text) \
                     FROM pg_namespace n WHERE n.nspname = $1::text";
        let row = client
            .query_opt(sql, &[&self.schema.as_str(), &OURS])
            .map_err(|error| self.problem("cannot look at its schema", &error))?;
        Ok(row.map(|row| row.get(0)))
    }

    /// Writes a dump of the schema. The password reaches `pg_dump` in a file.
    fn dump(&self, config: &SupervisorConfig, path: &Path) -> Result<(), Failure> {
        let what = format!("no dump in {}, and nothing is changed", path.display());
        let failed = |error: &dyn std::fmt::Display| self.problem(&what, error);
        if path.exists() {
            return Err(failed(&"the file exists"));
        }
        let passwords = path.with_extension("pgpass");
        let password = self.url.password().map(Secret::expose).unwrap_or_default();
        let escaped = password.replace('\\', "\\\\").replace(':', "\\:");
        write_new(&passwords, format!("*:*:*:*:{escaped}\n").as_bytes()).map_err(|e| failed(&e))?;
        let program = match &config.postgres.bin_dir {
            Some(folder) => folder.join("pg_dump"),
            None => "pg_dump".into(),
        };
        let url = self.url.clone().with_user(self.url.user(), None);
        let ran = Command::new(&program)
            .args(["--format=custom", "--schema", &self.schema.quoted()])
            .arg("--file")
            .arg(path)
            .arg(format!("--dbname={}", url.expose()))
            .env("PGPASSFILE", &passwords)
            .stdin(Stdio::null())
            .status();
        let removed = fs::remove_file(&passwords);
        let status = ran.map_err(|error| failed(&format!("{}: {error}", program.display())))?;
        removed.map_err(|error| failed(&error))?;
        match status.success() {
            true => Ok(()),
            false => Err(failed(&format!("pg_dump: {status}"))),
        }
    }

    /// Drops everything. The tenant has gone.
    pub(super) fn drop(&self) -> Result<(), Failure> {
        let mut client = self.connect()?;
        let schema = self.schema.quoted();
        let what = format!("its schema {} is not dropped", self.schema);
        if self.exists(&mut client)? == Some(true) {
            client
                .batch_execute(&format!("DROP SCHEMA {schema} CASCADE"))
                .map_err(|error| self.problem(&what, &error))?;
        }
        let mut role = String::new();
        if self.own_role {
            role = self.drop_role(&mut client)?;
        }
        let folder = self.folder();
        let beside = [
            folder.with_extension("schema"),
            credentials_file(&self.state_dir, self.tenant.as_str()),
        ];
        gone(fs::remove_dir_all(&folder))
            .and_then(|()| {
                beside
                    .iter()
                    .try_for_each(|path| gone(fs::remove_file(path)))
            })
            .map_err(|error| {
                self.problem(&format!("{} is not removed", folder.display()), &error)
            })?;
        say(format!(
            "dropped schema {}{role} and {}\n",
            self.schema,
            folder.display()
        )
        .as_bytes())
    }

    /// Drops the tenant's role, and returns the words that say so.
    fn drop_role(&self, client: &mut Client) -> Result<String, Failure> {
        let failed = |error: &dyn std::fmt::Display| self.problem("its role is not dropped", error);
        let oid: u32 = client
            .query_one(
                "SELECT oid FROM pg_database WHERE datname = current_database()",
                &[],
            )
            .map_err(|error| failed(&error))?
            .get(0);
        let role = role_name(oid, &self.schema);
        let comment = client
            .query_opt(
                "SELECT shobj_description(oid, 'pg_authid') FROM pg_roles WHERE rolname = $1::text",
                &[&role],
            )
            .map_err(|error| failed(&error))?;
        let Some(comment) = comment else {
            return Ok(String::new());
        };
        let comment: Option<String> = comment.get(0);
        let sql = role_removal(&role, comment.as_deref()).map_err(|why| failed(&why))?;
        client.batch_execute(&sql).map_err(|error| failed(&error))?;
        Ok(format!(", role {role}"))
    }
}

/// Counts an absent file as removed.
fn gone(removed: io::Result<()>) -> io::Result<()> {
    match removed {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

fn write_new(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)?;
    file.write_all(bytes)
}
