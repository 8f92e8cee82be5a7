//! Reads and writes the admitted list, `STATE_DIR/admitted`: one tenant a line, in order of admission.
//!
//! A line is `NAME POOL SERVER OID SCHEMA DATABASE LISTEN`, as the tenant was admitted. Thus a pool raised while the
//! supervisor was down is noticed, and a schema or an address stays its owner's over a reboot. `OID` and `DATABASE` are
//! the database as the server and as the URL name it; `-` is unknown. All but the name may be missing.

use super::{Seat, ServerId};
use brokkr_tenant::{Listen, SchemaName, TenantName};

/// An admitted tenant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Admission {
    /// The tenant.
    pub tenant: TenantName,
    /// The pool it was admitted with, in connections.
    pub pool: u32,
    /// The server it was admitted on; `None` in a list written by hand.
    pub server: Option<ServerId>,
    /// The schema and address it was admitted with. No other tenant gets them, even while no instance runs.
    pub seat: Option<Seat>,
}

/// Returns the list as text for the file.
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

/// Reads the list from the file's text. Returns invalid lines separately, each with its number from 1, so that a
/// damaged line costs only its own tenant the place.
pub fn parse_admitted(text: &str) -> (Vec<Admission>, Vec<(usize, String)>) {
    let mut admitted: Vec<Admission> = Vec::new();
    let mut bad = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        let mut words = line.split_whitespace();
        let Some(name) = words.next() else { continue };
        if name.starts_with('#') {
            continue;
        }
        // A name alone admits the tenant with the pool its file asks for.
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

/// Parses a seat. The address is last because the path of a Unix socket may contain spaces.
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
