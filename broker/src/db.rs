//! The database, as the rest of the broker sees it: [`Db::run`] takes one closure and runs it on one connection.
//!
//! ```text
//! request --acquire--> Gate (async, acquire_timeout) --slot--> blocking thread --checkout--> r2d2 --SET search_path--> work
//! ```
//!
//! - [`gate`](self) decides who may work and when another connection is opened. Nothing waits on a thread.
//! - The checkout sets `search_path`; one round trip proves the connection. What a statement shows of the schema and of a
//!   server that takes no writes is noted (`signs`), and tried again before the broker counts as ready (`pool::trial`).
//! - Until a request has a working connection it is bounded by `acquire_timeout`; after that by the deadline. A thread
//!   that overruns keeps its slot and its connection until it is done: the server is not given more work than it has.
//! - Idle connections are closed after 30 to 60 s: an idle broker holds none.
//!
//! Everything in a closure is synchronous and runs on a blocking thread; nothing in it may touch the event loop.

mod conn;
mod error;
mod gate;
mod manager;
mod pool;
mod signs;
mod single;
pub mod start;

pub use conn::{Conn, Sql, Tx};
pub use error::DbError;
pub use manager::Away;
pub use pool::{Db, Figures, Last, Options};
pub use single::Single;
