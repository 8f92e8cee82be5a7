//! Random faults, and random actions of operators.

use std::sync::Arc;
use std::time::Duration;

use brokkr_tenant::{Listen, SchemaName};

use super::process::Step;
use super::world::{Due, File, Habit, World};
use crate::config::FileProblem;
use crate::fleet::core::Fact;
use crate::fleet::handle::Order;
use crate::lifecycle::{Event, InstanceId};

impl World {
    /// Makes one random fault or action happen.
    pub(super) fn fault(&mut self) {
        let n = self.rng.usize(..self.tenants.len());
        match self.rng.u32(0..1000) {
            0..250 => self.write_file(n),
            250..300 => self.break_file(n),
            300..340 => self.remove_file(n),
            340..480 => self.crash(n),
            480..530 => self.hang(n),
            530..570 => self.order(n, Event::Restart),
            570..600 => self.order(n, Event::NewProgram),
            600..640 => self.order(n, Event::Start),
            640..670 => self.stop(n),
            670..700 => self.order(n, Event::Reload),
            700..760 => self.tenants[n].port_taken = self.now + Duration::from_secs(20),
            760..850 => self.server_away(n),
            850..900 => self.server_resized(n),
            900..910 => self.stalled_until = self.now + Duration::from_secs(15),
            910..914 => self.succeed(),
            _ => self.mend(n),
        }
        self.judge_soon();
    }

    /// Ends all faults, but undoes no action of an operator.
    pub(super) fn heal(&mut self) {
        self.faults = false;
        for server in &mut self.servers {
            server.up = true;
        }
        for n in 0..self.tenants.len() {
            self.tenants[n].port_taken = Duration::ZERO;
            self.mend(n);
        }
        self.judge_soon();
    }

    fn mend(&mut self, n: usize) {
        if let Some(Ok(file)) = &mut self.tenants[n].file
            && file.habit != Habit::Good
        {
            Arc::make_mut(file).habit = Habit::Good;
            self.unread = true;
        }
    }

    pub(super) fn write_file(&mut self, n: usize) {
        let tenants = self.tenants.len();
        // Sometimes choose a schema or an address that another tenant may have.
        let taken = |rng: &mut fastrand::Rng| {
            if rng.u8(..) < 10 {
                rng.usize(..tenants)
            } else {
                n
            }
        };
        let rng = &mut self.rng;
        let habit = match rng.u8(..) {
            0..15 => Habit::Crashes,
            15..22 => Habit::Misconfigured,
            22..28 => Habit::NeverReady,
            _ => Habit::Good,
        };
        let pool = [2, 5, 10, 10, 20][rng.usize(..5)];
        let server = if rng.u8(..) < 20 {
            rng.usize(..self.servers.len())
        } else {
            n % self.servers.len()
        };
        let file = File {
            pool,
            server,
            url: self.servers[server].url.clone(),
            schema: SchemaName::parse(&format!("s{}", taken(rng))).unwrap(),
            listen: Listen::parse(&format!("127.0.0.1:{}", 1024 + taken(rng))).unwrap(),
            priority: rng.i32(0..3),
            enabled: rng.u8(..) >= 8,
            habit,
        };
        self.unread = true;
        self.tenants[n].file = Some(Ok(Arc::new(file)));
        if self.rng.bool() && self.is_stopped(n) {
            self.order(n, Event::Start);
        }
    }

    fn break_file(&mut self, n: usize) {
        if self.tenants[n].file.is_some() {
            let problem = FileProblem::from("its file is broken".to_owned());
            self.unread = true;
            self.tenants[n].file = Some(Err(Arc::new(problem)));
        }
    }

    fn remove_file(&mut self, n: usize) {
        self.unread = true;
        self.tenants[n].file = None;
    }

    fn some_process(&mut self, n: usize) -> Option<InstanceId> {
        let ids: Vec<InstanceId> = self.tenants[n].processes.keys().copied().collect();
        (!ids.is_empty()).then(|| ids[self.rng.usize(..ids.len())])
    }

    fn crash(&mut self, n: usize) {
        if let Some(id) = self.some_process(n) {
            self.after(Duration::from_millis(1), Due::Process(n, id, Step::Crashes));
        }
    }

    fn hang(&mut self, n: usize) {
        if let Some(id) = self.some_process(n)
            && let Some(process) = self.tenants[n].processes.get_mut(&id)
        {
            process.hung = true;
        }
    }

    pub(super) fn order(&mut self, n: usize, event: Event) {
        if self.entry(n).is_none() {
            return;
        }
        let name = self.tenants[n].name.clone();
        match event {
            Event::Restart => {
                self.tenants[n].generation += 1;
                return self.tell(Fact::Order(name, Order::Restart));
            }
            Event::NewProgram => {
                let tenant = &mut self.tenants[n];
                tenant.generation += 1;
                tenant.program = tenant.generation;
            }
            Event::Start => return self.tell(Fact::Order(name, Order::Start)),
            _ => {}
        }
        self.feed(n, event);
    }

    fn stop(&mut self, n: usize) {
        if self.tenants[n].file.is_some() {
            let name = self.tenants[n].name.clone();
            self.tell(Fact::Order(name, Order::Stop));
        }
    }

    fn server_away(&mut self, n: usize) {
        let server = n % self.servers.len();
        self.servers[server].up = !self.servers[server].up || self.rng.u8(..) < 80;
    }

    fn server_resized(&mut self, n: usize) {
        let tenants = u32::try_from(self.tenants.len()).unwrap_or(u32::MAX);
        let room = tenants / u32::try_from(self.servers.len()).unwrap_or(1) * 8;
        let server = n % self.servers.len();
        // Connections given out under the old size are not taken back.
        let before = self.servers[server].capacity();
        self.servers[server].granted = self.servers[server].granted.max(before);
        self.servers[server].max_connections = self.rng.u32(room / 2..room * 2) + 20;
    }
}
