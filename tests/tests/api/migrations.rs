//! A schema of any earlier version is migrated at a start and keeps the data of every table. A broker serves a newer
//! schema until the schema refuses it.

use crate::bulk_rows::Filler;
use crate::permissions::fixture::Fixture;
use crate::permissions::matrix;
use brokkr_tests::api_fixture::{World, server, unique};
use brokkr_tests::{Api, Broker, PgServer, says, until};
use std::path::Path;
use std::time::Duration;

const ROWS: i64 = 30;

/// The key of the webhooks' secrets, without which a schema that has some is refused.
const KEY: &str = "\"00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff\"";

struct Migration {
    version: i32,
    sql: String,
}

/// Returns the migrations of the repository, oldest first.
fn migrations() -> Vec<Migration> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../migrations");
    let mut all: Vec<Migration> = std::fs::read_dir(folder)
        .unwrap()
        .flatten()
        .map(|entry| {
            let name = entry.file_name().into_string().unwrap();
            let version = name.strip_prefix('V').unwrap().split("__").next().unwrap();
            Migration {
                version: version.parse().unwrap(),
                sql: std::fs::read_to_string(entry.path()).unwrap(),
            }
        })
        .collect();
    all.sort_by_key(|migration| migration.version);
    all
}

/// Returns a schema that the broker has migrated, with the broker's own record of its migrations.
fn reference(server: &PgServer) -> String {
    let world = World::on(server, &[]);
    let _ = world.broker.stop();
    world.schema
}

/// Makes a schema as the broker of that version left it: its migrations, its record of them, and the rows of its first
/// start.
fn schema_at(
    server: &PgServer,
    reference: &str,
    all: &[Migration],
    version: i32,
) -> (String, String) {
    let schema = format!("tenant_{}", unique());
    let mut client = server.client_as("brokkr", "brokkr");
    client
        .batch_execute(&format!(
            "CREATE SCHEMA {schema}; SET search_path = {schema}"
        ))
        .unwrap();
    for migration in all.iter().filter(|migration| migration.version <= version) {
        client.batch_execute(&migration.sql).unwrap();
    }
    client
        .batch_execute(&format!(
            "CREATE TABLE refinery_schema_history (LIKE {reference}.refinery_schema_history INCLUDING ALL);
             INSERT INTO refinery_schema_history
             SELECT * FROM {reference}.refinery_schema_history WHERE version <= {version}"
        ))
        .unwrap();
    let minted = Broker::on(server).run(&["generate-pak"]).ok();
    let word = |label: &str| {
        let line = minted.lines().find_map(|line| line.strip_prefix(label));
        line.unwrap().trim().to_owned()
    };
    let (pak, hash) = (word("PAK:"), word("Hash:"));
    client
        .batch_execute(&format!(
            "INSERT INTO admin_role (pak_hash) VALUES ('{hash}');
             INSERT INTO generators (name, pak_hash) VALUES ('admin-generator', '{hash}');
             INSERT INTO generators (name, is_system) VALUES ('__system__', true);
             INSERT INTO app_initialization DEFAULT VALUES"
        ))
        .unwrap();
    (schema, pak)
}

fn rows(client: &mut postgres::Client, table: &str, columns: &[String]) -> Vec<String> {
    let columns = columns.join(", ");
    let sql = format!("SELECT ROW({columns})::text FROM {table} ORDER BY 1");
    client
        .query(&sql, &[])
        .unwrap()
        .iter()
        .map(|row| row.get(0))
        .collect()
}

#[test]
fn every_earlier_version_is_brought_up_to_date_with_its_data_in_place() {
    let server = server();
    let all = migrations();
    let newest = all.last().unwrap().version;
    let reference = reference(server);
    for version in all
        .iter()
        .map(|one| one.version)
        .filter(|version| *version < newest)
    {
        let (schema, pak) = schema_at(server, &reference, &all, version);
        let mut filler = Filler::new(server.client(), &schema);
        filler.fill(ROWS);
        let tables: Vec<(String, Vec<String>)> = filler
            .tables()
            .into_iter()
            .map(|table| (table.to_owned(), filler.columns(table)))
            .collect();
        let mut client = server.client();
        client
            .batch_execute(&format!("SET search_path = {schema}"))
            .unwrap();
        let before: Vec<Vec<String>> = tables
            .iter()
            .map(|(table, columns)| rows(&mut client, table, columns))
            .collect();
        assert!(before.iter().all(|rows| rows.len() >= ROWS as usize));

        let broker = Broker::on(server)
            .schema(&schema)
            .set("broker.webhook_encryption_key", KEY)
            .start();
        for ((table, columns), before) in tables.iter().zip(&before) {
            let after = rows(&mut client, table, columns);
            assert_eq!(&after, before, "{table} from version {version}");
        }
        says(&broker.log(), &["schema is up to date"]);
        assert!(
            !broker.state_dir().join("admin.pak").exists(),
            "it has an administrator"
        );
        let admin = Api::new(broker.addr(), pak);
        works(World::of(server, broker, admin, schema));
        println!(
            "version {version}: {} tables, {ROWS} rows each",
            tables.len()
        );
    }
}

/// Checks that old and new rows can be read through every reading operation.
fn works(world: World) {
    let listed = world.get_json("/generators");
    assert!(listed.as_array().unwrap().len() as i64 > ROWS);
    let fixture = Fixture::new(&world);
    for (operation, _, _, answers) in matrix::rows() {
        let (method, path) = operation.split_once(' ').unwrap();
        if method == "GET" && answers[0] == "200" {
            world.get(&fixture.fill(path)).expect(200);
        }
    }
    assert!(world.broker.stop().success());
}

#[test]
fn a_schema_with_additive_migrations_of_a_newer_broker_is_served() {
    let world = World::new();
    let agent = world.agent("a");
    let mut client = world.sql();
    client
        .batch_execute(
            "CREATE TABLE from_the_future (id uuid PRIMARY KEY DEFAULT gen_random_uuid());
             ALTER TABLE agents ADD COLUMN mood text;
             INSERT INTO refinery_schema_history VALUES (99, 'from_the_future', now()::text, '4711')",
        )
        .unwrap();
    // The running broker goes on, because its statements name their columns.
    world.get("/agents").expect(200);
    let older = Broker::on(server()).schema(&world.schema).start();
    let api = world.admin.clone();
    let api = Api::new(older.addr(), api.pak);
    api.get(&format!("/agents/{}", agent.id)).expect(200);
    api.get("/agents").expect(200);
    let made = serde_json::json!({ "name": "another", "cluster_name": "c" });
    api.create("/agents", &made);
    assert!(older.stop().success());
}

#[test]
fn a_schema_that_needs_a_newer_broker_says_so_and_nothing_is_touched() {
    let all = migrations();
    let newest = all.last().unwrap().version;
    let reference = reference(server());
    // A schema that has all migrations known here, and a schema that this broker would have to migrate.
    for version in [newest, all[0].version] {
        let (schema, _) = schema_at(server(), &reference, &all, version);
        let mut client = server().client();
        client
            .batch_execute(&format!(
                "SET search_path = {schema};
                 INSERT INTO refinery_schema_history VALUES (99, 'from_the_future', now()::text, '4711');
                 UPDATE brokkr_meta SET min_reader_version = 99"
            ))
            .unwrap();
        let broker = Broker::on(server()).schema(&schema).spawn();
        let status = until(Duration::from_secs(20), "the broker to refuse", || {
            broker.ended()
        });
        assert_eq!(status.code(), Some(78), "{}", broker.log());
        let wanted = format!(
            "needs a broker that knows migration 99; this one knows {newest}: install a newer broker"
        );
        assert!(broker.log().contains(&wanted), "{}", broker.log());
        let versions: i64 = client
            .query_one(
                "SELECT count(*) FROM refinery_schema_history WHERE version < 99",
                &[],
            )
            .unwrap()
            .get(0);
        let known = all.iter().filter(|one| one.version <= version).count();
        assert_eq!(versions, known as i64, "nothing was migrated");
        let migrated = broker.run(&["migrate"]);
        assert_eq!(migrated.code, Some(78), "{}", migrated.stderr);
    }
}

#[test]
fn a_migration_that_was_changed_after_its_release_is_noticed() {
    let world = World::new();
    let _ = world.broker.stop();
    world.sql_execute("UPDATE refinery_schema_history SET checksum = '4711' WHERE version = 1");
    let broker = Broker::on(server()).schema(&world.schema).spawn();
    let status = until(Duration::from_secs(20), "the broker to refuse", || {
        broker.ended()
    });
    assert_eq!(status.code(), Some(78), "{}", broker.log());
    assert!(broker.log().contains("V1__foundation"), "{}", broker.log());
}

#[test]
fn migrations_only_add() {
    for migration in migrations() {
        let sql: String = migration
            .sql
            .lines()
            .filter(|line| !line.trim_start().starts_with("--"))
            .map(|line| line.to_ascii_uppercase() + "\n")
            .collect();
        for word in ["DROP TABLE", "DROP COLUMN", "RENAME", "TRUNCATE", " TYPE "] {
            assert!(!sql.contains(word), "V{:03}: {word}", migration.version);
        }
        for word in [
            "CREATE EXTENSION",
            "CREATE SCHEMA",
            "SEARCH_PATH",
            "PUBLIC.",
        ] {
            assert!(!sql.contains(word), "V{:03}: {word}", migration.version);
        }
    }
}
