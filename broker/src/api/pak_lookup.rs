//! `POST /auth/pak`: returns the holder of a PAK.

use axum::Router;
use axum::routing::post;
use serde::Serialize;
use utoipa::{OpenApi, ToSchema};
use uuid::Uuid;

use super::openapi::responses::Always;
use super::operation::plain;
use super::reply::Reply;
use super::request::ApiRequest;
use crate::app::App;
use crate::auth::Principal;
use crate::db::Conn;
use crate::error::Error;

#[derive(OpenApi)]
#[openapi(paths(verify))]
pub(super) struct Doc;

pub(super) fn routes() -> Router<App> {
    Router::new().route("/auth/pak", post(plain(verify)))
}

/// Holder of the PAK: exactly one of the first three fields is set.
#[derive(Serialize, ToSchema)]
#[schema(as = AuthResponse)]
struct Identity {
    admin: bool,
    #[schema(value_type = Option<String>)]
    agent: Option<Uuid>,
    #[schema(value_type = Option<String>)]
    generator: Option<Uuid>,
    readonly: bool,
}

#[utoipa::path(
    post, path = "/auth/pak", operation_id = "verify_pak", tag = "auth",
    responses((status = 200, description = "Whose PAK it is", body = Identity), Always),
    security(("admin_pak" = []), ("agent_pak" = []), ("generator_pak" = [])),
)]
fn verify(call: &ApiRequest, _: &mut Conn) -> Result<Reply, Error> {
    let mut identity = Identity {
        admin: false,
        agent: None,
        generator: None,
        readonly: false,
    };
    match call.principal {
        Principal::Admin => identity.admin = true,
        Principal::Agent(id) => identity.agent = Some(id),
        Principal::Generator(id) => identity.generator = Some(id),
    }
    Reply::ok(&identity)
}
