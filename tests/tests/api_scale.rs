//! A hundred thousand rows in every table: no operation reads a whole table that it does not have to give, and none makes
//! more statements because there are more rows. Operations and tables that are added are covered by being in the
//! permission matrix and in a migration.
#![allow(
    dead_code,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "tests; parts of the matrix are used elsewhere"
)]

#[path = "support/explain.rs"]
mod explain;
#[path = "support/fill.rs"]
mod fill;
#[path = "api_permissions"]
mod permissions {
    pub(crate) mod fixture;
    pub(crate) mod matrix;
}
#[path = "support/world.rs"]
mod world;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use brokkr_tests::{Api, Broker, PgServer};
use explain::Work;
use fill::Filler;
use permissions::fixture::{Fixture, PRINCIPALS};
use permissions::matrix;
use serde_json::Value;
use world::World;

const ROWS: i64 = 100_000;

/// Rows that belong to the fixture's own agent, generator, stack, …
const OWN_ROWS: i64 = 40;

/// The same for both brokers.
const KEY: &str = "\"00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff\"";

/// Operations that may read a whole table, which, and why.
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
];

/// What a broker does by itself after its start.
const BACKGROUND: &str = "(background)";

/// One call of the matrix by one principal.
struct Call {
    method: &'static str,
    path: &'static str,
    body: &'static str,
    column: usize,
}

impl Call {
    /// Every call that succeeds.
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

    /// Makes it; the size of the answer.
    fn make(&self, fixture: &Fixture) -> usize {
        let api: &Api = &fixture.callers[self.column];
        let body: Option<Value> = (!self.body.is_empty())
            .then(|| serde_json::from_str(&fixture.fill(self.body)).unwrap());
        let answer = api.call(self.method, &fixture.fill(self.path), body.as_ref());
        assert!(answer.status < 300, "{}: {}", self.name(), answer.text());
        answer.body.len()
    }
}

/// Statements and size of the answer of a call that reads.
type Cost = (Vec<String>, usize);

/// What every call that reads costs. Work in the background may get between any two of its statements, so a call that
/// seems to cost more than it did is made again.
fn reads(
    server: &PgServer,
    fixture: &Fixture,
    log: &mut u64,
    before: Option<&BTreeMap<String, Cost>>,
) -> BTreeMap<String, Cost> {
    let reading = Call::all().into_iter().filter(|call| !call.changes());
    reading
        .map(|call| {
            let name = call.name();
            let enough = before.map_or(1, |before| before[&name].0.len());
            // The first authenticates and prepares.
            let size = call.make(fixture);
            let mut fewest = Vec::new();
            for attempt in 0..3 {
                let _ = Work::since(server, log);
                call.make(fixture);
                let statements = Work::since(server, log).statements;
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
    let world = World::on(&server, &[("broker.webhook_encryption_key", KEY)]);
    let mut log = 0;
    let fixture = Fixture::new(&world);
    let few = reads(&server, &fixture, &mut log, None);

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

    let many = reads(&server, &fixture, &mut log, Some(&few));
    compare(&few, &many);

    let mut seen = Seen {
        large,
        ..Seen::default()
    };
    let second = Broker::on(&server)
        .schema(&world.schema)
        .set("broker.webhook_encryption_key", KEY)
        .start();
    until_quiet(&server, &mut log, &mut seen);
    drop(second);
    let mut fixture = fixture;
    for call in Call::all() {
        let _ = Work::since(&server, &mut log);
        call.make(&fixture);
        seen.look(&call.name(), &Work::since(&server, &mut log));
        if call.changes() {
            fixture = Fixture::new(&world);
        }
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

/// No read makes more statements than with few rows, though most have more to give.
fn compare(
    few: &BTreeMap<String, (Vec<String>, usize)>,
    many: &BTreeMap<String, (Vec<String>, usize)>,
) {
    let mut grown = 0;
    let mut wrong = Vec::new();
    for (name, (before, small)) in few {
        let (after, size) = &many[name];
        if after.len() > before.len() {
            wrong.push(format!(
                "{name}: {} statements, then {}: {after:#?}",
                before.len(),
                after.len()
            ));
        }
        grown += usize::from(*size > 4 * small);
    }
    println!(
        "{} reads, of which {grown} have much more to give now",
        few.len()
    );
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(
        grown >= 15,
        "{grown} answers have grown: the rows are not where they should be"
    );
}

/// What has been looked at.
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
                let allowed = WHOLE.iter().any(|(operation, tables, _)| {
                    *operation == who && (tables.contains(&table) || tables.contains(&"*"))
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

/// Looks at what a broker does by itself: its look around, and what that finds to do.
fn until_quiet(server: &PgServer, log: &mut u64, seen: &mut Seen) {
    let mut looked = false;
    let mut quiet = 0;
    brokkr_tests::until(
        std::time::Duration::from_secs(60),
        "the look around",
        || {
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
        },
    );
}
