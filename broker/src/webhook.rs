//! Webhooks: telling an endpoint of the tenant's what happened.
//!
//! ```text
//! a write --emit--> event_outbox --job: fan out--> webhook_deliveries --job: take--> endpoint --settle--> success, failed, dead
//!                                                                     --GET pending--> agent --POST result--^
//! ```
//!
//! Here is what a delivery is made of, each part for itself: the secrets and their key ([`crypto`], [`key`], [`endpoint`]), where
//! it may go ([`target`]), the request ([`client`]), what its end means ([`outcome`]), and how many are under way
//! ([`flights`]). `jobs::webhooks` puts them together; the rows are `store::webhooks` and `store::deliveries`.
//!
//! A delivery is somebody's from being taken until its claim ends; only who holds the claim writes down how it went
//! ([`settle`]). So two brokers never settle one delivery twice, and one that a killed broker held is taken again.

pub mod client;
pub mod crypto;
pub mod endpoint;
pub mod flights;
pub mod key;
pub mod outcome;
mod rounds;
pub mod target;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use brokkr_tenant::BrokerConfig;
use serde_json::{Value, json};
use tokio::sync::Semaphore;
use uuid::Uuid;

use crate::db::{Conn, DbError};
use crate::emit::{Actor, Audit, emit};
use crate::store::deliveries::{self, Held, Settled};
use client::Client;
use crypto::Key;
use flights::Flights;
use key::{KeyError, KeySource};
use outcome::{Next, Outcome};
pub use rounds::Rounds;
use target::Policy;

/// Test requests under way at once; the rest wait within their own time.
const TESTS: usize = 8;

/// Requests under way at once, each with a socket.
pub const MOST_REQUESTS: u32 = (flights::MOST + TESTS) as u32;

/// What the broker has for its webhooks. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Webhooks(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    source: KeySource,
    /// Once it is known it stays: the file is never written again.
    key: Mutex<Option<Key>>,
    client: Client,
    flights: Flights,
    rounds: Rounds,
    tests: Semaphore,
    said: AtomicBool,
}

impl Webhooks {
    /// As configured, with the key from there.
    pub fn new(config: &BrokerConfig, source: KeySource) -> Self {
        Self(Arc::new(Inner {
            source,
            key: Mutex::default(),
            client: Client::new(Policy::new(&config.webhooks)),
            flights: Flights::new(),
            rounds: Rounds::default(),
            tests: Semaphore::new(TESTS),
            said: AtomicBool::new(false),
        }))
    }

    /// The key to seal with; made if there is none. Blocks on a file.
    ///
    /// # Errors
    /// When there is none to be had.
    pub fn sealing_key(&self) -> Result<Key, KeyError> {
        let mut known = self.known_key();
        if let Some(key) = &*known {
            return Ok(key.clone());
        }
        let key = self.0.source.find_or_make()?;
        *known = Some(key.clone());
        Ok(key)
    }

    /// The key to open with, if there is one. Blocks on a file.
    ///
    /// # Errors
    /// When it cannot be read.
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

    /// Sends requests.
    pub fn client(&self) -> &Client {
        &self.0.client
    }

    /// The deliveries under way.
    pub fn flights(&self) -> &Flights {
        &self.0.flights
    }

    /// When the job may go round again.
    pub fn rounds(&self) -> &Rounds {
        &self.0.rounds
    }

    /// Says that a subscription's secrets do not fit the key. Once for all: each delivery that dies of it is counted, and in
    /// the audit log.
    pub fn say_unreadable(&self, subscription: Uuid) {
        if !self.0.said.swap(true, Ordering::Relaxed) {
            tracing::error!(
                %subscription,
                "a webhook's secrets were sealed with another key: its deliveries are dead until they are set again"
            );
        }
    }

    /// Places for test requests.
    pub fn tests(&self) -> &Semaphore {
        &self.0.tests
    }
}

/// Writes down how an attempt ended, and says so in the audit log if it was the last. `None`: the claim had ended before, the
/// delivery is somebody else's by now, and nothing is written.
///
/// # Errors
/// When the statements fail.
pub fn settle(
    db: &mut Conn,
    held: &Held,
    outcome: &Outcome,
    by: Option<Uuid>,
) -> Result<Option<Settled>, DbError> {
    let next = outcome.next(held.attempts, held.max_retries);
    let failure = match outcome {
        Outcome::Delivered => None,
        Outcome::Failed(failure) => Some(failure),
    };
    let error = failure.map(|failure| failure.error.as_str());
    if next != Next::Dead {
        return deliveries::settle(db, held, next, error);
    }
    db.transaction(|tx| {
        let settled = deliveries::settle(tx, held, next, error)?;
        if let Some(settled) = &settled {
            let mut details = json!({
                "delivery_id": held.id,
                "event_type": held.event_type,
                "attempts": settled.attempts,
                "error": error,
                "retryable": failure.is_some_and(|failure| failure.retryable),
            });
            if let Some(code) = failure.and_then(|failure| failure.status_code) {
                details["status_code"] = Value::from(code);
            }
            if let Some(agent) = by {
                details["delivered_by_agent"] = json!(agent);
            }
            let audit = Audit::new(
                Actor::System,
                "webhook.delivery_failed",
                "webhook_subscription",
                Some(held.subscription_id),
            )
            .details(details);
            emit(tx, &[audit], &[])?;
        }
        Ok(settled)
    })
}
