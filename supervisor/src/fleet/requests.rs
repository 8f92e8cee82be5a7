//! Takes the operators' requests and answers each once, when its tenants have settled.

use super::core::{Fact, TenantEntry, TenantSettings};
use super::handle::{Order, Outcome, ReloadReport, Request, RequestError, Selection};
use super::{Fleet, ReloadWish};
use crate::config::TenantConfig;
use crate::servers::Endpoint;
use crate::status::State;
use brokkr_tenant::TenantName;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use tokio::sync::oneshot;

/// Requests that are not answered yet.
#[derive(Default)]
pub(super) struct PendingRequests {
    waiting: Vec<Waiting>,
    reloads: Vec<Reload>,
    rescans: tokio::task::JoinSet<u64>,
    scan_read: u64,
}

/// An unanswered order. A restart is told to a few tenants at a time, any other order to all at once.
struct Waiting {
    /// Tenants that are not told yet.
    todo: VecDeque<TenantName>,
    /// Tenants that are told and have not settled.
    active: Vec<TenantName>,
    settled: Vec<Outcome>,
    order: Order,
    keep_going: bool,
    reply: oneshot::Sender<Result<Vec<Outcome>, RequestError>>,
}

struct Reload {
    /// Each tenant's configuration before the reload; `None` if the file was invalid.
    before: BTreeMap<TenantName, Option<Arc<TenantConfig>>>,
    /// Number of the scan to wait for, once known.
    scan: Option<u64>,
    reply: oneshot::Sender<ReloadReport>,
}

impl PendingRequests {
    /// Returns the number of the next rescan that has finished; never returns while none is pending. Cancel-safe.
    pub(super) async fn reload_done(&mut self) -> Option<u64> {
        match self.rescans.join_next().await {
            Some(Ok(scan)) => Some(scan),
            // The rescan failed, so it shows nothing new.
            Some(Err(_)) => Some(0),
            None => std::future::pending().await,
        }
    }

    pub(super) fn scanned(&mut self, scan: u64) {
        // Rescans are answered in the order of the requests, and a later rescan includes an earlier one.
        if let Some(reload) = self.reloads.iter_mut().find(|r| r.scan.is_none()) {
            reload.scan = Some(scan);
        }
    }

    pub(super) fn files_read(&mut self, scan: u64) {
        self.scan_read = scan;
    }

    /// Refuses all open requests, because nothing settles any more. A reload is refused by dropping its sender.
    pub(super) fn refuse_all(&mut self) {
        for waiting in self.waiting.drain(..) {
            let _ = waiting.reply.send(Err(RequestError::Stopping));
        }
        self.reloads.clear();
    }
}

impl Fleet {
    pub(super) fn take_request(&mut self, request: Request) {
        match request {
            Request::Order {
                selection,
                order,
                keep_going,
                reply,
            } => self.take_order(selection, order, keep_going, reply),
            Request::Reload {
                confirm_removals,
                reply,
            } => self.take_reload(confirm_removals, reply),
            Request::RotateCredentials { tenant, reply } => {
                self.rotate_credentials(&tenant, reply);
            }
            Request::Turn { reply } => {
                // The client may have disconnected.
                let _ = reply.send(());
            }
        }
    }

    fn rotate_credentials(
        &mut self,
        name: &TenantName,
        reply: oneshot::Sender<Result<String, String>>,
    ) {
        let entry = self.core.entries().get(name);
        let config = entry.and_then(|entry| entry.accepted.as_ref());
        let wish = match config {
            None => Err(format!("there is no tenant {name} that runs")),
            Some((_, config)) => self.role_wish(name, config).ok_or_else(|| {
                format!("tenant {name} has no role of its own: `status {name}` says why")
            }),
        };
        match wish {
            Ok(wish) => self.manager.renew_password(wish, reply),
            // An error means that the client has gone.
            Err(problem) => drop(reply.send(Err(problem))),
        }
    }

    fn take_order(
        &mut self,
        selection: Selection,
        order: Order,
        keep_going: bool,
        reply: oneshot::Sender<Result<Vec<Outcome>, RequestError>>,
    ) {
        if self.core.is_stopping() {
            let _ = reply.send(Err(RequestError::Stopping));
            return;
        }
        let names: VecDeque<TenantName> = match selection {
            Selection::All => {
                let entries = self.core.entries().iter().filter(|(_, e)| e.file.is_some());
                // A tenant that does not run has nothing to restart, and may be stopped on purpose.
                entries
                    .filter(|(_, e)| order != Order::Restart || e.meant().is_some())
                    .map(|(name, _)| name.clone())
                    .collect()
            }
            Selection::Names(names) => names.into(),
        };
        if let Some(unknown) = names
            .iter()
            .find(|name| !self.core.entries().contains_key(*name))
        {
            let _ = reply.send(Err(RequestError::UnknownTenant(unknown.clone())));
            return;
        }
        let mut waiting = Waiting {
            todo: names,
            active: Vec::new(),
            settled: Vec::new(),
            order,
            keep_going,
            reply,
        };
        self.advance(&mut waiting);
        self.orders.waiting.push(waiting);
    }

    /// Tells the order to as many tenants as may be under way at once. Returns true when a tenant was told.
    fn advance(&mut self, waiting: &mut Waiting) -> bool {
        let most = match waiting.order {
            Order::Restart => self.config.start.parallelism.max(1),
            Order::Start | Order::Stop => usize::MAX,
        };
        let mut told = false;
        while waiting.active.len() < most {
            let Some(name) = waiting.todo.pop_front() else {
                break;
            };
            self.tell_order(&name, waiting.order);
            waiting.active.push(name);
            told = true;
        }
        told
    }

    fn tell_order(&mut self, name: &TenantName, order: Order) {
        tracing::info!(tenant = %name, ?order, "ordered");
        self.tell(Fact::Order(name.clone(), order));
    }

    fn take_reload(&mut self, confirm_removals: bool, reply: oneshot::Sender<ReloadReport>) {
        let before = self.core.entries().iter().filter(|(_, e)| e.file.is_some());
        let before = before
            .map(|(n, e)| (n.clone(), e.asked().cloned()))
            .collect();
        self.orders.reloads.push(Reload {
            before,
            scan: None,
            reply,
        });
        let (done, scanned) = oneshot::channel();
        let (reloader, servers) = (self.reloader.clone(), self.servers.clone());
        self.orders.rescans.spawn(async move {
            let _ = reloader
                .send(ReloadWish {
                    confirm_removals,
                    done,
                })
                .await;
            servers.refresh().await;
            scanned.await.unwrap_or(0)
        });
        self.tell(Fact::Reload);
    }

    /// Answers the requests that have settled, and drops those whose client has disconnected. Returns true when a
    /// tenant was told something, so that the fleet must settle again.
    pub(super) fn answer_orders(&mut self) -> bool {
        let mut open = std::mem::take(&mut self.orders.waiting);
        open.retain(|waiting| !waiting.reply.is_closed());
        let mut told = false;
        for mut waiting in open {
            self.collect(&mut waiting);
            told |= self.advance(&mut waiting);
            if waiting.active.is_empty() {
                let _ = waiting.reply.send(Ok(waiting.settled));
            } else {
                self.orders.waiting.push(waiting);
            }
        }
        let mut reloads = std::mem::take(&mut self.orders.reloads);
        reloads.retain(|reload| !reload.reply.is_closed());
        for reload in reloads {
            let read = reload
                .scan
                .is_some_and(|scan| scan <= self.orders.scan_read);
            let settled = self
                .core
                .entries()
                .values()
                .all(|e| self.settled(e).is_some());
            if read && settled && self.all_released() {
                let report = self.reload_report(&reload.before);
                let _ = reload.reply.send(report);
            } else {
                self.orders.reloads.push(reload);
            }
        }
        told
    }

    /// Returns the lifecycle's own answer, but `None` while the tenant waits for a server that was never asked.
    fn settled(&self, entry: &TenantEntry<TenantConfig>) -> Option<bool> {
        let settled = entry.life.settled()?;
        // A view that the lifecycles have not been given yet may end the wait.
        let unheard = self.view.has_changed().unwrap_or(false);
        let unasked = unheard
            || entry
                .meant()
                .is_some_and(|config| *config.endpoint(self.core.view()) == Endpoint::Unknown);
        (settled || !unasked).then_some(settled)
    }

    /// Collects outcomes of tenants that have settled. A restart ends at its first failure, unless `keep_going` is set.
    fn collect(&self, waiting: &mut Waiting) {
        let order = waiting.order;
        let mut failed = None;
        let outcomes = &mut waiting.settled;
        waiting
            .active
            .retain(|name| match self.outcome(name, order) {
                Some(outcome) => {
                    if !outcome.done {
                        failed = Some(name.clone());
                    }
                    outcomes.push(outcome);
                    false
                }
                None => true,
            });
        let Some(failed) = failed.filter(|_| order == Order::Restart && !waiting.keep_going) else {
            return;
        };
        let left = waiting.todo.drain(..).map(|tenant| Outcome {
            message: format!(
                "not restarted, because {failed} was not: mend that, or order it with --keep-going"
            ),
            tenant,
            done: false,
        });
        waiting.settled.extend(left);
    }

    fn outcome(&self, name: &TenantName, order: Order) -> Option<Outcome> {
        let Some(entry) = self.core.entries().get(name) else {
            return Some(Outcome {
                tenant: name.clone(),
                done: order == Order::Stop,
                message: "its file has gone".into(),
            });
        };
        let settled = self.settled(entry)?;
        let view = entry.life.view();
        let stopped = view.state == State::Stopped;
        // Until then the address is taken, and a `start` that follows would fail.
        if order == Order::Stop && !self.is_released(entry.release) {
            return None;
        }
        // A restart succeeds even if the tenant's file is invalid; the message then names the problem.
        let restarted = order == Order::Restart && entry.life.is_as_ordered();
        let done = (settled || restarted) && stopped == (order == Order::Stop);
        let mut message = view.state.to_string();
        // Leave out the reason of a waiting replacement where it repeats the tenant's own reason.
        let pending = view.pending.filter(|pending| {
            let reason = view.reason.as_deref();
            !reason.is_some_and(|reason| pending.ends_with(reason))
        });
        for more in [view.reason, pending].into_iter().flatten() {
            message = format!("{message}: {more}");
        }
        if order == Order::Restart && !done && view.instance.is_some() {
            let yet = if view.amiss { "" } else { " yet" };
            message = format!("not restarted{yet}; {message}");
        }
        Some(Outcome {
            tenant: name.clone(),
            done,
            message,
        })
    }

    fn reload_report(
        &self,
        before: &BTreeMap<TenantName, Option<Arc<TenantConfig>>>,
    ) -> ReloadReport {
        let desired = self.desired.borrow().clone();
        let mut report = ReloadReport {
            problems: desired.problems.iter().map(|p| p.full.clone()).collect(),
            ..Default::default()
        };
        for (name, file) in &desired.tenants {
            let same = |old: &Option<Arc<TenantConfig>>| match (old, file) {
                (Some(old), Ok(new)) => old.same_effect(new),
                (None, Err(_)) => true,
                _ => false,
            };
            match before.get(name) {
                None => report.added.push(name.to_string()),
                Some(old) if !same(old) => report.changed.push(name.to_string()),
                Some(_) => {}
            }
        }
        report.removed = before
            .keys()
            .filter(|name| !desired.tenants.contains_key(*name))
            .map(ToString::to_string)
            .collect();
        for (name, entry) in self.core.entries() {
            if let Some(problem) = entry.file_problem() {
                report.complain(name, problem.full.clone());
                continue;
            }
            let view = entry.life.view();
            let down = match (view.state, view.reason) {
                (State::Refused, reason) => reason,
                (state @ (State::Backoff | State::Waiting | State::Stopping), Some(reason)) => {
                    Some(format!("{state}: {reason}"))
                }
                _ => None,
            };
            let pending = view.pending.filter(|_| !entry.life.gave_up());
            for problem in [down, pending].into_iter().flatten() {
                report.complain(name, format!("{problem} (tenant {name})"));
            }
        }
        report
    }
}
