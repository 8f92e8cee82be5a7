//! Prints the sums of `check`, server by server.

use super::runs_on::RunsOn;
use crate::budget::{COMMAND, Decision, OWN, REPLACEMENT, Shortage, Verdict};
use crate::config::TenantConfig;
use crate::fleet::core::TenantSettings;
use crate::servers::ServersView;
use brokkr_tenant::TenantName;
use comfy_table::{CellAlignment, Table, presets};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;

/// Data that the tables show.
pub(super) struct Sums<'c> {
    pub(super) wanted: &'c BTreeMap<TenantName, Arc<TenantConfig>>,
    pub(super) idle: &'c BTreeMap<TenantName, &'static str>,
    pub(super) runs_on: &'c RunsOn,
    pub(super) verdicts: &'c BTreeMap<TenantName, String>,
    pub(super) view: &'c ServersView,
    pub(super) verdict: &'c Verdict,
    pub(super) headroom: u32,
}

pub(super) fn render(sums: &Sums<'_>) -> String {
    let mut text = String::new();
    let mut groups: BTreeMap<String, Vec<&TenantName>> = BTreeMap::new();
    for (tenant, config) in sums.wanted {
        // If a tenant's server cannot be asked, its admission names the server.
        let admitted = sums.verdict.admitted.iter().find(|a| a.tenant == *tenant);
        let place = config
            .endpoint(sums.view)
            .place()
            .map(|place| &place.server);
        let server = place.or(admitted.and_then(|admission| admission.server.as_ref()));
        let group = server.map_or_else(|| config.url().address(), ToString::to_string);
        groups.entry(group).or_default().push(tenant);
    }
    for admission in sums.runs_on.counted.values() {
        let server = admission.server.iter().map(ToString::to_string);
        server.for_each(|server| {
            groups.entry(server).or_default();
        });
    }
    for (group, tenants) in groups {
        one_server(sums, &group, &tenants, &mut text);
    }
    for (tenant, why) in sums.idle {
        // Writing to a string cannot fail, here and below.
        let _ = writeln!(text, "{tenant}: {why}; it counts nothing");
    }
    for tenant in sums.runs_on.counted.keys() {
        let _ = writeln!(
            text,
            "{tenant}: its file is bad; it runs on with what it had, and that is counted"
        );
    }
    for (tenant, why) in &sums.runs_on.uncounted {
        let _ = writeln!(text, "{tenant}: its file is bad; {why}");
    }
    text
}

fn one_server(sums: &Sums<'_>, group: &str, tenants: &[&TenantName], text: &mut String) {
    let server = sums
        .view
        .servers
        .iter()
        .find(|(id, _)| id.as_str() == group);
    let _ = match server.map(|(_, server)| server) {
        Some(server) if !server.version.is_empty() => {
            writeln!(text, "server {group} (PostgreSQL {})", server.version)
        }
        _ => writeln!(text, "server {group}"),
    };
    let mut table = new_table();
    table.set_header([
        "tenant", "pool", "role", "database", "schema", "listen", "verdict",
    ]);
    // Sort tenants in the order of judgement: admitted tenants first, oldest first, then the others.
    let place = |tenant: &TenantName| {
        sums.verdict
            .admitted
            .iter()
            .position(|a| a.tenant == *tenant)
            .unwrap_or(usize::MAX)
    };
    let mut tenants = tenants.to_vec();
    tenants.sort_by_key(|tenant| (place(tenant), *tenant));
    let mut pools: u32 = 0;
    for tenant in &tenants {
        let Some(config) = sums.wanted.get(*tenant) else {
            continue;
        };
        let broker = config.broker();
        let pool = broker.database.pool_size.get();
        // A tenant that is refused for its schema or address asks nothing of the budget.
        if !matches!(
            sums.verdict.tenants.get(*tenant),
            None | Some(Decision::Nothing)
        ) {
            pools = pools.saturating_add(pool);
        }
        let place = config.place(sums.view);
        let role = place.filter(|_| config.has_own_role());
        table.add_row([
            tenant.as_str(),
            &pool.to_string(),
            role.as_ref()
                .map_or(config.url().user(), |place| &place.role),
            broker.database.url.dbname(),
            broker.database.schema.as_str(),
            &broker.http.listen.to_string(),
            sums.verdicts.get(*tenant).map_or("", String::as_str),
        ]);
    }
    for admission in sums.runs_on.counted.values() {
        if admission
            .server
            .as_ref()
            .is_none_or(|s| s.as_str() != group)
        {
            continue;
        }
        let schema_and_address = admission.schema_and_address.as_ref();
        table.add_row([
            admission.tenant.as_str(),
            &admission.pool.to_string(),
            "-",
            "-",
            schema_and_address.map_or("-", |wanted| wanted.schema.as_str()),
            &schema_and_address.map_or("-".to_owned(), |wanted| wanted.listen.to_string()),
            "runs on: its file is bad",
        ]);
    }
    push(text, table);

    let mut table = new_table();
    let account = sums.verdict.servers.iter();
    let mut account = account.filter(|(id, _)| id.as_str() == group);
    let account = account.next().map(|(_, account)| account);
    // Use the verdict's sum, because the advice below is based on it; a server that was never seen has none.
    let pools = account.map_or(pools, |account| account.pools);
    let own = server.map_or(OWN, |(_, server)| server.facts.own_connections());
    let extra = REPLACEMENT + own + COMMAND;
    let demand = pools.saturating_add(extra);
    let mut row = |what: &str, number: String| {
        table.add_row([what, number.as_str()]);
    };
    row("pools", pools.to_string());
    row("+ a replacement instance", REPLACEMENT.to_string());
    row("+ the supervisor", own.to_string());
    row("+ a brokkr-broker command", COMMAND.to_string());
    row("= demand", demand.to_string());
    if let Some((_, server)) = server {
        let facts = &server.facts;
        row("max_connections", facts.max_connections.to_string());
        row(
            "- superuser_reserved_connections",
            facts.superuser_reserved.to_string(),
        );
        row("- reserved_connections", facts.reserved.to_string());
        let kept = sums.headroom.max(facts.foreign);
        let what = if facts.foreign > sums.headroom {
            format!(
                "- connections that are not ours, now (headroom is {})",
                sums.headroom
            )
        } else {
            format!(
                "- headroom ({} connections are not ours, now)",
                facts.foreign
            )
        };
        row(&what, kept.to_string());
        let capacity = facts.capacity(sums.headroom);
        row("= capacity", capacity.to_string());
        let free = i64::from(capacity) - i64::from(demand);
        row(
            if free < 0 { "missing" } else { "free" },
            free.abs().to_string(),
        );
    }
    push(text, table);

    let mut advice: Vec<String> = Vec::new();
    let shrunk = account.is_some_and(|account| {
        account
            .capacity
            .is_some_and(|capacity| account.committed > capacity)
    });
    if shrunk {
        advice.push(
            "more is admitted than the server has by now: no other tenant is admitted".to_owned(),
        );
    }
    for shortage in tenants
        .iter()
        .filter_map(|tenant| shortage(sums.verdict, tenant))
    {
        let line = format!("{}: {}", shortage.scope, shortage.advice());
        if !advice.contains(&line) {
            advice.push(line);
        }
    }
    match (server, advice.is_empty()) {
        (Some(_), true) => text.push_str("  all pools fit\n"),
        (None, _) => text.push_str("  not asked: its max_connections is not known\n"),
        (Some(_), false) => {
            for line in advice {
                let _ = writeln!(text, "  {line}");
            }
        }
    }
    text.push('\n');
}

fn shortage<'v>(verdict: &'v Verdict, tenant: &TenantName) -> Option<&'v Shortage> {
    match verdict.tenants.get(tenant)? {
        Decision::Refused(shortage) | Decision::Keep(shortage) => Some(shortage),
        _ => None,
    }
}

fn new_table() -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table
}

/// Appends the table, with the numbers of its second column to the right.
fn push(text: &mut String, mut table: Table) {
    if let Some(column) = table.column_mut(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    for line in table.to_string().lines() {
        let _ = writeln!(text, " {}", line.trim_end());
    }
}
