//! `tenant remove --drop-data`: removes a tenant with its schema, its role and its state folder.

use super::{Failure, say};
use crate::cli::Remove;
use crate::config::{SupervisorConfig, TenantConfig, TenantRole, credentials_file};
use crate::servers::provision::{role_lockout, role_name, role_removal};
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
#[derive(Clone)]
pub(super) struct Data {
    tenant: TenantName,
    schema: SchemaName,
    /// The URL of the role that may drop the schema.
    url: DatabaseUrl,
    own_role: bool,
    state_dir: PathBuf,
    /// The file for a dump.
    dump: Option<PathBuf>,
    pg_dump: PathBuf,
    /// The tenant's file, until everything is dropped.
    kept_file: PathBuf,
}

/// The name under which a tenant's file is kept until its data is gone, so that the command can be given again. The
/// supervisor ignores names that begin with a dot.
pub(super) fn kept_file(config: &SupervisorConfig, tenant: &TenantName) -> PathBuf {
    config.tenants_dir.join(format!(".{tenant}.toml.dropping"))
}

/// Finds the tenant's data by its file, and asks for a confirmation. Changes nothing.
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
    let mut data = Data {
        tenant: tenant.clone(),
        dump: None,
        pg_dump: match &config.postgres.bin_dir {
            Some(folder) => folder.join("pg_dump"),
            None => "pg_dump".into(),
        },
        kept_file: kept_file(config, tenant),
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
        if path == file
            || path
                .file_name()
                .is_some_and(|name| name.to_string_lossy().starts_with('.'))
            || path.extension().is_none_or(|end| end != "toml")
        {
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
    data.dump = match &options.yes_drop {
        Some(name) if name == tenant => options.dump.clone(),
        Some(name) => return Err(problem(format!("--yes-drop names {name}"))),
        None => ask(&data, options.dump.clone())?,
    };
    if let Some(path) = &data.dump {
        // Made before anything is changed, because the path may be unusable.
        write_new(path, b"").map_err(|error| problem(format!("{}: {error}", path.display())))?;
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

    /// Returns true when the schema was made for a Brokkr broker, false when not, and `None` without a schema.
    fn exists(&self, client: &mut Client) -> Result<Option<bool>, Failure> {
        let sql = "SELECT EXISTS (SELECT FROM pg_class c WHERE c.relnamespace = n.oid AND c.relname = $2::text) \
                       OR pg_get_userbyid(n.nspowner) = $3::text \
                     FROM pg_namespace n WHERE n.nspname = $1::text";
        let role = match self.own_role {
            true => self.role(client)?,
            false => String::new(),
        };
        let row = client
            .query_opt(sql, &[&self.schema.as_str(), &OURS, &role])
            .map_err(|error| self.failed("cannot look at its schema", &error))?;
        Ok(row.map(|row| row.get(0)))
    }

    /// Returns the name of the tenant's own role.
    fn role(&self, client: &mut Client) -> Result<String, Failure> {
        let sql = "SELECT oid FROM pg_database WHERE datname = current_database()";
        let row = client
            .query_one(sql, &[])
            .map_err(|error| self.failed("cannot look at its database", &error))?;
        Ok(role_name(row.get(0), &self.schema))
    }

    /// Returns a failure of the server, in its own words.
    fn failed(&self, what: &str, error: &postgres::Error) -> Failure {
        match error.as_db_error() {
            Some(told) => self.problem(what, &told.message()),
            None => self.problem(what, error),
        }
    }

    /// Writes a dump of the schema, readable by its owner only. The password reaches `pg_dump` in a file.
    fn write_dump(&self, path: &Path) -> Result<(), Failure> {
        let what = format!("no dump in {}, and its data stays", path.display());
        let failed = |error: &dyn std::fmt::Display| self.problem(&what, error);
        let passwords = self.folder().with_extension("pgpass");
        let password = self.url.password().map(Secret::expose).unwrap_or_default();
        let escaped = password.replace('\\', "\\\\").replace(':', "\\:");
        let line = format!("*:*:*:*:{escaped}\n");
        // A command that was interrupted may have left one.
        let ready =
            gone(fs::remove_file(&passwords)).and_then(|()| write_new(&passwords, line.as_bytes()));
        ready.map_err(|error| failed(&error))?;
        let url = self.url.clone().with_user(self.url.user(), None);
        let ran = Command::new(&self.pg_dump)
            .args(["--format=custom", "--schema", &self.schema.quoted()])
            .arg("--file")
            .arg(path)
            .arg(format!("--dbname={}", url.expose()))
            .env("PGPASSFILE", &passwords)
            .stdin(Stdio::null())
            .status();
        let removed = fs::remove_file(&passwords);
        let status = ran.map_err(|error| failed(&format!("{}: {error}", self.pg_dump.display())));
        let outcome = status.and_then(|status| match status.success() {
            true => Ok(()),
            false => Err(failed(&format!("pg_dump: {status}"))),
        });
        if outcome.is_err() {
            let _ = fs::remove_file(path);
        }
        outcome?;
        removed.map_err(|error| failed(&error))
    }

    /// Writes the dump, and drops everything. The tenant has gone. After a failure the command can be given again.
    pub(super) fn drop(&self) -> Result<(), Failure> {
        self.drop_all().map_err(|failure| {
            let tenant = &self.tenant;
            Failure::Problem(format!(
                "{failure}\ntenant {tenant}: not everything is dropped: `tenant remove {tenant} --drop-data` goes on with the rest"
            ))
        })
    }

    fn drop_all(&self) -> Result<(), Failure> {
        let mut client = self.connect()?;
        let schema = self.schema.quoted();
        if self.exists(&mut client)? == Some(true) {
            if self.own_role {
                self.lock_out(&mut client)?;
            }
            if let Some(path) = &self.dump {
                self.write_dump(path)?;
            }
            self.drop_schema(&mut client, &schema)?;
        }
        let mut role = String::new();
        if self.own_role {
            role = self.drop_role(&mut client)?;
        }
        let folder = self.folder();
        let beside = [
            folder.with_extension("schema"),
            credentials_file(&self.state_dir, self.tenant.as_str()),
            self.kept_file.clone(),
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

    /// Drops the schema. Its tables go in steps, because each takes entries of the server's lock table.
    fn drop_schema(&self, client: &mut Client, schema: &str) -> Result<(), Failure> {
        let what = format!("its schema {} is not dropped", self.schema);
        let tables = "SELECT string_agg(format('%I.%I', t.nspname, t.relname), ', ') FROM ( \
                        SELECT n.nspname, c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
                         WHERE n.nspname = $1::text AND c.relkind IN ('r', 'p') LIMIT 100) t";
        let step = (|| {
            client.batch_execute("SET lock_timeout TO '10s'")?;
            loop {
                let row = client.query_one(tables, &[&self.schema.as_str()])?;
                let Some(some) = row.get::<_, Option<String>>(0) else {
                    break;
                };
                client.batch_execute(&format!("DROP TABLE IF EXISTS {some} CASCADE"))?;
            }
            client.batch_execute(&format!("DROP SCHEMA {schema} CASCADE"))
        })();
        step.map_err(|error| self.failed(&what, &error))
    }

    /// Returns the tenant's own role and its comment; `None` without such a role.
    fn find_role(&self, client: &mut Client) -> Result<Option<(String, Option<String>)>, Failure> {
        let role = self.role(client)?;
        let sql =
            "SELECT shobj_description(oid, 'pg_authid') FROM pg_roles WHERE rolname = $1::text";
        let row = client
            .query_opt(sql, &[&role])
            .map_err(|error| self.failed("cannot look at its role", &error))?;
        Ok(row.map(|row| (role, row.get(0))))
    }

    /// Keeps the tenant's role from logging in, and ends its sessions, because they may hold locks.
    fn lock_out(&self, client: &mut Client) -> Result<(), Failure> {
        let Some((role, comment)) = self.find_role(client)? else {
            return Ok(());
        };
        let what = "its role cannot be locked";
        let sql =
            role_lockout(&role, comment.as_deref()).map_err(|why| self.problem(what, &why))?;
        client
            .batch_execute(&sql)
            .map_err(|error| self.failed(what, &error))
    }

    /// Drops the tenant's role, and returns the words that say so.
    fn drop_role(&self, client: &mut Client) -> Result<String, Failure> {
        let what = "its role is not dropped";
        let Some((role, comment)) = self.find_role(client)? else {
            return Ok(String::new());
        };
        let removal =
            role_removal(&role, comment.as_deref()).map_err(|why| self.problem(what, &why))?;
        // What it owns or was granted in other databases keeps it from being dropped.
        let databases = client
            .query(
                "SELECT DISTINCT d.datname FROM pg_shdepend s JOIN pg_database d ON d.oid = s.dbid \
                  WHERE s.refclassid = 'pg_authid'::regclass AND s.refobjid = (SELECT oid FROM pg_roles WHERE rolname = $1::text) \
                    AND d.datname <> current_database()",
                &[&role],
            )
            .map_err(|error| self.failed(what, &error))?;
        for row in databases {
            let elsewhere = Self {
                url: self.url.clone().with_dbname(row.get::<_, String>(0)),
                ..self.clone()
            };
            elsewhere
                .connect()?
                .batch_execute(&removal.owned)
                .map_err(|error| self.failed(what, &error))?;
        }
        client
            .batch_execute(&removal.whole)
            .map_err(|error| self.failed(what, &error))?;
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
