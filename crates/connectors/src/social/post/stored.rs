//! Posts that were stored in the form of the format `post`, and the deletions among them.
//!
//! Invariant: a row is known as such by its three members `id`, `kind` and
//! `source`, of which the last two have values that only this format gives. A
//! post is hidden by a deletion wherever that is stored, as stores have no order
//! of their own. Called by those who play a stored history.

use super::{Kind, Network, notices::text};
use crate::format::json::{Paths, scan_bytes};
use std::{borrow::Cow, collections::HashSet};

/// What a row says: whose post it is, and whether it is deleted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    /// The network and the post's id there.
    key: String,
    is_deletion: bool,
}

impl Stored {
    /// Of the values of the three members; `None` when these are no post's. Rows without an id have none to share:
    /// a deletion among them would hide them all.
    pub fn of(id: &str, kind: &str, source: &str) -> Option<Self> {
        let is_kind = [Kind::Post, Kind::Edit, Kind::Delete].iter().any(|known| known.name() == kind);
        let is_post = is_kind && Network::ALL.iter().any(|network| network.name() == source);
        (is_post && !id.is_empty())
            .then(|| Self { key: format!("{source} {id}"), is_deletion: kind == Kind::Delete.name() })
    }

    /// Of a line of JSON.
    pub fn of_line(line: &[u8], paths: &MemberPaths) -> Option<Self> {
        // A member that is missing, or no text, is as an empty one: no row of a post has that.
        let mut found = [const { Cow::Borrowed("") }; 3];
        scan_bytes(line, &paths.0, |member, raw| found[member] = text(&raw).unwrap_or_default()).ok()?;
        let [id, kind, source] = found;
        Self::of(&id, &kind, &source)
    }
}

/// Where the three members are in a line.
#[derive(Debug)]
pub struct MemberPaths(Paths);

impl Default for MemberPaths {
    fn default() -> Self {
        Self(Paths::keys(["id", "kind", "source"]))
    }
}

/// The posts of a store that were deleted.
#[derive(Debug, Default)]
pub struct Deleted(HashSet<String>);

impl Deleted {
    /// Takes note of a row.
    pub fn note(&mut self, row: Stored) {
        if row.is_deletion {
            self.0.insert(row.key);
        }
    }

    /// Takes note of a row as a line of JSON.
    pub fn note_line(&mut self, line: &[u8], paths: &MemberPaths) {
        if memchr::memmem::find(line, Kind::Delete.name().as_bytes()).is_some() {
            Stored::of_line(line, paths).into_iter().for_each(|row| self.note(row));
        }
    }

    /// Whether nothing was deleted.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether a row may be shown: no deletion of its post is known, or it is one.
    pub fn leaves(&self, row: &Stored) -> bool {
        row.is_deletion || !self.0.contains(&row.key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_posts_are_known_and_hidden_by_their_deletions() {
        let paths = MemberPaths::default();
        let row = |line: &str| Stored::of_line(line.as_bytes(), &paths);
        let post = row(r#"{"id": "7", "text": "delete", "kind": "post", "source": "mastodon"}"#).unwrap();
        let other = row(r#"{"kind": "edit", "id": "7", "source": "x-v1"}"#).unwrap();
        let gone = row(r#"{"id":"7","kind":"delete","source":"mastodon"}"#).unwrap();
        let mut deleted = Deleted::default();
        for seen in [&post, &other] {
            deleted.note(seen.clone());
        }
        assert!(deleted.is_empty() && deleted.leaves(&post));
        deleted.note_line(br#"{"id":"7","kind":"delete","source":"mastodon"}"#, &paths);
        assert_eq!([&post, &other, &gone].map(|row| deleted.leaves(row)), [false, true, true]);
        let nameless = [r#"{"kind":"delete","source":"x"}"#, r#"{"id":null,"kind":"post","source":"x"}"#];
        assert_eq!(nameless.map(row), [None, None], "stored without ids");
        for none in [
            "{}",
            "[]",
            "{\"id\"",
            r#"{"id": "7", "kind": "sale", "source": "x"}"#,
            r#"{"id": "7", "kind": "post", "source": "shop"}"#,
        ] {
            assert_eq!(row(none), None, "{none}");
        }
    }
}
