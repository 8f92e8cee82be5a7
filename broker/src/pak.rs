//! Pre-authentication keys (PAKs): minting, parsing, hashing.
//!
//! A PAK is `PREFIX_SHORT_LONG`. Only the long token is secret, and the broker stores only its hash; prefix and short
//! token help people who read a list of keys. The caller sees a PAK once, when it is minted.

use std::fmt;

use sha2::{Digest, Sha256};

/// The hash of the administrator's PAK in upstream's development defaults. That PAK is public.
pub const PUBLIC_HASH: &str = "4c697273df3d764cba950bb5c04368097685f09259f5bd880d892cf1ff9f4cdd";

/// The format of new PAKs: `[pak]` of the configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PakFormat {
    /// The first part; holds no underscore.
    pub prefix: String,
    /// The beginning of the second part.
    pub short_token_prefix: String,
    /// The length of the second part in characters, its prefix included.
    pub short_token_length: usize,
    /// The number of random bytes (not characters) in the third part.
    pub long_token_length: usize,
}

impl Default for PakFormat {
    fn default() -> Self {
        PakFormat {
            prefix: "brokkr".to_owned(),
            short_token_prefix: "BR".to_owned(),
            short_token_length: 8,
            long_token_length: 24,
        }
    }
}

/// A freshly minted PAK. `Debug` does not show the text.
#[derive(Clone, PartialEq, Eq)]
pub struct Pak(String);

/// The stored hash of a PAK: lower-case hex SHA-256 of its long token, 64 characters.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct PakHash(String);

/// Reason why a PAK could not be minted.
#[derive(Debug, thiserror::Error)]
pub enum MintError {
    /// The operating system gave no randomness.
    #[error("no randomness from the operating system: {0}")]
    Randomness(getrandom::Error),
    /// The configured format cannot make a PAK that this broker would accept.
    #[error("[pak] {0}")]
    Format(&'static str),
}

impl Pak {
    /// Mints a PAK from the operating system's randomness.
    pub fn mint(format: &PakFormat) -> Result<Self, MintError> {
        if format.prefix.is_empty()
            || format.prefix.contains('_')
            || format.short_token_prefix.contains('_')
        {
            return Err(MintError::Format(
                "prefix and short_token_prefix must hold no underscore",
            ));
        }
        if format.short_token_length == 0 || format.long_token_length == 0 {
            return Err(MintError::Format(
                "short_token_length and long_token_length must be at least 1",
            ));
        }
        let short = format!(
            "{}{}",
            format.short_token_prefix,
            random(format.short_token_length)?
        );
        let short: String = short.chars().take(format.short_token_length).collect();
        Ok(Pak(format!(
            "{}_{short}_{}",
            format.prefix,
            random(format.long_token_length)?
        )))
    }

    /// Returns the text to hand out.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Returns the hash to store.
    pub fn hash(&self) -> PakHash {
        // A minted PAK always has its three parts.
        PakHash::of_long_token(self.0.rsplit('_').next().unwrap_or_default())
    }
}

impl fmt::Debug for Pak {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Pak(…)")
    }
}

impl PakHash {
    /// Returns the hash of a PAK that a client sent without the scheme word. Returns `None` unless the text has exactly
    /// three parts and no white space, otherwise `Basic a_b_c` would pass for a PAK of the prefix `Basic a`.
    pub fn of(pak: &str) -> Option<Self> {
        if pak.contains(char::is_whitespace) {
            return None;
        }
        let mut parts = pak.split('_');
        match (parts.next(), parts.next(), parts.next(), parts.next()) {
            (Some(_), Some(_), Some(long), None) if !long.is_empty() => {
                Some(Self::of_long_token(long))
            }
            _ => None,
        }
    }

    /// Parses a hash given as text (`broker.pak_hash`): exactly 64 hex digits, folded to lower case.
    pub fn parse(text: &str) -> Option<Self> {
        let valid = text.len() == 64 && text.bytes().all(|b| b.is_ascii_hexdigit());
        valid.then(|| PakHash(text.to_ascii_lowercase()))
    }

    /// Returns 64 lower-case hex digits.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    fn of_long_token(long: &str) -> Self {
        let digest = Sha256::digest(long.as_bytes());
        PakHash(digest.iter().map(|byte| format!("{byte:02x}")).collect())
    }
}

impl fmt::Debug for PakHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PakHash(…)")
    }
}

fn random(bytes: usize) -> Result<String, MintError> {
    let mut buffer = vec![0_u8; bytes];
    getrandom::fill(&mut buffer).map_err(MintError::Randomness)?;
    Ok(bs58::encode(buffer).into_string())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn a_minted_pak_has_three_parts_of_the_right_shape_and_hashes_to_its_long_token() {
        let pak = Pak::mint(&PakFormat::default()).unwrap();
        let parts: Vec<&str> = pak.expose().split('_').collect();
        let [prefix, short, long] = parts[..] else {
            panic!("{parts:?}")
        };
        assert_eq!(prefix, "brokkr");
        assert!(short.starts_with("BR") && short.len() == 8, "{short}");
        assert!((28..=33).contains(&long.len()), "{long}");
        assert!(!format!("{short}{long}").contains(['0', 'O', 'I', 'l']));
        assert_eq!(PakHash::of(pak.expose()).unwrap(), pak.hash());
        assert_eq!(
            PakHash::of(&format!("other_words_{long}")).unwrap(),
            pak.hash(),
            "only the long token counts"
        );
        assert_ne!(Pak::mint(&PakFormat::default()).unwrap(), pak);
    }

    #[test]
    fn hashing_is_sha_256_of_the_long_token_in_lower_case_hex() {
        let known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(PakHash::of("a_b_abc").unwrap().as_str(), known);
        for bad in ["", "a_b", "a_b_", "a_b_c_d", "abc", "Basic a_b_c"] {
            assert!(PakHash::of(bad).is_none(), "{bad}");
        }
    }

    #[test]
    fn a_configured_hash_is_64_hex_digits_and_is_folded() {
        let upper = "BA7816BF8F01CFEA414140DE5DAE2223B00361A396177A9CB410FF61F20015AD";
        assert_eq!(
            PakHash::parse(upper).unwrap().as_str(),
            upper.to_ascii_lowercase()
        );
        for bad in [
            "",
            "ba78",
            &upper[1..],
            &format!("{upper}0"),
            &upper.replace('B', "g"),
        ] {
            assert!(PakHash::parse(bad).is_none(), "{bad}");
        }
    }

    #[test]
    fn neither_a_pak_nor_its_hash_shows_in_debug() {
        let pak = Pak::mint(&PakFormat::default()).unwrap();
        assert_eq!(format!("{pak:?} {:?}", pak.hash()), "Pak(…) PakHash(…)");
    }
}
