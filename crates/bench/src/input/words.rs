//! W1's lines: about ten words with single spaces, as often as in a natural language.
//!
//! A hundred thousand distinct words of 2 to 12 bytes, the frequent ones
//! short, one in fifty with letters beyond ASCII, drawn by Zipf's law.

use super::random::{Random, Zipf};
use std::collections::HashSet;

/// Distinct words.
pub(crate) const WORDS: u32 = 100_000;
/// Exponent of Zipf's law.
const EXPONENT: f64 = 1.0;

const CONSONANTS: &[&str] =
    &["t", "n", "s", "h", "r", "d", "l", "c", "m", "w", "f", "g", "p", "b", "v", "k", "j", "x", "z", "st", "th", "ch"];
const VOWELS: &[&str] = &["e", "a", "o", "i", "u", "y", "ea", "ou"];
const BEYOND: &[&str] = &["é", "ü", "ñ", "ø", "ś", "ж", "λ", "水", "日", "한"];

/// The vocabulary and its law.
#[derive(Debug)]
pub(crate) struct Words {
    seed: u64,
    /// Each with a space at its end, so that a line is made by copying only.
    words: Vec<String>,
    law: Zipf,
}

impl Words {
    /// The vocabulary of `seed`.
    pub(crate) fn new(seed: u64) -> Self {
        let mut random = Random::new(seed, u64::MAX);
        let mut known = HashSet::new();
        let mut words = Vec::with_capacity(WORDS as usize);
        while words.len() < WORDS as usize {
            let rank = words.len();
            let (least, most) = match rank {
                0..60 => (2, 3),
                60..1_000 => (3, 6),
                1_000..10_000 => (4, 9),
                _ => (5, 12),
            };
            // A word that is there already is drawn anew, and may then be longer.
            let word =
                (0..8).map(|more| word(&mut random, (least + more / 2).min(most), most)).find(|w| !known.contains(w));
            if let Some(mut word) = word {
                known.insert(word.clone());
                word.push(' ');
                words.push(word);
            }
        }
        Self { seed, words, law: Zipf::new(WORDS, EXPONENT) }
    }

    /// Appends line `index` and its `\n`.
    #[inline]
    pub(crate) fn line(&self, index: u64, into: &mut Vec<u8>) {
        let mut random = Random::new(self.seed, index);
        for _ in 0..8 + random.below(5) {
            into.extend_from_slice(self.words[self.law.draw(&mut random)].as_bytes());
        }
        if let Some(last) = into.last_mut() {
            *last = b'\n';
        }
    }

    /// The word of a rank.
    pub(crate) fn word(&self, rank: usize) -> &str {
        self.words[rank].trim_end()
    }
}

fn word(random: &mut Random, least: usize, most: usize) -> String {
    let length = least + random.below(most - least + 1);
    let mut word = String::new();
    let mut beyond = most > 3 && random.chance(2);
    let mut vowel = random.chance(40);
    while word.len() < length {
        let part = if std::mem::take(&mut beyond) {
            random.pick(BEYOND)
        } else {
            random.pick(if vowel { VOWELS } else { CONSONANTS })
        };
        if word.len() + part.len() <= most {
            word.push_str(part);
            vowel = !vowel;
        }
    }
    word
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_distinct_short_and_the_same_again() {
        let words = Words::new(1);
        let distinct: HashSet<&str> = (0..WORDS as usize).map(|rank| words.word(rank)).collect();
        assert_eq!(distinct.len(), WORDS as usize);
        assert!(distinct.iter().all(|w| (2..=12).contains(&w.len()) && !w.contains(char::is_whitespace)));
        let beyond = distinct.iter().filter(|w| !w.is_ascii()).count();
        assert!((1_000..3_000).contains(&beyond), "{beyond} words beyond ASCII");
        let (mut a, mut b) = (Vec::new(), Vec::new());
        words.line(5, &mut a);
        Words::new(1).line(5, &mut b);
        assert_eq!(a, b);
    }

    #[test]
    fn lines_have_about_ten_words_and_single_spaces() {
        let words = Words::new(1);
        let mut text = Vec::new();
        (0..1_000).for_each(|i| words.line(i, &mut text));
        let text = String::from_utf8(text).unwrap();
        assert_eq!(text.lines().count(), 1_000);
        assert!(text.ends_with('\n') && !text.contains("  ") && !text.contains(" \n"));
        assert!((9_700..10_300).contains(&text.split_whitespace().count()));
    }
}
