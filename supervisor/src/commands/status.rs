//! The command `status`.

use super::client::{ControlClient, parse};
use super::{Failure, harmless, say};
use crate::cli::{Status, StatusFormat};
use crate::status::{Snapshot, TenantStatus};
use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
use std::io::{IsTerminal, stdout};

pub(super) fn status(client: &ControlClient, options: &Status) -> Result<(), Failure> {
    let mut path = "/v1/status".to_owned();
    if let Some(tenant) = &options.tenant {
        path = format!("{path}?tenant={tenant}");
    }
    if !options.watch {
        let answer = client.get(&path)?;
        return show(options, &answer);
    }
    path.push_str(if options.tenant.is_some() {
        "&watch=1"
    } else {
        "?watch=1"
    });
    let mut partial = Vec::new();
    client.stream(&path, |piece| {
        partial.extend_from_slice(piece);
        // Show only the latest snapshot.
        let Some(end) = memchr::memrchr(b'\n', &partial) else {
            return Ok(());
        };
        let lines: Vec<u8> = partial.drain(..=end).collect();
        let latest = lines[..end]
            .rsplit(|byte| *byte == b'\n')
            .next()
            .unwrap_or_default();
        if options.format == StatusFormat::Table && stdout().is_terminal() {
            say(b"\x1b[H\x1b[2J")?;
        }
        show(options, latest)
    })
}

fn show(options: &Status, answer: &[u8]) -> Result<(), Failure> {
    let snapshot: Snapshot = parse(answer)?;
    match (options.format, &options.tenant) {
        (StatusFormat::Json, _) => {
            say(answer)?;
            say(b"\n")
        }
        (StatusFormat::Table, Some(name)) => {
            let tenant = snapshot
                .tenants
                .iter()
                .find(|tenant| tenant.name == name.as_str());
            match tenant {
                Some(tenant) => say(details(tenant, &snapshot).as_bytes()),
                None => say(format!("tenant {name} has gone\n").as_bytes()),
            }
        }
        (StatusFormat::Table, None) => say(overview(&snapshot).as_bytes()),
    }
}

/// Formats one line per tenant, then one per server, then the notices.
fn overview(snapshot: &Snapshot) -> String {
    let mut text = String::new();
    if snapshot.tenants.is_empty() {
        text.push_str("no tenants: put a file into tenants_dir\n");
    } else {
        let mut tenants = table(&[
            "NAME", "STATE", "PID", "UPTIME", "RESTARTS", "LISTEN", "SCHEMA", "POOL", "SERVER",
            "REASON",
        ]);
        for tenant in &snapshot.tenants {
            tenants.add_row(vec![
                harmless(&tenant.name),
                tenant.state.to_string(),
                known(tenant.pid),
                tenant.uptime_s.map_or_else(dash, duration),
                tenant.restarts.to_string(),
                known(tenant.listen.as_deref().map(harmless)),
                known(tenant.schema.as_deref().map(harmless)),
                known(tenant.pool_size),
                known(tenant.server.as_deref().map(harmless)),
                reason(tenant),
            ]);
        }
        right(&mut tenants, &[2, 3, 4, 7]);
        text.push_str(&lines(&tenants));
    }
    if !snapshot.servers.is_empty() {
        text.push('\n');
        text.push_str(&servers(snapshot));
    }
    for notice in &snapshot.notices {
        text.push_str(&format!("\nnotice: {}\n", harmless(notice)));
    }
    text
}

fn servers(snapshot: &Snapshot) -> String {
    let mut servers = table(&[
        "SERVER",
        "UP",
        "MAX",
        "RESERVED",
        "HEADROOM",
        "CAPACITY",
        "COMMITTED",
        "IN USE",
        "REASON",
    ]);
    for server in &snapshot.servers {
        servers.add_row(vec![
            harmless(&server.id),
            if server.up { "yes" } else { "no" }.to_owned(),
            known(server.max_connections),
            known(server.reserved),
            known(server.headroom),
            known(server.capacity),
            server.committed.to_string(),
            known(server.in_use),
            server.reason.as_deref().map(harmless).unwrap_or_default(),
        ]);
    }
    right(&mut servers, &[2, 3, 4, 5, 6, 7]);
    lines(&servers)
}

fn details(tenant: &TenantStatus, snapshot: &Snapshot) -> String {
    let mut text = String::new();
    let mut line = |name: &str, value: Option<String>| {
        if let Some(value) = value {
            text.push_str(&format!("{name:<10} {value}\n"));
        }
    };
    let of = |value: &Option<String>| value.as_deref().map(harmless);
    line("tenant", Some(harmless(&tenant.name)));
    line("state", Some(tenant.state.to_string()));
    line("reason", of(&tenant.reason));
    line("pending", of(&tenant.pending));
    line(
        "next try",
        tenant
            .next_try_s
            .map(|seconds| format!("in {}", duration(seconds))),
    );
    line("pid", tenant.pid.map(|pid| pid.to_string()));
    line(
        "uid",
        tenant.uid.map(|uid| match tenant.own_uid {
            Some(false) => format!("{uid}, the supervisor's and every tenant's"),
            _ => uid.to_string(),
        }),
    );
    line("uptime", tenant.uptime_s.map(duration));
    line("restarts", Some(tenant.restarts.to_string()));
    line("last exit", of(&tenant.last_exit));
    line("listen", of(&tenant.listen));
    line("schema", of(&tenant.schema));
    let role = of(&tenant.role).map(|role| match of(&tenant.role_note) {
        Some(note) => format!("{role} ({note})"),
        None => role,
    });
    line("role", role);
    line(
        "pool",
        tenant
            .pool_size
            .map(|size| format!("{size} connections at most")),
    );
    line("server", of(&tenant.server));
    let deleted = tenant.deleted_maps.as_ref();
    let deleted = deleted.filter(|files| !files.is_empty());
    line("deleted", deleted.map(|files| harmless(&files.join(", "))));
    for layer in tenant.isolation.iter().flatten() {
        let (name, detail) = (harmless(&layer.name), harmless(&layer.detail));
        line(
            "isolation",
            Some(match layer.on {
                true => format!("{name}: {detail}"),
                false => format!("no {name}: {detail}"),
            }),
        );
    }
    for warning in &tenant.warnings {
        line("warning", Some(harmless(warning)));
    }
    if let Some(problem) = &tenant.problem {
        text.push_str("its file:\n");
        for part in problem.lines() {
            text.push_str(&format!("    {}\n", harmless(part)));
        }
    }
    if !tenant.last_words.is_empty() {
        text.push_str("last words of the last instance that ended unplanned:\n");
        for words in &tenant.last_words {
            text.push_str(&format!("    {}\n", harmless(words)));
        }
    }
    if !snapshot.servers.is_empty() {
        text.push('\n');
        text.push_str(&servers(snapshot));
    }
    text
}

fn reason(tenant: &TenantStatus) -> String {
    let mut parts = Vec::new();
    parts.extend(tenant.reason.as_deref().map(harmless));
    parts.extend(
        tenant
            .next_try_s
            .map(|seconds| format!("next try in {}", duration(seconds))),
    );
    parts.extend(
        tenant
            .pending
            .as_deref()
            .map(|pending| format!("pending: {}", harmless(pending))),
    );
    parts.join("; ")
}

fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    // Print one line per tenant on any terminal, because grep, awk and readers rely on it.
    table
        .load_style(presets::NOTHING)
        .set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(header);
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table
}

fn right(table: &mut Table, columns: &[usize]) {
    for index in columns {
        if let Some(column) = table.column_mut(*index) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
}

/// Returns the table without trailing spaces.
fn lines(table: &Table) -> String {
    table
        .lines()
        .map(|line| line.trim_end().to_owned() + "\n")
        .collect()
}

fn dash() -> String {
    "-".to_owned()
}

fn known(value: Option<impl ToString>) -> String {
    value.map_or_else(dash, |value| value.to_string())
}

/// Formats seconds as people say them, in the two largest units.
fn duration(seconds: f64) -> String {
    // Durations are never negative or beyond u64 seconds, so saturation is right.
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "saturates"
    )]
    let whole = seconds as u64;
    let (days, hours, minutes) = (whole / 86_400, whole / 3600 % 24, whole / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) if whole < 10 => format!("{seconds:.1}s"),
        (0, 0, 0) => format!("{whole}s"),
        (0, 0, minutes) => format!("{minutes}m {:02}s", whole % 60),
        (0, hours, minutes) => format!("{hours}h {minutes:02}m"),
        (days, hours, _) => format!("{days}d {hours:02}h"),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn snapshot() -> Snapshot {
        serde_json::from_str(
            r#"{"tenants":[
            {"name":"acme","state":"ready","reason":null,"pending":null,"pid":4711,"uptime_s":12.5,"restarts":0,
             "listen":"127.0.0.1:3001","schema":"tenant_acme","pool_size":10,"server":"7301"},
            {"name":"globex-corporation","state":"backoff","reason":"exit 1:\u001b[2J\n bad","pending":"restart","pid":null,
             "uptime_s":null,"restarts":3,"listen":null,"schema":null,"pool_size":null,"server":null,"next_try_s":4.25,
             "last_words":["panicked\r"],"warnings":["[limits] is not enforced"]}],
            "servers":[{"id":"7301","max_connections":100,"reserved":3,"headroom":3,"capacity":94,"committed":14,"in_use":4,"up":true}],
            "notices":["no group brokkr"]}"#,
        )
        .unwrap()
    }

    #[test]
    fn each_tenant_is_one_line_of_aligned_columns() {
        let text = overview(&snapshot());
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(
            lines[0],
            "NAME                STATE     PID  UPTIME  RESTARTS  LISTEN          SCHEMA       POOL  SERVER  REASON"
        );
        assert_eq!(
            lines[1],
            "acme                ready    4711     12s         0  127.0.0.1:3001  tenant_acme    10  7301"
        );
        assert_eq!(
            lines[2],
            "globex-corporation  backoff     -       -         3  -               -               -  -       exit 1:\\u{1b}[2J\\n bad; next try in 4.2s; pending: restart"
        );
        assert_eq!(
            lines[4],
            "SERVER  UP   MAX  RESERVED  HEADROOM  CAPACITY  COMMITTED  IN USE  REASON"
        );
        assert_eq!(
            lines[5],
            "7301    yes  100         3         3        94         14       4"
        );
        assert_eq!(lines[7], "notice: no group brokkr");
    }

    #[test]
    fn one_tenant_is_shown_with_its_last_words_next_try_and_what_is_pending() {
        let snapshot = snapshot();
        let text = details(&snapshot.tenants[1], &snapshot);
        for part in [
            "state      backoff\n",
            "next try   in 4.2s\n",
            "pending    restart\n",
            "warning    [limits] is not enforced\n",
            "ended unplanned:\n    panicked\\r\n",
        ] {
            assert!(text.contains(part), "{part:?} is not in\n{text}");
        }
        assert!(!text.contains('\u{1b}'));
    }

    #[test]
    fn durations_read_as_people_say_them() {
        let shown = [0.5, 59.0, 61.0, 3_725.0, 200_000.0].map(duration);
        assert_eq!(shown, ["0.5s", "59s", "1m 01s", "1h 02m", "2d 07h"]);
    }
}
