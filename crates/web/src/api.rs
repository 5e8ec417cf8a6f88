//! The board as JSON, one answer a question.
//!
//! Invariant: every answer is `application/json`, errors included
//! (`{"error": "…"}`), and bounded: the board bounds reports, [`crate::rows`]
//! bounds rows. Called by the router.

use crate::{
    gate::not_allowed,
    health::{Readiness, readiness},
    role::Caller,
    rows::View,
    server::Shared,
};
use axum::{
    Extension, Json,
    extract::{FromRequestParts, Path, State},
    http::{HeaderValue, Method, StatusCode, Uri, header, request::Parts},
    response::{IntoResponse, Response},
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::{
    fmt,
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};
use tidemill_core::{BatchDetail, BatchId, BatchReport, Graph, InputReport, Program, Timestamp};

/// Bytes of a view's history that one answer holds, beyond the first state.
const HISTORY: usize = 4 << 20;

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
    /// How it fares, as `/readyz`.
    health: Readiness,
}

impl Summary {
    /// Of the board as it is now.
    pub(crate) fn of(shared: &Shared) -> Self {
        let board = &shared.board;
        let health = readiness(board, &shared.watch);
        Self { program: board.program(), now: now(), views: board.view_names(), health }
    }

    /// Whether a viewer who saw `earlier` should see this one.
    pub(crate) fn differs(&self, earlier: &Self) -> bool {
        let (a, b) = (&self.program, &earlier.program);
        (a.records_in, a.refused, a.late, a.batches, a.phase, a.started)
            != (b.records_in, b.refused, b.late, b.batches, b.phase, b.started)
            || a.name != b.name
            || a.error != b.error
            || self.views != earlier.views
            || self.health.state != earlier.health.state
            || (!self.health.ready && self.health != earlier.health)
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
    Json(Summary::of(&shared))
}

/// `/api/views`
pub(crate) async fn views(State(shared): State<Arc<Shared>>) -> Response {
    let heads = shared.board.view_names().into_iter().filter_map(|name| {
        let view = shared.board.view(&name)?;
        Some(ViewHead { name, batch: view.batch, time: view.time, rows: view.rows.num_rows() })
    });
    Json(heads.collect::<Vec<_>>()).into_response()
}

/// `/api/views/{name}`, as it is or as it was after `?batch=`.
pub(crate) async fn view(State(shared): State<Arc<Shared>>, Named(name): Named, asked: Uri) -> Response {
    let parts = asked.query().into_iter().flat_map(|query| query.split('&'));
    if let Some(batch) = parts.filter_map(|part| part.strip_prefix("batch=")).next() {
        let Ok(batch) = batch.parse() else {
            return problem(StatusCode::BAD_REQUEST, "`batch` is the number of a batch, as in ?batch=17");
        };
        return match shared.watch.past.at(&name, BatchId(batch)) {
            Some(step) => json(View::of(&step).json()),
            None => problem(StatusCode::NOT_FOUND, "what the view showed after this batch is no longer remembered"),
        };
    }
    match shared.rendered.view(&shared.board, &name) {
        Some(view) => json(view.json()),
        None => {
            problem(StatusCode::NOT_FOUND, "no view of this name has rows yet; /api/v1/views lists those that have")
        }
    }
}

/// `/api/v1/views/{name}/history`: what it showed lately, the oldest first; as many of the newest as fit.
pub(crate) async fn history(State(shared): State<Arc<Shared>>, Named(name): Named) -> Response {
    let steps = shared.watch.past.of(&name);
    if steps.is_empty() {
        return problem(
            StatusCode::NOT_FOUND,
            "no view of this name has rows yet; /api/v1/views lists those that have",
        );
    }
    let (mut newest, mut bytes) = (Vec::new(), 0);
    for step in steps.iter().rev() {
        let rendered = View::of(step).json();
        bytes += rendered.len();
        if bytes > HISTORY && !newest.is_empty() {
            break;
        }
        newest.push(rendered);
    }
    let mut text = format!("{{\"name\":{},\"snapshots\":[", serde_json::Value::from(name)).into_bytes();
    for (i, step) in newest.iter().rev().enumerate() {
        if i > 0 {
            text.push(b',');
        }
        text.extend_from_slice(step);
    }
    text.extend_from_slice(b"]}");
    json(text)
}

/// `/api/batches`
pub(crate) async fn batches(State(shared): State<Arc<Shared>>) -> Json<Vec<Arc<BatchReport>>> {
    Json(shared.board.reports())
}

/// A batch with all that is known of it.
#[derive(Debug, Serialize)]
struct Batch<'a> {
    #[serde(flatten)]
    report: &'a BatchReport,
    detail: &'a BatchDetail,
}

/// `/api/v1/batches/{batch}`
pub(crate) async fn batch(State(shared): State<Arc<Shared>>, Named(batch): Named) -> Response {
    let found = batch.parse().ok().and_then(|batch| shared.board.report(BatchId(batch)));
    match found {
        Some(report) => Json(Batch { report: &report, detail: &report.detail }).into_response(),
        None => problem(StatusCode::NOT_FOUND, "no such batch is remembered; /api/v1/batches lists those that are"),
    }
}

/// `/api/v1/graph`
pub(crate) async fn graph(State(shared): State<Arc<Shared>>) -> Json<Arc<Graph>> {
    Json(shared.board.graph())
}

/// `/api/v1/health`: as `/readyz`, and 200 whatever it says.
pub(crate) async fn health(State(shared): State<Arc<Shared>>) -> Json<Readiness> {
    Json(readiness(&shared.board, &shared.watch))
}

/// `/api/inputs`
pub(crate) async fn inputs(State(shared): State<Arc<Shared>>) -> Json<Vec<InputReport>> {
    Json(shared.board.inputs())
}

fn json(text: impl Into<axum::body::Body>) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], text.into()).into_response()
}

/// `/api/v1/caller`: who asks, for pages that offer only what the caller may do.
pub(crate) async fn caller(Extension(caller): Extension<Caller>) -> Response {
    Json(serde_json::json!({ "name": &*caller.name, "role": caller.role.name() })).into_response()
}

/// Any other path.
pub(crate) async fn nothing_here() -> Response {
    problem(StatusCode::NOT_FOUND, "nothing is served here; the page is at /")
}

/// Any other path, by any method.
pub(crate) async fn elsewhere(method: Method) -> Response {
    if method == Method::GET { nothing_here().await } else { not_allowed(&HeaderValue::from_static("GET")) }
}

/// The part of a path that names something.
pub(crate) struct Named(pub(crate) String);

impl<S: Send + Sync> FromRequestParts<S> for Named {
    type Rejection = Response;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Response> {
        match Path::from_request_parts(parts, state).await {
            Ok(Path(name)) => Ok(Self(name)),
            Err(_) => Err(problem(StatusCode::BAD_REQUEST, "the path names something that is no text")),
        }
    }
}

/// What a request says that has nothing to say.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Nothing {}

/// What a request's body says, or the answer that tells what is wrong with it.
pub(crate) fn taken<T: DeserializeOwned>(body: &[u8]) -> Result<T, Box<Response>> {
    let wrong = |why: &dyn fmt::Display| {
        Box::new(problem(StatusCode::BAD_REQUEST, &format!("the body is not what is taken here: {why}")))
    };
    // A list would be read as the fields in their order, which nobody has written down.
    if body.trim_ascii_start().first() != Some(&b'{') {
        return Err(wrong(&"it is a JSON object, as in {}"));
    }
    serde_json::from_slice(body).map_err(|e| wrong(&e))
}

/// An error as JSON.
pub(crate) fn problem(status: StatusCode, why: &str) -> Response {
    (status, Json(serde_json::json!({ "error": why }))).into_response()
}

/// The wall clock, for people only: nothing is decided by it.
pub(crate) fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp(i64::try_from(since.as_micros()).unwrap_or(i64::MAX))
}
