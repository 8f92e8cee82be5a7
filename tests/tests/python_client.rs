//! The published Python client walks a tenant, unmodified.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "tests"
)]

#[path = "support/world.rs"]
mod world;

use std::path::{Path, PathBuf};
use std::process::Command;

use world::World;

/// The interpreter of the virtual environment that `make test` puts the client in.
fn python() -> PathBuf {
    let python = std::env::var_os("BROKKR_TESTS_PYTHON").map_or_else(
        || {
            let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(
                || Path::new(env!("CARGO_MANIFEST_DIR")).join("../target"),
                PathBuf::from,
            );
            target.join("client-brokkr-client-0.10.0/bin/python")
        },
        PathBuf::from,
    );
    assert!(
        python.exists(),
        "there is no {}: `make test` puts the published client there; or name an interpreter that has \
         brokkr-client==0.10.0 in BROKKR_TESTS_PYTHON",
        python.display()
    );
    python
}

#[test]
fn the_published_python_client_walks_every_operation_there_is() {
    let world = World::new();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("python/walk.py");
    let ran = Command::new(python())
        .arg(script)
        .arg(format!("http://{}", world.admin.addr))
        .arg(world.broker.state_dir().join("admin.pak"))
        .output()
        .unwrap();
    let (out, err) = (
        String::from_utf8_lossy(&ran.stdout),
        String::from_utf8_lossy(&ran.stderr),
    );
    assert!(ran.status.success(), "{out}\n{err}");
    println!("{}", out.lines().last().unwrap_or_default());
    assert!(out.ends_with("walk: 48 operations\n"), "{out}");
}
