//! Asks an adopted instance for its stage until it is known.

use super::probe_client::ProbeClient;
use crate::lifecycle::AdoptedStage;
use serde::Deserialize;
use std::path::PathBuf;
use std::time::Duration;
use tokio::sync::mpsc;

/// Pause between two questions to an instance that is starting or does not answer.
const AGAIN: Duration = Duration::from_millis(100);
/// The longest wait for one answer.
const PATIENCE: Duration = Duration::from_secs(1);
/// Capacity of the answer queue.
pub(super) const ANSWERS: usize = 4;

/// Answer of an instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct InstanceState {
    /// Stage of its life.
    pub(super) stage: AdoptedStage,
    /// The largest number of connections it may hold.
    pub(super) connections: u32,
    /// Number of connections it holds.
    pub(super) held: u32,
}

/// The body of `GET /pool`. An older broker sends no phase; it counts as serving.
#[derive(Deserialize)]
struct Pool {
    connections: u32,
    held: u32,
    #[serde(default)]
    phase: String,
}

/// Sends each new answer, and `None` once while there is none, until the instance has started or the receiver is gone.
pub(super) async fn ask(path: PathBuf, answers: mpsc::Sender<Option<InstanceState>>) {
    let mut client = ProbeClient::new(path);
    let mut told = None;
    loop {
        let answer = ask_once(&mut client).await;
        if told != Some(answer) {
            if answers.send(answer).await.is_err() {
                return;
            }
            told = Some(answer);
        }
        if answer.is_some_and(|answer| answer.stage != AdoptedStage::Starting) {
            return;
        }
        tokio::time::sleep(AGAIN).await;
    }
}

async fn ask_once(client: &mut ProbeClient) -> Option<InstanceState> {
    let (status, body) = client.get("/pool", PATIENCE).await?;
    let pool: Pool = serde_json::from_str(&body)
        .ok()
        .filter(|_| status.is_success())?;
    Some(InstanceState {
        stage: match pool.phase.as_str() {
            "starting" => AdoptedStage::Starting,
            "stopping" => AdoptedStage::Stopping,
            _ => AdoptedStage::Serving,
        },
        connections: pool.connections,
        held: pool.held,
    })
}
