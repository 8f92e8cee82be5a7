//! A tenant for one test: a single broker with its own schema, on a server that all tests of a program share.

#![allow(missing_docs, reason = "names and types say it")]

pub mod served;
pub mod sockets;

use std::ops::Deref;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use postgres::types::FromSql;

use crate::{Api, Broker, PgServer, Response};
use serde_json::{Value, json};

pub use served::Served;

/// Starts or returns the server that the tests of this program share.
pub fn server() -> &'static PgServer {
    static SERVER: OnceLock<PgServer> = OnceLock::new();
    SERVER.get_or_init(PgServer::start)
}

/// Returns a number that is unique in this process.
pub fn unique() -> u32 {
    static NEXT: AtomicU32 = AtomicU32::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// A running broker with its own schema, and its admin.
pub struct World {
    pub broker: Broker,
    pub admin: Api,
    pub schema: String,
    /// The port of its server.
    port: u16,
}

/// A principal with an id and a PAK.
#[derive(Clone)]
pub struct Party {
    pub id: String,
    pub name: String,
    pub pak: String,
    pub api: Api,
}

/// Sends requests as the admin.
impl Deref for World {
    type Target = Api;

    fn deref(&self) -> &Api {
        &self.admin
    }
}

/// Sends requests with the PAK of the principal.
impl Deref for Party {
    type Target = Api;

    fn deref(&self) -> &Api {
        &self.api
    }
}

impl World {
    #[allow(clippy::new_without_default, reason = "it starts a process")]
    pub fn new() -> Self {
        Self::with(&[])
    }

    /// Starts a broker with these keys in its file, each with a TOML value.
    pub fn with(settings: &[(&str, &str)]) -> Self {
        Self::on(server(), settings)
    }

    /// Starts a broker on a server of the test's own.
    pub fn on(server: &PgServer, settings: &[(&str, &str)]) -> Self {
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
    pub fn of(server: &PgServer, broker: Broker, admin: Api, schema: String) -> Self {
        Self {
            broker,
            admin,
            schema,
            port: server.port(),
        }
    }

    /// Opens a superuser's session in this tenant's schema.
    pub fn sql(&self) -> postgres::Client {
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

    /// Runs statements in this tenant's schema.
    pub fn sql_execute(&self, statements: &str) {
        self.sql().batch_execute(statements).unwrap();
    }

    /// Returns the only value that a query finds.
    pub fn sql_value<T: for<'a> FromSql<'a>>(&self, query: &str) -> T {
        self.sql().query_one(query, &[]).unwrap().get(0)
    }

    /// Returns the first column that a query finds.
    pub fn sql_column<T: for<'a> FromSql<'a>>(&self, query: &str) -> Vec<T> {
        let rows = self.sql().query(query, &[]).unwrap();
        rows.iter().map(|row| row.get(0)).collect()
    }

    /// Makes the broker write every event, as if there were a subscriber, and copies it to `noted_events`, because the
    /// broker soon empties the outbox itself.
    pub fn note_events(&self) {
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
    pub fn anonymous(&self) -> Api {
        self.with_pak("")
    }

    pub fn agent(&self, name: &str) -> Party {
        let name = format!("{name}-{}", unique());
        let made = self.create("/agents", &json!({ "name": name, "cluster_name": "c" }));
        let pak = made["initial_pak"].as_str().unwrap().to_owned();
        Party {
            id: id(&made["agent"]),
            name,
            api: self.with_pak(&pak),
            pak,
        }
    }

    pub fn generator(&self, name: &str) -> Party {
        let name = format!("{name}-{}", unique());
        let made = self.create("/generators", &json!({ "name": name }));
        let pak = made["pak"].as_str().unwrap().to_owned();
        Party {
            id: id(&made["generator"]),
            name,
            api: self.with_pak(&pak),
            pak,
        }
    }

    /// Makes a stack of the generator and returns its id.
    pub fn stack(&self, generator: &Party) -> String {
        let name = format!("stack-{}", unique());
        let body = json!({ "name": name, "generator_id": generator.id });
        id(&generator.create("/stacks", &body))
    }

    /// Makes an object on the stack and returns it as JSON.
    pub fn object(&self, stack: &str, yaml: &str) -> Value {
        self.create(
            &format!("/stacks/{stack}/deployment-objects"),
            &json!({ "yaml_content": yaml }),
        )
    }

    pub fn register(&self, agent: &Party, generator: &Party) {
        agent.create(
            &format!("/generators/{}/register", generator.id),
            &json!({}),
        );
    }

    pub fn target(&self, agent: &Party, stack: &str) {
        let body = json!({ "agent_id": agent.id, "stack_id": stack });
        self.create(&format!("/agents/{}/targets", agent.id), &body);
    }

    pub fn label_agent(&self, agent: &Party, label: &str) {
        let body = json!({ "agent_id": agent.id, "label": label });
        self.create(&format!("/agents/{}/labels", agent.id), &body);
    }

    pub fn label_stack(&self, stack: &str, label: &str) {
        self.create(&format!("/stacks/{stack}/labels"), &json!(label));
    }

    /// Reports a status of an object as the agent.
    pub fn report(&self, agent: &Party, object: &str, status: &str) -> Response {
        agent.post(
            &format!("/agents/{}/events", agent.id),
            &event(agent, object, status),
        )
    }

    /// Returns the ids of the agent's target state, newest first.
    pub fn target_state(&self, agent: &Party, query: &str) -> Vec<String> {
        let state = agent.get_json(&format!("/agents/{}/target-state{query}", agent.id));
        ids(&state)
    }
}

pub fn event(agent: &Party, object: &str, status: &str) -> Value {
    json!({
        "agent_id": agent.id, "deployment_object_id": object,
        "event_type": "DEPLOY", "status": status, "message": "said by a test",
    })
}

pub fn id(value: &Value) -> String {
    value["id"]
        .as_str()
        .unwrap_or_else(|| panic!("no id in {value}"))
        .to_owned()
}

pub fn ids(value: &Value) -> Vec<String> {
    value
        .as_array()
        .unwrap_or_else(|| panic!("no list: {value}"))
        .iter()
        .map(id)
        .collect()
}

/// Returns the number of updates of the tenant's agents, and how many of them changed no index (HOT).
pub fn agent_updates(server: &PgServer, schema: &str) -> (i64, i64) {
    let row = server
        .client()
        .query_one(
            "SELECT n_tup_upd, n_tup_hot_upd FROM pg_stat_all_tables WHERE schemaname = $1 AND relname = 'agents'",
            &[&schema],
        )
        .unwrap();
    (row.get(0), row.get(1))
}
