//! Work of the fleet between two events: judge all tenants, grant slots, forget removed tenants.

use super::*;
use crate::lifecycle::HangVerdict;

/// Reason for refusing a tenant whose admitted configuration is on another server and is lost.
pub(super) const ELSEWHERE: &str = "over budget, and admitted elsewhere";

impl World {
    /// Judges all tenants and tells each lifecycle its changes, as the fleet does.
    pub(super) fn judge(&mut self) {
        self.forget_the_gone();
        let facts: BTreeMap<ServerId, Facts> = self
            .servers
            .iter()
            .filter(|s| s.seen)
            .map(|s| (s.id.clone(), s.facts()))
            .collect();
        let admitted: BTreeSet<&TenantName> = self.admitted.iter().map(|a| &a.tenant).collect();
        let tenant_claims: Vec<TenantClaim> = self
            .tenants
            .iter()
            .filter_map(|tenant| self.tenant_claim(tenant, &admitted))
            .collect();
        let decided = decide(&self.admitted, &tenant_claims, &facts, HEADROOM);
        self.check_admission(&decided);
        let Decided { conflicts, verdict } = decided;
        self.admitted.clone_from(&verdict.admitted);
        self.verdict = verdict;
        for n in 0..self.tenants.len() {
            if self.tenants[n].life.is_none() {
                continue;
            }
            let conflict = conflicts.get(&self.tenants[n].name).map(|c| {
                let what = match c.contested {
                    Contested::Schema(_) => "schema",
                    Contested::Address(_) => "address",
                };
                format!("{what} is taken by {}", c.owner)
            });
            let (want, pending) = self.admission(n, conflict);
            self.tell(n, want, pending);
        }
        self.note_granted();
        self.judge_hangs();
        self.grant_slots();
    }

    fn admission(&mut self, n: usize, conflict: Option<String>) -> (Want, Option<String>) {
        let tenant = &mut self.tenants[n];
        let meant = tenant.meant().cloned();
        let refused = |reason: String| (Want::Refused(reason), None);
        let (file, pending) = match (&tenant.file, conflict) {
            (None, _) => return (Want::Gone, None),
            (Some(Ok(file)), _) if !file.enabled => {
                return (Want::Stopped("enabled = false".into()), None);
            }
            _ if tenant.stopped => return (Want::Stopped("by the operator".into()), None),
            (Some(Ok(file)), None) => (file.clone(), None),
            (Some(Ok(_)), Some(conflict)) => match meant.clone() {
                Some(meant) => (meant, Some(conflict)),
                None => return refused(conflict),
            },
            (Some(Err(())), _) => match meant.clone() {
                Some(meant) => (meant, Some("its file is broken".into())),
                None => return refused("its file is broken".into()),
            },
        };
        let (file, pending) = match self.verdict.tenants.get(&tenant.name) {
            Some(Decision::Refused(_)) => return refused("over budget".into()),
            Some(Decision::Nothing) | None => return refused("not judged yet".into()),
            Some(Decision::Keep(_)) => {
                let mut admitted = self.admitted.iter();
                let own = admitted.find(|a| a.tenant == tenant.name).unwrap();
                let candidate = meant.as_ref().unwrap_or(&file);
                let server = &self.servers[candidate.server];
                if server.seen && own.server.as_ref().is_some_and(|id| *id != server.id) {
                    return refused(ELSEWHERE.into());
                }
                // The tenant was admitted under an earlier supervisor, with a smaller pool than its file asks for now.
                let cut = File {
                    pool: own.pool,
                    ..file
                };
                (meant.unwrap_or(cut), Some("over budget".into()))
            }
            Some(Decision::Admitted | Decision::Wait) => (file, pending),
        };
        tenant.forgotten = false;
        let revision = tenant.accept(&file);
        let spec = Spec {
            revision,
            pool: file.pool,
        };
        (Want::Run(spec), pending)
    }

    fn tell(&mut self, n: usize, want: Want, pending: Option<String>) {
        let server = self.tenants[n]
            .accepted
            .as_ref()
            .map(|(_, file)| file.server);
        let account = server.and_then(|s| self.verdict.servers.get(&self.servers[s].id));
        let overlap = account.is_none_or(|account| account.overlap);
        let reachable = match server {
            None => Err("not judged yet".to_owned()),
            Some(s) if self.servers[s].up && self.servers[s].seen => Ok(()),
            Some(s) => Err(format!("{} is away", self.servers[s].id)),
        };
        let told = SimLastFacts {
            want,
            pending,
            server: reachable,
            overlap,
        };
        let before = self.tenants[n].told.replace(told.clone());
        let before = before.as_ref();
        if before.is_none_or(|b| b.server != told.server) {
            self.feed(n, Event::Server(told.server));
        }
        if before.is_none_or(|b| b.overlap != told.overlap) {
            self.feed(n, Event::MayOverlap(told.overlap));
        }
        if before.is_none_or(|b| b.want != told.want || b.pending != told.pending) {
            let (want, pending) = (told.want, told.pending);
            self.feed(n, Event::Wanted { want, pending });
        }
        let tenant = &mut self.tenants[n];
        let accepted = tenant.accepted.as_ref().map(|(revision, _)| *revision);
        if let Some(life) = &tenant.life {
            tenant.revisions.retain(|revision, _| {
                Some(*revision) == accepted
                    || life.instances().any(|i| i.revision == *revision)
                    || life.may_have_left(*revision)
            });
        }
    }

    fn judge_hangs(&mut self) {
        let lives = self.tenants.iter().enumerate();
        let pulses: Vec<_> = lives
            .filter_map(|(n, t)| Some((n, t.life.as_ref()?.pulse())))
            .collect();
        match self.hangs.judge(self.now, pulses.into_iter()) {
            HangVerdict::Nothing | HangVerdict::HostStalled => {}
            HangVerdict::StallEnded => {
                for n in 0..self.tenants.len() {
                    self.feed(n, Event::StallEnded);
                }
            }
            HangVerdict::Replace(n) => {
                let current = self.tenants[n].life.as_ref().and_then(|l| l.current());
                if let Some(id) = current.map(|c| c.id) {
                    let detail = "hung".to_owned();
                    self.feed(n, Event::ReplaceHung { id, detail });
                }
            }
        }
    }

    pub(super) fn grant_slots(&mut self) {
        for s in 0..self.servers.len() {
            let account = self.verdict.servers.get(&self.servers[s].id);
            let mut inherited = InheritedStarts::default();
            for tenant in &self.tenants {
                let here = tenant.accepted.as_ref().is_some_and(|(_, f)| f.server == s);
                if here
                    && let Some(life) = &tenant.life
                    && !self.servers[s].slots.holds(&tenant.name)
                {
                    inherited.count(life);
                }
            }
            let limits = StartLimits {
                starts: PARALLELISM,
                replacements: account.map_or(1, |a| a.replacements_at_once as usize),
                inherited,
            };
            loop {
                let granted = self.servers[s].slots.grant(limits);
                if granted.is_empty() {
                    break;
                }
                for name in granted {
                    self.feed(self.names[&name], Event::SlotGranted);
                }
            }
        }
    }

    pub(super) fn forget_the_gone(&mut self) {
        for n in 0..self.tenants.len() {
            let tenant = &mut self.tenants[n];
            if tenant.file.is_some() && tenant.life.is_none() {
                let seed = self.rng.u64(..);
                tenant.life = Some(Lifecycle::new(POLICY, tenant.first_free, seed));
                tenant.told = None;
            } else if tenant.file.is_none()
                && tenant.processes.is_empty()
                && tenant.told.as_ref().is_some_and(|t| t.want == Want::Gone)
                && let Some(life) = tenant.life.take()
            {
                tenant.first_free = life.next_id().0;
                tenant.accepted = None;
                tenant.revisions.clear();
                tenant.stands_in = false;
            }
        }
    }

    fn tenant_claim(
        &self,
        tenant: &SimTenant,
        admitted: &BTreeSet<&TenantName>,
    ) -> Option<TenantClaim> {
        let life = tenant.life.as_ref()?;
        let wanted = |file: &File| TenantDemand::Pool {
            connections: file.pool,
            at: self.place(file.server),
        };
        let meant = tenant.meant().filter(|_| admitted.contains(&tenant.name));
        let asks = match &tenant.file {
            None => None,
            Some(Ok(file)) if !file.enabled => None,
            Some(_) if tenant.stopped => None,
            Some(Ok(file)) => Some(file),
            Some(Err(())) => meant,
        };
        let running = life
            .instances()
            .filter_map(|i| Some((life.charge(i), tenant.revisions.get(&i.revision)?)));
        let running: Vec<(u32, &File)> = running.collect();
        let priority = asks.map_or(0, |file| file.priority);
        Some(TenantClaim {
            stake: OwnershipClaim {
                tenant: tenant.name.clone(),
                priority,
                running: running
                    .iter()
                    .map(|(_, file)| self.schema_and_address(file))
                    .collect(),
                wanted: asks.map(|file| self.schema_and_address(file)),
            },
            claim: Claim {
                tenant: tenant.name.clone(),
                priority,
                wanted: asks.map_or(TenantDemand::Nothing, wanted),
                held: running
                    .iter()
                    .filter_map(|(pool, file)| {
                        Some(HeldConnections {
                            place: self.place(file.server)?,
                            connections: *pool,
                        })
                    })
                    .collect(),
            },
            fallback: meant.map_or(TenantDemand::Nothing, wanted),
        })
    }

    /// Returns the place where tenants of this server connect, once the server is identified.
    fn place(&self, server: usize) -> Option<ConnectionTarget> {
        let server = &self.servers[server];
        server.seen.then(|| ConnectionTarget {
            server: server.id.clone(),
            database: 1,
            role: "brokkr".into(),
            superuser: false,
        })
    }

    pub(super) fn schema_and_address(&self, file: &File) -> SchemaAndAddress {
        SchemaAndAddress {
            database: self.place(file.server).map(|place| (place.server, 1)),
            spelled: format!("server-{}", file.server),
            schema: SchemaName::parse(&format!("s{}", file.schema)).unwrap(),
            listen: Listen::parse(&format!("127.0.0.1:{}", 1024 + file.listen)).unwrap(),
        }
    }
}
