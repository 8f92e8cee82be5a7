//! `check` judges every file, schema, address and budget as `run` would, and changes nothing.
//!
//! Beside a running supervisor, `check` reads that supervisor's state folder for the admitted and the stopped tenants.
//! Problems and warnings go to standard error, each problem beginning with its place; the sums go to standard output.

mod runs_on;
mod table;

use crate::budget::{
    self, AdmittedTenant, Claim, Conflict, ConnectionTarget, Contested, Database, Decided,
    Decision, Facts, OwnershipClaim, Role, ServerId, TenantClaim, Verdict, parse_admitted,
};
use crate::cli;
use crate::config::{self, ScanMode, Scanner, SupervisorConfig, TenantConfig};
use crate::embedded;
use crate::fleet::core::TenantSettings;
use crate::servers::provision::closings;
use crate::servers::{
    Endpoint, SchemaProblems, Servers, ServersView, Wanted, event_loop, schema_problems,
};
use brokkr_tenant::{DatabaseUrl, SchemaName, TenantName};
use runs_on::RunsOn;
use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Time limit for asking all servers: longer than the longest probe, and than a hundred hanging logins at one address.
const PATIENCE: Duration = Duration::from_secs(30);
/// Connections that a new server reserves for superusers by default; the embedded server keeps the default.
const EMBEDDED_RESERVE: u32 = 3;

/// Findings of the check, before they are printed.
#[derive(Debug, Default)]
struct Findings {
    problems: Vec<String>,
    warnings: Vec<String>,
    /// Tenants that should run and have a good file.
    wanted: BTreeMap<TenantName, Arc<TenantConfig>>,
    /// Reasons why other tenants with a good file do not run.
    idle: BTreeMap<TenantName, &'static str>,
    /// Tenants with a bad file.
    bad: BTreeSet<TenantName>,
}

/// Judges the configuration, prints the findings, and returns failure if there is any problem.
pub(crate) fn check(path: &Path, options: &cli::Check) -> ExitCode {
    let mut findings = Findings::default();
    let mut output = String::new();
    match config::load(path) {
        Err(problems) => findings.problems.push(problems.to_string()),
        Ok(config) => {
            output = judge(&config, options.offline, &mut findings);
            if !options.offline {
                output.push_str(&report_closings(&config, &mut findings));
            }
        }
    }
    let mut errors = io::stderr().lock();
    for warning in &findings.warnings {
        // A write may fail because standard error is closed; the exit status still reports problems.
        let _ = writeln!(errors, "warning: {}", warning.trim_end());
    }
    for problem in &findings.problems {
        let _ = writeln!(errors, "{}", problem.trim_end());
    }
    if let Err(error) = io::stdout().lock().write_all(output.as_bytes())
        && error.kind() != io::ErrorKind::BrokenPipe
    {
        return super::complain(
            &format!("cannot write to standard output: {error}"),
            super::EXIT_PROBLEM,
        );
    }
    if findings.problems.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(super::EXIT_PROBLEM)
    }
}

fn judge(config: &SupervisorConfig, offline: bool, findings: &mut Findings) -> String {
    findings.warnings.extend(
        config
            .warnings
            .iter()
            .map(brokkr_tenant::Diagnostic::headline),
    );
    let embedded = embedded_url(config, findings);
    read_files(config, embedded.as_ref(), findings);
    if let Some(provision) = &config.provision {
        let roles = findings.wanted.values().map(|config| config.role());
        let none = config::provides_for_none(provision, roles);
        findings.warnings.extend(none);
    }
    let admitted = read_admitted(config, findings);
    let mut view = if offline {
        Arc::default()
    } else {
        ask(findings)
    };
    if let Some(url) = &embedded
        && findings
            .wanted
            .values()
            .any(|tenant| tenant.broker().database.url == *url)
        && !matches!(view.endpoint(url), Endpoint::Ready(_))
        && !embedded::runs(config)
    {
        findings.warnings.push(format!(
            "the embedded server is not running: its tenants are judged by [postgres] max_connections = {}",
            config.postgres.max_connections
        ));
        view = Arc::new(with_embedded(&view, url, config.postgres.max_connections));
    }
    report_endpoints(&view, offline, findings);
    let admitted = view.by_present_names(&admitted);
    let runs_on = RunsOn::find(config, &findings.bad, &admitted);
    let unusable = match offline {
        true => BTreeSet::new(),
        false => report_schemas(&view, findings),
    };

    let tenant_claims: Vec<TenantClaim> = findings
        .wanted
        .iter()
        .map(|(tenant, config)| TenantClaim {
            stake: OwnershipClaim {
                tenant: tenant.clone(),
                priority: config.priority(),
                running: Vec::new(),
                wanted: Some(config.schema_and_address(&view)),
            },
            claim: Claim {
                tenant: tenant.clone(),
                priority: config.priority(),
                wanted: config.demand(&view),
                held: Vec::new(),
            },
            fallback: runs_on.fallback(tenant, config, &admitted, &view),
        })
        .chain(runs_on.tenant_claims())
        .collect();
    let headroom = config.budget.headroom;
    let Decided { conflicts, verdict } =
        budget::decide(&admitted, &tenant_claims, &view.facts(), headroom);
    let refused = report_conflicts(conflicts, findings);
    report_shortages(&verdict, findings);
    report_shrunk(&verdict, findings);
    if !offline {
        report_broker(config, findings);
    }
    let verdicts = findings
        .wanted
        .keys()
        .map(|tenant| {
            let text = match (refused.get(tenant), verdict.tenants.get(tenant)) {
                (Some(what), Some(Decision::Admitted | Decision::Keep(_))) => {
                    format!("{what} taken: runs on with what it had, and that is counted")
                }
                (Some(what), _) => format!("refused: {what} taken"),
                (None, Some(Decision::Admitted)) if unseen(tenant, &findings.wanted, &view) => {
                    "admitted; its server cannot be asked".to_owned()
                }
                (None, Some(Decision::Admitted)) if unusable.contains(tenant) => {
                    "cannot start in its schema".to_owned()
                }
                (None, Some(Decision::Admitted)) => "fits".to_owned(),
                (None, Some(Decision::Keep(_))) => "keeps its old pool".to_owned(),
                (None, Some(Decision::Refused(_))) => "refused: over budget".to_owned(),
                (None, _) if offline => "not asked".to_owned(),
                (None, _) => "cannot be judged".to_owned(),
            };
            (tenant.clone(), text)
        })
        .collect();
    table::render(&table::Sums {
        wanted: &findings.wanted,
        idle: &findings.idle,
        runs_on: &runs_on,
        verdicts: &verdicts,
        view: &view,
        verdict: &verdict,
        headroom: config.budget.headroom,
    })
}

/// Returns the embedded server's URL for tenants without their own, if the server is configured.
fn embedded_url(config: &SupervisorConfig, findings: &mut Findings) -> Option<DatabaseUrl> {
    if !config.postgres.embedded {
        return None;
    }
    embedded::url(config)
        .inspect_err(|error| findings.problems.push(error.clone()))
        .ok()
}

fn read_files(config: &SupervisorConfig, embedded: Option<&DatabaseUrl>, findings: &mut Findings) {
    let mut scanner = Scanner::configured(config, embedded);
    let look = ScanMode {
        removals_at_once: true,
        confirm_removals: true,
    };
    let scanned = scanner.scan(Instant::now(), look, &BTreeSet::new());
    let of_folder = scanned.desired.problems.into_iter();
    findings
        .problems
        .extend(of_folder.map(|problem| problem.full));
    let stopped = std::fs::read_to_string(config.state_dir.join("stopped")).unwrap_or_default();
    let stopped: BTreeSet<&str> = stopped.lines().map(str::trim).collect();
    for (tenant, file) in scanned.desired.tenants {
        match file {
            Err(problem) => {
                findings.problems.push(problem.full.clone());
                findings.bad.insert(tenant);
            }
            Ok(file) => {
                findings.warnings.extend(file.warnings.iter().cloned());
                if !file.broker().supervision.enabled {
                    findings.idle.insert(tenant, "stopped: enabled = false");
                } else if stopped.contains(tenant.as_str()) {
                    findings.idle.insert(tenant, "stopped by the operator");
                } else {
                    findings.wanted.insert(tenant, file);
                }
            }
        }
    }
}

fn read_admitted(config: &SupervisorConfig, findings: &mut Findings) -> Vec<AdmittedTenant> {
    let path = config.state_dir.join("admitted");
    match std::fs::read_to_string(&path) {
        Ok(text) => parse_admitted(&text).0,
        Err(error) => {
            // The file is missing when no supervisor has run yet.
            if error.kind() != io::ErrorKind::NotFound {
                findings.warnings.push(format!(
                    "{}: {error}; tenants are judged by priority and name, as if none were admitted yet",
                    path.display()
                ));
            }
            Vec::new()
        }
    }
}

/// Asks every server once.
fn ask(findings: &mut Findings) -> Arc<ServersView> {
    let mut urls = Wanted::new();
    for config in findings.wanted.values() {
        let schemas = urls.entry(config.probe_url().clone()).or_default();
        if config.has_own_role() {
            schemas.insert(config.schema().clone());
        }
    }
    let asked = Servers::start(brokkr_pg::application_prefix().to_owned()).and_then(|servers| {
        servers.want(urls.clone());
        let mut view = servers.view();
        let runtime = event_loop()?;
        let known = |view: &Arc<ServersView>| {
            urls.keys()
                .all(|url| *view.endpoint(url) != Endpoint::Unknown)
        };
        // After a timeout, judge by the answers so far.
        let _ =
            runtime.block_on(async { tokio::time::timeout(PATIENCE, view.wait_for(known)).await });
        Ok(view.borrow().clone())
    });
    asked.unwrap_or_else(|error| {
        findings
            .problems
            .push(format!("cannot ask the servers: {error}"));
        Arc::default()
    })
}

/// Adds the embedded server with the values that it will have once it runs.
fn with_embedded(view: &ServersView, url: &DatabaseUrl, max_connections: u32) -> ServersView {
    let server = ServerId::new("embedded");
    let place = ConnectionTarget {
        server: server.clone(),
        database: 1,
        role: url.user().to_owned(),
        superuser: false,
    };
    let facts = Facts {
        max_connections,
        superuser_reserved: EMBEDDED_RESERVE,
        databases: [(
            1,
            Database {
                name: url.dbname().to_owned(),
                limit: None,
            },
        )]
        .into(),
        roles: [(
            url.user().to_owned(),
            Role {
                limit: None,
                superuser: false,
            },
        )]
        .into(),
        own: Some(place.clone()),
        ..Facts::default()
    };
    let mut view = view.clone();
    view.endpoints.insert(url.clone(), Endpoint::Ready(place));
    view.servers
        .insert(server, crate::servers::ServerView::unseen(facts));
    view
}

fn report_endpoints(view: &ServersView, offline: bool, findings: &mut Findings) {
    for (id, server) in &view.servers {
        let users: Vec<&str> = findings
            .wanted
            .iter()
            .filter(|(_, c)| c.endpoint(view).place().is_some_and(|p| p.server == *id))
            .map(|(tenant, _)| tenant.as_str())
            .collect();
        for warning in &server.warnings {
            findings.warnings.push(format!(
                "server {id} (tenants {}): {warning}",
                users.join(", ")
            ));
        }
    }
    if offline {
        return;
    }
    for (tenant, config) in &findings.wanted {
        if let Some(problem) = config.server_problem(view) {
            let text = format!("tenant {tenant}: no server for it: {problem}");
            findings.problems.push(config.at("database.url", &text));
        }
    }
}

/// Returns the tenants whose broker could not work in its schema.
fn report_schemas(view: &ServersView, findings: &mut Findings) -> BTreeSet<TenantName> {
    let mut wanted: BTreeMap<DatabaseUrl, BTreeSet<SchemaName>> = BTreeMap::new();
    for config in findings.wanted.values() {
        let endpoint = config.endpoint(view);
        // An embedded server that does not run yet cannot be asked.
        let answers = endpoint
            .place()
            .and_then(|place| view.servers.get(&place.server))
            .is_some_and(|server| server.up);
        // An administrator without superuser may not use the schemas of the roles it made.
        let tells = |place: &ConnectionTarget| !config.has_own_role() || place.superuser;
        if answers && matches!(endpoint, Endpoint::Ready(place) if tells(place)) {
            let schemas = wanted.entry(config.probe_url().clone()).or_default();
            schemas.insert(config.schema().clone());
        }
    }
    let prefix = brokkr_pg::application_prefix();
    let found = schema_problems(&wanted, prefix).unwrap_or_else(|error| {
        findings
            .problems
            .push(format!("cannot ask for schemas: {error}"));
        SchemaProblems::default()
    });
    let mut unusable = BTreeSet::new();
    for (tenant, config) in &findings.wanted {
        let key = (config.probe_url().clone(), config.schema().clone());
        if let Some(problem) = found.get(&key) {
            let text = format!("tenant {tenant}: {problem}");
            findings.problems.push(config.at("database.schema", &text));
            unusable.insert(tenant.clone());
        }
    }
    unusable
}

/// Returns the databases that provisioning would close to other roles, one a line.
fn report_closings(config: &SupervisorConfig, findings: &mut Findings) -> String {
    let Some(provision) = config.provision.as_ref().filter(|p| p.exclusive) else {
        return String::new();
    };
    match closings(&provision.admin, brokkr_pg::application_prefix()) {
        Ok(lines) => lines.iter().map(|line| format!("{line}\n")).collect(),
        Err(error) => {
            let text = format!("[provision]: the databases cannot be listed: {error}");
            findings.problems.push(text);
            String::new()
        }
    }
}

/// Returns the tenants whose schema or address is taken, and which of the two.
fn report_conflicts(
    conflicts: BTreeMap<TenantName, Conflict>,
    findings: &mut Findings,
) -> BTreeMap<TenantName, &'static str> {
    let mut refused = BTreeMap::new();
    for (tenant, conflict) in conflicts {
        let (key, what) = match conflict.contested {
            Contested::Schema(_) => ("database.schema", "schema"),
            Contested::Address(_) => ("http.listen", "address"),
        };
        if let Some(config) = findings.wanted.get(&tenant) {
            findings
                .problems
                .push(config.at(key, &conflict.to_string()));
        }
        refused.insert(tenant, what);
    }
    refused
}

/// Returns true when the server of this tenant could not be asked.
fn unseen(
    tenant: &TenantName,
    wanted: &BTreeMap<TenantName, Arc<TenantConfig>>,
    view: &ServersView,
) -> bool {
    wanted
        .get(tenant)
        .is_some_and(|config| !matches!(config.endpoint(view), Endpoint::Ready(_)))
}

/// Reports servers with less capacity than is admitted. Admitted tenants stay, but no further tenant is admitted.
fn report_shrunk(verdict: &Verdict, findings: &mut Findings) {
    for (server, account) in &verdict.servers {
        if let Some(capacity) = account.capacity
            && account.committed > capacity
        {
            findings.problems.push(format!(
                "server {server}: {} connections are admitted, {} more than its capacity of {capacity}: admitted tenants stay, and \
                 no other is admitted, until pools are smaller or its max_connections is larger",
                account.committed,
                account.committed - capacity
            ));
        }
    }
}

/// Reports a broker program that cannot be executed, because otherwise every tenant would fail to start.
fn report_broker(config: &SupervisorConfig, findings: &mut Findings) {
    let broker = &config.broker;
    let problem = match std::fs::metadata(broker) {
        Ok(found) if !found.is_file() => "is no file".to_owned(),
        Ok(_) => match nix::unistd::access(broker, nix::unistd::AccessFlags::X_OK) {
            Ok(()) => return,
            Err(error) => format!("cannot be executed: {error}"),
        },
        Err(error) => error.to_string(),
    };
    let path = broker.display();
    findings.problems.push(format!(
        "broker = {path}: {problem}; no tenant can start: name the program in supervisor.toml"
    ));
}

fn report_shortages(verdict: &Verdict, findings: &mut Findings) {
    for (tenant, decision) in &verdict.tenants {
        if let Decision::Refused(shortage) | Decision::Keep(shortage) = decision
            && let Some(config) = findings.wanted.get(tenant)
        {
            let text = format!("over budget: tenant {tenant} {shortage}");
            findings
                .problems
                .push(config.at("database.pool_size", &text));
        }
    }
}
