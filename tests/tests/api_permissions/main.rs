//! Who may do what: one row per operation, one column per principal, run from one table.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "tests"
)]

mod errors;
mod fixture;
mod matrix;
#[path = "../support/shapes.rs"]
mod shapes;
#[path = "../support/world.rs"]
mod world;

use fixture::{Fixture, PRINCIPALS};
use serde_json::Value;
use world::{World, refused};

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
