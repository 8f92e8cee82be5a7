//! A single broker that runs without a supervisor: it binds its own listener and reports readiness to `NOTIFY_SOCKET`.

use crate::bin::{self, Ran, run_command};
use crate::http::{Addr, Api};
use crate::pg::PgServer;
use crate::test_dir::{AtDeath, TestDir, mortal, spawn};
use crate::toml_text::TomlText;
use crate::wait::until;
use crate::{ports, procs};
use nix::sys::signal::Signal;
use std::fs::{self, File};
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Mutex;
use std::time::Duration;

/// The configuration of a broker that is not started yet.
#[derive(Debug)]
pub struct Draft {
    place: TestDir,
    port: u16,
    file: TomlText,
    environment: Vec<(String, String)>,
}

impl Draft {
    /// Sets a key of the broker's file to a TOML value.
    #[must_use]
    pub fn set(mut self, key: &str, toml: &str) -> Self {
        self.file.set(key, toml);
        self
    }

    /// Removes a key from the broker's file.
    #[must_use]
    pub fn unset(mut self, key: &str) -> Self {
        self.file.unset(key);
        self
    }

    /// Sets the schema.
    #[must_use]
    pub fn schema(mut self, schema: &str) -> Self {
        self.file.text("database.schema", schema);
        self
    }

    /// Sets the size of the pool.
    #[must_use]
    pub fn pool(self, size: u32) -> Self {
        self.set("database.pool_size", &size.to_string())
    }

    /// Sets an environment variable.
    #[must_use]
    pub fn env(mut self, key: &str, value: &str) -> Self {
        self.environment.push((key.into(), value.into()));
        self
    }

    /// Runs `brokkr-broker ARGS` with this configuration until it ends.
    ///
    /// # Panics
    /// When the command does not end within a minute.
    pub fn run(&self, args: &[&str]) -> Ran {
        let mut command = Command::new(bin::broker());
        self.equip(&mut command);
        command.args(args);
        run_command(command, Duration::from_secs(60))
    }

    /// Starts the broker without waiting for readiness.
    pub fn spawn(self) -> Broker {
        let notify = UnixDatagram::bind(self.place.join("notify")).unwrap();
        notify
            .set_read_timeout(Some(Duration::from_millis(20)))
            .unwrap();
        let mut command = mortal(&bin::broker(), AtDeath::Kill, None);
        self.equip(&mut command);
        let log = File::create(self.place.join("log")).unwrap();
        command
            .arg("serve")
            .env("NOTIFY_SOCKET", self.place.join("notify"))
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log);
        let child = Mutex::new(spawn(command));
        Broker {
            draft: self,
            notify,
            child,
        }
    }

    /// Starts the broker and waits until it is ready.
    ///
    /// # Panics
    /// When the broker ends or is not ready within 30 s.
    pub fn start(self) -> Broker {
        let broker = self.spawn();
        broker.wait_ready();
        broker
    }

    fn config_file(&self) -> PathBuf {
        self.place.join("broker.toml")
    }

    fn equip(&self, command: &mut Command) {
        fs::write(self.config_file(), self.file.render()).unwrap();
        command
            .env_clear()
            .env("BROKKR_CONFIG_FILE", self.config_file())
            .current_dir(self.place.path());
        command.envs(std::env::var_os("PATH").map(|path| ("PATH", path)));
        command.envs(self.environment.iter().map(|(k, v)| (k, v)));
    }
}

/// A running `brokkr-broker serve`, killed when dropped.
#[derive(Debug)]
pub struct Broker {
    draft: Draft,
    notify: UnixDatagram,
    child: Mutex<Child>,
}

impl Broker {
    /// Returns a draft for database `brokkr` on `server`, with schema `tenant_alone`, a pool of five and a free port.
    pub fn on(server: &PgServer) -> Draft {
        let place = TestDir::new();
        let port = ports::free();
        let mut file = TomlText::default();
        file.text("database.url", server.url("brokkr", "brokkr"))
            .text("database.schema", "tenant_alone")
            .set("database.pool_size", "5")
            .text("http.listen", format!("127.0.0.1:{port}"))
            .text(
                "broker.state_dir",
                place.join("state").display().to_string(),
            );
        Draft {
            place,
            port,
            file,
            environment: Vec::new(),
        }
    }

    /// Waits for `READY=1`.
    ///
    /// # Panics
    /// When the broker ends first or takes longer than 30 s.
    pub fn wait_ready(&self) {
        until(Duration::from_secs(30), "READY=1 of a broker alone", || {
            let mut datagram = [0; 4096];
            if let Ok(n) = self.notify.recv(&mut datagram) {
                let text = String::from_utf8_lossy(&datagram[..n]).into_owned();
                return text.lines().any(|line| line == "READY=1").then_some(());
            }
            if let Some(status) = self.ended() {
                panic!(
                    "the broker ended before it was ready ({status}):\n{}",
                    self.log()
                );
            }
            None
        });
    }

    /// Returns the address on which the broker listens.
    pub fn addr(&self) -> Addr {
        Addr::port(self.draft.port)
    }

    /// Returns the admin PAK that the broker wrote at its first start.
    pub fn admin_pak(&self) -> String {
        let path = self.state_dir().join("admin.pak");
        fs::read_to_string(&path)
            .unwrap_or_else(|e| panic!("{}: {e}\n{}", path.display(), self.log()))
            .trim()
            .to_owned()
    }

    /// Returns a client of the broker's API with the admin PAK.
    pub fn api(&self) -> Api {
        Api::new(self.addr(), self.admin_pak())
    }

    /// Returns the state folder.
    pub fn state_dir(&self) -> PathBuf {
        self.draft.place.join("state")
    }

    /// Returns the path of the broker's file.
    pub fn config_file(&self) -> PathBuf {
        self.draft.config_file()
    }

    /// Sets a key of the broker's file without telling the running broker.
    pub fn change(&mut self, key: &str, toml: &str) {
        self.draft.file.set(key, toml);
        self.write_config(&self.draft.file.render());
    }

    /// Replaces the broker's file with `text` by a rename.
    pub fn write_config(&self, text: &str) {
        let beside = self.draft.place.join("broker.toml.new");
        fs::write(&beside, text).unwrap();
        fs::rename(beside, self.config_file()).unwrap();
    }

    /// Returns the broker's pid.
    pub fn pid(&self) -> i32 {
        i32::try_from(
            self.child
                .lock()
                .unwrap_or_else(|broken| broken.into_inner())
                .id(),
        )
        .unwrap()
    }

    /// Returns everything that the broker has logged.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.draft.place.join("log")).unwrap_or_default())
            .into_owned()
    }

    /// Runs another `brokkr-broker` command with the same configuration.
    pub fn run(&self, args: &[&str]) -> Ran {
        self.draft.run(args)
    }

    /// Returns the exit status if the broker has ended.
    pub fn ended(&self) -> Option<ExitStatus> {
        self.child
            .lock()
            .unwrap_or_else(|broken| broken.into_inner())
            .try_wait()
            .unwrap()
    }

    /// Sends a signal to the broker.
    pub fn signal(&self, signal: Signal) {
        procs::signal(self.pid(), signal);
    }

    /// Sends SIGTERM and waits until the broker ends.
    ///
    /// # Panics
    /// When the broker does not end within 30 s.
    pub fn stop(&self) -> ExitStatus {
        self.signal(Signal::SIGTERM);
        until(
            Duration::from_secs(30),
            "a broker alone to end after SIGTERM",
            || self.ended(),
        )
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        let child = self
            .child
            .get_mut()
            .unwrap_or_else(|broken| broken.into_inner());
        let _ = child.kill();
        let _ = child.wait();
        if std::thread::panicking() {
            eprintln!("--- log of the broker ---\n{}", self.log());
        }
    }
}
