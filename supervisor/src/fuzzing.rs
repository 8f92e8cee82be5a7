//! The parsers of bytes that others write, for the fuzz targets: each takes any bytes, and panics when a rule is broken.

use crate::{control, handover, instance, logs};

/// Parses a datagram of a broker.
pub fn notify_datagram(data: &[u8]) {
    instance::notify::check_parsing(data);
}

/// Reads a broker's pipe, in two blocks.
pub fn log_line(data: &[u8]) {
    logs::check_canonical_lines(data);
}

/// Parses a request to the control socket: a query, a line feed, and a body.
pub fn control_request(data: &[u8]) {
    control::check_parsing(data);
}

/// Reads the index of a handover.
pub fn handover_index(data: &[u8]) {
    handover::check_parsing(data);
}
