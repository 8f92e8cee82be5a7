//! Who is calling: PAKs, principals, and the cache between them.
//!
//! A PAK is `<prefix>_<short>_<long>`; what is stored is the lower-case hex SHA-256 of the long part alone, so that part is
//! what authenticates. A lookup asks the cache first and the schema second, in one statement: the admin role, then live
//! agents, then live generators. Only what was found is cached; rotation and deletion invalidate in this process at once,
//! elsewhere within one lifetime of an entry (`broker.auth_cache_ttl_seconds`).

mod cache;

pub use cache::Cache;

use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use uuid::Uuid;

use crate::db::{DbError, Sql};
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

/// The digest of a PAK's long part: what is compared, cached and stored. Not a secret, but not for logs either.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct PakHash([u8; 32]);

impl std::fmt::Debug for PakHash {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("PakHash(…)")
    }
}

impl PakHash {
    /// The hash of the PAK in an `Authorization` value: `Bearer <PAK>`, `bearer <PAK>` or the bare PAK. `None` when the
    /// value is no PAK at all.
    pub fn from_authorization(value: &[u8]) -> Option<Self> {
        let value = std::str::from_utf8(value).ok()?;
        let pak = value
            .strip_prefix("Bearer ")
            .or_else(|| value.strip_prefix("bearer "))
            .unwrap_or(value)
            .trim();
        let mut parts = pak.split('_');
        let (_prefix, _short, long) = (parts.next()?, parts.next()?, parts.next()?);
        if parts.next().is_some() || long.is_empty() {
            return None;
        }
        Some(Self(Sha256::digest(long.as_bytes()).into()))
    }

    /// Reads a stored hash: 64 hex digits. `None` for anything else.
    pub fn from_hex(text: &str) -> Option<Self> {
        let text = text.as_bytes();
        let mut bytes = [0_u8; 32];
        if text.len() != 64 || !text.iter().all(u8::is_ascii_hexdigit) {
            return None;
        }
        for (byte, pair) in bytes.iter_mut().zip(text.chunks_exact(2)) {
            let digits = std::str::from_utf8(pair).ok()?;
            *byte = u8::from_str_radix(digits, 16).ok()?;
        }
        Some(Self(bytes))
    }

    /// Lower-case hex, as stored.
    pub fn to_hex(self) -> String {
        self.0.iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

/// Finds out who holds the PAK with this hash. `None`: nobody.
///
/// # Errors
/// When the schema cannot be asked.
pub fn resolve(
    cache: &Cache,
    db: &mut impl Sql,
    hash: PakHash,
) -> Result<Option<Principal>, DbError> {
    if let Some(principal) = cache.get(hash) {
        return Ok(Some(principal));
    }
    // Taken before the schema is read: if a rotation invalidates meanwhile, what was read is not cached.
    let epoch = cache.epoch();
    let found = credentials::holders(db, &hash.to_hex())?
        .into_iter()
        .find_map(|holder| match holder {
            // The admin role's hash was not looked up by value: compare it here, in constant time.
            Holder::Admin { pak_hash } => PakHash::from_hex(&pak_hash)
                .filter(|stored| bool::from(stored.0.ct_eq(&hash.0)))
                .map(|_| Principal::Admin),
            Holder::Agent(id) => Some(Principal::Agent(id)),
            Holder::Generator(id) => Some(Principal::Generator(id)),
        });
    if let Some(principal) = found {
        cache.insert(hash, principal, epoch);
    }
    Ok(found)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn the_scheme_word_is_optional_and_only_the_long_part_counts() {
        let bare = PakHash::from_authorization(b"brokkr_BRabcdef_long").unwrap();
        for value in [
            "Bearer brokkr_BRabcdef_long",
            "bearer  brokkr_BRabcdef_long ",
            "other_short_long",
        ] {
            assert_eq!(PakHash::from_authorization(value.as_bytes()), Some(bare), "{value}");
        }
    }

    #[test]
    fn what_has_not_exactly_three_parts_is_no_pak() {
        for value in ["", "Bearer ", "a_b", "a_b_c_d", "a_b_", "nonsense"] {
            assert_eq!(PakHash::from_authorization(value.as_bytes()), None, "{value}");
        }
        assert_eq!(PakHash::from_authorization(b"a_b_\xff"), None);
    }

    #[test]
    fn a_hash_survives_its_hex_form() {
        let hash = PakHash::from_authorization(b"a_b_c").unwrap();
        assert_eq!(PakHash::from_hex(&hash.to_hex()), Some(hash));
        assert_eq!(PakHash::from_hex("zz"), None);
        assert_eq!(PakHash::from_hex(&"+f".repeat(32)), None);
    }
}
