//! Who is calling: PAKs, principals, and the cache between them.
//!
//! A PAK is `<prefix>_<short>_<long>`; what is stored is the lower-case hex SHA-256 of the long part alone, so that part is
//! what authenticates. A lookup asks the cache first and the schema second, in one statement: the admin role, then live
//! agents, then live generators. Only what was found is cached. A PAK that dies, by whomever, raises a number in the schema
//! (`brokkr_meta.credentials_epoch`); what was read under another number is not believed, and the number is read anew by
//! the first request after a second. So a dead PAK is refused within a second, in this process at once, for at most one
//! small statement a second.

mod cache;

pub use cache::Cache;

use std::fmt;
use std::time::Instant;

use subtle::ConstantTimeEq;
use uuid::Uuid;

use crate::db::{DbError, Sql};
use crate::emit::Actor;
use crate::pak::PakHash;
use crate::store::credentials::{self, Holder};

/// An authenticated caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Principal {
    /// Holder of the admin PAK.
    Admin,
    /// A live agent.
    Agent(Uuid),
    /// A live generator.
    Generator(Uuid),
}

/// As the access log has it.
impl fmt::Display for Principal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Principal::Admin => f.write_str("admin"),
            Principal::Agent(id) => write!(f, "agent:{id}"),
            Principal::Generator(id) => write!(f, "generator:{id}"),
        }
    }
}

impl From<Principal> for Actor {
    fn from(principal: Principal) -> Self {
        match principal {
            Principal::Admin => Actor::Admin,
            Principal::Agent(id) => Actor::Agent(id),
            Principal::Generator(id) => Actor::Generator(id),
        }
    }
}

/// Hashes the PAK in an `Authorization` value: `Bearer <PAK>`, the scheme in any case, or the bare PAK. `None` when the value
/// holds no PAK at all.
pub fn pak_hash(authorization: &[u8]) -> Option<PakHash> {
    let value = std::str::from_utf8(authorization).ok()?;
    let pak = match value.split_once(' ') {
        Some((scheme, pak)) if scheme.eq_ignore_ascii_case("Bearer") => pak,
        _ => value,
    };
    PakHash::of(pak.trim())
}

/// Finds out who holds the PAK with this hash. `None`: nobody.
///
/// # Errors
/// When the schema cannot be asked.
pub fn resolve(
    cache: &Cache,
    db: &mut impl Sql,
    hash: &PakHash,
) -> Result<Option<Principal>, DbError> {
    if let Some(principal) = cache.get(hash) {
        return Ok(Some(principal));
    }
    let asked = Instant::now();
    let candidates = credentials::candidates(db, hash.as_str())?;
    cache.confirm(candidates.epoch, asked);
    let found = candidates
        .holders
        .into_iter()
        .find_map(|holder| match holder {
            // The admin role's hash was not looked up by value: compare it here, in constant time.
            Holder::Admin { pak_hash } => {
                bool::from(pak_hash.as_bytes().ct_eq(hash.as_str().as_bytes()))
                    .then_some(Principal::Admin)
            }
            Holder::Agent(id) => Some(Principal::Agent(id)),
            Holder::Generator(id) => Some(Principal::Generator(id)),
        });
    if let Some(principal) = found {
        cache.insert(hash.clone(), principal, candidates.epoch);
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_scheme_word_is_optional_and_only_the_long_part_counts() {
        let bare = pak_hash(b"brokkr_BRabcdef_long");
        assert!(bare.is_some());
        for value in [
            "Bearer brokkr_BRabcdef_long",
            "bearer  brokkr_BRabcdef_long ",
            "BEARER brokkr_BRabcdef_long",
            "bEaReR brokkr_BRabcdef_long",
            "other_short_long",
        ] {
            assert_eq!(pak_hash(value.as_bytes()), bare, "{value}");
        }
    }

    #[test]
    fn what_has_not_exactly_three_parts_is_no_pak() {
        for value in [
            "",
            "Bearer ",
            "BEARER",
            "Basic a_b_c",
            "a_b",
            "a_b_c_d",
            "a_b_",
            "nonsense",
        ] {
            assert_eq!(pak_hash(value.as_bytes()), None, "{value}");
        }
        assert_eq!(pak_hash(b"a_b_\xff"), None);
    }
}
