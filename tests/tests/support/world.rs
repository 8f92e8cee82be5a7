//! A tenant for one test: a single broker with its own schema, on a server that all tests of a file share.
#![allow(
    dead_code,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "each test file uses its part of it; a test that cannot go on says why and ends"
)]

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use brokkr_tests::{Api, Broker, PgServer, Response};
use serde_json::{Value, json};

/// Returns the server of this file's tests.
pub(crate) fn server() -> &'static PgServer {
    static SERVER: OnceLock<PgServer> = OnceLock::new();
    SERVER.get_or_init(PgServer::start)
}

/// Returns a number that is unique in this process.
pub(crate) fn unique() -> u32 {
    static NEXT: AtomicU32 = AtomicU32::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// A running broker with its own schema.
pub(crate) struct World {
    pub(crate) broker: Broker,
    pub(crate) admin: Api,
    pub(crate) schema: String,
    /// The port of its server.
    port: u16,
}

/// A principal with an id and a PAK.
#[derive(Clone)]
pub(crate) struct Party {
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) pak: String,
    pub(crate) api: Api,
}

impl World {
    pub(crate) fn new() -> Self {
        Self::with(&[])
    }

    /// Starts a broker with these keys in its file, each with a TOML value.
    pub(crate) fn with(settings: &[(&str, &str)]) -> Self {
        Self::on(server(), settings)
    }

    /// Starts a broker on a server of the test's own.
    pub(crate) fn on(server: &PgServer, settings: &[(&str, &str)]) -> Self {
        let schema = format!("tenant_{}", unique());
        let mut draft = Broker::on(server).schema(&schema);
        for (key, toml) in settings {
            draft = draft.set(key, toml);
        }
        let broker = draft.start();
        let admin = broker.api();
        Self::of(server, broker, admin, schema)
    }

    /// Wraps a running broker.
    pub(crate) fn of(server: &PgServer, broker: Broker, admin: Api, schema: String) -> Self {
        Self {
            broker,
            admin,
            schema,
            port: server.port(),
        }
    }

    /// Opens a superuser's session in this tenant's schema.
    pub(crate) fn sql(&self) -> postgres::Client {
        let mut client = postgres::Config::new()
            .host("127.0.0.1")
            .port(self.port)
            .user("postgres")
            .dbname("brokkr")
            .application_name("a person")
            .connect(postgres::NoTls)
            .unwrap();
        client
            .batch_execute(&format!("SET search_path = {}", self.schema))
            .unwrap();
        client
    }

    /// Makes the broker write every event, as if there were a subscriber, and copies it to `noted_events`, because the
    /// broker soon empties the outbox itself.
    pub(crate) fn note_events(&self) {
        self.sql()
            .batch_execute(
                "CREATE TABLE noted_events (LIKE event_outbox INCLUDING DEFAULTS);
                 CREATE FUNCTION note_event() RETURNS trigger LANGUAGE plpgsql AS $$
                 BEGIN
                     INSERT INTO noted_events (id, event_type, data, created_at)
                     VALUES (NEW.id, NEW.event_type, NEW.data, NEW.created_at);
                     RETURN NEW;
                 END $$;
                 CREATE TRIGGER note_event AFTER INSERT ON event_outbox FOR EACH ROW EXECUTE FUNCTION note_event();
                 GRANT ALL ON noted_events TO PUBLIC;
                 UPDATE brokkr_meta SET wants_events = true",
            )
            .unwrap();
    }

    /// Returns a client without a PAK.
    pub(crate) fn nobody(&self) -> Api {
        self.admin.with_pak("")
    }

    pub(crate) fn agent(&self, name: &str) -> Party {
        let name = format!("{name}-{}", unique());
        let made = self
            .admin
            .post("/agents", &json!({ "name": name, "cluster_name": "c" }))
            .expect(201)
            .json();
        let pak = made["initial_pak"].as_str().unwrap().to_owned();
        Party {
            id: id(&made["agent"]),
            name,
            api: self.admin.with_pak(&pak),
            pak,
        }
    }

    pub(crate) fn generator(&self, name: &str) -> Party {
        let name = format!("{name}-{}", unique());
        let made = self
            .admin
            .post("/generators", &json!({ "name": name }))
            .expect(201)
            .json();
        let pak = made["pak"].as_str().unwrap().to_owned();
        Party {
            id: id(&made["generator"]),
            name,
            api: self.admin.with_pak(&pak),
            pak,
        }
    }

    /// Makes a stack of the generator and returns its id.
    pub(crate) fn stack(&self, generator: &Party) -> String {
        let name = format!("stack-{}", unique());
        let body = json!({ "name": name, "generator_id": generator.id });
        id(&generator.api.post("/stacks", &body).expect(201).json())
    }

    /// Makes an object on the stack and returns it as JSON.
    pub(crate) fn object(&self, stack: &str, yaml: &str) -> Value {
        self.admin
            .post(
                &format!("/stacks/{stack}/deployment-objects"),
                &json!({ "yaml_content": yaml }),
            )
            .expect(201)
            .json()
    }

    pub(crate) fn register(&self, agent: &Party, generator: &Party) {
        let _ = agent
            .api
            .post(
                &format!("/generators/{}/register", generator.id),
                &json!({}),
            )
            .expect(201);
    }

    pub(crate) fn target(&self, agent: &Party, stack: &str) {
        let body = json!({ "agent_id": agent.id, "stack_id": stack });
        let _ = self
            .admin
            .post(&format!("/agents/{}/targets", agent.id), &body)
            .expect(201);
    }

    pub(crate) fn label_agent(&self, agent: &Party, label: &str) {
        let body = json!({ "agent_id": agent.id, "label": label });
        let _ = self
            .admin
            .post(&format!("/agents/{}/labels", agent.id), &body)
            .expect(201);
    }

    pub(crate) fn label_stack(&self, stack: &str, label: &str) {
        let _ = self
            .admin
            .post(&format!("/stacks/{stack}/labels"), &json!(label))
            .expect(201);
    }

    /// Reports a status of an object as the agent.
    pub(crate) fn report(&self, agent: &Party, object: &str, status: &str) -> Response {
        agent.api.post(
            &format!("/agents/{}/events", agent.id),
            &event(agent, object, status),
        )
    }

    /// Returns the ids of the agent's target state, newest first.
    pub(crate) fn target_state(&self, agent: &Party, query: &str) -> Vec<String> {
        let state = agent
            .api
            .get(&format!("/agents/{}/target-state{query}", agent.id))
            .expect(200)
            .json();
        ids(&state)
    }
}

pub(crate) fn event(agent: &Party, object: &str, status: &str) -> Value {
    json!({
        "agent_id": agent.id, "deployment_object_id": object,
        "event_type": "DEPLOY", "status": status, "message": "said by a test",
    })
}

pub(crate) fn id(value: &Value) -> String {
    value["id"]
        .as_str()
        .unwrap_or_else(|| panic!("no id in {value}"))
        .to_owned()
}

pub(crate) fn ids(value: &Value) -> Vec<String> {
    value
        .as_array()
        .unwrap_or_else(|| panic!("no list: {value}"))
        .iter()
        .map(id)
        .collect()
}

/// Checks an error answer: status, code, JSON, and a message. Returns its `details`.
#[track_caller]
pub(crate) fn refused(response: &Response, status: u16, code: &str) -> Value {
    assert_eq!(response.status, status, "{}", response.text());
    assert_eq!(
        response.header("content-type"),
        Some("application/json"),
        "{}",
        response.text()
    );
    let body = response.json();
    assert_eq!(body["code"], code, "{body}");
    assert!(
        body["message"]
            .as_str()
            .is_some_and(|text| !text.is_empty()),
        "{body}"
    );
    body["details"].clone()
}

/// Returns the number of updates of the tenant's agents, and how many of them changed no index (HOT).
pub(crate) fn agent_updates(server: &PgServer, schema: &str) -> (i64, i64) {
    let row = server
        .client()
        .query_one(
            "SELECT n_tup_upd, n_tup_hot_upd FROM pg_stat_all_tables WHERE schemaname = $1 AND relname = 'agents'",
            &[&schema],
        )
        .unwrap();
    (row.get(0), row.get(1))
}
