//! The API document from which the published client was generated. The tests read it in cargo's folder instead of a
//! copy, because its licence is another.

use std::path::PathBuf;
use std::process::Command;

use serde_json::Value;

/// Returns the document from which the published client was generated.
pub(crate) fn document() -> Value {
    let path = published_crate().join("spec/brokkr-v1.json");
    let text = std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    serde_json::from_slice(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// Returns the folder of the published crate, which cargo has unpacked to build these tests.
fn published_crate() -> PathBuf {
    // Filtered by platform, because otherwise cargo would need the packages of every platform.
    let version = cargo(&["-vV"]);
    let host = version
        .lines()
        .find_map(|line| line.strip_prefix("host: "))
        .expect("cargo says what it runs on");
    let metadata = cargo(&[
        "metadata",
        "--format-version=1",
        "--offline",
        "--locked",
        "--filter-platform",
        host,
        "--manifest-path",
        concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml"),
    ]);
    let metadata: Value = serde_json::from_str(&metadata).expect("cargo speaks JSON");
    let manifest = metadata["packages"]
        .as_array()
        .into_iter()
        .flatten()
        .find(|package| package["name"] == "brokkr-client")
        .and_then(|package| package["manifest_path"].as_str())
        .expect("cargo knows the package brokkr-client");
    PathBuf::from(manifest).with_file_name("")
}

fn cargo(args: &[&str]) -> String {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let asked = Command::new(cargo)
        .args(args)
        .output()
        .expect("cargo can be started");
    let (out, err) = (
        String::from_utf8_lossy(&asked.stdout),
        String::from_utf8_lossy(&asked.stderr),
    );
    assert!(asked.status.success(), "cargo {args:?}: {err}");
    out.into_owned()
}
