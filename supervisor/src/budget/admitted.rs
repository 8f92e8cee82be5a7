//! Reads and writes the admitted list, `STATE_DIR/admitted`: one tenant a line, in order of admission.
//!
//! A line is `NAME POOL SERVER OID SCHEMA DATABASE LISTEN`, as the tenant was admitted. Thus a pool raised while the
//! supervisor was down is noticed, and a schema or an address stays its owner's over a reboot. `OID` and `DATABASE` are
//! the database as the server and as the URL name it; `-` is unknown. All but the name may be missing.

use super::{SchemaAndAddress, ServerId};
use brokkr_tenant::{Listen, SchemaName, TenantName};

/// An admitted tenant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AdmittedTenant {
    /// The tenant.
    pub tenant: TenantName,
    /// The pool it was admitted with, in connections.
    pub pool: u32,
    /// The server it was admitted on; `None` in a list written by hand.
    pub server: Option<ServerId>,
    /// The schema and address it was admitted with. No other tenant gets them, even while no instance runs.
    pub schema_and_address: Option<SchemaAndAddress>,
}

/// Returns the list as text for the file.
pub fn format_admitted(admitted: &[AdmittedTenant]) -> String {
    let mut text = String::new();
    for admission in admitted {
        let AdmittedTenant { tenant, pool, .. } = admission;
        let server = admission.server.as_ref().map_or("", ServerId::as_str);
        let schema_and_address = admission
            .schema_and_address
            .as_ref()
            .map(format_schema_and_address)
            .unwrap_or_default();
        let line = format!("{tenant} {pool} {server} {schema_and_address}");
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// Reads the list from the file's text. Returns invalid lines separately, each with its number from 1, so that a
/// damaged line costs only its own tenant the place.
pub fn parse_admitted(text: &str) -> (Vec<AdmittedTenant>, Vec<(usize, String)>) {
    let mut admitted: Vec<AdmittedTenant> = Vec::new();
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
        let schema_and_address = match (rest.is_empty(), &server) {
            (true, _) => Ok(None),
            (false, Some(server)) => parse_schema_and_address(server, &rest).map(Some).ok_or(()),
            (false, None) => Err(()),
        };
        match (TenantName::parse(name), pool, schema_and_address) {
            (Ok(tenant), Ok(pool), Ok(schema_and_address)) => {
                if admitted.iter().any(|a| a.tenant == tenant) {
                    bad.push((number, line.to_owned()));
                } else {
                    admitted.push(AdmittedTenant {
                        tenant,
                        pool,
                        server,
                        schema_and_address,
                    });
                }
            }
            _ => bad.push((number, line.to_owned())),
        }
    }
    (admitted, bad)
}

fn format_schema_and_address(own: &SchemaAndAddress) -> String {
    let oid = own.database.as_ref();
    let oid = oid.map_or("-".to_owned(), |(_, oid)| oid.to_string());
    let (schema, listen) = (own.schema.as_str(), &own.listen);
    format!("{oid} {schema} {} {listen}", own.spelled)
}

/// Parses a schema and an address. The address is last because the path of a Unix socket may contain spaces.
fn parse_schema_and_address(server: &ServerId, words: &[&str]) -> Option<SchemaAndAddress> {
    let [oid, schema, spelled, listen @ ..] = words else {
        return None;
    };
    let database = match *oid {
        "-" => None,
        oid => Some((server.clone(), oid.parse().ok()?)),
    };
    Some(SchemaAndAddress {
        database,
        spelled: (*spelled).to_owned(),
        schema: SchemaName::parse(schema).ok()?,
        listen: Listen::parse(&listen.join(" ")).ok()?,
    })
}
