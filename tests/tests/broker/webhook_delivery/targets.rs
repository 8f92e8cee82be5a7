//! The permitted targets of a webhook, and the test of a webhook.

use crate::webhook_delivery::receiver::{Receiver, Reply};
use crate::webhook_delivery::{OPEN, becomes, deliveries, given_up, open, subscribe};
use brokkr_tests::api_fixture::{World, ids};
use brokkr_tests::says;
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::thread;
use std::time::Duration;

#[test]
fn fault_16_nothing_private_is_reached_unless_the_operator_says_so() {
    let world = World::with(&[("broker.webhook_delivery_interval_seconds", "1")]);
    let endpoint = Receiver::new();
    let port = endpoint.port();
    let urls = [
        endpoint.url("/"),
        format!("http://localhost:{port}/"),
        format!("http://[::ffff:127.0.0.1]:{port}/"),
        format!("http://0x7f000001:{port}/"),
        "http://169.254.169.254/latest/meta-data".to_owned(),
    ];
    for url in &urls {
        let webhook = subscribe(&world.admin, url, &json!({ "max_retries": 1 }));
        let answer = world.call("POST", &format!("/webhooks/{webhook}/test"), None);
        let details = answer.refused(400, "webhook_test_failed");
        assert_eq!(details, Value::Null, "it has not answered");
        says(&answer.text(), &["webhooks.allowed_networks"]);
    }
    let generator = world.generator("g");
    let _ = world.stack(&generator);
    for webhook in ids(&world.get_json("/webhooks")) {
        let dead = becomes(&world.admin, &webhook, "dead");
        let error = dead["last_error"].as_str().unwrap();
        assert!(error.contains("webhooks.allowed_networks"), "{error}");
    }
    assert_eq!(endpoint.seen().len(), 0);
    assert_eq!(given_up(&world).len(), urls.len());
}

#[test]
fn fault_16_a_redirect_is_followed_only_to_where_a_webhook_may_go() {
    let world = open();
    let private = Receiver::at(Ipv4Addr::new(127, 0, 0, 2), |_, _| {
        Reply::Status(200, "internal secret".to_owned())
    });
    let inside = private.url("/admin");
    let landing = Receiver::new();
    let away = landing.url("/landed");
    let endpoint = Receiver::answering(move |_, seen| match seen.path.as_str() {
        "/in" => Reply::Redirect(302, inside.clone()),
        "/out" => Reply::Redirect(307, away.clone()),
        _ => Reply::Redirect(307, "/circle".to_owned()),
    });
    let test = |path: &str| {
        let more = json!({ "auth_header": "Bearer sesame" });
        let webhook = subscribe(&world.admin, &endpoint.url(path), &more);
        world.call("POST", &format!("/webhooks/{webhook}/test"), None)
    };
    let answer = test("/in");
    answer.refused(400, "webhook_test_failed");
    assert!(!answer.text().contains("secret"), "{}", answer.text());
    assert_eq!(private.seen().len(), 0);
    test("/out").expect(200);
    let landed = landing.wait(1).remove(0);
    assert_eq!(
        (landed.method.as_str(), landed.header("authorization")),
        ("POST", None)
    );
    assert_eq!(landed.json()["event_type"], "webhook.test");
    test("/circle").refused(400, "webhook_test_failed");
    assert_eq!(endpoint.count(|seen| seen.path == "/circle"), 6);
    assert!(
        endpoint
            .seen()
            .iter()
            .all(|seen| seen.header("authorization").is_some())
    );
}

#[test]
fn ports_can_be_named_too() {
    let endpoint = Receiver::new();
    let world = World::with(&[
        ("webhooks.allowed_networks", "[\"127.0.0.0/8\"]"),
        ("webhooks.allowed_ports", "[443]"),
    ]);
    let webhook = subscribe(&world.admin, &endpoint.url("/"), &json!({}));
    let answer = world.call("POST", &format!("/webhooks/{webhook}/test"), None);
    answer.refused(400, "webhook_test_failed");
    assert_eq!(endpoint.seen().len(), 0);
}

#[test]
fn a_test_is_sent_at_once_and_says_how_it_went() {
    let world = open();
    let endpoint = Receiver::answering(|_, seen| match seen.path.as_str() {
        "/good" => Reply::Status(202, "thanks".to_owned()),
        _ => Reply::Status(418, "é".repeat(900)),
    });
    let test = |url: &str| {
        let more = json!({ "auth_header": "Bearer sesame", "enabled": false });
        let webhook = subscribe(&world.admin, url, &more);
        (
            webhook.clone(),
            world.call("POST", &format!("/webhooks/{webhook}/test"), None),
        )
    };
    let (webhook, answer) = test(&endpoint.url("/good"));
    let said = answer.expect(200).json();
    assert_eq!(
        (&said["success"], &said["status_code"]),
        (&json!(true), &json!(202))
    );
    assert!(said["message"].is_string());
    let seen = endpoint.wait(1).remove(0);
    assert_eq!(seen.header("authorization"), Some("Bearer sesame"));
    assert_eq!(seen.header("content-type"), Some("application/json"));
    let payload = seen.json();
    assert_eq!(payload["event_type"], "webhook.test");
    assert_eq!(payload["data"]["subscription_id"], webhook.as_str());
    assert!(payload["data"]["message"].is_string() && payload["timestamp"].is_string());
    assert_eq!(deliveries(&world.admin, &webhook, "").len(), 0);
    let (_, answer) = test(&endpoint.url("/bad"));
    let details = answer.refused(400, "webhook_test_failed");
    assert_eq!(
        details,
        json!({ "status_code": 418, "body": "é".repeat(500) })
    );
    let nobody = brokkr_tests::ports::free();
    let (_, answer) = test(&format!("http://127.0.0.1:{nobody}/"));
    assert_eq!(answer.refused(400, "webhook_test_failed"), Value::Null);
}

#[test]
fn a_slow_test_holds_no_database_connection() {
    let mut settings = OPEN.to_vec();
    settings.push(("database.pool_size", "2"));
    let (world, endpoint) = (
        World::with(&settings),
        Receiver::answering(|_, _| Reply::Hang),
    );
    let webhook = subscribe(
        &world.admin,
        &endpoint.url("/"),
        &json!({ "timeout_seconds": 20 }),
    );
    let path = format!("/webhooks/{webhook}/test");
    thread::scope(|scope| {
        let tests: Vec<_> = (0..6)
            .map(|_| scope.spawn(|| world.call("POST", &path, None)))
            .collect();
        endpoint.wait(6);
        for _ in 0..5 {
            let answer = world.get("/webhooks").expect(200);
            assert!(answer.took < Duration::from_secs(3), "{:?}", answer.took);
        }
        endpoint.release();
        for test in tests {
            test.join().unwrap().expect(200);
        }
    });
}

/// Starts an endpoint that answers a request with `100 Continue` until the client hangs up, and returns its URL.
fn endless(pause: Duration) -> String {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    let answer = if pause.is_zero() {
        "HTTP/1.1 100 Continue\r\n\r\n".repeat(1000)
    } else {
        "HTTP/1.1 100 Continue\r\n\r\n".to_owned()
    };
    thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let _ = stream.read(&mut [0; 4096]).unwrap();
        while stream.write_all(answer.as_bytes()).is_ok() {
            thread::sleep(pause);
        }
    });
    url
}

#[test]
fn an_endpoint_that_never_finishes_its_answer_delays_no_other() {
    let world = open();
    for pause in [0, 1] {
        let url = endless(Duration::from_millis(pause));
        let more = json!({ "timeout_seconds": 2, "enabled": false });
        let webhook = subscribe(&world.admin, &url, &more);
        let path = format!("/webhooks/{webhook}/test");
        thread::scope(|scope| {
            let test = scope.spawn(|| world.call("POST", &path, None));
            while !test.is_finished() {
                let health = brokkr_tests::http::get(&world.broker.addr(), "/healthz").unwrap();
                assert!(
                    health.took < Duration::from_millis(700),
                    "{:?}",
                    health.took
                );
                thread::sleep(Duration::from_millis(20));
            }
            let answer = test.join().unwrap();
            assert!(answer.took < Duration::from_secs(4), "{:?}", answer.took);
            assert_eq!(answer.refused(400, "webhook_test_failed"), Value::Null);
            let said = answer.text();
            assert!(
                pause == 0 || said.contains("no answer within 2 s"),
                "{said}"
            );
        });
    }
}
