//! Deals out the last lines among all sources (tenants and the supervisor), so that no source crowds out the others.
//!
//! Half of the requested lines are the newest of all. The other half goes line by line to the source with the fewest
//! lines so far; among equals, to the source whose next line is newest. A source with no more lines leaves its share to
//! the others, so that a single source, or few lines in all, are shown whole.

use super::filter::Level;
use super::record::LogChunk;
use bytes::Bytes;
use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// One line with its line feed.
#[derive(Debug, Clone)]
pub(super) struct TailLine {
    /// Sequence number of the line's chunk, and the line's offset in that chunk.
    at: (u64, usize),
    pub(super) bytes: Bytes,
}

/// Takes the last `most` lines of one source, newest first, from its chunks, which also come newest first.
pub(super) fn newest(
    chunks: impl Iterator<Item = (u64, LogChunk)>,
    most: usize,
    level: Option<Level>,
) -> Vec<TailLine> {
    let mut lines = Vec::new();
    for (sequence, chunk) in chunks {
        let mut end = chunk.bytes.len();
        while end > 0 && lines.len() < most {
            let start = memchr::memrchr(b'\n', &chunk.bytes[..end - 1]).map_or(0, |at| at + 1);
            let bytes = chunk.bytes.slice(start..end);
            if level.is_none_or(|least| Level::of_line(&bytes).at_least(least)) {
                lines.push(TailLine {
                    at: (sequence, start),
                    bytes,
                });
            }
            end = start;
        }
        if lines.len() >= most {
            break;
        }
    }
    lines
}

/// Deals out `most` lines among `sources`, each newest first. Returns the lines in the order in which they came.
pub(super) fn deal(sources: Vec<Vec<TailLine>>, most: usize) -> Vec<TailLine> {
    let shares = shares(&sources, most);
    let dealt = sources.into_iter().zip(shares);
    let mut lines: Vec<TailLine> = dealt
        .flat_map(|(source, share)| source.into_iter().take(share))
        .collect();
    lines.sort_unstable_by_key(|line| line.at);
    lines
}

/// Returns the number of lines for each source.
fn shares(sources: &[Vec<TailLine>], most: usize) -> Vec<usize> {
    let mut shares = vec![0; sources.len()];
    let by_age = most.div_ceil(2);
    let mut newest: BinaryHeap<_> = sources
        .iter()
        .enumerate()
        .filter_map(|(source, lines)| Some((lines.first()?.at, source)))
        .collect();
    for _ in 0..by_age {
        let Some((_, source)) = newest.pop() else {
            return shares;
        };
        shares[source] += 1;
        newest.extend(sources[source].get(shares[source]).map(|l| (l.at, source)));
    }
    let next = |source: usize, share: usize| {
        let line = sources[source].get(share)?;
        Some((Reverse(share), line.at, source))
    };
    let mut poorest: BinaryHeap<_> = shares
        .iter()
        .enumerate()
        .filter_map(|(source, share)| next(source, *share))
        .collect();
    for _ in by_age..most {
        let Some((_, _, source)) = poorest.pop() else {
            break;
        };
        shares[source] += 1;
        poorest.extend(next(source, shares[source]));
    }
    shares
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    /// Creates a source for each list of times of its lines.
    fn sources(of: &[Vec<u64>]) -> Vec<Vec<TailLine>> {
        of.iter()
            .map(|times| {
                let newest_first = times.iter().rev();
                newest_first
                    .map(|time| TailLine {
                        at: (*time, 0),
                        bytes: Bytes::new(),
                    })
                    .collect()
            })
            .collect()
    }

    #[test]
    fn a_flood_gets_half_and_what_the_others_do_not_fill() {
        // Three lines of one source, then thirty of another, then a flood.
        let few: Vec<u64> = (0..3).collect();
        let some: Vec<u64> = (10..40).collect();
        let flood: Vec<u64> = (100..1000).collect();
        let all = sources(&[few, some, flood]);
        assert_eq!(shares(&all, 20), [3, 7, 10]);
        assert_eq!(shares(&all, 100), [3, 30, 67]);
        let shown = deal(all.clone(), 20);
        let times: Vec<u64> = shown.iter().map(|line| line.at.0).collect();
        let wanted: Vec<u64> = (0..3).chain(33..40).chain(990..1000).collect();
        assert_eq!(times, wanted, "the newest of each, in order");
        assert_eq!(deal(all.clone(), 2000).len(), 933);
        assert!(deal(all, 0).is_empty());
    }

    #[test]
    fn of_more_sources_than_lines_those_that_wrote_last_are_shown() {
        let all: Vec<Vec<u64>> = (0..10).map(|n| vec![n, 100 + n]).collect();
        let shown = deal(sources(&all), 4);
        let times: Vec<u64> = shown.iter().map(|line| line.at.0).collect();
        assert_eq!(times, [106, 107, 108, 109]);
        let one = sources(&[(0..50).collect()]);
        assert_eq!(shares(&one, 30), [30]);
        assert!(shares(&[], 3).is_empty());
    }
}
