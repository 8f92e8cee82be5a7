//! Asks an adopted instance for its stage until it is known.

use super::probe_client::ProbeClient;
use crate::lifecycle::AdoptedStage;
use brokkr_tenant::instance_protocol::{InstancePhase, PoolState};
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
    let pool: PoolState = client.get_json("/pool", PATIENCE).await?;
    Some(InstanceState {
        stage: match pool.phase {
            InstancePhase::Starting => AdoptedStage::Starting,
            InstancePhase::Stopping => AdoptedStage::Stopping,
            InstancePhase::Serving => AdoptedStage::Serving,
        },
        connections: pool.connections,
        held: pool.held,
    })
}
