//! Every route of the server, in one list, with its method and the role that it needs.
//!
//! The router is made of it, and so is the description under
//! `/api/v1/openapi.json`: what is served is described, and what is described
//! is served. A route that tells something ends in `..PLAIN` (`GET`, for
//! viewers), one that changes something in `..OPERATES`
//! (`POST` of JSON, whole and bounded before its handler runs; [`api::taken`]
//! reads it):
//!
//! ```text
//! Route {
//!     path: "/api/v1/things/{name}/stop",
//!     summary: "stops a thing",
//!     takes: Some("Stop"),
//!     answer: Answer::Json("Thing"),
//!     refusals: &[404],
//!     serve: || post(things::stop),
//!     ..OPERATES
//! },
//! ```
//!
//! Invariant: nothing is served that is not in [`ROUTES`] or [`PARTS`]; tests
//! see that each answers as its description says, and to whom.

use crate::{
    alerts, api, assets, feed, grafana, health, inspect, live, metrics, notebooks, openapi, query, role::Role,
    server::Shared,
};
use axum::routing::{MethodRouter, get, post};
use std::sync::Arc;

/// The method of a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verb {
    /// Tells, and changes nothing.
    Get,
    /// Takes JSON, and may change something.
    Post,
}

/// What a route answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Answer {
    /// JSON of this schema.
    Json(&'static str),
    /// JSON list of this schema.
    List(&'static str),
    /// JSON of another standard.
    Other,
    /// Text of this media type.
    Text(&'static str),
    /// A WebSocket.
    Socket,
}

/// A parameter of a route.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Parameter {
    pub(crate) name: &'static str,
    /// `path` or `query`.
    pub(crate) place: &'static str,
    /// `string` or `integer`.
    pub(crate) kind: &'static str,
    /// What a string has to match; empty for one that need not.
    pub(crate) pattern: &'static str,
    pub(crate) what: &'static str,
}

/// One route.
pub(crate) struct Route {
    pub(crate) path: &'static str,
    pub(crate) verb: Verb,
    /// What a caller must be at least; `None` for a route that is open to all who reach the server.
    pub(crate) role: Option<Role>,
    /// Schema of the JSON that it takes.
    pub(crate) takes: Option<&'static str>,
    /// Bytes of a request's body at most.
    pub(crate) bytes: usize,
    /// Where the same is served, too: the path of before there were versions.
    pub(crate) before: Option<&'static str>,
    pub(crate) summary: &'static str,
    pub(crate) parameters: &'static [Parameter],
    pub(crate) answer: Answer,
    /// Statuses beside 200, and beside those of the gate and of what is sent; see [`openapi`].
    pub(crate) refusals: &'static [u16],
    pub(crate) serve: fn() -> MethodRouter<Arc<Shared>>,
}

const VIEW: Parameter = Parameter { name: "name", place: "path", kind: "string", pattern: "", what: "the view's name" };
const MOMENT: Parameter = Parameter {
    name: "batch",
    place: "query",
    kind: "integer",
    what: "as it was after this batch, as far as that is remembered",
    ..VIEW
};
const QUERY: Parameter = Parameter { name: "id", pattern: query::IDS, what: "the query's id", ..VIEW };
const NOTEBOOK: Parameter = Parameter { pattern: notebooks::NAMES, what: "the notebook's name", ..VIEW };
const ALERT: Parameter = Parameter { what: "the alert's name", ..VIEW };
const BATCH: Parameter = Parameter { name: "batch", kind: "integer", what: "the batch's number", ..VIEW };
const STATE: Parameter = Parameter { what: "the operator's name", ..VIEW };

/// A route that tells viewers something.
const PLAIN: Route = Route {
    path: "",
    verb: Verb::Get,
    role: Some(Role::Viewer),
    takes: None,
    bytes: 0,
    before: None,
    summary: "",
    parameters: &[],
    answer: Answer::Other,
    refusals: &[],
    serve: || get(api::nothing_here),
};

/// Bytes that a route takes, unless it says other.
const TAKEN: usize = 64 * 1024;

/// A route by which an operator changes something.
const OPERATES: Route =
    Route { verb: Verb::Post, role: Some(Role::Operator), bytes: TAKEN, serve: || post(api::nothing_here), ..PLAIN };

/// A route that is open, also to those who have no token.
const OPEN: Route = Route { role: None, ..PLAIN };

/// The pages and what they are made of: the same in every copy of this program, so open, and not described.
pub(crate) const PARTS: &[Route] = &[
    Route { path: "/", serve: || get(assets::page), ..OPEN },
    Route { path: "/assets/pages.js", serve: || get(assets::pages), ..OPEN },
    Route { path: "/assets/{folder}/{file}", serve: || get(assets::asset), ..OPEN },
];

/// A route for operators that takes 64 bytes, for the gate's own tests.
#[cfg(test)]
pub(crate) const TESTED: Route = Route { path: "/x", bytes: 64, ..OPERATES };

/// All others.
pub(crate) const ROUTES: &[Route] = &[
    Route {
        path: "/api/v1/program",
        before: Some("/api/program"),
        summary: "the program: its name, phase, totals, views, and how it fares",
        answer: Answer::Json("Program"),
        serve: || get(api::program),
        ..PLAIN
    },
    Route {
        path: "/api/v1/health",
        summary: "whether the program works, with the reason; always 200",
        answer: Answer::Json("Health"),
        serve: || get(api::health),
        ..PLAIN
    },
    Route {
        path: "/api/v1/caller",
        summary: "who asks: the name and role of the token that was sent",
        answer: Answer::Json("Caller"),
        serve: || get(api::caller),
        ..PLAIN
    },
    Route {
        path: "/api/v1/views",
        before: Some("/api/views"),
        summary: "the views that have rows",
        answer: Answer::List("ViewHead"),
        serve: || get(api::views),
        ..PLAIN
    },
    Route {
        path: "/api/v1/views/{name}",
        before: Some("/api/views/{name}"),
        summary: "the rows of a view",
        parameters: &[VIEW, MOMENT],
        answer: Answer::Json("View"),
        refusals: &[404],
        serve: || get(api::view),
        ..PLAIN
    },
    Route {
        path: "/api/v1/views/{name}/history",
        summary: "what a view showed lately, the oldest first",
        parameters: &[VIEW],
        answer: Answer::Json("History"),
        refusals: &[404],
        serve: || get(api::history),
        ..PLAIN
    },
    Route {
        path: "/api/v1/batches",
        before: Some("/api/batches"),
        summary: "the last batches, the oldest first",
        answer: Answer::List("Report"),
        serve: || get(api::batches),
        ..PLAIN
    },
    Route {
        path: "/api/v1/batches/{batch}",
        summary: "one batch in detail: ranges, operators, outputs, watermarks, dead letters",
        parameters: &[BATCH],
        answer: Answer::Json("Batch"),
        refusals: &[404],
        serve: || get(api::batch),
        ..PLAIN
    },
    Route {
        path: "/api/v1/batches/{batch}/run",
        summary: "runs one batch again, without effects: samples, plan, state changes, and what differs from then",
        parameters: &[BATCH],
        takes: Some("Nothing"),
        answer: Answer::Json("Rerun"),
        refusals: &[404, 409, 429, 500, 503],
        serve: || post(inspect::run),
        ..OPERATES
    },
    Route {
        path: "/api/v1/states/{name}",
        summary: "the first rows of an operator's state, as it was after the last commit",
        parameters: &[STATE],
        answer: Answer::Json("Table"),
        refusals: &[404, 409, 429, 500, 503],
        serve: || get(inspect::state),
        ..PLAIN
    },
    Route {
        path: "/api/v1/inputs",
        before: Some("/api/inputs"),
        summary: "receivers and sources, and how they fare",
        answer: Answer::List("Input"),
        serve: || get(api::inputs),
        ..PLAIN
    },
    Route {
        path: "/api/v1/graph",
        summary: "inputs, operators and outputs, and who reads whom",
        answer: Answer::Json("Graph"),
        serve: || get(api::graph),
        ..PLAIN
    },
    Route {
        path: "/api/v1/alerts",
        summary: "alerts: which keys fire, silences, and what changed lately",
        answer: Answer::List("Alert"),
        serve: || get(alerts::alerts),
        ..PLAIN
    },
    Route {
        path: "/api/v1/alerts/{name}/silence",
        summary: "silences a key of an alert, or all of them, from the next batch on",
        parameters: &[ALERT],
        takes: Some("Silence"),
        answer: Answer::Json("Asked"),
        refusals: &[404, 503],
        serve: || post(alerts::silence),
        ..OPERATES
    },
    Route {
        path: "/api/v1/alerts/{name}/test",
        summary: "puts a row of state `test` where the rows of an alert go",
        parameters: &[ALERT],
        takes: Some("Nothing"),
        answer: Answer::Json("Asked"),
        refusals: &[404, 503],
        serve: || post(alerts::test),
        ..OPERATES
    },
    Route {
        path: "/api/v1/live",
        before: Some("/api/live"),
        summary: "what happens, as Server-Sent Events: phase, inputs, batch, view, pulse",
        answer: Answer::Text("text/event-stream"),
        refusals: &[503],
        serve: || get(live::live),
        ..PLAIN
    },
    Route {
        path: "/api/v1/feed",
        summary: "the same as a WebSocket: messages {\"event\", \"data\"}",
        answer: Answer::Socket,
        refusals: &[400, 426, 503],
        serve: || get(feed::feed),
        ..PLAIN
    },
    Route {
        path: "/api/v1/query",
        summary: "the rows of a SELECT over views, topics, states, tables and dead letters",
        role: Some(Role::Viewer),
        takes: Some("Question"),
        answer: Answer::Json("Rows"),
        refusals: &[404, 409, 429, 500, 503, 504],
        serve: || post(query::query),
        ..OPERATES
    },
    Route {
        path: "/api/v1/query/{id}",
        summary: "how far a query is: rows read, time, and whether it runs",
        parameters: &[QUERY],
        answer: Answer::Json("Followed"),
        refusals: &[404],
        serve: || get(query::follow),
        ..PLAIN
    },
    Route {
        path: "/api/v1/query/{id}/cancel",
        summary: "ends a query that runs",
        role: Some(Role::Viewer),
        parameters: &[QUERY],
        takes: Some("Nothing"),
        answer: Answer::Json("Followed"),
        refusals: &[404],
        serve: || post(query::cancel),
        ..OPERATES
    },
    Route {
        path: "/api/v1/names",
        summary: "what a query may name: tables with their columns, and functions",
        answer: Answer::Json("Names"),
        refusals: &[500],
        serve: || get(query::names),
        ..PLAIN
    },
    Route {
        path: "/api/v1/notebooks",
        summary: "the notebooks that are kept, and whether there is a place for them",
        answer: Answer::Json("Notebooks"),
        refusals: &[500],
        serve: || get(notebooks::list),
        ..PLAIN
    },
    Route {
        path: "/api/v1/notebooks/{name}",
        summary: "a notebook's text and its revision",
        parameters: &[NOTEBOOK],
        answer: Answer::Json("Notebook"),
        refusals: &[404, 500],
        serve: || get(notebooks::read),
        ..PLAIN
    },
    Route {
        path: "/api/v1/notebooks/{name}",
        summary: "keeps a notebook over the revision that was seen; null keeps a new one",
        parameters: &[NOTEBOOK],
        takes: Some("Keep"),
        bytes: notebooks::BODY,
        answer: Answer::Json("Kept"),
        refusals: &[404, 409, 500],
        serve: || post(notebooks::keep),
        ..OPERATES
    },
    Route { path: "/api/v1/openapi.json", summary: "this description", serve: || get(openapi::openapi), ..PLAIN },
    Route {
        path: "/api/v1/grafana.json",
        summary: "a dashboard for Grafana, over a Prometheus that scrapes /metrics",
        serve: || get(grafana::grafana),
        ..PLAIN
    },
    Route {
        path: "/metrics",
        summary: "figures for Prometheus",
        answer: Answer::Text("text/plain; version=0.0.4; charset=utf-8"),
        serve: || get(metrics::metrics),
        ..PLAIN
    },
    Route {
        path: "/livez",
        summary: "whether the process lives",
        answer: Answer::Json("Live"),
        serve: || get(health::livez),
        ..OPEN
    },
    Route {
        path: "/readyz",
        summary: "whether the program works, with the reason for those who may look; 503 when it does not",
        answer: Answer::Json("Health"),
        refusals: &[503],
        serve: || get(health::readyz),
        ..OPEN
    },
];
