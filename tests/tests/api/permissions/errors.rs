//! The errors of every operation of the matrix: for a wrong request, an unknown id, a broken schema, a lost server. A
//! new row of the matrix is covered without another line; the tables below list the exceptions of the contract.

use super::fixture::Fixture;
use super::matrix;
use brokkr_tests::api_fixture::World;
use brokkr_tests::{Api, PgServer, Response};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use uuid::Uuid;

/// Operations with other answers than 400, 415 and 422 to a body that is no JSON, JSON under another type, and JSON of
/// another shape.
const BODIES: &[(&str, [u16; 3])] = &[
    // A heartbeat counts with any body.
    ("POST /agents/{}/heartbeat", [204, 204, 204]),
    // Reads its own body: takes any type, and answers 400 to any fault.
    ("POST /stacks/{}/deployment-objects", [400, 201, 400]),
    // Takes any JSON.
    ("PUT /agents/{}", [400, 415, 200]),
];

/// Operations with other answers than 404 to an unknown id. The last word names the parameter.
const UNKNOWN: &[(&str, &[u16])] = &[
    // The rows of an agent can be listed even when the agent does not exist.
    ("GET /agents/{}/labels", &[200]),
    ("GET /agents/{}/annotations", &[200]),
    ("GET /agents/{}/targets", &[200]),
    ("GET /agents/{}/events", &[200]),
    ("GET /agents/{}/stacks", &[200]),
    ("GET /agents/{}/target-state", &[200]),
    ("GET /agents/{}/work-orders/pending", &[200]),
    ("GET /agents/{}/diagnostics/pending", &[200]),
    ("GET /stacks/{}/labels", &[200]),
    ("GET /stacks/{}/annotations", &[200]),
    ("GET /stacks/{}/health", &[200]),
    ("GET /deployment-objects/{}/health", &[200]),
    ("DELETE /agents/{}", &[204]),
    // Only the agent itself may send a heartbeat, so an unknown id is 403.
    ("POST /agents/{}/heartbeat", &[403]),
    // An unknown agent serves no stack and is registered with no generator.
    ("POST /agents/{}/events", &[403]),
    ("POST /agents/{}/targets", &[403]),
    ("DELETE /agents/{}/targets/{}", &[403, 404]),
    ("PATCH /agents/{}/health-status", &[200, 403, 422]),
    // The foreign key refuses these.
    ("POST /agents/{}/labels", &[422]),
    ("POST /agents/{}/annotations", &[422]),
];

/// Operations that need the schema only for authentication, which is cached for a while.
const WITHOUT_SCHEMA: &[&str] = &[
    "POST /auth/pak",
    "GET /webhooks/event-types",
    "GET /admin/ws/connections",
    "POST /admin/config/reload",
];

/// An operation of the matrix.
struct Operation {
    /// Fields of its row.
    method: &'static str,
    path: &'static str,
    body: &'static str,
    /// The column of the first principal that may call the operation.
    caller: usize,
    /// Statuses of its row, and 401.
    promised: Vec<u16>,
}

impl Operation {
    /// Returns every operation that some principal may call, once.
    fn all() -> Vec<Operation> {
        let mut seen = BTreeSet::new();
        let mut all = Vec::new();
        for (operation, body, _, answers) in matrix::rows() {
            let (method, path) = operation.split_once(' ').unwrap();
            let status = |answer: &&str| answer[..3].parse::<u16>().unwrap();
            // A webhook test whose target cannot be reached counts as success.
            let may =
                |answer: &&str| answer.starts_with('2') || **answer == *"400 webhook_test_failed";
            let Some(caller) = answers.iter().position(may) else {
                continue;
            };
            let promised = answers.iter().map(status).chain([401]).collect();
            let operation = Operation {
                method,
                path,
                body,
                caller,
                promised,
            };
            if seen.insert(operation.name()) {
                all.push(operation);
            }
        }
        all
    }

    /// Returns method and path, without the query and with `{}` for each parameter.
    fn name(&self) -> String {
        let mut name = format!("{} ", self.method);
        let mut parts = self.path.split('?').next().unwrap().split('{');
        name.push_str(parts.next().unwrap());
        for part in parts {
            name.push_str("{}");
            name.push_str(part.split_once('}').unwrap().1);
        }
        name
    }

    /// Returns the names of ids in its path.
    fn ids(&self, fixture: &Fixture) -> Vec<&'static str> {
        let path = self.path.split('?').next().unwrap();
        let names = path.split('{').skip(1);
        names
            .map(|part| part.split_once('}').unwrap().0)
            .filter(|name| {
                let value = fixture.names.iter().find(|(known, _)| known == name);
                value.is_some_and(|(_, value)| Uuid::parse_str(value).is_ok())
            })
            .collect()
    }

    fn api<'a>(&self, fixture: &'a Fixture) -> &'a Api {
        &fixture.callers[self.caller]
    }

    /// Sends its row's request, with other values for some names.
    fn call(&self, fixture: &Fixture, instead: &[(&str, &str)]) -> Response {
        let fill = |text: &str| {
            let mut text = text.to_owned();
            for (name, value) in instead {
                text = text.replace(&format!("{{{name}}}"), value);
            }
            fixture.fill(&text)
        };
        let body: Option<Value> =
            (!self.body.is_empty()).then(|| serde_json::from_str(&fill(self.body)).unwrap());
        self.api(fixture)
            .call(self.method, &fill(self.path), body.as_ref())
    }
}

/// The answers so far, and the wrong answers.
#[derive(Default)]
struct Seen {
    statuses: BTreeMap<String, BTreeSet<u16>>,
    wrong: Vec<String>,
}

impl Seen {
    /// Notes an answer, which must have one of these statuses and, if it is an error, a right body.
    fn note(&mut self, operation: &Operation, what: &str, answer: &Response, right: &[u16]) {
        let name = operation.name();
        let body = answer.text();
        if !right.contains(&answer.status) {
            self.wrong.push(format!(
                "{name}, {what}: {} instead of {right:?}: {body}",
                answer.status
            ));
        } else if answer.status >= 400 && !is_error(answer) {
            self.wrong
                .push(format!("{name}, {what}: no error body: {body}"));
        }
        self.statuses.entry(name).or_default().insert(answer.status);
    }

    fn expect(&mut self, is_so: bool, operation: &Operation, what: &str, answer: &Response) {
        if !is_so {
            self.wrong
                .push(format!("{}, {what}: {}", operation.name(), answer.text()));
        }
    }
}

fn is_error(answer: &Response) -> bool {
    let body: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
    let text = |key: &str| body[key].as_str().is_some_and(|text| !text.is_empty());
    answer.header("content-type") == Some("application/json") && text("code") && text("message")
}

fn code(answer: &Response) -> String {
    let body: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
    body["code"].as_str().unwrap_or_default().to_owned()
}

fn exception<T: Copy>(table: &[(&str, T)], operation: &Operation) -> Option<T> {
    let name = operation.name();
    table
        .iter()
        .find(|(known, _)| *known == name)
        .map(|(_, special)| *special)
}

#[test]
fn every_operation_says_what_is_wrong() {
    let operations = Operation::all();
    let mut seen = Seen::default();
    for operation in &operations {
        seen.statuses
            .entry(operation.name())
            .or_default()
            .extend(&operation.promised);
    }
    let world = World::new();
    let fixture = Fixture::new(&world);
    for operation in &operations {
        malformed_ids(operation, &fixture, &mut seen);
        wrong_bodies(operation, &fixture, &mut seen);
        unknown_ids(operation, &fixture, &mut seen);
    }
    // A new fixture, because some of the requests above succeeded.
    let fixture = Fixture::new(&world);
    without_its_tables(&world, &operations, &fixture, &mut seen);
    without_its_server(&operations, &mut seen);
    print(&seen);
    compare_with_the_document(&world, &mut seen);
    assert!(seen.wrong.is_empty(), "{}", seen.wrong.join("\n"));
}

/// A malformed id is 400 for a principal that may call the operation, and no other principal is told.
fn malformed_ids(operation: &Operation, fixture: &Fixture, seen: &mut Seen) {
    for name in operation.ids(fixture) {
        let answer = operation.call(fixture, &[(name, "not-a-uuid")]);
        let what = format!("malformed {name}");
        seen.note(operation, &what, &answer, &[400]);
        seen.expect(code(&answer) == "bad_request", operation, &what, &answer);
        let nobody = fixture.callers[5].call(
            operation.method,
            &fixture.fill(&operation.path.replace(&format!("{{{name}}}"), "not-a-uuid")),
            None,
        );
        seen.note(operation, "malformed, from nobody", &nobody, &[401]);
    }
}

fn wrong_bodies(operation: &Operation, fixture: &Fixture, seen: &mut Seen) {
    if operation.body.is_empty() {
        return;
    }
    let [no_json, no_type, shape] = exception(BODIES, operation).unwrap_or([400, 415, 422]);
    let path = fixture.fill(operation.path);
    let api = operation.api(fixture);
    let send = |kind: &str, bytes: &[u8]| {
        api.try_bytes(operation.method, &path, kind, Some(bytes))
            .unwrap()
    };
    let json = "application/json";
    for (what, bytes) in [("no JSON", "}{"), ("an empty body", "")] {
        seen.note(operation, what, &send(json, bytes.as_bytes()), &[no_json]);
    }
    let right = fixture.fill(operation.body);
    seen.note(
        operation,
        "JSON as text",
        &send("text/plain", right.as_bytes()),
        &[no_type],
    );
    seen.note(operation, "another shape", &send(json, b"4711"), &[shape]);
}

fn unknown_ids(operation: &Operation, fixture: &Fixture, seen: &mut Seen) {
    for name in operation.ids(fixture) {
        let nobodys = Uuid::new_v4().to_string();
        let answer = operation.call(fixture, &[(name, &nobodys)]);
        let what = format!("unknown {name}");
        let right = exception(UNKNOWN, operation).unwrap_or(&[404]);
        seen.note(operation, &what, &answer, right);
        let code = code(&answer);
        let says_so = code.ends_with("not_found") || code.ends_with("not_claimable");
        seen.expect(answer.status != 404 || says_so, operation, &what, &answer);
    }
}

/// A schema without its tables: every caller gets 503, without details.
fn without_its_tables(world: &World, operations: &[Operation], fixture: &Fixture, seen: &mut Seen) {
    for caller in &fixture.callers[..5] {
        caller.call("POST", "/auth/pak", None).expect(200);
    }
    let rename = |from: &str, to: &str| {
        world.sql_execute(&format!("ALTER SCHEMA {from} RENAME TO {to}"));
    };
    let hidden = format!("{}_hidden", world.schema);
    rename(&world.schema, &hidden);
    for operation in operations {
        let answer = operation.call(fixture, &[]);
        if WITHOUT_SCHEMA.contains(&operation.name().as_str()) {
            seen.note(operation, "no tables", &answer, &[200, 503]);
            continue;
        }
        seen.note(operation, "no tables", &answer, &[503]);
        let text = answer.text();
        let leaks = [
            "relation", "exist", "SELECT", "INSERT", "UPDATE", "DELETE", "42P01", "tenant_",
        ]
        .iter()
        .any(|word| text.contains(word));
        let says_no_more = code(&answer) == "database_unavailable" && !leaks;
        seen.expect(says_no_more, operation, "no tables", &answer);
    }
    rename(&hidden, &world.schema);
    world.get("/agents").expect(200);
}

/// A lost server is 503.
fn without_its_server(operations: &[Operation], seen: &mut Seen) {
    let server = PgServer::start();
    let world = World::on(&server, &[("database.acquire_timeout", "\"2s\"")]);
    let fixture = Fixture::new(&world);
    server.stop();
    for operation in operations {
        let answer = operation.call(&fixture, &[]);
        seen.note(operation, "no server", &answer, &[503]);
        let again = answer
            .header("retry-after")
            .and_then(|text| text.parse().ok());
        let says_when =
            code(&answer) == "database_unavailable" && again.is_some_and(|s: u32| s >= 1);
        seen.expect(says_when, operation, "no server", &answer);
    }
}

fn print(seen: &Seen) {
    let columns: BTreeSet<u16> = seen.statuses.values().flatten().copied().collect();
    let head: String = columns
        .iter()
        .map(|status| format!("{status:>5}"))
        .collect();
    println!(
        "statuses seen of {} operations\n{:60}{head}",
        seen.statuses.len(),
        ""
    );
    for (name, statuses) in &seen.statuses {
        let marks: String = columns
            .iter()
            .map(|status| {
                if statuses.contains(status) {
                    "    x"
                } else {
                    "    ."
                }
            })
            .collect();
        println!("{name:60}{marks}");
    }
}

/// Checks the statuses seen against the broker's own OpenAPI document.
fn compare_with_the_document(world: &World, seen: &mut Seen) {
    let answer = brokkr_tests::http::get(&world.admin.addr, "/docs/openapi.json").unwrap();
    if answer.status != 200 {
        println!("not compared with an OpenAPI document: there is none at /docs/openapi.json");
        return;
    }
    let document = answer.json();
    let paths = document["paths"].as_object().unwrap();
    for (name, statuses) in &seen.statuses {
        let (method, path) = name.split_once(' ').unwrap();
        let Some(responses) = documented(paths, method, path) else {
            seen.wrong
                .push(format!("{name}: not in the OpenAPI document"));
            continue;
        };
        for status in statuses {
            if responses.get(status.to_string()).is_none() {
                seen.wrong
                    .push(format!("{name}: {status} is not in the OpenAPI document"));
            }
        }
    }
}

/// Returns the responses of the documented path that shares the most words with `path`.
fn documented<'a>(
    paths: &'a serde_json::Map<String, Value>,
    method: &str,
    path: &str,
) -> Option<&'a Value> {
    let method = method.to_ascii_lowercase();
    let words: Vec<&str> = path.split('/').collect();
    paths
        .iter()
        .filter(|(_, item)| item.get(&method).is_some())
        .filter_map(|(documented, item)| {
            // The document's paths may carry the prefix, or leave it to the server entry.
            let documented = documented.strip_prefix("/api/v1").unwrap_or(documented);
            let theirs: Vec<&str> = documented.split('/').collect();
            let fits = theirs.len() == words.len()
                && theirs
                    .iter()
                    .zip(&words)
                    .all(|(theirs, ours)| theirs == ours || theirs.starts_with('{'));
            let same = theirs.iter().zip(&words).filter(|(a, b)| a == b).count();
            fits.then_some((same, &item[&method]["responses"]))
        })
        .max_by_key(|(same, _)| *same)
        .map(|(_, responses)| responses)
}
