//! Fuzz targets: every parser of bytes that others write. A target takes any bytes, and panics when a rule is broken.
//!
//! Two runs use the targets. `cargo test -p brokkr-fuzz` plays each target's corpus and a fixed number of mutations of
//! it ([`Mutator`]), with fixed seeds, in seconds. `make fuzz` runs one target under libFuzzer, which the coverage of
//! the code guides, for as long as wanted; an input that it finds becomes a unit test beside the code, and a file of
//! the corpus.
//!
//! A new target is a function, a line of [`TARGETS`], and a folder of examples in `corpus/`.

#![forbid(unsafe_code)]

mod mutator;

use brokkr_tenant::{DatabaseUrl, Layer, Mode, SchemaName, Source, resolve, settings};

pub use mutator::Mutator;

/// A parser with the rules for its results.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    /// The name of the target and of its folder in `corpus/`.
    pub name: &'static str,
    /// Takes any bytes, and panics when a rule is broken.
    pub run: fn(&[u8]),
    /// The number of mutations in the run with fixed seeds: about a second's.
    pub mutations: u32,
}

const fn target(name: &'static str, run: fn(&[u8]), mutations: u32) -> Target {
    Target {
        name,
        run,
        mutations,
    }
}

/// All targets.
pub const TARGETS: &[Target] = &[
    target("tenant_file", tenant_file, 3_000),
    target("schema_name", schema_name, 40_000),
    target("url", url, 40_000),
    target("pak", brokkr_broker::fuzzing::pak, 40_000),
    target(
        "websocket_frame",
        brokkr_broker::fuzzing::websocket_frame,
        40_000,
    ),
    target(
        "notify_datagram",
        brokkr_supervisor::fuzzing::notify_datagram,
        40_000,
    ),
    target("log_line", brokkr_supervisor::fuzzing::log_line, 8_000),
    target(
        "control_request",
        brokkr_supervisor::fuzzing::control_request,
        40_000,
    ),
    target(
        "handover_index",
        brokkr_supervisor::fuzzing::handover_index,
        20_000,
    ),
];

/// Reads a tenant file. Every problem has a place in it, and an accepted configuration reads back equal.
fn tenant_file(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    // A folder that does not exist, so that no relative path of the text leads to a file.
    let source = Source::new("/nonexistent/acme.toml", text);
    match resolve(
        &[Layer::from_source(source, &settings::KEYS)],
        Mode::Supervised,
    ) {
        Ok(resolved) => {
            let json = resolved.config.to_clear_json();
            let again = brokkr_tenant::BrokerConfig::from_json(&json);
            assert_eq!(again.as_ref(), Some(&resolved.config));
        }
        Err(problems) => {
            assert!(problems.has_errors());
            for problem in problems.errors() {
                let line = problem.to_string();
                assert!(line.starts_with("/nonexistent/acme.toml:"), "{line}");
            }
        }
    }
}

/// Parses a schema's name. An accepted name is folded, within PostgreSQL's length, and parses to itself.
fn schema_name(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    if let Ok(name) = SchemaName::parse(&text) {
        let name = name.as_str();
        assert!(name.len() <= brokkr_tenant::MAX_SCHEMA && name.is_ascii());
        assert_eq!(name, name.to_ascii_lowercase());
        assert_eq!(
            SchemaName::parse(name).map(|again| again.as_str() == name),
            Ok(true)
        );
    }
}

/// Parses a database URL. An accepted URL parses to itself, and prints no password.
fn url(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let Ok(url) = DatabaseUrl::parse(&text) else {
        return;
    };
    assert_eq!(DatabaseUrl::parse(&url.expose()).as_ref(), Ok(&url));
    if let Some(password) = url.password().map(|password| password.expose()) {
        // A short password, or one of letters alone, may be a part of another word.
        let is_distinct = password.len() >= 6 && password.contains(|c: char| c.is_ascii_digit());
        if is_distinct && text.matches(password).count() == 1 {
            let printed = format!("{url} {url:?}");
            assert!(!printed.contains(password), "{printed}");
        }
    }
}

#[cfg(test)]
mod tests;
