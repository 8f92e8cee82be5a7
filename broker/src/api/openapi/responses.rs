//! Named sets of error statuses, so that an operation lists its refusals in one line. All have the body
//! [`ErrorResponse`].

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
    /// Errors of every operation.
    Always {
        "401": "No PAK, or none this broker knows",
        "429": "Not a valid PAK, like many before it from the same address; try again later",
        "500": "Failed inside the broker",
        "503": "No database, no room, or still starting; try again"
    }
    /// Errors of a path or query that can be wrong.
    BadRequest { "400": "What was asked cannot be understood, or not be done" }
    /// Errors of an operation that not every caller may use.
    Forbidden { "403": "Not for this caller" }
    /// Errors of an operation on a resource that must exist.
    NotFound { "404": "There is no such thing" }
    /// Errors of an operation on a resource that must not exist yet, or must be in another state.
    Conflict { "409": "It exists already, or another request was faster" }
    /// Errors of an operation that looks up a value of the path or query in the database.
    Unstorable { "422": "A value that nothing can have" }
    /// Errors of an operation that takes a body of any type.
    Body {
        "400": "What was asked cannot be understood, or not be done",
        "408": "The body took too long to arrive",
        "413": "The body is too large"
    }
    /// Errors of an operation that takes a JSON body.
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
