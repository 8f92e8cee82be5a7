//! Starting, ending and upgrading a host's supervisor.

use super::Host;
use crate::bin;
use crate::procs;
use crate::test_dir::{AtDeath, mortal, set_mode, spawn};
use crate::wait::until;
use nix::sys::signal::Signal;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, ExitStatus, Stdio};
use std::time::Duration;

/// The environment in which the supervisor starts.
#[derive(Debug, Clone, Default)]
pub(super) struct Circumstances {
    under: Vec<String>,
    environment: Vec<(String, String)>,
}

impl Host {
    /// Starts the supervisor if it does not run, and waits until it answers.
    ///
    /// # Panics
    /// When the supervisor ends or does not answer within 30 s.
    pub fn up(&self) -> &Self {
        if self.running() {
            return self;
        }
        let log = self.log_file();
        self.launch(Stdio::from(log));
        self.wait_answering();
        self
    }

    /// Starts the supervisor without waiting until it answers.
    pub fn start(&self) -> &Self {
        self.launch(Stdio::from(self.log_file()));
        self
    }

    /// Starts the supervisor with its log on a pipe, which the test may read or leave unread.
    pub fn up_with_pipe(&self) -> ChildStdout {
        self.launch(Stdio::piped());
        let pipe = self
            .lock_child()
            .as_mut()
            .and_then(|child| child.stdout.take())
            .unwrap();
        self.wait_answering();
        pipe
    }

    /// Starts the supervisor as root without capabilities, so that it may not inspect a process that has some.
    pub fn up_without_capabilities(&self) -> &Self {
        let dropped = ["setpriv", "--bounding-set=-all", "--inh-caps=-all", "--"];
        let before = std::mem::replace(
            &mut self.circumstances().under,
            dropped.map(str::to_owned).to_vec(),
        );
        self.launch(Stdio::from(self.log_file()));
        self.circumstances().under = before;
        self.wait_answering();
        self
    }

    fn program(&self) -> PathBuf {
        let program = self.program.lock();
        program.unwrap_or_else(|broken| broken.into_inner()).clone()
    }

    /// Starts this host's supervisor from a path of its own from now on, where [`Host::upgrade_supervisor`] can install
    /// another program.
    pub fn own_supervisor(&self) -> &Self {
        let own = self.place.folder("bin", 0o755).join("brokkr-supervisor");
        std::os::unix::fs::symlink(bin::supervisor(), &own).unwrap();
        let mut program = self.program.lock();
        if let Ok(program) = &mut program {
            program.clone_from(&own);
        }
        self
    }

    /// Installs a shell script as the supervisor's program; the script finds the real program in `BROKKR_REAL`.
    pub fn upgrade_supervisor(&self, script: &str) {
        let path = self.program();
        let new = path.with_extension("new");
        let text = format!(
            "#!/bin/sh\nBROKKR_REAL={}\n{script}\n",
            bin::supervisor().display()
        );
        fs::write(&new, text).unwrap();
        set_mode(&new, 0o755);
        fs::rename(&new, &path).unwrap();
    }

    /// Sends SIGUSR2: the supervisor executes the program on disk, or refuses.
    pub fn succeed(&self) {
        procs::signal(self.pid(), Signal::SIGUSR2);
    }

    /// Makes the supervisor's next start run under this program, for example `prlimit --nofile=64`.
    pub fn under(&self, program: &[&str]) -> &Self {
        self.circumstances().under = program.iter().map(ToString::to_string).collect();
        self
    }

    /// Sets a variable in the environment of the supervisor's next start.
    pub fn environment(&self, key: &str, value: &str) -> &Self {
        let pair = (key.to_owned(), value.to_owned());
        self.circumstances().environment.push(pair);
        self
    }

    fn circumstances(&self) -> std::sync::MutexGuard<'_, Circumstances> {
        self.circumstances
            .lock()
            .unwrap_or_else(|broken| broken.into_inner())
    }

    fn launch(&self, stdout: Stdio) {
        let circumstances = self.circumstances().clone();
        let mut command = match circumstances.under.split_first() {
            None => mortal(&self.program(), AtDeath::Term, None),
            Some((program, arguments)) => {
                let mut command = mortal(Path::new(program), AtDeath::Term, None);
                command.args(arguments).arg(self.program());
                command
            }
        };
        command
            .arg("run")
            .arg("--config")
            .arg(self.config())
            .current_dir(self.place.path())
            .env_remove("NOTIFY_SOCKET")
            .env_remove("JOURNAL_STREAM")
            .envs(circumstances.environment)
            .stdin(Stdio::null())
            .stdout(stdout)
            .stderr(self.log_file());
        let mut child = self.lock_child();
        assert!(child.is_none(), "a supervisor runs already");
        *child = Some(spawn(command));
    }

    fn wait_answering(&self) {
        // The embedded server may run initdb first.
        until(Duration::from_secs(60), "the supervisor to answer", || {
            if let Some(status) = self.ended() {
                panic!("the supervisor ended ({status}):\n{}", self.log());
            }
            self.try_status()
        });
    }

    pub(super) fn log_file(&self) -> File {
        File::options()
            .create(true)
            .append(true)
            .open(self.place.join("log"))
            .unwrap()
    }

    pub(super) fn lock_child(&self) -> std::sync::MutexGuard<'_, Option<Child>> {
        self.child
            .lock()
            .unwrap_or_else(|broken| broken.into_inner())
    }

    /// Returns true while the supervisor runs.
    pub fn running(&self) -> bool {
        self.lock_child().is_some() && self.ended().is_none()
    }

    /// Returns the supervisor's exit status if it has ended.
    pub fn ended(&self) -> Option<ExitStatus> {
        self.lock_child()
            .as_mut()
            .and_then(|child| child.try_wait().unwrap())
    }

    /// Returns the supervisor's pid.
    pub fn pid(&self) -> i32 {
        i32::try_from(
            self.lock_child()
                .as_ref()
                .expect("no supervisor was started")
                .id(),
        )
        .unwrap()
    }

    /// Sends SIGTERM and waits: the supervisor drains all brokers and exits.
    ///
    /// # Panics
    /// When the supervisor does not end within a minute.
    pub fn stop(&self) -> ExitStatus {
        procs::signal(self.pid(), Signal::SIGTERM);
        self.wait_ended()
    }

    /// Kills the supervisor alone; its brokers keep running.
    pub fn kill(&self) -> ExitStatus {
        procs::signal(self.pid(), Signal::SIGKILL);
        self.wait_ended()
    }

    /// Waits until the supervisor ends; [`Host::up`] starts another.
    ///
    /// # Panics
    /// When the supervisor does not end within a minute.
    pub fn wait_ended(&self) -> ExitStatus {
        let status = until(Duration::from_secs(60), "the supervisor to end", || {
            self.ended()
        });
        *self.lock_child() = None;
        status
    }
}
