//! Tests of clients against a socket without a supervisor, or with another program behind it.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use super::*;
use crate::cli::Cli;
use clap::Parser;
use std::os::unix::net::UnixListener;

fn failure(dir: &Path, words: &str) -> Failure {
    let config = dir.join("supervisor.toml");
    std::fs::write(&config, "runtime_dir = \".\"\n").unwrap();
    let cli = Cli::try_parse_from(words.split(' ')).unwrap();
    carry_out(&cli.command, &config).unwrap_err()
}

#[test]
fn without_a_supervisor_it_is_said_where_it_was_looked_for_and_how_to_start_it() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("control.sock");
    let expected = format!(
        "brokkr-supervisor is not running: no answer on {} (start it: systemctl start brokkr-supervisor, or brokkr-supervisor run)",
        socket.display()
    );
    for words in [
        "x status",
        "x logs -f",
        "x start --all",
        "x reload",
        "x pak acme",
    ] {
        let failure = failure(dir.path(), words);
        assert_eq!(failure.code(), 69);
        assert_eq!(failure.to_string(), expected);
    }
    // A killed supervisor leaves its socket file behind.
    drop(UnixListener::bind(&socket).unwrap());
    assert_eq!(failure(dir.path(), "x status").to_string(), expected);
}

#[test]
fn a_supervisor_that_goes_while_it_is_asked_counts_as_not_running() {
    let dir = tempfile::tempdir().unwrap();
    let listener = UnixListener::bind(dir.path().join("control.sock")).unwrap();
    let closing = std::thread::spawn(move || drop(listener.accept().unwrap()));
    assert_eq!(failure(dir.path(), "x stop acme").code(), 69);
    closing.join().unwrap();
}

#[test]
fn a_bad_file_of_the_supervisor_is_a_matter_of_configuration() {
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("supervisor.toml");
    std::fs::write(&config, "runtime = 1\n").unwrap();
    let cli = Cli::try_parse_from(["x", "status"]).unwrap();
    let failure = carry_out(&cli.command, &config).unwrap_err();
    assert_eq!(failure.code(), 78);
    assert!(
        failure.to_string().contains("supervisor.toml:1:1: "),
        "{failure}"
    );
}
