//! One prober per PostgreSQL server: what it has to give, who uses it, whether it is there.
//!
//! A thread of its own, `servers`, runs one small event loop, so a slow TLS handshake or a hung server costs
//! the fleet nothing. The fleet says which URLs it wants; the thread publishes a [`ServersView`], always
//! whole and always the latest.
//!
//! *Identify*: each URL is logged into, twice at once (a pooler that gives both the same backend is
//! refused), and asked in one pass which server it is: `system_identifier` and postmaster start time. URLs
//! that agree in both are one server. This happens when URLs are new, on [`Servers::refresh`], and when a
//! server comes back, because another one may be answering there.
//!
//! *Probe*: one kept connection per server, one statement a second, bounded by a deadline of ours: a
//! server that is stopped (SIGSTOP), or a network that swallows packets, answers no timeout of its own.
//! When it fails the server is down, and it is tried again every quarter of a second or so until it is
//! identified anew.

mod view;

pub use view::{Endpoint, Server, ServersView};
