//! The published Rust client against this broker.
//!
//! The crate `brokkr-client` brings the document of the API that it was made from. It is compared with ours where cargo put
//! it: it is not copied here, its licence is not ours.
#![allow(
    clippy::expect_used,
    clippy::panic,
    reason = "a test that cannot go on says why and ends"
)]

use std::path::PathBuf;
use std::process::Command;

use serde_json::Value;

/// The document that the published client was made from.
///
/// # Panics
/// When cargo does not know the crate, or it has no such file.
#[must_use]
pub fn published_document() -> Value {
    let path = published_crate().join("spec/brokkr-v1.json");
    let text = std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    serde_json::from_slice(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// The folder of the published crate, which cargo has unpacked to build these tests.
fn published_crate() -> PathBuf {
    // Without a platform cargo wants the packages of every platform, and has those of this one.
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
