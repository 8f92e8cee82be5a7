//! A PostgreSQL server of the test's own.
//!
//! `initdb` runs once for each version and user; servers start from a copy of its data folder (0.1 s). All copies have
//! the same system identifier, as cloned machines have, so tests notice code that takes it alone as a server's id.

mod cluster;

use crate::bin::run_command;
use crate::test_dir::{AtDeath, TestDir, mortal, spawn};
use crate::wait::until;
use crate::{ports, procs};
pub use cluster::bin_dir;
use cluster::{as_postgres, copy, template};
use nix::sys::signal::Signal;
use postgres::{Client, NoTls};
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::time::Duration;

/// The options of a server.
#[derive(Debug, Clone)]
pub struct Options {
    max_connections: u32,
    settings: Vec<(String, String)>,
    hba: Option<String>,
    small_disk: Option<u32>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            max_connections: 100,
            settings: Vec::new(),
            hba: None,
            small_disk: None,
        }
    }
}

impl Options {
    /// Returns PostgreSQL's default of 100 connections, without fsync.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets `max_connections`.
    #[must_use]
    pub fn max_connections(mut self, n: u32) -> Self {
        self.max_connections = n;
        self
    }

    /// Adds a setting on the command line, which overrides the configuration file.
    #[must_use]
    pub fn set(mut self, key: &str, value: &str) -> Self {
        self.settings.push((key.into(), value.into()));
        self
    }

    /// Adds a disk of this many megabytes to be filled ([`PgServer::small_disk`]): a tmpfs that only the server sees
    /// and that ends with it. Needs root.
    #[must_use]
    pub fn small_disk(mut self, megabytes: u32) -> Self {
        self.small_disk = Some(megabytes);
        self
    }

    /// Replaces `pg_hba.conf`; the default trusts every connection.
    #[must_use]
    pub fn hba(mut self, text: &str) -> Self {
        self.hba = Some(text.into());
        self
    }
}

/// A server on a Unix socket and a loopback port; killed and removed when dropped.
///
/// Its superuser is `postgres`; role `brokkr` has no privilege but owns database `brokkr`. Connections are trusted.
#[derive(Debug)]
pub struct PgServer {
    place: TestDir,
    port: u16,
    options: Options,
    child: Mutex<Option<Child>>,
}

impl PgServer {
    /// Starts a server with the default options.
    pub fn start() -> Self {
        Self::with(Options::new())
    }

    /// Starts a server with these options.
    pub fn with(options: Options) -> Self {
        let server = Self::unpack(options);
        server.resume_service();
        server
    }

    /// Prepares a server without starting it, for a test that begins while the server is down.
    pub fn unpack(options: Options) -> Self {
        let place = TestDir::new();
        let data = place.join("data");
        copy(&template(), &data);
        Self::over(place, options)
    }

    /// Copies the initial data folder with its owners into `folder`, where a test program that is moved beside it finds
    /// it.
    pub fn provide(folder: &Path) {
        let made = template();
        copy(&made, &folder.join(made.file_name().unwrap()));
    }

    fn over(place: TestDir, options: Options) -> Self {
        own(place.path());
        if let Some(hba) = &options.hba {
            fs::write(place.join("data/pg_hba.conf"), hba).unwrap();
        }
        Self {
            place,
            port: ports::free(),
            options,
            child: Mutex::new(None),
        }
    }

    /// A streaming standby of this server.
    pub fn standby(&self) -> Self {
        let place = TestDir::new();
        own(place.path());
        let data = place.join("data");
        let mut copy = as_postgres(&bin_dir().join("pg_basebackup"));
        copy.args([
            "-h",
            "127.0.0.1",
            "-U",
            "postgres",
            "-R",
            "-c",
            "fast",
            "-p",
        ])
        .arg(self.port.to_string())
        .arg("-D")
        .arg(&data);
        run_command(copy, Duration::from_secs(60)).ok();
        let standby = Self::over(place, self.options.clone());
        standby.resume_service();
        standby
    }

    /// Starts the server (again) and waits until it answers.
    ///
    /// # Panics
    /// When the server does not answer within 30 s.
    pub fn resume_service(&self) {
        let mut child = self
            .child
            .lock()
            .unwrap_or_else(|broken| broken.into_inner());
        assert!(child.is_none(), "the server runs already");
        // The lock file of a killed server may name a pid that another process has by now.
        let _ = fs::remove_file(self.data_dir().join("postmaster.pid"));
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.log_path())
            .unwrap();
        let mut command = self.command();
        command.arg("-D").arg(self.data_dir());
        for (key, value) in [
            ("port", self.port.to_string()),
            ("max_connections", self.options.max_connections.to_string()),
            (
                "unix_socket_directories",
                self.socket_dir().display().to_string(),
            ),
        ] {
            command.arg("-c").arg(format!("{key}={value}"));
        }
        for (key, value) in &self.options.settings {
            command.arg("-c").arg(format!("{key}={value}"));
        }
        command
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .current_dir(self.place.path())
            .env("LC_ALL", "C")
            .process_group(0);
        *child = Some(spawn(command));
        drop(child);
        until(
            Duration::from_secs(30),
            format!("PostgreSQL on port {}", self.port),
            || {
                if !self.running() {
                    panic!("PostgreSQL ended at start:\n{}", self.log());
                }
                self.try_client("postgres", "postgres").ok()
            },
        );
    }

    fn command(&self) -> Command {
        let server = mortal(&bin_dir().join("postgres"), AtDeath::Quit, postgres_user());
        let Some(megabytes) = self.options.small_disk else {
            return server;
        };
        let disk = self.place.folder("disk", 0o755);
        let (uid, gid) = postgres_user().expect("a small disk needs root");
        let mut command = Command::new("unshare");
        command
            .args(["--mount", "--propagation", "private", "--", "sh", "-c"])
            .arg(format!(
                "mount -t tmpfs -o size={megabytes}m,uid={uid},gid={gid},mode=0700 small '{}' && exec \"$@\"",
                disk.display()
            ))
            .arg("sh")
            .arg(server.get_program())
            .args(server.get_args());
        command
    }

    /// Returns the folder of the small disk, as the server names it and as the test reaches it.
    pub fn small_disk(&self) -> (PathBuf, PathBuf) {
        let disk = self.place.join("disk");
        let root = PathBuf::from(format!("/proc/{}/root", self.pid()));
        let reached = root.join(disk.strip_prefix("/").unwrap_or(&disk));
        (disk, reached)
    }

    /// Stops the server as an operator does (`fast`: sessions are terminated), and waits.
    pub fn stop(&self) {
        self.end(Signal::SIGINT);
    }

    /// Kills the server with all backends (`immediate`: the next start recovers), and waits.
    pub fn crash(&self) {
        self.end(Signal::SIGQUIT);
    }

    fn end(&self, signal: Signal) {
        let mut child = self
            .child
            .lock()
            .unwrap_or_else(|broken| broken.into_inner());
        let Some(mut server) = child.take() else {
            return;
        };
        let pid = i32::try_from(server.id()).unwrap();
        self.signal_all(pid, Signal::SIGCONT);
        procs::signal(pid, signal);
        let start = std::time::Instant::now();
        while server.try_wait().unwrap().is_none() {
            if start.elapsed() > Duration::from_secs(20) {
                self.signal_all(pid, Signal::SIGKILL);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Stops the server as [`PgServer::stop`] does, and starts it again.
    pub fn restart(&self) {
        self.stop();
        self.resume_service();
    }

    /// Freezes the postmaster and every backend (SIGSTOP): connections stay open and nothing answers.
    pub fn freeze(&self) {
        self.signal_all(self.pid(), Signal::SIGSTOP);
    }

    /// Undoes [`PgServer::freeze`].
    pub fn thaw(&self) {
        self.signal_all(self.pid(), Signal::SIGCONT);
    }

    /// Sends a signal to the postmaster and to each child, because backends have sessions of their own.
    fn signal_all(&self, postmaster: i32, signal: Signal) {
        procs::signal(postmaster, signal);
        for backend in procs::children(postmaster) {
            procs::signal(backend, signal);
        }
    }

    /// Returns true while the postmaster runs.
    pub fn running(&self) -> bool {
        let mut child = self
            .child
            .lock()
            .unwrap_or_else(|broken| broken.into_inner());
        child
            .as_mut()
            .is_some_and(|server| server.try_wait().is_ok_and(|ended| ended.is_none()))
    }

    /// Returns the postmaster's pid.
    pub fn pid(&self) -> i32 {
        let child = self
            .child
            .lock()
            .unwrap_or_else(|broken| broken.into_inner());
        i32::try_from(child.as_ref().expect("the server is stopped").id()).unwrap()
    }

    /// Returns the server's TCP port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Returns the folder of the server's Unix socket.
    pub fn socket_dir(&self) -> PathBuf {
        self.place.path().to_path_buf()
    }

    /// Returns the data folder.
    pub fn data_dir(&self) -> PathBuf {
        self.place.join("data")
    }

    fn log_path(&self) -> PathBuf {
        self.place.join("log")
    }

    /// Returns the whole log.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.log_path()).unwrap_or_default()).into_owned()
    }

    /// Returns the whole lines that were logged after the first `read` bytes, and advances `read`.
    pub fn log_since(&self, read: &mut u64) -> String {
        let mut file = File::open(self.log_path()).unwrap();
        file.seek(SeekFrom::Start(*read)).unwrap();
        let mut text = Vec::new();
        file.read_to_end(&mut text).unwrap();
        let whole = text
            .iter()
            .rposition(|byte| *byte == b'\n')
            .map_or(0, |at| at + 1);
        text.truncate(whole);
        *read += whole as u64;
        String::from_utf8_lossy(&text).into_owned()
    }

    /// Returns a URL of the server over TCP.
    pub fn url(&self, database: &str, user: &str) -> String {
        format!("postgres://{user}@127.0.0.1:{}/{database}", self.port)
    }

    /// Returns a URL of the server over its Unix socket.
    pub fn unix_url(&self, database: &str, user: &str) -> String {
        format!(
            "postgres://{user}@/{database}?host={}&port={}",
            self.socket_dir().display(),
            self.port
        )
    }

    /// Connects to database `brokkr` as superuser.
    pub fn client(&self) -> Client {
        self.client_as("brokkr", "postgres")
    }

    /// Connects to a database.
    pub fn client_as(&self, database: &str, user: &str) -> Client {
        self.try_client(database, user)
            .unwrap_or_else(|e| panic!("cannot connect to {database} as {user}: {e}"))
    }

    /// Connects to a database.
    pub fn try_client(&self, database: &str, user: &str) -> Result<Client, postgres::Error> {
        postgres::Config::new()
            .host("127.0.0.1")
            .port(self.port)
            .user(user)
            .dbname(database)
            .connect_timeout(Duration::from_secs(5))
            .application_name("a person")
            .connect(NoTls)
    }

    /// Runs statements as superuser in database `brokkr`.
    pub fn sql(&self, statements: &str) {
        self.client()
            .batch_execute(statements)
            .unwrap_or_else(|e| panic!("{statements}: {e}"));
    }

    /// Makes a role that can log in, with these options of `CREATE ROLE` (`"CONNECTION LIMIT 5"`).
    pub fn role(&self, name: &str, options: &str) {
        self.sql(&format!("CREATE ROLE \"{name}\" LOGIN {options}"));
    }

    /// Makes a database.
    pub fn database(&self, name: &str, owner: &str) {
        self.sql(&format!("CREATE DATABASE \"{name}\" OWNER \"{owner}\""));
    }

    /// Returns the sessions of this host's brokers and supervisor, whose application names begin with `brokkr:`.
    pub fn sessions_of_ours(&self) -> Vec<String> {
        self.client()
            .query(
                "SELECT application_name FROM pg_stat_activity \
                 WHERE application_name LIKE 'brokkr:%' ORDER BY 1",
                &[],
            )
            .unwrap()
            .iter()
            .map(|row| row.get(0))
            .collect()
    }
}

impl Drop for PgServer {
    fn drop(&mut self) {
        self.crash();
    }
}

/// Returns the user of the server when the test runs as root, which PostgreSQL refuses: `postgres`, or else uid 65534.
pub fn postgres_user() -> Option<(u32, u32)> {
    if !crate::test_dir::is_root() {
        return None;
    }
    let user = nix::unistd::User::from_name("postgres").ok().flatten();
    Some(user.map_or((65534, 65534), |u| (u.uid.as_raw(), u.gid.as_raw())))
}

fn own(path: &Path) {
    if let Some((uid, gid)) = postgres_user() {
        std::os::unix::fs::chown(path, Some(uid), Some(gid)).unwrap();
    }
}
