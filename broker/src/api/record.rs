//! What a request leaves behind besides its rows: audit entries with their true actor, and refused PAKs.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use axum::http::{HeaderMap, header};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::auth::Principal;
use crate::db::Conn;
use crate::emit::{self, Actor, Audit};

/// Most refused PAKs written down in one [`WINDOW`]: anybody can produce them, and each is a row.
const REFUSALS: u32 = 60;
/// See [`REFUSALS`].
const WINDOW: Duration = Duration::from_secs(60);
/// Most bytes kept of a header that an unknown caller sent.
const HEADER: usize = 512;

/// An audit entry of what this caller did.
pub(super) fn audit(
    principal: Principal,
    action: &'static str,
    resource_type: &'static str,
    resource: Uuid,
) -> Audit {
    Audit::new(principal.into(), action, resource_type, Some(resource))
}

/// Notes that somebody came with a PAK that is none. Beyond [`REFUSALS`] in a [`WINDOW`] nothing is written, and the next
/// entry says how many were left out. The answer is 401 whether or not it could be noted.
pub(super) fn refused_pak(db: &mut Conn, path: &str, headers: &HeaderMap) {
    static QUOTA: Mutex<Quota> = Mutex::new(Quota::new());
    let left_out = {
        // A count cannot be left half-changed by a panic.
        let mut quota = QUOTA
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        match quota.take(Instant::now()) {
            Some(left_out) => left_out,
            None => return,
        }
    };
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    let mut details = json!({ "reason": "invalid_pak", "path": cut(path) });
    if let (Value::Object(details), 1..) = (&mut details, left_out) {
        details.insert("left_out".to_owned(), left_out.into());
    }
    let mut entry = Audit::new(Actor::System, "auth.failed", "system", None).details(details);
    entry.ip_address = text(header::HeaderName::from_static("x-forwarded-for"))
        .and_then(|list| list.split(',').next())
        .map(|first| cut(first.trim()));
    entry.user_agent = text(header::USER_AGENT).map(cut);
    if let Err(error) = emit::emit(db, &[entry], &[]) {
        tracing::warn!(%error, "a refused PAK could not be noted");
    }
}

/// The first [`HEADER`] bytes, or a little less where that would split a character.
fn cut(text: &str) -> String {
    text[..text.floor_char_boundary(HEADER)].to_owned()
}

/// How many refusals this window has seen.
#[derive(Debug)]
struct Quota {
    began: Option<Instant>,
    seen: u32,
}

impl Quota {
    const fn new() -> Self {
        Self {
            began: None,
            seen: 0,
        }
    }

    /// Whether one more may be written down, and how many were not in the window before.
    fn take(&mut self, now: Instant) -> Option<u32> {
        let fresh = self
            .began
            .is_none_or(|began| now.duration_since(began) >= WINDOW);
        let left_out = if fresh {
            self.seen.saturating_sub(REFUSALS)
        } else {
            0
        };
        if fresh {
            self.began = Some(now);
            self.seen = 0;
        }
        self.seen = self.seen.saturating_add(1);
        (self.seen <= REFUSALS).then_some(left_out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_are_written_down_up_to_a_number_and_the_rest_is_counted() {
        let mut quota = Quota::new();
        let start = Instant::now();
        for _ in 0..REFUSALS {
            assert_eq!(quota.take(start), Some(0));
        }
        for _ in 0..5 {
            assert_eq!(quota.take(start), None);
        }
        assert_eq!(quota.take(start + WINDOW), Some(5));
        assert_eq!(quota.take(start + WINDOW), Some(0));
    }
}
