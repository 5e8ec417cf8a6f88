//! What a part of a program has for itself alone.
//!
//! Two sinks in one directory would write files of the same names, and two
//! streams over standard input would share its lines at random. So a sink or a
//! receiver names what it takes, in one way whoever names it, and a program in
//! which two take the same is refused when it is declared.
//!
//! Invariant: two claims clash if, and only if, rows could be lost or shared.
//! Called by the engine when a program is declared.

use std::fmt;

/// What a part of a program has for itself alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    what: String,
    dealt: bool,
}

impl Claim {
    /// Of a thing by its one name, for people: `directory /srv/out`, `table totals of /srv/totals.db`.
    pub fn new(what: impl Into<String>) -> Self {
        Self { what: what.into(), dealt: false }
    }

    /// A directory together with those below it that are named `column=value`.
    #[must_use]
    pub fn with_dealt_out(mut self) -> Self {
        self.dealt = true;
        self
    }

    /// Whether only one of the two can be had.
    ///
    /// ```
    /// use tidemill_core::Claim;
    ///
    /// let out = Claim::new("directory /srv/out");
    /// let day = Claim::new("directory /srv/out/day=2026-01-31");
    /// assert!(!out.clashes(&day));
    /// assert!(day.clashes(&out.with_dealt_out()));
    /// ```
    pub fn clashes(&self, other: &Self) -> bool {
        self.what == other.what || self.deals_into(other) || other.deals_into(self)
    }

    fn deals_into(&self, other: &Self) -> bool {
        let below = other.what.strip_prefix(&self.what).and_then(|rest| rest.strip_prefix('/'));
        self.dealt && below.is_some_and(|below| below.split('/').all(|part| part.contains('=')))
    }
}

impl fmt::Display for Claim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_taken_with_those_that_its_rows_name() {
        let at = |path: &str| Claim::new(format!("directory {path}"));
        let dealt = at("/out").with_dealt_out();
        for (path, clashes) in [
            ("/out", true),
            ("/out/day=1", true),
            ("/out/day=1/lang=en", true),
            ("/out/late", false),
            ("/out/day=1/late", false),
            ("/outer", false),
            ("/", false),
        ] {
            assert_eq!((dealt.clashes(&at(path)), at(path).clashes(&dealt)), (clashes, clashes), "{path}");
        }
        assert!(at("/out").clashes(&at("/out")) && !at("/out").clashes(&at("/out/day=1")));
    }
}
