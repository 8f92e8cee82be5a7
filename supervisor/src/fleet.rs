//! The one task that owns every tenant's state.
pub mod handle;
