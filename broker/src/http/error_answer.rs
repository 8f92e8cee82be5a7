//! The errors that the broker answers before a request reaches the API.

use axum::body::Body;
use axum::http::{HeaderValue, Response, StatusCode, header};

/// Returns an error with the API's body.
pub(super) fn error_answer(status: StatusCode, code: &str, message: &str) -> Response<Body> {
    let body = serde_json::json!({ "code": code, "message": message });
    let mut response = Response::new(Body::from(body.to_string()));
    *response.status_mut() = status;
    response.headers_mut().insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/json"),
    );
    response
}
