//! Webhooks: events to deliveries, and deliveries out.
//!
//! One run is short: events become deliveries, what is due again becomes pending, and as many deliveries are taken as may
//! begin now. Each then goes its way as a task of its own ([`deliver`]), so one endpoint that hangs delays only what waits for
//! its own lane. A task that ends makes room and calls for the next run.

mod deliver;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use uuid::Uuid;

use crate::app::App;
use crate::db::{Conn, DbError};
use crate::metrics::Carrier;
use crate::store::deliveries::claims::{self, Taken};
use crate::store::deliveries::fan_out::fan_out;
use crate::store::webhooks;
use crate::webhook::crypto::Key;
use crate::webhook::endpoint::Endpoint;
use crate::webhook::flights::LANE;
use crate::webhook::outcome::Outcome;
use crate::webhook::settle;

/// Events turned into deliveries by one statement.
const EVENTS: i64 = 200;

/// Such statements in one run: requests come in between two runs.
const STATEMENTS: usize = 10;

/// Deliveries made pending again by one statement, of each kind.
const RELEASED: i64 = 1000;

/// The column of the look around: seconds until something falls due. Deliveries that wait for the broker are due now, wherever they
/// come from: another instance that has ended, or a subscription that was enabled.
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

/// A delivery about to go out.
struct Departure {
    taken: Taken,
    endpoint: Endpoint,
}

/// What a look at the database has found.
struct Round {
    departures: Vec<Departure>,
    /// More could have been taken, or will be as soon as there is room.
    more: bool,
    /// When something falls due by itself.
    due: Option<Duration>,
}

/// Does what is due.
pub(super) async fn run(app: &App) -> Result<Option<Duration>, DbError> {
    let hot = app.hot.get();
    if let Some(rest) = app.webhooks.rounds().begin(hot.webhook_delivery_interval) {
        return Ok(Some(rest));
    }
    let batch = hot.webhook_delivery_batch_size;
    let flights = app.webhooks.flights();
    let landed = flights.landings();
    let worker = app.clone();
    let round = app.db.run(move |conn| round(&worker, conn, batch)).await?;
    for Departure { taken, endpoint } in round.departures {
        let flight = flights.begin(taken.lane);
        tokio::spawn(deliver::deliver(app.clone(), taken, endpoint, flight));
    }
    if round.more {
        app.webhooks.rounds().goes_on();
        // With something under way the next run comes when that has made room: an endpoint that hangs must not keep this
        // broker asking. What has landed since the look did not know that there is more.
        if flights.aloft() == 0 || flights.landings() != landed {
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
    // Asked before anything is taken: a failure after that would leave deliveries taken and nobody to deliver them.
    let due = claims::due(conn)?.map(|seconds| {
        // What could not be done just now is for somebody else, or for a moment later.
        Duration::try_from_secs_f64(seconds.max(1.0)).unwrap_or(Duration::MAX)
    });
    let mut round = Round {
        departures: Vec::new(),
        more,
        due,
    };
    let free = i64::try_from(app.webhooks.flights().free()).unwrap_or(0);
    let wanted = free.min(batch);
    if app.health.is_draining() || wanted == 0 {
        round.more |= wanted == 0;
        return Ok(round);
    }
    let Some(key) = key(app, conn)? else {
        return Ok(round);
    };
    let (lanes, counts) = app.webhooks.flights().lanes();
    let taken = claims::for_broker(conn, wanted, &lanes, &counts)?;
    // A full lane may have more behind it; so may a full batch.
    round.more |= taken.len() as i64 == wanted || is_full(&lanes, &counts, &taken);
    for taken in taken {
        if let Some(departure) = open(app, conn, &key, taken) {
            round.departures.push(departure);
        }
    }
    Ok(round)
}

/// Whether a lane is full with what was under way in it and what has been taken now.
fn is_full(lanes: &[Uuid], counts: &[i32], taken: &[Taken]) -> bool {
    let mut places: HashMap<Uuid, i32> =
        lanes.iter().copied().zip(counts.iter().copied()).collect();
    for taken in taken {
        *places.entry(taken.lane).or_default() += 1;
    }
    places.values().any(|count| *count >= LANE)
}

/// The key to open endpoints with. A broker that has none takes no deliveries: whoever made the subscriptions has one.
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

/// A delivery whose endpoint can be read. One that cannot be is dead at once.
fn open(app: &App, conn: &mut Conn, key: &Key, taken: Taken) -> Option<Departure> {
    match Endpoint::open(key, &taken.sealed) {
        Ok(endpoint) => Some(Departure { taken, endpoint }),
        Err(field) => {
            app.metrics.webhooks.count(field, Carrier::Broker);
            app.webhooks.say_unreadable(taken.held.subscription_id);
            // Its claim ends by itself if this fails, and it comes back.
            if let Err(error) = settle(conn, &taken.held, &Outcome::unreadable(field), None) {
                tracing::warn!(%error, "a dead webhook delivery could not be written down");
            }
            None
        }
    }
}
