//! Diagnostics, as the asking admin and the answering agent see them.

use brokkr_tests::api_fixture::{Served, World, id, ids};
use brokkr_tests::{Api, Response, response_schema, until};
use serde_json::{Value, json};
use std::sync::Barrier;
use std::thread;
use std::time::Duration;

const UNKNOWN_ID: &str = "00000000-0000-0000-0000-000000000001";

/// The usual scene with an object to ask about.
struct Asked {
    served: Served,
    object: String,
}

impl Asked {
    fn new() -> Self {
        Self::of(World::new())
    }

    fn of(world: World) -> Self {
        let served = Served::of(world);
        let object = served.object("a: 1");
        Self { served, object }
    }

    fn admin(&self) -> &Api {
        &self.served.world.admin
    }

    fn agent(&self) -> &Api {
        &self.served.agent.api
    }

    /// Asks the agent about the object, with more fields in the body.
    fn try_ask(&self, more: Value) -> Response {
        let mut body = json!({ "agent_id": self.served.agent.id });
        for (key, value) in more.as_object().unwrap() {
            body[key] = value.clone();
        }
        let path = format!("/deployment-objects/{}/diagnostics", self.object);
        self.admin().post(&path, &body)
    }

    fn ask(&self) -> String {
        id(&self.try_ask(json!({})).expect(201).json())
    }

    fn claim(&self, request: &str) -> Response {
        claim(self.agent(), request)
    }

    fn pending(&self) -> Vec<String> {
        let path = format!("/agents/{}/diagnostics/pending", self.served.agent.id);
        ids(&self.agent().get_json(&path))
    }

    fn show(&self, request: &str) -> Value {
        let shown = self.admin().get_json(&format!("/diagnostics/{request}"));
        response_schema::check("DiagnosticResponse", &shown);
        shown
    }

    fn status(&self, request: &str) -> String {
        let shown = self.show(request);
        shown["request"]["status"].as_str().unwrap().to_owned()
    }

    /// Sets columns of a request.
    fn set(&self, request: &str, assignments: &str) {
        let update = format!("UPDATE diagnostic_requests SET {assignments} WHERE id = '{request}'");
        self.served.world.sql_execute(&update);
    }

    fn minutes_open(&self, request: &Value) -> i32 {
        let ask = "SELECT (extract(epoch FROM expires_at - created_at) / 60)::int FROM diagnostic_requests WHERE id::text = $1";
        let row = self.served.world.sql().query_one(ask, &[&id(request)]);
        row.unwrap().get(0)
    }

    /// Makes the sweep run as soon as its interval allows.
    fn wake(&self) {
        self.admin()
            .call("POST", "/admin/config/reload", None)
            .expect(200);
    }
}

fn claim(api: &Api, request: &str) -> Response {
    api.call("POST", &format!("/diagnostics/{request}/claim"), None)
}

fn found(text: &str) -> Value {
    json!({ "pod_statuses": text, "events": "[]", "collected_at": "2024-05-01T12:00:00+02:00" })
}

fn answer(api: &Api, request: &str, body: &Value) -> Response {
    api.post(&format!("/diagnostics/{request}/result"), body)
}

#[test]
fn a_request_is_asked_claimed_answered_and_shown() {
    let asked = Asked::new();
    let made = asked
        .try_ask(json!({ "requested_by": "ann" }))
        .expect(201)
        .json();
    response_schema::check("DiagnosticRequest", &made);
    assert_eq!(
        (&made["status"], &made["requested_by"]),
        (&json!("pending"), &json!("ann"))
    );
    assert_eq!(
        asked.minutes_open(&made),
        60,
        "unless somebody says otherwise"
    );
    let (first, second) = (id(&made), asked.ask());
    assert_eq!(
        asked.pending(),
        [first.clone(), second.clone()],
        "oldest first"
    );
    let open = asked.show(&first);
    response_schema::check("DiagnosticResponse", &open);
    assert_eq!(open["result"], Value::Null);

    let claimed = asked.claim(&first).expect(200).json();
    assert_eq!(claimed["status"], "claimed");
    assert!(claimed["claimed_at"].is_string());
    assert_eq!(asked.pending(), [second]);
    let result = answer(asked.agent(), &first, &found("[1]"))
        .expect(201)
        .json();
    response_schema::check("DiagnosticResult", &result);
    assert_eq!(
        (
            &result["pod_statuses"],
            &result["log_tails"],
            &result["collected_at"]
        ),
        (&json!("[1]"), &Value::Null, &json!("2024-05-01T10:00:00Z"))
    );
    let shown = asked.show(&first);
    assert_eq!(shown["result"], result);
    assert_eq!(shown["request"]["status"], "completed");
    assert!(shown["request"]["completed_at"].is_string());
}

#[test]
fn a_request_is_about_a_live_object_and_for_a_live_agent() {
    let asked = Asked::new();
    let world = &asked.served.world;
    let ask = |object: &str, agent: &str, more: Value| {
        let mut body = json!({ "agent_id": agent });
        if let Some(minutes) = more.as_i64() {
            body["retention_minutes"] = json!(minutes);
        }
        world.post(&format!("/deployment-objects/{object}/diagnostics"), &body)
    };
    let agent = &asked.served.agent.id;
    ask(UNKNOWN_ID, UNKNOWN_ID, json!(0)).refused(404, "deployment_object_not_found");
    ask(&asked.object, UNKNOWN_ID, json!(0)).refused(404, "agent_not_found");
    // The admin may ask any agent; it need not serve the object's stack.
    let stranger = world.agent("stranger");
    ask(&asked.object, &stranger.id, Value::Null).expect(201);
    for bad in [0, -1, 1441, i64::MAX, i64::MIN] {
        let answer = ask(&asked.object, agent, json!(bad));
        answer.refused(400, "invalid_diagnostic_request");
    }
    for minutes in [1, 1440] {
        let made = ask(&asked.object, agent, json!(minutes)).expect(201).json();
        assert_eq!(asked.minutes_open(&made), minutes);
    }
    for name in ["x".repeat(256), "a\0b".to_owned()] {
        let answer = asked.try_ask(json!({ "requested_by": name }));
        answer.refused(422, "invalid_value");
    }
    asked
        .try_ask(json!({ "requested_by": "é".repeat(255) }))
        .expect(201);
    asked
        .try_ask(json!({ "retention_minutes": "1" }))
        .refused(422, "unprocessable");

    world.remove(&format!("/agents/{}", stranger.id));
    ask(&asked.object, &stranger.id, Value::Null).refused(404, "agent_not_found");
    world.remove(&format!("/stacks/{}", asked.served.stack));
    ask(&asked.object, agent, Value::Null).refused(404, "deployment_object_not_found");
}

#[test]
fn a_missing_row_is_404_for_every_principal_and_a_malformed_id_is_400() {
    let asked = Asked::new();
    for api in [asked.admin(), asked.agent(), &asked.served.generator.api] {
        let path = format!("/diagnostics/{UNKNOWN_ID}");
        api.get(&path).refused(404, "diagnostic_not_found");
        claim(api, UNKNOWN_ID).refused(404, "diagnostic_not_found");
        answer(api, UNKNOWN_ID, &found("")).refused(404, "diagnostic_not_found");
        api.get("/diagnostics/x").refused(400, "bad_request");
    }
    let nobodys = format!("/agents/{UNKNOWN_ID}/diagnostics/pending");
    assert_eq!(asked.admin().get_json(&nobodys), json!([]));
}

#[test]
fn an_answer_is_taken_once_and_only_for_what_was_claimed() {
    let asked = Asked::new();
    let request = asked.ask();
    let (agent, body) = (asked.agent(), found("[]"));
    answer(agent, &request, &body).refused(409, "diagnostic_not_claimed");
    asked.claim(&request).expect(200);
    for (key, bad) in [("pod_statuses", json!("")), ("events", json!(""))] {
        let mut body = body.clone();
        body[key] = bad;
        answer(agent, &request, &body).refused(400, "invalid_diagnostic_result");
    }
    for (key, bad) in [
        ("pod_statuses", json!("a\0")),
        ("events", json!("a\0")),
        ("log_tails", json!("a\0")),
        ("collected_at", json!("-0001-01-01T00:00:00Z")),
    ] {
        let mut body = body.clone();
        body[key] = bad;
        answer(agent, &request, &body).refused(422, "invalid_value");
    }
    answer(agent, &request, &json!({ "events": "[]" })).refused(422, "unprocessable");
    assert_eq!(asked.status(&request), "claimed", "nothing of that counted");
    let mut whole = body.clone();
    whole["log_tails"] = json!("{\"pod\":\"line\\u0000\"}");
    let taken = answer(agent, &request, &whole).expect(201).json();
    assert_eq!(taken["log_tails"], whole["log_tails"], "as it was sent");
    answer(agent, &request, &body).refused(409, "diagnostic_not_claimed");
    assert_eq!(asked.show(&request)["result"], taken);
    asked
        .claim(&request)
        .refused(409, "diagnostic_already_claimed");
}

#[test]
fn the_admin_may_claim_for_an_agent_which_then_answers() {
    let asked = Asked::new();
    let request = asked.ask();
    claim(asked.admin(), &request).expect(200);
    answer(asked.agent(), &request, &found("[]")).expect(201);
}

#[test]
fn fault_30_of_many_who_claim_one_succeeds_and_of_many_answers_one_is_kept() {
    let asked = Asked::new();
    const TOGETHER: usize = 8;
    let race = |call: &(dyn Fn() -> Response + Sync)| -> Vec<u16> {
        let start = Barrier::new(TOGETHER);
        let mut statuses: Vec<u16> = thread::scope(|scope| {
            let calls: Vec<_> = (0..TOGETHER)
                .map(|_| {
                    scope.spawn(|| {
                        start.wait();
                        call().status
                    })
                })
                .collect();
            calls.into_iter().map(|call| call.join().unwrap()).collect()
        });
        statuses.sort_unstable();
        statuses
    };
    for _ in 0..5 {
        let request = asked.ask();
        let claims = race(&|| asked.claim(&request));
        assert_eq!((claims[0], claims[1]), (200, 409), "{claims:?}");
        let answers = race(&|| answer(asked.agent(), &request, &found("[]")));
        assert_eq!((answers[0], answers[1]), (201, 409), "{answers:?}");
    }
    let kept: i64 = asked
        .served
        .world
        .sql_value("SELECT count(*) FROM diagnostic_results");
    assert_eq!(kept, 5);
}

#[test]
fn fault_30_an_answer_that_cannot_be_stored_leaves_the_request_claimed() {
    let asked = Asked::new();
    let request = asked.ask();
    asked.claim(&request).expect(200);
    let mut sql = asked.served.world.sql();
    sql.batch_execute("ALTER TABLE diagnostic_results ADD CONSTRAINT no CHECK (events <> 'no')")
        .unwrap();
    let body =
        json!({ "pod_statuses": "x", "events": "no", "collected_at": "2024-05-01T12:00:00Z" });
    answer(asked.agent(), &request, &body).refused(422, "check_violation");
    assert_eq!(asked.status(&request), "claimed");
    answer(asked.agent(), &request, &found("[]")).expect(201);
}

#[test]
fn what_has_expired_is_not_offered_and_not_claimed_but_who_claimed_in_time_may_answer() {
    let asked = Asked::new();
    let (late, in_time) = (asked.ask(), asked.ask());
    asked.claim(&in_time).expect(200);
    for request in [&late, &in_time] {
        asked.set(request, "expires_at = now() - interval '1 second'");
    }
    assert_eq!(asked.pending(), [""; 0]);
    asked
        .claim(&late)
        .refused(409, "diagnostic_already_claimed");
    answer(asked.agent(), &in_time, &found("[]")).expect(201);
}

#[test]
fn the_sweep_expires_unanswered_requests_and_deletes_old_ones() {
    let asked = Asked::of(World::with(&[(
        "broker.diagnostic_cleanup_interval_seconds",
        "1",
    )]));
    let (unclaimed, unanswered, open) = (asked.ask(), asked.ask(), asked.ask());
    asked.claim(&unanswered).expect(200);
    for request in [&unclaimed, &unanswered] {
        asked.set(request, "expires_at = now() - interval '1 second'");
    }
    let (old, recent, old_and_open) = (asked.ask(), asked.ask(), asked.ask());
    for request in [&old, &recent] {
        asked.claim(request).expect(200);
        answer(asked.agent(), request, &found("[]")).expect(201);
    }
    asked.set(&old, "created_at = now() - interval '61 minutes'");
    asked.set(&recent, "created_at = now() - interval '59 minutes'");
    asked.set(&old_and_open, "created_at = now() - interval '5 hours'");
    asked.wake();
    until(
        Duration::from_secs(20),
        "the old one to be forgotten",
        || {
            let answer = asked.admin().get(&format!("/diagnostics/{old}"));
            (answer.status == 404).then_some(())
        },
    );
    let left: i64 = asked
        .served
        .world
        .sql_value("SELECT count(*) FROM diagnostic_results");
    assert_eq!(left, 1, "its answer with it");
    for (request, status) in [
        (&unclaimed, "expired"),
        (&unanswered, "failed"),
        (&open, "pending"),
        (&recent, "completed"),
        (&old_and_open, "pending"),
    ] {
        assert_eq!(asked.status(request), status);
    }
    for request in [&unclaimed, &unanswered] {
        assert!(asked.show(request)["request"]["completed_at"].is_string());
    }
    answer(asked.agent(), &unanswered, &found("[]")).refused(409, "diagnostic_not_claimed");
}

#[test]
fn the_sweeps_interval_and_age_can_be_changed_while_the_broker_runs() {
    let world = World::with(&[("broker.diagnostic_max_age_hours", "1000000")]);
    let mut asked = Asked::of(world);
    let (old, first) = (asked.ask(), asked.ask());
    let expire =
        "expires_at = now() - interval '1 second', created_at = now() - interval '2 hours'";
    asked.set(&first, expire);
    asked.wake();
    until(Duration::from_secs(20), "the first sweep", || {
        (asked.status(&first) == "expired").then_some(())
    });
    // By now the next sweep is a quarter of an hour away.
    asked.set(&old, expire);
    let broker = &mut asked.served.world.broker;
    broker.change("broker.diagnostic_cleanup_interval_seconds", "1");
    broker.change("broker.diagnostic_max_age_hours", "1");
    asked.wake();
    until(Duration::from_secs(20), "both to be forgotten", || {
        [&old, &first]
            .iter()
            .all(|request| asked.admin().get(&format!("/diagnostics/{request}")).status == 404)
            .then_some(())
    });
}
