//! Finds the known word closest to an unknown word, for "did you mean" hints.

/// Returns the candidate at the smallest edit distance from `word`, if that is small enough for a typing error.
pub(crate) fn closest<'a>(
    word: &str,
    candidates: impl Iterator<Item = &'a str>,
) -> Option<&'a str> {
    // Bounds the work that a hostile word can cause.
    if word.len() > 64 {
        return None;
    }
    let near = (word.chars().count() / 3).max(1);
    candidates
        .map(|candidate| (distance(word, candidate), candidate))
        .filter(|(d, _)| *d <= near)
        .min()
        .map(|(_, c)| c)
}

/// Returns the edit distance; two swapped neighbours count once.
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut before: Vec<usize> = Vec::new();
    let mut last: Vec<usize> = (0..=b.len()).collect();
    for i in 1..=a.len() {
        let mut row = vec![i; b.len() + 1];
        for j in 1..=b.len() {
            let change = last[j - 1] + usize::from(a[i - 1] != b[j - 1]);
            row[j] = change.min(last[j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                row[j] = row[j].min(before[j - 2] + 1);
            }
        }
        before = std::mem::replace(&mut last, row);
    }
    last[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slips_are_understood_and_other_words_are_not() {
        let words = || ["schema", "url", "pool_size"].into_iter();
        assert_eq!(closest("shema", words()), Some("schema"));
        assert_eq!(closest("ulr", words()), Some("url"));
        assert_eq!(closest("poolsize", words()), Some("pool_size"));
        assert_eq!(closest("memory", words()), None);
        assert_eq!(closest("", words()), None);
    }
}
