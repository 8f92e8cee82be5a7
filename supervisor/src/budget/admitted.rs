//! The admitted list as text: `STATE_DIR/admitted`, one tenant a line in order of admission.
//!
//! A line is `NAME POOL SERVER`. Pool and server are what the tenant was admitted with, so that a pool
//! raised while the supervisor was away is seen as raised, and asked for like any other.

use super::ServerId;
use brokkr_tenant::TenantName;
use std::fmt::Write as _;

/// One tenant that has been admitted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Admission {
    /// The tenant.
    pub tenant: TenantName,
    /// The pool it was admitted with, in connections.
    pub pool: u32,
    /// The server it was admitted on; `None` in a list written by hand.
    pub server: Option<ServerId>,
}

/// The list as the file's text.
pub fn format_admitted(admitted: &[Admission]) -> String {
    let mut text = String::new();
    for Admission {
        tenant,
        pool,
        server,
    } in admitted
    {
        let server = server.as_ref().map_or("", ServerId::as_str);
        // Writing to a String cannot fail.
        let _ = writeln!(
            text,
            "{}",
            format_args!("{tenant} {pool} {server}")
                .to_string()
                .trim_end()
        );
    }
    text
}

/// Reads the list from the file's text. Lines that are not an admission are left out and given back, each
/// with its number from 1: a damaged line costs one tenant its place, never the others theirs.
pub fn parse_admitted(text: &str) -> (Vec<Admission>, Vec<(usize, String)>) {
    let mut admitted: Vec<Admission> = Vec::new();
    let mut bad = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        let mut words = line.split_whitespace();
        let Some(name) = words.next() else { continue };
        if name.starts_with('#') {
            continue;
        }
        // A name alone: admitted with whatever its file says.
        let pool = words.next().map_or(Ok(u32::MAX), str::parse);
        let server = words.next().map(ServerId::new);
        match (TenantName::parse(name), pool, words.next()) {
            (Ok(tenant), Ok(pool), None) => {
                if admitted.iter().any(|a| a.tenant == tenant) {
                    bad.push((number, line.to_owned()));
                } else {
                    admitted.push(Admission {
                        tenant,
                        pool,
                        server,
                    });
                }
            }
            _ => bad.push((number, line.to_owned())),
        }
    }
    (admitted, bad)
}
