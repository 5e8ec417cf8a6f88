//! Follows a board and posts what it tells to a collector.
//!
//! ```text
//!                    ┌ full: the oldest go, counted
//! events ─► waiting ─┴─► one request under way ─► taken │ refused: gone, counted │ later: the same again
//! ```
//!
//! Invariant: events are taken whatever the collector does; at most [`WAITING`]
//! reports wait, and one request is under way; each span is counted once, as sent
//! or as dropped. Run by [`super::Following`].

use super::{Traces, json};
use crate::{
    backoff::Backoff,
    http::{Link, Request, failure::Failure},
};
use bytes::Bytes;
use futures::future::{BoxFuture, FutureExt};
use std::{collections::VecDeque, sync::Arc, time::Duration};
use tidemill_core::{BatchId, BatchReport, Board, Event, Stop, Timestamp};
use tokio::sync::broadcast::{
    Receiver,
    error::{RecvError, TryRecvError},
};

/// Reports that wait at most.
const WAITING: usize = 256;
/// So many are sent at once, without waiting for more …
const MANY: usize = 64;
/// … and fewer after this time.
const LINGER: Duration = Duration::from_secs(1);
/// A request has no more batches when it has so many spans.
const SPANS: usize = 500;
/// How long a collector may take for an answer.
const ANSWER: Duration = Duration::from_secs(10);
/// Waits between tries grow from here …
const FIRST: Duration = Duration::from_secs(1);
/// … to here.
const MOST: Duration = Duration::from_secs(30);
/// What was tried for so long is given up. A collector that wants a longer pause is not waited for.
const OLD: Duration = Duration::from_secs(300);
/// How long a stop waits.
const GRACE: Duration = Duration::from_secs(1);
/// The log hears of drops this often at most.
const SAID: Duration = Duration::from_secs(60);
/// Bytes of an answer at most.
const TEXT: usize = 64 << 10;

/// What came of a request.
enum Came {
    /// Taken, but for so many spans.
    Taken(u64, String),
    /// Not taken, and it would not be the next time.
    Refused(String),
    /// Perhaps the next time, and after this time where the collector says so.
    Later(String, Option<Duration>),
}

/// Spans of a few batches.
struct Parcel {
    body: Bytes,
    spans: u64,
    since: Timestamp,
}

pub(super) struct Exporter {
    traces: Traces,
    board: Arc<Board>,
    events: Receiver<Event>,
    /// The newest batch that was told.
    seen: Option<BatchId>,
    /// Reports that wait; of more than [`WAITING`] the oldest goes.
    waiting: VecDeque<Arc<BatchReport>>,
    /// Since when the oldest waits.
    since: Timestamp,
    /// What is sent, or sent again.
    parcel: Option<Parcel>,
    posting: Option<BoxFuture<'static, Came>>,
    /// No request before this.
    not_before: Timestamp,
    backoff: Backoff,
    /// When the log last heard of trouble, and what was dropped since.
    said: Option<Timestamp>,
    unsaid: u64,
}

impl Exporter {
    /// Subscribes now.
    pub(super) fn new(traces: Traces, board: Arc<Board>) -> Self {
        board.update_traces(|_| {});
        let (events, now) = (board.subscribe(), traces.clock.now());
        let backoff = Backoff::between(FIRST, MOST, traces.tracer.seed);
        Self {
            traces,
            board,
            events,
            seen: None,
            waiting: VecDeque::new(),
            since: now,
            parcel: None,
            posting: None,
            not_before: Timestamp::MIN,
            backoff,
            said: None,
            unsaid: 0,
        }
    }

    /// Until it is stopped and what is left is sent, or has had its time.
    pub(super) async fn run(mut self, stop: Stop) {
        let clock = Arc::clone(&self.traces.clock);
        let mut ending: Option<Timestamp> = None;
        let mut open = true;
        loop {
            let now = clock.now();
            // A clock that was set back must not silence the export for as long.
            self.since = self.since.min(now);
            self.not_before = self.not_before.min(now.plus(OLD));
            // At the end there is no use in waiting for a collector that wants to be left alone for longer.
            if ending.is_some_and(|until| now >= until || self.is_empty() || self.not_before >= until) {
                break;
            }
            self.send_if_due(now, ending.is_some());
            let wake = [self.wake(), ending].into_iter().flatten().min();
            tokio::select! {
                biased;
                () = stop.stopped(), if ending.is_none() => {
                    self.take_rest();
                    ending = Some(clock.now().plus(GRACE));
                }
                came = outcome(&mut self.posting) => {
                    self.posting = None;
                    let ends = matches!(came, Came::Later(..)) && ending.is_some();
                    self.settle(came);
                    if ends {
                        break;
                    }
                }
                event = self.events.recv(), if open && ending.is_none() => match event {
                    Ok(event) => self.take(event),
                    Err(RecvError::Lagged(_)) => self.catch_up(),
                    Err(RecvError::Closed) => open = false,
                },
                () = clock.sleep_until(wake.unwrap_or_default()), if wake.is_some() => {}
            }
        }
        self.give_up();
    }

    fn is_empty(&self) -> bool {
        self.posting.is_none() && self.parcel.is_none() && self.waiting.is_empty()
    }

    /// When something is to be done without an event.
    fn wake(&self) -> Option<Timestamp> {
        if self.posting.is_some() {
            return None;
        }
        if self.parcel.is_some() {
            return Some(self.not_before);
        }
        let due = if self.waiting.len() >= MANY { self.since } else { self.since.plus(LINGER) };
        (!self.waiting.is_empty()).then_some(due.max(self.not_before))
    }

    /// Begins a request when it is time to; at the end it is whenever the collector lets us.
    fn send_if_due(&mut self, now: Timestamp, ending: bool) {
        let due = if ending && self.posting.is_none() { Some(self.not_before) } else { self.wake() };
        if due.is_none_or(|due| now < due) {
            return;
        }
        if self.parcel.is_none() {
            self.parcel = self.pack(now);
        }
        let Some(parcel) = &self.parcel else { return };
        let request = self.traces.request.clone().post("application/json", parcel.body.clone());
        self.posting = Some(post(self.traces.link.clone(), request).boxed());
    }

    /// The spans of the oldest reports.
    fn pack(&mut self, now: Timestamp) -> Option<Parcel> {
        let mut spans = Vec::new();
        while spans.len() < SPANS
            && let Some(report) = self.waiting.pop_front()
        {
            spans.extend(self.traces.tracer.spans(&report));
        }
        self.since = now;
        let body = json::request(&self.traces.tracer.program, env!("CARGO_PKG_VERSION"), &spans);
        (!spans.is_empty()).then(|| Parcel { body: body.into(), spans: spans.len() as u64, since: now })
    }

    fn take(&mut self, event: Event) {
        match event {
            Event::Batch(report) => {
                if self.seen.is_none_or(|seen| seen < report.batch) {
                    self.seen = Some(report.batch);
                    self.push(report);
                }
            }
            Event::Failed(report) => self.push(report),
            Event::View(_) | Event::Phase(_) | Event::Idle => {}
        }
    }

    fn push(&mut self, report: Arc<BatchReport>) {
        if self.waiting.is_empty() {
            self.since = self.traces.clock.now();
        }
        if self.waiting.len() == WAITING
            && let Some(oldest) = self.waiting.pop_front()
        {
            let spans = self.traces.tracer.spans(&oldest).len() as u64;
            self.drop_spans(spans, "the collector is slower than the batches");
        }
        self.waiting.push_back(report);
    }

    /// Events were missed: the board remembers more batches than it tells events.
    fn catch_up(&mut self) {
        for report in self.board.reports() {
            // Numbers have no gap within a life.
            let missed = self.seen.map_or(0, |seen| report.batch.0.saturating_sub(seen.0.saturating_add(1)));
            if missed > 0 {
                self.drop_spans(missed, "there are more batches than can be followed");
            }
            self.take(Event::Batch(report));
        }
    }

    /// What came before the stop.
    fn take_rest(&mut self) {
        loop {
            match self.events.try_recv() {
                Ok(event) => self.take(event),
                Err(TryRecvError::Lagged(_)) => self.catch_up(),
                Err(TryRecvError::Empty | TryRecvError::Closed) => return,
            }
        }
    }

    /// Counts what came of the request, or puts it off.
    fn settle(&mut self, came: Came) {
        let Some(parcel) = self.parcel.take() else { return };
        let now = self.traces.clock.now();
        match came {
            Came::Taken(rejected, why) => {
                let rejected = rejected.min(parcel.spans);
                self.board.update_traces(|told| told.sent += parcel.spans - rejected);
                self.backoff.reset();
                if rejected > 0 {
                    self.drop_spans(rejected, &format!("the collector took the others: {why}"));
                }
            }
            Came::Refused(why) => {
                self.backoff.reset();
                self.drop_spans(parcel.spans, &why);
            }
            Came::Later(why, named) => {
                let wait = self.backoff.next_wait();
                let named = named.filter(|named| *named <= OLD);
                self.not_before = now.plus(named.map_or(wait, |named| named.max(FIRST)));
                if now.since(parcel.since) > OLD {
                    self.drop_spans(parcel.spans, &why);
                } else {
                    self.parcel = Some(parcel);
                    self.say(now, &why);
                }
            }
        }
    }

    /// The end: what is left goes.
    fn give_up(&mut self) {
        self.posting = None;
        let waiting: usize = self.waiting.drain(..).map(|report| self.traces.tracer.spans(&report).len()).sum();
        let left = waiting as u64 + self.parcel.take().map_or(0, |parcel| parcel.spans);
        if left > 0 {
            self.said = None;
            self.drop_spans(left, "the program ended before the collector had taken them");
        }
    }

    fn drop_spans(&mut self, spans: u64, why: &str) {
        self.board.update_traces(|told| told.dropped += spans);
        self.unsaid += spans;
        self.say(self.traces.clock.now(), why);
    }

    /// A line in the log, when the last one is long ago.
    fn say(&mut self, now: Timestamp, why: &str) {
        if self.said.is_some_and(|said| now >= said && now.since(said) < SAID) {
            return;
        }
        self.said = Some(now);
        let dropped = std::mem::take(&mut self.unsaid);
        tracing::warn!(collector = self.traces.server(), dropped, "traces: {why}");
    }
}

/// What comes of the request under way; nothing comes of none.
async fn outcome(posting: &mut Option<BoxFuture<'static, Came>>) -> Came {
    match posting {
        Some(posting) => posting.await,
        None => std::future::pending().await,
    }
}

/// Sends spans once.
async fn post(link: Link, request: Request) -> Came {
    let asked = link.within(ANSWER, async {
        let mut answer = link.send(&request).await?;
        if answer.status.is_success() {
            // An answer that breaks off is one: its status says that all was taken.
            let (rejected, why) = json::rejected(&answer.whole(TEXT).await.unwrap_or_default());
            return Ok(Came::Taken(rejected, why));
        }
        let again = matches!(answer.status.as_u16(), 429 | 502 | 503 | 504);
        let failure = answer.refusal().await;
        let until = if let Failure::Limited(_, until) = &failure { *until } else { None };
        let named = until.map(|until| until.since(link.clock.now()));
        let why = failure.to_string();
        Ok(if again { Came::Later(why, named) } else { Came::Refused(why) })
    });
    match asked.await {
        Ok(Ok(came)) => came,
        Ok(Err(Failure::Network(why))) | Err(why) => Came::Later(why, None),
        Ok(Err::<_, Failure>(failure)) => Came::Refused(failure.to_string()),
    }
}
