//! The reasons why a request had no answer.

/// The largest number of redirects of one request.
pub(super) const REDIRECTS: usize = 5;

/// Reason why there was no answer. The texts name neither URL nor address.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "each is what it says")]
pub enum SendError {
    #[error("the name of the host cannot be resolved: {0}")]
    Resolve(String),
    #[error(
        "the address of the target is not public, and not in `webhooks.allowed_networks` of the tenant file"
    )]
    Address,
    #[error("port {0} is not in `webhooks.allowed_ports` of the tenant file")]
    Port(u16),
    #[error("cannot connect: {0}")]
    Connect(String),
    #[error("TLS: {0}")]
    Tls(String),
    #[error("no answer within {0} s")]
    Timeout(u64),
    #[error("HTTP: {0}")]
    Http(String),
    #[error("more than {REDIRECTS} redirects")]
    Redirects,
    #[error("redirected from https to http, which is not followed")]
    Downgrade,
    #[error("redirected to what is no http or https URL")]
    Location,
}
