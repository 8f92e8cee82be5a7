//! `POST /auth/pak`: who a PAK belongs to.

use axum::Router;
use axum::routing::post;
use serde::Serialize;
use utoipa::OpenApi;
use uuid::Uuid;

use super::call::{Call, Reply, plain};
use crate::app::App;
use crate::auth::Principal;
use crate::db::Conn;
use crate::error::Error;

/// This resource in the OpenAPI document.
#[derive(OpenApi)]
#[openapi()]
pub(super) struct Doc;

pub(super) fn routes() -> Router<App> {
    Router::new().route("/auth/pak", post(plain(verify)))
}

/// Exactly one of the first three says who it is.
#[derive(Serialize)]
struct Identity {
    admin: bool,
    agent: Option<Uuid>,
    generator: Option<Uuid>,
    readonly: bool,
}

fn verify(call: &Call, _: &mut Conn) -> Result<Reply, Error> {
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
