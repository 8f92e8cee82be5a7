//! Paths of the programs under test, and running them.

use std::ffi::OsStr;
use std::io::Read;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Returns the path of `brokkr-broker`.
pub fn broker() -> PathBuf {
    beside("brokkr-broker")
}

/// Returns the path of `brokkr-supervisor`.
pub fn supervisor() -> PathBuf {
    beside("brokkr-supervisor")
}

/// Returns the path of `trivial-broker`, a broker that speaks the instance protocol and does nothing else. It costs a
/// millisecond of processor time.
pub fn trivial_broker() -> PathBuf {
    beside("trivial-broker")
}

fn beside(name: &str) -> PathBuf {
    // BROKKR_TESTS_BIN names another folder of binaries, for example the installed ones.
    let folder = std::env::var_os("BROKKR_TESTS_BIN").map_or_else(
        || {
            // target/debug/deps/test-1234, target/release/examples/figures -> target/debug, target/release
            let own = std::env::current_exe().unwrap();
            own.ancestors().nth(2).unwrap().to_path_buf()
        },
        PathBuf::from,
    );
    let path = folder.join(name);
    assert!(
        path.exists(),
        "{} is not built: run `cargo build -p brokkr-broker -p brokkr-supervisor`, or `make test`, which does",
        path.display()
    );
    path
}

/// The result of a command that has ended.
#[derive(Debug, Clone)]
pub struct Ran {
    /// The exit code; `None` when a signal ended the command.
    pub code: Option<i32>,
    /// The text on standard output.
    pub stdout: String,
    /// The text on standard error.
    pub stderr: String,
}

impl Ran {
    /// Returns the standard output of a command that succeeded.
    pub fn ok(self) -> String {
        assert_eq!(
            self.code,
            Some(0),
            "stdout: {}\nstderr: {}",
            self.stdout,
            self.stderr
        );
        self.stdout
    }
}

/// Runs a program without input until it ends, for at most a minute.
pub fn run<A: AsRef<OsStr>>(program: impl AsRef<OsStr>, args: impl IntoIterator<Item = A>) -> Ran {
    let mut command = Command::new(program);
    command.args(args);
    run_command(command, Duration::from_secs(60))
}

/// Runs `command` without input until it ends, for at most `bound`.
pub fn run_command(mut command: Command, bound: Duration) -> Ran {
    let shown = format!("{command:?}");
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|e| panic!("cannot start {shown}: {e}"));
    // Read in threads, otherwise a full pipe would block the program.
    let out = reader(child.stdout.take());
    let err = reader(child.stderr.take());
    let start = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if start.elapsed() > bound {
            let _ = child.kill();
            let _ = child.wait();
            panic!("did not end within {bound:?}: {shown}");
        }
        std::thread::sleep(Duration::from_millis(2));
    };
    Ran {
        code: status.code(),
        stdout: out.join().unwrap_or_default(),
        stderr: err.join().unwrap_or_default(),
    }
}

fn reader(pipe: Option<impl Read + Send + 'static>) -> std::thread::JoinHandle<String> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut pipe) = pipe {
            let _ = pipe.read_to_end(&mut bytes);
        }
        String::from_utf8_lossy(&bytes).into_owned()
    })
}
