//! Requests of operators, from arrival to answer: each is answered once, when what it asked for has settled.

use super::entry::Entry;
use super::handle::{Order, Outcome, ReloadReport, Request, RequestError, Selection};
use super::{Fleet, ReloadWish};
use crate::lifecycle::Event;
use crate::servers::Endpoint;
use crate::status::State;
use brokkr_tenant::TenantName;
use std::collections::BTreeMap;
use tokio::sync::oneshot;

/// What is still to be answered.
#[derive(Default)]
pub(super) struct Orders {
    waiting: Vec<Waiting>,
    reloads: Vec<Reload>,
    rescans: tokio::task::JoinSet<u64>,
    scan_read: u64,
}

struct Waiting {
    names: Vec<TenantName>,
    order: Order,
    reply: oneshot::Sender<Result<Vec<Outcome>, RequestError>>,
}

struct Reload {
    /// The digest of every good file before.
    before: BTreeMap<TenantName, Option<[u8; 32]>>,
    /// The scan to wait for, once it has been made.
    scan: Option<u64>,
    reply: oneshot::Sender<ReloadReport>,
}

impl Orders {
    /// The next rescan that has finished; never, while none is under way. Cancel-safe.
    pub(super) async fn reload_done(&mut self) -> Option<u64> {
        match self.rescans.join_next().await {
            Some(Ok(scan)) => Some(scan),
            // A rescan that could not be made shows nothing new.
            Some(Err(_)) => Some(0),
            None => std::future::pending().await,
        }
    }

    pub(super) fn scanned(&mut self, scan: u64) {
        // Rescans are answered in the order they were asked for, and a later one has seen all that an earlier one has.
        if let Some(reload) = self.reloads.iter_mut().find(|r| r.scan.is_none()) {
            reload.scan = Some(scan);
        }
    }

    pub(super) fn files_read(&mut self, scan: u64) {
        self.scan_read = scan;
    }

    /// Nothing more will settle: the supervisor is stopping. Dropped replies say so.
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
                reply,
            } => self.take_order(selection, order, reply),
            Request::Reload {
                confirm_removals,
                reply,
            } => self.take_reload(confirm_removals, reply),
        }
    }

    fn take_order(
        &mut self,
        selection: Selection,
        order: Order,
        reply: oneshot::Sender<Result<Vec<Outcome>, RequestError>>,
    ) {
        if self.stopping {
            let _ = reply.send(Err(RequestError::Stopping));
            return;
        }
        let names = match selection {
            Selection::All => {
                let with_file = self.entries.iter().filter(|(_, e)| e.file.is_some());
                with_file.map(|(name, _)| name.clone()).collect()
            }
            Selection::Names(names) => names,
        };
        if let Some(unknown) = names.iter().find(|name| !self.entries.contains_key(*name)) {
            let _ = reply.send(Err(RequestError::UnknownTenant(unknown.clone())));
            return;
        }
        let now = self.now();
        for name in &names {
            tracing::info!(tenant = %name, ?order, "ordered");
            let Some(entry) = self.entries.get_mut(name) else {
                continue;
            };
            entry.stopped = order == Order::Stop;
            match order {
                Order::Stop => self.stopped.insert(name.clone()),
                Order::Start | Order::Restart => self.stopped.remove(name),
            };
            match order {
                Order::Start => self.feed(now, name, Event::Start),
                Order::Restart => self.feed(now, name, Event::Restart),
                Order::Stop => {}
            }
        }
        self.changed();
        self.orders.waiting.push(Waiting {
            names,
            order,
            reply,
        });
    }

    fn take_reload(&mut self, confirm_removals: bool, reply: oneshot::Sender<ReloadReport>) {
        let before = self.entries.iter().filter(|(_, e)| e.file.is_some());
        let before = before
            .map(|(n, e)| (n.clone(), e.asked().map(|c| c.digest)))
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
        let now = self.now();
        for name in self.all_names() {
            self.feed(now, &name, Event::Reload);
        }
    }

    /// Answers whatever has settled; forgets whoever no longer listens.
    pub(super) fn answer_orders(&mut self) {
        let mut open = std::mem::take(&mut self.orders.waiting);
        open.retain(|waiting| !waiting.reply.is_closed());
        for waiting in open {
            match self.outcomes(&waiting) {
                Some(outcomes) => {
                    let _ = waiting.reply.send(Ok(outcomes));
                }
                None => self.orders.waiting.push(waiting),
            }
        }
        let mut reloads = std::mem::take(&mut self.orders.reloads);
        reloads.retain(|reload| !reload.reply.is_closed());
        for reload in reloads {
            let read = reload
                .scan
                .is_some_and(|scan| scan <= self.orders.scan_read);
            if read && self.entries.values().all(|e| self.settled(e).is_some()) {
                let report = self.reload_report(&reload.before);
                let _ = reload.reply.send(report);
            } else {
                self.orders.reloads.push(reload);
            }
        }
    }

    /// As the life sees it; but what only waits for a server to be asked for the first time is under way.
    fn settled(&self, entry: &Entry) -> Option<bool> {
        let settled = entry.life.settled()?;
        let unasked = entry.meant().is_some_and(|config| {
            *self.view.borrow().endpoint(&config.broker().database.url) == Endpoint::Unknown
        });
        (settled || !unasked).then_some(settled)
    }

    fn outcomes(&self, waiting: &Waiting) -> Option<Vec<Outcome>> {
        waiting
            .names
            .iter()
            .map(|name| self.outcome(name, waiting.order))
            .collect()
    }

    fn outcome(&self, name: &TenantName, order: Order) -> Option<Outcome> {
        let Some(entry) = self.entries.get(name) else {
            return Some(Outcome {
                tenant: name.clone(),
                done: order == Order::Stop,
                message: "its file has gone".into(),
            });
        };
        let settled = self.settled(entry)?;
        let view = entry.life.view();
        let stopped = view.state == State::Stopped;
        let done = settled && stopped == (order == Order::Stop);
        let mut message = view.state.to_string();
        for more in [view.reason, view.pending].into_iter().flatten() {
            message = format!("{message}: {more}");
        }
        Some(Outcome {
            tenant: name.clone(),
            done,
            message,
        })
    }

    fn reload_report(&self, before: &BTreeMap<TenantName, Option<[u8; 32]>>) -> ReloadReport {
        let desired = self.desired.borrow().clone();
        let mut report = ReloadReport {
            problems: desired.problems.clone(),
            ..Default::default()
        };
        for (name, file) in &desired.tenants {
            let digest = file.as_ref().ok().map(|config| config.digest);
            match before.get(name) {
                None => report.added.push(name.to_string()),
                Some(old) if *old != digest => report.changed.push(name.to_string()),
                Some(_) => {}
            }
        }
        report.removed = before
            .keys()
            .filter(|name| !desired.tenants.contains_key(*name))
            .map(ToString::to_string)
            .collect();
        for (name, entry) in &self.entries {
            if let Some(problem) = entry.file_problem() {
                report.problems.push(problem.full.clone());
                continue;
            }
            let view = entry.life.view();
            let refused = (view.state == State::Refused)
                .then_some(view.reason)
                .flatten();
            let problems = [refused, view.pending].into_iter().flatten();
            report
                .problems
                .extend(problems.map(|problem| format!("{problem} (tenant {name})")));
        }
        report
    }
}
