//! Which posts were deleted, and which posts a record shows.
//!
//! Invariant: the id of a notice and that of its post are those that
//! [`Network::read`] gives; a record that passes a post on, or quotes it in full,
//! shows that post too. Called, through [`Notices`], by who shows the history of a
//! topic.

use super::{Kind, Network};
use crate::format::json::{Fault, Paths, Raw, items, scan, scan_bytes, unescape};
use memchr::memmem::Finder;
use std::{borrow::Cow, sync::Arc};
use tidemill_core::Notices;

/// Where ids of posts stand in a record of a network. `None` for one that tells of no deletions.
fn places(network: Network) -> Option<&'static [&'static [&'static str]]> {
    Some(match network {
        Network::Bluesky => &[&["did"], &["commit", "collection"], &["commit", "rkey"], &["commit", "operation"]],
        Network::Mastodon => &[&["id"], &["reblog", "id"], &["quote", "quoted_status", "id"]],
        Network::X => &[&["data", "id"], &["includes", "tweets"]],
        // An id is a text, and a number for those who can read it. Where both are, they are the same.
        Network::XV1 => &[
            &["id_str"],
            &["id"],
            &["retweeted_status", "id_str"],
            &["retweeted_status", "id"],
            &["quoted_status", "id_str"],
            &["quoted_status", "id"],
            &["retweeted_status", "quoted_status", "id_str"],
            &["retweeted_status", "quoted_status", "id"],
        ],
        Network::Weibo => &[&["idstr"], &["id"], &["retweeted_status", "idstr"], &["retweeted_status", "id"]],
        Network::Wikimedia => return None,
    })
}

/// Deletions of a network's posts.
#[derive(Debug)]
struct PostNotices {
    network: Network,
    paths: Paths,
    /// What each notice has in it.
    sign: Finder<'static>,
}

/// Who reads a network's notices of deletions; `None` when it sends none.
pub(crate) fn of(network: Network) -> Option<Arc<dyn Notices>> {
    let paths = Paths::new(places(network)?.iter().copied());
    Some(Arc::new(PostNotices { network, paths, sign: Finder::new("delete") }))
}

impl Notices for PostNotices {
    fn name(&self) -> &'static str {
        match self.network {
            Network::Bluesky => "posts of bluesky",
            Network::Mastodon => "posts of mastodon",
            Network::Wikimedia => "posts of wikimedia",
            Network::X => "posts of x",
            Network::XV1 => "posts of x-v1",
            Network::Weibo => "posts of weibo",
        }
    }

    fn taken_back(&self, record: &[u8]) -> Option<String> {
        self.sign.find(record)?;
        self.network.read(record).ok().filter(|post| post.kind == Kind::Delete).map(|post| post.id)
    }

    fn shown(&self, record: &[u8], id: &mut dyn FnMut(&str)) {
        // What can't be read shows nothing that could be found again by its id.
        let _unread = match self.network {
            Network::Bluesky => self.address(record).map(|address| address.iter().for_each(|address| id(address))),
            _ => scan_bytes(record, &self.paths, |_, raw| match raw {
                Raw::Array(posts) => each_id(posts, id),
                raw => text(&raw).iter().for_each(|text| id(text)),
            }),
        };
    }
}

impl PostNotices {
    /// The address of a post of Bluesky; none of a notice.
    fn address(&self, record: &[u8]) -> Result<Option<String>, Fault> {
        // A part that is missing, or no text, is empty here, and in no notice that can be read.
        let mut parts = [const { Cow::Borrowed("") }; 4];
        scan_bytes(record, &self.paths, |place, raw| parts[place] = text(&raw).unwrap_or_default())?;
        let [did, collection, rkey, operation] = parts;
        Ok((operation != "delete").then(|| format!("at://{did}/{collection}/{rkey}")))
    }
}

/// The ids of posts in an array.
fn each_id(posts: &str, id: &mut dyn FnMut(&str)) {
    let paths = Paths::keys(["id"]);
    let _unread = items::<Fault>(posts, |post| match post {
        Raw::Object(post) => scan(post, &paths, |_, raw| text(&raw).iter().for_each(|text| id(text))),
        _ => Ok(()),
    });
}

/// An id as [`Network::read`] would give it.
pub(super) fn text<'a>(raw: &Raw<'a>) -> Option<Cow<'a, str>> {
    match *raw {
        Raw::Text { text, escaped: false } | Raw::Number(text) => Some(Cow::Borrowed(text)),
        Raw::Text { text, escaped: true } => {
            let mut plain = String::new();
            unescape(text, &mut plain).ok()?;
            Some(Cow::Owned(plain))
        }
        _ => None,
    }
}
