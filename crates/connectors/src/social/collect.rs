//! What all collectors share: connect, read, hand on, wait, connect again.
//!
//! A [`Collector`] knows one protocol and does one [`Collector::session`] at a
//! time: a connection to its end, or a round of asking. `run` repeats it until
//! the program stops, with the documented waits between failures.
//!
//! Invariant: records go to the log in order, each block with the token that a
//! restart goes on from, and nothing is read on while the log takes no more. A
//! collector's own memory holds nothing that its token does not.

use super::{
    common::Common,
    failure::{Failure, Waits},
    http::{Link, Request, Response},
    sse::{Event, Events},
};
use crate::{
    lines::{HEAD, LineCutter, letter},
    websocket::link::PLACE,
};
use async_trait::async_trait;
use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tidemill_core::{Block, Clock, Intake, Result, Stop, Timestamp};

/// Records of a block are gathered this long.
const GATHER: Duration = Duration::from_millis(100);
/// Bytes of a block, after which no more are gathered.
pub(crate) const BLOCK: usize = 256 << 10;

/// How a session ended, when it did not fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// We were told to stop.
    Stopped,
    /// All is taken for now; ask again at this time.
    Again(Timestamp),
}

/// One protocol.
#[async_trait]
pub trait Collector: Send {
    /// One connection to its end, or one round of asking.
    async fn session(&mut self, out: &Out) -> Result<Ended, Failure>;
}

/// Where a collector's records go, and with what it works.
pub struct Out {
    /// The way to servers, and the clock.
    pub link: Link,
    /// How long records are gathered.
    pub gather: Duration,
    intake: Arc<dyn Intake>,
    stop: Stop,
    /// Records handed on in this life.
    taken: AtomicU64,
}

impl std::fmt::Debug for Out {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Out").field("link", &self.link).finish_non_exhaustive()
    }
}

impl Out {
    /// Hands on records and the token that belongs to them; an empty one is none.
    ///
    /// # Errors
    /// When the log is closed or broken.
    pub async fn put(&self, records: &[Vec<u8>], token: String) -> Result<(), Failure> {
        if !records.is_empty() {
            // No peer waits for an acknowledgement: what is not durable is asked for again, by the token that is.
            let token = (!token.is_empty()).then_some(token);
            drop(self.intake.append(Block::from_records(records), token).await?);
            self.taken.fetch_add(records.len() as u64, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Keeps a token alone: where a restart goes on from, when nothing has come for long or what came was refused.
    ///
    /// # Errors
    /// When the log is closed or broken.
    #[cfg(any(feature = "kinesis", feature = "mongodb"))]
    pub(crate) async fn keep(&self, token: String) -> Result<(), Failure> {
        // As for records: a token that is not durable is made again.
        drop(self.intake.append(Block::from_records::<&[u8]>([]), Some(token)).await?);
        Ok(())
    }

    /// Keeps what can't be taken as a dead letter.
    ///
    /// # Errors
    /// When the log is closed or broken.
    pub async fn refuse(&self, reason: String, record: &[u8]) -> Result<(), Failure> {
        Ok(self.intake.refuse(letter(reason, record[..record.len().min(HEAD)].to_vec())).await?)
    }

    /// Says how the collector fares.
    pub fn report(&self, state: &str) {
        tracing::info!(%state, "a collector");
        self.intake.report(state);
    }

    /// The time.
    pub fn clock(&self) -> &dyn Clock {
        &*self.link.clock
    }

    /// What tells to stop.
    pub fn stop(&self) -> &Stop {
        &self.stop
    }

    /// Whether we were told to stop.
    pub fn is_stopped(&self) -> bool {
        self.stop.is_stopped()
    }

    /// The work's result, or `None` when we are told to stop meanwhile.
    pub async fn unless_stopped<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        tokio::select! {
            biased;
            () = self.stop.stopped() => None,
            done = work => Some(done),
        }
    }
}

/// Runs a collector until the program stops, or a human has to act.
pub(crate) async fn run(
    mut collector: impl Collector,
    link: &Link,
    gather: Option<Duration>,
    intake: Arc<dyn Intake>,
    stop: Stop,
) -> Result<()> {
    let out = Out { link: link.clone(), gather: gather.unwrap_or(GATHER), intake, stop, taken: AtomicU64::new(0) };
    let mut waits = Waits::new();
    loop {
        let before = out.taken.load(Ordering::Relaxed);
        let ended = collector.session(&out).await;
        let taken = out.taken.load(Ordering::Relaxed);
        // A server that accepts and hangs up is not a success.
        if taken > before {
            waits.reset();
        }
        let deadline = match ended {
            Ok(Ended::Stopped) => return Ok(()),
            Ok(Ended::Again(at)) => {
                waits.reset();
                at
            }
            Err(failure) => {
                let (why, now) = (failure.to_string(), out.clock().now());
                let wait = waits.after(failure, now, taken > 0)?;
                out.report(&format!("reconnecting in {:.1} s: {why}", wait.as_secs_f64()));
                now.plus(wait)
            }
        };
        if out.unless_stopped(out.clock().sleep_until(deadline)).await.is_none() {
            return Ok(());
        }
    }
}

/// What becomes of a message.
#[derive(Debug)]
pub enum Taken {
    /// It is a record.
    Keep(Vec<u8>),
    /// It is none (a keep-alive, a known post, what nobody asked for).
    Pass,
    /// It can't be taken, for this reason.
    Refuse(String),
    /// It says that the connection ends.
    End(Failure),
}

/// How messages are told apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    /// A line each; empty lines keep the connection alive.
    Lines,
    /// Server-sent events.
    Events,
    /// Server-sent events, also those that have an id and no data: these come with empty data.
    EventsAndIds,
}

/// A stream of messages, as its protocol reads them.
pub trait Messages: Send {
    /// How messages are told apart.
    fn framing(&self) -> Framing;
    /// What all collectors have: how long a silence, and how large a message may be.
    fn common(&self) -> &Common;
    /// Whether what broke off will be sent again; else it is kept as a dead letter.
    fn sends_again(&self) -> bool;
    /// Takes a message; lines come as events that only have data.
    fn take(&mut self, message: Event) -> Taken;
    /// What a restart goes on from, after all that was taken.
    fn token(&self) -> String;
}

enum Cutter {
    Lines(LineCutter),
    Events(Events),
}

/// Reads an answer to its end, which is a failure that says why, or until we are told to stop.
pub(crate) async fn follow(messages: &mut dyn Messages, mut response: Response, out: &Out) -> Result<Ended, Failure> {
    let most = messages.common().max_line;
    let mut cutter = match messages.framing() {
        Framing::Lines => Cutter::Lines(LineCutter::new(most)),
        Framing::Events => Cutter::Events(Events::new(most)),
        Framing::EventsAndIds => Cutter::Events(Events::new(most).with_ids()),
    };
    loop {
        let (mut records, mut refused) = (Vec::new(), Vec::new());
        let ended = gather(messages, &mut cutter, &mut response, out, &mut records, &mut refused).await;
        for (reason, head) in refused {
            out.refuse(reason, &head).await?;
        }
        // What came before the end counts.
        out.put(&records, messages.token()).await?;
        let Some(ended) = ended else { continue };
        let begun = match &mut cutter {
            Cutter::Lines(cutter) => cutter.abandon(),
            Cutter::Events(_) => None,
        };
        if let Some(begun) = begun
            && !messages.sends_again()
        {
            let why = if ended.is_ok() { "receiving was stopped" } else { "the connection broke" };
            out.refuse(format!("{why} in the middle of this line"), &begun).await?;
        }
        return ended;
    }
}

/// Reads until there is a block, or the end.
async fn gather(
    messages: &mut dyn Messages,
    cutter: &mut Cutter,
    response: &mut Response,
    out: &Out,
    records: &mut Vec<Vec<u8>>,
    refused: &mut Vec<(String, Vec<u8>)>,
) -> Option<Result<Ended, Failure>> {
    let mut bytes = 0;
    let mut until = None;
    let quiet = messages.common().quiet;
    loop {
        let piece = match until {
            None => out.unless_stopped(response.piece(quiet)).await,
            Some(until) => {
                tokio::select! {
                    biased;
                    piece = out.unless_stopped(response.piece(quiet)) => piece,
                    () = out.clock().sleep_until(until) => return None,
                }
            }
        };
        let piece = match piece {
            None => return Some(Ok(Ended::Stopped)),
            Some(Err(failure)) => return Some(Err(failure)),
            Some(Ok(None)) => return Some(Err(Failure::Network("the server closed the connection".to_string()))),
            Some(Ok(Some(piece))) => piece,
        };
        let (mut whole, known) = (Vec::new(), refused.len());
        match cutter {
            Cutter::Events(events) => events.push(&piece, |event| match event {
                Ok(event) => whole.push(event),
                Err(long) => refused.push((over(long.len, messages.common().max_line), long.head)),
            }),
            Cutter::Lines(lines) => {
                let cut = lines.push(&piece);
                let line = |data: &[u8]| Event { data: data.to_vec(), ..Event::default() };
                whole.extend(cut.block.iter().flat_map(Block::records).filter(|l| !l.is_empty()).map(line));
                refused.extend(
                    cut.refused.into_iter().map(|long| (over(long.len, messages.common().max_line), long.head)),
                );
            }
        }
        bytes += refused[known..].iter().map(|(why, head)| why.len() + head.len() + PLACE).sum::<usize>();
        let mut end = None;
        for event in whole {
            let head = event.data[..event.data.len().min(HEAD)].to_vec();
            match messages.take(event) {
                Taken::Keep(record) => {
                    bytes += record.len() + PLACE;
                    records.push(record);
                }
                Taken::Pass => {}
                Taken::Refuse(reason) => {
                    bytes += reason.len() + head.len() + PLACE;
                    refused.push((reason, head));
                }
                Taken::End(failure) => end = Some(Err(failure)),
            }
            if end.is_some() {
                return end;
            }
        }
        let some = !records.is_empty() || !refused.is_empty();
        if some && (bytes >= BLOCK || out.gather.is_zero()) {
            return None;
        }
        if some && until.is_none() {
            until = Some(out.clock().now().plus(out.gather));
        }
    }
}

fn over(len: u64, most: usize) -> String {
    format!("a message of {len} bytes, over the bound of {most} (option `max_line`)")
}

/// Opens a stream: the answer to `request`, reported as connected.
pub(crate) async fn open(request: &Request, out: &Out) -> Result<Option<Response>, Failure> {
    let Some(response) = out.unless_stopped(out.link.ask(request)).await else { return Ok(None) };
    let response = response?;
    out.report(&format!("connected to {request:?}"));
    Ok(Some(response))
}
