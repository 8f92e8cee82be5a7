//! Cross-origin rules (CORS): `cors.*` for the API; every origin may read the public paths (probes, metrics, the API's
//! description).
//!
//! The values can change while the broker runs, so each request reads them anew. This module refuses no request; it
//! only tells browsers what pages may do. `*` gives a page no more than any other program has, because the broker uses
//! no cookies.

use axum::body::Body;
use axum::http::{HeaderMap, HeaderValue, Method, Response, StatusCode, header};
use brokkr_tenant::CorsConfig;

/// The headers of an answer that pages may read besides the standard ones.
const EXPOSED: HeaderValue = HeaderValue::from_static("x-request-id, retry-after");

/// The part of the paths whose rule applies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Area {
    /// Paths that need a PAK.
    Api,
    /// All other paths.
    Public,
}

impl Area {
    /// Returns the area of a path.
    pub(super) fn of(path: &str) -> Self {
        if path.starts_with("/api/") || path.starts_with("/internal/") {
            Area::Api
        } else {
            Area::Public
        }
    }
}

/// Returns true when the request is a browser's preflight, which carries no PAK and needs none.
pub(super) fn is_preflight(method: &Method, headers: &HeaderMap) -> bool {
    method == Method::OPTIONS
        && headers.contains_key(header::ORIGIN)
        && headers.contains_key(header::ACCESS_CONTROL_REQUEST_METHOD)
}

/// Returns the answer to a preflight.
pub(super) fn preflight(area: Area, config: &CorsConfig, asked: &HeaderMap) -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::OK;
    allow_origin(area, config, asked, response.headers_mut());
    let headers = response.headers_mut();
    headers.insert(
        header::VARY,
        HeaderValue::from_static(
            "origin, access-control-request-method, access-control-request-headers",
        ),
    );
    if !headers.contains_key(header::ACCESS_CONTROL_ALLOW_ORIGIN) {
        return response;
    }
    let methods = match area {
        Area::Api => list(&config.allowed_methods),
        Area::Public => Some(HeaderValue::from_static("GET, HEAD")),
    };
    // Repeat the requested names, because in browsers `*` does not include `Authorization`.
    let any = area == Area::Public || config.allowed_headers.iter().any(|name| name == "*");
    let allowed = match asked.get(header::ACCESS_CONTROL_REQUEST_HEADERS) {
        Some(wanted) if any => Some(wanted.clone()),
        None if any => None,
        _ => list(&config.allowed_headers),
    };
    for (name, value) in [
        (header::ACCESS_CONTROL_ALLOW_METHODS, methods),
        (header::ACCESS_CONTROL_ALLOW_HEADERS, allowed),
        (
            header::ACCESS_CONTROL_MAX_AGE,
            Some(config.max_age_seconds.into()),
        ),
    ] {
        if let Some(value) = value {
            headers.insert(name, value);
        }
    }
    response
}

/// Adds the headers that tell a browser which origin may read the answer.
pub(super) fn allow(
    area: Area,
    config: &CorsConfig,
    origin: Option<&HeaderValue>,
    answer: &mut HeaderMap,
) {
    let mut asked = HeaderMap::new();
    if let Some(origin) = origin {
        asked.insert(header::ORIGIN, origin.clone());
    }
    allow_origin(area, config, &asked, answer);
    if answer.contains_key(header::ACCESS_CONTROL_ALLOW_ORIGIN) {
        answer.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, EXPOSED);
    }
}

fn allow_origin(area: Area, config: &CorsConfig, asked: &HeaderMap, answer: &mut HeaderMap) {
    let origin = asked.get(header::ORIGIN);
    if area == Area::Public || config.allowed_origins.iter().any(|one| one == "*") {
        if origin.is_some() {
            answer.insert(
                header::ACCESS_CONTROL_ALLOW_ORIGIN,
                HeaderValue::from_static("*"),
            );
        }
        return;
    }
    // Always vary by origin, otherwise a cache could give one origin's answer to another.
    answer.append(header::VARY, HeaderValue::from_static("origin"));
    let Some(origin) = origin else { return };
    let is_allowed = origin.to_str().is_ok_and(|text| {
        let same = |one: &String| one.trim_end_matches('/').eq_ignore_ascii_case(text);
        config.allowed_origins.iter().any(same)
    });
    if is_allowed {
        answer.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
    }
}

/// Joins the words into a header's value. Returns `None` when the list is empty or the value is invalid.
fn list(words: &[String]) -> Option<HeaderValue> {
    (!words.is_empty())
        .then(|| HeaderValue::from_str(&words.join(", ")).ok())
        .flatten()
}
