//! Turns files, instances and servers into what is wanted of each tenant. Pure: reads the fleet, changes nothing.

use super::entry::Entry;
use crate::budget::{
    Admission, Claim, Contested, Decision, Held, Place, Seat, Stake, Verdict, Wanted, admit,
    conflicts,
};
use crate::config::TenantConfig;
use crate::servers::ServersView;
use brokkr_tenant::{PoolSize, TenantName};
use std::collections::BTreeMap;
use std::sync::Arc;

/// What is wanted of one tenant.
#[derive(Debug, Clone)]
pub(super) enum Ruling {
    /// Run this; the second says what the file asks for beyond it, and why that is not so.
    Run(Arc<TenantConfig>, Option<String>),
    /// Do not run.
    Refused(String),
    /// Do not run: by the operator's or the file's own wish.
    Stopped(String),
    /// Its file has gone.
    Gone,
}

/// The rulings and the budget behind them.
#[derive(Debug)]
pub(super) struct Judgement {
    pub(super) rulings: BTreeMap<TenantName, Ruling>,
    pub(super) verdict: Verdict,
}

/// Judges everybody.
pub(super) fn judge(
    entries: &BTreeMap<TenantName, Entry>,
    admitted: &[Admission],
    view: &ServersView,
    headroom: u32,
) -> Judgement {
    let stakes: Vec<Stake> = entries
        .iter()
        .map(|(name, entry)| stake(name, entry, view))
        .collect();
    let conflicts = conflicts(admitted, &stakes);

    let mut claims = Vec::with_capacity(entries.len());
    let mut candidates: BTreeMap<&TenantName, (Arc<TenantConfig>, Option<String>)> =
        BTreeMap::new();
    let mut rulings = BTreeMap::new();
    for (name, entry) in entries {
        let mut wanted = Wanted::Nothing;
        match candidate(entry, conflicts.get(name)) {
            Ok((config, pending)) => {
                let url = &config.broker().database.url;
                let at = view.endpoint(url).place().cloned();
                wanted = Wanted::Pool {
                    connections: config.broker().database.pool_size.get(),
                    at,
                };
                candidates.insert(name, (config, pending));
            }
            Err(ruling) => {
                rulings.insert(name.clone(), ruling);
            }
        }
        let priority = entry.asked().map_or(0, |config| priority(config));
        claims.push(Claim {
            tenant: name.clone(),
            priority,
            wanted,
            held: held(entry, view),
        });
    }

    let verdict = admit(admitted, &claims, &view.facts(), headroom);
    for (name, (config, pending)) in candidates {
        let accepted = entries
            .get(name)
            .and_then(|e| e.accepted.as_ref())
            .map(|(_, c)| c);
        let at_pool = |text: &str| config.at("database.pool_size", text);
        let ruling = match verdict.tenants.get(name) {
            Some(Decision::Refused(shortage)) => {
                Ruling::Refused(at_pool(&format!("over budget: tenant {name} {shortage}")))
            }
            Some(Decision::Keep(shortage)) => {
                let why = at_pool(&format!("over budget: tenant {name} {shortage}"));
                match accepted {
                    Some(old) => Ruling::Run(old.clone(), Some(why)),
                    // Admitted before this supervisor started, with less than the file asks for now.
                    None => Ruling::Run(cut_to_admitted(name, &config, &verdict), Some(why)),
                }
            }
            Some(Decision::Nothing) | None => Ruling::Refused("not judged yet".into()),
            Some(Decision::Admitted | Decision::Wait) => Ruling::Run(config, pending),
        };
        rulings.insert(name.clone(), ruling);
    }
    Judgement { rulings, verdict }
}

/// The configuration to put before the budget, or why there is none.
fn candidate(
    entry: &Entry,
    conflict: Option<&crate::budget::Conflict>,
) -> Result<(Arc<TenantConfig>, Option<String>), Ruling> {
    let Some(file) = &entry.file else {
        return Err(Ruling::Gone);
    };
    if let Ok(config) = file
        && !config.broker().supervision.enabled
    {
        return Err(Ruling::Stopped("enabled = false in its file".into()));
    }
    if entry.stopped {
        return Err(Ruling::Stopped("by the operator".into()));
    }
    let accepted = entry.accepted.as_ref().map(|(_, config)| config.clone());
    let (problem, asked) = match (file, conflict) {
        (Err(problem), _) => (Some(problem.clone()), None),
        (Ok(config), Some(conflict)) => {
            let key = match conflict.contested {
                Contested::Schema(_) => "database.schema",
                Contested::Address(_) => "http.listen",
            };
            (Some(config.at(key, &conflict.to_string())), None)
        }
        (Ok(config), None) => (None, Some(config.clone())),
    };
    match (asked, accepted, problem) {
        (Some(config), _, pending) => Ok((config, pending)),
        (None, Some(running), pending) if conflict.is_none() || entry.life.current().is_some() => {
            Ok((running, pending))
        }
        (None, _, problem) => Err(Ruling::Refused(problem.unwrap_or_default())),
    }
}

/// The file's configuration with the pool it was admitted with.
fn cut_to_admitted(
    name: &TenantName,
    config: &Arc<TenantConfig>,
    verdict: &Verdict,
) -> Arc<TenantConfig> {
    let admitted = verdict
        .admitted
        .iter()
        .find(|a| a.tenant == *name)
        .map(|a| a.pool);
    match admitted.and_then(|pool| PoolSize::new(pool).ok()) {
        Some(pool) => Arc::new(config.with_pool(pool)),
        None => config.clone(),
    }
}

/// Beyond what anybody writes it makes no difference.
fn priority(config: &TenantConfig) -> i32 {
    config
        .broker()
        .supervision
        .priority
        .clamp(i32::MIN.into(), i32::MAX.into()) as i32
}

fn seat(config: &TenantConfig, view: &ServersView) -> Seat {
    let broker = config.broker();
    let url = &broker.database.url;
    Seat {
        database: view
            .endpoint(url)
            .place()
            .map(|p| (p.server.clone(), p.database)),
        spelled: format!("{:?}:{}/{}", url.host(), url.port(), url.dbname()),
        schema: broker.database.schema.clone(),
        listen: broker.http.listen.clone(),
    }
}

fn stake(name: &TenantName, entry: &Entry, view: &ServersView) -> Stake {
    let running = running(entry)
        .map(|(_, config)| seat(config, view))
        .collect();
    let asked = entry
        .candidate()
        .filter(|c| !entry.stopped && c.broker().supervision.enabled);
    Stake {
        tenant: name.clone(),
        priority: asked.map_or(0, |config| priority(config)),
        running,
        wanted: asked.map(|config| seat(config, view)),
    }
}

fn held(entry: &Entry, view: &ServersView) -> Vec<Held> {
    running(entry)
        .filter_map(|(pool, config)| {
            let place: Place = view
                .endpoint(&config.broker().database.url)
                .place()?
                .clone();
            Some(Held {
                place,
                connections: pool,
            })
        })
        .collect()
}

fn running(entry: &Entry) -> impl Iterator<Item = (u32, &Arc<TenantConfig>)> {
    entry
        .life
        .instances()
        .filter_map(|i| Some((i.pool, entry.revisions.get(&i.revision)?)))
}
