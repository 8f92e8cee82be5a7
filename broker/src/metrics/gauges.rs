//! Gauges from the database: the numbers of agents, stacks and objects, and the age of the agents' last heartbeats.
//!
//! A scrape shows the latest reading and never waits (`jobs::gauges` reads). Each scrape is noted here, so that the job
//! reads nothing while there are no scrapes. Heartbeats are kept as points in time, so that ages grow between two
//! readings.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use prometheus::{IntGaugeVec, Opts, Registry};
use tokio::time::Instant;
use uuid::Uuid;

use super::registration::gauge;

/// The largest number of agents whose heartbeat is shown, because each is a series of its own. The longest silent come
/// first.
pub const MOST_AGENTS: i64 = 1000;

/// The result of one reading.
#[derive(Clone, Debug, Default)]
pub struct GaugeReading {
    /// Live agents whose status is `ACTIVE`.
    pub active_agents: i64,
    /// Live stacks.
    pub stacks: i64,
    /// Live deployment objects, deletion markers included.
    pub deployment_objects: i64,
    /// The longest silent agents, at most [`MOST_AGENTS`].
    pub heartbeats: Vec<AgentHeartbeat>,
}

/// An agent's last heartbeat.
#[derive(Clone, Debug)]
pub struct AgentHeartbeat {
    /// The agent.
    pub agent: Uuid,
    /// The agent's name.
    pub name: String,
    /// Age of the heartbeat at the time of the reading.
    pub age: Duration,
}

/// The latest reading, and the time of the last scrape.
#[derive(Debug, Default)]
pub struct Gauges(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    read: Option<(Instant, GaugeReading)>,
    scraped: Option<Instant>,
    default_admin_pak: bool,
}

impl Gauges {
    /// Notes a scrape.
    pub fn scraped(&self) {
        self.state().scraped = Some(Instant::now());
    }

    /// Returns the time since the last scrape, if there was one.
    pub fn since_scrape(&self) -> Option<Duration> {
        self.state().scraped.map(|at| at.elapsed())
    }

    /// Returns the age of the reading, if there is one.
    pub fn age(&self) -> Option<Duration> {
        self.state().read.as_ref().map(|(at, _)| at.elapsed())
    }

    /// Replaces the reading. Agents that it does not name are no longer shown.
    pub fn set(&self, reading: GaugeReading) {
        self.state().read = Some((Instant::now(), reading));
    }

    /// Notes whether the administrator's PAK is the public development one.
    pub fn set_default_admin_pak(&self, in_use: bool) {
        self.state().default_admin_pak = in_use;
    }

    /// Returns true when the administrator's PAK is the public development one.
    pub fn default_admin_pak(&self) -> bool {
        self.state().default_admin_pak
    }

    /// Adds the gauges to a scrape. Values that have not been read yet are left out, because zero would be wrong.
    pub(super) fn read(&self, scrape: &Registry) -> prometheus::Result<()> {
        let state = self.state();
        gauge(
            scrape,
            "brokkr_default_admin_pak_hash_in_use",
            "1 when the administrator's PAK is the public development one.",
        )?
        .set(state.default_admin_pak.into());
        let Some((at, reading)) = &state.read else {
            return Ok(());
        };
        for (name, help, value) in [
            (
                "brokkr_active_agents",
                "Agents whose status is ACTIVE.",
                reading.active_agents,
            ),
            ("brokkr_stacks_total", "Stacks there are.", reading.stacks),
            (
                "brokkr_deployment_objects_total",
                "Deployment objects there are.",
                reading.deployment_objects,
            ),
        ] {
            gauge(scrape, name, help)?.set(value);
        }
        let ages = Opts::new(
            "brokkr_agent_heartbeat_age_seconds",
            "Seconds since an agent's last heartbeat, as of half a minute ago at most; of the 1000 agents silent for longest.",
        );
        let ages = IntGaugeVec::new(ages, &["agent_id", "agent_name"])?;
        scrape.register(Box::new(ages.clone()))?;
        for heartbeat in &reading.heartbeats {
            let age = heartbeat.age + at.elapsed();
            ages.with_label_values(&[&heartbeat.agent.to_string(), &heartbeat.name])
                .set(age.as_secs().cast_signed());
        }
        Ok(())
    }

    /// A panic cannot leave the state half changed, because every change is one assignment.
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use prometheus::TextEncoder;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn ages_go_on_growing_and_what_is_gone_is_shown_no_longer() {
        let gauges = Gauges::default();
        let text = || {
            let scrape = Registry::new();
            gauges.read(&scrape).unwrap();
            TextEncoder::new()
                .encode_to_string(&scrape.gather())
                .unwrap()
        };
        assert!(text().contains("brokkr_default_admin_pak_hash_in_use 0\n"));
        assert!(!text().contains("brokkr_active_agents"), "not known yet");
        let agent = Uuid::nil();
        let heartbeat = AgentHeartbeat {
            agent,
            name: "a\"\\\nb".to_owned(),
            age: Duration::from_secs(5),
        };
        let mut reading = GaugeReading {
            active_agents: 3,
            heartbeats: vec![heartbeat],
            ..GaugeReading::default()
        };
        gauges.set(reading.clone());
        tokio::time::sleep(Duration::from_secs(10)).await;
        let line = format!(
            "brokkr_agent_heartbeat_age_seconds{{agent_id=\"{agent}\",agent_name=\"a\\\"\\\\\\nb\"}} 15\n"
        );
        assert!(text().contains(&line), "{}", text());
        assert!(text().contains("brokkr_active_agents 3\n"));
        reading.heartbeats.clear();
        gauges.set(reading);
        assert!(!text().contains("agent_id="), "{}", text());
    }
}
