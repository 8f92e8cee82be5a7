//! What the random faults have found, each alone.
