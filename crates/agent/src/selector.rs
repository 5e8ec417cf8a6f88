//! Selectors: into which channels of its source an event goes.
//!
//! Invariant: an event goes into each channel at most once; one that goes nowhere is counted. Called by the inlet.

use crate::event::Event;
use std::collections::BTreeMap;

/// Which channels get an event; channels are places in the source's list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Selector {
    /// All of them.
    Replicating {
        /// Those that may miss events.
        optional: Vec<usize>,
    },
    /// By the value of a header.
    Multiplexing {
        header: String,
        mapping: BTreeMap<String, Vec<usize>>,
        /// For values without an entry, and for events without the header.
        default: Vec<usize>,
        /// Channels that get events of a value besides, and may miss them.
        optional: BTreeMap<String, Vec<usize>>,
    },
}

impl Selector {
    /// Deals events out; the result has one list a channel, required and optional.
    pub(crate) fn deal(&self, events: Vec<Event>, channels: usize) -> Dealt {
        let mut dealt =
            Dealt { required: vec![Vec::new(); channels], optional: vec![Vec::new(); channels], unrouted: 0 };
        match self {
            Self::Replicating { optional } => {
                let required: Vec<usize> = (0..channels).filter(|channel| !optional.contains(channel)).collect();
                for channel in optional {
                    dealt.optional[*channel].clone_from(&events);
                }
                if let Some((last, others)) = required.split_last() {
                    for channel in others {
                        dealt.required[*channel].clone_from(&events);
                    }
                    dealt.required[*last] = events;
                }
            }
            Self::Multiplexing { header, mapping, default, optional } => {
                let none = Vec::new();
                for event in events {
                    let value = event.headers.get(header);
                    let required = value.and_then(|value| mapping.get(value)).unwrap_or(default);
                    let more = value.and_then(|value| optional.get(value)).unwrap_or(&none);
                    dealt.unrouted += u64::from(required.is_empty() && more.is_empty());
                    for channel in required {
                        dealt.required[*channel].push(event.clone());
                    }
                    for channel in more.iter().filter(|channel| !required.contains(channel)) {
                        dealt.optional[*channel].push(event.clone());
                    }
                }
            }
        }
        dealt
    }

    /// Channels that must have some events: those that keep the source's tokens.
    pub(crate) fn required(&self, channels: usize) -> Vec<usize> {
        match self {
            Self::Replicating { optional } => (0..channels).filter(|channel| !optional.contains(channel)).collect(),
            Self::Multiplexing { mapping, default, .. } => (0..channels)
                .filter(|channel| default.contains(channel) || mapping.values().any(|to| to.contains(channel)))
                .collect(),
        }
    }
}

/// Events by channel.
#[derive(Debug)]
pub(crate) struct Dealt {
    pub(crate) required: Vec<Vec<Event>>,
    pub(crate) optional: Vec<Vec<Event>>,
    /// Events that go nowhere.
    pub(crate) unrouted: u64,
}

#[cfg(test)]
mod tests {
    use super::*;
    use tidemill_core::Timestamp;

    fn event(body: &str, state: Option<&str>) -> Event {
        let mut event = Event::new(body.to_owned(), Timestamp(0));
        event.headers.extend(state.map(|state| ("state".to_owned(), state.to_owned())));
        event
    }

    fn bodies(lists: &[Vec<Event>]) -> Vec<String> {
        let text = |events: &Vec<Event>| events.iter().map(|e| String::from_utf8_lossy(&e.body).into_owned()).collect();
        lists.iter().map(text).collect()
    }

    #[test]
    fn replicating_copies_to_all() {
        let selector = Selector::Replicating { optional: vec![1] };
        let dealt = selector.deal(vec![event("a", None), event("b", None)], 3);
        assert_eq!(bodies(&dealt.required), ["ab", "", "ab"]);
        assert_eq!(bodies(&dealt.optional), ["", "ab", ""]);
        assert_eq!((dealt.unrouted, selector.required(3)), (0, vec![0, 2]));
    }

    #[test]
    fn multiplexing_goes_by_a_header() {
        let to = |pairs: &[(&str, &[usize])]| pairs.iter().map(|(k, v)| ((*k).to_owned(), v.to_vec())).collect();
        let selector = Selector::Multiplexing {
            header: "state".to_owned(),
            mapping: to(&[("CA", &[0]), ("NY", &[0, 1])]),
            default: vec![2],
            optional: to(&[("CA", &[0, 3])]),
        };
        let events = vec![event("c", Some("CA")), event("n", Some("NY")), event("x", Some("TX")), event("-", None)];
        let dealt = selector.deal(events, 4);
        assert_eq!(bodies(&dealt.required), ["cn", "n", "x-", ""]);
        assert_eq!(bodies(&dealt.optional), ["", "", "", "c"], "a channel that must have it is not asked twice");
        assert_eq!(selector.required(4), [0, 1, 2]);
        let nowhere = Selector::Multiplexing {
            header: "state".to_owned(),
            mapping: to(&[("CA", &[0])]),
            default: vec![],
            optional: BTreeMap::new(),
        };
        assert_eq!(nowhere.deal(vec![event("x", None), event("c", Some("CA"))], 1).unrouted, 1);
    }
}
