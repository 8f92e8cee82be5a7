//! The stored form of a subscription's URL and `Authorization` value.
//!
//! A sealed value is the byte `0x01`, a nonce of 12 bytes, and the AES-256-GCM ciphertext with its tag at the end.
//!
//! Rows imported from very old brokers are read too, but never written: the byte `0x00` if there is one, 16 bytes of
//! nonce, and the text XORed with SHA-256(key, nonce) repeated. That form cannot detect a wrong key; the result must at
//! least be text, and callers check that it is a URL or a header.

use std::fmt;

use aes_gcm::aead::Aead;
use aes_gcm::{Aes256Gcm, KeyInit, Nonce};
use sha2::{Digest, Sha256};
use uuid::Uuid;

const SEALED: u8 = 1;
const LEGACY: u8 = 0;
const NONCE: usize = 12;
const LEGACY_NONCE: usize = 16;

/// A tenant's webhook key. No printed form shows it.
#[derive(Clone)]
pub struct Key([u8; 32]);

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// Reason why a value was not sealed.
#[derive(Debug, thiserror::Error)]
#[error("the operating system gave no random bytes")]
pub struct SealError;

/// Reason why a value cannot be read: sealed with another key, or damaged.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("it was sealed with another key, or is damaged")]
pub struct OpenError;

impl Key {
    /// Parses 64 hexadecimal digits.
    pub fn parse(hex: &str) -> Option<Self> {
        // All digits are ASCII, so every pair of bytes below is a pair of characters.
        if hex.len() != 64 || !hex.bytes().all(|b| b.is_ascii_hexdigit()) {
            return None;
        }
        let mut key = [0; 32];
        for (byte, digits) in key.iter_mut().zip(hex.as_bytes().chunks_exact(2)) {
            let digits = std::str::from_utf8(digits).ok()?;
            *byte = u8::from_str_radix(digits, 16).ok()?;
        }
        Some(Self(key))
    }

    /// Returns a new random key.
    pub fn generate() -> Result<Self, SealError> {
        let mut key = [0; 32];
        getrandom::fill(&mut key).map_err(|_| SealError)?;
        Ok(Self(key))
    }

    /// Returns the form that [`Key::parse`] reads, for the key file only.
    pub(super) fn to_hex(&self) -> String {
        self.0.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// Seals a text.
    ///
    /// # Errors
    /// When the operating system gives no random bytes.
    pub fn seal(&self, text: &str) -> Result<Vec<u8>, SealError> {
        let mut nonce = [0; NONCE];
        getrandom::fill(&mut nonce).map_err(|_| SealError)?;
        let sealed = Aes256Gcm::new(&self.0.into())
            .encrypt(Nonce::from_slice(&nonce), text.as_bytes())
            // Fails only for texts of gigabytes.
            .map_err(|_| SealError)?;
        let mut stored = Vec::with_capacity(1 + NONCE + sealed.len());
        stored.push(SEALED);
        stored.extend_from_slice(&nonce);
        stored.extend_from_slice(&sealed);
        Ok(stored)
    }

    /// Reads a stored value.
    pub fn open(&self, stored: &[u8]) -> Result<String, OpenError> {
        let text = match stored.split_first() {
            Some((&SEALED, rest)) => {
                let (nonce, sealed) = rest.split_at_checked(NONCE).ok_or(OpenError)?;
                Aes256Gcm::new(&self.0.into())
                    .decrypt(Nonce::from_slice(nonce), sealed)
                    .map_err(|_| OpenError)?
            }
            Some((&LEGACY, rest)) => self.open_legacy(rest)?,
            // The oldest form has no first byte that marks it.
            _ => self.open_legacy(stored)?,
        };
        String::from_utf8(text).map_err(|_| OpenError)
    }

    fn open_legacy(&self, stored: &[u8]) -> Result<Vec<u8>, OpenError> {
        let (nonce, hidden) = stored.split_at_checked(LEGACY_NONCE).ok_or(OpenError)?;
        let stream = Sha256::new().chain_update(self.0).chain_update(nonce);
        let stream: [u8; 32] = stream.finalize().into();
        Ok(hidden
            .iter()
            .zip(stream.iter().cycle())
            .map(|(byte, key)| byte ^ key)
            .collect())
    }

    /// Returns a name for an endpoint. The name reveals nothing, but is the same for the same endpoint.
    pub fn lane(&self, endpoint: &str) -> Uuid {
        let digest = Sha256::new()
            .chain_update(self.0)
            .chain_update("lane\0")
            .chain_update(endpoint);
        let digest: [u8; 32] = digest.finalize().into();
        let mut name = [0; 16];
        name.copy_from_slice(&digest[..16]);
        uuid::Builder::from_random_bytes(name).into_uuid()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    fn key(digit: &str) -> Key {
        Key::parse(&digit.repeat(64)).unwrap()
    }

    #[test]
    fn what_is_sealed_opens_with_its_key_alone_and_never_looks_the_same_twice() {
        let text = "https://example.com/hook?token=ö";
        let (one, two) = (key("a").seal(text).unwrap(), key("a").seal(text).unwrap());
        assert_ne!(one, two);
        assert_eq!(one[0], 1);
        assert_eq!(one.len(), 1 + 12 + text.len() + 16);
        assert_eq!(key("a").open(&one).unwrap(), text);
        assert_eq!(key("b").open(&one), Err(OpenError));
        for place in [1, 13, one.len() - 1] {
            let mut damaged = one.clone();
            damaged[place] ^= 1;
            assert_eq!(key("a").open(&damaged), Err(OpenError), "byte {place}");
        }
        assert_eq!(key("a").open(&[]), Err(OpenError));
        assert_eq!(key("a").open(&one[..12]), Err(OpenError));
    }

    /// Makes a value in the oldest form.
    fn legacy(key: &Key, nonce: [u8; 16], text: &str) -> Vec<u8> {
        let mut hash = Sha256::new();
        hash.update(key.0);
        hash.update(nonce);
        let stream = hash.finalize();
        let mut stored = nonce.to_vec();
        for (at, byte) in text.bytes().enumerate() {
            stored.push(byte ^ stream[at % 32]);
        }
        stored
    }

    #[test]
    fn rows_of_very_old_brokers_are_read_with_and_without_their_first_byte() {
        let text = "https://example.com/a/path/longer/than/one/round/of/the/keystream";
        let old = legacy(&key("a"), [7; 16], text);
        assert_eq!(key("a").open(&old).unwrap(), text);
        let mut marked = vec![0];
        marked.extend(legacy(&key("a"), [0; 16], text));
        assert_eq!(key("a").open(&marked).unwrap(), text);
        assert_eq!(key("a").open(&[7; 15]), Err(OpenError));
    }

    #[test]
    fn a_key_is_64_hexadecimal_digits_and_in_no_printed_form() {
        let hex = "0123456789abcdef".repeat(4);
        let key = Key::parse(&hex).unwrap();
        assert_eq!(key.to_hex(), hex);
        assert_eq!(Key::parse(&hex.to_uppercase()).unwrap().to_hex(), hex);
        assert_eq!(format!("{key:?}"), "***");
        for bad in ["", "ab", &"é".repeat(32), &"g".repeat(64), &"a".repeat(65)] {
            assert!(Key::parse(bad).is_none());
        }
        assert_ne!(
            Key::generate().unwrap().to_hex(),
            Key::generate().unwrap().to_hex()
        );
    }

    #[test]
    fn equal_endpoints_have_equal_lanes_under_one_key() {
        assert_eq!(key("a").lane("https://x"), key("a").lane("https://x"));
        assert_ne!(key("a").lane("https://x"), key("a").lane("https://y"));
        assert_ne!(key("a").lane("https://x"), key("b").lane("https://x"));
    }
}
