//! Attacks from inside a broker: `tests/attacker/attacker.c`, as a library or as a program.

use crate::{TestDir, bin};
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

/// The version of Landlock with which every attack of the library is stopped: signals and abstract sockets.
const WHOLE: i64 = 6;

/// Compiles the attacks into the file `to`, and returns its path.
///
/// # Panics
/// When there is no C compiler.
pub fn compile(to: PathBuf, flags: &[&str]) -> PathBuf {
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/attacker/attacker.c");
    let mut compiler = Command::new("cc");
    compiler.args(flags).arg("-o").arg(&to).arg(source);
    assert!(compiler.status().unwrap().success());
    to
}

/// Returns true when this kernel has every part of Landlock that stops an attack; otherwise says that the test is
/// skipped.
pub fn has_whole_landlock() -> bool {
    let folder = TestDir::new();
    let mut program = Command::new(compile(folder.path().join("attacker"), &[]));
    program.arg("version");
    let version = bin::run_command(program, Duration::from_secs(10)).ok();
    let version: i64 = version.trim().parse().unwrap();
    if version < WHOLE {
        println!(
            "skipped: the kernel has version {version} of Landlock, and the test needs {WHOLE}"
        );
    }
    version >= WHOLE
}
