//! The values of the tenant's data in `/metrics`, and the cost of reading them.

use brokkr_tests::api_fixture::{World, server, unique};
use brokkr_tests::http::get;
use brokkr_tests::pg::Options;
use brokkr_tests::{PgServer, holds_for, until};
use serde_json::json;
use std::time::{Duration, Instant};

const PUBLIC_HASH: &str = "4c697273df3d764cba950bb5c04368097685f09259f5bd880d892cf1ff9f4cdd";

fn scrape(world: &World) -> String {
    get(&world.admin.addr, "/metrics")
        .unwrap()
        .expect(200)
        .text()
}

/// Returns the value of the first series with this beginning.
fn value(text: &str, series: &str) -> Option<f64> {
    let line = text.lines().find(|line| line.starts_with(series))?;
    line.rsplit(' ').next()?.parse().ok()
}

#[test]
fn totals_are_true_follow_within_a_minute_and_cost_one_reading_in_thirty_seconds() {
    let server = PgServer::with(Options::new().set("log_statement", "all"));
    let world = World::on(&server, &[]);
    let readings = || {
        server
            .log()
            .matches("FROM deployment_objects WHERE deleted_at IS NULL),")
            .count()
    };
    // The first reading comes without a scrape; before it there are no values.
    until(Duration::from_secs(10), "the first reading", || {
        value(&scrape(&world), "brokkr_stacks_total ")
    });
    let first = Instant::now();
    let (one, two, generator) = (world.agent("one"), world.agent("two"), world.generator("g"));
    let renamed = world.agent("before");
    for agent in [&one, &two, &renamed] {
        agent
            .post(&format!("/agents/{}/heartbeat", agent.id), &json!({}))
            .expect(204);
    }
    let active = json!({ "status": "ACTIVE" });
    one.put(&format!("/agents/{}", one.id), &active).expect(200);
    world
        .put(
            &format!("/agents/{}", renamed.id),
            &json!({ "name": "after" }),
        )
        .expect(200);
    world.remove(&format!("/agents/{}", two.id));
    let (stack, gone) = (world.stack(&generator), world.stack(&generator));
    for _ in 0..3 {
        let _ = world.object(&stack, "a: 1");
    }
    world.remove(&format!("/stacks/{gone}"));

    // Many scrapes do not bring the next reading forward.
    let text = until(Duration::from_secs(60), "the second reading", || {
        let text = scrape(&world);
        (value(&text, "brokkr_stacks_total ") == Some(1.0)).then_some(text)
    });
    assert!(
        first.elapsed() > Duration::from_secs(20),
        "{:?}",
        first.elapsed()
    );
    assert_eq!(readings(), 2);
    assert_eq!(value(&text, "brokkr_active_agents "), Some(1.0));
    // Three objects, and the marker of the deleted stack.
    assert_eq!(value(&text, "brokkr_deployment_objects_total "), Some(4.0));
    let age = |id: &str, name: &str| {
        let series = format!(
            "brokkr_agent_heartbeat_age_seconds{{agent_id=\"{id}\",agent_name=\"{name}\"}} "
        );
        value(&text, &series)
    };
    assert!(
        age(&one.id, &one.name).is_some_and(|age| (15.0..90.0).contains(&age)),
        "{text}"
    );
    assert!(age(&renamed.id, "after").is_some(), "{text}");
    assert!(
        !text.contains(&renamed.name) && !text.contains(&two.id),
        "{text}"
    );

    // Without writes nothing is read, scraped or not.
    let settled = readings();
    holds_for(Duration::from_secs(3), "no reading", || {
        let _ = scrape(&world);
        (readings() == settled).then_some(()).ok_or("it read")
    });
}

#[test]
fn fault_03_the_public_admin_pak_is_told_in_the_metrics_and_in_the_log() {
    let world = World::new();
    assert_eq!(
        value(&scrape(&world), "brokkr_default_admin_pak_hash_in_use "),
        Some(0.0)
    );
    assert!(!world.broker.log().contains("anybody can administer"));

    let schema = format!("tenant_{}", unique());
    let broker = brokkr_tests::Broker::on(server())
        .schema(&schema)
        .set("broker.pak_hash", &format!("\"{PUBLIC_HASH}\""))
        .start();
    until(Duration::from_secs(10), "the gauge to be 1", || {
        let text = get(&broker.addr(), "/metrics").unwrap().expect(200).text();
        (value(&text, "brokkr_default_admin_pak_hash_in_use ") == Some(1.0)).then_some(())
    });
    until(Duration::from_secs(5), "the warning", || {
        broker
            .log()
            .contains("anybody can administer this tenant")
            .then_some(())
    });
}

#[test]
fn a_scrape_does_not_wait_for_the_database() {
    let server = PgServer::start();
    let world = World::on(&server, &[]);
    until(Duration::from_secs(10), "the first reading", || {
        value(&scrape(&world), "brokkr_stacks_total ")
    });
    let _ = world.agent("written");
    server.freeze();
    for _ in 0..20 {
        let answer = get(&world.admin.addr, "/metrics").unwrap().expect(200);
        assert!(
            answer.took < Duration::from_millis(500),
            "{:?}",
            answer.took
        );
        assert!(value(&answer.text(), "brokkr_stacks_total ").is_some());
    }
    server.thaw();
}
