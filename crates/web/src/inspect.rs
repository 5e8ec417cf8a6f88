//! One batch run again, compared with what it gave then; and a state's first rows.
//!
//! ```text
//! POST /api/v1/batches/17/run ─► one at a time, else 429 ─► rest ─► Inspect, on a thread that may block
//!     now:   what it gives        ┐
//!     then:  topic, program of    ├─► removed, added, common, by the whole text of each row
//!            then, view, or count ┘
//! ```
//!
//! Invariant: an answer is bounded: its tables are first rows ([`rows::table`]),
//! and rows are compared only where all of both sides are here. What can't be
//! compared is said to be so, with the reason. Called by the router.

use crate::{
    api::{self, Named, Nothing, problem},
    openapi::{list, object, reference},
    rows,
    server::Shared,
};
use arrow_array::RecordBatch;
use axum::{
    Json,
    body::Bytes,
    extract::State,
    http::StatusCode,
    response::{IntoResponse, Response},
};
use parking_lot::Mutex;
use serde::Serialize;
use serde_json::{Value, json};
use std::{collections::HashMap, sync::Arc};
use tidemill_core::{
    BatchId, BatchReport, Blame, Duration, Error, Inspect, Kept, LetterReport, OperatorReport, PlanReport, ProgramThen,
    Rerun, RerunOutput, RerunState, Sample, Timestamp,
};
use tokio::{
    sync::Semaphore,
    task::spawn_blocking,
    time::{Instant, sleep_until},
};

/// The longest rest after a look.
const REST: Duration = Duration::from_secs(30);

/// Who looks at the program, one question at a time.
#[derive(Debug)]
pub(crate) struct Inspecting {
    inspect: Option<Arc<dyn Inspect>>,
    /// Two would take twice the memory, and the time of the batches.
    turn: Arc<Semaphore>,
    /// Until when nobody looks, for the sake of the batches.
    rest: Arc<Mutex<Option<Instant>>>,
}

/// What a look leaves to the batches: three times what it took, so that looks one after the other take a quarter of a
/// core; a long one does not keep people waiting for minutes.
fn rest_after(took: Duration) -> Duration {
    took.saturating_mul(3).min(REST)
}

impl Default for Inspecting {
    fn default() -> Self {
        Self { inspect: None, turn: Arc::new(Semaphore::new(1)), rest: Arc::default() }
    }
}

impl Inspecting {
    pub(crate) fn of(inspect: Arc<dyn Inspect>) -> Self {
        Self { inspect: Some(inspect), ..Self::default() }
    }

    /// Asks on a thread that may block, if nobody else does, and when what was asked before has been rested from.
    async fn ask<T: Send + 'static>(
        &self,
        question: impl FnOnce(&dyn Inspect) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Response> {
        let Some(inspect) = self.inspect.clone() else {
            return Err(problem(StatusCode::NOT_FOUND, "this program is served without a way to look into it"));
        };
        let Ok(turn) = Arc::clone(&self.turn).try_acquire_owned() else {
            // Without `Retry-After`, by which the page tells the 429 of too many tokens.
            let why = "a batch or a state is looked at already: one at a time, so that the batches have the processor";
            return Err(problem(StatusCode::TOO_MANY_REQUESTS, why));
        };
        let until = *self.rest.lock();
        if let Some(until) = until {
            // Whoever goes away meanwhile gives the turn back.
            sleep_until(until).await;
        }
        // The turn ends with the work, not with a client that goes away.
        let rest = Arc::clone(&self.rest);
        let answer = spawn_blocking(move || {
            let began = Instant::now();
            let answer = question(&*inspect);
            *rest.lock() = Some(Instant::now() + rest_after(began.elapsed()));
            drop(turn);
            answer
        });
        let told = |error: &Error| {
            let status = match error.blame() {
                Blame::User => StatusCode::CONFLICT,
                Blame::External => StatusCode::SERVICE_UNAVAILABLE,
                Blame::Internal => StatusCode::INTERNAL_SERVER_ERROR,
            };
            problem(status, &error.chain())
        };
        match answer.await {
            Ok(answer) => answer.map_err(|error| told(&error)),
            Err(error) => Err(problem(StatusCode::INTERNAL_SERVER_ERROR, &format!("it panicked: {error}"))),
        }
    }
}

/// `POST /api/v1/batches/{batch}/run`
pub(crate) async fn run(State(shared): State<Arc<Shared>>, Named(batch): Named, body: Bytes) -> Response {
    if let Err(refusal) = api::taken::<Nothing>(&body) {
        return *refusal;
    }
    let Ok(batch) = batch.parse() else {
        return problem(StatusCode::NOT_FOUND, "a batch's number stands in the path, as in /api/v1/batches/17/run");
    };
    match shared.inspecting.ask(move |inspect| inspect.run_again(BatchId(batch))).await {
        Ok(rerun) => Json(Answer::of(rerun, &shared)).into_response(),
        Err(refusal) => refusal,
    }
}

/// `GET /api/v1/states/{name}`
pub(crate) async fn state(State(shared): State<Arc<Shared>>, Named(name): Named) -> Response {
    match shared.inspecting.ask(move |inspect| inspect.state(&name)).await {
        Ok(Some(sample)) => Json(table(&sample)).into_response(),
        Ok(None) => problem(StatusCode::NOT_FOUND, "no state of an operator of this name is kept"),
        Err(refusal) => refusal,
    }
}

#[derive(Debug, Serialize)]
struct Answer {
    batch: BatchId,
    time: Timestamp,
    took_us: u64,
    program: ProgramThen,
    inputs: Vec<Value>,
    operators: Vec<OperatorReport>,
    plans: Vec<PlanReport>,
    outputs: Vec<Output>,
    states: Vec<StateAnswer>,
    refused: u64,
    letters: Vec<LetterReport>,
    /// Records read and refused then, while the report is remembered.
    records_then: Option<u64>,
    refused_then: Option<u64>,
}

#[derive(Debug, Serialize)]
struct Output {
    name: String,
    /// From where its rows of then are known: `topic`, `program`, `view`, `count` or `nothing`.
    kept: &'static str,
    /// Why they are not, or not all.
    why: Option<String>,
    /// How many they were.
    counted: Option<u64>,
    /// Whether they are the same now; not there when that can't be said.
    same: Option<bool>,
    /// Rows that are in both.
    common: u64,
    now: Value,
    removed: Value,
    added: Value,
}

#[derive(Debug, Serialize)]
struct StateAnswer {
    operator: String,
    note: Option<String>,
    before: Value,
    after: Value,
    /// Whether the state of then is compared with the state of now.
    compared: bool,
    removed: Value,
    added: Value,
}

fn table(sample: &Sample) -> Value {
    rows::table(&sample.name, &sample.rows, None, sample.total)
}

impl Answer {
    fn of(rerun: Rerun, shared: &Shared) -> Self {
        let then = shared.board.report(rerun.batch);
        let outputs = rerun.outputs.into_iter().map(|output| compared(output, rerun.batch, then.as_deref(), shared));
        Self {
            batch: rerun.batch,
            time: rerun.time,
            took_us: rerun.took_us,
            program: rerun.program,
            inputs: rerun.inputs.iter().map(table).collect(),
            operators: rerun.operators,
            plans: rerun.plans,
            outputs: outputs.collect(),
            states: rerun.states.into_iter().map(state_answer).collect(),
            refused: rerun.refused,
            letters: rerun.letters,
            records_then: then.as_ref().map(|then| then.records_in),
            refused_then: then.as_ref().map(|then| then.refused),
        }
    }
}

fn state_answer(state: RerunState) -> StateAnswer {
    let (then, now) = state.differ.clone().unwrap_or_default();
    StateAnswer {
        before: table(&state.before),
        after: table(&state.after),
        compared: state.differ.is_some(),
        removed: table(&then),
        added: table(&now),
        operator: state.operator,
        note: state.note,
    }
}

/// What the view showed after exactly this batch.
fn view_then(name: &str, batch: BatchId, shared: &Shared) -> Option<Sample> {
    let of_batch = |step: &Arc<tidemill_core::ViewSnapshot>| step.batch == batch;
    let past = shared.watch.past.at(name, batch).filter(of_batch);
    let step = past.or_else(|| shared.board.view(name).filter(of_batch))?;
    Some(Sample { name: name.to_string(), rows: vec![step.rows.clone()], total: step.rows.num_rows() as u64 })
}

/// An output's rows of now beside those of then, as far as they are known.
fn compared(output: RerunOutput, batch: BatchId, report: Option<&BatchReport>, shared: &Shared) -> Output {
    let RerunOutput { now, then, mut why } = output;
    let counted = report.and_then(|report| report.detail.outputs.iter().find(|told| told.name == now.name));
    let counted = counted.map(|told| told.rows);
    let then = match then {
        Some((kept, sample)) => Some((kept, sample)),
        None => match view_then(&now.name, batch, shared) {
            Some(sample) => Some((Kept::View, sample)),
            // None were given, so none have to be kept.
            None if counted == Some(0) => Some((Kept::View, Sample { name: now.name.clone(), ..Sample::default() })),
            None => None,
        },
    };
    let (kept, difference) = match &then {
        Some((kept, then)) => (kept_name(*kept), Difference::between(then, &now)),
        None => (if counted.is_some() { "count" } else { "nothing" }, Difference::default()),
    };
    let counted = then.as_ref().map(|(_, then)| then.total).or(counted);
    let same = match (&difference.unsaid, &then) {
        (None, Some(_)) => Some(difference.removed.1 == 0 && difference.added.1 == 0),
        // A difference in number is one, whatever the rows are.
        _ => counted.filter(|counted| *counted != now.total).map(|_| false),
    };
    if let Some(unsaid) = difference.unsaid {
        why = Some(unsaid);
    }
    let shown = |(meant, total): (Vec<bool>, u64), of: &[RecordBatch]| rows::table(&now.name, of, Some(&meant), total);
    Output {
        kept,
        why,
        counted,
        same,
        common: difference.common,
        removed: shown(difference.removed, then.as_ref().map_or(&[][..], |(_, then)| then.rows.as_slice())),
        added: shown(difference.added, &now.rows),
        now: table(&now),
        name: now.name,
    }
}

fn kept_name(kept: Kept) -> &'static str {
    match kept {
        Kept::View => "view",
        Kept::Topic => "topic",
        Kept::Program => "program",
    }
}

/// Which rows are on one side only, by their place, and how many.
#[derive(Debug, Default)]
struct Difference {
    removed: (Vec<bool>, u64),
    added: (Vec<bool>, u64),
    common: u64,
    /// Why nothing is said.
    unsaid: Option<String>,
}

impl Difference {
    /// Of two tables, whatever the order of their rows; a row that is there twice counts twice.
    fn between(then: &Sample, now: &Sample) -> Self {
        let most = |sample: &Sample| sample.rows.iter().map(RecordBatch::num_rows).sum::<usize>();
        if !then.is_whole() || !now.is_whole() {
            let most = most(then).min(most(now));
            return Self {
                unsaid: Some(format!("there are too many rows to compare: the first {most} are held")),
                ..Self::default()
            };
        }
        let (old, new) = (rows::texts(&then.rows), rows::texts(&now.rows));
        let names = |sample: &Sample| -> Option<Vec<String>> {
            let rows = sample.rows.first()?;
            Some(rows.schema_ref().fields().iter().map(|field| field.name().clone()).collect())
        };
        // Rows under other names are other rows.
        let same_columns = names(then).zip(names(now)).is_none_or(|(then, now)| then == now);
        let mut left: HashMap<&str, u64> = HashMap::new();
        if same_columns {
            new.iter().for_each(|row| *left.entry(row).or_default() += 1);
        }
        let mut common: HashMap<&str, u64> = HashMap::new();
        let mut take = |row: &String| left.get_mut(row.as_str()).is_some_and(taken);
        let removed: Vec<bool> = old.iter().map(|row| !take(row)).collect();
        for (row, gone) in old.iter().zip(&removed) {
            if !gone {
                *common.entry(row).or_default() += 1;
            }
        }
        let both = common.values().sum();
        let added: Vec<bool> = new.iter().map(|row| !common.get_mut(row.as_str()).is_some_and(taken)).collect();
        let count = |meant: Vec<bool>| {
            let total = meant.iter().filter(|meant| **meant).count() as u64;
            (meant, total)
        };
        Self { removed: count(removed), added: count(added), common: both, unsaid: None }
    }
}

/// Takes one away, if there is one.
fn taken(left: &mut u64) -> bool {
    let any = *left > 0;
    *left = left.saturating_sub(1);
    any
}

/// Of the first rows of something.
pub(crate) fn table_schema() -> Value {
    let (count, text) = (json!({ "type": "integer", "minimum": 0 }), json!({ "type": "string" }));
    let cells = list(&list(&json!({ "type": ["string", "number", "boolean", "null"] })));
    let columns = list(&object(&[("name", text.clone()), ("type", text.clone())]));
    object(&[("name", text), ("total", count.clone()), ("columns", columns), ("rows", cells), ("cut", count)])
}

/// Of a batch that was run again.
pub(crate) fn schema(letter: &Value) -> Value {
    let (count, text, truth) =
        (json!({ "type": "integer", "minimum": 0 }), json!({ "type": "string" }), json!({ "type": "boolean" }));
    let or_null = |kind: &str| json!({ "type": [kind, "null"] });
    let one_of = |words: &[&str]| json!({ "type": "string", "enum": words });
    let rows = || reference("Table");
    let node = object(&[
        ("id", text.clone()),
        ("name", text.clone()),
        ("what", text.clone()),
        ("inputs", list(&text)),
        ("rows", or_null("integer")),
        ("busy_us", or_null("integer")),
    ]);
    let plan = object(&[("output", text.clone()), ("nodes", list(&node)), ("left_out", count.clone())]);
    let output = object(&[
        ("name", text.clone()),
        ("kept", one_of(&["topic", "program", "view", "count", "nothing"])),
        ("why", or_null("string")),
        ("counted", or_null("integer")),
        ("same", or_null("boolean")),
        ("common", count.clone()),
        ("now", rows()),
        ("removed", rows()),
        ("added", rows()),
    ]);
    let state = object(&[
        ("operator", text.clone()),
        ("note", or_null("string")),
        ("before", rows()),
        ("after", rows()),
        ("compared", truth),
        ("removed", rows()),
        ("added", rows()),
    ]);
    object(&[
        ("batch", count.clone()),
        ("time", json!({ "type": "integer", "description": "microseconds since the epoch" })),
        ("took_us", count.clone()),
        ("program", one_of(&["same", "other", "unknown"])),
        ("inputs", list(&rows())),
        ("operators", list(&reference("Operator"))),
        ("plans", list(&plan)),
        ("outputs", list(&output)),
        ("states", list(&state)),
        ("refused", count),
        ("letters", list(letter)),
        ("records_then", or_null("integer")),
        ("refused_then", or_null("integer")),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow_array::{Int64Array, StringArray};

    /// Knows nothing.
    #[derive(Debug)]
    struct Blind;

    impl Inspect for Blind {
        fn run_again(&self, _batch: BatchId) -> Result<Rerun, Error> {
            Err(Error::user("blind"))
        }

        fn state(&self, _operator: &str) -> Result<Option<Sample>, Error> {
            Ok(None)
        }
    }

    #[tokio::test(start_paused = true)]
    async fn looks_one_after_the_other_leave_three_quarters_of_the_time_to_the_batches() {
        let inspecting = Inspecting::of(Arc::new(Blind));
        let clock = tokio::runtime::Handle::current();
        // A look that takes so long.
        let look = async |took: Duration| {
            let (begun, clock) = (Instant::now(), clock.clone());
            let question = move |_: &dyn Inspect| {
                let began = Instant::now();
                clock.block_on(tokio::time::advance(took));
                Ok(began)
            };
            inspecting.ask(question).await.unwrap() - begun
        };
        let [short, long, none] = [2, 100, 0].map(Duration::from_secs);
        assert_eq!(look(short).await, none, "the first waits for nothing");
        assert_eq!(look(long).await.as_secs(), 6);
        assert_eq!(look(none).await.as_secs(), 30, "nobody waits for minutes");
        assert_eq!(look(none).await, none);
        // Whoever waits has the turn, and gives it back when he goes away.
        look(short).await;
        {
            let mut waits = std::pin::pin!(inspecting.ask(|_| Ok(())));
            assert!(futures::poll!(&mut waits).is_pending());
            let refused = inspecting.ask(|_| Ok(())).await.unwrap_err();
            assert_eq!(refused.status(), StatusCode::TOO_MANY_REQUESTS);
        }
        assert_eq!(look(none).await.as_secs(), 6);
    }

    fn sample(column: &str, rows: &[(&str, i64)]) -> Sample {
        let words = Arc::new(StringArray::from_iter_values(rows.iter().map(|row| row.0))) as _;
        let counts = Arc::new(Int64Array::from_iter_values(rows.iter().map(|row| row.1))) as _;
        let batch = RecordBatch::try_from_iter([(column, words), ("n", counts)]).unwrap();
        Sample { name: "v".to_string(), total: rows.len() as u64, rows: vec![batch] }
    }

    #[test]
    fn rows_are_compared_whatever_their_order_and_as_often_as_they_are_there() {
        let then = sample("word", &[("a", 1), ("b", 2), ("b", 2), ("c", 3)]);
        let now = sample("word", &[("c", 3), ("b", 2), ("a", 7), ("d", 1)]);
        let found = Difference::between(&then, &now);
        assert_eq!(found.removed, (vec![true, false, true, false], 2));
        assert_eq!(found.added, (vec![false, false, true, true], 2));
        assert_eq!(found.common, 2);
        let shown = rows::table("v", &now.rows, Some(&found.added.0), found.added.1);
        assert_eq!((&shown["rows"], &shown["total"]), (&json!([["a", 7], ["d", 1]]), &json!(2)));
        let same = Difference::between(&then, &then);
        assert_eq!((same.removed.1, same.added.1, same.common), (0, 0, 4));
        let renamed = Difference::between(&then, &sample("name", &[("a", 1)]));
        assert_eq!((renamed.removed.1, renamed.added.1), (4, 1), "other columns, other rows");
        let empty = Difference::between(&Sample::default(), &now);
        assert_eq!((empty.removed.1, empty.added.1), (0, 4));
        let part = Difference::between(&Sample { total: 9, ..then }, &now);
        assert!(part.unsaid.unwrap().contains("first 4"));
    }
}
