//! `/api/v1/live`: what happens on the board, as Server-Sent Events.
//!
//! | Event | Data |
//! |---|---|
//! | `phase` | the program, as `/api/v1/program`; when its phase or a figure changed |
//! | `inputs` | all inputs, as `/api/v1/inputs`; at most once a second |
//! | `batch` | `{"fresh":bool,"reports":[…]}`; `fresh` replaces what was known |
//! | `view` | one view, as `/api/v1/views/{name}` |
//! | `pulse` | `null`; when there was no news for two seconds |
//!
//! Invariants: publishing never waits for a viewer. A viewer costs one
//! subscription and a queue of at most one entry a view and three frames,
//! rendered only when the socket takes them, so a slow viewer gets the newest
//! rows and not old ones. No view is sent more often than every [`BREATH`].
//! A viewer that lags behind the board's events is sent everything afresh.

use crate::{
    api::{Summary, problem},
    server::Shared,
};
use axum::{
    body::Body,
    extract::State,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use futures::{Stream, stream};
use serde::Serialize;
use std::{
    collections::{BTreeSet, VecDeque},
    convert::Infallible,
    sync::Arc,
};
use tidemill_core::{BatchReport, Duration, Event};
use tokio::{
    sync::{
        OwnedSemaphorePermit,
        broadcast::{
            Receiver,
            error::{RecvError, TryRecvError},
        },
    },
    time::{self, Instant},
};

/// Viewers at once.
pub(crate) const VIEWERS: usize = 256;
/// The least time between two updates of a view.
const BREATH: Duration = Duration::from_millis(100);
/// How often figures that have no event of their own are looked at.
const PULSE: Duration = Duration::from_secs(1);
/// Pulses without news after which one is sent, so that a viewer can tell silence from a program that hangs.
const QUIET: u32 = 2;

/// `/api/v1/live`
pub(crate) async fn live(State(shared): State<Arc<Shared>>) -> Response {
    let seat = match seat(&shared) {
        Ok(seat) => seat,
        Err(refusal) => return *refusal,
    };
    let body = Body::from_stream(feed(shared, seat));
    ([(header::CONTENT_TYPE, "text/event-stream")], body).into_response()
}

/// A seat for one viewer, or what to tell the one too many.
pub(crate) fn seat(shared: &Shared) -> Result<OwnedSemaphorePermit, Box<Response>> {
    Arc::clone(&shared.viewers).try_acquire_owned().map_err(|_| {
        let why = format!("{VIEWERS} viewers watch already; close one of their pages");
        let mut response = problem(StatusCode::SERVICE_UNAVAILABLE, &why);
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("10"));
        Box::new(response)
    })
}

/// The events of one viewer, from a fresh picture on.
pub(crate) fn feed(shared: Arc<Shared>, seat: OwnedSemaphorePermit) -> impl Stream<Item = Result<Bytes, Infallible>> {
    let feed = Feed {
        events: shared.board.subscribe(),
        queue: VecDeque::new(),
        program: None,
        inputs: Bytes::new(),
        breath: Instant::now(),
        pulse: Instant::now() + PULSE,
        quiet: 0,
        stage: Stage::Fresh,
        _seat: seat,
        shared,
    };
    stream::unfold(feed, |mut feed| async move { Some((Ok(feed.next().await?), feed)) })
}

/// Something to send.
#[derive(Debug)]
enum Pending {
    Frame(Bytes),
    /// Rendered when the socket takes it.
    View(String),
}

/// Where a feed stands.
#[derive(Debug, PartialEq)]
enum Stage {
    /// Everything is to be sent.
    Fresh,
    Following,
    /// The server stops: the queue is the last that is sent.
    Ending,
}

/// One viewer.
#[derive(Debug)]
struct Feed {
    shared: Arc<Shared>,
    events: Receiver<Event>,
    /// Refilled only when empty, so never longer than the views and three frames.
    queue: VecDeque<Pending>,
    /// As it was last sent.
    program: Option<Summary>,
    /// The frame that was last sent.
    inputs: Bytes,
    /// No update before this.
    breath: Instant,
    pulse: Instant,
    /// Pulses since anything was sent.
    quiet: u32,
    stage: Stage,
    _seat: OwnedSemaphorePermit,
}

impl Feed {
    /// The next frame, or `None` at the end.
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            while let Some(pending) = self.queue.pop_front() {
                match pending {
                    Pending::Frame(frame) => return Some(frame),
                    Pending::View(name) => {
                        if let Some(view) = self.shared.rendered.view(&self.shared.board, &name) {
                            return Some(view.event());
                        }
                    }
                }
            }
            match self.stage {
                Stage::Ending => return None,
                Stage::Fresh => {
                    self.stage = Stage::Following;
                    self.refresh();
                }
                Stage::Following => self.wait().await,
            }
        }
    }

    /// Waits for news and fills the queue with them.
    async fn wait(&mut self) {
        let stop = self.shared.stop.clone();
        let first = tokio::select! {
            biased;
            () = stop.stopped() => return self.end(),
            event = self.events.recv() => event,
            () = time::sleep_until(self.pulse) => return self.beat(),
        };
        // What happens until the breath is over is told at once.
        tokio::select! {
            biased;
            () = stop.stopped() => return self.end(),
            () = time::sleep_until(self.breath) => {}
        }
        let (mut views, mut reports) = (BTreeSet::new(), Vec::new());
        let mut take = |event| match event {
            Event::View(snapshot) => {
                views.insert(snapshot.name.clone());
            }
            Event::Batch(report) => reports.push(report),
            Event::Phase(_) | Event::Failed(_) | Event::Idle => {}
        };
        match first {
            Ok(event) => take(event),
            Err(RecvError::Lagged(_)) => return self.refresh(),
            Err(RecvError::Closed) => return self.end(),
        }
        loop {
            match self.events.try_recv() {
                Ok(event) => take(event),
                Err(TryRecvError::Empty | TryRecvError::Closed) => break,
                Err(TryRecvError::Lagged(_)) => return self.refresh(),
            }
        }
        self.tell_program();
        if !reports.is_empty() {
            self.tell_batches(false, &reports);
        }
        self.queue.extend(views.into_iter().map(Pending::View));
        self.breath = Instant::now() + BREATH;
    }

    /// Queues the whole picture. Later events are only those from now on.
    fn refresh(&mut self) {
        self.events = self.events.resubscribe();
        self.queue.clear();
        self.program = None;
        self.inputs = Bytes::new();
        self.tell_program();
        self.tell_inputs();
        let reports = self.shared.board.reports();
        self.tell_batches(true, &reports);
        self.queue.extend(self.shared.board.view_names().into_iter().map(Pending::View));
        self.breath = Instant::now() + BREATH;
    }

    /// Looks at what has no events.
    fn beat(&mut self) {
        self.pulse = Instant::now() + PULSE;
        self.tell_program();
        self.tell_inputs();
        self.quiet += 1;
        if !self.queue.is_empty() {
            self.quiet = 0;
        } else if self.quiet >= QUIET {
            self.quiet = 0;
            self.queue.push_back(Pending::Frame(Bytes::from_static(b"event: pulse\ndata: null\n\n")));
        }
    }

    /// The last words: how the program ended.
    fn end(&mut self) {
        self.stage = Stage::Ending;
        self.tell_program();
    }

    fn tell_program(&mut self) {
        let summary = Summary::of(&self.shared);
        if self.program.as_ref().is_none_or(|earlier| summary.differs(earlier)) {
            self.queue.push_back(Pending::Frame(frame("phase", &summary)));
            self.program = Some(summary);
        }
    }

    fn tell_inputs(&mut self) {
        let inputs = frame("inputs", &self.shared.board.inputs());
        if inputs != self.inputs {
            self.queue.push_back(Pending::Frame(inputs.clone()));
            self.inputs = inputs;
        }
    }

    fn tell_batches(&mut self, fresh: bool, reports: &[Arc<BatchReport>]) {
        #[derive(Serialize)]
        struct Batches<'a> {
            fresh: bool,
            reports: &'a [Arc<BatchReport>],
        }
        self.queue.push_back(Pending::Frame(frame("batch", &Batches { fresh, reports })));
    }
}

/// An event of the protocol. JSON holds no line break, so one line of data is enough.
fn frame(event: &str, data: &impl Serialize) -> Bytes {
    let data = serde_json::to_string(data).expect("reports are plain structs, which are always JSON");
    format!("event: {event}\ndata: {data}\n\n").into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{rows::Rendered, watch::Watch};
    use arrow_array::{Int64Array, RecordBatch};
    use futures::StreamExt;
    use tidemill_core::{BatchId, Board, StopHandle, Timestamp, ViewSnapshot};

    fn show(board: &Board, name: &str, batch: u64) {
        let rows = RecordBatch::try_from_iter([("n", Arc::new(Int64Array::from(vec![1])) as _)]).unwrap();
        board.publish_view(ViewSnapshot { name: name.to_string(), batch: BatchId(batch), time: Timestamp(0), rows });
    }

    fn shared(board: &Arc<Board>, stop: tidemill_core::Stop) -> Arc<Shared> {
        Arc::new(Shared {
            watch: Watch::new(board),
            rendered: Rendered::default(),
            board: Arc::clone(board),
            stop,
            viewers: Arc::new(tokio::sync::Semaphore::new(1)),
            inspecting: crate::inspect::Inspecting::default(),
            desk: crate::query::Desk::new(None, None),
            shelf: None,
            guarded: false,
        })
    }

    #[tokio::test(start_paused = true)]
    async fn a_batch_is_told_at_once_and_never_later_than_a_breath() {
        let board = Arc::new(Board::default());
        let (handle, stop) = StopHandle::new();
        let shared = shared(&board, stop);
        let seat = seat(&shared).unwrap();
        let mut feed = Box::pin(feed(Arc::clone(&shared), seat));
        let mut told = async |batch: u64| -> Duration {
            let committed = Instant::now();
            board.publish_batch(BatchReport { batch: BatchId(batch), ..BatchReport::default() });
            loop {
                let frame = String::from_utf8(feed.next().await.unwrap().unwrap().to_vec()).unwrap();
                if frame.starts_with("event: batch") && frame.contains(&format!("\"batch\":{batch},")) {
                    return committed.elapsed();
                }
            }
        };
        // The first is in the picture that a viewer begins with.
        assert_eq!(told(1).await, Duration::ZERO);
        time::sleep(BREATH).await;
        assert_eq!(told(2).await, Duration::ZERO, "nothing is waited for when it was quiet");
        for batch in 3..30 {
            time::sleep(Duration::from_millis(7)).await;
            let waited = told(batch).await;
            assert!(waited <= BREATH, "{waited:?}");
        }
        handle.stop();
    }

    #[tokio::test(start_paused = true)]
    async fn a_view_is_sent_ten_times_a_second_at_most_and_ends_with_the_newest() {
        let board = Arc::new(Board::default());
        let (handle, stop) = StopHandle::new();
        let shared = shared(&board, stop);
        let viewers = Arc::clone(&shared.viewers);
        let seat = Arc::clone(&viewers).try_acquire_owned().unwrap();
        let reader = tokio::spawn(feed(shared, seat).collect::<Vec<_>>());
        for batch in 1..=2000 {
            show(&board, "fast", batch);
            if batch % 500 == 0 {
                show(&board, "slow", batch);
            }
            time::sleep(Duration::from_millis(1)).await;
        }
        time::sleep(BREATH).await;
        handle.stop();
        let frames: Vec<String> =
            reader.await.unwrap().into_iter().map(|f| String::from_utf8(f.unwrap().to_vec()).unwrap()).collect();
        let of = |name: &str| {
            let start = format!("event: view\ndata: {{\"name\":\"{name}\"");
            frames.iter().filter(|f| f.starts_with(&start)).cloned().collect::<Vec<_>>()
        };
        assert!((19..=22).contains(&of("fast").len()), "{} updates in two seconds", of("fast").len());
        assert!(of("fast").last().unwrap().contains("\"batch\":2000,"));
        assert_eq!(of("slow").len(), 4);
        assert_eq!(viewers.available_permits(), 1, "the seat is free again");
    }
}
