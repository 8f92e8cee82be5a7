//! `[isolation] uids`: the range of user ids from which each tenant gets its own.

use brokkr_tenant::Invalid;
use std::fmt;

/// The ids of `(uid_t)-1`, which means "unchanged" to the kernel, and of its 16-bit form.
const NO_ID: [u32; 2] = [u32::MAX, 0xFFFF];
/// The number of accounts that a warning names.
const NAMED: usize = 3;

/// An inclusive range of user ids, without root's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct UidRange {
    first: u32,
    last: u32,
}

impl UidRange {
    /// Parses `FIRST-LAST`.
    ///
    /// # Errors
    /// The broken rule, with an example.
    pub(crate) fn parse(text: &str) -> Result<Self, Invalid> {
        let invalid = |rule: &str| {
            Invalid::new(format!("`isolation.uids` {rule}"))
                .hint("write the first and the last id, for example \"61000-61999\"")
        };
        let number = |text: &str| text.trim().parse().ok();
        let range = text
            .split_once('-')
            .and_then(|(first, last)| Some((number(first)?, number(last)?)));
        let Some((first, last)) = range else {
            return Err(invalid("is not a range of user ids"));
        };
        if first > last {
            return Err(invalid("ends before it begins"));
        }
        if first == 0 {
            return Err(invalid("contains 0, which is root"));
        }
        if NO_ID.iter().any(|id| (first..=last).contains(id)) {
            return Err(invalid("contains 65535 or 4294967295, which are no ids"));
        }
        Ok(Self { first, last })
    }

    pub(crate) fn contains(self, uid: u32) -> bool {
        (self.first..=self.last).contains(&uid)
    }

    /// Iterates over the ids, the lowest first.
    pub(crate) fn iter(self) -> impl Iterator<Item = u32> {
        self.first..=self.last
    }

    /// Returns the number of ids.
    pub(crate) fn count(self) -> u64 {
        u64::from(self.last - self.first) + 1
    }

    /// Names the accounts with an id in the range; `None` when there is none. `accounts` is the text of `/etc/passwd` or
    /// `/etc/group`.
    pub(crate) fn taken_by(self, accounts: &str) -> Option<String> {
        let taken: Vec<String> = accounts
            .lines()
            .filter_map(|line| {
                let mut fields = line.split(':');
                let name = fields.next()?;
                let id: u32 = fields.nth(1)?.parse().ok()?;
                self.contains(id).then(|| format!("{name} ({id})"))
            })
            .collect();
        let more = taken.len().saturating_sub(NAMED);
        let named = taken[..taken.len() - more].join(", ");
        match (taken.is_empty(), more) {
            (true, _) => None,
            (false, 0) => Some(named),
            (false, more) => Some(format!("{named} and {more} more")),
        }
    }
}

impl fmt::Display for UidRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.first, self.last)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn a_range_has_two_ends_in_order_and_no_special_id() {
        let range = UidRange::parse("61000-61999").unwrap();
        assert_eq!(
            (range.count(), range.to_string()),
            (1000, "61000-61999".into())
        );
        assert!(range.contains(61_000) && range.contains(61_999) && !range.contains(62_000));
        assert_eq!(
            UidRange::parse("7 - 7").unwrap().iter().collect::<Vec<_>>(),
            [7]
        );
        for (text, rule) in [
            ("", "not a range"),
            ("61000", "not a range"),
            ("a-b", "not a range"),
            ("-1-5", "not a range"),
            ("9-8", "ends before"),
            ("0-5", "root"),
            ("65535-65535", "no ids"),
            ("5-4294967295", "no ids"),
        ] {
            let error = UidRange::parse(text).unwrap_err();
            assert!(error.message.contains(rule), "{text}: {error}");
        }
    }

    #[test]
    fn accounts_in_the_range_are_named() {
        let accounts = "root:x:0:0::/root:/bin/sh\na:x:5:5\nb:x:6:6\nc:x:7:7\nd:x:8:8\nbad\n";
        let range = |text| UidRange::parse(text).unwrap();
        assert_eq!(range("9-20").taken_by(accounts), None);
        assert_eq!(range("6-7").taken_by(accounts).unwrap(), "b (6), c (7)");
        assert_eq!(
            range("1-9").taken_by(accounts).unwrap(),
            "a (5), b (6), c (7) and 1 more"
        );
    }
}
