//! Tests of the sweeps of retention and of diagnostics: removed rows, kept rows, and chunks.

use std::time::Duration;

use brokkr_broker::db::start::start;
use brokkr_broker::db::{Conn, Db, DbError};
use brokkr_broker::jobs::diagnostics;
use brokkr_broker::jobs::retention::{CHUNK, KEPT};
use brokkr_broker::store::stack_matching::{Mode, target_state};
use brokkr_tests::{Broker, PgServer, TestDir, until};
use uuid::Uuid;

use crate::{aside, event_loop, options, plan, sql};

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// A server with one tenant's migrated schema.
struct Schema {
    server: PgServer,
    name: &'static str,
}

impl Schema {
    fn new(name: &'static str) -> Self {
        let (server, place) = (PgServer::start(), TestDir::new());
        start(&plan(&server, name, &place), &|_| {}).unwrap();
        Self { server, name }
    }

    fn write(&self, statements: &str) {
        sql(
            &self.server,
            &format!("SET search_path = {}; {statements}", self.name),
        );
    }

    /// Runs a query with one value as its result.
    fn ask<T: for<'a> postgres::types::FromSql<'a> + Send>(&self, question: &str) -> T {
        let mut answer = None;
        aside(|| {
            let mut client = self.server.client();
            client
                .batch_execute(&format!("SET search_path = {}", self.name))
                .unwrap();
            answer = Some(client.query_one(question, &[]).unwrap().get(0));
        });
        answer.unwrap()
    }

    fn texts(&self, column: &str, table: &str) -> Vec<String> {
        self.ask(&format!(
            "SELECT coalesce(array_agg({column}::text ORDER BY {column}), '{{}}') FROM {table}"
        ))
    }

    fn db(&self) -> Db {
        Db::new(options(&self.server, self.name)).unwrap()
    }

    /// Removes from a table the rows older than this many days.
    fn sweep(&self, table: &str, days: u32) -> u64 {
        let kept = KEPT.iter().find(|kept| kept.table() == table).unwrap();
        event_loop()
            .block_on(kept.sweep(&self.db(), DAY * days))
            .unwrap()
    }

    /// Inserts an agent that serves two stacks of a generator: `s`, with an old and a new object, and `d`, which is
    /// deleted.
    fn populate(&self) {
        self.write(
            "INSERT INTO agents (id, name, cluster_name) VALUES (agent(), 'a', 'c');
             INSERT INTO generators (id, name) VALUES (named('g'), 'g');
             INSERT INTO stacks (id, name, generator_id, deleted_at)
             VALUES (named('s'), 's', named('g'), NULL), (named('d'), 'd', named('g'), now());
             INSERT INTO agent_targets (agent_id, stack_id) VALUES (agent(), named('s')), (agent(), named('d'));
             INSERT INTO deployment_objects (id, stack_id, yaml_content, yaml_checksum, deleted_at)
             VALUES (named('old'), named('s'), '', '', NULL), (named('new'), named('s'), '', '', NULL),
                    (named('gone'), named('d'), '', '', now())",
        );
    }

    /// Defines SQL functions for ids by name.
    fn with_names(self) -> Self {
        self.write(
            "CREATE FUNCTION named(name text) RETURNS uuid IMMUTABLE LANGUAGE sql AS 'SELECT md5(name)::uuid';
             CREATE FUNCTION agent() RETURNS uuid IMMUTABLE LANGUAGE sql AS $$SELECT md5('the agent')::uuid$$;
             CREATE FUNCTION old(days int) RETURNS timestamptz LANGUAGE sql AS 'SELECT now() - make_interval(days => days)'",
        );
        self
    }

    /// Counts the objects that the agent must still apply.
    fn incremental(&self) -> usize {
        let agent: Uuid = self.ask("SELECT agent()");
        let state = move |conn: &mut Conn| -> Result<usize, DbError> {
            Ok(target_state(conn, agent, Mode::Incremental)?.len())
        };
        event_loop().block_on(self.db().run(state)).unwrap()
    }
}

#[test]
fn entries_past_their_retention_go_and_all_others_stay() {
    let schema = Schema::new("tenant_audit").with_names();
    schema.write(
        "DELETE FROM audit_log;
         INSERT INTO audit_log (actor_type, action, resource_type, created_at)
         SELECT 'system', days || ' days', 'x', old(days) FROM unnest(ARRAY[0, 1, 89, 91, 400]) AS days",
    );
    assert_eq!(schema.sweep("audit_log", 90), 2);
    assert_eq!(
        schema.texts("action", "audit_log"),
        ["0 days", "1 days", "89 days"]
    );
    assert_eq!(schema.sweep("audit_log", 90), 0);
}

#[test]
fn a_backlog_goes_in_chunks_also_when_two_brokers_sweep_at_once() {
    let schema = Schema::new("tenant_chunks").with_names();
    let rows = 2 * CHUNK + 1;
    schema.write(&format!(
        "DELETE FROM audit_log;
         CREATE TABLE deletions (rows bigint);
         GRANT ALL ON deletions TO brokkr;
         CREATE FUNCTION count_rows() RETURNS trigger LANGUAGE plpgsql AS $$
         BEGIN INSERT INTO {schema}.deletions SELECT count(*) FROM gone; RETURN NULL; END $$;
         CREATE TRIGGER counted AFTER DELETE ON audit_log REFERENCING OLD TABLE AS gone
                FOR EACH STATEMENT EXECUTE FUNCTION count_rows();
         CREATE FUNCTION fill() RETURNS void LANGUAGE sql AS $$
         INSERT INTO audit_log (actor_type, action, resource_type, created_at)
         SELECT 'system', 'x', 'x', old(100) FROM generate_series(1, {rows}) $$;
         SELECT fill()",
        schema = schema.name
    ));
    assert_eq!(schema.sweep("audit_log", 90), rows.unsigned_abs());
    let one = CHUNK.to_string();
    assert_eq!(
        schema.texts("rows", "deletions"),
        ["1", one.as_str(), one.as_str()]
    );

    schema.write("SELECT fill()");
    let (first, second) = std::thread::scope(|scope| {
        let sweep = || schema.sweep("audit_log", 90);
        let (first, second) = (scope.spawn(sweep), scope.spawn(sweep));
        (first.join().unwrap(), second.join().unwrap())
    });
    // A sweep may stop early at rows that the other sweep holds; the other sweep then removes the rest.
    assert_eq!(first + second, rows.unsigned_abs());
    assert_eq!(schema.texts("action", "audit_log"), Vec::<String>::new());
}

#[test]
fn old_events_go_but_what_an_agent_has_applied_is_not_offered_again() {
    let schema = Schema::new("tenant_events").with_names();
    schema.populate();
    let event = |message: &str, object: &str, days: u32, success: bool| {
        let (status, digest) = if success {
            ("SUCCESS", format!("'{message}'"))
        } else {
            ("FAILURE", "NULL".to_owned())
        };
        schema.write(&format!(
            "INSERT INTO agent_events (agent_id, deployment_object_id, event_type, status, message, success_digest, created_at)
             VALUES (agent(), named('{object}'), 'DEPLOY', '{status}', '{message}', {digest}, old({days}))"
        ));
    };
    for (message, object, days, success) in [
        ("recent failure", "new", 29, false),
        ("old failure", "new", 31, false),
        ("newest success", "new", 400, true),
        ("success before", "new", 500, true),
        ("success of what was replaced", "old", 600, true),
        ("recent success of what was replaced", "old", 29, true),
        ("success of what is deleted", "gone", 31, true),
    ] {
        event(message, object, days, success);
    }
    assert_eq!(schema.incremental(), 0);
    assert_eq!(schema.sweep("agent_events", 30), 4);
    assert_eq!(
        schema.texts("message", "agent_events"),
        [
            "newest success",
            "recent failure",
            "recent success of what was replaced"
        ]
    );
    assert_eq!(schema.incremental(), 0);
    // A deleted agent has its events marked as deleted, and gets no objects.
    schema.write("UPDATE agent_events SET deleted_at = now()");
    assert_eq!(schema.sweep("agent_events", 30), 1);
}

#[test]
fn health_of_a_replaced_object_is_deleted_when_no_agent_renews_it() {
    let schema = Schema::new("tenant_health").with_names();
    schema.populate();
    schema.write(
        "INSERT INTO deployment_health (agent_id, deployment_object_id, status, checked_at, created_at, updated_at)
         SELECT agent(), named(object), 'failing', now(), old(400), old(days)
           FROM (VALUES ('new', 400), ('old', 31), ('gone', 29)) AS said (object, days)",
    );
    assert_eq!(schema.sweep("deployment_health", 30), 1);
    let left: i64 = schema
        .ask("SELECT count(*) FROM deployment_health WHERE deployment_object_id <> named('old')");
    assert_eq!(left, 2);
}

#[test]
fn a_broker_forgets_by_itself_and_zero_keeps_for_ever() {
    let schema = Schema::new("tenant_forgets").with_names();
    schema.populate();
    schema.write(
        "INSERT INTO audit_log (actor_type, action, resource_type, created_at)
         VALUES ('system', 'ancient', 'x', old(4000));
         INSERT INTO agent_events (agent_id, deployment_object_id, event_type, status, created_at)
         VALUES (agent(), named('new'), 'DEPLOY', 'FAILURE', old(2))",
    );
    let broker = Broker::on(&schema.server)
        .schema(schema.name)
        .set("broker.agent_events_retention_days", "1")
        .set("broker.audit_log_retention_days", "0")
        .start();
    until(Duration::from_secs(30), "the old event to be gone", || {
        let left: i64 = schema.ask("SELECT count(*) FROM agent_events");
        (left == 0).then_some(())
    });
    // Every sweep removes the audit log before the events.
    let left: i64 = schema.ask("SELECT count(*) FROM audit_log WHERE action = 'ancient'");
    assert_eq!(left, 1, "{}", broker.log());
}

#[test]
fn a_locked_request_is_skipped_and_a_backlog_is_expired_in_chunks() {
    let schema = Schema::new("tenant_sweep").with_names();
    schema.populate();
    schema.write(
        "INSERT INTO diagnostic_requests (id, agent_id, deployment_object_id, status, expires_at)
         VALUES (named('r'), agent(), named('new'), 'claimed', now());
         INSERT INTO diagnostic_requests (agent_id, deployment_object_id, status, expires_at)
         SELECT agent(), named('new'), 'pending', now() FROM generate_series(1, 1500)",
    );
    let db = schema.db();
    let event_loop = event_loop();
    let sweep = |keep: Duration| {
        event_loop
            .block_on(db.run(move |conn| diagnostics::sweep(conn, keep)))
            .unwrap()
    };
    let count = |status: &str| -> i64 {
        schema.ask(&format!(
            "SELECT count(*) FROM diagnostic_requests WHERE status = '{status}'"
        ))
    };
    std::thread::scope(|scope| {
        let (locked, is_locked) = std::sync::mpsc::channel();
        let (done, is_done) = std::sync::mpsc::channel::<()>();
        let (server, name) = (&schema.server, schema.name);
        scope.spawn(move || {
            let mut client = server.client();
            let mut answering = client.transaction().unwrap();
            answering
                .batch_execute(&format!(
                    "SELECT 1 FROM {name}.diagnostic_requests WHERE id = {name}.named('r') FOR UPDATE"
                ))
                .unwrap();
            locked.send(()).unwrap();
            is_done.recv().unwrap();
        });
        is_locked.recv().unwrap();
        assert!(!sweep(DAY), "there is more");
        assert!(sweep(DAY));
        assert_eq!((count("expired"), count("claimed")), (1500, 1));
        done.send(()).unwrap();
    });
    assert!(sweep(DAY));
    assert_eq!((count("expired"), count("failed")), (1500, 1));
    assert!(!sweep(Duration::ZERO));
    assert!(sweep(Duration::ZERO));
    assert_eq!((count("expired"), count("failed")), (0, 0));
}
