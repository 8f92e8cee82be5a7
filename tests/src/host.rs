//! A whole host: a supervisor, its tenants and their server.

mod start;
mod status;
mod tenant;
mod wrapper;

use start::Circumstances;
pub use status::{ServerStatus, Status, TenantStatus};
pub use tenant::{Draft, Tenant};
pub use wrapper::Wrapper;

use crate::bin::{self, Ran};
use crate::pg::{self, PgServer};
use crate::procs;
use crate::test_dir::{TestDir, set_mode};
use crate::toml_text::TomlText;
use crate::wait::until_ok;
use nix::sys::signal::Signal;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::sync::Mutex;
use std::time::Duration;

/// The configuration of a host that is not built yet.
#[derive(Debug)]
pub struct Builder {
    pg: Option<pg::Options>,
    down: bool,
    keys: Vec<(String, String)>,
}

impl Builder {
    /// Sets the options of the server.
    #[must_use]
    pub fn pg(mut self, options: pg::Options) -> Self {
        self.pg = Some(options);
        self
    }

    /// Leaves the server down at first.
    #[must_use]
    pub fn server_down(mut self) -> Self {
        self.down = true;
        self
    }

    /// Omits the server: the supervisor runs the embedded PostgreSQL, or the tenants name their own servers.
    #[must_use]
    pub fn without_server(mut self) -> Self {
        self.pg = None;
        self
    }

    /// Lets the supervisor run the embedded PostgreSQL.
    #[must_use]
    pub fn embedded(self) -> Self {
        self.without_server().set("postgres.embedded", "true")
    }

    /// Sets a key of `supervisor.toml` to a TOML value.
    #[must_use]
    pub fn set(mut self, key: &str, toml: &str) -> Self {
        self.keys.push((key.into(), toml.into()));
        self
    }

    /// Makes the folders, the file and the server; starts no supervisor yet.
    pub fn build(self) -> Host {
        let server = self.pg.map(|options| {
            let server = PgServer::unpack(options);
            if !self.down {
                server.resume_service();
            }
            server
        });
        let place = TestDir::new();
        let tenants = place.folder("tenants.d", 0o755);
        let mut file = TomlText::default();
        file.text("tenants_dir", tenants.display().to_string())
            .text("state_dir", place.join("state").display().to_string())
            .text("runtime_dir", place.join("run").display().to_string())
            .text("broker", bin::broker().display().to_string())
            .text("log.format", "json");
        if let Some(server) = &server {
            file.text("defaults.database.url", server.url("brokkr", "brokkr"));
        }
        for (key, value) in &self.keys {
            file.set(key, value);
        }
        let host = Host {
            server,
            file: Mutex::new(file),
            child: Mutex::new(None),
            program: Mutex::new(bin::supervisor()),
            circumstances: Mutex::default(),
            place,
        };
        host.write_file();
        host
    }
}

/// The folders, `supervisor.toml`, and optionally a server and a running supervisor. All processes end when it is
/// dropped.
#[derive(Debug)]
pub struct Host {
    server: Option<PgServer>,
    file: Mutex<TomlText>,
    child: Mutex<Option<Child>>,
    program: Mutex<PathBuf>,
    circumstances: Mutex<Circumstances>,
    // The last field: the folder is removed after every process has ended.
    place: TestDir,
}

impl Host {
    /// Makes a host with a server of 100 connections, PostgreSQL's default. The supervisor starts with the first
    /// [`Host::up`] or a tenant's `up`.
    #[allow(
        clippy::new_without_default,
        reason = "starting a server is no default"
    )]
    pub fn new() -> Self {
        Self::builder().build()
    }

    /// Returns a builder for a host with other settings.
    pub fn builder() -> Builder {
        Builder {
            pg: Some(pg::Options::new()),
            down: false,
            keys: Vec::new(),
        }
    }

    /// Returns the host's server.
    pub fn server(&self) -> &PgServer {
        self.server
            .as_ref()
            .expect("this host has no server of its own")
    }

    /// Returns the host's folder, which holds everything but the server.
    pub fn root(&self) -> &Path {
        self.place.path()
    }

    /// Returns the path of `supervisor.toml`.
    pub fn config(&self) -> PathBuf {
        self.place.join("supervisor.toml")
    }

    /// Returns the path of `tenants_dir`.
    pub fn tenants_dir(&self) -> PathBuf {
        self.place.join("tenants.d")
    }

    /// Returns the path of `state_dir`.
    pub fn state_dir(&self) -> PathBuf {
        self.place.join("state")
    }

    /// Returns the path of `runtime_dir`.
    pub fn runtime_dir(&self) -> PathBuf {
        self.place.join("run")
    }

    /// Sets a key of `supervisor.toml`, which takes effect at the next start or reload.
    pub fn set(&self, key: &str, toml: &str) -> &Self {
        self.file
            .lock()
            .unwrap_or_else(|broken| broken.into_inner())
            .set(key, toml);
        self.write_file();
        self
    }

    /// Removes a key of `supervisor.toml`.
    pub fn unset(&self, key: &str) -> &Self {
        self.file
            .lock()
            .unwrap_or_else(|broken| broken.into_inner())
            .unset(key);
        self.write_file();
        self
    }

    fn write_file(&self) {
        let text = self
            .file
            .lock()
            .unwrap_or_else(|broken| broken.into_inner())
            .render();
        fs::write(self.config(), text).unwrap();
        set_mode(&self.config(), 0o600);
    }

    /// Returns a draft of a tenant: `host.tenant("acme").pool(10).up()`. Its schema is `tenant_NAME`, its port free,
    /// its pool 5.
    pub fn tenant(&self, name: &str) -> Draft<'_> {
        Draft::new(self, name)
    }

    /// Returns a tenant whose file exists already.
    pub fn known(&self, name: &str) -> Tenant<'_> {
        Tenant::known(self, name)
    }

    /// Installs a script in place of the broker that can misbehave for single tenants. Call it before [`Host::up`].
    pub fn wrap_broker(&self) -> Wrapper {
        Wrapper::install(self)
    }

    /// Installs the trivial broker in place of the broker. Call it before [`Host::up`].
    pub fn trivial_brokers(&self) -> &Self {
        let program = bin::trivial_broker().display().to_string();
        self.set("broker", &crate::toml_text::quoted(&program))
    }

    /// Returns the output of the supervisor and of its brokers: JSON lines, and any text from before logging began.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.place.join("log")).unwrap_or_default()).into_owned()
    }

    /// Returns the JSON lines of the log.
    pub fn log_lines(&self) -> Vec<serde_json::Value> {
        self.log()
            .lines()
            .filter_map(|line| serde_json::from_str(line).ok())
            .collect()
    }

    /// Returns the number of log lines whose message contains `what`.
    pub fn said(&self, what: &str) -> usize {
        let lines = self.log_lines().into_iter();
        lines
            .filter(|line| line["message"].as_str().is_some_and(|m| m.contains(what)))
            .count()
    }

    /// Runs `brokkr-supervisor ARGS --config …` until it ends.
    pub fn command(&self, args: &[&str]) -> Ran {
        let config = self.config().display().to_string();
        let mut all = args.to_vec();
        all.extend(["--config", &config]);
        bin::run(bin::supervisor(), all)
    }

    /// Runs `status --format json`.
    pub fn status(&self) -> Status {
        Status::parse(&self.command(&["status", "--format", "json"]).ok())
    }

    /// Runs `status --format json`; returns `None` when the supervisor does not answer.
    pub fn try_status(&self) -> Option<Status> {
        let ran = self.command(&["status", "--format", "json"]);
        (ran.code == Some(0)).then(|| Status::parse(&ran.stdout))
    }

    /// Runs `reload`, which waits until every tenant has settled.
    pub fn reload(&self) -> Ran {
        self.command(&["reload"])
    }

    /// Waits until `want` accepts the status, and returns that status.
    ///
    /// # Panics
    /// When this takes longer than `bound`; the message has the last status.
    pub fn wait(&self, bound: Duration, what: &str, want: impl Fn(&Status) -> bool) -> Status {
        until_ok(bound, what, || {
            let status = self
                .try_status()
                .ok_or("the supervisor does not answer".to_owned())?;
            if want(&status) {
                Ok(status)
            } else {
                Err(format!("{status:#?}"))
            }
        })
    }

    /// Returns the processes of this host that still run, and its socket files.
    pub fn leftovers(&self) -> Vec<String> {
        let mut left: Vec<String> = self.processes().into_iter().map(procs::describe).collect();
        left.extend(
            sockets(self.place.path())
                .into_iter()
                .map(|path| path.display().to_string()),
        );
        left
    }

    fn processes(&self) -> Vec<i32> {
        let mut pids = procs::naming(&format!("{}/", self.place.path().display()));
        // Only root may read the environment and descriptors of a broker; its lock file names the broker too.
        let locks = fs::read_dir(self.runtime_dir().join("instances"));
        for lock in locks.into_iter().flatten().flatten() {
            let text = fs::read_to_string(lock.path()).unwrap_or_default();
            let pid = text
                .split_whitespace()
                .next()
                .and_then(|pid| pid.parse().ok());
            let broker = pid.filter(|pid| {
                lock.path().extension().is_some_and(|e| e == "lock")
                    && procs::alive(*pid)
                    && procs::arguments(*pid)
                        .iter()
                        .any(|a| a.contains("brokkr-broker"))
            });
            pids.extend(broker.filter(|pid| !pids.contains(pid)));
        }
        pids
    }

    /// Returns the pids of the host's brokers, as the kernel lists them.
    pub fn broker_pids(&self) -> Vec<i32> {
        let mut pids: Vec<i32> = self
            .processes()
            .into_iter()
            .filter(|pid| {
                procs::arguments(*pid)
                    .first()
                    .is_some_and(|arg| arg.contains("brokkr-broker"))
            })
            .collect();
        pids.sort_unstable();
        pids
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = self.log();
            let tail: Vec<&str> = log.lines().rev().take(60).collect();
            eprintln!(
                "--- end of the host's log ({}) ---",
                self.place.path().display()
            );
            for line in tail.iter().rev() {
                eprintln!("{line}");
            }
        }
        if self.running() {
            let pid = self.pid();
            procs::signal(pid, Signal::SIGCONT);
            procs::signal(pid, Signal::SIGTERM);
            let start = std::time::Instant::now();
            while self.ended().is_none() && start.elapsed() < Duration::from_secs(5) {
                std::thread::sleep(Duration::from_millis(10));
            }
        }
        if let Some(mut child) = self.lock_child().take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        // Brokers of a killed supervisor, and anything that a failed test left running.
        for pid in self.processes() {
            procs::signal(pid, Signal::SIGKILL);
        }
    }
}

/// Returns the socket files below a folder.
fn sockets(folder: &Path) -> Vec<PathBuf> {
    use std::os::unix::fs::FileTypeExt;
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let Ok(kind) = entry.file_type() else {
            continue;
        };
        if kind.is_dir() {
            found.extend(sockets(&entry.path()));
        } else if kind.is_socket() {
            found.push(entry.path());
        }
    }
    found
}
