//! A host that a real systemd runs, as its operator sees it: commands, the journal, the unit, its files.

use crate::bin::{self, Ran, run_command};
use crate::host::Status;
use crate::test_dir::TestDir;
use crate::wait::until_ok;
use serde_json::Value;
use std::fmt::Display;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

/// Runs `make install` into the folder `stage` of this place, with these files in `/etc/brokkr`, and adds the programs that
/// a script of `tests/systemd` has unpacked.
pub fn stage(place: &TestDir, configuration: &[(&str, &str)]) {
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
    for unpacked in ["BROKKR_TESTS_SYSTEMD", "BROKKR_TESTS_NEEDRESTART"] {
        if let Some(folder) = std::env::var_os(unpacked) {
            let mut copy = Command::new("cp");
            copy.arg("-a")
                .arg(Path::new(&folder).join("."))
                .arg(place.join("stage"));
            run_command(copy, Duration::from_secs(60)).ok();
        }
    }
}

/// Returns the version of the booted systemd: this machine's, or the version that `tests/systemd/newer` has fetched.
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
    /// The machine's root folder, seen from the test.
    root: PathBuf,
    /// The command prefix that enters the machine.
    enter: Vec<String>,
    /// The factor by which the machine may be slower than others.
    slowness: u32,
}

impl Machine {
    /// Returns the machine whose first process is `init`.
    pub fn of(init: i32) -> Self {
        let enter = ["nsenter", "-t", &init.to_string(), "-a"].map(str::to_owned);
        Self {
            root: format!("/proc/{init}/root").into(),
            enter: enter.into(),
            slowness: 1,
        }
    }

    /// Returns the machine on which the test itself runs, `slowness` times slower than others.
    pub fn own(slowness: u32) -> Self {
        Self {
            root: "/".into(),
            enter: Vec::new(),
            slowness,
        }
    }

    /// Returns this number of seconds, times the slowness.
    pub fn bound(&self, seconds: u64) -> Duration {
        Duration::from_secs(seconds) * self.slowness
    }

    /// Asks until the answer is `Ok`, and returns its value.
    ///
    /// # Panics
    /// When this takes longer than `seconds` times the slowness; the message has the last error and the unit's journal.
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

    /// Runs a command in the machine.
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

    /// Returns the path of a machine's file, seen from the test.
    pub fn path(&self, path: &str) -> PathBuf {
        self.root.join(path.trim_start_matches('/'))
    }

    /// Returns the output of a command of the machine that must succeed.
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

    /// Returns the last journal lines of the unit.
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

    /// Returns the main pid of the unit.
    pub fn main_pid(&self) -> String {
        self.ok(&["systemctl", "show", "-P", "MainPID", "brokkr-supervisor"])
            .trim()
            .to_owned()
    }

    /// Waits until there are this many tenants and all are ready.
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

    /// Returns the journal's messages with `TENANT=name`.
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

    /// Returns the status with this configuration, if the supervisor answers.
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

    /// Waits until the supervisor has logged `what`.
    pub fn journal_says(&self, what: &str) {
        self.says_again(what, 0);
    }

    /// Waits until the journal has `what` more often than `before`, a number from [`Machine::times_said`].
    pub fn says_again(&self, what: &str, before: usize) {
        let wanted = format!("the journal to say {what:?} more than {before} times");
        self.wait(60, &wanted, || match self.times_said(what) {
            said if said > before => Ok(()),
            said => Err(said.to_string()),
        });
    }

    /// Returns the number of the unit's journal messages that contain `what`.
    pub fn times_said(&self, what: &str) -> usize {
        // Search the whole journal, because brokers may log more than any fixed number of lines.
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
        // Exit code 1 means no match.
        assert!(matches!(found.code, Some(0 | 1)), "{found:?}");
        let lines = found.stdout.lines();
        lines.filter(|line| line.contains(what)).count()
    }

    /// Returns the number of descriptors that systemd keeps for the unit.
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

    /// Waits until systemd shows this status text of the unit (`systemctl status`).
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

    /// Waits until systemd keeps exactly `stored` descriptors.
    pub fn in_step(&self, stored: usize) {
        self.wait(60, "the store to be in step", || match self.stored() {
            n if n == stored => Ok(()),
            n => Err(n.to_string()),
        });
    }

    /// Returns the number of running brokers.
    pub fn broker_count(&self) -> usize {
        let processes = self.processes();
        processes
            .lines()
            .filter(|l| l.contains("brokkr-broker serve"))
            .count()
    }

    /// Returns the processes of user brokkr.
    pub fn processes(&self) -> String {
        self.run(&["pgrep", "-u", "brokkr", "-a"]).stdout
    }
}
