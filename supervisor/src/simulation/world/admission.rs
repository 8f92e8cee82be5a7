//! Work of the fleet between two events: reconcile the tenants with files and servers.

use super::*;

/// Most judgements at once, as in the fleet.
const MOST_ROUNDS: usize = 8;

impl World {
    /// Gives the core the files and servers as they are now, and reconciles the tenants with them.
    pub(super) fn judge(&mut self) {
        if std::mem::take(&mut self.unread) {
            let files = self.tenants.iter();
            let files = files.filter_map(|t| Some((t.name.clone(), t.file.clone()?)));
            self.tell(Fact::Files {
                tenants: files.collect(),
                listed: true,
            });
        }
        self.tell(Fact::Servers(Arc::new(self.view())));
        for _ in 0..MOST_ROUNDS {
            let effects = self.core.reconcile(self.now);
            if std::mem::replace(&mut self.judgements, self.core.judgements) != self.core.judgements
            {
                let admitted = self.core.remembered().admitted.clone();
                let before = std::mem::replace(&mut self.admitted, admitted);
                self.check_admission(&before);
            }
            self.note_granted();
            self.carry_out(effects);
            if !self.core.is_unsettled() {
                break;
            }
        }
        for n in 0..self.tenants.len() {
            if self.tenants[n].forgotten {
                self.tenants[n].forgotten = self.wanted(n).is_none();
            }
        }
    }

    /// Checks that the core has left out no judgement: a judgement of all tenants changes nothing.
    pub(super) fn check_judged(&mut self) {
        let verdict = self.core.decided().verdict.clone();
        self.unread = true;
        self.judge();
        for n in 0..self.tenants.len() {
            let name = &self.tenants[n].name;
            let now = &self.core.decided().verdict;
            let same = verdict.tenants.get(name) == now.tenants.get(name);
            self.rule(same, n, "a decision about it was out of date");
        }
    }

    /// Returns the servers as the probers see them. A server counts as never tried until it is identified.
    fn view(&self) -> ServersView {
        let endpoint = |server: &SimServer| match (server.seen, server.up) {
            (false, _) => Endpoint::Unknown,
            (true, true) => Endpoint::Ready(server.place()),
            (true, false) => Endpoint::Unreachable {
                reason: format!("{} is away", server.id),
                since: self.began,
                last: Some(server.place()),
            },
        };
        let endpoints = self.servers.iter().map(|s| (s.url.clone(), endpoint(s)));
        let seen = self.servers.iter().filter(|s| s.seen);
        let servers = seen.map(|s| (s.id.clone(), ServerView::unseen(s.facts())));
        ServersView {
            endpoints: endpoints.collect(),
            servers: servers.collect(),
            aliases: BTreeMap::new(),
        }
    }
}
