//! The commands `start`, `stop` and `restart`.

use super::client::ControlClient;
use super::{Failure, harmless, say};
use crate::cli::Which;
use crate::control::OrderRequest;
use crate::fleet::handle::{Order, Outcome, Selection};
use std::io::{self, Write};

pub(super) fn order(
    client: &ControlClient,
    which: &Which,
    order: Order,
    keep_going: bool,
) -> Result<(), Failure> {
    let selection = if which.all {
        Selection::All
    } else {
        Selection::Names(which.tenants.clone())
    };
    let outcomes: Vec<Outcome> = client.post(
        "/v1/orders",
        &OrderRequest {
            selection,
            order,
            keep_going,
        },
    )?;
    let mut all_done = true;
    for outcome in &outcomes {
        let line = format!("{}: {}\n", outcome.tenant, harmless(&outcome.message));
        if outcome.done {
            say(line.as_bytes())?;
        } else {
            all_done = false;
            // A write may fail because standard error is closed; the exit status still reports the failure.
            let _ = io::stderr().write_all(line.as_bytes());
        }
    }
    if all_done { Ok(()) } else { Err(Failure::Told) }
}
