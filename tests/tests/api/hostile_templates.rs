//! Hostile templates and schemas are refused or ended in time, and the broker goes on.

use brokkr_tests::api_fixture::{World, id};
use brokkr_tests::http::get;
use brokkr_tests::{Api, Response, until};
use serde_json::{Value, json};
use std::net::TcpListener;
use std::thread;
use std::time::Duration;

const DEADLINE: Duration = Duration::from_secs(30);

fn create(api: &Api, content: &str, schema: &Value) -> Response {
    api.post(
        "/templates",
        &json!({ "name": "t", "template_content": content, "parameters_schema": schema.to_string() }),
    )
}

fn instantiate(api: &Api, stack: &str, template: &str, parameters: &Value) -> Response {
    api.post(
        &format!("/stacks/{stack}/deployment-objects/from-template"),
        &json!({ "template_id": template, "parameters": parameters }),
    )
}

/// Checks that the answer came in time and is this refusal.
#[track_caller]
fn in_time(answer: &Response, code: &str) -> Value {
    assert!(answer.took < DEADLINE, "{:?}", answer.took);
    answer.refused(400, code)
}

#[test]
fn fault_09_no_template_reads_the_brokers_environment() {
    let world = World::new();
    let generator = world.generator("g");
    for content in [
        "{{ get_env(name=\"PATH\") }}",
        "{% if false %}{{ x | default(value=get_env(name=\"BROKKR_CONFIG_FILE\")) }}{% endif %}",
        "{% macro m() %}{{ get_env(name=\"PATH\", default=\"\") }}{% endmacro %}a: 1",
    ] {
        for api in [&generator.api, &world.admin] {
            let answer = create(api, content, &json!({}));
            let _ = in_time(&answer, "invalid_template_syntax");
            assert!(!answer.text().contains("/bin"), "{}", answer.text());
        }
    }
    for content in [
        "{% include \"/etc/passwd\" %}",
        "{% extends \"other\" %}",
        "{% import \"other\" as other %}",
    ] {
        let answer = create(&generator.api, content, &json!({}));
        let _ = in_time(&answer, "invalid_template_syntax");
    }
}

#[test]
fn fault_10a_no_schema_reads_a_file_or_asks_another_server() {
    let world = World::new();
    let generator = world.generator("g");
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let http = format!("http://{}/schema", listener.local_addr().unwrap());
    for reference in [
        http.as_str(),
        "file:///etc/passwd",
        "/etc/passwd",
        "other.json",
        "https://127.0.0.1:1/",
    ] {
        for schema in [
            json!({ "$ref": reference }),
            json!({ "properties": { "a": { "items": { "$ref": reference } } } }),
            json!({ "x-own": { "$ref": reference } }),
            json!({ "$id": reference, "$ref": "more.json" }),
        ] {
            let answer = create(&generator.api, "a: 1", &schema);
            let harmless = schema.get("x-own").is_some() && answer.status == 201;
            if !harmless {
                let _ = in_time(&answer, "invalid_parameters_schema");
            }
            assert!(!answer.text().contains("root:"), "{}", answer.text());
        }
    }
    let answer = create(&generator.api, "a: 1", &json!({ "$schema": http }));
    let _ = in_time(&answer, "invalid_parameters_schema");
    assert!(listener.accept().is_err(), "the broker asked for a schema");
}

#[test]
fn a_hostile_text_is_refused_when_it_is_made() {
    let world = World::new();
    let generator = world.generator("g");
    let many = 50_000;
    for content in [
        format!(
            "{}{}",
            "{% if a %}".repeat(many / 3),
            "{% endif %}".repeat(many / 3)
        ),
        format!("{{{{ {}1{} }}}}", "(".repeat(many), ")".repeat(many)),
        format!("{{{{ {}1{} }}}}", "f(a=".repeat(25), ")".repeat(25)),
        format!("{{{{ 1{} }}}}", "+1".repeat(many)),
        "{{ a is containing([1]) }}".to_owned(),
    ] {
        let answer = create(&generator.api, &content, &json!({}));
        let _ = in_time(&answer, "invalid_template_syntax");
    }
    for schema in [
        json!({ "$ref": "#" }),
        json!({ "pattern": "(a+)+(?=b)" }),
        json!({ "pattern": "x{1000}{1000}" }),
        (0..60).fold(
            json!({}),
            |inner, _| json!({ "properties": { "a": inner } }),
        ),
    ] {
        let answer = create(&generator.api, "a: 1", &schema);
        let _ = in_time(&answer, "invalid_parameters_schema");
    }
    let log = world.broker.log();
    assert!(!log.contains("panicked") && !log.contains("ERROR"), "{log}");
    create(&generator.api, "a: 1", &json!({})).expect(201);
}

#[test]
fn a_hostile_template_is_ended_and_the_broker_answers_meanwhile() {
    let world = World::new();
    let generator = world.generator("g");
    let stack = world.stack(&generator);
    let big = json!({ "s": "x".repeat(500_000), "l": vec![1; 10_000] });
    let hostile: Vec<String> = [
        "{% for i in range(end=1000000000) %}x{% endfor %}",
        "{{ range(end=1, step_by=0) }}",
        "{% for i in l %}{% for j in l %}{% for k in l %}{% endfor %}{% endfor %}{% endfor %}",
        "{% filter upper %}{% for i in l %}{% for j in l %}{{ s }}{% endfor %}{% endfor %}{% endfilter %}",
        "{{ s | replace(from=\"x\", to=s) }}",
        "{{ s | replace(from=\"x\", to=\"\n\") | indent(prefix=s) }}",
        "{% set_global a = l %}{% for i in l %}{% set_global a = a | concat(with=a) %}{% endfor %}",
        "{% set_global a = [1] %}{% for i in l %}{% set_global a = [a] %}{% endfor %}",
        "{% macro m() %}{{ self::m() }}{% endmacro %}{{ self::m() }}",
        "{% macro m(n) %}{% if n > 0 %}{{ self::m(n=n-1) }}{{ self::m(n=n-1) }}{% endif %}{% endmacro %}{{ self::m(n=99) }}",
        "{% for i in l %}{{ s is matching(\"(x|y)*z{900}\") }}{% endfor %}",
        "{{ 99999999999999999 | date }}",
    ]
    .iter()
    .map(|content| id(&create(&generator.api, content, &json!({})).expect(201).json()))
    .collect();
    // All at once and repeatedly: more than the broker renders at the same time.
    let done = std::sync::atomic::AtomicBool::new(false);
    thread::scope(|scope| {
        let looks = scope.spawn(|| {
            let mut slowest = Duration::ZERO;
            while !done.load(std::sync::atomic::Ordering::Relaxed) {
                let healthy = get(&world.broker.addr(), "/healthz").unwrap().expect(200);
                slowest = slowest.max(healthy.took);
                thread::yield_now();
            }
            slowest
        });
        for chunk in hostile.chunks(4) {
            let answers: Vec<Response> = chunk
                .iter()
                .map(|template| {
                    let (api, stack, big) = (&generator.api, &stack, &big);
                    scope.spawn(move || instantiate(api, stack, template, big))
                })
                .collect::<Vec<_>>()
                .into_iter()
                .map(|call| call.join().unwrap())
                .collect();
            for answer in answers {
                let _ = in_time(&answer, "template_render_failed");
            }
        }
        done.store(true, std::sync::atomic::Ordering::Relaxed);
        let slowest = looks.join().unwrap();
        assert!(slowest < Duration::from_secs(5), "{slowest:?}");
    });
    let log = world.broker.log();
    assert!(!log.contains("panicked") && !log.contains("ERROR"), "{log}");
    // All renderings have ended: the next starts at once.
    let good = id(&create(&generator.api, "a: {{ l | length }}", &json!({}))
        .expect(201)
        .json());
    let object = until(Duration::from_secs(10), "the next rendering", || {
        let answer = instantiate(&generator.api, &stack, &good, &big);
        (answer.status == 201).then(|| answer.json())
    });
    assert_eq!(object["yaml_content"], "a: 10000");
}

#[test]
fn hostile_parameters_are_refused() {
    let world = World::new();
    let generator = world.generator("g");
    let stack = world.stack(&generator);
    let schema = json!({
        "properties": { "a": { "$ref": "#" }, "s": { "pattern": "[ab]*a[ab]{800}[cd]" } },
        "patternProperties": { "a": { "$ref": "#" } },
    });
    let made = id(&create(&generator.api, "b: 1", &schema).expect(201).json());
    let nested = |depth: usize| (0..depth).fold(json!(1), |inner, _| json!({ "a": inner }));
    let letters: String = (0..300_000)
        .map(|n| if n % 7 < 3 { 'a' } else { 'b' })
        .collect();
    for parameters in [
        nested(30),
        nested(100),
        json!({ "s": letters }),
        json!({ "x": "y".repeat(1 << 20) }),
        json!(vec![1; 100_000]),
    ] {
        let answer = instantiate(&generator.api, &stack, &made, &parameters);
        let details = in_time(&answer, "invalid_parameters");
        assert!(
            details["validation_errors"]
                .as_array()
                .is_some_and(|list| !list.is_empty())
        );
    }
    instantiate(&generator.api, &stack, &made, &nested(5)).expect(201);
}

#[test]
fn templates_that_take_long_leave_the_database_to_others() {
    let world = World::new();
    let generator = world.generator("g");
    let agent = world.agent("a");
    let stack = world.stack(&generator);
    let content = "{% for i in range(end=9000) %}{% for j in range(end=9000) %}{% set x = j %}{% endfor %}{% endfor %}a: 1";
    let template = id(&create(&generator.api, content, &json!({}))
        .expect(201)
        .json());
    let over = std::sync::atomic::AtomicBool::new(false);
    thread::scope(|scope| {
        let end = brokkr_tests::SetAtEnd::of(&over);
        for _ in 0..12 {
            scope.spawn(|| {
                while !over.load(std::sync::atomic::Ordering::Relaxed) {
                    let answer = instantiate(&generator.api, &stack, &template, &json!({}));
                    let code = answer.json()["code"].clone();
                    assert!(
                        code == "template_render_failed" || code == "too_many_templates",
                        "{code}"
                    );
                    if code == "too_many_templates" {
                        assert!(answer.header("retry-after").is_some());
                    }
                }
            });
        }
        let slowest = (0..20)
            .map(|_| {
                thread::sleep(Duration::from_millis(200));
                let answer = agent.post(&format!("/agents/{}/heartbeat", agent.id), &json!({}));
                (answer.status, answer.took)
            })
            .collect::<Vec<_>>();
        drop(end);
        for (status, took) in slowest {
            assert_eq!(status, 204);
            assert!(took < Duration::from_secs(2), "{took:?}");
        }
    });
}
