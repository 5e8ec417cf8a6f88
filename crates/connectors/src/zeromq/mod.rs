//! Connector `zeromq`: messages of ZeroMQ sockets. In builds with the feature `zeromq`.
//!
//! | Option | Meaning |
//! |---|---|
//! | `address` | `tcp://host:port` |
//! | `socket` | `sub`: hears a PUB or XPUB; or `pull`: takes from a PUSH |
//! | `bind` | `false` (unless said): connects to the address; `true`: listens there, and the peers connect |
//! | `topics` | of a `sub`: beginnings of messages that are wanted, with commas (all messages) |
//! | `record` | `last` (unless said): the last frame of a message; or `message`: an object of `frames`, those before, and `payload` |
//! | `max_line` | bytes of a message at most (1 MiB); a longer one is a dead letter |
//! | `max_connections` | with `bind`: peers that are served at a time (64) |
//!
//! **Nothing is sent again.** ZeroMQ has no acknowledgements. What a PUB sends while nobody is there is lost, and so is
//! what it drops when its own queue is full (`ZMQ_SNDHWM`). A PUSH keeps what it could not send; what was on its way,
//! or received and not durable when the program was killed, is lost. Who needs more takes another connector.
//!
//! While the log is behind, nothing is read: a PUSH waits, a PUB drops. Encryption (CURVE) and passwords (PLAIN) are
//! not spoken; a peer that asks for them is told by the state.
//!
//! Invariant: per peer one block and one message are held at most, whatever lengths it sends.

#[cfg(test)]
mod tests;
mod wire;

use crate::{
    backoff::Backoff,
    lines::{self, letter},
    payload::beside,
    social::{collect::BLOCK, common::list},
    tcp::{accept, address_claim, bind, watch},
};
use async_trait::async_trait;
use serde_json::{Value, json};
use std::{sync::Arc, time::Duration};
use tidemill_core::{Block, Claim, Error, Input, Intake, Options, Receiver, Result, Stop};
use tokio::{io::BufReader, net::TcpStream, time};
use wire::{Message, greet, message};

/// Connecting, and greeting.
const CONNECT: Duration = Duration::from_secs(15);
/// Bytes that are read at once.
const READ: usize = 64 << 10;

/// What kind of socket it is.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Socket {
    Sub(Vec<Vec<u8>>),
    Pull,
}

impl Socket {
    /// Its name, those of its peers, and the topics.
    fn parts(&self) -> (&'static str, &'static [&'static str], &[Vec<u8>]) {
        match self {
            Self::Sub(topics) => ("SUB", &["PUB", "XPUB"], topics),
            Self::Pull => ("PULL", &["PUSH"], &[]),
        }
    }
}

/// What becomes of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shape {
    Last,
    Message,
}

/// A ZeroMQ socket that receives.
#[derive(Debug, Clone)]
pub struct ZeroMq {
    address: String,
    socket: Socket,
    binds: bool,
    shape: Shape,
    max_line: usize,
    most: usize,
    backoff: Backoff,
}

impl ZeroMq {
    /// The socket that a stream's options ask for.
    ///
    /// # Errors
    /// When one is missing or wrong.
    pub fn input(options: &Options) -> Result<Input> {
        Ok(Input::Receivers(vec![Arc::new(Self::from_options(options)?)]))
    }

    fn from_options(options: &Options) -> Result<Self> {
        let wrong = |why: &str| Error::user(format!("{}: {why}", options.owner()));
        let address = options.require("address", "it names the place, such as tcp://127.0.0.1:5556")?;
        let address = address.strip_prefix("tcp://").filter(|place| {
            place.rsplit_once(':').is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok())
        });
        let address = address.ok_or_else(|| wrong("option `address` is tcp://host:port"))?;
        let socket = match options.require("socket", "it is `sub` or `pull`")? {
            "sub" => {
                let topics: Vec<Vec<u8>> =
                    list(options.get("topics").unwrap_or_default()).into_iter().map(Into::into).collect();
                Socket::Sub(if topics.is_empty() { vec![Vec::new()] } else { topics })
            }
            "pull" if options.get("topics").is_some() => {
                return Err(wrong("option `topics` is for `socket = 'sub'`: a PUSH sends each message to one peer"));
            }
            "pull" => Socket::Pull,
            other => return Err(wrong(&format!("option `socket` must be `sub` or `pull`, not `{other}`"))),
        };
        let shape = match options.get("record").unwrap_or("last") {
            "last" => Shape::Last,
            "message" => Shape::Message,
            other => return Err(wrong(&format!("option `record` must be `last` or `message`, not `{other}`"))),
        };
        let most = options.parse("max_connections", 64)?;
        if !(1..=tokio::sync::Semaphore::MAX_PERMITS).contains(&most) {
            return Err(wrong("option `max_connections` must be 1 at least"));
        }
        Ok(Self {
            address: address.to_string(),
            socket,
            binds: options.parse("bind", false)?,
            shape,
            max_line: lines::max_line(options)?,
            most,
            backoff: Backoff::new(u64::from(std::process::id())),
        })
    }

    /// Greets a peer and takes its messages, until it goes; how many there were, and why.
    async fn receive(
        &self,
        stream: TcpStream,
        intake: &Arc<dyn Intake>,
        stop: &Stop,
        told: bool,
    ) -> Result<(u64, String)> {
        watch(&stream);
        let mut stream = BufReader::with_capacity(READ, stream);
        let (kind, peers, topics) = self.socket.parts();
        let greeted = tokio::select! {
            biased;
            () = stop.stopped() => return Ok((0, String::new())),
            greeted = time::timeout(CONNECT, greet(&mut stream, kind, peers, topics)) => greeted,
        };
        match greeted {
            Ok(Ok(())) => {}
            Ok(Err(why)) => return Ok((0, why)),
            Err(_) => return Ok((0, format!("no greeting within {} s", CONNECT.as_secs()))),
        }
        if told {
            intake.report(&format!("connected to {}", self.address));
        }
        let mut heard = 0;
        loop {
            let (mut records, mut bytes, mut long) = (Vec::new(), 0, Vec::new());
            // What has come already goes into one block.
            let ended = loop {
                let next = tokio::select! {
                    biased;
                    () = stop.stopped() => break Some(String::new()),
                    next = message(&mut stream, self.max_line, self.shape == Shape::Last) => next,
                };
                match next {
                    Err(why) => break Some(why),
                    Ok(Message::Long(length, head)) => {
                        let most = self.max_line;
                        let why = format!("a message of {length} bytes, over the bound of {most} (option `max_line`)");
                        long.push(letter(why, head));
                    }
                    Ok(Message::Whole(frames)) => {
                        let record = self.record(frames);
                        bytes += record.len() + size_of::<Vec<u8>>();
                        records.push(record);
                    }
                }
                heard += 1;
                if bytes >= BLOCK || long.len() >= 64 || stream.buffer().is_empty() {
                    break None;
                }
            };
            if !records.is_empty() {
                // Nobody waits for an acknowledgement: there are none.
                drop(intake.append(Block::from_records(&records), None).await?);
            }
            for letter in long {
                intake.refuse(letter).await?;
            }
            if let Some(why) = ended {
                return Ok((heard, why));
            }
        }
    }

    fn record(&self, mut frames: Vec<Vec<u8>>) -> Vec<u8> {
        let payload = frames.pop().unwrap_or_default();
        match self.shape {
            Shape::Last => payload,
            Shape::Message => {
                let frames: Vec<Value> = frames.iter().map(|frame| json!(String::from_utf8_lossy(frame))).collect();
                beside(&json!({ "frames": frames }), "payload", &payload)
            }
        }
    }

    async fn connect(&self, intake: Arc<dyn Intake>, stop: Stop) -> Result<()> {
        let mut backoff = self.backoff.clone();
        loop {
            let connected = tokio::select! {
                biased;
                () = stop.stopped() => return Ok(()),
                connected = time::timeout(CONNECT, TcpStream::connect(&self.address)) => connected,
            };
            let why = match connected {
                Err(_) => format!("no answer within {} s", CONNECT.as_secs()),
                Ok(Err(error)) => error.to_string(),
                Ok(Ok(stream)) => {
                    let (heard, why) = self.receive(stream, &intake, &stop, true).await?;
                    // A peer that accepts and hangs up is not a success.
                    if heard > 0 {
                        backoff.reset();
                    }
                    why
                }
            };
            if stop.is_stopped() {
                return Ok(());
            }
            let wait = backoff.next_wait();
            tracing::info!(address = %self.address, %why, ?wait, "reconnecting");
            intake.report(&format!("reconnecting in {:.1} s: {why}", wait.as_secs_f64()));
            tokio::select! {
                biased;
                () = stop.stopped() => return Ok(()),
                () = time::sleep(wait) => {}
            }
        }
    }
}

#[async_trait]
impl Receiver for ZeroMq {
    fn describe(&self) -> String {
        let (kind, ..) = self.socket.parts();
        let at = if self.binds { "at" } else { "of" };
        format!("zeromq {kind} {at} tcp://{}", self.address)
    }

    fn claim(&self) -> Option<Claim> {
        self.binds.then(|| address_claim(&self.address)).flatten()
    }

    async fn run(&self, intake: Arc<dyn Intake>, stop: Stop) -> Result<()> {
        if !self.binds {
            return self.connect(intake, stop).await;
        }
        let listener = bind("zeromq", &self.address).await?;
        let ended = accept(&listener, self.most, &intake, &stop, |stream, peer| {
            let (socket, intake, stop) = (self.clone(), Arc::clone(&intake), stop.clone());
            async move {
                let (heard, why) = socket.receive(stream, &intake, &stop, false).await?;
                tracing::info!(%peer, heard, %why, "a peer has gone");
                if heard == 0 && !why.is_empty() && !stop.is_stopped() {
                    intake.report(&format!("waiting: {peer}: {why}"));
                }
                Ok(())
            }
        });
        ended.await
    }
}
