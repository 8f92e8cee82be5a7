//! The effect of each fault on the host.
//!
//! A fault returns when it is over: stopped processes run again and broken files are repaired. [`World::is_whole`] then
//! waits until the host has recovered.

use super::allowed_failures::{Reason, stand_still};
use super::plan::{Deal, Fault, Round};
use super::server;
use super::world::{LOOPER, WHOLE, World};
use crate::host::{Status, Tenant};
use crate::wait::{until, until_ok};
use crate::{http, procs};
use nix::sys::signal::Signal;
use serde_json::json;
use std::collections::BTreeSet;
use std::thread::sleep;
use std::time::{Duration, SystemTime};

/// A tenant that is added, used and removed.
const GUEST: &str = "guest";

impl World<'_> {
    /// Lets all faults of a round happen, and returns when all are over.
    pub fn suffer(&self, round: &Round) {
        let alone = round.len() == 1;
        // While the program on disk is broken, a killed broker's replacements end too.
        let broken = round.iter().any(|deal| deal.fault == Fault::BrokenProgram);
        let ends = if broken { 1000 } else { 1 };
        std::thread::scope(|scope| {
            for deal in round {
                std::thread::Builder::new()
                    .name(format!("{:?}", deal.fault))
                    .spawn_scoped(scope, move || {
                        sleep(deal.after);
                        self.suffer_one(deal, alone, ends);
                    })
                    .unwrap();
            }
        });
    }

    fn suffer_one(&self, deal: &Deal, alone: bool, ends: u64) {
        let tenant = &self.tenants[deal.tenant];
        let name = tenant.name();
        match deal.fault {
            Fault::BrokerKilled => self.broker_killed(name, ends),
            Fault::BrokerHangs => self.broker_hangs(name, ends),
            Fault::Restart => self.ordered(&["restart", name], alone),
            Fault::RestartAll => self.ordered(&["restart", "--all"], alone),
            Fault::NewProgram => {
                self.note("a new broker program is on disk");
                self.rolled_out(deal);
            }
            Fault::BrokenProgram => {
                self.note(format!(
                    "a broken broker program is on disk for {:?}",
                    deal.lasts
                ));
                self.wrapper
                    .install_again("echo this version is broken >&2; exit 3");
                sleep(deal.lasts);
                self.note("and now a good one");
                self.rolled_out(deal);
            }
            Fault::FileChanged => self.file_changed(tenant, deal),
            Fault::FileHalfWritten => self.file_half_written(tenant, deal),
            Fault::Guest => self.guest(deal),
            Fault::CrashLoop => self.crash_loop(deal),
            Fault::ServerStopped
            | Fault::ServerCrashed
            | Fault::ServerFrozen
            | Fault::SessionsEnded
            | Fault::ReadOnly
            | Fault::SlotsTaken
            | Fault::NetworkDark => self.server_suffers(deal),
            Fault::SupervisorHangs => {
                let pid = self.host.pid();
                self.note(format!(
                    "SIGSTOP to the supervisor ({pid}) for {:?}",
                    deal.lasts
                ));
                procs::signal(pid, Signal::SIGSTOP);
                sleep(deal.lasts);
                procs::signal(pid, Signal::SIGCONT);
                self.note("SIGCONT to the supervisor");
            }
            Fault::SupervisorKilled => {
                let before = self.pids();
                self.supervisor_killed(deal.lasts);
                self.taken_over(&before, alone);
            }
            Fault::RolloutCutShort => self.rollout_cut_short(deal.lasts),
            Fault::SupervisorRenewed => {
                let (before, log) = (self.pids(), self.log_length());
                self.note(format!("SIGUSR2 to the supervisor ({})", self.host.pid()));
                self.host.succeed();
                until(WHOLE, "the next program to have taken over", || {
                    self.log_since(log)
                        .contains("taken over as they are")
                        .then_some(())
                });
                self.note("the next program has taken over");
                self.taken_over(&before, alone);
            }
        }
    }

    /// Installs a good program and waits until every instance runs it.
    fn rolled_out(&self, deal: &Deal) {
        let before = self.pids();
        self.wrapper.install_again(&format!("# {}", deal.dice));
        self.host
            .wait(WHOLE, "every instance to be another", |status| {
                pids(status).is_disjoint(&before)
                    && self
                        .tenants
                        .iter()
                        .all(|t| status.state(t.name()) == "ready")
            });
        self.note("every instance is another");
    }

    /// Checks that the next supervisor adopts the running brokers: the same processes, unless another fault ends them.
    fn taken_over(&self, before: &BTreeSet<i32>, alone: bool) {
        if alone {
            self.host
                .wait(WHOLE, &format!("the same brokers: {before:?}"), |status| {
                    pids(status) == *before
                });
        }
    }

    /// Kills the supervisor and starts another after `lasts`.
    ///
    /// Without systemd only the supervisor and its brokers hold a tenant's socket: when all of them have ended, the
    /// port refuses connections. So the supervisor is killed only while a broker holds every address, and no broker is
    /// killed until the supervisor is back.
    fn supervisor_killed(&self, lasts: Duration) {
        let pid = self.host.pid();
        let away = until(WHOLE, "every address to be in a broker's hands", || {
            let away = self.lock_holders();
            let status = self.host.try_status()?;
            stand_still(pid);
            if self.brokers_hold_addresses(&status) {
                return Some(away);
            }
            procs::signal(pid, Signal::SIGCONT);
            None
        });
        let held = self.shared.allowed_failures.hold(None, pid);
        self.note(format!(
            "SIGKILL to the supervisor ({pid}), which holds {held} connections"
        ));
        self.host.kill();
        sleep(lasts);
        self.host.up();
        drop(away);
        self.note(format!("another supervisor runs ({})", self.host.pid()));
    }

    /// Kills the supervisor in the middle of a rollout. The next supervisor finds tenants with two brokers, a starting
    /// and a draining broker, and tenants whose restart was not begun.
    fn rollout_cut_short(&self, lasts: Duration) {
        let before = self.host.broker_pids();
        std::thread::scope(|scope| {
            let ordering = std::thread::Builder::new()
                .name("restart --all".into())
                .spawn_scoped(scope, || self.ordered(&["restart", "--all"], false))
                .unwrap();
            // The restart may also be refused or wait for a server that is away; then its end is awaited instead.
            until(WHOLE, "the first replacement", || {
                let pids = self.host.broker_pids();
                let begun = pids.iter().any(|pid| !before.contains(pid));
                (begun || ordering.is_finished()).then_some(())
            });
            self.note("a replacement has begun");
            self.supervisor_killed(lasts);
        });
    }

    /// Returns true when every tenant under load has a broker that serves. A stopped broker does not count, because the
    /// supervisor may have decided to kill it already.
    fn brokers_hold_addresses(&self, status: &Status) -> bool {
        self.tenants.iter().all(|tenant| {
            status.tenant(tenant.name()).is_some_and(|t| {
                let serves = ["ready", "degraded"].contains(&t.state.as_str());
                serves && t.pid.is_some_and(|pid| !procs::stands_still(pid))
            })
        })
    }

    fn pids(&self) -> BTreeSet<i32> {
        until(WHOLE, "the supervisor to answer", || {
            self.host.try_status().as_ref().map(pids)
        })
    }

    fn broker_killed(&self, name: &str, ends: u64) {
        let supervised = self.lock_holders();
        let pid = self.pid_of(name);
        self.shared
            .allowed_failures
            .open(Reason::NoBroker(name.to_owned()));
        self.killed(name, ends);
        let held = self.shared.allowed_failures.hold(Some(name), pid);
        procs::signal(pid, Signal::SIGKILL);
        self.note(format!(
            "SIGKILL to the broker of {name} ({pid}), which holds {held} connections"
        ));
        until(WHOLE, format!("process {pid} to end"), || {
            (!procs::alive(pid)).then_some(())
        });
        drop(supervised);
    }

    fn broker_hangs(&self, name: &str, ends: u64) {
        let pid = self.pid_of(name);
        self.shared
            .allowed_failures
            .open(Reason::NoBroker(name.to_owned()));
        self.killed(name, ends);
        let held = self.shared.allowed_failures.hold(Some(name), pid);
        self.note(format!(
            "SIGSTOP to the broker of {name} ({pid}), which holds {held} connections"
        ));
        until(
            WHOLE,
            format!("the hung broker of {name} to be ended"),
            || (!procs::alive(pid)).then_some(()),
        );
        self.note(format!("the hung broker of {name} ({pid}) has been ended"));
    }

    /// Runs an operator's command. Alone it must succeed; beside another fault it may fail.
    fn ordered(&self, order: &[&str], alone: bool) {
        self.note(format!("{order:?} begins"));
        let ran = self.host.command(order);
        let said = format!("{}{}", ran.stdout, ran.stderr);
        self.note(format!(
            "{order:?} ends with {:?}: {}",
            ran.code,
            said.trim()
        ));
        assert!(!alone || ran.code == Some(0), "{order:?}: {ran:?}");
    }

    fn file_changed(&self, tenant: &Tenant<'_>, deal: &Deal) {
        let (text, pool) = self.text_of(tenant.name(), true);
        let renamed = deal.dice.is_multiple_of(2);
        self.note(format!(
            "the file of {} gives it a pool of {pool}, {}",
            tenant.name(),
            if renamed {
                "renamed into place"
            } else {
                "written in place"
            }
        ));
        if renamed {
            tenant.replace_file(&text);
        } else {
            tenant.write_file(&text);
        }
        tenant.wait_within(WHOLE, &format!("ready with a pool of {pool}"), |t| {
            t.state == "ready" && t.pool_size == Some(pool)
        });
    }

    fn file_half_written(&self, tenant: &Tenant<'_>, deal: &Deal) {
        let (text, _) = self.text_of(tenant.name(), false);
        // Cut before the end of the listen address, because a half that is a valid file would be applied.
        let end = text.find("listen = \"").expect("says where to listen") + 20;
        let cut = fastrand::Rng::with_seed(deal.dice).usize(..end);
        self.note(format!(
            "the file of {} ends after {cut} bytes for {:?}",
            tenant.name(),
            deal.lasts
        ));
        tenant.write_file(&text[..cut]);
        sleep(deal.lasts);
        tenant.write_file(&text);
        self.note(format!("the file of {} is whole again", tenant.name()));
    }

    fn guest(&self, deal: &Deal) {
        self.note("a guest's file is there");
        let guest = self.host.tenant(GUEST).pool(2).write();
        guest.wait_within(WHOLE, "ready", |t| t.state == "ready");
        let (addr, pid) = (guest.addr(), self.pid_of(GUEST));
        let api = guest.api();
        let mut guests = self
            .guests
            .lock()
            .unwrap_or_else(|broken| broken.into_inner());
        let name = format!("{GUEST}-{:04}-{:x}", guests.len(), deal.dice);
        let body = json!({ "name": name, "cluster_name": GUEST });
        // Ask until the server is back. 409 counts as acknowledgement too, because a name is taken only once.
        until_ok(
            WHOLE,
            "the guest's write to be acknowledged",
            || match api.try_call("POST", "/agents", Some(&body)) {
                Ok(answer) if [201, 409].contains(&answer.status) => Ok(()),
                Ok(answer) if answer.status == 503 => Err(answer.text()),
                other => panic!("the guest's write: {other:?}"),
            },
        );
        guests.push(name);
        let listed = until_ok(WHOLE, "the guest's agents", || {
            match api.try_call("GET", "/agents", None) {
                Ok(answer) if answer.status == 200 => Ok(answer.text()),
                Ok(answer) if answer.status == 503 => Err(answer.text()),
                other => panic!("the guest's agents: {other:?}"),
            }
        });
        let lost: Vec<&String> = guests
            .iter()
            .filter(|name| !listed.contains(*name))
            .collect();
        assert!(lost.is_empty(), "the guest's {lost:?} are not in {listed}");
        drop(guests);
        sleep(deal.lasts / 4);
        self.note("the guest's file is removed");
        guest.remove_file();
        self.host.wait(WHOLE, "the guest to be gone", |status| {
            status.tenant(GUEST).is_none()
        });
        until(WHOLE, "the guest's broker to end", || {
            (!procs::alive(pid)).then_some(())
        });
        assert!(
            http::get(&addr, "/healthz").is_err(),
            "a guest that has gone answers"
        );
        self.note("the guest has gone");
    }

    fn crash_loop(&self, deal: &Deal) {
        self.note(format!("{LOOPER} exits at once for {:?}", deal.lasts));
        self.wrapper
            .first(LOOPER, "echo 'again and again' >&2; exit 1");
        procs::signal(self.pid_of(LOOPER), Signal::SIGKILL);
        sleep(deal.lasts);
        self.wrapper.heal(LOOPER);
        // The result is ignored because the supervisor may be away.
        self.host.command(&["start", LOOPER]);
        self.note(format!("{LOOPER} may run again"));
    }

    fn server_suffers(&self, deal: &Deal) {
        self.shared.allowed_failures.open(Reason::ServerAway);
        self.note(format!("{:?} for {:?}", deal.fault, deal.lasts));
        let (pg, lasts) = (self.host.server(), deal.lasts);
        match deal.fault {
            Fault::ServerStopped => server::stopped(pg, lasts),
            Fault::ServerCrashed => {
                let from = SystemTime::now();
                server::crashed(pg, lasts);
                self.crashes
                    .lock()
                    .unwrap_or_else(|broken| broken.into_inner())
                    .push((from, SystemTime::now()));
            }
            // Longer than a request waits for a connection, so that some requests are answered 503.
            Fault::ServerFrozen => server::frozen(pg, lasts * 2),
            Fault::ReadOnly => server::read_only(pg, lasts),
            Fault::NetworkDark => {
                self.network.black_hole();
                sleep(lasts * 2);
                // Without the cut, sessions of abandoned connections keep their locks until the kernel sends their last
                // packet again: seconds, after an outage of seconds.
                self.network.cut();
                self.network.forward();
            }
            Fault::SessionsEnded => {
                let ended = server::sessions_ended(pg, lasts);
                self.note(format!("{ended} sessions were ended"));
            }
            Fault::SlotsTaken => {
                let taken = server::slots_taken(pg, lasts);
                self.note(format!("{taken} connections were taken"));
            }
            other => panic!("{other:?} is not a fault of a server"),
        }
        self.server_suffers_no_more();
        self.note(format!("{:?} is over", deal.fault));
    }
}

/// Returns the pids of the current instances.
fn pids(status: &Status) -> BTreeSet<i32> {
    status.tenants.iter().filter_map(|t| t.pid).collect()
}
