//! Questions of the notebook: asked, followed, stopped.
//!
//! ```text
//! POST /api/v1/query {sql, at_batch?, params?, limit?, id?}   waits for the rows
//! GET  /api/v1/query/ID                                       how far it is
//! POST /api/v1/query/ID/cancel                                ends it
//! ```
//!
//! Invariant: at most [`ABREAST`] are computed at once, none for longer than the
//! server's bound, and none for an asker who has gone; an answer is bounded by
//! [`ROWS`] and [`BYTES`] and says when it is cut. What computes is whatever the
//! server was given as [`Answers`]. Called by the router.

use crate::{
    api::{self, Named, Nothing, problem},
    rows,
    server::Shared,
};
use axum::{
    Json,
    body::Bytes,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, VecDeque},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};
use tidemill_core::{Answer, Answers, BatchId, Blame, Duration, Error, Parameter, Progress, Question, Timestamp};
use tokio::{
    sync::{Notify, Semaphore},
    time::{self, Instant},
};

/// Questions that are computed at once; one more is answered with 429.
const ABREAST: usize = 4;
/// How long one may take, unless the server says other.
const LONGEST: Duration = Duration::from_secs(120);
/// Rows of an answer at most, and unless the asker says other.
pub(crate) const ROWS: usize = 10_000;
const USUAL: usize = 1000;
/// Bytes of an answer after which no further row is begun.
const BYTES: usize = 4 << 20;
/// Questions that are remembered.
const REMEMBERED: usize = 64;
/// Characters of an asker's own id.
const ID: usize = 64;
/// The same, for those who read the description.
pub(crate) const IDS: &str = "^[A-Za-z0-9_-]{1,64}$";

/// A question as it comes.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Asked {
    sql: String,
    #[serde(default)]
    at_batch: Option<u64>,
    #[serde(default)]
    params: BTreeMap<String, Parameter>,
    #[serde(default)]
    limit: Option<usize>,
    /// By which it can be followed and stopped; the server's own where there is none.
    #[serde(default)]
    id: Option<String>,
}

/// How far a question is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Stage {
    Running,
    Done,
    Failed,
    Stopped,
}

/// A question that was asked.
#[derive(Debug)]
struct Entry {
    id: String,
    progress: Arc<Progress>,
    cancelled: Notify,
    began: Instant,
    /// How it stands, and how long it took when it has ended.
    stage: Mutex<(Stage, Option<Duration>)>,
}

impl Entry {
    fn end(&self, stage: Stage) {
        let mut now = self.stage.lock();
        if now.0 == Stage::Running {
            *now = (stage, Some(self.began.elapsed()));
        }
    }

    fn told(&self) -> Followed {
        let (stage, took) = *self.stage.lock();
        let took = took.unwrap_or_else(|| self.began.elapsed());
        Followed { id: self.id.clone(), state: stage, read: self.progress.read(), elapsed_ms: millis(took) }
    }
}

/// What the one who follows a question is told.
#[derive(Debug, Serialize)]
struct Followed {
    id: String,
    state: Stage,
    read: u64,
    elapsed_ms: u64,
}

fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

/// Ends a question whose asker has gone.
struct Leaving(Arc<Entry>);

impl Drop for Leaving {
    fn drop(&mut self) {
        self.0.progress.stop();
        self.0.end(Stage::Stopped);
    }
}

/// Where questions come in.
#[derive(Debug)]
pub(crate) struct Desk {
    answers: Option<Arc<dyn Answers>>,
    longest: Duration,
    slots: Semaphore,
    /// The newest last.
    asked: Mutex<VecDeque<Arc<Entry>>>,
    next: AtomicU64,
}

impl Desk {
    /// Of a server that was given who answers, and how long that may take.
    pub(crate) fn new(answers: Option<Arc<dyn Answers>>, longest: Option<Duration>) -> Self {
        let longest = longest.unwrap_or(LONGEST);
        Self { answers, longest, slots: Semaphore::new(ABREAST), asked: Mutex::default(), next: AtomicU64::new(1) }
    }

    fn find(&self, id: &str) -> Option<Arc<Entry>> {
        self.asked.lock().iter().find(|entry| entry.id == id).cloned()
    }

    /// A place in the list, unless the id is in use.
    fn enter(&self, id: Option<String>) -> Option<Arc<Entry>> {
        let id = id.unwrap_or_else(|| format!("q{}", self.next.fetch_add(1, Ordering::Relaxed)));
        let mut asked = self.asked.lock();
        if asked.iter().any(|entry| entry.id == id) {
            return None;
        }
        if asked.len() >= REMEMBERED {
            // Those that run are few, so one of the others is there.
            let ended = asked.iter().position(|entry| entry.stage.lock().0 != Stage::Running);
            asked.remove(ended.unwrap_or(0));
        }
        let stage = Mutex::new((Stage::Running, None));
        let entry =
            Arc::new(Entry { id, progress: Arc::default(), cancelled: Notify::new(), began: Instant::now(), stage });
        asked.push_back(Arc::clone(&entry));
        Some(entry)
    }
}

/// Why there are no rows.
enum Without {
    Failed(Error),
    Stopped,
    Late(Duration),
    Closing,
}

/// `POST /api/v1/query`
pub(crate) async fn query(State(shared): State<Arc<Shared>>, body: Bytes) -> Response {
    let asked: Asked = match api::taken(&body) {
        Ok(asked) => asked,
        Err(refusal) => return *refusal,
    };
    let Some(answers) = &shared.desk.answers else {
        return problem(StatusCode::NOT_FOUND, "there is no program behind this page that could be asked");
    };
    let fits = |id: &String| {
        (1..=ID).contains(&id.len()) && id.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
    };
    if !asked.id.as_ref().is_none_or(fits) {
        let why = "`id` has 1 to 64 characters of A-Z, a-z, 0-9, `-` and `_`";
        return problem(StatusCode::BAD_REQUEST, why);
    }
    let rows = asked.limit.unwrap_or(USUAL);
    if !(1..=ROWS).contains(&rows) {
        return problem(StatusCode::BAD_REQUEST, &format!("`limit` is a number of rows from 1 to {ROWS}"));
    }
    let Ok(_slot) = shared.desk.slots.try_acquire() else {
        let why = format!("{ABREAST} queries run already: wait until one has ended, or cancel it");
        return problem(StatusCode::TOO_MANY_REQUESTS, &why);
    };
    let Some(entry) = shared.desk.enter(asked.id) else {
        return problem(StatusCode::CONFLICT, "a query of this id was asked already: ids are used once");
    };
    let _leaving = Leaving(Arc::clone(&entry));
    let at = asked.at_batch.map(BatchId);
    let views = at.map(|batch| views_at(&shared, batch)).unwrap_or_default();
    let question = Question { sql: asked.sql, parameters: asked.params, at, views, rows };
    let answer = tokio::select! {
        answer = answers.answer(question, Arc::clone(&entry.progress)) => answer.map_err(Without::Failed),
        () = entry.cancelled.notified() => Err(Without::Stopped),
        () = time::sleep(shared.desk.longest) => Err(Without::Late(shared.desk.longest)),
        () = shared.stop.stopped() => Err(Without::Closing),
    };
    match answer {
        Ok(answer) => {
            entry.end(Stage::Done);
            told(&shared, &entry, at, &answer)
        }
        Err(without) => refused(&entry, without),
    }
}

/// What the views showed after a batch, as far as it is remembered.
fn views_at(shared: &Shared, batch: BatchId) -> BTreeMap<String, arrow_array::RecordBatch> {
    let step = |name: String| shared.watch.past.at(&name, batch).map(|step| (name, step.rows.clone()));
    shared.board.view_names().into_iter().filter_map(step).collect()
}

/// Rows in the form of a view's, so that charts take both.
fn told(shared: &Shared, entry: &Entry, at: Option<BatchId>, answer: &Answer) -> Response {
    let last = shared.board.reports().last().map(|report| (report.batch, report.time)).unwrap_or_default();
    let (batch, time) = match at {
        // What is kept of the past may go further back than the board.
        Some(batch) => (batch, shared.board.report(batch).map_or(Timestamp(0), |report| report.time)),
        None => last,
    };
    let Followed { id, read, elapsed_ms, .. } = entry.told();
    let mut out =
        format!("{{\"id\":\"{id}\",\"batch\":{batch},\"time\":{},\"read\":{read},\"elapsed_ms\":{elapsed_ms},", time.0);
    rows::answer(&mut out, answer, BYTES);
    out.push('}');
    ([(header::CONTENT_TYPE, "application/json")], out).into_response()
}

fn refused(entry: &Entry, without: Without) -> Response {
    // Whoever cancels it says so first. That its work was told to end says nothing: that is so after each question.
    let stopped = matches!(without, Without::Stopped | Without::Closing) || entry.stage.lock().0 == Stage::Stopped;
    entry.end(if stopped { Stage::Stopped } else { Stage::Failed });
    let (status, text) = match without {
        Without::Failed(error) => {
            let status = match error.blame() {
                _ if stopped => StatusCode::CONFLICT,
                Blame::User => StatusCode::BAD_REQUEST,
                Blame::External | Blame::Internal => StatusCode::INTERNAL_SERVER_ERROR,
            };
            (status, error.chain())
        }
        Without::Stopped => (StatusCode::CONFLICT, "the query was stopped".to_string()),
        Without::Late(longest) => (
            StatusCode::GATEWAY_TIMEOUT,
            format!("the query took over {} s and was stopped: ask for less, with WHERE or LIMIT", longest.as_secs()),
        ),
        Without::Closing => (StatusCode::SERVICE_UNAVAILABLE, "the program ends".to_string()),
    };
    let (place, text) = placed(&text);
    let (line, column) = place.unzip();
    let told = serde_json::json!({ "error": text, "line": line, "column": column, "id": entry.id });
    (status, Json(told)).into_response()
}

/// The place with which an error begins, and the rest.
fn placed(text: &str) -> (Option<(u64, u64)>, &str) {
    let found = || {
        let (line, rest) = text.strip_prefix("line ")?.split_once(", column ")?;
        let (column, rest) = rest.split_once(": ")?;
        Some(((line.parse().ok()?, column.parse().ok()?), rest))
    };
    match found() {
        Some((place, rest)) => (Some(place), rest),
        None => (None, text),
    }
}

fn unknown() -> Response {
    problem(StatusCode::NOT_FOUND, "no query of this id is remembered")
}

/// `GET /api/v1/query/{id}`
pub(crate) async fn follow(State(shared): State<Arc<Shared>>, Named(id): Named) -> Response {
    shared.desk.find(&id).map_or_else(unknown, |entry| Json(entry.told()).into_response())
}

/// `POST /api/v1/query/{id}/cancel`
pub(crate) async fn cancel(State(shared): State<Arc<Shared>>, Named(id): Named, body: Bytes) -> Response {
    if let Err(refusal) = api::taken::<Nothing>(&body) {
        return *refusal;
    }
    let Some(entry) = shared.desk.find(&id) else { return unknown() };
    entry.progress.stop();
    entry.end(Stage::Stopped);
    entry.cancelled.notify_one();
    Json(entry.told()).into_response()
}

/// `GET /api/v1/names`
pub(crate) async fn names(State(shared): State<Arc<Shared>>) -> Response {
    let Some(answers) = shared.desk.answers.clone() else {
        return Json(tidemill_core::Names::default()).into_response();
    };
    // The names of states are read from the disk.
    match tokio::task::spawn_blocking(move || answers.names()).await {
        Ok(Ok(names)) => Json(names).into_response(),
        Ok(Err(error)) => problem(StatusCode::INTERNAL_SERVER_ERROR, &error.chain()),
        Err(_) => problem(StatusCode::INTERNAL_SERVER_ERROR, "the names could not be read"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_gives_its_place() {
        assert_eq!(placed("line 2, column 8: there is no"), (Some((2, 8)), "there is no"));
        for text in ["line two, column 8: x", "the line 2, column 8: x", "", "line 2: x"] {
            assert_eq!(placed(text), (None, text));
        }
    }

    #[test]
    fn the_list_is_bounded_and_ids_are_used_once() {
        let desk = Desk::new(None, None);
        let first = desk.enter(Some("mine".into())).unwrap();
        assert!(desk.enter(Some("mine".into())).is_none());
        for _ in 0..200 {
            desk.enter(None).unwrap().end(Stage::Done);
        }
        assert_eq!(desk.asked.lock().len(), REMEMBERED);
        assert_eq!(desk.find("mine").unwrap().told().state, Stage::Running, "one that runs is not forgotten");
        first.end(Stage::Failed);
        first.end(Stage::Done);
        assert_eq!(desk.find("mine").unwrap().told().state, Stage::Failed);
    }
}
