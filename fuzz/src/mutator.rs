//! Mutations of a corpus, from a seed: the same ones on every machine.

use fastrand::Rng;

/// Bytes that mean something to at least one parser here.
const TELLING: &[u8] = b"\0\t\n\r \"#%&'*+,-./0129:;<=>?@AZ[\\]_az{}\x7f\x80\xc3\xff";

/// The largest mutation, in bytes. Larger inputs take longer and reach the same code.
const LARGEST: usize = 8 * 1024;

/// Makes mutations of a corpus.
#[derive(Debug)]
pub struct Mutator<'c> {
    corpus: &'c [Vec<u8>],
    /// The words of the corpus, because a parser's keywords are among them.
    words: Vec<&'c [u8]>,
    random: Rng,
}

impl<'c> Mutator<'c> {
    /// Returns the mutator of this corpus and seed.
    pub fn new(corpus: &'c [Vec<u8>], seed: u64) -> Self {
        let is_word = |byte: &u8| byte.is_ascii_alphanumeric() || *byte == b'_';
        let mut words: Vec<&[u8]> = corpus
            .iter()
            .flat_map(|text| text.split(move |byte| !is_word(byte)))
            .filter(|word| !word.is_empty())
            .collect();
        words.sort_unstable();
        words.dedup();
        Self {
            corpus,
            words,
            random: Rng::with_seed(seed),
        }
    }

    /// Returns another mutation: a text of the corpus after one to eight changes.
    pub fn mutation(&mut self) -> Vec<u8> {
        let mut text = self.any_text().to_vec();
        for _ in 0..self.random.u32(1..=8) {
            self.change(&mut text);
        }
        text.truncate(LARGEST);
        text
    }

    fn any_text(&mut self) -> &'c [u8] {
        let count = self.corpus.len().max(1);
        let n = self.random.usize(..count);
        self.corpus.get(n).map_or(&[], Vec::as_slice)
    }

    fn change(&mut self, text: &mut Vec<u8>) {
        let at = self.random.usize(..=text.len());
        let end = at + self.random.usize(..=(text.len() - at).min(16));
        match self.random.u32(..8) {
            0 => drop(text.drain(at..end)),
            1 => text.insert(at, self.random.choice(TELLING).copied().unwrap_or_default()),
            2 => text.insert(at, self.random.u8(..)),
            3 if at < text.len() => text[at] ^= 1 << self.random.u32(..8),
            4 => {
                let word = self.random.choice(&self.words).copied().unwrap_or_default();
                text.splice(at..end, word.iter().copied());
            }
            5 => {
                let repeated = text[at..end].to_vec();
                for _ in 0..self.random.u32(1..40) {
                    text.splice(at..at, repeated.iter().copied());
                }
            }
            6 => text.truncate(at),
            _ => {
                let other = self.any_text();
                let from = self.random.usize(..=other.len());
                text.truncate(at);
                text.extend_from_slice(&other[from..]);
            }
        }
    }
}
