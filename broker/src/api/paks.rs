//! Lists the holders of PAKs.

use axum::Router;
use axum::routing::get;
use utoipa::OpenApi;

use super::authorization;
use super::openapi::responses::{Always, Forbidden};
use super::operation::plain;
use super::reply::Reply;
use super::request::ApiRequest;
use crate::app::App;
use crate::db::Conn;
use crate::error::Error;
use crate::store::paks::{self, PakSummary};

#[derive(OpenApi)]
#[openapi(paths(list))]
pub(super) struct Doc;

pub(super) fn routes() -> Router<App> {
    Router::new().route("/paks", get(plain(list)))
}

#[utoipa::path(
    get, path = "/paks", operation_id = "list_paks", tag = "auth",
    responses(
        (status = 200, description = "The generators that hold a PAK, oldest first", body = [PakSummary]),
        Always, Forbidden,
    ),
    security(("admin_pak" = [])),
)]
fn list(call: &ApiRequest, db: &mut Conn) -> Result<Reply, Error> {
    authorization::admin(call.principal)?;
    Reply::ok(&paks::list(db)?)
}
