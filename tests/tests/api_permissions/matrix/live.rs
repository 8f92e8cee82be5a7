//! Fleet, telemetry, connections.

use super::*;

#[rustfmt::skip]
pub(crate) const ROWS: &[Row] = &[];

pub(crate) fn names(_scene: &Scene<'_>) -> Names {
    Vec::new()
}
