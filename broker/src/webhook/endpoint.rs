//! A subscription's decrypted endpoint: its URL and its credentials.

use std::fmt;

use axum::http::HeaderValue;
use url::Url;
use uuid::Uuid;

use super::crypto::Key;

/// A problem of a URL's text.
#[derive(Debug, PartialEq, Eq)]
pub enum UrlError {
    /// The text begins with neither `http://` nor `https://`, in lower case.
    Scheme,
    /// The text is no URL with a host.
    Form,
}

/// One of the two secrets of a subscription.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Field {
    /// The URL.
    Url,
    /// The `Authorization` value.
    AuthHeader,
}

/// The two secrets, sealed for storage.
#[derive(Clone)]
pub struct Sealed {
    /// The sealed URL.
    pub url: Vec<u8>,
    /// The sealed `Authorization` value, if there is one.
    pub auth_header: Option<Vec<u8>>,
}

impl fmt::Debug for Sealed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// The two secrets in clear text.
#[derive(Clone, PartialEq, Eq)]
pub struct Clear {
    /// The URL.
    pub url: String,
    /// The `Authorization` value, if there is one.
    pub auth_header: Option<String>,
}

impl fmt::Debug for Clear {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl Clear {
    /// Decrypts the stored secrets.
    ///
    /// # Errors
    /// The secret that cannot be read with this key.
    pub fn open(key: &Key, sealed: &Sealed) -> Result<Self, Field> {
        Opened::new(key, sealed).map(|opened| opened.clear)
    }
}

/// Both secrets as text and as parsed values, so that secrets count as readable only if they can be used.
struct Opened {
    clear: Clear,
    url: Url,
    authorization: Option<HeaderValue>,
}

impl Opened {
    fn new(key: &Key, sealed: &Sealed) -> Result<Self, Field> {
        let text = key.open(&sealed.url).map_err(|_| Field::Url)?;
        // The oldest form opens with any key; only a valid URL shows that the key was right.
        let url = parse_url(&text).map_err(|_| Field::Url)?;
        let mut clear = Clear {
            url: text,
            auth_header: None,
        };
        let mut authorization = None;
        if let Some(sealed) = &sealed.auth_header {
            let text = key.open(sealed).map_err(|_| Field::AuthHeader)?;
            authorization = Some(header(&text).ok_or(Field::AuthHeader)?);
            clear.auth_header = Some(text);
        }
        Ok(Self {
            clear,
            url,
            authorization,
        })
    }
}

/// The target of a webhook. No printed form shows it, because the URL alone may give access.
#[derive(Clone)]
pub struct Endpoint {
    url: Url,
    authorization: Option<HeaderValue>,
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl Endpoint {
    /// Decrypts the stored secrets.
    ///
    /// # Errors
    /// The secret that cannot be read with this key.
    pub fn open(key: &Key, sealed: &Sealed) -> Result<Self, Field> {
        let opened = Opened::new(key, sealed)?;
        Ok(Self {
            authorization: opened.authorization.or_else(|| basic(&opened.url)),
            url: opened.url,
        })
    }

    pub(super) fn url(&self) -> &Url {
        &self.url
    }

    pub(super) fn authorization(&self) -> Option<&HeaderValue> {
        self.authorization.as_ref()
    }
}

/// Parses a subscription's URL.
pub fn parse_url(text: &str) -> Result<Url, UrlError> {
    if !text.starts_with("http://") && !text.starts_with("https://") {
        return Err(UrlError::Scheme);
    }
    match Url::parse(text) {
        Ok(url) if url.has_host() => Ok(url),
        _ => Err(UrlError::Form),
    }
}

/// Returns an `Authorization` value, if the text is valid in a header.
pub fn header(text: &str) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_str(text).ok()?;
    value.set_sensitive(true);
    Some(value)
}

/// Returns the lane of this URL's host and port; see [`Key::lane`].
pub fn lane(key: &Key, url: &Url) -> Uuid {
    let host = url.host_str().unwrap_or_default();
    let port = url.port_or_known_default().unwrap_or_default();
    key.lane(&format!("{host}:{port}"))
}

/// Returns the `Authorization` value of `https://user:password@host/`, as every HTTP client sends it.
fn basic(url: &Url) -> Option<HeaderValue> {
    if url.username().is_empty() && url.password().is_none() {
        return None;
    }
    let plain = |text: &str| percent_encoding::percent_decode_str(text).collect::<Vec<u8>>();
    let mut pair = plain(url.username());
    pair.push(b':');
    pair.extend(plain(url.password().unwrap_or_default()));
    header(&format!("Basic {}", base64(&pair)))
}

/// Encodes in Base64 with padding.
fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let group = chunk
            .iter()
            .chain(&[0, 0])
            .take(3)
            .fold(0_usize, |group, byte| group << 8 | usize::from(*byte));
        for at in 0..4 {
            // n bytes need n + 1 digits.
            out.push(if at <= chunk.len() {
                char::from(DIGITS[group >> (18 - 6 * at) & 63])
            } else {
                '='
            });
        }
    }
    out
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    fn key() -> Key {
        Key::parse(&"a".repeat(64)).unwrap()
    }

    fn sealed(url: &str, auth_header: Option<&str>) -> Sealed {
        Sealed {
            url: key().seal(url).unwrap(),
            auth_header: auth_header.map(|text| key().seal(text).unwrap()),
        }
    }

    #[test]
    fn a_url_is_http_or_https_in_lower_case_with_a_host() {
        for good in ["http://x", "https://x:1/y?z", "http://[::1]/", "http://1"] {
            assert!(parse_url(good).is_ok(), "{good}");
        }
        for bad in ["", "x", "HTTP://x", "ftp://x", "http:/x", " http://x"] {
            assert_eq!(parse_url(bad), Err(UrlError::Scheme), "{bad}");
        }
        for bad in ["http://", "https://:1", "http://a b/", "http://x:99999/"] {
            assert_eq!(parse_url(bad), Err(UrlError::Form), "{bad}");
        }
    }

    #[test]
    fn an_endpoint_opens_with_its_key_and_says_which_part_does_not() {
        let endpoint = Endpoint::open(&key(), &sealed("https://x/y", Some("Bearer z"))).unwrap();
        assert_eq!(endpoint.url().as_str(), "https://x/y");
        assert_eq!(endpoint.authorization().unwrap(), "Bearer z");
        assert!(endpoint.authorization().unwrap().is_sensitive());
        assert_eq!(format!("{endpoint:?}"), "***");
        let other = Key::parse(&"b".repeat(64)).unwrap();
        let mut both = sealed("https://x/y", Some("Bearer z"));
        assert_eq!(Endpoint::open(&other, &both).unwrap_err(), Field::Url);
        both.auth_header = Some(other.seal("Bearer z").unwrap());
        assert_eq!(
            Endpoint::open(&key(), &both).unwrap_err(),
            Field::AuthHeader
        );
        // The oldest form under a wrong key may give text, but no URL.
        let garbage = sealed("no url", None);
        assert_eq!(Endpoint::open(&key(), &garbage).unwrap_err(), Field::Url);
    }

    #[test]
    fn a_user_in_the_url_is_sent_unless_there_is_an_authorization_value() {
        let sent = |url: &str, header: Option<&str>| {
            let endpoint = Endpoint::open(&key(), &sealed(url, header)).unwrap();
            endpoint
                .authorization()
                .map(|value| value.to_str().unwrap().to_owned())
        };
        let url = "https://Aladdin:open%20sesame@x/";
        assert_eq!(
            sent(url, None).unwrap(),
            "Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ=="
        );
        assert_eq!(sent(url, Some("Bearer z")).unwrap(), "Bearer z");
        assert_eq!(sent("https://x/", None), None);
        for (plain, coded) in [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg=="),
        ] {
            assert_eq!(base64(plain.as_bytes()), coded);
        }
    }
}
