//! What operations answer when they refuse or fail: one word for each set of statuses, so that an operation names its
//! refusals in one line. All have the body [`ErrorResponse`].

use std::collections::BTreeMap;

use utoipa::openapi::{ContentBuilder, Ref, RefOr, Response, ResponseBuilder};
use utoipa::{IntoResponses, ToSchema};

use crate::error::ErrorResponse;

macro_rules! answers {
    ($($(#[$doc:meta])* $name:ident { $($status:literal: $means:literal),+ })+) => {$(
        $(#[$doc])*
        pub(in crate::api) enum $name {}

        impl IntoResponses for $name {
            fn responses() -> BTreeMap<String, RefOr<Response>> {
                BTreeMap::from([$(($status.to_owned(), refusal($means))),+])
            }
        }
    )+};
}

answers! {
    /// What every operation may answer.
    Always {
        "401": "No PAK, or none this broker knows",
        "500": "Failed inside the broker",
        "503": "No database, no room, or still starting; try again"
    }
    /// The path or the query can be wrong.
    BadRequest { "400": "What was asked cannot be understood, or not be done" }
    /// Not for every caller.
    Forbidden { "403": "Not for this caller" }
    /// Something must exist.
    NotFound { "404": "There is no such thing" }
    /// Something must not exist yet, or be in another state.
    Conflict { "409": "It exists already, or somebody was faster" }
    /// A value in path or query is to be found in the database.
    Unstorable { "422": "A value that nothing can have" }
    /// Takes a body, whatever its type.
    Body {
        "400": "What was asked cannot be understood, or not be done",
        "408": "The body took too long to arrive",
        "413": "The body is too large"
    }
    /// Takes a body of JSON.
    JsonBody {
        "400": "What was asked cannot be understood, or not be done",
        "408": "The body took too long to arrive",
        "413": "The body is too large",
        "415": "The body is not said to be JSON",
        "422": "The body has another shape, or a value that cannot be stored"
    }
}

fn refusal(means: &str) -> RefOr<Response> {
    let schema = Ref::from_schema_name(ErrorResponse::name());
    let content = ContentBuilder::new().schema(Some(schema)).build();
    ResponseBuilder::new()
        .description(means)
        .content("application/json", content)
        .build()
        .into()
}
