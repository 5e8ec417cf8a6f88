//! Social networks: collectors as receivers, one form for their posts, and servers that stand in for them.
//!
//! A collector ([`Mastodon`], [`Wikimedia`], [`XStream`], [`XSearch`], [`XV1`],
//! [`Weibo`]) speaks one network's protocol over the shared pieces: [`collect`]
//! repeats connections with the documented waits ([`failure`]), [`http`] sends
//! requests through a [`proxy`], [`sse`] cuts events, [`seen`] tells posts apart
//! that come again, [`secret`] reads credentials. What they hand on is what the
//! network sent; the format [`post`] reads it as columns that are the same for
//! all. [`simulate`] serves each protocol on this machine, for tests and for
//! those who are offline.
//!
//! Invariant: with each block goes what a restart needs to go on without loss or
//! repetition, as far as the network lets it; where it does not, the gap is a
//! dead letter or a report, never a silence.

pub mod collect;
pub mod common;
mod mastodon;
pub mod oauth;
pub mod post;
pub mod seen;
pub mod simulate;
pub mod sse;
#[cfg(test)]
mod tests;
mod weibo;
mod wikimedia;
mod x;
mod x_v1;

pub use crate::http::{self, clock, failure, proxy, secret};
pub use mastodon::{Mastodon, Timeline, Transport};
pub use weibo::Weibo;
pub use wikimedia::Wikimedia;
pub use x::{XSearch, XStream};
pub use x_v1::XV1;

use std::sync::Arc;
use tidemill_core::Registry;

/// Registers the collectors and the format of posts.
pub(crate) fn register(registry: &mut Registry) {
    registry.add_format("post", |o, columns| Ok(Arc::new(post::PostFormat::from_options(o, columns)?)));
    post::Network::ALL.into_iter().filter_map(post::notices::of).for_each(|notices| registry.add_notices(notices));
    registry.add_input("mastodon", Mastodon::input);
    registry.add_input("weibo", Weibo::input);
    registry.add_input("wikimedia", Wikimedia::input);
    registry.add_input("x", XStream::input);
    registry.add_input("x-sample", XStream::sample_input);
    registry.add_input("x-search", XSearch::input);
    registry.add_input("x-v1", XV1::input);
}
