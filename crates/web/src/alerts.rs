//! Alerts: how they stand, and what may be asked of them.
//!
//! A request for silence or for a test is handed to the board; the next batch
//! of the program takes it, keeps it with its state, and tells of it like of
//! any change. Invariant: an answer of 200 says that it waits for that batch,
//! and not that it has happened. Called by the router.

use crate::{
    api::{Named, Nothing, now, problem, taken},
    role::Caller,
    server::Shared,
};
use axum::{
    Extension, Json,
    body::Bytes,
    extract::State,
    http::StatusCode,
    response::{IntoResponse, Response},
};
use serde::Deserialize;
use std::sync::Arc;
use tidemill_core::{AlertAsk, AlertReport, Duration, Silence};

/// A silence is not longer than this: what nobody wants to hear of for a year is better taken out of the program.
pub(crate) const LONGEST: u64 = 366 * 24 * 3600;
/// Signs of a silence's reason at most.
const WHY: usize = 500;

/// What is asked of silence.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Quiet {
    /// The key as text; all of them without it.
    key: Option<String>,
    /// For how long from now; 0 lifts a silence.
    seconds: u64,
    /// For those who wonder.
    #[serde(default)]
    why: String,
}

/// `/api/v1/alerts`
pub(crate) async fn alerts(State(shared): State<Arc<Shared>>) -> Json<Vec<Arc<AlertReport>>> {
    Json(shared.board.alerts())
}

/// `POST /api/v1/alerts/{name}/silence`
pub(crate) async fn silence(
    State(shared): State<Arc<Shared>>,
    Named(name): Named,
    caller: Option<Extension<Caller>>,
    body: Bytes,
) -> Response {
    let Quiet { key, seconds, why } = match taken(&body) {
        Ok(quiet) => quiet,
        Err(refusal) => return *refusal,
    };
    if seconds > LONGEST {
        return problem(
            StatusCode::BAD_REQUEST,
            "`seconds` is more than a year: take the alert out of the program instead",
        );
    }
    let by = caller.map_or_else(String::new, |Extension(caller)| format!("{}: ", caller.name));
    let why = by.chars().chain(why.chars()).take(WHY).collect();
    let until = now().plus(Duration::from_secs(seconds));
    asked(&shared, &name, AlertAsk::Silence(Silence { key, until, why }))
}

/// `POST /api/v1/alerts/{name}/test`
pub(crate) async fn test(State(shared): State<Arc<Shared>>, Named(name): Named, body: Bytes) -> Response {
    if let Err(refusal) = taken::<Nothing>(&body) {
        return *refusal;
    }
    asked(&shared, &name, AlertAsk::Test)
}

fn asked(shared: &Shared, name: &str, ask: AlertAsk) -> Response {
    if shared.board.alerts().iter().all(|alert| alert.name != name) {
        return problem(StatusCode::NOT_FOUND, "the program has no alert of this name; /api/v1/alerts lists them");
    }
    if shared.board.ask_alert(name, ask) {
        return Json(serde_json::json!({ "asked": name })).into_response();
    }
    problem(StatusCode::SERVICE_UNAVAILABLE, "too much waits for the program's next batch; ask again when it has run")
}
