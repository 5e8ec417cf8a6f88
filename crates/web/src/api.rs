//! The board as JSON, one answer a question.
//!
//! Invariant: every answer is `application/json`, errors included
//! (`{"error": "…"}`), and bounded: the board bounds reports, [`crate::rows`]
//! bounds rows. Called by the router.

use crate::server::Shared;
use axum::{
    Json,
    extract::{Path, State},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::Serialize;
use std::{
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};
use tidemill_core::{BatchId, BatchReport, Board, InputReport, Program, Timestamp};

/// The program with what a page needs to draw it.
#[derive(Debug, Serialize)]
pub(crate) struct Summary {
    #[serde(flatten)]
    program: Program,
    /// The server's time in microseconds since the epoch, for an uptime that
    /// does not trust the viewer's clock.
    now: Timestamp,
    /// All views that have rows, so that a page drops those of an earlier program.
    views: Vec<String>,
}

impl Summary {
    /// Of the board as it is now.
    pub(crate) fn of(board: &Board) -> Self {
        Self { program: board.program(), now: now(), views: board.view_names() }
    }

    /// Whether a viewer who saw `earlier` should see this one.
    pub(crate) fn differs(&self, earlier: &Self) -> bool {
        let (a, b) = (&self.program, &earlier.program);
        (a.records_in, a.refused, a.late, a.batches, a.phase, a.started)
            != (b.records_in, b.refused, b.late, b.batches, b.phase, b.started)
            || a.name != b.name
            || a.error != b.error
            || self.views != earlier.views
    }
}

/// A view without its rows.
#[derive(Debug, Serialize)]
struct ViewHead {
    name: String,
    batch: BatchId,
    time: Timestamp,
    rows: usize,
}

/// `/api/program`
pub(crate) async fn program(State(shared): State<Arc<Shared>>) -> Json<Summary> {
    Json(Summary::of(&shared.board))
}

/// `/api/views`
pub(crate) async fn views(State(shared): State<Arc<Shared>>) -> Response {
    let heads = shared.board.view_names().into_iter().filter_map(|name| {
        let view = shared.board.view(&name)?;
        Some(ViewHead { name, batch: view.batch, time: view.time, rows: view.rows.num_rows() })
    });
    Json(heads.collect::<Vec<_>>()).into_response()
}

/// `/api/views/{name}`
pub(crate) async fn view(State(shared): State<Arc<Shared>>, Path(name): Path<String>) -> Response {
    match shared.rendered.view(&shared.board, &name) {
        Some(view) => ([(header::CONTENT_TYPE, "application/json")], view.json()).into_response(),
        None => problem(StatusCode::NOT_FOUND, "no view of this name has rows yet; /api/views lists those that have"),
    }
}

/// `/api/batches`
pub(crate) async fn batches(State(shared): State<Arc<Shared>>) -> Json<Vec<Arc<BatchReport>>> {
    Json(shared.board.reports())
}

/// `/api/inputs`
pub(crate) async fn inputs(State(shared): State<Arc<Shared>>) -> Json<Vec<InputReport>> {
    Json(shared.board.inputs())
}

/// Any other path.
pub(crate) async fn nothing_here() -> Response {
    problem(StatusCode::NOT_FOUND, "nothing is served here; the page is at /")
}

/// An error as JSON.
pub(crate) fn problem(status: StatusCode, why: &str) -> Response {
    (status, Json(serde_json::json!({ "error": why }))).into_response()
}

/// The wall clock, for people only: nothing is decided by it.
fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp(i64::try_from(since.as_micros()).unwrap_or(i64::MAX))
}
