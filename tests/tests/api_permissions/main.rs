//! Who may do what: one row per operation, one column per principal, run from one table.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "tests"
)]

mod matrix;
#[path = "../support/shapes.rs"]
mod shapes;
#[path = "../support/world.rs"]
mod world;

use brokkr_tests::Api;
use serde_json::Value;
use world::{Party, World, id, refused, unique};

/// The principals, in the order of the table's columns. The last two are always 401.
const PRINCIPALS: [&str; 7] = [
    "admin",
    "self",
    "other agent",
    "owner",
    "other generator",
    "no PAK",
    "bad PAK",
];

/// What the table's rows act on. Made anew after every row that changed something.
struct Fixture {
    names: Vec<(&'static str, String)>,
    callers: Vec<Api>,
}

impl Fixture {
    fn new(world: &World) -> Self {
        let (own, other) = (world.agent("self"), world.agent("other"));
        let (owner, stranger, free) = (
            world.generator("owner"),
            world.generator("stranger"),
            world.generator("free"),
        );
        world.register(&own, &owner);
        let (stack, bare) = (world.stack(&owner), world.stack(&owner));
        world.target(&own, &stack);
        let object = id(&world.object(&stack, "a: 1"));
        let event = id(&world.report(&own, &object, "FAILURE").expect(201).json());
        world.label_agent(&own, "here");
        world.label_stack(&stack, "here");
        let annotation =
            |kind: &str, id: &str| serde_json::json!({ kind: id, "key": "here", "value": "v" });
        let _ = world
            .admin
            .post(
                &format!("/agents/{}/annotations", own.id),
                &annotation("agent_id", &own.id),
            )
            .expect(201);
        let _ = world
            .admin
            .post(
                &format!("/stacks/{stack}/annotations"),
                &annotation("stack_id", &stack),
            )
            .expect(201);
        let caller = |party: &Party| party.api.clone();
        let callers = vec![
            world.admin.clone(),
            caller(&own),
            caller(&other),
            caller(&owner),
            caller(&stranger),
            world.nobody(),
            world
                .admin
                .with_pak("brokkr_BRnobody_11111111111111111111111111111111"),
        ];
        let scene = matrix::Scene {
            world,
            own: &own,
            other: &other,
            owner: &owner,
            stranger: &stranger,
            stack: &stack,
            object: &object,
        };
        let mut names = matrix::names(&scene);
        names.extend([
            ("self", own.id),
            ("self.name", own.name),
            ("other", other.id),
            ("gen", owner.id),
            ("free", free.id),
            ("stack", stack),
            ("bare", bare),
            ("object", object),
            ("event", event),
        ]);
        Self { names, callers }
    }

    fn fill(&self, text: &str) -> String {
        let mut text = text.replace("{new}", &format!("new-{}", unique()));
        for (name, value) in &self.names {
            text = text.replace(&format!("{{{name}}}"), value);
        }
        text
    }
}

#[test]
fn every_operation_answers_every_principal_as_the_matrix_says() {
    let world = World::new();
    let mut fixture = Fixture::new(&world);
    let mut rows = 0;
    for (operation, body, shape, answers) in matrix::rows() {
        for (column, principal) in PRINCIPALS.iter().enumerate() {
            let wanted = answers.get(column).copied().unwrap_or("401 unauthorized");
            let (method, path) = operation.split_once(' ').unwrap();
            let body: Option<Value> =
                (!body.is_empty()).then(|| serde_json::from_str(&fixture.fill(body)).unwrap());
            let answer = fixture.callers[column].call(method, &fixture.fill(path), body.as_ref());
            let (status, code) = wanted.split_once(' ').unwrap_or((wanted, ""));
            let context = format!("{operation} as {principal}: {}", answer.text());
            assert_eq!(answer.status.to_string(), status, "{context}");
            if code.is_empty() {
                if shape.is_empty() {
                    assert!(answer.body.is_empty(), "{context}");
                } else {
                    shapes::check(shape, &answer.json());
                }
            } else {
                let _ = refused(&answer, answer.status, code);
            }
            if code.is_empty() && method != "GET" && *operation != "POST /auth/pak" {
                fixture = Fixture::new(&world);
            }
            rows += 1;
        }
    }
    println!("permission matrix: {rows} rows");
    assert_eq!(rows, matrix::rows().count() * PRINCIPALS.len());
}

#[test]
fn an_unknown_path_is_not_found_whoever_asks() {
    let world = World::new();
    for path in ["/stacks/", "/nothing", "/agents/x/y/z"] {
        for api in [&world.admin, &world.nobody()] {
            let _ = refused(&api.get(path), 404, "not_found");
        }
    }
}

#[test]
fn a_wrong_method_is_told_only_to_who_may_ask() {
    let world = World::new();
    let _ = refused(
        &world.nobody().call("PATCH", "/agents", None),
        401,
        "unauthorized",
    );
    let answer = world.admin.call("PATCH", "/agents", None);
    let _ = refused(&answer, 405, "method_not_allowed");
    let allowed = answer.header("allow").unwrap_or_default();
    assert!(
        allowed.contains("GET") && allowed.contains("POST"),
        "{allowed}"
    );
}
