//! Random faults against a host under load, with an account of everything that its clients saw.
//!
//! | part | content |
//! |---|---|
//! | [`plan`] | the faults and their order, derived from a seed: the same seed gives the same plan |
//! | [`fault`] | the effect of each fault on the host and its end; [`server`] has the faults of PostgreSQL |
//! | [`world`] | the host under test, and waiting until it has recovered |
//! | [`client`] | a client of one tenant: checks every answer, remembers every write; [`clients`] runs all |
//! | [`ledger`] | the writes of a client, and the check that the tenant's data has them |
//! | [`allowed_failures`] | the failures that are allowed: connections of a killed process, 503 while a server is away |
//! | [`account`] | the result: answers, excused failures, violations |
//!
//! Four kinds of violation ([`account::Kind`]) must never happen. Every other failure needs an excuse that is verified:
//! a broken connection must be, by the kernel's own table, held by a process that the test had killed; an answer 503
//! must have Retry-After and must come while a fault that allows it was in force.

pub mod account;
pub mod allowed_failures;
pub mod client;
pub mod clients;
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
