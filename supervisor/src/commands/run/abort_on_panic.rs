//! Ends the process on a panic in a task that the supervisor needs: the fleet, its files, signals, the service manager.
//!
//! A panic in one tenant's task is a failure of that tenant only. A panic in a vital task must not unwind, because
//! unwinding would close and remove sockets that brokers still use. The process exits at once, as after a kill; its
//! brokers run on, and the next supervisor takes them over.

use crate::logs::Hub;
use std::cell::Cell;
use std::future::Future;
use std::pin::pin;
use std::time::{Duration, Instant};

/// Exit status of Rust's own runtime after a panic.
const EXIT_PANIC: i32 = 101;

thread_local! {
    /// True while this thread polls a vital task.
    static IN_VITAL: Cell<bool> = const { Cell::new(false) };
}

/// Runs `future` as a vital task: a panic in it ends the process. Cancel-safe if `future` is.
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

/// Logs every panic from now on. A panic in a vital task ends the process once the log is written, at the latest after
/// `patience`.
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
    #![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]
    use super::*;
    use crate::logs::{Output, OutputFormat};
    use std::os::fd::{AsFd, OwnedFd};
    use std::path::PathBuf;
    use std::process::{Command, Output as Ran};
    use tracing_subscriber::layer::SubscriberExt;

    /// Environment variable of the failing process: the path of a file that is removed if the stack unwinds.
    const SOCKET: &str = "BROKKR_TESTS_VITAL";

    /// Socket file that a supervisor would remove if its stack unwound.
    struct Socket(PathBuf);

    impl Drop for Socket {
        fn drop(&mut self) {
            let _ = std::fs::remove_file(&self.0);
        }
    }

    /// Runs one of the tests below in a process of its own.
    fn apart(test: &str, socket: &std::path::Path) -> Ran {
        std::fs::write(socket, "").unwrap();
        Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                &format!("commands::run::abort_on_panic::tests::{test}"),
            ])
            .arg("--nocapture")
            .env(SOCKET, socket)
            .output()
            .unwrap()
    }

    #[test]
    fn a_panic_in_something_vital_ends_the_process_where_it_stands_and_its_last_words_are_written()
    {
        if let Some(socket) = std::env::var_os(SOCKET) {
            let log: OwnedFd = std::io::stdout().as_fd().try_clone_to_owned().unwrap();
            let hub = Hub::start(Output::choose(OutputFormat::Json, log)).unwrap();
            let _log =
                tracing::subscriber::set_default(tracing_subscriber::registry().with(hub.layer()));
            end_with_them(hub, Duration::from_secs(30));
            let runtime = tokio::runtime::Builder::new_current_thread()
                .build()
                .unwrap();
            runtime.block_on(async {
                // This task is not vital, so its panic ends only the task.
                let task = tokio::spawn(async { panic!("a tenant's") });
                assert!(task.await.unwrap_err().is_panic());
                let _socket = Socket(socket.into());
                vital(async { panic!("the fleet's") }).await
            })
        }
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("socket");
        let ran = apart(
            "a_panic_in_something_vital_ends_the_process_where_it_stands_and_its_last_words_are_written",
            &socket,
        );
        let said = String::from_utf8_lossy(&ran.stdout);
        assert_eq!(ran.status.code(), Some(EXIT_PANIC), "{said}");
        assert!(socket.exists(), "something was cleaned up");
        let order: Vec<Option<usize>> = ["a tenant's", "the fleet's", "every broker runs on"]
            .map(|word| said.find(word))
            .into();
        assert!(
            order.iter().all(Option::is_some) && order.is_sorted(),
            "{said}"
        );
    }

    #[tokio::test]
    async fn only_what_is_polled_as_vital_is_vital() {
        assert!(!IN_VITAL.get());
        let inside = vital(async {
            let before = IN_VITAL.get();
            tokio::task::yield_now().await;
            let nested = vital(async { IN_VITAL.get() }).await;
            before && nested && IN_VITAL.get()
        });
        // Another task runs between two polls of the vital task.
        let beside = async {
            tokio::task::yield_now().await;
            IN_VITAL.get()
        };
        assert_eq!(tokio::join!(inside, beside), (true, false));
        assert!(!IN_VITAL.get());
    }
}
