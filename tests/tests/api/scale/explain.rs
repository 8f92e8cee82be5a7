//! Statements and their plans, read from the server's own log.

use brokkr_tests::PgServer;
use brokkr_tests::pg::Options;
use serde_json::Value;

/// Starts a server that logs every statement and every executed plan, also of foreign keys and triggers.
pub(crate) fn server() -> PgServer {
    PgServer::with(
        Options::new()
            .set("log_statement", "all")
            .set("shared_preload_libraries", "auto_explain")
            .set("auto_explain.log_min_duration", "0")
            .set("auto_explain.log_format", "json")
            .set("auto_explain.log_nested_statements", "on")
            .set("auto_explain.log_parameter_max_length", "0")
            .set("log_parameter_max_length", "0")
            .set("log_line_prefix", "%a| ")
            .set("shared_buffers", "256MB")
            .set("maintenance_work_mem", "256MB")
            .set("max_wal_size", "4GB")
            .set("wal_level", "minimal")
            .set("max_wal_senders", "0"),
    )
}

/// The work of the server for one or several brokers.
#[derive(Default)]
pub(crate) struct Work {
    /// Statements sent, except the `SET` of a checkout.
    pub(crate) statements: Vec<String>,
    pub(crate) plans: Vec<Value>,
}

impl Work {
    /// Reads the later log entries of brokers' sessions.
    pub(crate) fn since(server: &PgServer, read: &mut u64) -> Self {
        let mut work = Work::default();
        for entry in entries(&server.log_since(read)) {
            if !entry.starts_with("brokkr:") {
                continue;
            }
            if let Some((_, plan)) = entry.split_once(" plan:\n") {
                let plan = serde_json::from_str(plan).unwrap_or_else(|e| panic!("{e}: {plan}"));
                work.plans.push(plan);
            } else if let Some(statement) = statement(&entry)
                && !statement.contains("search_path")
            {
                work.statements.push(statement);
            }
        }
        work
    }
}

/// Returns log entries with their continuation lines, which begin with a tab.
fn entries(log: &str) -> Vec<String> {
    let mut entries: Vec<String> = Vec::new();
    for line in log.lines() {
        match (line.strip_prefix('\t'), entries.last_mut()) {
            (Some(more), Some(entry)) => {
                entry.push('\n');
                entry.push_str(more);
            }
            _ => entries.push(line.to_owned()),
        }
    }
    entries
}

fn statement(entry: &str) -> Option<String> {
    let (_, said) = entry.split_once("| LOG:  ")?;
    let text = match said.strip_prefix("execute ") {
        // The statement's name comes first.
        Some(named) => named.split_once(": ")?.1,
        None => said.strip_prefix("statement: ")?,
    };
    Some(text.split_whitespace().collect::<Vec<_>>().join(" "))
}

/// Returns the large tables that a plan reads completely, and the kind of scan.
pub(crate) fn whole_reads(plan: &Value, large: &[String]) -> Vec<String> {
    let mut found = Vec::new();
    walk(&plan["Plan"], large, false, &mut found);
    found
}

fn walk(node: &Value, large: &[String], limited: bool, found: &mut Vec<String>) {
    let kind = node["Node Type"].as_str().unwrap_or_default();
    let table = node["Relation Name"].as_str().unwrap_or_default();
    let is_large = large.iter().any(|name| name == table);
    // An index scan that stops at a limit reads only a part, and a partial index may be small.
    let rows = node["Plan Rows"].as_f64().unwrap_or_default();
    let walks =
        kind.starts_with("Index") && node.get("Index Cond").is_none() && !limited && rows > 1000.0;
    if is_large && (kind == "Seq Scan" || walks) {
        found.push(format!("{table} by {kind}"));
    }
    // Only nodes that stream their rows let a limit leave the rest unread.
    let passes_on = [
        "Limit",
        "Subquery Scan",
        "Nested Loop",
        "WindowAgg",
        "Result",
        "LockRows",
        "ProjectSet",
    ];
    let limited = kind == "Limit" || limited && passes_on.contains(&kind);
    for child in node["Plans"].as_array().into_iter().flatten() {
        walk(child, large, limited, found);
    }
}

/// Returns a plan's statement on one line.
pub(crate) fn text(plan: &Value) -> String {
    let text = plan["Query Text"].as_str().unwrap_or_default();
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}
