//! What stands before each route's handler: its methods, its role, and the body it takes.
//!
//! ```text
//! guard (Host, Origin) ─► path ─► gate: method 405 ─► role 403 ─► media type 415 ─► body 413, 408 ─► handler
//! ```
//!
//! Invariant: a handler runs only for a method that the table of routes names
//! for its path, for a caller who has the route's role, and with a body that is
//! there as a whole, within the route's bound, and said to be JSON. A form or a
//! plain text, which a foreign page could send without being asked back, never
//! gets here. Called by the router around every path of the table.

use crate::{
    api::problem,
    role::{Caller, Role},
    routes::{Route, Verb},
};
use axum::{
    body::{Body, to_bytes},
    extract::{Request, State},
    http::{HeaderMap, HeaderValue, Method, StatusCode, header},
    middleware::Next,
    response::Response,
};
use std::sync::Arc;
use tidemill_core::Duration;
use tokio::time;

/// How long a client may take to send the body of a request.
const BODY: Duration = Duration::from_secs(10);

/// What may be done at one path.
#[derive(Debug)]
pub(crate) struct Gate {
    ways: Vec<Way>,
    allow: HeaderValue,
}

/// One method of a path.
#[derive(Debug, Clone, Copy)]
struct Way {
    verb: Verb,
    role: Option<Role>,
    bytes: usize,
}

impl Gate {
    /// For the routes of one path.
    pub(crate) fn new(routes: &[&Route]) -> Self {
        let ways: Vec<Way> =
            routes.iter().map(|route| Way { verb: route.verb, role: route.role, bytes: route.bytes }).collect();
        let posts = ways.iter().any(|way| way.verb == Verb::Post);
        let gets = ways.iter().any(|way| way.verb == Verb::Get);
        let allow = HeaderValue::from_static(match (gets, posts) {
            (true, true) => "GET, POST",
            (false, true) => "POST",
            (_, false) => "GET",
        });
        Self { ways, allow }
    }

    /// Who asks. Until there are tokens, whoever reaches this machine's loopback.
    fn caller(_headers: &HeaderMap) -> Caller {
        Caller { name: Arc::from("anybody on this machine"), role: Role::Admin }
    }
}

/// The refusal of a method.
pub(crate) fn not_allowed(allow: &HeaderValue) -> Response {
    let served = allow.to_str().unwrap_or("GET");
    let mut response = problem(StatusCode::METHOD_NOT_ALLOWED, &format!("only {served} is served here"));
    response.headers_mut().insert(header::ALLOW, allow.clone());
    response
}

/// Whether the body is said to be JSON.
fn is_json(headers: &HeaderMap) -> bool {
    let mut types = headers.get_all(header::CONTENT_TYPE).iter();
    let (Some(media), None) = (types.next(), types.next()) else { return false };
    let essence = media.to_str().ok().and_then(|media| media.split(';').next()).unwrap_or_default();
    essence.trim().eq_ignore_ascii_case("application/json")
}

/// The whole body, within its bound.
async fn body_of(request: Request, bytes: usize) -> Result<Request, Response> {
    let (parts, body) = request.into_parts();
    let too_long = || problem(StatusCode::PAYLOAD_TOO_LARGE, &format!("at most {bytes} bytes are taken here"));
    let said = parts.headers.get(header::CONTENT_LENGTH).and_then(|said| said.to_str().ok()?.parse::<usize>().ok());
    if said.is_some_and(|said| said > bytes) {
        return Err(too_long());
    }
    match time::timeout(BODY, to_bytes(body, bytes)).await {
        Ok(Ok(body)) => Ok(Request::from_parts(parts, Body::from(body))),
        // What is no bound is a connection that ended, which no answer reaches.
        Ok(Err(_)) => Err(too_long()),
        Err(_) => Err(problem(StatusCode::REQUEST_TIMEOUT, "the body did not come in time")),
    }
}

/// Refuses a request or passes it on to its handler, with a [`Caller`].
pub(crate) async fn gate(State(gate): State<Arc<Gate>>, mut request: Request, next: Next) -> Response {
    let verb = match *request.method() {
        Method::GET => Some(Verb::Get),
        Method::POST => Some(Verb::Post),
        _ => None,
    };
    let Some(way) = gate.ways.iter().copied().find(|way| Some(way.verb) == verb) else {
        return not_allowed(&gate.allow);
    };
    let caller = Gate::caller(request.headers());
    if let Some(role) = way.role.filter(|role| caller.role < *role) {
        return problem(StatusCode::FORBIDDEN, &format!("this needs the role {role}"));
    }
    if way.verb == Verb::Get {
        request.extensions_mut().insert(caller);
        return next.run(request).await;
    }
    if !is_json(request.headers()) {
        let why = "only JSON is taken: send it with `Content-Type: application/json`";
        return problem(StatusCode::UNSUPPORTED_MEDIA_TYPE, why);
    }
    let mut request = match body_of(request, way.bytes).await {
        Ok(request) => request,
        Err(refusal) => return refusal,
    };
    let (path, name) = (request.uri().path().to_string(), Arc::clone(&caller.name));
    request.extensions_mut().insert(caller);
    let response = next.run(request).await;
    tracing::info!(caller = %name, path = %path.escape_debug(), status = response.status().as_u16(), "a change was asked for");
    response
}
