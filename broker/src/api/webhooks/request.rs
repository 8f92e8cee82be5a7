//! Parses and checks the bodies of subscription requests.
//!
//! Both bodies are read in two steps: first keys that old versions supported are refused, because ignoring them
//! silently would harm the caller; then the shape is parsed.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer};
use serde_json::Value;
use url::Url;
use utoipa::ToSchema;

use crate::api::{deserialize_errors, validation};
use crate::error::Error;
use crate::store::webhooks::Filters;
use crate::webhook::endpoint::{UrlError, header, parse_url};

/// Largest number of patterns or labels of a subscription; bounded because every event is compared with each of them.
const MOST_ENTRIES: usize = 100;

/// Largest number of characters of a URL or an `Authorization` value.
const SECRET: usize = 8192;

/// Largest number of characters of a stored event type.
const EVENT_TYPE: usize = 100;

/// A new subscription.
#[derive(Debug, Deserialize, ToSchema)]
pub(super) struct CreateWebhookRequest {
    pub(super) name: String,
    pub(super) url: String,
    pub(super) auth_header: Option<String>,
    pub(super) event_types: Vec<String>,
    /// Filters on the events' data.
    pub(super) filters: Option<Filters>,
    pub(super) target_labels: Option<Vec<String>>,
    pub(super) max_retries: Option<i32>,
    pub(super) timeout_seconds: Option<i32>,
}

/// Changes to a subscription: an absent key leaves its value; null removes an optional value.
#[derive(Debug, Deserialize, ToSchema)]
pub(super) struct UpdateWebhookRequest {
    pub(super) name: Option<String>,
    pub(super) url: Option<String>,
    #[serde(default, deserialize_with = "said")]
    #[schema(value_type = Option<String>)]
    pub(super) auth_header: Option<Option<String>>,
    pub(super) event_types: Option<Vec<String>>,
    /// Filters on the events' data.
    #[serde(default, deserialize_with = "said")]
    #[schema(value_type = Option<Filters>)]
    pub(super) filters: Option<Option<Filters>>,
    #[serde(default, deserialize_with = "said")]
    #[schema(value_type = Option<Vec<String>>)]
    pub(super) target_labels: Option<Option<Vec<String>>>,
    pub(super) enabled: Option<bool>,
    pub(super) max_retries: Option<i32>,
    pub(super) timeout_seconds: Option<i32>,
}

/// Parses a present key to `Some`, so that null differs from an absent key.
fn said<'de, T: Deserialize<'de>, D: Deserializer<'de>>(from: D) -> Result<Option<T>, D::Error> {
    T::deserialize(from).map(Some)
}

impl CreateWebhookRequest {
    /// Reads a body: 422 when its shape is wrong or it has a key that is no longer supported.
    pub(super) fn read(body: Value) -> Result<Self, Error> {
        if body.get("validate").is_some() {
            return Err(unsupported("validate", "POST /webhooks/{id}/test"));
        }
        shaped(body)
    }

    /// Checks the values, and returns the URL.
    pub(super) fn valid(&self) -> Result<Url, Error> {
        let url = valid_url(&self.url)?;
        valid_name(&self.name)?;
        valid_event_types(&self.event_types)?;
        valid_header(self.auth_header.as_deref())?;
        valid_labels(self.target_labels.as_deref())?;
        valid_ranges(self.max_retries, self.timeout_seconds)?;
        Ok(url)
    }
}

impl UpdateWebhookRequest {
    /// Same as [`CreateWebhookRequest::read`].
    pub(super) fn read(body: Value) -> Result<Self, Error> {
        shaped(body)
    }

    /// Checks the values, and returns the new URL if there is a new URL.
    pub(super) fn valid(&self) -> Result<Option<Url>, Error> {
        let url = self.url.as_deref().map(valid_url).transpose()?;
        self.name.as_deref().map_or(Ok(()), valid_name)?;
        self.event_types
            .as_deref()
            .map_or(Ok(()), valid_event_types)?;
        valid_header(self.auth_header.as_ref().and_then(Option::as_deref))?;
        valid_labels(self.target_labels.as_ref().and_then(Option::as_deref))?;
        valid_ranges(self.max_retries, self.timeout_seconds)?;
        Ok(url)
    }

    /// Returns true when the request changes nothing.
    pub(super) fn is_empty(&self) -> bool {
        self.name.is_none()
            && self.url.is_none()
            && self.auth_header.is_none()
            && self.event_types.is_none()
            && self.filters.is_none()
            && self.target_labels.is_none()
            && self.enabled.is_none()
            && self.max_retries.is_none()
            && self.timeout_seconds.is_none()
    }
}

fn invalid(message: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::bad_request("invalid_webhook", message)
}

fn unsupported(field: &'static str, instead: &'static str) -> Error {
    Error::unprocessable(
        "unsupported_field",
        format!("`{field}` is no more; use {instead}"),
    )
    .detail("field", field)
    .detail("use_instead", instead)
}

fn shaped<T: DeserializeOwned>(body: Value) -> Result<T, Error> {
    if body.pointer("/filters/labels").is_some() {
        return Err(unsupported("filters.labels", "target_labels"));
    }
    let wrong = |why: &dyn std::fmt::Display| {
        Error::unprocessable(
            "invalid_request_body",
            format!("the body has the wrong shape: {why}"),
        )
    };
    // A list is refused because serde would read it as the values of an object without keys.
    if !body.is_object() || body.get("filters").is_some_and(Value::is_array) {
        return Err(wrong(&"objects are expected"));
    }
    serde_json::from_value(body).map_err(|error| wrong(&deserialize_errors::of_json(&error)))
}

fn valid_url(text: &str) -> Result<Url, Error> {
    validation::not_blank("`url`", text, "url_required")?;
    validation::storable("`url`", text, SECRET)?;
    parse_url(text).map_err(|error| match error {
        UrlError::Scheme => Error::bad_request(
            "invalid_url_scheme",
            "`url` must begin with http:// or https://",
        ),
        UrlError::Form => invalid("`url` is not a URL with a host"),
    })
}

fn valid_name(name: &str) -> Result<(), Error> {
    validation::not_blank("`name`", name, "invalid_webhook")?;
    if name.len() > validation::NAME {
        return Err(invalid("`name` may have at most 255 bytes"));
    }
    validation::no_nul("`name`", name)
}

fn valid_event_types(patterns: &[String]) -> Result<(), Error> {
    if patterns.is_empty() {
        return Err(invalid("`event_types` must not be empty"));
    }
    valid_entries("`event_types`", patterns, EVENT_TYPE)
}

fn valid_labels(labels: Option<&[String]>) -> Result<(), Error> {
    valid_entries(
        "`target_labels`",
        labels.unwrap_or_default(),
        validation::MARK,
    )
}

fn valid_entries(what: &str, entries: &[String], most: usize) -> Result<(), Error> {
    if entries.len() > MOST_ENTRIES {
        return Err(invalid(format!(
            "{what} may have at most {MOST_ENTRIES} entries"
        )));
    }
    for entry in entries {
        validation::not_blank(&format!("an entry of {what}"), entry, "invalid_webhook")?;
        validation::storable(&format!("an entry of {what}"), entry, most)?;
    }
    Ok(())
}

fn valid_header(text: Option<&str>) -> Result<(), Error> {
    let Some(text) = text else {
        return Ok(());
    };
    validation::storable("`auth_header`", text, SECRET)?;
    match header(text) {
        Some(_) => Ok(()),
        None => Err(invalid("`auth_header` cannot be the value of a header")),
    }
}

fn valid_ranges(max_retries: Option<i32>, timeout_seconds: Option<i32>) -> Result<(), Error> {
    let within = |what: &str, value: Option<i32>, min: i32, max: i32| match value {
        Some(value) if !(min..=max).contains(&value) => Err(Error::unprocessable(
            "invalid_webhook",
            format!("{what} must be from {min} to {max}"),
        )),
        _ => Ok(()),
    };
    within("`max_retries`", max_retries, 0, 10)?;
    within("`timeout_seconds`", timeout_seconds, 1, 300)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn null_and_nothing_are_told_apart_where_null_takes_away() {
        let read = |body| UpdateWebhookRequest::read(body).unwrap();
        assert!(read(json!({})).is_empty());
        assert!(read(json!({ "name": null, "url": null, "enabled": null })).is_empty());
        assert!(read(json!({ "something": 1 })).is_empty());
        let change = read(json!({ "auth_header": null, "filters": null, "target_labels": null }));
        assert!(!change.is_empty());
        assert_eq!(change.auth_header, Some(None));
        assert_eq!(change.filters, Some(None));
        assert_eq!(change.target_labels, Some(None));
        let change = read(json!({ "filters": {}, "target_labels": [] }));
        assert_eq!(change.filters, Some(Some(Filters::default())));
        assert_eq!(change.target_labels, Some(Some(Vec::new())));
    }

    #[test]
    fn a_list_is_no_object() {
        let whole = json!(["n", "https://x", null, ["*"], null, null, null, null]);
        assert!(CreateWebhookRequest::read(whole).is_err());
        let filters = json!({ "filters": [null, null] });
        assert!(UpdateWebhookRequest::read(filters).is_err());
    }
}
