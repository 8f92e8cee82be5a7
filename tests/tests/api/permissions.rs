//! The permissions: one row for each operation, one column for each principal, run from one table.

mod errors;
pub(crate) mod fixture;
pub(crate) mod matrix;

use brokkr_tests::api_fixture::World;
use brokkr_tests::response_schema;
use fixture::{Fixture, PRINCIPALS};
use serde_json::Value;

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
                    response_schema::check(shape, &answer.json());
                }
            } else {
                answer.refused(answer.status, code);
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
fn a_head_is_answered_as_its_get_and_changes_nothing() {
    let world = World::new();
    let fixture = Fixture::new(&world);
    let mut sql = world.sql();
    let every_row = every_row(&mut sql);
    let mut rows = || -> Vec<(String, Option<String>)> {
        let rows = sql.query(&every_row, &[]).unwrap();
        rows.iter().map(|row| (row.get(0), row.get(1))).collect()
    };
    let mut heads = 0;
    for (operation, _, _, answers) in matrix::rows() {
        let Some(path) = operation.strip_prefix("GET ") else {
            continue;
        };
        for (column, principal) in PRINCIPALS.iter().enumerate() {
            let wanted = answers.get(column).copied().unwrap_or("401 unauthorized");
            let before = rows();
            let answer = fixture.callers[column].call("HEAD", &fixture.fill(path), None);
            let context = format!("HEAD {path} as {principal}");
            let status = wanted.split(' ').next().unwrap();
            assert_eq!(answer.status.to_string(), status, "{context}");
            assert!(answer.body.is_empty(), "{context}: {}", answer.text());
            assert_eq!(rows(), before, "{context}");
            heads += 1;
        }
    }
    println!("{heads} HEADs");
    assert!(heads > 100, "{heads}");
}

/// Returns a text that digests every row of every table as a number. The audit log is left out, because every use of an
/// invalid PAK is recorded there.
fn every_row(sql: &mut postgres::Client) -> String {
    let tables = sql
        .query(
            "SELECT relname::text FROM pg_class WHERE relkind IN ('r', 'p') AND relname <> 'audit_log'
                AND relnamespace = current_schema()::regnamespace",
            &[],
        )
        .unwrap();
    assert!(tables.len() > 20, "{}", tables.len());
    let digests: Vec<String> = tables
        .iter()
        .map(|row| {
            let table: String = row.get(0);
            format!("SELECT '{table}', md5(string_agg(t::text, ' ' ORDER BY t::text)) FROM \"{table}\" AS t")
        })
        .collect();
    digests.join(" UNION ALL ") + " ORDER BY 1"
}

#[test]
fn an_unknown_path_is_not_found_for_every_principal() {
    let world = World::new();
    for path in ["/stacks/", "/nothing", "/agents/x/y/z"] {
        for api in [&world.admin, &world.anonymous()] {
            api.get(path).refused(404, "not_found");
        }
    }
}

#[test]
fn a_wrong_method_is_told_only_to_who_may_ask() {
    let world = World::new();
    world
        .anonymous()
        .call("PATCH", "/agents", None)
        .refused(401, "unauthorized");
    let answer = world.call("PATCH", "/agents", None);
    answer.refused(405, "method_not_allowed");
    let allowed = answer.header("allow").unwrap_or_default();
    assert!(
        allowed.contains("GET") && allowed.contains("POST"),
        "{allowed}"
    );
}
