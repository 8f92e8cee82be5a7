//! TLS as `sslmode` defines it: without verification, with the chain verified, or with chain and host name verified.
//!
//! The cryptography is chosen here explicitly, because two crates could set a process-wide default differently.

use std::{path::Path, path::PathBuf, sync::Arc};

use brokkr_tenant::SslMode;
use rustls::{
    ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_cert_signed_by_trust_anchor,
    },
    crypto::{CryptoProvider, ring},
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject},
    server::ParsedCertificate,
};

#[derive(Debug, thiserror::Error)]
pub(crate) enum TlsError {
    #[error("{0} {1}: {2}")]
    File(&'static str, PathBuf, rustls::pki_types::pem::Error),
    #[error("{0} {1} is no regular file")]
    NotAFile(&'static str, PathBuf),
    #[error("{0} {1} holds no certificate")]
    NoCertificate(&'static str, PathBuf),
    #[error(
        "the system has no trusted root certificates; install ca-certificates or set sslrootcert"
    )]
    NoSystemRoots,
    #[error("TLS cannot be set up: {0}")]
    Rustls(#[from] rustls::Error),
    #[error("TLS cannot be set up: {0}")]
    Verifier(#[from] rustls::client::VerifierBuilderError),
}

/// Returns the client's TLS configuration for `mode`; `None` without TLS.
pub(crate) fn client(
    mode: SslMode,
    root_cert: Option<&Path>,
    client: Option<(&Path, &Path)>,
) -> Result<Option<ClientConfig>, TlsError> {
    let provider = Arc::new(ring::default_provider());
    let verifier: Arc<dyn ServerCertVerifier> = match mode {
        SslMode::Disable => return Ok(None),
        SslMode::Prefer | SslMode::Require => Arc::new(Unverified(provider.clone())),
        SslMode::VerifyCa => Arc::new(ChainOnly {
            roots: roots(root_cert)?,
            provider: provider.clone(),
        }),
        SslMode::VerifyFull => WebPkiServerVerifier::builder_with_provider(
            Arc::new(roots(root_cert)?),
            provider.clone(),
        )
        .build()?,
    };
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(verifier);
    Ok(Some(match client {
        None => config.with_no_client_auth(),
        Some((cert, key)) => {
            let chain = certificates("sslcert", cert)?;
            let bad_key = |error| TlsError::File("sslkey", key.to_owned(), error);
            regular("sslkey", key)?;
            let key = PrivateKeyDer::from_pem_file(key).map_err(bad_key)?;
            config.with_client_auth_cert(chain, key)?
        }
    }))
}

/// Refuses anything but a regular file, because opening a pipe would wait for its writer without limit. A path that
/// cannot be examined fails when it is opened.
fn regular(option: &'static str, path: &Path) -> Result<(), TlsError> {
    match std::fs::metadata(path) {
        Ok(found) if !found.is_file() => Err(TlsError::NotAFile(option, path.to_owned())),
        _ => Ok(()),
    }
}

/// Reads the certificates in a PEM file, at least one.
fn certificates(
    option: &'static str,
    path: &Path,
) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    regular(option, path)?;
    let fail = |error| TlsError::File(option, path.to_owned(), error);
    let read = CertificateDer::pem_file_iter(path).map_err(fail)?;
    let found: Vec<_> = read.collect::<Result<_, _>>().map_err(fail)?;
    match found.is_empty() {
        true => Err(TlsError::NoCertificate(option, path.to_owned())),
        false => Ok(found),
    }
}

/// Returns a client's TLS configuration that accepts any certificate, for requests without a secret.
///
/// # Errors
/// When the cryptography lacks a version of TLS.
pub fn unverified() -> Result<ClientConfig, rustls::Error> {
    let provider = Arc::new(ring::default_provider());
    let verifier = Arc::new(Unverified(provider.clone()));
    Ok(ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth())
}

fn roots(file: Option<&Path>) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    if let Some(path) = file {
        for cert in certificates("sslrootcert", path)? {
            roots.add(cert)?;
        }
    } else {
        // Skips system certificates that cannot be parsed, as other programs do, because the store is not ours to
        // repair.
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        if roots.is_empty() {
            return Err(TlsError::NoSystemRoots);
        }
    }
    Ok(roots)
}

/// Accepts any certificate, as libpq does for `prefer` and `require`: they stop eavesdroppers, not impostors.
///
/// The signature of the handshake is still checked: the peer holds the key of the certificate it presents.
#[derive(Debug)]
struct Unverified(Arc<CryptoProvider>);

impl ServerCertVerifier for Unverified {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(
            message,
            cert,
            dss,
            &self.0.signature_verification_algorithms,
        )
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(
            message,
            cert,
            dss,
            &self.0.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// Requires a chain to a trusted root, and ignores the name in the certificate.
#[derive(Debug)]
struct ChainOnly {
    roots: RootCertStore,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for ChainOnly {
    fn verify_server_cert(
        &self,
        cert: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let cert = ParsedCertificate::try_from(cert)?;
        let algorithms = self.provider.signature_verification_algorithms.all;
        verify_server_cert_signed_by_trust_anchor(
            &cert,
            &self.roots,
            intermediates,
            now,
            algorithms,
        )?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(
            message,
            cert,
            dss,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(
            message,
            cert,
            dss,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}
