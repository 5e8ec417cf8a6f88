//! What all viewers are told, made once: every breath a round of frames, from the events of the board.
//!
//! A round is rendered when its breath is over, in one piece if it is small, and given to every viewer
//! ([`crate::live`]) as it is: two hundred of them cost two hundred writes to a socket and no second rendering.
//!
//! Invariants: publishing to the board never waits for this. No round comes earlier than [`BREATH`] after the one
//! before, and what happens after a quiet time is told at once. Only the newest round is kept in one piece, so what
//! is held for a viewer that does not take its rounds is their frames without rows. The task that makes rounds ends
//! with the last viewer, and with the server, after a round that tells how the program ended.

use crate::{api::Summary, server::Shared};
use bytes::{Bytes, BytesMut};
use parking_lot::Mutex;
use serde::Serialize;
use std::{collections::BTreeSet, sync::Arc};
use tidemill_core::{BatchReport, Duration, Event};
use tokio::{
    sync::broadcast::{
        self, Receiver, Sender, WeakSender,
        error::{RecvError, TryRecvError},
    },
    time::{self, Instant},
};

/// The least time between two rounds.
pub(crate) const BREATH: Duration = Duration::from_millis(100);
/// How often figures that have no event of their own are looked at.
const PULSE: Duration = Duration::from_secs(1);
/// Pulses without news after which one is sent, so that a viewer can tell silence from a program that hangs.
const QUIET: u32 = 2;
/// That one.
pub(crate) const QUIET_FRAME: Bytes = Bytes::from_static(b"event: pulse\ndata: null\n\n");
/// Rounds that a viewer may be behind before it is sent everything afresh.
pub(crate) const BEHIND: usize = 16;
/// Bytes of a round that is kept in one piece. A viewer that is stuck holds one.
const WHOLE: usize = 128 << 10;

/// What is told at once.
#[derive(Debug, Default)]
pub(crate) struct Round {
    /// `phase`, if it changed.
    pub(crate) program: Option<Bytes>,
    /// `inputs`, if they changed.
    pub(crate) inputs: Option<Bytes>,
    /// Committed since the round before.
    pub(crate) reports: Vec<Arc<BatchReport>>,
    /// `batch`, with these reports; of a round that tells all afresh, with all that the board has.
    pub(crate) batches: Option<Bytes>,
    /// Names of those that changed.
    pub(crate) views: BTreeSet<String>,
    /// Whether this is the whole picture, as too much happened for changes.
    pub(crate) afresh: bool,
    /// Whether there was no news for a while.
    pub(crate) quiet: bool,
    whole: Mutex<Option<Bytes>>,
}

impl Round {
    /// All its frames, views with their rows, while it is the newest round and small.
    pub(crate) fn whole(&self) -> Option<Bytes> {
        self.whole.lock().clone()
    }

    fn is_empty(&self) -> bool {
        self.program.is_none()
            && self.inputs.is_none()
            && self.batches.is_none()
            && self.views.is_empty()
            && !self.quiet
    }

    /// Puts it in one piece.
    fn join(&self, shared: &Shared) {
        let mut whole = BytesMut::new();
        let views = self.views.iter().filter_map(|name| Some(shared.rendered.view(&shared.board, name)?.event()));
        let quiet = self.quiet.then_some(QUIET_FRAME);
        let frames = [&self.program, &self.inputs, &self.batches].into_iter().flatten().cloned().chain(quiet);
        for frame in frames.chain(views) {
            if whole.len() + frame.len() > WHOLE {
                return;
            }
            whole.extend_from_slice(&frame);
        }
        *self.whole.lock() = Some(whole.freeze());
    }
}

/// Where viewers find the rounds.
#[derive(Debug, Default)]
pub(crate) struct Rounds(Mutex<Option<WeakSender<Arc<Round>>>>);

impl Rounds {
    /// The rounds from now on. Who reads the board afterwards misses nothing between the two.
    pub(crate) fn follow(&self, shared: &Arc<Shared>) -> Receiver<Arc<Round>> {
        let mut made = self.0.lock();
        if let Some(sender) = made.as_ref().and_then(WeakSender::upgrade) {
            return sender.subscribe();
        }
        let (sender, receiver) = broadcast::channel(BEHIND);
        *made = Some(sender.downgrade());
        let maker = Maker {
            events: shared.board.subscribe(),
            program: program(shared).0,
            inputs: inputs(shared),
            breath: Instant::now(),
            pulse: Instant::now() + PULSE,
            quiet: 0,
            newest: None,
            sender,
            shared: Arc::clone(shared),
        };
        tokio::spawn(maker.run());
        receiver
    }
}

/// Makes rounds until nobody follows them.
#[derive(Debug)]
struct Maker {
    shared: Arc<Shared>,
    events: Receiver<Event>,
    sender: Sender<Arc<Round>>,
    /// As it was last told.
    program: Summary,
    /// The frame that was last told.
    inputs: Bytes,
    /// No round before this.
    breath: Instant,
    pulse: Instant,
    /// Pulses since anything was told.
    quiet: u32,
    newest: Option<Arc<Round>>,
}

impl Maker {
    async fn run(mut self) {
        let stop = self.shared.stop.clone();
        while self.is_followed() {
            let round = tokio::select! {
                biased;
                () = stop.stopped() => break,
                event = self.events.recv() => {
                    // What happens until the breath is over is told at once.
                    tokio::select! {
                        biased;
                        () = stop.stopped() => break,
                        () = time::sleep_until(self.breath) => {}
                    }
                    self.gather(event)
                }
                () = time::sleep_until(self.pulse) => self.beat(),
            };
            let Some(round) = round else { break };
            self.tell(round);
        }
        // How the program ended.
        let last = Round { program: self.program_if_changed(), ..Round::default() };
        self.tell(last);
    }

    /// Whether anybody follows. If not, the next who comes begins with another task.
    fn is_followed(&self) -> bool {
        let mut made = self.shared.rounds.0.lock();
        let followed = self.sender.receiver_count() > 0;
        if !followed {
            *made = None;
        }
        followed
    }

    fn tell(&mut self, round: Round) {
        if round.is_empty() {
            return;
        }
        round.join(&self.shared);
        let round = Arc::new(round);
        if let Some(earlier) = self.newest.replace(Arc::clone(&round)) {
            *earlier.whole.lock() = None;
        }
        // Nobody may be there any more.
        let _nobody = self.sender.send(round);
    }

    /// An event and those after it, or `None` when there will be no more.
    fn gather(&mut self, first: Result<Event, RecvError>) -> Option<Round> {
        self.breath = Instant::now() + BREATH;
        let mut round = Round::default();
        let mut next = match first {
            Ok(event) => Some(event),
            Err(RecvError::Lagged(_)) => return Some(self.afresh()),
            Err(RecvError::Closed) => return None,
        };
        while let Some(event) = next {
            match event {
                Event::View(snapshot) => {
                    round.views.insert(snapshot.name.clone());
                }
                Event::Batch(report) => round.reports.push(report),
                Event::Phase(_) | Event::Failed(_) | Event::Idle => {}
            }
            next = match self.events.try_recv() {
                Ok(event) => Some(event),
                Err(TryRecvError::Empty | TryRecvError::Closed) => None,
                Err(TryRecvError::Lagged(_)) => return Some(self.afresh()),
            };
        }
        round.program = self.program_if_changed();
        round.batches = (!round.reports.is_empty()).then(|| batches(false, &round.reports));
        Some(round)
    }

    /// The whole picture.
    fn afresh(&mut self) -> Round {
        self.events = self.events.resubscribe();
        let (summary, frame) = program(&self.shared);
        self.program = summary;
        self.inputs = inputs(&self.shared);
        let reports = self.shared.board.reports();
        Round {
            program: Some(frame),
            inputs: Some(self.inputs.clone()),
            batches: Some(batches(true, &reports)),
            reports,
            views: self.shared.board.view_names().into_iter().collect(),
            afresh: true,
            ..Round::default()
        }
    }

    /// Looks at what has no events.
    fn beat(&mut self) -> Option<Round> {
        self.pulse = Instant::now() + PULSE;
        let mut round = Round { program: self.program_if_changed(), ..Round::default() };
        let now = inputs(&self.shared);
        if now != self.inputs {
            self.inputs = now.clone();
            round.inputs = Some(now);
        }
        self.quiet += 1;
        if !round.is_empty() {
            self.quiet = 0;
        } else if self.quiet >= QUIET {
            self.quiet = 0;
            round.quiet = true;
        }
        Some(round)
    }

    fn program_if_changed(&mut self) -> Option<Bytes> {
        let summary = Summary::of(&self.shared);
        let changed = summary.differs(&self.program);
        changed.then(|| {
            let frame = frame("phase", &summary);
            self.program = summary;
            frame
        })
    }
}

/// The program as it is now, and the event that tells it.
pub(crate) fn program(shared: &Shared) -> (Summary, Bytes) {
    let summary = Summary::of(shared);
    let frame = frame("phase", &summary);
    (summary, frame)
}

/// The event that tells of all inputs.
pub(crate) fn inputs(shared: &Shared) -> Bytes {
    frame("inputs", &shared.board.inputs())
}

/// The event that tells of batches.
pub(crate) fn batches(fresh: bool, reports: &[Arc<BatchReport>]) -> Bytes {
    #[derive(Serialize)]
    struct Batches<'a> {
        fresh: bool,
        reports: &'a [Arc<BatchReport>],
    }
    frame("batch", &Batches { fresh, reports })
}

/// An event of the protocol. JSON holds no line break, so one line of data is enough.
fn frame(event: &str, data: &impl Serialize) -> Bytes {
    let data = serde_json::to_string(data).expect("reports are plain structs, which are always JSON");
    format!("event: {event}\ndata: {data}\n\n").into()
}
