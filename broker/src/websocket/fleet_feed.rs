//! Sends fleet subscribers the record of every agent that changed, and regularly of agents whose counters changed
//! alone.
//!
//! Without subscribers nothing runs and no change is noted. Changes within `GATHER` share one statement, so the
//! heartbeats of a fleet of any size cost a few statements a second.

use std::collections::HashMap;
use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior, interval_at, sleep};
use uuid::Uuid;

use super::frames;
use super::handle::WebSockets;
use crate::app::App;
use crate::db::DbError;
use crate::metrics::frame_kind::FrameKind;
use crate::store::fleet::{self, FleetCounters, FleetRecord};

/// Time for which changes are gathered. The statement is large: planning it takes milliseconds, for any number of
/// agents.
const GATHER: Duration = Duration::from_millis(200);
/// Time between two comparisons of every agent's counters.
const SWEEP: Duration = Duration::from_secs(20);

/// Runs the feed for ever.
pub(super) async fn keep(app: App) {
    let changes = &app.live.0.fleet_changes;
    loop {
        while !app.live.is_watched() {
            changes.woken.notified().await;
        }
        watched(&app).await;
        // Drops changes that were noted for subscribers that have left.
        drop(changes.take());
    }
}

/// Feeds while the fleet has subscribers.
async fn watched(app: &App) {
    let mut known = HashMap::new();
    // The first sweep runs at once: it only learns the counters.
    let mut sweeps = interval_at(Instant::now(), SWEEP);
    sweeps.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while app.live.is_watched() {
        // Both arms are cancel-safe: a notification stays stored.
        let done = tokio::select! {
            _ = sweeps.tick() => sweep(app, &mut known).await,
            () = app.live.0.fleet_changes.woken.notified() => {
                sleep(GATHER).await;
                tell(app, &mut known).await
            }
        };
        if let Err(error) = done {
            tracing::debug!(%error, "the fleet's subscribers were told nothing");
        }
    }
}

/// Sends the records of the agents that were noted.
async fn tell(app: &App, known: &mut HashMap<Uuid, FleetCounters>) -> Result<(), DbError> {
    let agents = app.live.0.fleet_changes.take();
    if agents.is_empty() || !app.live.is_watched() {
        return Ok(());
    }
    let mut records = app.db.run(move |db| fleet::of_agents(db, &agents)).await?;
    app.live.fill(&mut records);
    for record in records {
        known.insert(record.agent_id, record.counters());
        send(&app.live, &record);
    }
    Ok(())
}

/// Sends the records of the agents whose counters differ from the last sweep. An agent seen for the first time is only
/// remembered, because its connection already causes a record.
async fn sweep(app: &App, known: &mut HashMap<Uuid, FleetCounters>) -> Result<(), DbError> {
    let mut records = app.db.run(fleet::list).await?;
    app.live.fill(&mut records);
    let mut before = std::mem::take(known);
    for record in records {
        let counters = record.counters();
        if before
            .remove(&record.agent_id)
            .is_some_and(|seen| seen != counters)
        {
            send(&app.live, &record);
        }
        known.insert(record.agent_id, counters);
    }
    Ok(())
}

fn send(live: &WebSockets, record: &FleetRecord) {
    let frame = frames::downlink(FrameKind::FleetUpdate, record);
    for peer in live.0.registry.of_fleet() {
        peer.outbound_queue.put(frame.clone());
    }
}
