//! Several brokers of one tenant, endpoints that hang, brokers that end.

use crate::webhook_delivery::receiver::{Receiver, Reply};
use crate::webhook_delivery::{
    BOUND, becomes, deliveries, event_id, open, second, shared, subscribe,
};
use brokkr_tests::api_fixture::{World, unique};
use brokkr_tests::{Api, holds_for, until};
use nix::sys::signal::Signal;
use serde_json::json;
use std::thread;
use std::time::{Duration, Instant};

#[test]
fn fault_28_two_brokers_deliver_each_event_once() {
    let world = World::with(&shared());
    let other = second(&world);
    let endpoint = Receiver::new();
    let webhook = subscribe(
        &world.admin,
        &endpoint.url("/"),
        &json!({ "event_types": ["stack.created"] }),
    );
    let generator = world.generator("g");
    let apis = [
        generator.api.clone(),
        Api::new(other.addr(), generator.pak.clone()),
    ];
    const EACH: usize = 40;
    thread::scope(|scope| {
        for api in &apis {
            let generator = &generator;
            scope.spawn(move || {
                for _ in 0..EACH {
                    let name = format!("s-{}", unique());
                    let body = json!({ "name": name, "generator_id": generator.id });
                    api.create("/stacks", &body);
                }
            });
        }
    });
    until(BOUND, "every delivery to be a success", || {
        let done = deliveries(&world.admin, &webhook, "?status=success&limit=1000");
        (done.len() == 2 * EACH).then_some(())
    });
    let mut events: Vec<String> = endpoint.seen().iter().map(event_id).collect();
    assert_eq!(events.len(), 2 * EACH);
    events.sort();
    events.dedup();
    assert_eq!(events.len(), 2 * EACH);
    assert_eq!(
        deliveries(&world.admin, &webhook, "?limit=1000").len(),
        2 * EACH
    );
}

#[test]
fn fault_29_a_hung_endpoint_delays_no_other_and_gets_no_delivery_twice() {
    let world = open();
    let (hanging, quick) = (Receiver::answering(|_, _| Reply::Hang), Receiver::new());
    // Two subscriptions of one host share its few slots.
    for path in ["/a", "/b"] {
        subscribe(
            &world.admin,
            &hanging.url(path),
            &json!({ "event_types": ["stack.created"], "timeout_seconds": 300 }),
        );
    }
    let webhook = subscribe(
        &world.admin,
        &quick.url("/"),
        &json!({ "event_types": ["stack.created"] }),
    );
    let generator = world.generator("g");
    const STACKS: usize = 40;
    let began = Instant::now();
    for _ in 0..STACKS {
        let _ = world.stack(&generator);
    }
    quick.wait(STACKS);
    println!(
        "{STACKS} events past a hanging endpoint in {:?}",
        began.elapsed()
    );
    assert_eq!(
        deliveries(&world.admin, &webhook, "?limit=1000").len(),
        STACKS
    );
    assert_eq!(hanging.seen().len(), 4, "so many at once to one host");
    let claims: Vec<f64> = world
        .sql_column("SELECT extract(epoch FROM acquired_until - now())::float8 FROM webhook_deliveries WHERE status = 'acquired'");
    assert_eq!(claims.len(), 4);
    assert!(
        claims.iter().all(|left| *left > 280.0),
        "a claim covers what the endpoint is allowed: {claims:?}"
    );
    hanging.release();
    hanging.wait(2 * STACKS);
    let all: Vec<String> = hanging
        .seen()
        .iter()
        .map(|seen| format!("{}{}", seen.path, event_id(seen)))
        .collect();
    let distinct: std::collections::BTreeSet<&String> = all.iter().collect();
    assert_eq!((all.len(), distinct.len()), (2 * STACKS, 2 * STACKS));
}

#[test]
fn a_broker_killed_in_the_middle_costs_one_more_delivery_when_its_claim_has_ended() {
    let world = World::with(&shared());
    let endpoint = Receiver::answering(|nth, _| match nth {
        0 => Reply::Hang,
        _ => Reply::Status(200, String::new()),
    });
    let webhook = subscribe(
        &world.admin,
        &endpoint.url("/"),
        &json!({ "event_types": ["stack.created"] }),
    );
    let generator = world.generator("g");
    let _ = world.stack(&generator);
    endpoint.wait(1);
    world.broker.signal(Signal::SIGKILL);
    until(BOUND, "the broker to be gone", || world.broker.ended());
    let other = second(&world);
    let admin = Api::new(other.addr(), world.admin.pak.clone());
    let held = &deliveries(&admin, &webhook, "?status=acquired")[0];
    assert_eq!(held["attempts"], 0);
    let end = "UPDATE webhook_deliveries SET acquired_until = now() - interval '1 second'";
    world.sql_execute(end);
    let generator = admin.with_pak(generator.pak.clone());
    let _ = generator.post("/agents", &json!({}));
    admin.create("/agents", &json!({ "name": "waker", "cluster_name": "c" }));
    let seen = endpoint.wait(2);
    assert_eq!(
        event_id(&seen[0]),
        event_id(&seen[1]),
        "the same event, so that the endpoint can tell"
    );
    let done = becomes(&admin, &webhook, "success");
    assert_eq!(done["attempts"], 1);
    holds_for(Duration::from_secs(3), "and no third time", || {
        let n = endpoint.seen().len();
        if n == 2 { Ok(()) } else { Err(n) }
    });
}

#[test]
fn a_broker_that_is_told_to_stop_takes_no_more_and_ends_what_is_under_way() {
    let world = World::with(&shared());
    let endpoint = Receiver::answering(|_, _| Reply::Hang);
    let webhook = subscribe(
        &world.admin,
        &endpoint.url("/"),
        &json!({ "event_types": ["stack.created"] }),
    );
    let generator = world.generator("g");
    for _ in 0..6 {
        let _ = world.stack(&generator);
    }
    endpoint.wait(4);
    world.broker.signal(Signal::SIGTERM);
    until(BOUND, "it to drain", || {
        world.broker.log().contains("draining").then_some(())
    });
    assert!(
        world.broker.ended().is_none(),
        "it waits for what is under way"
    );
    endpoint.release();
    let status = until(BOUND, "its end", || world.broker.ended());
    assert!(status.success());
    let states = |state: &str| -> i64 {
        let count = "SELECT count(*) FROM webhook_deliveries WHERE status = $1";
        world.sql().query_one(count, &[&state]).unwrap().get(0)
    };
    assert_eq!((states("success"), states("acquired")), (4, 0));
    assert_eq!(endpoint.seen().len(), 4);
    // The next broker does the rest.
    let other = second(&world);
    let admin = Api::new(other.addr(), world.admin.pak.clone());
    endpoint.wait(6);
    until(BOUND, "all to be delivered", || {
        (deliveries(&admin, &webhook, "?status=success").len() == 6).then_some(())
    });
}
