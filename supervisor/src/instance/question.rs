//! Asks an instance that an earlier supervisor started how far it is, until that is certain.

use super::private::Client;
use crate::lifecycle::Stage;
use serde::Deserialize;
use std::path::PathBuf;
use std::time::Duration;
use tokio::sync::mpsc;

/// Between two questions, while it is starting or does not answer.
const AGAIN: Duration = Duration::from_millis(100);
/// For one answer; what takes longer is asked again.
const PATIENCE: Duration = Duration::from_secs(1);
/// Answers between two turns of whoever asked; more than one is only a repeat.
pub(super) const ANSWERS: usize = 4;

/// What an instance said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Answer {
    /// How far it is.
    pub(super) stage: Stage,
    /// The most connections it may hold.
    pub(super) connections: u32,
    /// How many it holds.
    pub(super) held: u32,
}

/// The body of `GET /pool`. A broker that says no phase is older than the word, and served before it said anything.
#[derive(Deserialize)]
struct Pool {
    connections: u32,
    held: u32,
    #[serde(default)]
    phase: String,
}

/// Sends each answer, and `None` once when there is none, until it serves or goes or nobody listens.
pub(super) async fn ask(path: PathBuf, answers: mpsc::Sender<Option<Answer>>) {
    let mut client = Client::new(path);
    let mut told = None;
    loop {
        let answer = ask_once(&mut client).await;
        if told != Some(answer) {
            if answers.send(answer).await.is_err() {
                return;
            }
            told = Some(answer);
        }
        if answer.is_some_and(|answer| answer.stage != Stage::Starting) {
            return;
        }
        tokio::time::sleep(AGAIN).await;
    }
}

async fn ask_once(client: &mut Client) -> Option<Answer> {
    let (status, body) = client.get("/pool", PATIENCE).await?;
    let pool: Pool = serde_json::from_str(&body)
        .ok()
        .filter(|_| status.is_success())?;
    Some(Answer {
        stage: match pool.phase.as_str() {
            "starting" => Stage::Starting,
            "stopping" => Stage::Stopping,
            _ => Stage::Serving,
        },
        connections: pool.connections,
        held: pool.held,
    })
}
