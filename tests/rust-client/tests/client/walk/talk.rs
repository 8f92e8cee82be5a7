//! The calls of the walk: one operation, its expected answer, and the record of all called operations.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use brokkr_client::types::ErrorResponse;
use brokkr_client::{Error, ResponseValue};

thread_local! {
    /// The operations called by the walk of this thread.
    static CALLED: RefCell<BTreeSet<String>> = RefCell::default();
}

pub(crate) fn note(operation: &str) {
    CALLED.with_borrow_mut(|called| called.insert(operation.to_owned()));
}

pub(crate) fn called() -> BTreeSet<String> {
    CALLED.with_borrow(BTreeSet::clone)
}

/// Calls an operation, which must succeed with this status, and returns the answer.
///
/// `ok!(admin, 200, get_agent.id(agent))`
macro_rules! ok {
    ($who:expr, $status:literal, $operation:ident $($given:tt)*) => {{
        crate::walk::talk::note(stringify!($operation));
        match $who.api().$operation() $($given)* .send().await {
            Ok(answer) => {
                assert_eq!(answer.status().as_u16(), $status, stringify!($operation));
                answer.into_inner()
            }
            Err(error) => panic!("{}: {error:?}", stringify!($operation)),
        }
    }};
}

/// Calls an operation, which must be refused with this status, and returns the code.
macro_rules! refused {
    ($who:expr, $status:literal, $operation:ident $($given:tt)*) => {{
        crate::walk::talk::note(stringify!($operation));
        let answer = $who.api().$operation() $($given)* .send().await;
        let (status, code) = crate::walk::talk::refusal(answer).await;
        assert_eq!(status, $status, "{}: {code}", stringify!($operation));
        code
    }};
}

/// Returns status and code of a refusal, also of a status that the client's document does not name.
pub(crate) async fn refusal<T>(
    answer: Result<ResponseValue<T>, Error<ErrorResponse>>,
) -> (u16, String) {
    match answer {
        Ok(answer) => (answer.status().as_u16(), "not refused".to_owned()),
        Err(Error::ErrorResponse(refused)) => {
            (refused.status().as_u16(), refused.into_inner().code)
        }
        Err(Error::UnexpectedResponse(answer)) => {
            let status = answer.status().as_u16();
            let body: serde_json::Value = answer.json().await.unwrap_or_default();
            (status, body["code"].as_str().unwrap_or_default().to_owned())
        }
        Err(error) => panic!("{error:?}"),
    }
}

/// Asks repeatedly until there is an answer, for at most half a minute.
pub(crate) async fn until<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let end = Instant::now() + Duration::from_secs(30);
    loop {
        if let Some(seen) = look().await {
            return seen;
        }
        assert!(Instant::now() < end, "{what}: not within half a minute");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
