//! Records that take earlier ones back, such as "this post was deleted".
//!
//! The log keeps what was received. Who reads its history, for people or as a
//! stream that is played again, asks [`Notices`] which records still stand.
//! Invariant: an id names one thing in all records of a topic; a record is shown
//! whole or not at all. Formats name theirs ([`Format::notices`](crate::Format::notices)), a topic
//! keeps that name, and who reads the topic finds it in the
//! [`Registry`](crate::Registry).

use std::fmt;

/// Reads notices, and what they are about, out of raw records.
pub trait Notices: Send + Sync + fmt::Debug {
    /// Whose they are, such as `posts of mastodon`: the name that a topic keeps.
    fn name(&self) -> &'static str;

    /// The id of what this record takes back; `None` when it is no notice.
    /// Called for each record of a topic: one that is none should be told cheaply.
    fn taken_back(&self, record: &[u8]) -> Option<String>;

    /// Calls `id` with each id of what this record shows: its own, and those of
    /// what it holds within, such as the post that it passes on. A notice shows nothing.
    fn shown(&self, record: &[u8], id: &mut dyn FnMut(&str));
}
