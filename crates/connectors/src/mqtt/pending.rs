//! Which messages are in the log and not acknowledged yet.
//!
//! Acknowledgements go out in the order in which messages came, by the
//! standard. A connection that breaks takes its packet numbers with it: what
//! was in the log by then is sent again under the same number, if the server
//! kept the session, and is then acknowledged without being taken again.
//!
//! Invariant: a message is taken for one that is in the log only when the
//! server says that it sends it again (`dup`), under the number and with the
//! content of one that was never acknowledged: so its number can't have gone to
//! another message. Called by [`super::client`].

use rumqttc::v5::mqttbytes::v5::Publish;
use std::{
    collections::{HashMap, VecDeque},
    ops::Range,
};

/// What a message is known by.
fn content(message: &Publish) -> (&[u8], &[u8]) {
    (&message.topic, &message.payload)
}

/// A message that waits.
#[derive(Debug)]
struct Entry {
    message: Publish,
    /// Its own among all messages of this life.
    serial: u64,
    durable: bool,
}

/// Messages of one connection, oldest first, and those of connections that are gone.
#[derive(Debug, Default)]
pub(super) struct Pending {
    sent: VecDeque<Entry>,
    gone: HashMap<u16, Entry>,
    serial: u64,
}

impl Pending {
    /// Whether a message is to be taken; one that is in the log already waits for its acknowledgement instead.
    pub(super) fn is_new(&mut self, message: &Publish) -> bool {
        match self.gone.remove(&message.pkid) {
            Some(known) if message.dup && content(&known.message) == content(message) => {
                self.sent.push_back(known);
                false
            }
            _ => true,
        }
    }

    /// These were handed to the log as one block; what to say when it is durable.
    pub(super) fn sent(&mut self, messages: Vec<Publish>) -> Range<u64> {
        let first = self.serial;
        for message in messages {
            self.sent.push_back(Entry { message, serial: self.serial, durable: false });
            self.serial += 1;
        }
        first..self.serial
    }

    /// A block is durable.
    pub(super) fn durable(&mut self, block: &Range<u64>) {
        let all = self.sent.iter_mut().chain(self.gone.values_mut());
        all.filter(|entry| block.contains(&entry.serial)).for_each(|entry| entry.durable = true);
    }

    /// The next that may be acknowledged: the oldest, once it is durable.
    pub(super) fn next(&mut self) -> Option<Publish> {
        if self.sent.front()?.durable { self.sent.pop_front().map(|entry| entry.message) } else { None }
    }

    /// How many wait for their acknowledgement.
    pub(super) fn waiting(&self) -> usize {
        self.sent.len()
    }

    /// There is another connection; whether the server has `kept` the session.
    pub(super) fn connected(&mut self, kept: bool) {
        let sent = std::mem::take(&mut self.sent);
        if kept {
            self.gone.extend(sent.into_iter().map(|entry| (entry.message.pkid, entry)));
        } else {
            self.gone.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rumqttc::v5::mqttbytes::QoS;

    fn message(number: u16, payload: &str, dup: bool) -> Publish {
        let mut message = Publish::new("t", QoS::AtLeastOnce, payload.to_string(), None);
        (message.pkid, message.dup) = (number, dup);
        message
    }

    fn acknowledged(pending: &mut Pending) -> Vec<u16> {
        std::iter::from_fn(|| pending.next()).map(|message| message.pkid).collect()
    }

    #[test]
    fn acknowledgements_keep_the_order_and_wait_for_the_log() {
        let mut pending = Pending::default();
        let first = pending.sent(vec![message(1, "a", false), message(2, "b", false)]);
        let second = pending.sent(vec![message(3, "c", false)]);
        assert!(acknowledged(&mut pending).is_empty());
        pending.durable(&second);
        assert!(acknowledged(&mut pending).is_empty(), "the first come first");
        pending.durable(&first);
        assert_eq!(acknowledged(&mut pending), [1, 2, 3]);
    }

    #[test]
    fn what_comes_again_is_not_taken_twice() {
        let mut pending = Pending::default();
        let block = pending.sent(vec![message(1, "a", false), message(2, "b", false), message(3, "c", false)]);
        pending.connected(true);
        assert!(acknowledged(&mut pending).is_empty(), "numbers of another connection");
        // Sent again before the log is done with it, and after.
        assert!(!pending.is_new(&message(1, "a", true)));
        assert!(acknowledged(&mut pending).is_empty());
        pending.durable(&block);
        assert!(!pending.is_new(&message(2, "b", true)));
        assert_eq!(acknowledged(&mut pending), [1, 2]);
        // The number went to another message, or the server does not say that it is the same.
        assert!(pending.is_new(&message(3, "d", true)));
        let block = pending.sent(vec![message(3, "d", true)]);
        pending.durable(&block);
        assert_eq!(acknowledged(&mut pending), [3]);
        for other in [message(1, "a", true), message(2, "b", true), message(3, "c", true)] {
            assert!(pending.is_new(&other), "it was acknowledged");
        }
        let _block = pending.sent(vec![message(7, "x", false)]);
        pending.connected(false);
        assert!(pending.is_new(&message(7, "x", true)), "the session is another");
        assert_eq!(pending.waiting(), 0);
    }

    #[test]
    fn a_block_of_a_connection_that_is_gone_tells_nothing_of_new_numbers() {
        let mut pending = Pending::default();
        let old = pending.sent(vec![message(1, "a", false)]);
        pending.connected(false);
        let _new = pending.sent(vec![message(1, "b", false)]);
        pending.durable(&old);
        assert!(acknowledged(&mut pending).is_empty(), "another message has the number now");
    }
}
