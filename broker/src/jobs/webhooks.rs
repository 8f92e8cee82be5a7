//! Webhooks: turns events into deliveries, and sends deliveries.
//!
//! One run is short: it turns events into deliveries, makes due retries pending, and takes as many deliveries as may
//! begin now. Each delivery is sent by a task of its own ([`deliver`]), so an endpoint that hangs delays only its own
//! lane. When a task ends, it frees its slot and wakes the next run.

mod deliver;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use uuid::Uuid;

use crate::app::App;
use crate::db::{Conn, DbError};
use crate::domain::webhook_deliveries::settle;
use crate::metrics::Carrier;
use crate::store::deliveries::claims::{self, ClaimedDelivery};
use crate::store::deliveries::fan_out::fan_out;
use crate::store::webhooks;
use crate::webhook::crypto::Key;
use crate::webhook::endpoint::Endpoint;
use crate::webhook::in_flight::LANE;
use crate::webhook::retry_policy::AttemptOutcome;

/// Largest number of events that one statement turns into deliveries.
const EVENTS: i64 = 200;

/// Largest number of such statements in one run, so that requests can run between two runs.
const STATEMENTS: usize = 10;

/// Largest number of deliveries of each kind that one statement makes pending again.
const RELEASED: i64 = 1000;

/// Column of the `look` statement: seconds until a delivery falls due. A pending delivery for the broker is due now: it
/// may have been left by an instance that ended, or its subscription was enabled.
macro_rules! due {
    () => {
        "extract(epoch FROM least(
             (SELECT min(created_at) FROM event_outbox),
             (SELECT min(acquired_until) FROM webhook_deliveries WHERE status = 'acquired'),
             (SELECT min(next_retry_at) FROM webhook_deliveries WHERE status = 'failed'),
             (SELECT now() FROM webhook_subscriptions s
               WHERE s.enabled
                 AND EXISTS (SELECT FROM webhook_deliveries
                              WHERE subscription_id = s.id AND status = 'pending' AND for_broker)
               LIMIT 1)) - now())::float8 AS webhooks_due"
    };
}
pub(super) use due;

/// A delivery that is ready to be sent.
struct Departure {
    taken: ClaimedDelivery,
    endpoint: Endpoint,
}

/// Result of one run's database work.
struct Round {
    departures: Vec<Departure>,
    /// True when more deliveries can be taken, now or once a slot is free.
    more: bool,
    /// Time until the next delivery falls due without a wake.
    due: Option<Duration>,
}

/// Runs the database work and starts a task for each delivery; returns the time until the next run.
pub(super) async fn run(app: &App) -> Result<Option<Duration>, DbError> {
    let runtime_config = app.runtime_config.get();
    if let Some(rest) = app
        .webhooks
        .rounds()
        .begin(runtime_config.webhook_delivery_interval)
    {
        return Ok(Some(rest));
    }
    let batch = runtime_config.webhook_delivery_batch_size;
    let in_flight = app.webhooks.in_flight();
    let landed = in_flight.landings();
    let worker = app.clone();
    let round = app.db.run(move |conn| round(&worker, conn, batch)).await?;
    for Departure { taken, endpoint } in round.departures {
        let in_flight_permit = in_flight.begin(taken.lane);
        tokio::spawn(deliver::deliver(
            app.clone(),
            taken,
            endpoint,
            in_flight_permit,
        ));
    }
    if round.more {
        app.webhooks.rounds().goes_on();
        // While deliveries are under way, the next run starts when one of them ends, so that an endpoint that hangs
        // does not make this broker poll. A delivery that ended since the count above did not know of the remaining
        // work, so run again.
        if in_flight.in_flight_count() == 0 || in_flight.landings() != landed {
            return Ok(Some(Duration::ZERO));
        }
    }
    Ok(round.due)
}

fn round(app: &App, conn: &mut Conn, batch: i64) -> Result<Round, DbError> {
    let mut more = true;
    for _ in 0..STATEMENTS {
        if fan_out(conn, EVENTS)? < EVENTS {
            more = false;
            break;
        }
    }
    claims::release(conn, RELEASED)?;
    // Read before deliveries are taken, because a failure after that would leave them taken but unsent.
    let due = claims::due(conn)?.map(|seconds| {
        // At least one second, because due work that this run left over is another instance's or must wait a moment.
        Duration::try_from_secs_f64(seconds.max(1.0)).unwrap_or(Duration::MAX)
    });
    let mut round = Round {
        departures: Vec::new(),
        more,
        due,
    };
    let free = i64::try_from(app.webhooks.in_flight().free()).unwrap_or(0);
    let wanted = free.min(batch);
    if app.health.is_draining() || wanted == 0 {
        round.more |= wanted == 0;
        return Ok(round);
    }
    let Some(key) = key(app, conn)? else {
        return Ok(round);
    };
    let (lanes, counts) = app.webhooks.in_flight().lanes();
    let taken = claims::for_broker(conn, wanted, &lanes, &counts)?;
    // More deliveries may wait behind a full lane or a full batch.
    round.more |= taken.len() as i64 == wanted || is_full(&lanes, &counts, &taken);
    for taken in taken {
        if let Some(departure) = open(app, conn, &key, taken) {
            round.departures.push(departure);
        }
    }
    Ok(round)
}

/// Returns true when the deliveries under way and those taken now fill a lane.
fn is_full(lanes: &[Uuid], counts: &[i32], taken: &[ClaimedDelivery]) -> bool {
    let mut places: HashMap<Uuid, i32> =
        lanes.iter().copied().zip(counts.iter().copied()).collect();
    for taken in taken {
        *places.entry(taken.lane).or_default() += 1;
    }
    places.values().any(|count| *count >= LANE)
}

/// Returns the key that decrypts endpoints. A broker without a key takes no deliveries, because the broker that made
/// the subscriptions has the key.
fn key(app: &App, conn: &mut Conn) -> Result<Option<Key>, DbError> {
    static TOLD: AtomicBool = AtomicBool::new(false);
    let missing = match app.webhooks.opening_key() {
        Ok(Some(key)) => return Ok(Some(key)),
        Ok(None) if !webhooks::any_enabled(conn)? => return Ok(None),
        Ok(None) => "there is none, and the subscriptions were made elsewhere".to_owned(),
        Err(error) => error.to_string(),
    };
    if !TOLD.swap(true, Ordering::Relaxed) {
        tracing::error!(
            why = missing,
            "this broker cannot deliver webhooks without their key"
        );
    }
    Ok(None)
}

/// Decrypts a delivery's endpoint. When that fails, marks the delivery dead and returns `None`.
fn open(app: &App, conn: &mut Conn, key: &Key, taken: ClaimedDelivery) -> Option<Departure> {
    match Endpoint::open(key, &taken.sealed) {
        Ok(endpoint) => Some(Departure { taken, endpoint }),
        Err(field) => {
            app.metrics.webhooks.count(field, Carrier::Broker);
            app.webhooks.say_unreadable(taken.held.subscription_id);
            // If this fails, the claim expires and the delivery becomes pending again.
            if let Err(error) = settle(conn, &taken.held, &AttemptOutcome::unreadable(field), None)
            {
                tracing::warn!(%error, "a dead webhook delivery could not be written down");
            }
            None
        }
    }
}
