//! The database, as the rest of the broker sees it: [`Db::run`] takes one closure and runs it on one connection.
//!
//! ```text
//! request --acquire--> Gate (async, acquire_timeout) --slot--> blocking thread --checkout--> r2d2 --SET search_path--> work
//! ```
//!
//! - [`concurrency_limit`](self) decides which request may work and when another connection is opened. No thread blocks while it
//!   waits.
//! - The checkout sets `search_path`; this one round trip proves the connection. The broker notes statements that show
//!   a lost schema or a server that takes no writes (`signs`), and counts as ready again only after a trial
//!   (`pool::trial`).
//! - A request waits for a working connection for at most `acquire_timeout`; after that its deadline applies. A thread
//!   that overruns the deadline keeps its slot and its connection until it is done, otherwise the server would get more
//!   work than it has connections for.
//! - Idle connections are closed after 30 to 60 s, so an idle broker holds none.
//!
//! Everything in a closure is synchronous and runs on a blocking thread; nothing in it may touch the event loop.

mod cli_connection;
mod concurrency_limit;
mod conn;
mod error;
mod manager;
mod pool;
mod signs;
pub mod start;

pub use cli_connection::CliConnection;
pub use conn::{Conn, Sql, Tx};
pub use error::DbError;
pub use pool::{Db, Figures, LastCheckout, Options};
