//! The admitted list as text: `STATE_DIR/admitted`, one tenant a line in order of admission.
//!
//! A line is `NAME POOL SERVER OID SCHEMA DATABASE LISTEN`: what the tenant was admitted with, so that a pool raised
//! while the supervisor was away is seen as raised, and a schema or an address stays its owner's over a reboot. `OID`
//! and `DATABASE` are the database as the server and as the URL name it; `-` is unknown. All but the name may be missing.

use super::{Seat, ServerId};
use brokkr_tenant::{Listen, SchemaName, TenantName};

/// One tenant that has been admitted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Admission {
    /// The tenant.
    pub tenant: TenantName,
    /// The pool it was admitted with, in connections.
    pub pool: u32,
    /// The server it was admitted on; `None` in a list written by hand.
    pub server: Option<ServerId>,
    /// What it was admitted to for itself alone: nobody else gets it, whether an instance runs just now or not.
    pub seat: Option<Seat>,
}

/// The list as the file's text.
pub fn format_admitted(admitted: &[Admission]) -> String {
    let mut text = String::new();
    for admission in admitted {
        let Admission { tenant, pool, .. } = admission;
        let server = admission.server.as_ref().map_or("", ServerId::as_str);
        let seat = admission.seat.as_ref().map(format_seat).unwrap_or_default();
        let line = format!("{tenant} {pool} {server} {seat}");
        text.push_str(line.trim_end());
        text.push('\n');
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
        let rest: Vec<&str> = words.collect();
        let seat = match (rest.is_empty(), &server) {
            (true, _) => Ok(None),
            (false, Some(server)) => parse_seat(server, &rest).map(Some).ok_or(()),
            (false, None) => Err(()),
        };
        match (TenantName::parse(name), pool, seat) {
            (Ok(tenant), Ok(pool), Ok(seat)) => {
                if admitted.iter().any(|a| a.tenant == tenant) {
                    bad.push((number, line.to_owned()));
                } else {
                    admitted.push(Admission {
                        tenant,
                        pool,
                        server,
                        seat,
                    });
                }
            }
            _ => bad.push((number, line.to_owned())),
        }
    }
    (admitted, bad)
}

fn format_seat(seat: &Seat) -> String {
    let oid = seat
        .database
        .as_ref()
        .map_or("-".to_owned(), |(_, oid)| oid.to_string());
    format!(
        "{oid} {} {} {}",
        seat.schema.as_str(),
        seat.spelled,
        seat.listen
    )
}

/// The address comes last because the path of a Unix socket may hold spaces.
fn parse_seat(server: &ServerId, words: &[&str]) -> Option<Seat> {
    let [oid, schema, spelled, listen @ ..] = words else {
        return None;
    };
    let database = match *oid {
        "-" => None,
        oid => Some((server.clone(), oid.parse().ok()?)),
    };
    Some(Seat {
        database,
        spelled: (*spelled).to_owned(),
        schema: SchemaName::parse(schema).ok()?,
        listen: Listen::parse(&listen.join(" ")).ok()?,
    })
}
