//! Which posts were taken already: the newest, and marks of those that may be sent again.
//!
//! A reconnect or a look back begins a little before the newest post, as posts
//! come nearly in order, not quite. Those of that overlap are told apart by
//! marks of 48 bits of their ids.
//!
//! Invariant: at most `Seen::most` marks are kept, the newest ones; the token
//! holds them all, so a restart tells the same posts apart.

use crate::backoff::splitmix64;
use std::{
    collections::{HashSet, VecDeque},
    fmt::Write,
};

/// The newest post, and marks of recent ones.
#[derive(Debug, Clone)]
pub struct Seen {
    most: usize,
    recent: VecDeque<u64>,
    marks: HashSet<u64>,
    /// What the protocol goes on from: an id, a list of offsets. Holds no line's end.
    pub place: String,
}

impl Seen {
    /// Nothing so far; keeps `most` marks.
    pub fn new(most: usize) -> Self {
        Self { most, recent: VecDeque::new(), marks: HashSet::new(), place: String::new() }
    }

    /// From a token; nothing seen without one.
    pub fn from_token(token: Option<&str>, most: usize) -> Self {
        let mut seen = Self::new(most);
        if let Some((marks, place)) = token.and_then(|t| t.split_once(';')) {
            seen.place = place.to_string();
            for mark in marks.split(',').filter_map(|m| u64::from_str_radix(m, 16).ok()) {
                seen.insert(mark);
            }
        }
        seen
    }

    /// Marks and place, as text.
    pub fn token(&self) -> String {
        let mut token = String::with_capacity(self.recent.len() * 13 + self.place.len() + 1);
        for (i, mark) in self.recent.iter().enumerate() {
            // Writing to a string can't fail.
            let _never = write!(token, "{}{mark:x}", if i == 0 { "" } else { "," });
        }
        token.push(';');
        token.push_str(&self.place);
        token
    }

    /// Whether a post of this name is new; from now on it is not.
    pub fn is_new(&mut self, parts: &[&str]) -> bool {
        self.insert(mark(parts))
    }

    /// Whether a post of this name was taken.
    pub fn knows(&self, parts: &[&str]) -> bool {
        self.marks.contains(&mark(parts))
    }

    fn insert(&mut self, mark: u64) -> bool {
        if !self.marks.insert(mark) {
            return false;
        }
        self.recent.push_back(mark);
        if self.recent.len() > self.most
            && let Some(oldest) = self.recent.pop_front()
        {
            self.marks.remove(&oldest);
        }
        true
    }
}

/// 48 bits that stand for a name, the same in every life of the program: FNV-1a, then mixed.
fn mark(parts: &[&str]) -> u64 {
    let mut hash = 0xCBF2_9CE4_8422_2325_u64;
    for byte in parts.iter().flat_map(|part| part.bytes().chain([0])) {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01B3);
    }
    splitmix64(hash) >> 16
}

/// The later of two ids: numbers by their size, other texts (which are made so) by the alphabet.
pub fn later<'a>(a: &'a str, b: &'a str) -> &'a str {
    let numbers = [a, b].iter().all(|id| id.bytes().all(|c| c.is_ascii_digit()));
    let by_size = if numbers { a.len().cmp(&b.len()) } else { std::cmp::Ordering::Equal };
    if by_size.then_with(|| a.cmp(b)).is_ge() { a } else { b }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_are_bounded_and_survive_as_a_token() {
        let mut seen = Seen::new(100);
        for n in 0..1000 {
            assert!(seen.is_new(&[&n.to_string()]));
        }
        assert_eq!((seen.recent.len(), seen.marks.len()), (100, 100));
        seen.place = r#"[{"topic":"a;b","offset":7}]"#.to_string();
        let token = seen.token();
        assert!(token.len() < 1400, "{}", token.len());
        let mut again = Seen::from_token(Some(&token), 100);
        assert_eq!(again.place, seen.place);
        assert_eq!(again.token(), token);
        assert!(!again.is_new(&["999"]) && !again.is_new(&["900"]));
        assert!(again.is_new(&["899"]), "it was forgotten");
        // Parts are apart.
        assert!(again.is_new(&["9", "98"]));
        for strange in [None, Some(""), Some("strange"), Some("zz;")] {
            assert_eq!(Seen::from_token(strange, 10).place, "");
        }
    }

    #[test]
    fn ids_are_ordered_as_their_networks_make_them() {
        assert_eq!(later("9", "10"), "10");
        assert_eq!(later("", "1"), "1");
        assert_eq!(later("01H8A", "01H7Z"), "01H8A");
        assert_eq!(later("5", "5"), "5");
    }
}
