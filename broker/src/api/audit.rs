//! Records of requests besides their rows: audit entries with the true actor, and refused PAKs.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use axum::http::{HeaderMap, header};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::auth::Principal;
use crate::db::Conn;
use crate::domain::outbox::{self, Actor, AuditRecord};

/// Largest number of refused PAKs recorded per [`WINDOW`], because anyone can cause such a row.
const REFUSALS: u32 = 60;
/// Length of a window of [`REFUSALS`].
const WINDOW: Duration = Duration::from_secs(60);
/// Largest number of bytes stored of a header from an unknown caller.
const HEADER: usize = 512;

/// Makes an audit entry for an action of this caller.
pub(super) fn audit(
    principal: Principal,
    action: &'static str,
    resource_type: &'static str,
    resource: Uuid,
) -> AuditRecord {
    AuditRecord::new(principal.into(), action, resource_type, Some(resource))
}

/// Records a request with an invalid PAK. Beyond [`REFUSALS`] per [`WINDOW`] nothing is written, and the next entry has
/// the number of omitted requests. The answer is 401 even when recording fails.
pub(super) fn refused_pak(db: &mut Conn, path: &str, headers: &HeaderMap) {
    static QUOTA: Mutex<Quota> = Mutex::new(Quota::new());
    let left_out = {
        // A panic cannot leave a count half-changed.
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
    let mut entry = AuditRecord::new(Actor::System, "auth.failed", "system", None).details(details);
    entry.ip_address = text(header::HeaderName::from_static("x-forwarded-for"))
        .and_then(|list| list.split(',').next())
        .map(|first| cut(first.trim()));
    entry.user_agent = text(header::USER_AGENT).map(cut);
    if let Err(error) = outbox::emit(db, &[entry], &[]) {
        tracing::warn!(%error, "a refused PAK could not be noted");
    }
}

/// Returns the first [`HEADER`] bytes, cut at a character boundary.
fn cut(text: &str) -> String {
    text[..text.floor_char_boundary(HEADER)].to_owned()
}

/// Number of refusals in the current window.
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

    /// Counts a refusal. When it may be recorded, returns the number of refusals that the previous window omitted if
    /// this starts a window, otherwise 0.
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
