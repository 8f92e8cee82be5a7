//! The vocabulary of the whole-system tests.
//!
//! A test says what an operator or a client would see, with the two real binaries, a PostgreSQL of its own and
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
//! | module | what it gives |
//! |---|---|
//! | [`place`] | a short temporary folder; processes that cannot outlive the test |
//! | [`wait`] | [`wait::until`]: wait for a state, with a bound; no test sleeps for a fixed time; [`wait::SetAtEnd`] |
//! | [`ports`] | loopback ports nobody else is given |
//! | [`bin`] | the two binaries, beside the test's own executable |
//! | [`pg`] | [`PgServer`]: a PostgreSQL server to start, stop, freeze and ask |
//! | [`seed`](mod@seed) | seeds of random tests: fixed, unless new ones are asked for |
//! | [`proxy`] | [`Proxy`]: a network in between that can hold, lose or cut |
//! | [`http`] | a blocking HTTP client over TCP and Unix sockets whose connections can be held by hand |
//! | [`broker`] | [`Broker`]: one broker alone |
//! | [`ear`] | [`Ear`]: systemd's end of `NOTIFY_SOCKET` |
//! | [`ws`] | a blocking WebSocket client: frames as JSON, closes as their code |
//! | [`load`] | [`Load`]: clients that ask over and over and count what they saw |
//! | [`host`] | [`Host`]: a supervisor, its tenants and their server |
//! | [`machine`] | [`Machine`](machine::Machine): a host that a real systemd runs |
//! | [`chaos`] | random faults, and clients whose every request, read and write is accounted for |
//!
//! Everything is blocking on purpose: a test reads from top to bottom. Do not call it from inside an async runtime.
//! All of it panics with a sentence when something cannot be done; a test has nothing better to do with an error.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    clippy::print_stdout,
    reason = "a test that cannot go on says why and ends"
)]

pub mod bin;
pub mod broker;
pub mod chaos;
pub mod ear;
pub mod host;
pub mod http;
pub mod load;
pub mod machine;
pub mod pg;
pub mod place;
pub mod ports;
pub mod procs;
pub mod proxy;
pub mod seed;
pub mod toml_text;
pub mod wait;
pub mod ws;

pub use broker::Broker;
pub use ear::Ear;
pub use host::{Host, Tenant};
pub use http::{Addr, Api, Connection, Response};
pub use load::Load;
pub use pg::PgServer;
pub use place::Place;
pub use proxy::Proxy;
pub use seed::seed;
pub use wait::{SetAtEnd, holds_for, until};
pub use ws::Socket;
