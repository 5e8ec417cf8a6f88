//! A place in every partition: where a stream begins, and where a bounded one ends.
//!
//! | Written | Meaning |
//! |---|---|
//! | `earliest` | the oldest record that is kept |
//! | `latest` | behind the newest record |
//! | `2026-05-25T14:00:00Z` | the first record with this time or a later one |
//! | `orders-0:120, orders-1:80` | these offsets; the oldest record in partitions that are not named |
//!
//! Invariant: a place is looked up once in a life and partition, so a plan that is made again is the same.
//! Called by the source.

use super::topics::{Cluster, Partition};
use rdkafka::Offset as At;
use std::collections::BTreeMap;
use tidemill_core::{Error, Options, Result};

/// A place in every partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Place {
    Earliest,
    Latest,
    /// Milliseconds since 1970.
    Time(i64),
    Offsets(BTreeMap<Partition, u64>),
}

impl Place {
    /// From an option.
    ///
    /// # Errors
    /// When it is none of the above.
    pub(super) fn parse(options: &Options, key: &str) -> Result<Option<Self>> {
        let Some(text) = options.get(key) else { return Ok(None) };
        let bad = || {
            Error::user(format!(
                "{}: option `{key}` must be 'earliest', 'latest', a time such as 2026-05-25T14:00:00Z, or offsets such as orders-0:120, orders-1:80; not `{text}`",
                options.owner()
            ))
        };
        Ok(Some(match text.trim() {
            "earliest" => Self::Earliest,
            "latest" => Self::Latest,
            text if text.starts_with(|c: char| c.is_ascii_digit()) && crate::format::time::instant(text).is_some() => {
                Self::Time(crate::format::time::instant(text).ok_or_else(bad)?.div_euclid(1000))
            }
            text => {
                let offset = |part: &str| {
                    let (partition, offset) = part.trim().rsplit_once(':')?;
                    Some((Partition::parse(partition.trim())?, offset.trim().parse().ok()?))
                };
                Self::Offsets(text.split(',').map(|part| offset(part).ok_or_else(bad)).collect::<Result<_>>()?)
            }
        }))
    }

    /// Its offset in each of these partitions, of which all must be there.
    pub(super) fn resolve(&self, cluster: &Cluster, of: &[Partition]) -> Result<BTreeMap<Partition, u64>> {
        match self {
            Self::Earliest => cluster.offsets(of, At::Beginning),
            Self::Latest => cluster.offsets(of, At::End),
            Self::Time(millis) => cluster.offsets(of, At::Offset((*millis).max(0))),
            Self::Offsets(given) => {
                let mut found = cluster.offsets(of, At::Beginning)?;
                for (partition, offset) in given {
                    if let Some(at) = found.get_mut(partition) {
                        *at = *offset;
                    }
                }
                Ok(found)
            }
        }
    }

    /// Partitions that it names.
    pub(super) fn named(&self) -> impl Iterator<Item = &Partition> {
        let given = if let Self::Offsets(given) = self { Some(given) } else { None };
        given.into_iter().flat_map(BTreeMap::keys)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Option<Place>> {
        Place::parse(&Options::new("stream \"s\"", [("start", text)]), "start")
    }

    #[test]
    fn a_place_is_a_word_a_time_or_offsets() {
        assert_eq!(parse("earliest").unwrap(), Some(Place::Earliest));
        assert_eq!(parse(" latest ").unwrap(), Some(Place::Latest));
        assert_eq!(parse("2026-05-25T14:00:00Z").unwrap(), Some(Place::Time(1_779_717_600_000)));
        let offsets = [(Partition::new("a-b", 0), 12), (Partition::new("c", 11), 0)];
        assert_eq!(parse("a-b-0:12, c-11:0").unwrap(), Some(Place::Offsets(offsets.into())));
        for bad in ["", "newest", "orders:1", "orders-0", "orders-0:x", "-5", "orders-0:1,,"] {
            let error = parse(bad).unwrap_err().to_string();
            assert!(error.contains("stream \"s\": option `start` must be"), "{bad}: {error}");
        }
        assert_eq!(Place::parse(&Options::new("s", [("a", "b")]), "start").unwrap(), None);
    }
}
