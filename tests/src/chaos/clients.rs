//! All clients of a host, running in threads.

use super::account::Tally;
use super::client::{Address, Client, Shared};
use super::ledger::Ledger;
use std::sync::Arc;
use std::thread::JoinHandle;

/// All running clients.
#[derive(Debug)]
pub struct Clients {
    shared: Arc<Shared>,
    running: Vec<JoinHandle<(Tally, Ledger)>>,
}

impl Clients {
    /// Starts two clients for each tenant: one keeps its connection, the other opens a connection for each request.
    pub fn start(shared: &Arc<Shared>, tenants: &[Address], seed: u64) -> Self {
        let mut running = Vec::new();
        for (n, address) in tenants.iter().enumerate() {
            // A PAK of the next tenant, which this tenant must refuse.
            let stranger = &tenants[(n + 1) % tenants.len()];
            for (name, keep_alive) in [("kept", true), ("fresh", false)] {
                let dice = fastrand::Rng::with_seed(seed.wrapping_add(running.len() as u64));
                let mut client =
                    Client::new(shared.clone(), address.clone(), name, keep_alive, dice);
                if stranger.tenant != address.tenant {
                    client.knows(&stranger.pak);
                }
                running.push(std::thread::spawn(move || client.run()));
            }
        }
        Self {
            shared: shared.clone(),
            running,
        }
    }

    /// Ends the clients and returns their counts and ledgers.
    pub fn stop(mut self) -> (Tally, Vec<Ledger>) {
        self.shared.end();
        let mut tally = Tally::default();
        let mut ledgers = Vec::new();
        for client in std::mem::take(&mut self.running) {
            let (seen, ledger) = client.join().unwrap();
            tally.add(&seen);
            ledgers.push(ledger);
        }
        (tally, ledgers)
    }
}

impl Drop for Clients {
    /// Ends the clients when a test fails, because its host goes away.
    fn drop(&mut self) {
        self.shared.end();
    }
}
