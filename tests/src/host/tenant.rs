//! One tenant of a host.

use super::{Host, TenantStatus};
use crate::http::{Addr, Api, Connection, Response};
use crate::toml_text::TomlText;
use crate::{http, ports, procs};
use nix::sys::signal::Signal;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

/// Longest wait for a tenant's state, far more than two loaded cores need.
const SOON: Duration = Duration::from_secs(30);

/// A tenant file that is not written yet.
#[derive(Debug)]
pub struct Draft<'h> {
    host: &'h Host,
    name: String,
    file: TomlText,
}

impl<'h> Draft<'h> {
    pub(super) fn new(host: &'h Host, name: &str) -> Self {
        let mut file = TomlText::default();
        file.text(
            "database.schema",
            format!("tenant_{}", name.replace('-', "_")),
        )
        .set("database.pool_size", "5")
        .text("http.listen", format!("127.0.0.1:{}", ports::free()));
        Self {
            host,
            name: name.into(),
            file,
        }
    }

    /// Sets the size of the pool.
    #[must_use]
    pub fn pool(self, size: u32) -> Self {
        self.set("database.pool_size", &size.to_string())
    }

    /// Sets the schema.
    #[must_use]
    pub fn schema(mut self, schema: &str) -> Self {
        self.file.text("database.schema", schema);
        self
    }

    /// Sets the URL.
    #[must_use]
    pub fn url(mut self, url: &str) -> Self {
        self.file.text("database.url", url);
        self
    }

    /// Sets the address.
    #[must_use]
    pub fn listen(mut self, listen: &str) -> Self {
        self.file.text("http.listen", listen);
        self
    }

    /// Sets a key to a TOML value.
    #[must_use]
    pub fn set(mut self, key: &str, toml: &str) -> Self {
        self.file.set(key, toml);
        self
    }

    /// Removes a key.
    #[must_use]
    pub fn unset(mut self, key: &str) -> Self {
        self.file.unset(key);
        self
    }

    /// Returns the text of the file.
    pub fn text(&self) -> String {
        self.file.render()
    }

    /// Writes the file as an installer does: under another name, then renamed.
    pub fn write(self) -> Tenant<'h> {
        let tenant = Tenant {
            host: self.host,
            name: self.name,
        };
        tenant.replace_file(&self.file.render());
        tenant
    }

    /// Writes the file, starts the supervisor if it does not run, and waits until the tenant is ready.
    pub fn up(self) -> Tenant<'h> {
        let tenant = self.write();
        tenant.host.up();
        tenant.is_ready()
    }
}

/// A tenant that has, or had, a file.
#[derive(Debug, Clone)]
pub struct Tenant<'h> {
    host: &'h Host,
    name: String,
}

impl<'h> Tenant<'h> {
    pub(super) fn known(host: &'h Host, name: &str) -> Self {
        Self {
            host,
            name: name.into(),
        }
    }

    /// Returns the tenant's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns the path of the tenant's file.
    pub fn file(&self) -> PathBuf {
        self.host.tenants_dir().join(format!("{}.toml", self.name))
    }

    /// Returns the tenant's state folder.
    pub fn state_dir(&self) -> PathBuf {
        self.host.state_dir().join("tenants").join(&self.name)
    }

    /// Replaces the file atomically.
    pub fn replace_file(&self, text: &str) {
        let temporary = self.host.tenants_dir().join(format!(".{}.tmp", self.name));
        fs::write(&temporary, text).unwrap();
        crate::test_dir::set_mode(&temporary, 0o600);
        fs::rename(&temporary, self.file()).unwrap();
    }

    /// Overwrites the file in place, as a careless editor does.
    pub fn write_file(&self, text: &str) {
        fs::write(self.file(), text).unwrap();
    }

    /// Returns the text of the file.
    pub fn read_file(&self) -> String {
        fs::read_to_string(self.file()).unwrap()
    }

    /// Removes the file.
    pub fn remove_file(&self) {
        fs::remove_file(self.file()).unwrap();
    }

    /// Returns the tenant's current status.
    pub fn status(&self) -> TenantStatus {
        let status = self.host.status();
        status
            .tenant(&self.name)
            .unwrap_or_else(|| panic!("no tenant {} in {status:#?}", self.name))
            .clone()
    }

    /// Returns the pid of the current instance.
    pub fn pid(&self) -> i32 {
        self.status()
            .pid
            .unwrap_or_else(|| panic!("tenant {} has no instance", self.name))
    }

    /// Waits for a state and returns the status.
    ///
    /// # Panics
    /// When the state is not reached within 30 s.
    pub fn becomes(&self, state: &str) -> TenantStatus {
        self.wait(&format!("{state:?}"), |t| t.state == state)
    }

    /// Waits until `want` accepts the tenant's status.
    ///
    /// # Panics
    /// When this takes longer than 30 s.
    pub fn wait(&self, what: &str, want: impl Fn(&TenantStatus) -> bool) -> TenantStatus {
        self.wait_within(SOON, what, want)
    }

    /// Waits until `want` accepts the tenant's status.
    ///
    /// # Panics
    /// When this takes longer than `bound`.
    pub fn wait_within(
        &self,
        bound: Duration,
        what: &str,
        want: impl Fn(&TenantStatus) -> bool,
    ) -> TenantStatus {
        let what = format!("tenant {} to be {what}", self.name);
        let status = self
            .host
            .wait(bound, &what, |s| s.tenant(&self.name).is_some_and(&want));
        status.tenant(&self.name).cloned().unwrap()
    }

    /// Waits until the tenant is ready.
    ///
    /// # Panics
    /// When the tenant is not ready within 30 s.
    #[must_use]
    pub fn is_ready(self) -> Self {
        self.becomes("ready");
        self
    }

    /// Waits until `status` no longer lists the tenant.
    ///
    /// # Panics
    /// When the tenant is still listed after 30 s.
    pub fn is_gone(&self) {
        self.host
            .wait(SOON, &format!("tenant {} to be gone", self.name), |s| {
                s.tenant(&self.name).is_none()
            });
    }

    /// Waits until another instance than `old` is ready.
    ///
    /// # Panics
    /// When there is none within 30 s.
    pub fn replaced(&self, old: i32) -> TenantStatus {
        self.wait(&format!("ready, and not pid {old}"), |t| {
            t.state == "ready" && t.pid.is_some_and(|pid| pid != old)
        })
    }

    /// Sends a signal to the current instance.
    pub fn signal(&self, signal: Signal) {
        procs::signal(self.pid(), signal);
    }

    /// Returns the address on which the tenant listens, from its file.
    pub fn addr(&self) -> Addr {
        let text = self.read_file();
        let listen = text
            .lines()
            .find_map(|line| line.trim().strip_prefix("listen = "))
            .unwrap_or_else(|| panic!("no listen in {text}"));
        Addr::parse(listen.trim().trim_matches('"'))
    }

    /// Opens a connection to the tenant.
    pub fn connect(&self) -> Connection {
        let addr = self.addr();
        Connection::open(&addr)
            .unwrap_or_else(|e| panic!("cannot connect to {} at {addr}: {e}", self.name))
    }

    /// Sends `GET PATH` without a PAK.
    pub fn get(&self, path: &str) -> Response {
        http::get(&self.addr(), path).unwrap_or_else(|e| panic!("GET {path} of {}: {e}", self.name))
    }

    /// Returns the admin PAK, by `brokkr-supervisor pak`.
    pub fn pak(&self) -> String {
        self.host
            .command(&["pak", &self.name])
            .ok()
            .trim()
            .to_owned()
    }

    /// Returns a client of the tenant's API with the admin PAK.
    pub fn api(&self) -> Api {
        Api::new(self.addr(), self.pak())
    }
}
