//! Redirects: the next URL of an answer.

use axum::http::{HeaderValue, StatusCode};
use url::Url;

use super::send_error::SendError;

/// Returns the next URL, if this answer is a redirect. Only 303 changes the method to GET. Browsers do so after 301 and
/// 302 too, but a GET would be answered 200 without the webhook's data.
pub(super) fn next(
    from: &Url,
    status: StatusCode,
    location: Option<&HeaderValue>,
) -> Result<Option<Url>, SendError> {
    let (301..=303 | 307..=308, Some(location)) = (status.as_u16(), location) else {
        return Ok(None);
    };
    let location = location.to_str().map_err(|_| SendError::Location)?;
    let next = from.join(location).map_err(|_| SendError::Location)?;
    match (from.scheme(), next.scheme()) {
        ("https", "http") => Err(SendError::Downgrade),
        (_, "http" | "https") if next.has_host() => Ok(Some(next)),
        _ => Err(SendError::Location),
    }
}

/// Returns true when both URLs have the same scheme, host and port, and so may share the `Authorization` value.
pub(super) fn same_origin(one: &Url, other: &Url) -> bool {
    one.scheme() == other.scheme()
        && one.host() == other.host()
        && one.port_or_known_default() == other.port_or_known_default()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    fn go(from: &str, status: u16, to: &'static str) -> Result<Option<String>, SendError> {
        let location = HeaderValue::from_static(to);
        let status = StatusCode::from_u16(status).unwrap();
        next(&Url::parse(from).unwrap(), status, Some(&location)).map(|next| next.map(String::from))
    }

    #[test]
    fn a_redirect_is_taken_from_where_it_was_said() {
        let from = "https://a.example/x/y?q";
        for (to, wanted) in [
            ("z", "https://a.example/x/z"),
            ("/z", "https://a.example/z"),
            ("//b.example/", "https://b.example/"),
            ("https://b.example:8443/z", "https://b.example:8443/z"),
        ] {
            for status in [301, 302, 303, 307, 308] {
                assert_eq!(go(from, status, to).unwrap().unwrap(), wanted);
            }
        }
        for status in [200, 300, 304, 305, 401] {
            assert_eq!(go(from, status, "/z").unwrap(), None);
        }
        let nowhere = next(&Url::parse(from).unwrap(), StatusCode::FOUND, None);
        assert_eq!(nowhere.unwrap(), None);
    }

    #[test]
    fn what_leads_out_of_https_or_of_http_altogether_is_refused() {
        let from = "https://a.example/";
        assert!(matches!(
            go(from, 302, "http://a.example/"),
            Err(SendError::Downgrade)
        ));
        assert_eq!(
            go("http://a.example/", 302, "https://a.example/")
                .unwrap()
                .unwrap(),
            from
        );
        for bad in [
            "file:///etc/passwd",
            "gopher://a.example/",
            "data:,x",
            "https://",
            "javascript:1",
        ] {
            assert!(
                matches!(go(from, 302, bad), Err(SendError::Location)),
                "{bad}"
            );
        }
    }

    #[test]
    fn an_origin_is_scheme_host_and_port() {
        let same = |one: &str, other: &str| {
            same_origin(&Url::parse(one).unwrap(), &Url::parse(other).unwrap())
        };
        assert!(same("https://a.example/x", "https://A.example:443/y"));
        for other in [
            "http://a.example/",
            "https://b.example/",
            "https://a.example:8443/",
        ] {
            assert!(!same("https://a.example/", other), "{other}");
        }
    }
}
