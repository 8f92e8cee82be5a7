//! A systemd booted for one test.

use crate::systemd::{SUPERVISOR, tenant};
use brokkr_tests::systemd_host::{Machine, stage};
use brokkr_tests::test_dir::{AtDeath, TestDir, is_root, mortal, spawn};
use brokkr_tests::{procs, until};
use std::fs::{self, File};
use std::ops::Deref;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::Duration;

/// A booted systemd, which ends when dropped.
pub(crate) struct Booted {
    machine: Machine,
    _nspawn: Nspawn,
    _place: TestDir,
}

/// The nspawn process; waited for when dropped, and killed if necessary.
struct Nspawn(Child);

impl Booted {
    /// Boots a machine with the files that `make install` installs.
    pub(crate) fn boot(configuration: &[(&str, &str)]) -> Self {
        let place = TestDir::new();
        stage(&place, configuration);
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("systemd/box");
        let console = File::create(place.join("console")).unwrap();
        let mut boot = mortal(Path::new("unshare"), AtDeath::Kill, None);
        boot.arg("--mount")
            .arg(script)
            .arg(place.path())
            .stdin(Stdio::null())
            .stdout(console.try_clone().unwrap())
            .stderr(console);
        let mut nspawn = Nspawn(spawn(boot));
        let pid = i32::try_from(nspawn.0.id()).unwrap();
        let init = until(Duration::from_secs(60), "the box's systemd", || {
            if let Some(status) = nspawn.0.try_wait().unwrap() {
                let console = fs::read_to_string(place.join("console")).unwrap_or_default();
                panic!("the box ended ({status}): {console}");
            }
            let init = |child: &i32| {
                fs::read_to_string(format!("/proc/{child}/comm")).is_ok_and(|c| c == "systemd\n")
            };
            procs::children(pid).into_iter().find(init)
        });
        let booted = Self {
            machine: Machine::of(init),
            _nspawn: nspawn,
            _place: place,
        };
        until(Duration::from_secs(60), "the box to be up", || {
            let state = booted.run(&["systemctl", "is-system-running"]).stdout;
            matches!(state.trim(), "running" | "degraded").then_some(())
        });
        booted
    }

    /// Boots a machine with these tenants, given by name and address. Prints the reason and returns `None` where that is
    /// impossible.
    pub(crate) fn with_tenants(tenants: &[(&str, &str)]) -> Option<Self> {
        if let Some(reason) = impossible() {
            println!("skipped: {reason}");
            return None;
        }
        let files: Vec<(String, String)> = tenants
            .iter()
            .map(|(name, listen)| (format!("tenants.d/{name}.toml"), tenant(name, listen)))
            .collect();
        let files = files.iter().map(|(path, text)| (&**path, &**text));
        let files: Vec<_> = [("supervisor.toml", SUPERVISOR)]
            .into_iter()
            .chain(files)
            .collect();
        Some(Self::boot(&files))
    }

    /// Does the steps of an administrator, or of a package, after the files are installed.
    pub(crate) fn installed(&self) {
        self.ok(&["systemd-sysusers"]);
        self.ok(&["systemd-tmpfiles", "--create", "brokkr.conf"]);
        self.ok(&["systemctl", "daemon-reload"]);
    }
}

impl Deref for Booted {
    type Target = Machine;

    fn deref(&self) -> &Machine {
        &self.machine
    }
}

impl Drop for Booted {
    fn drop(&mut self) {
        // Twice --force: power off at once.
        self.run(&["systemctl", "poweroff", "--force", "--force"]);
    }
}

impl Drop for Nspawn {
    fn drop(&mut self) {
        let start = std::time::Instant::now();
        while self.0.try_wait().is_ok_and(|ended| ended.is_none()) {
            if start.elapsed() > Duration::from_secs(5) {
                let _ = self.0.kill();
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

/// Returns the reason why this cannot be tested here.
pub(crate) fn impossible() -> Option<&'static str> {
    if !is_root() {
        return Some("a systemd of its own needs root");
    }
    if !Path::new("/usr/bin/systemd-nspawn").exists() {
        return Some("systemd-nspawn is not installed (make deps, as root)");
    }
    None
}
