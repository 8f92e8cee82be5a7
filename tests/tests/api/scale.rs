//! No operation reads a whole table that it need not return, and none makes more statements because of more rows. Every
//! table has a hundred thousand rows. New operations and tables are covered through the permission matrix and the
//! migrations.

mod explain;

use crate::bulk_rows::Filler;
use crate::permissions::fixture::{Fixture, PRINCIPALS};
use crate::permissions::matrix;
use brokkr_tests::api_fixture::World;
use brokkr_tests::{Broker, Connection, PgServer};
use explain::Work;
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

const ROWS: i64 = 100_000;

/// Longest wait for an answer, on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(120);

/// Number of rows that belong to the fixture's own agent, generator, stack, …
const OWN_ROWS: i64 = 40;

/// The same key for both brokers.
const KEY: &str = "\"00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff\"";

/// The allowed reads of whole tables: an operation, or a part of a statement that several operations share; the tables;
/// the reason.
const WHOLE: &[(&str, &[&str], &str)] = &[
    (
        "GET /agents as admin",
        &["agents"],
        "the admin is given all of them",
    ),
    (
        "GET /stacks as admin",
        &["stacks"],
        "the admin is given all of them",
    ),
    (
        "GET /generators as admin",
        &["generators"],
        "the admin is given all of them",
    ),
    (
        "GET /paks as admin",
        &["agents", "generators"],
        "the admin is given all of them",
    ),
    (
        "GET /templates as admin",
        &["stack_templates"],
        "the admin is given all of them",
    ),
    (
        "GET /work-orders as admin",
        &["work_orders"],
        "the admin is given all of them",
    ),
    (
        "GET /webhooks as admin",
        &["webhook_subscriptions"],
        "the admin is given all of them",
    ),
    (
        "GET /fleet as admin",
        &["*"],
        "a record of every agent, with its figures",
    ),
    (
        BACKGROUND,
        &["agents", "stacks", "deployment_objects"],
        "the gauges count, at most every 30 s and for a hundredth of the time, while somebody scrapes",
    ),
    (
        "EXISTS (SELECT FROM webhook_subscriptions WHERE enabled)",
        &["webhook_subscriptions"],
        "ends at the first that is enabled; asked only when a subscription changes",
    ),
    (
        "WITH ready AS ( SELECT d.id, d.position, s.lane",
        &["webhook_subscriptions"],
        "every endpoint gets its turn; once for a batch of deliveries, in the background",
    ),
    (
        "DELETE FROM event_outbox",
        &["webhook_subscriptions"],
        "an event may be for any of them; once for a batch of events, in the background",
    ),
    (
        "routes (subscription_id, labels_key, target_labels)",
        &["webhook_subscriptions"],
        "any of them may have something for this agent; a subscription with nothing costs one look into an index",
    ),
];

/// The name of a broker's own work after its start.
const BACKGROUND: &str = "(background)";

/// A call of the matrix by one principal.
struct Call {
    method: &'static str,
    path: &'static str,
    body: &'static str,
    column: usize,
}

impl Call {
    /// Returns every call that succeeds.
    fn all() -> Vec<Call> {
        let mut all = Vec::new();
        for (operation, body, _, answers) in matrix::rows() {
            let (method, path) = operation.split_once(' ').unwrap();
            for (column, answer) in answers.iter().enumerate() {
                if answer.starts_with('2') {
                    all.push(Call {
                        method,
                        path,
                        body,
                        column,
                    });
                }
            }
        }
        all
    }

    fn name(&self) -> String {
        format!(
            "{} {} as {}",
            self.method, self.path, PRINCIPALS[self.column]
        )
    }

    fn changes(&self) -> bool {
        self.method != "GET" && self.path != "/auth/pak"
    }

    /// Makes the call without a time limit and returns the size of the answer.
    fn make(&self, fixture: &Fixture) -> usize {
        let api = &fixture.callers[self.column];
        let (path, body) = (fixture.fill(self.path), fixture.fill(self.body));
        let bearer = format!("Bearer {}", api.pak);
        let headers = [
            ("Authorization", bearer.as_str()),
            ("Content-Type", "application/json"),
            ("Connection", "close"),
        ];
        let body = (!body.is_empty()).then_some(body.as_bytes());
        let answer = Connection::open_within(&api.addr, PATIENCE)
            .and_then(|mut connection| {
                connection.request(self.method, &format!("/api/v1{path}"), &headers, body)
            })
            .unwrap_or_else(|e| panic!("{}: {e}", self.name()));
        assert!(answer.status < 300, "{}: {}", self.name(), answer.text());
        answer.body.len()
    }
}

/// The statements of a reading call, and the size of its answer.
type Cost = (Vec<String>, usize);

/// Returns the cost of every reading call. A call that seems to cost more than before is made again, because background
/// work may run between its statements.
fn reads(
    server: &PgServer,
    fixture: &Fixture,
    log: &mut u64,
    before: Option<&BTreeMap<String, Cost>>,
    look: &mut dyn FnMut(&str, &Work),
) -> BTreeMap<String, Cost> {
    let reading = Call::all().into_iter().filter(|call| !call.changes());
    reading
        .map(|call| {
            let name = call.name();
            let enough = before.map_or(1, |before| before[&name].0.len());
            // The first call authenticates and prepares.
            let size = call.make(fixture);
            let mut fewest = Vec::new();
            for attempt in 0..3 {
                let _ = Work::since(server, log);
                call.make(fixture);
                let work = Work::since(server, log);
                look(&name, &work);
                let mut statements = work.statements;
                // The authentication is repeated after a while with any call.
                statements.retain(|text| !text.contains("credentials_epoch FROM brokkr_meta"));
                if attempt == 0 || statements.len() < fewest.len() {
                    fewest = statements;
                }
                if fewest.len() <= enough {
                    break;
                }
            }
            (name, (fewest, size))
        })
        .collect()
}

#[test]
fn fault_56_at_a_hundred_thousand_rows_every_statement_goes_by_an_index_and_there_are_not_more_of_them()
 {
    let server = explain::server();
    let settings = [
        ("broker.webhook_encryption_key", KEY),
        ("database.acquire_timeout", "\"120s\""),
        ("database.statement_timeout", "\"120s\""),
        ("http.request_timeout", "\"120s\""),
    ];
    let world = World::on(&server, &settings);
    let mut log = 0;
    let fixture = Fixture::new(&world);
    let few = reads(&server, &fixture, &mut log, None, &mut |_, _| {});

    let began = Instant::now();
    let mut filler = Filler::new(server.client(), &world.schema);
    filler.fill(ROWS);
    let subjects: Vec<String> = fixture
        .names
        .iter()
        .map(|(_, value)| value.clone())
        .filter(|value| uuid::Uuid::parse_str(value).is_ok())
        .collect();
    filler.crowd(&subjects, OWN_ROWS);
    filler.analyze();
    let large: Vec<String> = filler.tables().into_iter().map(str::to_owned).collect();
    println!(
        "{} tables of {ROWS} rows in {:?}: {}",
        large.len(),
        began.elapsed(),
        large.join(", ")
    );

    let mut seen = Seen {
        large,
        ..Seen::default()
    };
    let many = reads(&server, &fixture, &mut log, Some(&few), &mut |who, work| {
        seen.look(who, work);
    });
    seen.wrong.extend(more_statements(&few, &many));
    let second = Broker::on(&server)
        .schema(&world.schema)
        .set("broker.webhook_encryption_key", KEY)
        .start();
    until_quiet(&server, &mut log, &mut seen);
    drop(second);
    let mut fixture = fixture;
    for call in Call::all().into_iter().filter(Call::changes) {
        let _ = Work::since(&server, &mut log);
        call.make(&fixture);
        seen.look(&call.name(), &Work::since(&server, &mut log));
        fixture = Fixture::new(&world);
    }
    println!(
        "{} plans of {} different statements",
        seen.plans,
        seen.texts.len()
    );
    assert!(seen.texts.len() > 50, "auto_explain shows nothing");
    assert!(
        seen.wrong.is_empty(),
        "\n{}",
        seen.wrong.iter().cloned().collect::<Vec<_>>().join("\n")
    );
}

/// Returns the reads that make more statements than with few rows. Most must have larger answers, otherwise the
/// comparison would show nothing.
fn more_statements(
    few: &BTreeMap<String, Cost>,
    many: &BTreeMap<String, Cost>,
) -> BTreeSet<String> {
    let grown = few
        .iter()
        .filter(|(name, (_, size))| many[*name].1 > 4 * size);
    let grown = grown.count();
    println!(
        "{} reads, of which {grown} have much more to give now",
        few.len()
    );
    assert!(
        grown >= 15,
        "{grown} answers have grown: the rows are not where they should be"
    );
    few.iter()
        .map(|(name, (before, _))| (name, before, &many[name].0))
        .filter(|(_, before, after)| after.len() > before.len())
        .map(|(name, before, after)| {
            format!(
                "{name}: {} statements, then {}: {after:#?}",
                before.len(),
                after.len()
            )
        })
        .collect()
}

/// The plans that were checked.
#[derive(Default)]
struct Seen {
    large: Vec<String>,
    plans: usize,
    texts: BTreeSet<String>,
    wrong: BTreeSet<String>,
}

impl Seen {
    fn look(&mut self, who: &str, work: &Work) {
        for plan in &work.plans {
            self.plans += 1;
            let text = explain::text(plan);
            for read in explain::whole_reads(plan, &self.large) {
                let table = read.split(' ').next().unwrap();
                let allowed = WHOLE.iter().any(|(may, tables, _)| {
                    (*may == who || text.contains(may))
                        && (tables.contains(&table) || tables.contains(&"*"))
                });
                if !allowed {
                    self.wrong
                        .insert(format!("{who} reads all of {read}: {text}"));
                }
            }
            self.texts.insert(text);
        }
    }
}

/// Checks the broker's own work after its start until there is no more of it.
fn until_quiet(server: &PgServer, log: &mut u64, seen: &mut Seen) {
    let mut looked = false;
    let mut quiet = 0;
    brokkr_tests::until(Duration::from_secs(120), "the look around", || {
        let work = Work::since(server, log);
        looked |= work
            .statements
            .iter()
            .any(|text| text.contains("audit_log_age"));
        quiet = if work.statements.is_empty() {
            quiet + 1
        } else {
            0
        };
        seen.look(BACKGROUND, &work);
        (looked && quiet > 50).then_some(())
    });
}
