//! Who holds a PAK.

use axum::Router;
use utoipa::OpenApi;

use crate::app::App;

/// This resource in the OpenAPI document.
#[derive(OpenApi)]
#[openapi()]
pub(super) struct Doc;

pub(super) fn routes() -> Router<App> {
    Router::new()
}
