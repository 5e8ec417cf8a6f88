//! Whether the process lives and whether the program works.
//!
//! Invariant: a program that is starting, stopping, stopped, failed or
//! stalled, that waits for a full disk or a service, or that has lost an input
//! for good, never reads ready, and the answer says which. Called by the router.

use crate::{role::Caller, server::Shared, watch::Watch};
use axum::{
    Extension, Json,
    extract::State,
    http::StatusCode,
    response::{IntoResponse, Response},
};
use serde::Serialize;
use std::sync::Arc;
use tidemill_core::{Board, Phase};

/// The answer of `/readyz`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Readiness {
    pub(crate) ready: bool,
    pub(crate) phase: Phase,
    /// In a word: a phase, or of one that runs and is not ready `stalled` or `waiting`.
    pub(crate) state: &'static str,
    /// For people.
    pub(crate) reason: String,
}

/// `/livez`: that it answers is the answer.
pub(crate) async fn livez() -> Response {
    Json(serde_json::json!({ "live": true })).into_response()
}

/// `/readyz`: 200 when the program works, 503 with the reason when not. The
/// reason may name files and servers, so it is for those who may look.
pub(crate) async fn readyz(State(shared): State<Arc<Shared>>, caller: Option<Extension<Caller>>) -> Response {
    let mut readiness = readiness(&shared.board, &shared.watch);
    if caller.is_none() {
        readiness.reason = "the reason is told to those who send a token".to_string();
    }
    let status = if readiness.ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(readiness)).into_response()
}

/// Judges by the board and by how long it has been silent.
pub(crate) fn readiness(board: &Board, watch: &Watch) -> Readiness {
    let program = board.program();
    let doing = |what: &str| match &program.error {
        Some(error) => format!("{what}, and waits for something outside meanwhile: {error}"),
        None => what.to_string(),
    };
    let (ready, state, reason) = match program.phase {
        Phase::Starting => {
            (false, "starting", doing("the program recovers its state and opens its inputs and outputs"))
        }
        Phase::Stopping => (false, "stopping", doing("the program finishes its last batch")),
        Phase::Stopped => (false, "stopped", "the program has ended as asked".to_string()),
        Phase::Failed => {
            let why = program.error.as_deref().unwrap_or("it left no reason");
            (false, "failed", format!("the program has failed: {why}"))
        }
        Phase::Running => {
            let (silence, limit) = (watch.silence(), watch.stall_limit(board));
            if silence > limit {
                let (silence, limit) = (silence.as_secs(), limit.as_secs());
                let why = format!("the program is stalled: no batch for {silence} s, and {limit} s are allowed");
                (false, "stalled", why)
            } else if let Some(error) = &program.error {
                let why = format!("the program waits for something outside and tries again: {error}");
                (false, "waiting", why)
            } else if let Some((stream, why)) = board.inputs().into_iter().find_map(|i| Some((i.stream, i.failed?))) {
                let what = "ended by an error and receives nothing until the program is started again";
                (false, "waiting", format!("an input of stream `{stream}` {what}: {why}"))
            } else {
                (true, "running", format!("running; {} batches committed", program.batches))
            }
        }
    };
    Readiness { ready, phase: program.phase, state, reason }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tidemill_core::{BatchId, BatchReport, Duration, StopHandle, Timestamp};

    fn batch(id: u64, second: i64) -> BatchReport {
        BatchReport { batch: BatchId(id), time: Timestamp(second * 1_000_000), ..BatchReport::default() }
    }

    #[tokio::test(start_paused = true)]
    async fn a_program_is_ready_only_while_it_runs_and_commits() {
        let board = Arc::new(Board::default());
        let watch = Arc::new(Watch::new(&board));
        let (handle, stop) = StopHandle::new();
        let following = tokio::spawn({
            let (board, watch) = (Arc::clone(&board), Arc::clone(&watch));
            async move { watch.follow(&board, &stop).await }
        });
        let ready = || readiness(&board, &watch).ready;
        assert!(!ready(), "starting");

        board.update_program(|p| p.phase = Phase::Running);
        tokio::time::advance(Duration::from_secs(29)).await;
        assert!(ready());
        board.publish_batch(batch(0, 0));
        tokio::task::yield_now().await;
        tokio::time::advance(Duration::from_secs(29)).await;
        assert!(ready(), "the batch was progress: {:?}", readiness(&board, &watch));
        tokio::time::advance(Duration::from_secs(2)).await;
        assert!(!ready(), "stalled");
        assert!(readiness(&board, &watch).reason.contains("no batch for 31 s"), "{:?}", readiness(&board, &watch));

        // A program that waits for its input says so, and has a right to any silence.
        for _ in 0..10 {
            tokio::time::advance(Duration::from_secs(20)).await;
            board.publish_idle();
            tokio::task::yield_now().await;
            assert!(ready(), "{:?}", readiness(&board, &watch));
        }
        // Then input came, and the batch over it hangs.
        tokio::time::advance(Duration::from_secs(31)).await;
        assert!(!ready(), "a batch that should have run and did not");

        // A program with a batch a minute has a right to longer silences.
        for id in 1..5 {
            board.publish_batch(batch(id, i64::try_from(id).unwrap() * 60));
        }
        tokio::task::yield_now().await;
        tokio::time::advance(Duration::from_secs(170)).await;
        assert!(ready());
        tokio::time::advance(Duration::from_secs(20)).await;
        assert!(!ready());

        board.publish_batch(batch(9, 600));
        tokio::task::yield_now().await;
        assert!(ready());
        board.update_program(|p| p.error = Some("no space left".to_string()));
        assert!(!ready(), "it can't keep what it receives, as long as it says so");
        assert!(readiness(&board, &watch).reason.contains("no space left"));
        board.update_program(|p| p.error = None);
        assert!(ready());
        board.update_input("posts", 1, |input| input.state = "failed: a try, of several".to_string());
        assert!(ready(), "what will be tried again has not ended");
        board.update_input("posts", 1, |input| input.failed = Some("the file is gone".to_string()));
        let told = readiness(&board, &watch);
        assert!(!told.ready && told.reason.contains("`posts`") && told.reason.contains("the file is gone"), "{told:?}");
        board.update_input("posts", 1, |input| input.failed = None);
        for phase in [Phase::Stopping, Phase::Stopped, Phase::Failed] {
            board.update_program(|p| p.phase = phase);
            assert!(!ready(), "{phase:?}");
        }
        board.update_program(|p| p.error = Some("the disk is full".to_string()));
        assert!(readiness(&board, &watch).reason.contains("the disk is full"));
        handle.stop();
        following.await.unwrap();
    }
}
