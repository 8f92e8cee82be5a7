//! Request ids: the caller's id if it is valid, else a new id. Every answer and the access log carry the id.

use axum::http::{HeaderMap, HeaderName, HeaderValue};

/// The header, in request and answer.
pub(super) const HEADER: HeaderName = HeaderName::from_static("x-request-id");

/// The longest accepted id, in bytes.
const LONGEST: usize = 128;

/// Returns the request's id as a header's value.
pub(super) fn of(headers: &HeaderMap) -> HeaderValue {
    match headers.get(HEADER) {
        Some(given) if is_sane(given.as_bytes()) => given.clone(),
        // Hexadecimal digits and hyphens are valid in a header.
        _ => HeaderValue::from_str(&fresh()).unwrap_or(HeaderValue::from_static("none")),
    }
}

/// Returns a new id. It must be unique but not secret, so it needs no system call.
pub(super) fn fresh() -> String {
    let random = fastrand::u128(..).to_ne_bytes();
    uuid::Builder::from_random_bytes(random)
        .into_uuid()
        .to_string()
}

/// Returns true when no log line, shell or web page could misread the id.
fn is_sane(id: &[u8]) -> bool {
    let allowed = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_.:/+=".contains(byte);
    (1..=LONGEST).contains(&id.len()) && id.iter().all(allowed)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn a_sane_id_is_taken_over_and_any_other_is_replaced() {
        let of = |given: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(HEADER, HeaderValue::from_str(given).unwrap());
            super::of(&headers).to_str().unwrap().to_owned()
        };
        for sane in ["a", "req-1.2:3/4_5+6=", &"x".repeat(LONGEST)] {
            assert_eq!(of(sane), sane);
        }
        for other in ["", "a b", "<script>", "a;b", "\"", &"x".repeat(LONGEST + 1)] {
            assert!(uuid::Uuid::parse_str(&of(other)).is_ok(), "{other}");
        }
        assert_ne!(of(""), of(""));
    }
}
