//! Source `avro`: events of other agents, ours and Flume's, over Avro RPC.
//!
//! Invariant: a call is answered `OK` when all required channels have its events, and not before; when they can't take
//! them it is answered `FAILED`, and the peer sends them again. One whose peer is gone while it waits for room is
//! dropped: the peer sends it again on another connection. At most so many connections are served; calls of one keep
//! their order.

use super::Origin;
use crate::{
    avro::{
        Reader, Writer,
        line::Line,
        message::{Frame, HASH, Hello, Match, Status, decode_call, encode_answer},
    },
    inlet::Inlet,
};
use async_trait::async_trait;
use std::sync::Arc;
use tidemill_core::{Claim, Duration, Error, Result, Stop};
use tokio::{net::TcpListener, sync::Semaphore, task::JoinSet};

/// Pause after an accept that failed.
const PAUSE: Duration = Duration::from_millis(100);

/// Listens for agents.
#[derive(Debug)]
pub(crate) struct AvroSource {
    pub(crate) address: String,
    pub(crate) max_connections: usize,
    /// Whether peers compress what they send, and want answers so.
    pub(crate) deflate: bool,
}

#[async_trait]
impl Origin for AvroSource {
    fn describe(&self) -> String {
        format!("avro {}", self.address)
    }

    fn claim(&self) -> Option<Claim> {
        let (host, port) = self.address.rsplit_once(':').filter(|(_, port)| port.parse() != Ok(0_u16))?;
        let host = if host.eq_ignore_ascii_case("localhost") { "127.0.0.1" } else { host };
        Some(Claim::new(format!("TCP address {host}:{port}")))
    }

    async fn run(&self, inlet: Arc<Inlet>, stop: Stop) -> Result<()> {
        let listener = TcpListener::bind(&self.address).await.map_err(|e| {
            Error::user(format!("avro: can't listen at {}; choose another address or port", self.address)).because(e)
        })?;
        let address = listener.local_addr().map_or_else(|_| self.address.clone(), |address| address.to_string());
        let places = Arc::new(Semaphore::new(self.max_connections));
        let mut served: JoinSet<()> = JoinSet::new();
        loop {
            inlet.says(&format!("listening on {address}, {} connected", served.len()));
            let accepted = async {
                let place = Arc::clone(&places).acquire_owned().await.map_err(std::io::Error::other)?;
                listener.accept().await.map(|(stream, peer)| (place, stream, peer))
            };
            tokio::select! {
                biased;
                () = stop.stopped() => break,
                Some(_) = served.join_next() => {}
                accepted = accepted => match accepted {
                    Ok((place, stream, peer)) => {
                        let (inlet, stop, line) = (Arc::clone(&inlet), stop.clone(), Line::new(stream, self.deflate));
                        line.watch();
                        served.spawn(async move {
                            if let Err(error) = serve(line, &inlet, &stop).await {
                                tracing::warn!(%peer, error = error.chain(), "an agent's connection was closed");
                                inlet.refused(&error.chain());
                            }
                            drop(place);
                        });
                    }
                    Err(error) => {
                        tracing::warn!(%address, %error, "can't accept a connection");
                        tokio::select! {
                            () = stop.stopped() => break,
                            () = tokio::time::sleep(PAUSE) => {}
                        }
                    }
                },
            }
        }
        // Each answers the call that it is in; they were told to stop too.
        while served.join_next().await.is_some() {}
        Ok(())
    }
}

/// Answers calls until the peer goes away; an error is a peer that does not speak as it should.
async fn serve(mut line: Line, inlet: &Inlet, stop: &Stop) -> Result<()> {
    let mut known = false;
    loop {
        while let Some(frame) = line.frame()? {
            let Some(answer) = answer(Reader(frame.bytes), &line, inlet, &mut known).await? else { return Ok(()) };
            if line.send(&Frame::encode(frame.serial, &answer.0)).await.is_err() {
                return Ok(());
            }
        }
        tokio::select! {
            biased;
            () = stop.stopped() => return Ok(()),
            read = line.receive() => match read {
                Ok(read) if read > 0 => {}
                // It goes as it likes; what it was not answered it sends again.
                _ => return Ok(()),
            },
        }
    }
}

/// `None` when nobody waits for an answer any more.
async fn answer(mut call: Reader, line: &Line, inlet: &Inlet, known: &mut bool) -> Result<Option<Writer>> {
    let mut writer = Writer::default();
    if !*known {
        let hello = Hello::decode(&mut call)?;
        match &hello.protocol {
            None if hello.client[..] != HASH => {
                // Which protocol it is has to be told first; the call comes again.
                Match::None.encode(&mut writer);
                return Ok(Some(writer));
            }
            Some(protocol) if !protocol.contains("AvroSourceProtocol") => {
                return Err(crate::avro::bad("the peer speaks another protocol"));
            }
            _ => {}
        }
        *known = true;
        let matched = if hello.server[..] == HASH { Match::Both } else { Match::Client };
        matched.encode(&mut writer);
    }
    let events = decode_call(&mut call, inlet.clock().now())?;
    let put = tokio::select! {
        biased;
        put = inlet.put(events, None) => put,
        // A put is all or nothing and this one has no token: it can be dropped while it waits.
        () = line.gone() => return Ok(None),
    };
    let put = match put {
        Ok(acks) => acks.all().await,
        Err(error) => Err(error),
    };
    match put {
        Ok(()) => encode_answer(&mut writer, Ok(Status::Ok)),
        Err(error) => {
            tracing::warn!(error = error.chain(), "events of another agent were not taken in");
            encode_answer(&mut writer, Ok(Status::Failed));
        }
    }
    Ok(Some(writer))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        avro::message::{decode_answer, encode_call},
        event::Event,
        inlet::tests::{inlet, memory},
    };
    use tidemill_core::{StopHandle, Timestamp};
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpStream,
    };

    async fn send(peer: &mut TcpStream, write: impl FnOnce(&mut Writer)) {
        let mut writer = Writer::default();
        write(&mut writer);
        peer.write_all(&Frame::encode(1, &writer.0)).await.unwrap();
    }

    async fn heard(peer: &mut TcpStream) -> Reader {
        let mut received = bytes::BytesMut::new();
        loop {
            if let Some(frame) = Frame::decode(&mut received).unwrap() {
                return Reader(frame.bytes);
            }
            let read = tokio::time::timeout(Duration::from_secs(20), peer.read_buf(&mut received));
            assert!(read.await.expect("nobody answers").unwrap() > 0, "the connection was closed");
        }
    }

    #[tokio::test]
    async fn a_call_whose_peer_is_gone_leaves_its_place_and_does_not_come_twice() {
        let channel = memory(2);
        let (_quit, begun) = inlet(&[&channel], vec![]).await;
        let events = |name: &str| vec![Event::new(name.to_owned(), Timestamp(0)), Event::new("x", Timestamp(0))];
        drop(begun.put(events("full"), None).await.unwrap());
        let port = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
        let address = format!("127.0.0.1:{port}");
        let source = AvroSource { address: address.clone(), max_connections: 1, deflate: false };
        let (handle, stop) = StopHandle::new();
        let (inlet, counted) = (Arc::clone(&begun), Arc::clone(&begun));
        let serving = tokio::spawn(async move { source.run(inlet, stop).await });
        let connect = async || loop {
            match TcpStream::connect(&address).await {
                Ok(stream) => return stream,
                Err(_) => tokio::task::yield_now().await,
            }
        };
        let call = |writer: &mut Writer| {
            Hello::encode(writer);
            encode_call(writer, &events("call"));
        };
        let mut first = connect().await;
        send(&mut first, call).await;
        // It waits for room from here on.
        while counted.counters().counts().events < 4 {
            tokio::task::yield_now().await;
        }
        drop(first);
        // There is place for one: who is answered comes behind the one that is gone.
        let mut second = connect().await;
        send(&mut second, |writer| {
            writer.0.extend_from_slice(&[7; 16]);
            writer.long(0);
            writer.0.extend_from_slice(&[7; 16]);
            writer.long(0);
        })
        .await;
        assert_eq!(Match::decode(&mut heard(&mut second).await).unwrap(), Match::None);
        send(&mut second, call).await;
        let full = Arc::new(channel.try_take(9).await.unwrap().unwrap());
        channel.commit(&full, "k1", None).await.unwrap();
        let mut answer = heard(&mut second).await;
        assert_eq!(Match::decode(&mut answer).unwrap(), Match::Both);
        assert_eq!(decode_answer(&mut answer).unwrap(), Ok(Status::Ok));
        let came = Arc::new(channel.try_take(9).await.unwrap().unwrap());
        assert_eq!(came.events.iter().map(|event| &event.body[..]).collect::<Vec<_>>(), [&b"call"[..], b"x"]);
        channel.commit(&came, "k1", None).await.unwrap();
        assert_eq!(channel.len(), 0, "it came once");
        handle.stop();
        serving.await.unwrap().unwrap();
    }
}
