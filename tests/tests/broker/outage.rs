//! Brokers keep running when the server is away, hangs, is full or read-only, or the network to it fails. They answer
//! 503 in time, and serve again at once after the server's return.

mod away;
mod full;
mod lost_schema;
mod network;
mod read_only;
mod scene;
mod stampede;
mod statements;
