//! The certificate and the private key of a TLS listener: PEM texts, checked as a pair.

use std::path::PathBuf;
use std::sync::Arc;

use rustls::crypto::ring;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use rustls::{CertificateError, Error as RustlsError};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::{Digest, Secret};

/// `[http] tls_cert` and `tls_key`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TlsConfig {
    /// The PEM file of the certificate, followed by those that lead to its root.
    pub cert_file: PathBuf,
    /// The PEM file of the private key.
    pub key_file: PathBuf,
    /// The content of both files, shared by those who hold the configuration. Not a part of the configuration's digest, because a broker takes a new pair while it
    /// runs.
    pub pair: Arc<TlsPair>,
}

/// The content of a certificate file and of a key file. `Debug` and `Serialize` do not show the key.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TlsPair {
    certificates: String,
    key: Secret,
}

/// A problem with a pair. No text holds a part of the key.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The certificate file is not PEM.
    #[error("it is not PEM: {0}")]
    Pem(pem::Error),
    /// The certificate file has no certificate.
    #[error("it holds no certificate")]
    NoCertificate,
    /// The first certificate cannot be read.
    #[error("its first certificate cannot be used: {0}")]
    Certificate(CertificateError),
    /// The key file has no private key.
    #[error("it holds no private key")]
    NoKey,
    /// The private key cannot be read.
    #[error("its private key cannot be used")]
    Key,
    /// The key is not that of the first certificate.
    #[error("its private key is not the key of the certificate")]
    Mismatch,
}

impl TlsError {
    /// Returns true when the problem is in the key file.
    pub fn is_of_key(&self) -> bool {
        matches!(self, Self::NoKey | Self::Key | Self::Mismatch)
    }

    /// Returns what to do about it.
    pub(crate) fn hint(&self) -> &'static str {
        match self {
            Self::Pem(_) | Self::NoCertificate | Self::Certificate(_) => {
                "it holds the server's certificate as PEM (-----BEGIN CERTIFICATE-----), and below it those that lead to its root"
            }
            Self::NoKey | Self::Key => {
                "it holds an RSA, ECDSA or Ed25519 key as PEM, without a passphrase (-----BEGIN PRIVATE KEY-----)"
            }
            Self::Mismatch => {
                "the first certificate in `tls_cert` is the server's own; take both files from one request"
            }
        }
    }
}

impl TlsPair {
    /// Makes a pair of the contents of both files.
    ///
    /// # Errors
    /// [`TlsError`] when no TLS server can use them.
    pub fn parse(certificates: &[u8], key: &[u8]) -> Result<Self, TlsError> {
        let pair = Self {
            certificates: String::from_utf8_lossy(certificates).into_owned(),
            key: Secret::new(String::from_utf8_lossy(key)),
        };
        pair.certified_key().map(|_| pair)
    }

    /// Returns the certificates and the key as rustls takes them.
    ///
    /// # Errors
    /// [`TlsError`] when no TLS server can use them.
    pub fn certified_key(&self) -> Result<CertifiedKey, TlsError> {
        let chain = CertificateDer::pem_slice_iter(self.certificates.as_bytes());
        let chain: Vec<_> = chain.collect::<Result<_, _>>().map_err(TlsError::Pem)?;
        if chain.is_empty() {
            return Err(TlsError::NoCertificate);
        }
        let key = PrivateKeyDer::from_pem_slice(self.key.expose().as_bytes())
            .map_err(|_| TlsError::NoKey)?;
        CertifiedKey::from_der(chain, key, &ring::default_provider()).map_err(|error| match error {
            RustlsError::InvalidCertificate(error) => TlsError::Certificate(error),
            RustlsError::InconsistentKeys(_) => TlsError::Mismatch,
            _ => TlsError::Key,
        })
    }

    /// Returns false for a pair that was not read, or whose key was masked.
    pub fn is_whole(&self) -> bool {
        self.key.expose().contains("PRIVATE KEY")
    }

    /// Returns the SHA-256 of the certificate file, as `sha256sum` prints it.
    pub fn fingerprint(&self) -> Digest {
        Digest(Sha256::digest(self.certificates.as_bytes()).into())
    }

    /// Returns the JSON **with the key in the clear**: only for the private socket and a sealed memfd.
    pub fn to_clear_json(&self) -> serde_json::Value {
        serde_json::json!({ "certificates": self.certificates, "key": self.key.expose() })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    // A pair of `localhost`, and the key of another.
    const CERT: &[u8] = include_bytes!("tls/test-cert.pem");
    const KEY: &[u8] = include_bytes!("tls/test-key.pem");
    const OTHER_KEY: &[u8] = include_bytes!("tls/test-other-key.pem");

    #[test]
    fn a_pair_is_checked_and_the_problem_names_the_file_that_has_it() {
        assert!(TlsPair::parse(CERT, KEY).unwrap().is_whole());
        for (cert, key, of_key, text) in [
            (CERT, OTHER_KEY, true, "not the key of the certificate"),
            (KEY, KEY, false, "holds no certificate"),
            (CERT, CERT, true, "holds no private key"),
            (b"".as_slice(), KEY, false, "holds no certificate"),
            (CERT, b"\xff\xfe", true, "holds no private key"),
            (
                b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
                KEY,
                false,
                "cannot be used",
            ),
            (b"-----BEGIN CERTIFICATE-----\nAA", KEY, false, "not PEM"),
            (
                CERT,
                b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n",
                true,
                "cannot be used",
            ),
        ] {
            let error = TlsPair::parse(cert, key).unwrap_err();
            assert_eq!(error.is_of_key(), of_key, "{error}");
            assert!(error.to_string().contains(text), "{error}");
        }
    }

    #[test]
    fn the_key_shows_in_no_printed_form_and_a_masked_pair_is_known_as_one() {
        let pair = TlsPair::parse(CERT, KEY).unwrap();
        let json = serde_json::to_string(&pair).unwrap();
        for text in [format!("{pair:?}"), json.clone()] {
            assert!(!text.contains("PRIVATE KEY"), "{text}");
        }
        let masked: TlsPair = serde_json::from_str(&json).unwrap();
        assert!(!masked.is_whole() && !TlsPair::default().is_whole());
        let clear: TlsPair = serde_json::from_value(pair.to_clear_json()).unwrap();
        assert_eq!(clear, pair);
    }
}
