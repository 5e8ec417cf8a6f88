//! `/api/v1/openapi.json`: the routes and what they answer, as OpenAPI 3.1.
//!
//! Paths come from [`ROUTES`]; the schemas stand here. Invariant: each answer
//! of the server fits its schema, and has no key that the schema does not name:
//! a test asks every route and compares. Called by the router.

use crate::{
    alerts, query,
    role::Role,
    routes::{Answer, Parameter, ROUTES, Route, Verb},
    server::Shared,
};
use axum::{Json, extract::State};
use serde_json::{Map, Value, json};
use std::{collections::BTreeSet, sync::Arc};

/// `/api/v1/openapi.json`
pub(crate) async fn openapi(State(shared): State<Arc<Shared>>) -> Json<Value> {
    Json(document(shared.guarded))
}

/// Of a server that wants tokens, or of one that lets all do everything.
fn document(guarded: bool) -> Value {
    let mut paths = Map::new();
    for route in ROUTES {
        let verb = match route.verb {
            Verb::Get => "get",
            Verb::Post => "post",
        };
        paths.entry(route.path).or_insert_with(|| json!({}))[verb] = operation(route, guarded);
    }
    let mut document = json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Tidemill",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "How a running program fares. A token is needed where the program was started with some. Times are microseconds since the epoch.",
            "license": { "name": "Apache-2.0", "identifier": "Apache-2.0" },
        },
        "paths": paths,
        "components": { "schemas": schemas() },
    });
    if guarded {
        document["security"] = json!([{ "token": [] }]);
        document["components"]["securitySchemes"] = json!({ "token": { "type": "http", "scheme": "bearer" } });
    }
    document
}

/// What one may be answered instead of what the route gives.
fn refusals(route: &Route, guarded: bool) -> BTreeSet<u16> {
    let mut all: BTreeSet<u16> = route.refusals.iter().copied().collect();
    // From the guard, whoever asks; see [`crate::guard`].
    all.extend([403, 421]);
    // From the gate; see [`crate::gate`].
    if guarded {
        all.extend([401, 429]);
    }
    if route.verb == Verb::Post {
        all.extend([400, 408, 413, 415]);
    }
    // What is no text, or no number.
    if !route.parameters.is_empty() {
        all.insert(400);
    }
    all
}

fn operation(route: &Route, guarded: bool) -> Value {
    let content = match route.answer {
        Answer::Json(name) => json!({ "application/json": { "schema": reference(name) } }),
        Answer::List(name) => {
            json!({ "application/json": { "schema": { "type": "array", "items": reference(name) } } })
        }
        Answer::Other => json!({ "application/json": { "schema": { "type": "object" } } }),
        Answer::Text(media) => json!({ media.split(';').next().unwrap_or(media): { "schema": { "type": "string" } } }),
        Answer::Socket => Value::Null,
    };
    let mut responses = Map::new();
    match route.answer {
        Answer::Socket => responses.insert("101".to_string(), json!({ "description": "a WebSocket" })),
        _ => responses.insert("200".to_string(), json!({ "description": route.summary, "content": content })),
    };
    for status in refusals(route, guarded) {
        let schema = reference(match (route.path, status) {
            ("/readyz", 503) => "Health",
            ("/api/v1/query", 400 | 409 | 500..) => "Refused",
            _ => "Error",
        });
        let content = json!({ "application/json": { "schema": schema } });
        responses.insert(status.to_string(), json!({ "description": "refused, with the reason", "content": content }));
    }
    let parameters: Vec<Value> = route.parameters.iter().map(parameter).collect();
    let mut operation = json!({ "summary": route.summary, "parameters": parameters, "responses": responses });
    // Without the word, what stands for the whole document holds.
    if guarded && route.role.is_none() {
        operation["security"] = json!([]);
    }
    operation["x-role"] = json!(route.role.map(Role::name));
    if let Some(name) = route.takes {
        let content = json!({ "application/json": { "schema": reference(name) } });
        operation["requestBody"] = json!({ "required": true, "content": content });
    }
    operation
}

fn parameter(parameter: &Parameter) -> Value {
    let mut schema = json!({ "type": parameter.kind });
    match parameter.kind {
        "integer" => schema = number(),
        _ if parameter.pattern.is_empty() => schema["minLength"] = json!(1),
        _ => schema["pattern"] = json!(parameter.pattern),
    }
    json!({
        "name": parameter.name,
        "in": parameter.place,
        "required": parameter.place == "path",
        "description": parameter.what,
        "schema": schema,
    })
}

/// A number that callers give.
fn number() -> Value {
    json!({ "type": "integer", "minimum": 0, "maximum": u64::MAX })
}

pub(crate) fn reference(name: &str) -> Value {
    json!({ "$ref": format!("#/components/schemas/{name}") })
}

/// An object of these keys, all of them there, and no other.
pub(crate) fn object(keys: &[(&str, Value)]) -> Value {
    let properties: Map<String, Value> =
        keys.iter().map(|(key, schema)| ((*key).to_string(), schema.clone())).collect();
    let required: Vec<&str> = keys.iter().map(|(key, _)| *key).collect();
    json!({ "type": "object", "properties": properties, "required": required, "additionalProperties": false })
}

pub(crate) fn list(of: &Value) -> Value {
    json!({ "type": "array", "items": of })
}

/// An object whose keys are names.
fn by_name(of: &Value) -> Value {
    json!({ "type": "object", "additionalProperties": of })
}

fn schemas() -> Value {
    let (count, text, truth) =
        (json!({ "type": "integer", "minimum": 0 }), json!({ "type": "string" }), json!({ "type": "boolean" }));
    let time = json!({ "type": "integer", "description": "microseconds since the epoch" });
    let or_null = |kind: &str| json!({ "type": [kind, "null"] });
    let phase = json!({ "type": "string", "enum": ["starting", "running", "stopping", "stopped", "failed"] });
    let (range, letter) = (range(&text, &count), letter(&text, &count));
    let report = [
        ("batch", count.clone()),
        ("time", time.clone()),
        ("records_in", count.clone()),
        ("rows_out", count.clone()),
        ("refused", count.clone()),
        ("letters", by_name(&count)),
        ("late", count.clone()),
        ("scheduling_delay_us", count.clone()),
        ("processing_us", count.clone()),
        ("queued", count.clone()),
        ("state_bytes", count.clone()),
        ("state_spilled", count.clone()),
        ("rate_limit", or_null("number")),
        ("watermark", or_null("integer")),
    ];
    let detail = object(&[
        ("ranges", by_name(&list(&range))),
        ("ranges_left_out", count.clone()),
        ("records", by_name(&count)),
        ("watermarks", by_name(&time)),
        ("operators", list(&reference("Operator"))),
        ("outputs", list(&reference("Operator"))),
        ("letters", list(&letter)),
    ]);
    let mut operator = object(&[("name", text.clone()), ("rows", count.clone()), ("busy_us", count.clone())]);
    operator["properties"]["steps"] = list(&reference("Operator"));
    let column = object(&[("name", text.clone()), ("type", text.clone())]);
    let view = object(&[
        ("name", text.clone()),
        ("batch", count.clone()),
        ("time", time.clone()),
        ("total", count.clone()),
        ("columns", list(&column)),
        ("rows", list(&list(&json!({ "type": ["string", "number", "boolean", "null"] })))),
        ("cut", count.clone()),
    ]);
    let health =
        [("ready", truth.clone()), ("phase", phase.clone()), ("state", text.clone()), ("reason", text.clone())];
    let mut schemas = json!({
        "Error": object(&[("error", text.clone())]),
        "Live": object(&[("live", truth.clone())]),
        "Health": object(&health),
        "Alert": alert(&text, &time, &count, &truth),
        "Silence": json!({
            "type": "object",
            "properties": {
                "key": or_null("string"),
                "seconds": { "type": "integer", "minimum": 0, "maximum": alerts::LONGEST },
                "why": text,
            },
            "required": ["seconds"],
            "additionalProperties": false,
        }),
        "Asked": object(&[("asked", text.clone())]),
        "Caller": object(&[
            ("name", text.clone()),
            ("role", json!({ "type": "string", "enum": Role::ALL.map(Role::name) })),
        ]),
        "Program": object(&[
            ("name", text.clone()),
            ("started", time.clone()),
            ("phase", phase),
            ("error", or_null("string")),
            ("records_in", count.clone()),
            ("refused", count.clone()),
            ("letters", by_name(&count)),
            ("late", count.clone()),
            ("batches", count.clone()),
            ("now", time.clone()),
            ("views", list(&text)),
            ("health", reference("Health")),
        ]),
        "ViewHead": object(&[("name", text.clone()), ("batch", count.clone()), ("time", time), ("rows", count.clone())]),
        "View": view,
        "History": object(&[("name", text.clone()), ("snapshots", list(&reference("View")))]),
        "Report": object(&report),
        "Batch": object(&report.into_iter().chain([("detail", detail)]).collect::<Vec<_>>()),
        "Operator": operator,
        "Input": object(&[
            ("stream", text.clone()),
            ("index", count.clone()),
            ("describe", text.clone()),
            ("state", text.clone()),
            ("failed", or_null("string")),
            ("records", count.clone()),
            ("bytes", count.clone()),
            ("last", or_null("integer")),
            ("errors", count.clone()),
            ("reconnects", count.clone()),
            ("last_error", or_null("string")),
            ("lag", or_null("integer")),
            ("partitions", list(&object(&[
                ("partition", text.clone()), ("position", count), ("lag", or_null("integer")),
            ]))),
        ]),
        "Graph": object(&[("nodes", list(&node(&text, &truth, &column)))]),
        "Table": crate::inspect::table_schema(),
        "Rerun": crate::inspect::schema(&letter),
    });
    schemas.as_object_mut().into_iter().for_each(|all| all.extend(notebook()));
    schemas
}

/// What the notebook asks and is told.
fn notebook() -> Map<String, Value> {
    let (count, text, truth) =
        (json!({ "type": "integer", "minimum": 0 }), json!({ "type": "string" }), json!({ "type": "boolean" }));
    let or_null = |kind: &str| json!({ "type": [kind, "null"] });
    let literal = json!({ "type": ["string", "number", "boolean", "null"] });
    let question = json!({
        "type": "object",
        "properties": {
            "sql": { "type": "string", "examples": ["SELECT 1 AS one"] },
            "at_batch": { "type": ["integer", "null"], "minimum": 0, "maximum": u64::MAX },
            "params": by_name(&literal),
            "limit": { "type": ["integer", "null"], "minimum": 1, "maximum": query::ROWS },
            "id": { "type": ["string", "null"], "pattern": query::IDS },
        },
        "required": ["sql"],
        "additionalProperties": false,
    });
    let keep = json!({
        "type": "object",
        "properties": { "text": text, "revision": or_null("string") },
        "required": ["text"],
        "additionalProperties": false,
    });
    let refused = json!({
        "type": "object",
        "properties": { "error": text, "line": or_null("integer"), "column": or_null("integer"), "id": text },
        "required": ["error"],
        "additionalProperties": false,
    });
    let column = object(&[("name", text.clone()), ("type", text.clone())]);
    let rows = object(&[
        ("id", text.clone()),
        ("batch", count.clone()),
        ("time", json!({ "type": "integer" })),
        ("read", count.clone()),
        ("elapsed_ms", count.clone()),
        ("columns", list(&column)),
        ("rows", list(&list(&literal))),
        ("cut", count.clone()),
        ("more", truth.clone()),
    ]);
    let state = json!({ "type": "string", "enum": ["running", "done", "failed", "stopped"] });
    let table = object(&[("name", text.clone()), ("kind", text.clone()), ("columns", list(&text))]);
    let all = [
        ("Question", question),
        ("Nothing", object(&[])),
        ("Keep", keep),
        ("Rows", rows),
        ("Refused", refused),
        ("Followed", object(&[("id", text.clone()), ("state", state), ("read", count.clone()), ("elapsed_ms", count)])),
        ("Names", object(&[("tables", list(&table)), ("functions", list(&text))])),
        ("Notebooks", object(&[("kept", truth), ("names", list(&text))])),
        ("Notebook", object(&[("text", text.clone()), ("revision", text.clone())])),
        ("Kept", object(&[("revision", text)])),
    ];
    all.into_iter().map(|(name, schema)| (name.to_string(), schema)).collect()
}

fn alert(text: &Value, time: &Value, count: &Value, truth: &Value) -> Value {
    let state = json!({ "type": "string", "enum": ["ok", "pending", "firing", "missing", "test"] });
    let value = json!({ "type": ["number", "null"] });
    let now = [
        ("key", text.clone()),
        ("state", state.clone()),
        ("since", time.clone()),
        ("value", value),
        ("message", text.clone()),
        ("silenced", truth.clone()),
    ];
    let change: Vec<_> = now.iter().cloned().chain([("was", state), ("at", time.clone())]).collect();
    let silence =
        object(&[("key", json!({ "type": ["string", "null"] })), ("until", time.clone()), ("why", text.clone())]);
    object(&[
        ("name", text.clone()),
        ("view", text.clone()),
        ("severity", text.clone()),
        ("condition", text.clone()),
        ("batch", count.clone()),
        ("time", time.clone()),
        ("pending", count.clone()),
        ("firing", count.clone()),
        ("missing", count.clone()),
        ("now", list(&object(&now))),
        ("silences", list(&silence)),
        ("changes", list(&object(&change))),
    ])
}

fn range(text: &Value, count: &Value) -> Value {
    object(&[("partition", text.clone()), ("start", count.clone()), ("end", count.clone())])
}

fn letter(text: &Value, count: &Value) -> Value {
    object(&[
        ("stream", text.clone()),
        ("partition", text.clone()),
        ("offset", count.clone()),
        ("kind", text.clone()),
        ("reason", text.clone()),
        ("raw", text.clone()),
    ])
}

fn node(text: &Value, truth: &Value, column: &Value) -> Value {
    object(&[
        ("id", text.clone()),
        ("name", text.clone()),
        ("kind", json!({ "type": "string", "enum": ["input", "operator", "output"] })),
        ("what", text.clone()),
        ("inputs", list(text)),
        ("stateful", truth.clone()),
        ("definition", json!({ "type": ["string", "null"] })),
        ("columns", list(column)),
        ("plan", json!({ "type": ["string", "null"] })),
    ])
}
