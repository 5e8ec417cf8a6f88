//! Exact comparison of two sides' answers.
//!
//! Invariant: [`Rows`] are sorted by key and have each key once, so two answers
//! are equal when their rows are.

use std::{cmp::Ordering, fmt::Debug};

/// An answer: keys in order, each once, with its value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Rows<K, V>(Vec<(K, V)>);

/// Differences that a message shows.
const SHOWN: usize = 5;

impl<K: Ord + Debug, V: PartialEq + Debug> Rows<K, V> {
    /// Sorts rows. A key that comes twice stays twice and so differs from every sound answer.
    pub(crate) fn new(mut rows: Vec<(K, V)>) -> Self {
        rows.sort_unstable_by(|a, b| a.0.cmp(&b.0));
        Self(rows)
    }

    /// Only the rows whose key passes.
    pub(crate) fn keep(mut self, pass: impl Fn(&K) -> bool) -> Self {
        self.0.retain(|(key, _)| pass(key));
        self
    }

    /// The rows in order.
    pub(crate) fn rows(&self) -> &[(K, V)] {
        &self.0
    }

    /// Where this answer differs from the expected one, in words; `None` when it is the same.
    pub(crate) fn difference_from(&self, expected: &Self) -> Option<String> {
        let (mut here, mut there) = (self.0.iter().peekable(), expected.0.iter().peekable());
        let (mut count, mut shown) = (0_usize, Vec::new());
        let mut note = |text: &dyn Fn() -> String| {
            count += 1;
            if shown.len() < SHOWN {
                shown.push(text());
            }
        };
        loop {
            let order = match (here.peek(), there.peek()) {
                (None, None) => break,
                (None, Some(_)) => Ordering::Greater,
                (Some(_), None) => Ordering::Less,
                (Some(a), Some(b)) => a.0.cmp(&b.0),
            };
            let got = if order.is_le() { here.next() } else { None };
            let want = if order.is_ge() { there.next() } else { None };
            match (got, want) {
                (Some((key, got)), Some((_, want))) if got != want => {
                    note(&|| format!("{key:?}: expected {want:?}, got {got:?}"));
                }
                (Some((key, got)), None) => note(&|| format!("{key:?}: not expected, got {got:?}")),
                (None, Some((key, want))) => note(&|| format!("{key:?}: expected {want:?}, missing")),
                _ => {}
            }
        }
        let (got, want) = (self.0.len(), expected.0.len());
        (count > 0).then(|| {
            let more = if count > SHOWN { format!("\n  … and {} more", count - SHOWN) } else { String::new() };
            format!("{count} rows differ ({got} rows, {want} expected):\n  {}{more}", shown.join("\n  "))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(rows: &[(&'static str, u32)]) -> Rows<&'static str, u32> {
        Rows::new(rows.to_vec())
    }

    #[test]
    fn the_same_rows_in_another_order_are_equal() {
        assert_eq!(rows(&[("a", 1), ("b", 2)]).difference_from(&rows(&[("b", 2), ("a", 1)])), None);
    }

    #[test]
    fn a_difference_names_key_and_both_values() {
        let said =
            rows(&[("a", 1), ("c", 3), ("d", 4)]).difference_from(&rows(&[("a", 2), ("b", 2), ("d", 4)])).unwrap();
        assert!(said.starts_with("3 rows differ (3 rows, 3 expected):"), "{said}");
        for part in ["\"a\": expected 2, got 1", "\"b\": expected 2, missing", "\"c\": not expected, got 3"] {
            assert!(said.contains(part), "{said}");
        }
    }

    #[test]
    fn a_key_that_comes_twice_is_a_difference() {
        assert!(rows(&[("a", 1), ("a", 1)]).difference_from(&rows(&[("a", 1)])).is_some());
    }
}
