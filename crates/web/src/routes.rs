//! Every route of the server, in one list.
//!
//! The router is made of it, and so is the description under
//! `/api/v1/openapi.json`: what is served is described, and what is described
//! is served. Invariant: all answer `GET` alone, and tests see that each
//! answers as its description says.

use crate::{api, feed, grafana, health, live, metrics, openapi, server::Shared};
use axum::routing::{MethodRouter, get};
use std::sync::Arc;

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
    pub(crate) what: &'static str,
}

/// One route.
pub(crate) struct Route {
    pub(crate) path: &'static str,
    /// Where the same is served, too: the path of before there were versions.
    pub(crate) before: Option<&'static str>,
    pub(crate) summary: &'static str,
    pub(crate) parameters: &'static [Parameter],
    pub(crate) answer: Answer,
    /// Statuses beside 200.
    pub(crate) refusals: &'static [u16],
    pub(crate) serve: fn() -> MethodRouter<Arc<Shared>>,
}

const VIEW: Parameter = Parameter { name: "name", place: "path", kind: "string", what: "the view's name" };
const MOMENT: Parameter = Parameter {
    name: "batch",
    place: "query",
    kind: "integer",
    what: "as it was after this batch, as far as that is remembered",
};
const BATCH: Parameter = Parameter { name: "batch", place: "path", kind: "integer", what: "the batch's number" };

const PLAIN: Route = Route {
    path: "",
    before: None,
    summary: "",
    parameters: &[],
    answer: Answer::Other,
    refusals: &[],
    serve: || get(api::nothing_here),
};

/// All of them.
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
        refusals: &[400, 404],
        serve: || get(api::view),
    },
    Route {
        path: "/api/v1/views/{name}/history",
        summary: "what a view showed lately, the oldest first",
        parameters: &[VIEW],
        answer: Answer::Json("History"),
        refusals: &[400, 404],
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
        ..PLAIN
    },
    Route {
        path: "/readyz",
        summary: "whether the program works, with the reason; 503 when it does not",
        answer: Answer::Json("Health"),
        refusals: &[503],
        serve: || get(health::readyz),
        ..PLAIN
    },
];
