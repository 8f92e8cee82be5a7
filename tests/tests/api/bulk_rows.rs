//! Rows for every table of a schema, generated from the catalog. A table of a later migration is filled without a
//! change here, unless one of its rules cannot be read from the catalog; see [`SPECIAL`].

use postgres::Client;

/// Tables with a single row or no row of the tenant, and the event queue, which the broker empties as it fills.
const LEFT_ALONE: &[&str] = &[
    "refinery_schema_history",
    "brokkr_meta",
    "brokkr_lock",
    "app_initialization",
    "admin_role",
    "event_outbox",
];

/// Values for columns whose rules cannot be read from the catalog: table, column, expression over the row's number `n`.
const SPECIAL: &[(&str, &str, &str)] = &[
    // Delivered by agents, because the broker would deliver rows without labels.
    ("webhook_subscriptions", "target_labels", "ARRAY['x' || n]"),
    ("webhook_deliveries", "target_labels", "ARRAY['x' || n]"),
    // Within the hours of retention.
    (
        "agent_k8s_events",
        "created_at",
        "now() - n * interval '100 ms'",
    ),
    (
        "agent_pod_logs",
        "created_at",
        "now() - n * interval '100 ms'",
    ),
];

struct Table {
    name: String,
    columns: Vec<Column>,
    keys: Vec<ForeignKey>,
}

struct Column {
    name: String,
    kind: String,
    /// The largest number of characters of a bounded text.
    length: Option<i32>,
    required: bool,
    has_default: bool,
    /// The words that a check constraint allows.
    words: Vec<String>,
}

struct ForeignKey {
    parent: String,
    /// Pairs of the table's column and the parent's column.
    columns: Vec<(String, String)>,
}

/// A session that fills one schema.
pub(crate) struct Filler {
    client: Client,
    tables: Vec<Table>,
}

impl Filler {
    pub(crate) fn new(mut client: Client, schema: &str) -> Self {
        // Skip triggers and foreign key checks, because the many rows are right by construction.
        client
            .batch_execute(&format!(
                "SET search_path = {schema}; SET session_replication_role = replica"
            ))
            .unwrap();
        let mut tables = read_tables(&mut client, schema);
        imply_keys(&mut tables);
        let tables = in_order(tables);
        Filler { client, tables }
    }

    pub(crate) fn tables(&self) -> Vec<&str> {
        self.tables
            .iter()
            .map(|table| table.name.as_str())
            .collect()
    }

    pub(crate) fn columns(&self, table: &str) -> Vec<String> {
        let found = self.tables.iter().find(|one| one.name == table).unwrap();
        found
            .columns
            .iter()
            .map(|column| column.name.clone())
            .collect()
    }

    /// Adds this many rows to every table. Row n refers to row n of each parent, so references are spread evenly.
    pub(crate) fn fill(&mut self, rows: i64) {
        for table in &self.tables {
            let before: i64 = self
                .client
                .query_one(&format!("SELECT count(*) FROM {}", table.name), &[])
                .unwrap()
                .get(0);
            let joins: String = table
                .keys
                .iter()
                .enumerate()
                .map(|(index, key)| format!(" JOIN numbered_{} AS p{index} USING (n)", key.parent))
                .collect();
            let from = format!("FROM generate_series(1, {rows}) AS g(n){joins}");
            run(&mut self.client, &table.insert(&from, ""));
            let is_parent = self
                .tables
                .iter()
                .flat_map(|other| &other.keys)
                .any(|key| key.parent == table.name);
            if is_parent {
                let numbered = format!(
                    "CREATE TEMP TABLE numbered_{0} AS \
                     SELECT row_number() OVER (ORDER BY ctid) - {before} AS n, * FROM {0}; \
                     DELETE FROM numbered_{0} WHERE n < 1; CREATE INDEX ON numbered_{0} (n); ANALYZE numbered_{0}",
                    table.name
                );
                run(&mut self.client, &numbered);
            }
        }
    }

    /// Adds rows that refer to these subjects, which are ids of any tables. For each reference of a table a few rows
    /// refer to the subject; their other references lead to rows of [`Filler::fill`]. Call it after that.
    pub(crate) fn crowd(&mut self, subjects: &[String], rows: i64) {
        let ids = subjects
            .iter()
            .map(|id| format!("'{id}'"))
            .collect::<Vec<_>>()
            .join(", ");
        for table in &self.tables {
            for (fixed, key) in table.keys.iter().enumerate() {
                let joins: String = table
                    .keys
                    .iter()
                    .enumerate()
                    .map(|(index, other)| {
                        if index == fixed {
                            format!(
                                " JOIN (SELECT * FROM {} WHERE id IN ({ids})) AS p{index} ON true",
                                key.parent
                            )
                        } else {
                            format!(" JOIN numbered_{} AS p{index} USING (n)", other.parent)
                        }
                    })
                    .collect();
                let from = format!("FROM generate_series(1, {rows}) AS g(n){joins}");
                let mark = format!("c{fixed}-");
                // An existing pair serves as well.
                let insert = table.insert(&from, &mark);
                run(
                    &mut self.client,
                    &format!("{insert} ON CONFLICT DO NOTHING"),
                );
            }
        }
    }

    /// Updates the planner's statistics, as the server does by itself after a while.
    pub(crate) fn analyze(&mut self) {
        for table in &self.tables {
            run(&mut self.client, &format!("VACUUM ANALYZE {}", table.name));
        }
    }
}

impl Table {
    /// Returns a statement that inserts rows; `mark` keeps its texts unique.
    fn insert(&self, from: &str, mark: &str) -> String {
        let mut names = Vec::new();
        let mut values = Vec::new();
        for column in &self.columns {
            let referring = self.keys.iter().enumerate().find_map(|(index, key)| {
                let (_, theirs) = key.columns.iter().find(|(ours, _)| *ours == column.name)?;
                Some(format!("p{index}.{theirs}"))
            });
            let special = SPECIAL
                .iter()
                .find(|(table, name, _)| *table == self.name && *name == column.name)
                .map(|(_, _, value)| (*value).to_owned());
            let value = special.or(referring).or_else(|| column.value(mark));
            if let Some(value) = value {
                names.push(column.name.as_str());
                values.push(value);
            }
        }
        format!(
            "INSERT INTO {} ({}) SELECT {} {from}",
            self.name,
            names.join(", "),
            values.join(", ")
        )
    }
}

impl Column {
    /// Returns the expression of row `n`'s value; `None` leaves the default or null.
    fn value(&self, mark: &str) -> Option<String> {
        // Times differ between rows, also where the column has a default.
        let is_time = self.kind == "timestamptz";
        if !self.required || self.has_default && !is_time {
            return None;
        }
        if !self.words.is_empty() {
            let words = self.words.join("', '");
            return Some(format!("(ARRAY['{words}'])[1 + n % {}]", self.words.len()));
        }
        let ahead = ["expire", "until", "next", "due"];
        Some(match self.kind.as_str() {
            "timestamptz" if ahead.iter().any(|word| self.name.contains(word)) => {
                "now() + interval '1 day' + n * interval '1 second'".to_owned()
            }
            "timestamptz" => "now() - n * interval '1 second'".to_owned(),
            "text" | "varchar" | "bpchar" => match self.length {
                Some(length) if length < 12 => format!("left(n::text, {length})"),
                _ => format!("'{mark}x' || n"),
            },
            "uuid" => "gen_random_uuid()".to_owned(),
            "bool" => "false".to_owned(),
            "int2" | "int4" | "int8" | "numeric" | "float4" | "float8" => "n".to_owned(),
            "json" | "jsonb" => "'{}'".to_owned(),
            "bytea" => "decode(md5(n::text), 'hex')".to_owned(),
            kind if kind.starts_with('_') => "'{}'".to_owned(),
            kind => panic!(
                "{}: no value for type {kind}; add one to fill.rs",
                self.name
            ),
        })
    }
}

fn run(client: &mut Client, statements: &str) {
    client.batch_execute(statements).unwrap_or_else(|error| {
        panic!("{statements}: {error:?}; perhaps it needs a line in SPECIAL of fill.rs")
    });
}

fn read_tables(client: &mut Client, schema: &str) -> Vec<Table> {
    let names = client
        .query(
            "SELECT tablename::text FROM pg_tables WHERE schemaname = $1 ORDER BY 1",
            &[&schema],
        )
        .unwrap();
    names
        .iter()
        .map(|row| row.get::<_, String>(0))
        .filter(|name| !LEFT_ALONE.contains(&name.as_str()))
        .map(|name| Table {
            columns: read_columns(client, &name),
            keys: read_keys(client, &name),
            name,
        })
        .collect()
}

fn read_columns(client: &mut Client, table: &str) -> Vec<Column> {
    let words: Vec<(String, String)> = client
        .query(
            "SELECT a.attname::text, pg_get_constraintdef(c.oid) FROM pg_constraint c
               JOIN pg_attribute a ON a.attrelid = c.conrelid AND a.attnum = c.conkey[1]
              WHERE c.conrelid = $1::text::regclass AND c.contype = 'c' AND cardinality(c.conkey) = 1",
            &[&table],
        )
        .unwrap()
        .iter()
        .map(|row| (row.get(0), row.get(1)))
        .collect();
    let columns = client
        .query(
            "SELECT a.attname::text, t.typname::text, CASE WHEN a.atttypmod > 4 THEN a.atttypmod - 4 END, a.attnotnull,
                    a.atthasdef OR a.attidentity <> ''
               FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid
              WHERE a.attrelid = $1::text::regclass AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = ''
              ORDER BY a.attnum",
            &[&table],
        )
        .unwrap();
    columns
        .iter()
        .map(|row| {
            let name: String = row.get(0);
            let check = words
                .iter()
                .find(|(column, check)| *column == name && check.contains("ANY"));
            Column {
                words: check.map(|(_, check)| quoted(check)).unwrap_or_default(),
                kind: row.get(1),
                length: row.get(2),
                required: row.get(3),
                has_default: row.get(4),
                name,
            }
        })
        .collect()
}

/// Returns the words between single quotes.
fn quoted(text: &str) -> Vec<String> {
    text.split('\'')
        .skip(1)
        .step_by(2)
        .map(str::to_owned)
        .collect()
}

fn read_keys(client: &mut Client, table: &str) -> Vec<ForeignKey> {
    let keys = client
        .query(
            "SELECT c.confrelid::regclass::text,
                    ARRAY(SELECT a.attname::text FROM unnest(c.conkey) WITH ORDINALITY AS k(number, at)
                            JOIN pg_attribute a ON a.attrelid = c.conrelid AND a.attnum = k.number ORDER BY k.at),
                    ARRAY(SELECT a.attname::text FROM unnest(c.confkey) WITH ORDINALITY AS k(number, at)
                            JOIN pg_attribute a ON a.attrelid = c.confrelid AND a.attnum = k.number ORDER BY k.at)
               FROM pg_constraint c WHERE c.conrelid = $1::text::regclass AND c.contype = 'f' ORDER BY c.conname",
            &[&table],
        )
        .unwrap();
    keys.iter()
        .map(|row| {
            let (ours, theirs): (Vec<String>, Vec<String>) = (row.get(1), row.get(2));
            ForeignKey {
                parent: row.get(0),
                columns: ours.into_iter().zip(theirs).collect(),
            }
        })
        // A table that refers to itself has no rows to refer to yet.
        .filter(|key| key.parent != table)
        .collect()
}

/// Treats `stack_id` as a reference to `stacks`, also where the schema has no foreign key.
fn imply_keys(tables: &mut [Table]) {
    let names: Vec<String> = tables.iter().map(|table| table.name.clone()).collect();
    for table in tables {
        for column in &table.columns {
            let parent = column
                .name
                .strip_suffix("_id")
                .map(|name| format!("{name}s"));
            let Some(parent) = parent.filter(|parent| names.contains(parent)) else {
                continue;
            };
            let declared = table
                .keys
                .iter()
                .any(|key| key.columns.iter().any(|(ours, _)| *ours == column.name));
            if column.required && !declared && parent != table.name {
                table.keys.push(ForeignKey {
                    parent,
                    columns: vec![(column.name.clone(), "id".to_owned())],
                });
            }
        }
    }
}

/// Sorts parents before children.
fn in_order(mut tables: Vec<Table>) -> Vec<Table> {
    let mut ordered: Vec<Table> = Vec::new();
    while !tables.is_empty() {
        let ready = tables.iter().position(|table| {
            table
                .keys
                .iter()
                .all(|key| ordered.iter().any(|done| done.name == key.parent))
        });
        let ready = ready.expect("tables that refer to each other");
        ordered.push(tables.remove(ready));
    }
    ordered
}
