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
//! What is told after the picture that a viewer begins with comes in rounds, which
//! [`crate::rounds`] makes once for all viewers.
//!
//! Invariants: publishing never waits for a viewer. A viewer costs one
//! subscription and a queue of at most one entry a view, one a round that it
//! has not taken, and three frames; views are rendered only when the socket takes
//! them, so a slow viewer gets the newest rows and not old ones. A viewer that
//! lags further behind is sent everything afresh. Called by the router, and by [`crate::feed`].

use crate::{
    api::problem,
    rounds::{QUIET_FRAME, Round, batches, inputs, program},
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
use std::{
    collections::{BTreeSet, VecDeque},
    convert::Infallible,
    sync::Arc,
};
use tidemill_core::BatchId;
use tokio::sync::{
    OwnedSemaphorePermit,
    broadcast::{
        Receiver,
        error::{RecvError, TryRecvError},
    },
};

/// Viewers at once.
pub(crate) const VIEWERS: usize = 256;

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

/// The events of one viewer, from a fresh picture on. Each item is one event or several, whole.
pub(crate) fn feed(shared: Arc<Shared>, seat: OwnedSemaphorePermit) -> impl Stream<Item = Result<Bytes, Infallible>> {
    let mut feed =
        Feed { rounds: shared.rounds.follow(&shared), queue: VecDeque::new(), seen: None, _seat: seat, shared };
    feed.refresh();
    stream::unfold(feed, |mut feed| async move { Some((Ok(feed.next().await?), feed)) })
}

/// Something to send.
#[derive(Debug)]
enum Pending {
    Frame(Bytes),
    /// Rendered when the socket takes it.
    View(String),
}

/// One viewer.
#[derive(Debug)]
struct Feed {
    shared: Arc<Shared>,
    rounds: Receiver<Arc<Round>>,
    /// Refilled only when empty.
    queue: VecDeque<Pending>,
    /// The newest batch of the picture.
    seen: Option<BatchId>,
    _seat: OwnedSemaphorePermit,
}

impl Feed {
    /// What is to be sent next, or `None` at the end.
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
            let round = match self.rounds.recv().await {
                Ok(round) => round,
                Err(RecvError::Lagged(_)) => {
                    self.refresh();
                    continue;
                }
                Err(RecvError::Closed) => return None,
            };
            // Who keeps up gets what all the others get, in one piece.
            if self.rounds.is_empty()
                && !self.repeats(&round)
                && let Some(whole) = round.whole()
            {
                return Some(whole);
            }
            self.catch_up(round);
        }
    }

    /// Whether a part of a round was in the picture already.
    fn repeats(&self, round: &Round) -> bool {
        !round.afresh && round.reports.first().is_some_and(|first| self.seen.is_some_and(|seen| first.batch <= seen))
    }

    /// Queues this round and those after it: of what they replace, the newest alone.
    fn catch_up(&mut self, first: Arc<Round>) {
        let (mut program, mut inputs, mut told, mut views, mut quiet) =
            (None, None, Vec::new(), BTreeSet::new(), false);
        let mut next = Some(first);
        while let Some(round) = next {
            program = round.program.clone().or(program);
            inputs = round.inputs.clone().or(inputs);
            if round.afresh {
                told.clear();
                self.seen = None;
            }
            if self.repeats(&round) {
                let new: Vec<_> = round.reports.iter().filter(|r| Some(r.batch) > self.seen).cloned().collect();
                told.extend((!new.is_empty()).then(|| batches(false, &new)));
            } else {
                told.extend(round.batches.clone());
            }
            views.extend(round.views.iter().cloned());
            quiet |= round.quiet;
            next = match self.rounds.try_recv() {
                Ok(round) => Some(round),
                Err(TryRecvError::Empty | TryRecvError::Closed) => None,
                Err(TryRecvError::Lagged(_)) => return self.refresh(),
            };
        }
        self.queue.extend(program.into_iter().chain(inputs).chain(told).map(Pending::Frame));
        self.queue.extend(views.into_iter().map(Pending::View));
        if quiet && self.queue.is_empty() {
            self.queue.push_back(Pending::Frame(QUIET_FRAME));
        }
    }

    /// Queues the whole picture. Later rounds are only those from now on.
    fn refresh(&mut self) {
        self.rounds = self.rounds.resubscribe();
        let reports = self.shared.board.reports();
        self.seen = reports.last().map(|report| report.batch);
        self.queue.clear();
        let frames = [program(&self.shared).1, inputs(&self.shared), batches(true, &reports)];
        self.queue.extend(frames.map(Pending::Frame));
        self.queue.extend(self.shared.board.view_names().into_iter().map(Pending::View));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        rounds::{BEHIND, BREATH, Rounds},
        rows::Rendered,
        watch::Watch,
    };
    use arrow_array::{Int64Array, RecordBatch};
    use futures::{FutureExt, StreamExt};
    use tidemill_core::{BatchReport, Board, Duration, StopHandle, Timestamp, ViewSnapshot};
    use tokio::time::{self, Instant};

    fn show(board: &Board, name: &str, batch: u64) {
        let rows = RecordBatch::try_from_iter([("n", Arc::new(Int64Array::from(vec![1])) as _)]).unwrap();
        board.publish_view(ViewSnapshot { name: name.to_string(), batch: BatchId(batch), time: Timestamp(0), rows });
    }

    fn shared(board: &Arc<Board>, stop: tidemill_core::Stop) -> Arc<Shared> {
        Arc::new(Shared {
            watch: Watch::new(board),
            rendered: Rendered::default(),
            rounds: Rounds::default(),
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
                let piece = String::from_utf8(feed.next().await.unwrap().unwrap().to_vec()).unwrap();
                if piece.contains(&format!("\"reports\":[{{\"batch\":{batch},")) {
                    return committed.elapsed();
                }
            }
        };
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
        let all: Vec<u8> = reader.await.unwrap().into_iter().flat_map(|piece| piece.unwrap()).collect();
        let all = String::from_utf8(all).unwrap();
        let frames: Vec<&str> = all.split_terminator("\n\n").collect();
        let of = |name: &str| {
            let start = format!("event: view\ndata: {{\"name\":\"{name}\"");
            frames.iter().filter(|f| f.starts_with(&start)).copied().collect::<Vec<_>>()
        };
        assert!((19..=22).contains(&of("fast").len()), "{} updates in two seconds", of("fast").len());
        assert!(of("fast").last().unwrap().contains("\"batch\":2000,"));
        assert_eq!(of("slow").len(), 4);
        assert_eq!(viewers.available_permits(), 1, "the seat is free again");
    }

    fn committed(board: &Board, batch: u64) {
        show(board, "top", batch);
        board.publish_batch(BatchReport { batch: BatchId(batch), ..BatchReport::default() });
    }

    /// All that can be had now, in the pieces that were sent.
    fn pieces(feed: &mut (impl Stream<Item = Result<Bytes, Infallible>> + Unpin)) -> Vec<Bytes> {
        std::iter::from_fn(|| feed.next().now_or_never().flatten()).map(|piece| piece.unwrap()).collect()
    }

    /// Batches and rows of views that were told, as `fresh 1 2`, `3` and `top 3`.
    fn told(pieces: &[Bytes]) -> Vec<String> {
        let text = pieces.iter().map(|piece| std::str::from_utf8(piece).unwrap()).collect::<String>();
        let number = |value: &serde_json::Value| value["batch"].to_string();
        text.split_terminator("\n\n")
            .filter_map(|frame| {
                let (event, data) = frame.strip_prefix("event: ")?.split_once("\ndata: ")?;
                let data: serde_json::Value = serde_json::from_str(data).unwrap();
                match event {
                    "batch" => {
                        let numbers = data["reports"].as_array().unwrap().iter().map(number);
                        let fresh = (data["fresh"] == true).then(|| "fresh".to_string());
                        Some(fresh.into_iter().chain(numbers).collect::<Vec<_>>().join(" "))
                    }
                    "view" => Some(format!("{} {}", data["name"].as_str().unwrap(), number(&data))),
                    _ => None,
                }
            })
            .collect()
    }

    #[tokio::test(start_paused = true)]
    async fn a_round_is_made_once_and_who_is_behind_gets_batches_once_and_the_newest_rows() {
        let board = Arc::new(Board::default());
        let (handle, stop) = StopHandle::new();
        let mut shared = shared(&board, stop);
        Arc::get_mut(&mut shared).unwrap().viewers = Arc::new(tokio::sync::Semaphore::new(9));
        let open = || Box::pin(feed(Arc::clone(&shared), seat(&shared).unwrap()));
        committed(&board, 1);
        let (mut first, mut second, mut behind) = (open(), open(), open());
        for feed in [&mut first, &mut second, &mut behind] {
            assert_eq!(told(&pieces(feed)), ["fresh 1", "top 1"]);
        }
        time::sleep(BREATH * 2).await;
        committed(&board, 2);
        time::sleep(BREATH * 2).await;
        let (one, other) = (pieces(&mut first), pieces(&mut second));
        assert_eq!(told(&one), ["2", "top 2"]);
        assert_eq!((one.len(), one[0].as_ptr()), (1, other[0].as_ptr()), "in one piece, the same for both");

        // Who comes between a batch and its round has it in the picture alone.
        committed(&board, 3);
        let mut between = open();
        committed(&board, 4);
        time::sleep(BREATH * 2).await;
        assert_eq!(told(&pieces(&mut between)), ["fresh 1 2 3", "top 4", "4", "top 4"]);
        for batch in 5..10 {
            committed(&board, batch);
            time::sleep(BREATH * 2).await;
        }
        assert_eq!(told(&pieces(&mut behind)), ["2", "3 4", "5", "6", "7", "8", "9", "top 9"]);
        assert_eq!(told(&pieces(&mut between)), ["5", "6", "7", "8", "9", "top 9"]);

        // Too far behind: afresh.
        for batch in 10..=10 + 2 * BEHIND as u64 {
            committed(&board, batch);
            time::sleep(BREATH * 2).await;
        }
        let all = told(&pieces(&mut behind));
        assert!(all[0].starts_with("fresh 1 2 3 ") && all[0].ends_with(" 41 42"), "{all:?}");
        assert_eq!(all[1..], ["top 42"]);

        // The last who leaves ends the rounds, and who comes then begins with others.
        drop((first, second, behind, between));
        time::sleep(Duration::from_secs(2)).await;
        assert_eq!(Arc::strong_count(&shared), 1, "nobody makes rounds for nobody");
        let mut late = open();
        assert_eq!(pieces(&mut late).len(), 4);
        committed(&board, 43);
        time::sleep(BREATH * 2).await;
        assert_eq!(told(&pieces(&mut late)), ["43", "top 43"]);
        board.update_program(|program| program.phase = tidemill_core::Phase::Running);
        handle.stop();
        let rest: Vec<_> = late.map(|piece| piece.unwrap()).collect().await;
        assert!(rest.last().unwrap().starts_with(b"event: phase"), "how it ended is told: {rest:?}");
    }
}
