//! Random faults against a host under load, and the account of what its clients saw.
//!
//! | part | what it is |
//! |---|---|
//! | [`plan`] | which faults in which order, from a seed: the same seed, the same plan |
//! | [`fault`] | what each fault does to the host, and how it is undone; [`server`] those of PostgreSQL |
//! | [`world`] | the host under test, and waiting until it is whole again |
//! | [`client`] | one client of one tenant: asks, checks every answer, remembers every write; [`clients`] all of them |
//! | [`ledger`] | what a client was promised, and whether the tenant's data keeps it |
//! | [`excuse`] | what may fail, and why: connections in the hands of a killed process, 503 while a server is away |
//! | [`account`] | what was seen: answers, excused failures, violations |
//!
//! Four things are violations ([`account::Kind`]) and must never happen. Everything else that did not go well has an excuse
//! that is looked up, not assumed: a connection that broke was, by the kernel's own table, held by a process the test had
//! killed; an answer 503 says when to come again, and came while a fault that allows it was in force.

pub mod account;
pub mod client;
pub mod clients;
pub mod excuse;
pub mod fault;
pub mod ledger;
pub mod plan;
pub mod server;
pub mod world;

pub use account::{Kind, Tally};
pub use client::Client;
pub use clients::Clients;
pub use plan::{Fault, Plan, Round};
pub use world::World;
