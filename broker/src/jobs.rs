//! Background jobs: one file per job, one [`schedule`] for all, one [`runner`].
//!
//! A job runs only when it is due, so an idle broker is silent. Three sources make a job due: its last run told when
//! the next work falls due; a write of this broker did so ([`schedule::Schedule`]); or the look around (`due_poll`, one
//! statement a minute for all jobs together) found work that another process left. Two instances of a broker may run
//! the same job at once, because each job takes its rows with `FOR UPDATE SKIP LOCKED` or uses one statement that can
//! be repeated.
//!
//! A new job needs a file here, a line in [`schedule::Job`], a line in `runner::run`, and its column in `due_poll`.

pub mod diagnostics;
mod due_poll;
mod gauges;
pub mod retention;
pub mod runner;
pub mod schedule;
mod webhooks;
mod work_orders;
