//! A host that a real systemd runs, as its operator sees it: commands, the journal, our unit, its files.

use crate::bin::{self, Ran, run_command};
use crate::host::Status;
use crate::place::Place;
use crate::wait::until_ok;
use serde_json::Value;
use std::fmt::Display;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

/// What `make install` installs, in `stage` of this place, with these files in `/etc/brokkr`.
///
/// # Panics
/// When it cannot be installed.
pub fn stage(place: &Place, configuration: &[(&str, &str)]) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let mut make = Command::new("make");
    make.arg("--silent")
        .arg("-C")
        .arg(root)
        .arg("install")
        .arg(format!(
            "BIN={}",
            bin::supervisor().parent().unwrap().display()
        ))
        .arg(format!("DESTDIR={}", place.join("stage").display()))
        .arg(format!("SYSTEMD={}", systemd_version()))
        .env_remove("MAKEFLAGS")
        .env_remove("MAKELEVEL");
    run_command(make, Duration::from_secs(60)).ok();
    for (name, text) in configuration {
        fs::write(place.join("stage/etc/brokkr").join(name), text).unwrap();
    }
    if let Some(newer) = std::env::var_os("BROKKR_TESTS_SYSTEMD") {
        let mut copy = Command::new("cp");
        copy.arg("-a")
            .arg(Path::new(&newer).join("."))
            .arg(place.join("stage"));
        run_command(copy, Duration::from_secs(60)).ok();
    }
}

/// Version of the systemd that is booted: this machine's, or what `tests/systemd/newer` has fetched.
///
/// # Panics
/// When neither says.
pub fn systemd_version() -> u32 {
    let version = match std::env::var_os("BROKKR_TESTS_SYSTEMD") {
        Some(newer) => fs::read_to_string(Path::new(&newer).join("systemd-version")).unwrap(),
        None => {
            let mut systemctl = Command::new("systemctl");
            systemctl.arg("--version");
            let ran = run_command(systemctl, Duration::from_secs(10));
            let version = ran.stdout.split_whitespace().nth(1).map(str::to_owned);
            version.unwrap()
        }
    };
    version.trim().parse().unwrap()
}

/// A machine whose systemd is up.
#[derive(Debug)]
pub struct Machine {
    /// Where its files are, seen from here.
    root: PathBuf,
    /// What goes before a command that is to run in it.
    enter: Vec<String>,
    /// How many times slower than others it may be.
    slowness: u32,
}

impl Machine {
    /// That of which `init` is the first process.
    pub fn of(init: i32) -> Self {
        let enter = ["nsenter", "-t", &init.to_string(), "-a"].map(str::to_owned);
        Self {
            root: format!("/proc/{init}/root").into(),
            enter: enter.into(),
            slowness: 1,
        }
    }

    /// The one this test runs on, so many times slower than others.
    pub fn own(slowness: u32) -> Self {
        Self {
            root: "/".into(),
            enter: Vec::new(),
            slowness,
        }
    }

    /// So many seconds, or more where it is slow.
    pub fn bound(&self, seconds: u64) -> Duration {
        Duration::from_secs(seconds) * self.slowness
    }

    /// Asks until the answer is `Ok`, and gives it.
    ///
    /// # Panics
    /// When it never is within so many seconds, or more where it is slow: with what was seen last and our unit's journal.
    pub fn wait<T, E: Display>(
        &self,
        seconds: u64,
        what: &str,
        mut ask: impl FnMut() -> Result<T, E>,
    ) -> T {
        let bound = self.bound(seconds);
        let start = Instant::now();
        until_ok(Duration::MAX, what, || match ask() {
            Ok(answer) => Ok::<_, String>(answer),
            Err(seen) if start.elapsed() < bound => Err(seen.to_string()),
            Err(seen) => panic!(
                "waited {bound:?} in vain for: {what}\nlast seen: {seen}\n{}",
                self.journal()
            ),
        })
    }

    /// Runs a command in it.
    ///
    /// # Panics
    /// When it cannot be started or does not end.
    pub fn run(&self, command: &[&str]) -> Ran {
        let words = self.enter.iter().map(String::as_str);
        let mut words = words.chain(command.iter().copied());
        let mut whole = Command::new(words.next().unwrap());
        whole
            .args(words)
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .env("LC_ALL", "C");
        run_command(whole, self.bound(180))
    }

    /// A file of the machine, seen from here.
    pub fn path(&self, path: &str) -> PathBuf {
        self.root.join(path.trim_start_matches('/'))
    }

    /// What a command of the machine prints, which must end well.
    ///
    /// # Panics
    /// When it does not.
    pub fn ok(&self, command: &[&str]) -> String {
        let ran = self.run(command);
        assert_eq!(
            ran.code,
            Some(0),
            "{command:?}: {ran:?}\n{}",
            self.journal()
        );
        ran.stdout
    }

    /// The last lines of our unit.
    pub fn journal(&self) -> String {
        self.run(&[
            "journalctl",
            "--no-pager",
            "-n",
            "80",
            "-u",
            "brokkr-supervisor",
        ])
        .stdout
    }

    /// Main process of our unit.
    ///
    /// # Panics
    /// When systemd does not say.
    pub fn main_pid(&self) -> String {
        self.ok(&["systemctl", "show", "-P", "MainPID", "brokkr-supervisor"])
            .trim()
            .to_owned()
    }

    /// Waits until every tenant is ready and there are so many.
    ///
    /// # Panics
    /// When they are not in time.
    pub fn ready(&self, tenants: usize) -> Status {
        self.wait(60, &format!("{tenants} tenants to be ready"), || {
            let ran = self.run(&["brokkr-supervisor", "status", "--format", "json"]);
            if ran.code != Some(0) {
                return Err(format!("{ran:?}"));
            }
            let status = Status::parse(&ran.stdout);
            if status.all("ready") && status.tenants.len() == tenants {
                Ok(status)
            } else {
                Err(format!("{status:#?}"))
            }
        })
    }

    /// Messages in the journal with `TENANT=name`.
    ///
    /// # Panics
    /// When the journal cannot be read.
    pub fn lines_of(&self, tenant: &str) -> Vec<String> {
        let field = format!("TENANT={tenant}");
        self.ok(&[
            "journalctl",
            "--no-pager",
            "-o",
            "json",
            "-u",
            "brokkr-supervisor",
            &field,
        ])
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap())
        .inspect(|line| assert_eq!(line["TENANT"], *tenant))
        .map(|line| line["MESSAGE"].as_str().unwrap_or_default().to_owned())
        .collect()
    }

    /// What `status` says with this configuration, if it can be asked.
    pub fn status_of(&self, config: &str) -> Option<Status> {
        let command = [
            "brokkr-supervisor",
            "status",
            "--format",
            "json",
            "--config",
            config,
        ];
        let ran = self.run(&command);
        (ran.code == Some(0)).then(|| Status::parse(&ran.stdout))
    }

    /// Waits for another main process than `old`.
    ///
    /// # Panics
    /// When there is none in time.
    pub fn another_main_pid(&self, old: &str) -> String {
        self.wait(60, "another main process", || {
            let pid = self.main_pid();
            if pid != old && pid != "0" {
                Ok(pid)
            } else {
                Err(pid)
            }
        })
    }

    /// Waits until the supervisor has said this.
    ///
    /// # Panics
    /// When it does not in time.
    pub fn journal_says(&self, what: &str) {
        self.says_again(what, 0);
    }

    /// Waits until our unit's journal has this more often than `before`, which is what [`Machine::times_said`] gave.
    ///
    /// # Panics
    /// When it does not in time.
    pub fn says_again(&self, what: &str, before: usize) {
        let wanted = format!("the journal to say {what:?} more than {before} times");
        self.wait(60, &wanted, || match self.times_said(what) {
            said if said > before => Ok(()),
            said => Err(said.to_string()),
        });
    }

    /// How many messages of our unit's journal have this in them.
    ///
    /// # Panics
    /// When the journal cannot be read.
    pub fn times_said(&self, what: &str) -> usize {
        // All of it is looked through: what brokers say meanwhile may be more than anybody would print.
        let found = self.run(&[
            "journalctl",
            "--no-pager",
            "--quiet",
            "-o",
            "cat",
            "--grep",
            what,
            "-u",
            "brokkr-supervisor",
        ]);
        // 1: none.
        assert!(matches!(found.code, Some(0 | 1)), "{found:?}");
        let lines = found.stdout.lines();
        lines.filter(|line| line.contains(what)).count()
    }

    /// How many descriptors systemd keeps for the unit.
    ///
    /// # Panics
    /// When systemd does not say.
    pub fn stored(&self) -> usize {
        let count = self.ok(&[
            "systemctl",
            "show",
            "-P",
            "NFileDescriptorStore",
            "brokkr-supervisor",
        ]);
        count.trim().parse().unwrap()
    }

    /// Waits until systemd has been told this of the state of our unit, and shows it (`systemctl status`).
    ///
    /// # Panics
    /// When it is not in time.
    pub fn shows(&self, what: &str) {
        let ask = ["systemctl", "show", "-P", "StatusText", "brokkr-supervisor"];
        self.wait(60, &format!("systemd to show {what:?}"), || {
            let shown = self.ok(&ask);
            if shown.contains(what) {
                Ok(())
            } else {
                Err(shown)
            }
        });
    }

    /// Waits until systemd keeps exactly so many.
    ///
    /// # Panics
    /// When it does not in time.
    pub fn in_step(&self, stored: usize) {
        self.wait(60, "the store to be in step", || match self.stored() {
            n if n == stored => Ok(()),
            n => Err(n.to_string()),
        });
    }

    /// How many brokers run.
    pub fn broker_count(&self) -> usize {
        let processes = self.processes();
        processes
            .lines()
            .filter(|l| l.contains("brokkr-broker serve"))
            .count()
    }

    /// Processes of user brokkr.
    pub fn processes(&self) -> String {
        self.run(&["pgrep", "-u", "brokkr", "-a"]).stdout
    }
}
