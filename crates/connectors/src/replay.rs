//! A recorded stream, served over TCP as a live one.
//!
//! A [`ReplayServer`] sends lines to whoever connects, at a given pace. The
//! `demo` and `replay` commands and the benches use it; it is no connector.
//!
//! Invariant: a client has a cursor and at most one buffer of 64 KiB of its
//! own, so a slow client is behind by itself and slows nobody. With
//! [`Share::Each`] every client gets all lines from its first one on; with
//! [`Share::Split`] the clients share one stream, taking turns, and each line
//! goes to exactly one of them (what was on its way to a client that hangs up
//! is lost with it, as on any live stream).

use bytes::Bytes;
use futures::{
    FutureExt, StreamExt,
    stream::{self, BoxStream},
};
use std::{
    fmt, io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicI64, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};
use tidemill_core::{Error, Result, Stop, Timestamp};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::{Barrier, Mutex},
    task::JoinSet,
    time::Instant,
};

/// Bytes sent together at most.
const BUFFER: usize = 64 << 10;

/// A recorded line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// Its bytes, without its end.
    pub bytes: Bytes,
    /// When it was recorded, where that is known beside the line.
    pub at: Option<Timestamp>,
}

impl From<Bytes> for Line {
    fn from(bytes: Bytes) -> Self {
        Self { bytes, at: None }
    }
}

/// Makes the recorded lines from the first one on. An error ends the replay: what
/// comes after a line that can't be read is not what was recorded.
pub type Recording = Arc<dyn Fn() -> BoxStream<'static, Result<Line>> + Send + Sync>;

/// A recording of lines in memory.
pub fn recording(lines: Arc<[Bytes]>) -> Recording {
    Arc::new(move || {
        let lines = Arc::clone(&lines);
        stream::iter((0..lines.len()).map(move |i| Ok(lines[i].clone().into()))).boxed()
    })
}

/// When a line was recorded, if it says so.
pub type TimeOf = Arc<dyn Fn(&[u8]) -> Option<Timestamp> + Send + Sync>;

/// How fast lines are sent.
#[derive(Clone, Default)]
pub enum Pace {
    /// As fast as the client takes them.
    #[default]
    Unbounded,
    /// So many lines a second.
    Rate(f64),
    /// By the times of the lines, or else those in them, so many times faster. A
    /// line without a time, or with one before the line before, is sent with the
    /// line before.
    Speed(f64, TimeOf),
}

impl fmt::Debug for Pace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unbounded => f.write_str("Unbounded"),
            Self::Rate(rate) => write!(f, "Rate({rate})"),
            Self::Speed(speed, _) => write!(f, "Speed({speed})"),
        }
    }
}

/// Who gets which lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Share {
    /// Each client gets all lines.
    #[default]
    Each,
    /// Each line goes to one client; sending begins when `wait_for` have connected.
    Split {
        /// Clients to wait for.
        wait_for: usize,
    },
}

/// How a recording is replayed.
#[derive(Debug, Clone, Default)]
pub struct Replay {
    /// How fast.
    pub pace: Pace,
    /// To whom.
    pub share: Share,
    /// Whether to begin again at the end; without it, a client is hung up on there.
    pub repeat: bool,
}

/// What was sent so far.
#[derive(Debug, Default)]
pub struct Sent {
    /// Lines handed to clients.
    pub lines: AtomicU64,
    /// Clients connected now.
    pub clients: AtomicUsize,
    /// The time of a line that was sent last, where it is known; microseconds since 1970.
    pub at: AtomicI64,
}

/// Serves a recording.
pub struct ReplayServer {
    listener: TcpListener,
    recording: Recording,
    replay: Replay,
    sent: Arc<Sent>,
}

impl fmt::Debug for ReplayServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReplayServer")
            .field("listener", &self.listener)
            .field("replay", &self.replay)
            .finish_non_exhaustive()
    }
}

impl ReplayServer {
    /// Listens at `address`; port 0 takes a free one.
    ///
    /// # Errors
    /// When it can't listen there, or the pace is no positive number.
    pub async fn bind(address: &str, recording: Recording, replay: Replay) -> Result<Self> {
        if let Pace::Rate(pace) | Pace::Speed(pace, _) = &replay.pace
            && !(pace.is_finite() && *pace > 0.0)
        {
            return Err(Error::user(format!("replay: the rate or speed must be a positive number, not {pace}")));
        }
        let listener = TcpListener::bind(address).await.map_err(|e| {
            Error::user(format!("replay: can't listen at {address}; choose another address or port")).because(e)
        })?;
        Ok(Self { listener, recording, replay, sent: Arc::default() })
    }

    /// Where it listens.
    ///
    /// # Errors
    /// When the system doesn't say.
    pub fn address(&self) -> Result<SocketAddr> {
        self.listener.local_addr().map_err(|e| Error::external("replay: the address is not known").because(e))
    }

    /// What it has sent; may be looked at while it runs.
    pub fn sent(&self) -> Arc<Sent> {
        Arc::clone(&self.sent)
    }

    /// Serves until `stop`.
    ///
    /// # Errors
    /// When the recording can't be read on: the clients have what was read, and are hung up on.
    pub async fn run(self, stop: Stop) -> Result<()> {
        let shared = Arc::new(Mutex::new(Cursor::new(&self.recording, &self.replay)));
        let wait_for = if let Share::Split { wait_for } = self.replay.share { wait_for } else { 0 };
        let all_here = Arc::new(Barrier::new(wait_for));
        let mut clients: JoinSet<Result<()>> = JoinSet::new();
        let mut joined = 0;
        loop {
            let accepted = tokio::select! {
                biased;
                () = stop.stopped() => break,
                // Reaped here so that the set doesn't grow with every client that ever was.
                Some(ended) = clients.join_next() => {
                    ended.map_err(|e| Error::internal("replay: a client's task panicked").because(e))??;
                    continue;
                }
                accepted = self.listener.accept() => accepted,
            };
            let stream = match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "replay: can't accept a client");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            joined += 1;
            let (shared, sent) = (Arc::clone(&shared), Arc::clone(&self.sent));
            let cursor = match self.replay.share {
                Share::Each => Arc::new(Mutex::new(Cursor::new(&self.recording, &self.replay))),
                Share::Split { .. } => shared,
            };
            let awaited = (joined <= wait_for).then(|| Arc::clone(&all_here));
            clients.spawn(async move {
                sent.clients.fetch_add(1, Ordering::Relaxed);
                if let Some(all_here) = awaited {
                    all_here.wait().await;
                }
                let ended = serve(stream, &cursor, &sent).await;
                sent.clients.fetch_sub(1, Ordering::Relaxed);
                match ended {
                    Err(Ended::Recording(error)) => Err(error),
                    Err(Ended::Client(error)) => {
                        tracing::debug!(%error, "replay: a client has left");
                        Ok(())
                    }
                    Ok(()) => Ok(()),
                }
            });
        }
        clients.shutdown().await;
        Ok(())
    }
}

/// A place in the recording, and the time that belongs to it.
struct Cursor {
    recording: Recording,
    lines: stream::Fuse<BoxStream<'static, Result<Line>>>,
    next: Option<(Bytes, Duration)>,
    pace: Pace,
    repeat: bool,
    started: Option<Instant>,
    taken: u64,
    /// Time of the first line of this round, and when it was due.
    round: Option<(Timestamp, Duration)>,
    /// When the last line was due, from the start.
    due: Duration,
    /// The time of the last line that has one.
    at: Option<Timestamp>,
    /// Why the recording can't be read on, until the lines before are sent.
    failed: Option<Error>,
}

impl Cursor {
    fn new(recording: &Recording, replay: &Replay) -> Self {
        Self {
            lines: recording().fuse(),
            recording: Arc::clone(recording),
            next: None,
            pace: replay.pace.clone(),
            repeat: replay.repeat,
            started: None,
            taken: 0,
            round: None,
            due: Duration::ZERO,
            at: None,
            failed: None,
        }
    }

    /// The next line and when it is due, from the start. Who gives up waiting for it loses none.
    async fn take(&mut self) -> Result<Option<(Bytes, Duration)>> {
        if let Some(next) = self.next.take() {
            return Ok(Some(next));
        }
        let mut line = self.lines.next().await;
        if line.is_none() && self.repeat {
            self.lines = (self.recording)().fuse();
            self.round = None;
            line = self.lines.next().await;
        }
        let Some(line) = line.transpose()? else { return Ok(None) };
        let at = match &self.pace {
            Pace::Speed(_, time_of) => line.at.or_else(|| time_of(&line.bytes)),
            _ => line.at,
        };
        self.at = at.or(self.at);
        #[expect(clippy::cast_precision_loss, reason = "a pace is no more exact than that")]
        let due = match &self.pace {
            Pace::Unbounded => Duration::ZERO,
            Pace::Rate(rate) => Duration::try_from_secs_f64(self.taken as f64 / rate).unwrap_or(Duration::MAX),
            Pace::Speed(speed, _) => match (at, self.round) {
                (None, _) => self.due,
                (Some(at), None) => {
                    self.round = Some((at, self.due));
                    self.due
                }
                (Some(at), Some((first, since))) => {
                    let span = at.since(first).as_secs_f64() / speed;
                    since.saturating_add(Duration::try_from_secs_f64(span).unwrap_or(Duration::MAX))
                }
            },
        };
        self.taken += 1;
        self.due = self.due.max(due);
        Ok(Some((line.bytes, self.due)))
    }

    /// Fills `buffer` with what is due, waiting for the first line; how many lines.
    ///
    /// # Errors
    /// When the recording can't be read on, once all before it was given.
    async fn fill(&mut self, buffer: &mut Vec<u8>) -> Result<u64> {
        if let Some(error) = self.failed.take() {
            return Err(error);
        }
        let started = *self.started.get_or_insert_with(Instant::now);
        let mut lines = 0;
        while buffer.len() < BUFFER {
            let next = if lines == 0 {
                self.take().await?
            } else {
                let next = self.take().now_or_never().unwrap_or(Ok(None));
                next.unwrap_or_else(|error| {
                    self.failed = Some(error);
                    None
                })
            };
            // At the end; or the next line is still to come, and these do not wait for it.
            let Some((line, due)) = next else { break };
            if lines > 0 && due > started.elapsed() {
                self.next = Some((line, due));
                break;
            }
            if due > Duration::ZERO && due > started.elapsed() {
                // Kept while waiting: the client may hang up meanwhile.
                self.next = Some((line.clone(), due));
                tokio::time::sleep_until(started + due).await;
                self.next = None;
            }
            buffer.extend_from_slice(&line);
            buffer.push(b'\n');
            lines += 1;
        }
        Ok(lines)
    }
}

/// Why a client is served no more.
enum Ended {
    /// The recording can't be read on.
    Recording(Error),
    /// The client has hung up, which is its right.
    Client(io::Error),
}

impl From<io::Error> for Ended {
    fn from(error: io::Error) -> Self {
        Self::Client(error)
    }
}

async fn serve(stream: TcpStream, cursor: &Mutex<Cursor>, sent: &Sent) -> Result<(), Ended> {
    stream.set_nodelay(true)?;
    let (mut from, mut to) = stream.into_split();
    let mut buffer = Vec::with_capacity(BUFFER + 4096);
    let mut ignored = [0; 256];
    loop {
        buffer.clear();
        let (filled, at) = {
            // Whoever waits longest for the cursor gets it next, so clients take turns.
            let fill = async {
                let mut cursor = cursor.lock().await;
                (cursor.fill(&mut buffer).await.map_err(Ended::Recording), cursor.at)
            };
            tokio::pin!(fill);
            loop {
                tokio::select! {
                    biased;
                    filled = &mut fill => break filled,
                    // A client that hangs up while nothing is due is noticed here, and takes no line with it.
                    read = from.read(&mut ignored) => if read? == 0 { return Ok(()) },
                }
            }
        };
        let lines = filled?;
        if lines == 0 {
            return Ok(to.shutdown().await?);
        }
        to.write_all(&buffer).await?;
        sent.lines.fetch_add(lines, Ordering::Relaxed);
        if let Some(at) = at {
            sent.at.store(at.0, Ordering::Relaxed);
        }
        // Else a client whose writes never wait would take everything before the others get their turn.
        tokio::task::yield_now().await;
    }
}

#[cfg(test)]
mod tests;
