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
use std::{
    fmt, io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
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

/// Makes the recorded lines, without their ends, from the first one on.
pub type Recording = Arc<dyn Fn() -> Box<dyn Iterator<Item = Bytes> + Send> + Send + Sync>;

/// A recording of lines in memory.
pub fn recording(lines: Arc<[Bytes]>) -> Recording {
    Arc::new(move || {
        let lines = Arc::clone(&lines);
        Box::new((0..lines.len()).map(move |i| lines[i].clone()))
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
    /// By the times in the lines, so many times faster. A line without a time,
    /// or with one before the line before, is sent with the line before.
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
    /// When no connection can be accepted any more.
    pub async fn run(self, stop: Stop) -> Result<()> {
        let shared = Arc::new(Mutex::new(Cursor::new(&self.recording, &self.replay)));
        let wait_for = if let Share::Split { wait_for } = self.replay.share { wait_for } else { 0 };
        let all_here = Arc::new(Barrier::new(wait_for));
        let mut clients: JoinSet<()> = JoinSet::new();
        let mut joined = 0;
        loop {
            let accepted = tokio::select! {
                biased;
                () = stop.stopped() => break,
                // Reaped here so that the set doesn't grow with every client that ever was.
                Some(_) = clients.join_next() => continue,
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
                // An error says that the client has hung up, which is its right.
                if let Err(error) = serve(stream, &cursor, &sent).await {
                    tracing::debug!(%error, "replay: a client has left");
                }
                sent.clients.fetch_sub(1, Ordering::Relaxed);
            });
        }
        clients.shutdown().await;
        Ok(())
    }
}

/// A place in the recording, and the time that belongs to it.
struct Cursor {
    recording: Recording,
    lines: Box<dyn Iterator<Item = Bytes> + Send>,
    next: Option<(Bytes, Duration)>,
    pace: Pace,
    repeat: bool,
    started: Option<Instant>,
    taken: u64,
    /// Time of the first line of this round, and when it was due.
    round: Option<(Timestamp, Duration)>,
    /// When the last line was due, from the start.
    due: Duration,
}

impl Cursor {
    fn new(recording: &Recording, replay: &Replay) -> Self {
        Self {
            lines: recording(),
            recording: Arc::clone(recording),
            next: None,
            pace: replay.pace.clone(),
            repeat: replay.repeat,
            started: None,
            taken: 0,
            round: None,
            due: Duration::ZERO,
        }
    }

    /// The next line and when it is due, from the start.
    fn take(&mut self) -> Option<(Bytes, Duration)> {
        if let Some(next) = self.next.take() {
            return Some(next);
        }
        let line = match self.lines.next() {
            Some(line) => line,
            None if self.repeat => {
                self.lines = (self.recording)();
                self.round = None;
                self.lines.next()?
            }
            None => return None,
        };
        #[expect(clippy::cast_precision_loss, reason = "a pace is no more exact than that")]
        let due = match &self.pace {
            Pace::Unbounded => Duration::ZERO,
            Pace::Rate(rate) => Duration::try_from_secs_f64(self.taken as f64 / rate).unwrap_or(Duration::MAX),
            Pace::Speed(speed, time_of) => match (time_of(&line), self.round) {
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
        Some((line, self.due))
    }

    /// Fills `buffer` with what is due, waiting for the first line; how many lines.
    async fn fill(&mut self, buffer: &mut Vec<u8>) -> u64 {
        let started = *self.started.get_or_insert_with(Instant::now);
        let mut lines = 0;
        while buffer.len() < BUFFER {
            let Some((line, due)) = self.take() else { break };
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
        lines
    }
}

async fn serve(stream: TcpStream, cursor: &Mutex<Cursor>, sent: &Sent) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let (mut from, mut to) = stream.into_split();
    let mut buffer = Vec::with_capacity(BUFFER + 4096);
    let mut ignored = [0; 256];
    loop {
        buffer.clear();
        let lines = {
            // Whoever waits longest for the cursor gets it next, so clients take turns.
            let fill = async { cursor.lock().await.fill(&mut buffer).await };
            tokio::pin!(fill);
            loop {
                tokio::select! {
                    biased;
                    lines = &mut fill => break lines,
                    // A client that hangs up while nothing is due is noticed here, and takes no line with it.
                    read = from.read(&mut ignored) => if read? == 0 { return Ok(()) },
                }
            }
        };
        if lines == 0 {
            return to.shutdown().await;
        }
        to.write_all(&buffer).await?;
        sent.lines.fetch_add(lines, Ordering::Relaxed);
        // Else a client whose writes never wait would take everything before the others get their turn.
        tokio::task::yield_now().await;
    }
}

#[cfg(test)]
mod tests;
