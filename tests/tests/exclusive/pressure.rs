//! The host runs out of a resource: this is reported, no running tenant is harmed, and everything recovers without a
//! command.

mod descriptors;
mod disk;
mod files;
mod pids;
mod world;
