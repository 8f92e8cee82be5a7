//! The tools of the whole-system tests.
//!
//! A test checks behaviour that an operator or a client sees, with the two real binaries, its own PostgreSQL and
//! nothing mocked:
//!
//! ```no_run
//! let host = brokkr_tests::Host::new();
//! let acme = host.tenant("acme").pool(10).up();
//! assert_eq!(acme.api().get("/agents").status, 200);
//! host.stop();
//! assert_eq!(host.leftovers(), Vec::<String>::new());
//! ```
//!
//! | module | content |
//! |---|---|
//! | [`alone`](mod@alone) | [`alone()`]: no other test of the program runs |
//! | [`test_dir`] | a short temporary folder; processes that cannot outlive the test |
//! | [`wait`] | [`wait::until`]: wait for a state, with a bound; no test sleeps for a fixed time; [`wait::SetAtEnd`] |
//! | [`says`](mod@says) | [`says()`]: a text contains these words |
//! | [`ports`] | loopback ports that no other test is given |
//! | [`bin`] | the two binaries, beside the test's own executable |
//! | [`pg`] | [`PgServer`]: a PostgreSQL server to start, stop, freeze and query |
//! | [`seed`](mod@seed) | seeds of random tests: fixed, unless new seeds are asked for |
//! | [`proxy`] | [`Proxy`]: a network in between that can hold, lose or cut connections |
//! | [`http`] | a blocking HTTP client over TCP and Unix sockets whose connections a test can hold open |
//! | [`broker`] | [`Broker`]: a single broker without a supervisor |
//! | [`notify_listener`] | [`NotifyListener`]: systemd's end of `NOTIFY_SOCKET` |
//! | [`ws`] | a blocking WebSocket client: frames as JSON, closes as their code |
//! | [`load`] | [`Load`]: clients that repeat a request and count the results |
//! | [`host`] | [`Host`]: a supervisor, its tenants and their server |
//! | [`systemd_host`] | [`Machine`](systemd_host::Machine): a host that a real systemd runs |
//! | [`api_fixture`] | [`World`](api_fixture::World): a broker with a schema of its own, and the principals and rows of one test |
//! | [`response_schema`] | the fields of every answer of the API, and the check of an answer against them |
//! | [`chaos`] | random faults, and clients whose every request, read and write is accounted for |
//!
//! Everything is blocking, so that a test reads from top to bottom; do not call it inside an async runtime. Every
//! function panics with a sentence when it fails, because a test has no better use for an error.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    clippy::print_stdout,
    reason = "a test that cannot go on says why and ends"
)]

pub mod alone;
pub mod api_fixture;
pub mod attacker;
pub mod bin;
pub mod broker;
pub mod chaos;
pub mod host;
pub mod http;
pub mod load;
pub mod notify_listener;
pub mod pg;
pub mod ports;
pub mod procs;
pub mod proxy;
pub mod response_schema;
pub mod says;
pub mod seed;
pub mod systemd_host;
pub mod test_dir;
pub mod tls;
pub mod toml_text;
pub mod wait;
pub mod ws;

pub use alone::alone;
pub use broker::Broker;
pub use host::{Host, Tenant};
pub use http::{Addr, Api, Connection, Response};
pub use load::Load;
pub use notify_listener::NotifyListener;
pub use pg::PgServer;
pub use proxy::Proxy;
pub use says::says;
pub use seed::seed;
pub use test_dir::TestDir;
pub use wait::{SetAtEnd, holds_for, until};
pub use ws::Socket;
