//! Keys of requests that were taken, so that one which comes again is not taken twice.
//!
//! A key is remembered as 96 bits of its hash and 48 of its records', newest
//! last; all of them are the token that goes with the records into the log, so
//! a restart knows the same keys.
//!
//! Invariant: at most `most` are kept, the newest; a key with other records
//! than before is never taken for the same. Called by [`super::desk`].

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use futures::{FutureExt, future::BoxFuture, future::Shared};
use hyper::HeaderMap;
use ring::digest::{SHA256, digest};
use std::collections::{HashMap, VecDeque};
use tidemill_core::{Ack, Block};

use super::answer::Refusal;

/// Completes when the records of a request are durable, or with the reason why not; for all who ask.
pub(super) type Durable = Shared<BoxFuture<'static, Result<(), String>>>;

const KEY: usize = 12;
const PRINT: usize = 6;
/// Characters of a key at most.
const LONGEST: usize = 256;

/// A request's key and what it came with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Key {
    key: [u8; KEY],
    print: [u8; PRINT],
}

impl Key {
    /// Of a key's text and a request's records.
    pub(super) fn new(text: &str, block: &Block) -> Self {
        let mut both = [0; KEY + PRINT];
        both[..KEY].copy_from_slice(&digest(&SHA256, text.as_bytes()).as_ref()[..KEY]);
        both[KEY..].copy_from_slice(&digest(&SHA256, &block.bytes).as_ref()[..PRINT]);
        Self::from_bytes(both)
    }

    fn from_bytes(both: [u8; KEY + PRINT]) -> Self {
        let (mut key, mut print) = ([0; KEY], [0; PRINT]);
        key.copy_from_slice(&both[..KEY]);
        print.copy_from_slice(&both[KEY..]);
        Self { key, print }
    }

    fn text(&self) -> String {
        URL_SAFE_NO_PAD.encode([&self.key[..], &self.print[..]].concat())
    }

    fn from_text(text: &str) -> Option<Self> {
        Some(Self::from_bytes(URL_SAFE_NO_PAD.decode(text).ok()?.try_into().ok()?))
    }
}

/// The key that a request has.
pub(super) fn given(headers: &HeaderMap) -> Result<Option<&str>, Refusal> {
    let mut all = headers.get_all("idempotency-key").iter();
    let Some(first) = all.next() else { return Ok(None) };
    let text = first.to_str().unwrap_or_default();
    let plain = !text.is_empty() && text.len() <= LONGEST && text.bytes().all(|b| b.is_ascii_graphic());
    if plain && all.next().is_none() {
        return Ok(Some(text));
    }
    let error = format!("the Idempotency-Key is not one word of at most {LONGEST} plain characters");
    Err(Refusal::bad(error, "take a random one for each request, such as a UUID"))
}

/// What is known of a key.
#[derive(Debug)]
pub(super) enum Known {
    /// Nothing.
    New,
    /// It came with these records, which are durable when this says so; of an earlier life they are.
    Same(Option<Durable>),
    /// It came with others.
    Other,
}

/// The keys of the last requests.
#[derive(Debug)]
pub(super) struct Keys {
    most: usize,
    order: VecDeque<Key>,
    known: HashMap<[u8; KEY], Option<Durable>>,
}

impl Keys {
    /// Those of a token; none without one.
    pub(super) fn from_token(token: Option<&str>, most: usize) -> Self {
        let mut keys = Self { most, order: VecDeque::new(), known: HashMap::new() };
        token.unwrap_or_default().split(',').filter_map(Key::from_text).for_each(|key| keys.keep(key, None));
        keys
    }

    pub(super) fn find(&self, key: &Key) -> Known {
        match self.known.get(&key.key) {
            None => Known::New,
            Some(durable) if self.order.contains(key) => Known::Same(durable.clone()),
            Some(_) => Known::Other,
        }
    }

    /// The token that goes with the records of a new key.
    pub(super) fn token_with(&self, key: &Key) -> String {
        let kept = self.order.iter().skip((self.order.len() + 1).saturating_sub(self.most));
        let all: Vec<String> = kept.chain([key]).map(Key::text).collect();
        all.join(",")
    }

    /// Its records are in the log.
    pub(super) fn insert(&mut self, key: Key, durable: Durable) {
        self.keep(key, Some(durable));
    }

    fn keep(&mut self, key: Key, durable: Option<Durable>) {
        if self.known.insert(key.key, durable).is_none() {
            self.order.push_back(key);
        }
        while self.order.len() > self.most {
            if let Some(oldest) = self.order.pop_front() {
                self.known.remove(&oldest.key);
            }
        }
    }
}

/// An ack for all who ask.
pub(super) fn durable(ack: Ack) -> Durable {
    async move { ack.await.map_err(|error| error.chain()) }.boxed().shared()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(n: usize, records: &str) -> Key {
        Key::new(&n.to_string(), &Block::from_records([records]))
    }

    #[test]
    fn keys_are_bounded_and_survive_as_a_token() {
        let mut keys = Keys::from_token(None, 3);
        let mut token = String::new();
        for n in 0..10 {
            let key = key(n, "a");
            assert!(matches!(keys.find(&key), Known::New));
            token = keys.token_with(&key);
            let (done, ack) = Ack::pair();
            keys.insert(key, durable(ack));
            drop(done);
        }
        assert_eq!((keys.order.len(), keys.known.len()), (3, 3));
        assert_eq!(token.len(), 3 * 24 + 2, "{token}");
        let again = Keys::from_token(Some(&token), 3);
        for n in 0..10 {
            let found = again.find(&key(n, "a"));
            assert!(
                if n < 7 { matches!(found, Known::New) } else { matches!(found, Known::Same(None)) },
                "{n} {found:?}"
            );
        }
        assert!(matches!(again.find(&key(9, "b")), Known::Other));
        // Fewer than the token has.
        assert_eq!(Keys::from_token(Some(&token), 1).order, [key(9, "a")]);
        for strange in ["", ",,", "strange", "AAAA,?"] {
            assert!(Keys::from_token(Some(strange), 3).order.is_empty(), "{strange}");
        }
    }
}
