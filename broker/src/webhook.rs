//! Webhooks: delivery of the tenant's events to HTTP endpoints.
//!
//! ```text
//! a write --emit--> event_outbox --job: fan out--> webhook_deliveries --job: take--> endpoint --settle--> success, failed, dead
//!                                                                     --GET pending--> agent --POST result--^
//! ```
//!
//! This module holds the parts of a delivery: the secrets and their key ([`crypto`], [`key`], [`endpoint`]), the
//! allowed targets ([`address_policy`]), the request ([`client`]), the meaning of its result ([`retry_policy`]), and the deliveries
//! under way ([`in_flight`]). `jobs::webhooks` puts them together; the rows are in `store::webhooks` and
//! `store::deliveries`.
//!
//! A broker or agent claims a delivery when it takes it, until the claim ends. Only the holder of the claim records the
//! result (`domain::webhook_deliveries`), so two brokers never settle the same delivery, and a killed broker's delivery is taken again.

pub mod address_policy;
pub mod client;
pub mod crypto;
pub mod endpoint;
pub mod in_flight;
pub mod key;
mod poll_pacing;
pub mod retry_policy;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use brokkr_tenant::BrokerConfig;
use tokio::sync::Semaphore;
use uuid::Uuid;

use address_policy::AddressPolicy;
use client::Client;
use crypto::Key;
use in_flight::InFlight;
use key::{KeyError, KeySource};
pub use poll_pacing::PollPacing;

/// The largest number of test requests at once; others wait within their own time limit.
const TESTS: usize = 8;

/// The largest number of requests at once, each with a socket.
pub const MOST_REQUESTS: u32 = (in_flight::MOST + TESTS) as u32;

/// The state of the broker's webhooks. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Webhooks(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    source: KeySource,
    /// The key, once it is known. It never changes because the key file is never written again.
    key: Mutex<Option<Key>>,
    client: Client,
    in_flight: InFlight,
    rounds: PollPacing,
    tests: Semaphore,
    said: AtomicBool,
}

impl Webhooks {
    /// Returns the webhooks of this configuration, with the key from this source.
    pub fn new(config: &BrokerConfig, source: KeySource) -> Self {
        Self(Arc::new(Inner {
            source,
            key: Mutex::default(),
            client: Client::new(AddressPolicy::new(&config.webhooks)),
            in_flight: InFlight::new(),
            rounds: PollPacing::default(),
            tests: Semaphore::new(TESTS),
            said: AtomicBool::new(false),
        }))
    }

    /// Returns the key to seal with; creates it if there is none. Blocks on a file.
    pub fn sealing_key(&self) -> Result<Key, KeyError> {
        let mut known = self.known_key();
        if let Some(key) = &*known {
            return Ok(key.clone());
        }
        let key = self.0.source.find_or_make()?;
        *known = Some(key.clone());
        Ok(key)
    }

    /// Returns the key to open with, if there is one. Blocks on a file.
    pub fn opening_key(&self) -> Result<Option<Key>, KeyError> {
        let mut known = self.known_key();
        if known.is_none() {
            *known = self.0.source.find()?;
        }
        Ok(known.clone())
    }

    fn known_key(&self) -> MutexGuard<'_, Option<Key>> {
        self.0.key.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the client that sends requests.
    pub fn client(&self) -> &Client {
        &self.0.client
    }

    /// Returns the deliveries under way.
    pub fn in_flight(&self) -> &InFlight {
        &self.0.in_flight
    }

    /// Returns the schedule of the webhook job's rounds.
    pub fn rounds(&self) -> &PollPacing {
        &self.0.rounds
    }

    /// Logs once that a subscription's secrets do not fit the key. Each delivery that fails for this reason is also
    /// counted and in the audit log.
    pub fn say_unreadable(&self, subscription: Uuid) {
        if !self.0.said.swap(true, Ordering::Relaxed) {
            tracing::error!(
                %subscription,
                "a webhook's secrets were sealed with another key: its deliveries are dead until they are set again"
            );
        }
    }

    /// Returns the permits of test requests.
    pub fn tests(&self) -> &Semaphore {
        &self.0.tests
    }
}
