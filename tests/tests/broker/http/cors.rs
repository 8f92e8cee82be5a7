//! A page of another origin may do what `[cors]` allows, and may read everything that needs no PAK.

use super::{as_admin, call, words};
use brokkr_tests::api_fixture::World;

const PAGE: &str = "https://app.example";

#[test]
fn fault_17_a_page_may_do_what_the_configuration_says_and_no_other_page_may() {
    let world = World::with(&[
        (
            "cors.allowed_origins",
            r#"["https://app.example", "http://localhost:3001"]"#,
        ),
        ("cors.max_age_seconds", "120"),
    ]);
    let pak = as_admin(&world);
    let agents = "/api/v1/agents";
    let allowed = call(
        &world,
        "GET",
        agents,
        &[("Origin", PAGE), ("Authorization", &pak)],
    );
    assert_eq!(allowed.status, 200);
    assert_eq!(allowed.header("access-control-allow-origin"), Some(PAGE));
    assert_eq!(words(&allowed, "vary"), ["origin"]);
    assert!(words(&allowed, "access-control-expose-headers").contains(&"x-request-id".to_owned()));

    // A page must be able to read the reason of a refusal.
    let refusal = call(&world, "GET", agents, &[("Origin", PAGE)]);
    refusal.refused(401, "unauthorized");
    assert_eq!(refusal.header("access-control-allow-origin"), Some(PAGE));

    for other in [
        "https://evil.example",
        "https://app.example.evil.example",
        "null",
    ] {
        let answer = call(
            &world,
            "GET",
            agents,
            &[("Origin", other), ("Authorization", &pak)],
        );
        assert_eq!(
            answer.header("access-control-allow-origin"),
            None,
            "{other}"
        );
        assert_eq!(words(&answer, "vary"), ["origin"]);
    }
    let plain = call(&world, "GET", agents, &[("Authorization", &pak)]);
    assert_eq!(
        words(&plain, "vary"),
        ["origin"],
        "a cache must not mix them"
    );
    assert_eq!(plain.header("access-control-allow-origin"), None);
}

#[test]
fn a_preflight_is_answered_without_a_pak() {
    let world = World::with(&[
        ("cors.allowed_origins", r#"["https://app.example"]"#),
        (
            "cors.allowed_headers",
            r#"["Authorization", "Content-Type", "X-Request-Id"]"#,
        ),
        ("cors.max_age_seconds", "120"),
    ]);
    let ask = |path: &str, origin: &str| {
        let headers = [
            ("Origin", origin),
            ("Access-Control-Request-Method", "PATCH"),
            ("Access-Control-Request-Headers", "authorization"),
        ];
        call(&world, "OPTIONS", path, &headers)
    };
    let id = "00000000-0000-0000-0000-000000000001";
    let answer = ask(&format!("/api/v1/agents/{id}"), PAGE).expect(200);
    assert!(answer.body.is_empty());
    assert_eq!(answer.header("access-control-allow-origin"), Some(PAGE));
    assert_eq!(
        words(&answer, "access-control-allow-methods"),
        ["delete", "get", "options", "patch", "post", "put"]
    );
    assert_eq!(
        words(&answer, "access-control-allow-headers"),
        ["authorization", "content-type", "x-request-id"]
    );
    assert_eq!(answer.header("access-control-max-age"), Some("120"));
    assert!(words(&answer, "vary").contains(&"origin".to_owned()));

    let other = ask(&format!("/api/v1/agents/{id}"), "https://evil.example").expect(200);
    for header in ["origin", "methods", "headers"] {
        assert_eq!(
            other.header(&format!("access-control-allow-{header}")),
            None
        );
    }
    ask("/api/v1/nothing", PAGE).refused(404, "not_found");
    // Any other OPTIONS request is an ordinary request.
    call(&world, "OPTIONS", "/api/v1/agents", &[("Origin", PAGE)]).refused(401, "unauthorized");
}

#[test]
fn probes_and_metrics_are_for_every_page_and_a_star_is_every_origin() {
    let world = World::with(&[
        ("cors.allowed_origins", r#"["*"]"#),
        ("cors.allowed_headers", r#"["*"]"#),
    ]);
    let pak = as_admin(&world);
    let closed = World::with(&[("cors.allowed_origins", "[]")]);
    for path in ["/healthz", "/readyz", "/metrics"] {
        let answer = call(&closed, "GET", path, &[("Origin", PAGE)]).expect(200);
        assert_eq!(
            answer.header("access-control-allow-origin"),
            Some("*"),
            "{path}"
        );
    }
    let answer = call(
        &world,
        "GET",
        "/api/v1/agents",
        &[("Origin", PAGE), ("Authorization", &pak)],
    );
    assert_eq!(answer.header("access-control-allow-origin"), Some("*"));
    let headers = [
        ("Origin", PAGE),
        ("Access-Control-Request-Method", "GET"),
        ("Access-Control-Request-Headers", "authorization,x-anything"),
    ];
    let answer = call(&world, "OPTIONS", "/api/v1/agents", &headers).expect(200);
    assert_eq!(
        words(&answer, "access-control-allow-headers"),
        ["authorization", "x-anything"]
    );
    let refused = call(&closed, "OPTIONS", "/api/v1/agents", &headers).expect(200);
    assert_eq!(refused.header("access-control-allow-origin"), None);
}
