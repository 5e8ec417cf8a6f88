//! Interceptors: what happens to events between a source and its channels.
//!
//! Invariant: each event goes through all interceptors of its source in their order; one that is left out is counted.
//! A regular expression runs in time linear in the body, whatever it is. Called by the inlet.

use crate::{backoff::splitmix64, event::Event};
use bytes::Bytes;
use regex::bytes::Regex;
use std::{
    collections::hash_map::RandomState,
    hash::BuildHasher,
    sync::atomic::{AtomicU64, Ordering},
};

/// Something done to each event.
#[derive(Debug)]
pub(crate) enum Interceptor {
    /// Milliseconds since 1970 of the event's time, in a header.
    Timestamp { header: String, preserve: bool },
    /// A fixed text in a header: `static`, and `host` with this machine's name.
    Static { header: String, value: String, preserve: bool },
    /// A name of its own for each event.
    Uuid { header: String, prefix: String, preserve: bool, unique: Unique },
    /// Keeps events whose body matches, or those whose body does not.
    Filter { regex: Regex, exclude: bool },
    /// Groups of a match as headers; a header of no name is passed over.
    Extract { regex: Regex, headers: Vec<String> },
    /// Replaces each match in the body; `$1` names a group.
    Replace { regex: Regex, with: String },
    /// Replaces each match in the values of headers.
    RedactHeaders { regex: Regex, with: String },
    /// Takes headers away whose name matches.
    RemoveHeaders { names: Regex },
    /// A number below `buckets` that is the same for the same text of a header, or of a match in the body.
    RouteKey { from: RouteFrom, header: String, buckets: u64 },
}

/// What a route key is made from.
#[derive(Debug)]
pub(crate) enum RouteFrom {
    Header(String),
    /// The first group of a match, or all of it.
    Body(Regex),
}

impl Interceptor {
    /// Changes an event; whether it goes on.
    pub(crate) fn pass(&self, event: &mut Event) -> bool {
        match self {
            Self::Timestamp { header, preserve } => {
                set(event, header, *preserve, |event| event.timestamp.millis().to_string());
            }
            Self::Static { header, value, preserve } => set(event, header, *preserve, |_| value.clone()),
            Self::Uuid { header, prefix, preserve, unique } => {
                set(event, header, *preserve, |_| format!("{prefix}{}", unique.next()));
            }
            Self::Filter { regex, exclude } => return regex.is_match(&event.body) != *exclude,
            Self::Extract { regex, headers } => {
                if let Some(found) = regex.captures(&event.body) {
                    for (group, header) in headers.iter().enumerate().filter(|(_, header)| !header.is_empty()) {
                        if let Some(value) = found.get(group + 1) {
                            let value = String::from_utf8_lossy(value.as_bytes()).into_owned();
                            event.headers.insert(header.clone(), value);
                        }
                    }
                }
            }
            Self::Replace { regex, with } => {
                let replaced = regex.replace_all(&event.body, with.as_bytes());
                if let std::borrow::Cow::Owned(body) = replaced {
                    event.body = Bytes::from(body);
                }
            }
            Self::RedactHeaders { regex, with } => {
                for value in event.headers.values_mut() {
                    let replaced = regex.replace_all(value.as_bytes(), with.as_bytes());
                    if let std::borrow::Cow::Owned(new) = replaced {
                        *value = String::from_utf8_lossy(&new).into_owned();
                    }
                }
            }
            Self::RemoveHeaders { names } => {
                event.headers.retain(|name, _| !names.is_match(name.as_bytes()));
            }
            Self::RouteKey { from, header, buckets } => {
                let bucket = match from {
                    RouteFrom::Header(name) => event.headers.get(name).map(|text| bucket(text.as_bytes(), *buckets)),
                    RouteFrom::Body(regex) => regex.captures(&event.body).and_then(|found| {
                        let part = found.get(1).or_else(|| found.get(0))?;
                        Some(bucket(part.as_bytes(), *buckets))
                    }),
                };
                if let Some(bucket) = bucket {
                    event.headers.insert(header.clone(), bucket.to_string());
                }
            }
        }
        true
    }
}

/// A group that a replacement names and `regex` has not; nothing would stand in its place, without a word.
pub(crate) fn missing_group<'a>(regex: &Regex, with: &'a str) -> Option<&'a str> {
    let mut rest = with;
    while let Some(at) = rest.find('$') {
        rest = &rest[at + 1..];
        if let Some(behind) = rest.strip_prefix('$') {
            rest = behind;
            continue;
        }
        let name = match rest.strip_prefix('{') {
            Some(braced) => braced.split_once('}').map(|(name, _)| name),
            None => {
                let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(rest.len());
                Some(&rest[..end]).filter(|name| !name.is_empty())
            }
        };
        // Without a name the dollar is itself.
        let Some(name) = name else { continue };
        let there = match name.parse::<usize>() {
            Ok(number) => number < regex.captures_len(),
            Err(_) => regex.capture_names().flatten().any(|known| known == name),
        };
        if !there {
            return Some(name);
        }
    }
    None
}

fn set(event: &mut Event, header: &str, preserve: bool, value: impl FnOnce(&Event) -> String) {
    if !(preserve && event.headers.contains_key(header)) {
        let value = value(event);
        event.headers.insert(header.to_owned(), value);
    }
}

/// The bucket of a text: FNV-1a, mixed. The same in every life and on every machine.
fn bucket(text: &[u8], buckets: u64) -> u64 {
    let hash = text
        .iter()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3));
    splitmix64(hash) % buckets.max(1)
}

/// Names that nothing else has: UUIDs of version 4, from keys that the system made at the start.
#[derive(Debug, Default)]
pub(crate) struct Unique {
    keys: (RandomState, RandomState),
    count: AtomicU64,
}

impl Unique {
    fn next(&self) -> String {
        let count = self.count.fetch_add(1, Ordering::Relaxed);
        let (high, low) = (self.keys.0.hash_one(count), self.keys.1.hash_one(count));
        let high = (high & 0xffff_ffff_ffff_0fff) | 0x4000;
        let low = (low & 0x3fff_ffff_ffff_ffff) | 0x8000_0000_0000_0000;
        format!(
            "{:08x}-{:04x}-{:04x}-{:04x}-{:012x}",
            high >> 32,
            (high >> 16) & 0xffff,
            high & 0xffff,
            low >> 48,
            low & 0xffff_ffff_ffff
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tidemill_core::Timestamp;

    fn passed(interceptor: &Interceptor, body: &str, headers: &[(&str, &str)]) -> Option<Event> {
        let mut event = Event::new(body.to_owned(), Timestamp(1_500_999));
        event.headers = headers.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        interceptor.pass(&mut event).then_some(event)
    }

    fn headers(event: &Event) -> Vec<(&str, &str)> {
        event.headers.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect()
    }

    fn regex(text: &str) -> Regex {
        Regex::new(text).unwrap()
    }

    #[test]
    fn headers_are_set_and_those_that_are_there_kept_where_asked() {
        let set = |preserve| Interceptor::Timestamp { header: "at".to_owned(), preserve };
        assert_eq!(headers(&passed(&set(false), "", &[("at", "1")]).unwrap()), [("at", "1500")]);
        assert_eq!(headers(&passed(&set(true), "", &[("at", "1")]).unwrap()), [("at", "1")]);
        let fixed = Interceptor::Static { header: "dc".to_owned(), value: "eu".to_owned(), preserve: true };
        assert_eq!(headers(&passed(&fixed, "", &[]).unwrap()), [("dc", "eu")]);
    }

    #[test]
    fn a_uuid_is_of_version_4_and_its_own() {
        let uuid = Interceptor::Uuid {
            header: "id".to_owned(),
            prefix: "e-".to_owned(),
            preserve: false,
            unique: Unique::default(),
        };
        let ids: std::collections::BTreeSet<String> =
            (0..100).map(|_| passed(&uuid, "", &[]).unwrap().headers["id"].clone()).collect();
        assert_eq!(ids.len(), 100);
        let form = regex("^e-[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$");
        assert!(ids.iter().all(|id| form.is_match(id.as_bytes())), "{ids:?}");
    }

    #[test]
    fn a_filter_keeps_matches_or_the_others() {
        let filter = |exclude| Interceptor::Filter { regex: regex("^ERR"), exclude };
        assert!(passed(&filter(false), "ERROR", &[]).is_some() && passed(&filter(false), "ok", &[]).is_none());
        assert!(passed(&filter(true), "ERROR", &[]).is_none() && passed(&filter(true), "ok", &[]).is_some());
    }

    #[test]
    fn groups_become_headers() {
        let names = vec!["year".to_owned(), String::new(), "level".to_owned()];
        let extract = Interceptor::Extract { regex: regex(r"(\d{4})-(\d\d) (\w+)?"), headers: names };
        assert_eq!(
            headers(&passed(&extract, "2026-01 WARN x", &[("a", "b")]).unwrap()),
            [("a", "b"), ("level", "WARN"), ("year", "2026")]
        );
        assert_eq!(headers(&passed(&extract, "2026-01 !", &[]).unwrap()), [("year", "2026")]);
        assert_eq!(headers(&passed(&extract, "nothing", &[]).unwrap()), []);
    }

    #[test]
    fn matches_are_replaced_in_bodies_and_headers() {
        let card = r"\d{4}-(\d{4})";
        let body = Interceptor::Replace { regex: regex(card), with: "****-$1".to_owned() };
        let event = passed(&body, "a 1234-5678 b 1111-2222", &[("h", "1234-5678")]).unwrap();
        assert_eq!(&event.body[..], b"a ****-5678 b ****-2222");
        assert_eq!(event.headers["h"], "1234-5678");
        let redact = Interceptor::RedactHeaders { regex: regex(card), with: "#".to_owned() };
        let event = passed(&redact, "1234-5678", &[("h", "x 1234-5678")]).unwrap();
        assert_eq!((&event.body[..], event.headers["h"].as_str()), (&b"1234-5678"[..], "x #"));
    }

    #[test]
    fn a_group_that_is_named_and_not_there_is_found() {
        let card = regex(r"(\d{4})-(?<last>\d{4})");
        for (with, missing) in [
            ("$1-${2}-$last-$0", None),
            ("costs $ 5, $$9, ${9", None),
            ("$1XX", Some("1XX")),
            ("${1}XX$3", Some("3")),
            ("$$$first", Some("first")),
        ] {
            assert_eq!(missing_group(&card, with), missing, "{with}");
        }
    }

    #[test]
    fn headers_go_by_their_name() {
        let remove = Interceptor::RemoveHeaders { names: regex("^(?:secret|tmp.*)$") };
        let event = passed(&remove, "", &[("secret", "1"), ("secrets", "2"), ("tmp-a", "3"), ("a", "4")]).unwrap();
        assert_eq!(headers(&event), [("a", "4"), ("secrets", "2")]);
    }

    #[test]
    fn a_route_key_is_the_same_for_the_same_text() {
        let by = |from| Interceptor::RouteKey { from, header: "route".to_owned(), buckets: 4 };
        let of =
            |i: &Interceptor, body: &str, h: &[(&str, &str)]| passed(i, body, h).unwrap().headers.get("route").cloned();
        let header = by(RouteFrom::Header("user".to_owned()));
        let body = by(RouteFrom::Body(regex("user=([a-z]+)")));
        assert_eq!(of(&header, "", &[("user", "mia")]), of(&body, "x user=mia y", &[]));
        assert_eq!(of(&header, "", &[]), None);
        let seen: std::collections::BTreeSet<_> =
            (0..100).map(|n| of(&header, "", &[("user", &n.to_string())])).collect();
        assert_eq!(seen.len(), 4, "all buckets are used");
        // Stored events keep their channel when the agent is built anew.
        assert_eq!(of(&header, "", &[("user", "mia")]).as_deref(), Some(PINNED));
    }

    /// What the hash gives, kept here so that it stays.
    const PINNED: &str = "3";
}
