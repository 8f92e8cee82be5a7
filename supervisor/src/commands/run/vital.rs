//! What the supervisor cannot be without: the fleet, its files, signals, the service manager.
//!
//! A panic in one tenant's task is that tenant's failure. A panic in one of these is the supervisor's, and it must not
//! unwind: on its way out it would close and remove sockets that brokers go on serving. The process ends where it stands, as
//! a kill would end it; its brokers live, and the next supervisor takes them over.

use crate::logs::Hub;
use std::cell::Cell;
use std::future::Future;
use std::pin::pin;
use std::time::{Duration, Instant};

/// What Rust's own runtime exits with after a panic.
const EXIT_PANIC: i32 = 101;

thread_local! {
    /// Whether this thread is in the middle of one of them.
    static IN_VITAL: Cell<bool> = const { Cell::new(false) };
}

/// Runs `future` as something the process does not outlive. Cancel-safe as it is itself.
pub(super) async fn vital<F: Future>(future: F) -> F::Output {
    let mut future = pin!(future);
    std::future::poll_fn(|context| {
        let outer = IN_VITAL.replace(true);
        let polled = future.as_mut().poll(context);
        IN_VITAL.set(outer);
        polled
    })
    .await
}

/// From now on panics are logged, and one in something vital ends the process once the log has been written, for which the
/// sink gets `patience`.
pub(super) fn end_with_them(hub: Hub, patience: Duration) {
    std::panic::set_hook(Box::new(move |panic| {
        tracing::error!("{panic}");
        if IN_VITAL.get() {
            tracing::error!("the supervisor has failed, and ends: every broker runs on");
            hub.flush(Instant::now() + patience);
            std::process::exit(EXIT_PANIC);
        }
    }));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_what_is_polled_as_vital_is_vital() {
        assert!(!IN_VITAL.get());
        let inside = vital(async {
            let before = IN_VITAL.get();
            tokio::task::yield_now().await;
            let nested = vital(async { IN_VITAL.get() }).await;
            before && nested && IN_VITAL.get()
        });
        // Another task that has its turn between two polls of it.
        let beside = async {
            tokio::task::yield_now().await;
            IN_VITAL.get()
        };
        assert_eq!(tokio::join!(inside, beside), (true, false));
        assert!(!IN_VITAL.get());
    }
}
