//! Authentication of callers: PAKs, principals, and the cache between them.
//!
//! A PAK is `<prefix>_<short>_<long>`. The broker stores the lower-case hex SHA-256 of the long part alone, so only
//! that part authenticates. A lookup asks the cache first and the schema second, in one statement: the admin role, then
//! live agents, then live generators. The cache holds found callers only.
//!
//! The death of a PAK in any process raises a number in the schema (`brokkr_meta.credentials_epoch`). The cache
//! distrusts entries that were read under another number, and the first request after a second reads the number again.
//! So this process refuses its own dead PAKs at once and all others within a second, at the cost of at most one small
//! statement a second.
//!
//! Failures are counted by the client's address ([`FailedAttempts`]).

mod cache;
mod client_address;
mod failed_attempts;
mod principal;

use std::time::Instant;

use subtle::ConstantTimeEq;

use crate::db::{DbError, Sql};
use crate::pak::PakHash;
use crate::store::credentials::{self, Holder};
pub use cache::Cache;
pub use client_address::ClientAddress;
pub use failed_attempts::FailedAttempts;
pub use principal::Principal;

/// Hashes the PAK in an `Authorization` value: `Bearer <PAK>` (the scheme in any case) or the bare PAK. Returns `None`
/// when the value holds no PAK.
pub fn pak_hash(authorization: &[u8]) -> Option<PakHash> {
    let value = std::str::from_utf8(authorization).ok()?;
    let pak = match value.split_once(' ') {
        Some((scheme, pak)) if scheme.eq_ignore_ascii_case("Bearer") => pak,
        _ => value,
    };
    PakHash::of(pak.trim())
}

/// Returns the holder of the PAK with this hash, or `None` when the PAK has no holder.
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
            // Compare the admin role's hash here in constant time, because the statement did not look it up by value. The
            // others are looked up by the hash of what the caller sent, so the time of a look-up tells nothing about a
            // PAK.
            Holder::Admin { pak_hash } => {
                bool::from(pak_hash.as_bytes().ct_eq(hash.as_str().as_bytes()))
                    .then_some(Principal::Admin)
            }
            Holder::Agent(id) => Some(Principal::Agent(id)),
            Holder::Generator(id) => Some(Principal::Generator(id)),
        });
    match found {
        Some(principal) => cache.insert(hash.clone(), principal, candidates.epoch),
        None => cache.remove(hash),
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
