//! Schemathesis tests every operation of the OpenAPI document with generated requests: no answer may be a server error
//! or differ from the document.
//!
//! The first caller is the admin, whose made-up ids name nothing; then come a generator and an agent with ids of
//! existing rows.

use brokkr_tests::api_fixture::{Served, id};
use brokkr_tests::bin::run_command;
use brokkr_tests::{TestDir, http};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// Any number will do; another number generates other requests.
const SEED: &str = "20240229";
/// Seconds for each of the three callers.
const EACH: &str = "20";
const CHECKS: &str = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance";

/// Returns the program in the virtual environment in which `make test` installs it.
fn schemathesis() -> PathBuf {
    let program = std::env::var_os("BROKKR_TESTS_SCHEMATHESIS").map_or_else(
        || {
            let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(
                || Path::new(env!("CARGO_MANIFEST_DIR")).join("../target"),
                PathBuf::from,
            );
            target.join("fuzzer-schemathesis-4.32.5/bin/schemathesis")
        },
        PathBuf::from,
    );
    assert!(
        program.exists(),
        "there is no {}: `make test` puts it there; or name one in BROKKR_TESTS_SCHEMATHESIS",
        program.display()
    );
    program
}

/// An existing resource: the beginning of its paths, and its id.
type Thing<'a> = (&'a str, &'a str);

/// Returns the fuzzer's configuration: the caller's PAK, and the ids in paths.
fn configuration(pak: &str, things: &[Thing<'_>]) -> String {
    let mut text = format!("headers = {{ Authorization = \"Bearer {pak}\" }}\n");
    for (path, id) in things {
        // The first parameter of the path, whose name differs between operations.
        for name in ["id", "agent_id", "stack_id"] {
            write!(
                text,
                "[[operations]]\ninclude-path-regex = '^{path}/\\{{{name}\\}}'\nparameters = {{ {name} = \"{id}\" }}\n"
            )
            .unwrap();
        }
    }
    text
}

/// Sends requests as this caller until the time is up, without the operations in `not` that would end the caller.
fn asks(scene: &Served, who: &str, pak: &str, things: &[Thing<'_>], not: &[&str]) {
    let place = TestDir::new();
    let file = place.join("schemathesis.toml");
    std::fs::write(&file, configuration(pak, things)).unwrap();
    let mut command = Command::new(schemathesis());
    command
        .current_dir(place.path())
        .arg("--config-file")
        .arg(&file)
        .arg("run")
        .arg(format!(
            "http://{}/docs/openapi.json",
            scene.world.broker.addr()
        ))
        .args(["--checks", CHECKS, "--seed", SEED, "--max-time", EACH])
        .args([
            "--continue-on-failure",
            "--request-timeout",
            "10",
            "--no-color",
        ])
        .args(["--generation-database", "none", "--warnings", "off"]);
    for operation in not {
        command.args(["--exclude-operation-id", operation]);
    }
    let ran = run_command(command, Duration::from_secs(120));
    println!("as {who}, seed {SEED}:\n{}", tail(&ran.stdout, 12));
    assert_eq!(
        ran.code,
        Some(0),
        "as {who}:\n{}\n{}",
        ran.stdout,
        ran.stderr
    );
}

fn tail(text: &str, lines: usize) -> String {
    let all: Vec<&str> = text.trim_end().lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

fn made(scene: &Served, path: &str, body: &Value) -> String {
    id(&scene.world.create(path, body))
}

/// Returns the operations that have succeeded at least once, from the broker's own metrics.
fn succeeded(scene: &Served) -> BTreeSet<String> {
    let metrics = http::get(&scene.world.broker.addr(), "/metrics").unwrap();
    let text = metrics.expect(200).text();
    let label = |line: &str, name: &str| -> String {
        let (_, after) = line.split_once(&format!("{name}=\"")).unwrap();
        after.split('"').next().unwrap().to_owned()
    };
    text.lines()
        .filter(|line| line.starts_with("brokkr_http_requests_total{"))
        .filter(|line| label(line, "status").starts_with('2'))
        .map(|line| format!("{} {}", label(line, "method"), label(line, "endpoint")))
        .filter(|operation| operation.contains(" /api/v1/"))
        .collect()
}

/// Returns the number of operations in the document.
fn documented(scene: &Served) -> usize {
    let served = http::get(&scene.world.broker.addr(), "/docs/openapi.json").unwrap();
    let document = served.expect(200).json();
    let paths = document["paths"].as_object().unwrap();
    paths
        .values()
        .map(|one| one.as_object().unwrap().len())
        .sum()
}

#[test]
fn nothing_that_can_be_asked_is_answered_otherwise_than_the_document_says() {
    let scene = Served::new();
    asks(&scene, "admin", &scene.world.admin.pak, &[], &[]);

    // Made only now, because the admin may have deleted earlier rows.
    let scene = Served::of(scene.world);
    let object = scene.object("kind: Namespace");
    let (agent, generator) = (scene.agent.clone(), scene.generator.clone());
    let order = json!({
        "work_type": "custom", "yaml_content": "kind: Namespace", "targeting": { "agent_ids": [agent.id] },
    });
    let order = made(&scene, "/work-orders", &order);
    let diagnostics = format!("/deployment-objects/{object}/diagnostics");
    let diagnostic = made(&scene, &diagnostics, &json!({ "agent_id": agent.id }));
    let things = [
        ("/agents", agent.id.as_str()),
        ("/generators", &generator.id),
        ("/stacks", &scene.stack),
        ("/deployment-objects", &object),
        ("/work-orders", &order),
        ("/diagnostics", &diagnostic),
    ];
    let ends = ["rotate_generator_pak", "delete_generator", "delete_stack"];
    asks(&scene, "generator", &generator.pak, &things, &ends);
    asks(&scene, "agent", &agent.pak, &things, &["rotate_agent_pak"]);

    let log = scene.world.broker.log();
    let broken: Vec<&str> = log.lines().filter(|line| line.contains("ERROR")).collect();
    assert!(broken.is_empty(), "{}", broken.join("\n"));
    // The callers still exist, and their PAKs still work.
    for party in [agent, generator] {
        party.call("POST", "/auth/pak", None).expect(200);
    }
    // Enough operations have succeeded, so the fuzzer was not only refused.
    let (succeeded, documented) = (succeeded(&scene).len(), documented(&scene));
    println!("{succeeded} of {documented} operations succeeded at least once");
    assert!(succeeded * 2 > documented, "{succeeded} of {documented}");
}
