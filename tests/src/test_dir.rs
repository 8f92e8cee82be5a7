//! A short temporary folder, and processes that cannot outlive the test that started them.

use crate::procs;
use nix::sys::signal::Signal;
use std::fs;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Once, OnceLock};

/// A file that marks the folders of tests, so that sweeping removes no other folder.
const MARK: &str = ".brokkr-tests";

/// A folder `/tmp/bkt-PID-N`, removed when dropped.
///
/// Its path is short because Unix socket paths end at 107 bytes; its mode is 0755 because PostgreSQL runs as another
/// user. A later test removes the folder of a killed test, because the name shows that its process has ended.
#[derive(Debug)]
pub struct TestDir {
    path: PathBuf,
}

impl TestDir {
    /// Makes a new empty folder.
    #[allow(clippy::new_without_default, reason = "making a folder is no default")]
    pub fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        static SWEEP: Once = Once::new();
        SWEEP.call_once(sweep);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = PathBuf::from(format!("/tmp/bkt-{}-{number}", std::process::id()));
        fs::DirBuilder::new()
            .mode(0o755)
            .create(&path)
            .unwrap_or_else(|e| panic!("cannot make {}: {e}", path.display()));
        // The umask may have removed permissions that the postgres user needs.
        set_mode(&path, 0o755);
        fs::write(path.join(MARK), "").unwrap();
        Self { path }
    }

    /// Returns the folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns a path inside the folder.
    pub fn join(&self, name: impl AsRef<Path>) -> PathBuf {
        self.path.join(name)
    }

    /// Makes a new folder inside the folder.
    pub fn folder(&self, name: &str, mode: u32) -> PathBuf {
        let path = self.path.join(name);
        fs::create_dir_all(&path).unwrap();
        set_mode(&path, mode);
        path
    }
}

impl Drop for TestDir {
    fn drop(&mut self) {
        // BROKKR_TESTS_KEEP=1 keeps every folder, for a look at a failed test.
        if std::env::var_os("BROKKR_TESTS_KEEP").is_none() {
            let _ = fs::remove_dir_all(&self.path);
        }
    }
}

/// Sets the mode of a file.
pub fn set_mode(path: &Path, mode: u32) {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

/// Removes the folders of killed tests, and kills the processes that still run in them.
fn sweep() {
    let Ok(entries) = fs::read_dir("/tmp") else {
        return;
    };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let Some(pid) = name
            .to_str()
            .and_then(|n| n.strip_prefix("bkt-"))
            .and_then(|n| n.split('-').next())
            .and_then(|n| n.parse::<u32>().ok())
        else {
            continue;
        };
        let ours = fs::metadata(entry.path().join(MARK))
            .is_ok_and(|m| m.uid() == nix::unistd::getuid().as_raw());
        if ours && !Path::new(&format!("/proc/{pid}")).exists() {
            // The brokers of a supervisor that such a test had killed still run.
            for pid in procs::naming(&format!("{}/", entry.path().display())) {
                procs::signal(pid, Signal::SIGKILL);
            }
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

/// Returns true when the test runs as root.
pub fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// The signal that a process gets when the test's own process ends in any way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AtDeath {
    /// SIGTERM: a supervisor drains its brokers.
    Term,
    /// SIGQUIT: PostgreSQL ends at once with all its backends.
    Quit,
    /// SIGKILL.
    Kill,
}

/// Returns a command that runs `program` through `setpriv`, so that it ends with the test; as `user` if given.
pub fn mortal(program: &Path, at_death: AtDeath, user: Option<(u32, u32)>) -> Command {
    let mut command = Command::new("setpriv");
    command.args([
        "--pdeathsig",
        match at_death {
            AtDeath::Term => "TERM",
            AtDeath::Quit => "QUIT",
            AtDeath::Kill => "KILL",
        },
    ]);
    if let Some((uid, gid)) = user {
        command.args([
            &format!("--reuid={uid}"),
            &format!("--regid={gid}"),
            "--clear-groups",
        ]);
    }
    command.arg("--").arg(program);
    command
}

type Job = (Command, Sender<std::io::Result<Child>>);

/// Starts a process from a thread that lives as long as this whole program.
///
/// The kernel sends the parent-death signal when the forking *thread* ends: a server that several tests share would
/// otherwise end with the first test.
pub fn spawn(command: Command) -> Child {
    static KEEPER: OnceLock<Sender<Job>> = OnceLock::new();
    let keeper = KEEPER.get_or_init(|| {
        let (jobs, inbox) = channel::<Job>();
        std::thread::spawn(move || {
            for (mut command, answer) in inbox {
                let _ = answer.send(command.spawn());
            }
        });
        jobs
    });
    let shown = format!("{command:?}");
    let (answer, child) = channel();
    keeper.send((command, answer)).unwrap();
    child
        .recv()
        .unwrap()
        .unwrap_or_else(|e| panic!("cannot start {shown}: {e}"))
}
