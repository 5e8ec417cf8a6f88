//! Sink `avro`: events to another agent, ours or Flume's, over Avro RPC.
//!
//! Invariant: at least once. A delivery is done when the peer has answered `OK` to all of it, which says that its
//! channels have the events; when the answer does not come, or a crash comes before the commit, they are sent again.

use super::Outlet;
use crate::{
    avro::{
        Reader, Writer,
        line::Line,
        message::{Frame, Hello, Match, Status, decode_answer, encode_call},
    },
    event::Event,
};
use async_trait::async_trait;
use tidemill_core::{Duration, Error, Guarantee, Result};
use tokio::{net::TcpStream, time::timeout};

/// Bytes of a call, about; events over it go alone.
const CALL: u64 = 4 << 20;

/// Calls another agent.
pub(crate) struct AvroSink {
    pub(crate) address: String,
    /// For a connection, and for an answer.
    pub(crate) timeout: Duration,
    /// Events of a call at most: the peer's channel takes them in one transaction.
    pub(crate) call_size: usize,
    /// Whether calls are compressed; the peer must expect it.
    pub(crate) deflate: bool,
    talk: Option<Talk>,
}

/// A connection, and what was said on it.
struct Talk {
    line: Line,
    known: bool,
    serial: u32,
}

impl AvroSink {
    pub(crate) fn new(address: String, timeout: Duration, call_size: usize, deflate: bool) -> Self {
        Self { address, timeout, call_size, deflate, talk: None }
    }

    async fn within<T>(&self, what: &str, work: impl Future<Output = std::io::Result<T>>) -> Result<T> {
        match timeout(self.timeout, work).await {
            Ok(done) => done.map_err(|e| Error::external(format!("avro: can't {what} {}", self.address)).because(e)),
            Err(_) => Err(Error::external(format!(
                "avro: {} did not let us {what} it within {:?}",
                self.address, self.timeout
            ))),
        }
    }

    async fn call(&self, talk: &mut Talk, events: &[Event]) -> Result<()> {
        // Twice at most: a peer may ask for the protocol first.
        for _ in 0..2 {
            let mut writer = Writer::default();
            let greeted = talk.known;
            if !greeted {
                Hello::encode(&mut writer);
            }
            encode_call(&mut writer, events);
            talk.serial = talk.serial.wrapping_add(1);
            let frame = Frame::encode(talk.serial, &writer.0);
            self.within("write to", talk.line.send(&frame)).await?;
            let answer = loop {
                if let Some(answer) = talk.line.frame()? {
                    break answer;
                }
                if self.within("hear from", talk.line.receive()).await? == 0 {
                    return Err(Error::external(format!("avro: {} closed the connection", self.address)));
                }
            };
            if answer.serial != talk.serial {
                return Err(crate::avro::bad("an answer has another number than its call"));
            }
            let mut reader = Reader(answer.bytes);
            if !greeted {
                if Match::decode(&mut reader)? == Match::None {
                    continue;
                }
                talk.known = true;
            }
            return match decode_answer(&mut reader)? {
                Ok(Status::Ok) => Ok(()),
                Ok(status) => Err(Error::external(format!(
                    "avro: {} answered {status:?}: its channels are full, perhaps",
                    self.address
                ))),
                Err(why) => Err(Error::external(format!("avro: {} answered: {why}", self.address))),
            };
        }
        Err(Error::external(format!("avro: {} does not know the protocol", self.address)))
    }
}

#[async_trait]
impl Outlet for AvroSink {
    fn describe(&self) -> String {
        format!("avro {}", self.address)
    }

    fn guarantee(&self) -> Guarantee {
        Guarantee::AtLeastOnce
    }

    async fn open(&mut self, _left: Option<String>, _durable: bool) -> Result<Option<String>> {
        let stream = self.within("connect to", TcpStream::connect(&self.address)).await?;
        self.talk = Some(Talk { line: Line::new(stream, self.deflate), known: false, serial: 0 });
        Ok(None)
    }

    async fn deliver(&mut self, events: &[Event]) -> Result<Option<String>> {
        // After an error the connection is gone, and `open` makes another.
        let Some(mut talk) = self.talk.take() else { return Err(Error::internal("a sink that is not open")) };
        let mut from = 0;
        while from < events.len() {
            let (mut to, mut size) = (from, 0);
            while to < events.len() && to - from < self.call_size && (to == from || size + events[to].size() <= CALL) {
                size += events[to].size();
                to += 1;
            }
            self.call(&mut talk, &events[from..to]).await?;
            from = to;
        }
        self.talk = Some(talk);
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        channel::{Channel, memory::Memory},
        inlet::{Inlet, Parts},
        selector::Selector,
        source::{Origin, avro::AvroSource},
        status::Counters,
    };
    use std::sync::Arc;
    use tidemill_core::{Clock, ManualClock, StopHandle, Timestamp};

    fn events(numbers: std::ops::Range<u32>) -> Vec<Event> {
        let event = |n: u32| {
            let mut event = Event::new(n.to_string(), Timestamp(0));
            event.headers.insert("n".to_owned(), n.to_string());
            event
        };
        numbers.map(event).collect()
    }

    /// A port that nobody listens on.
    async fn free_port() -> u16 {
        tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port()
    }

    async fn inlet(capacity: u64, quit: &tidemill_core::Stop) -> (Arc<Inlet>, Arc<Channel>) {
        let channel = Arc::new(Channel::memory("c1", Memory::new(capacity, 1 << 20), None));
        let parts = Parts {
            source: "r1".to_owned(),
            interceptors: vec![],
            selector: Selector::Replicating { optional: vec![] },
            channels: vec![Arc::clone(&channel)],
            counters: Arc::new(Counters::default()),
            clock: Arc::new(ManualClock::default()) as Arc<dyn Clock>,
            quit: quit.clone(),
        };
        (Arc::new(Inlet::open(parts).await.unwrap()), channel)
    }

    #[tokio::test]
    async fn events_hop_from_agent_to_agent_and_are_acked_by_the_channel() {
        for deflate in [false, true] {
            hop(deflate).await;
        }
    }

    async fn hop(deflate: bool) {
        let address = format!("127.0.0.1:{}", free_port().await);
        let ((handle, stop), (_quit, quitting)) = (StopHandle::new(), StopHandle::new());
        let (inlet, channel) = inlet(8, &quitting).await;
        let source = AvroSource { address: address.clone(), max_connections: 4, deflate };
        let serving = tokio::spawn(async move { source.run(inlet, stop).await });
        let mut sink = AvroSink::new(address, Duration::from_secs(30), 3, deflate);
        while sink.open(None, true).await.is_err() {
            tokio::task::yield_now().await;
        }
        sink.deliver(&events(0..7)).await.unwrap();
        let taken = Arc::new(channel.try_take(100).await.unwrap().unwrap());
        let heard: Vec<&Event> = taken.events.iter().collect();
        assert_eq!(
            heard.iter().map(|event| &event.headers["n"]).collect::<Vec<_>>(),
            ["0", "1", "2", "3", "4", "5", "6"]
        );
        assert!(heard.iter().all(|event| event.body == event.headers["n"].as_bytes()));

        // The channel is full until the seven are committed: no answer before that.
        let waiting = tokio::spawn(async move { sink.deliver(&events(7..12)).await.map(|_| sink) });
        let mut room = channel.news();
        while channel.len() < 7 {
            room.changed().await.unwrap();
        }
        assert!(!waiting.is_finished());
        channel.commit(&taken, "k1", None).await.unwrap();
        let mut sink = waiting.await.unwrap().unwrap();
        assert_eq!(channel.try_take(100).await.unwrap().unwrap().events, events(7..12));
        handle.stop();
        serving.await.unwrap().unwrap();
        assert!(sink.deliver(&events(0..1)).await.is_err(), "the peer is gone");
        assert!(sink.deliver(&events(0..1)).await.unwrap_err().to_string().contains("not open"));
    }
}
