//! What stands before each route's handler: its methods, its role, and the body it takes.
//!
//! ```text
//! guard (Host, Origin) ─► path ─► gate: method 405 ─► token 401, 429 ─► role 403 ─► media type 415
//!                                                                     └─► body 413, 408 ─► handler
//! ```
//!
//! Invariant: a handler runs only for a method that the table of routes names
//! for its path, for a caller who has the route's role, and with a body that is
//! there as a whole, within the route's bound, and said to be JSON. A form or a
//! plain text, which a foreign page could send without being asked back, never
//! gets here. No handler sees a token. Called by the router around every path of the table.

use crate::{
    api::problem,
    callers::{Callers, Peer, forget, needed},
    role::Role,
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
    callers: Arc<Callers>,
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
    pub(crate) fn new(routes: &[&Route], callers: Arc<Callers>) -> Self {
        let ways: Vec<Way> =
            routes.iter().map(|route| Way { verb: route.verb, role: route.role, bytes: route.bytes }).collect();
        let posts = ways.iter().any(|way| way.verb == Verb::Post);
        let gets = ways.iter().any(|way| way.verb == Verb::Get);
        let allow = HeaderValue::from_static(match (gets, posts) {
            (true, true) => "GET, POST",
            (false, true) => "POST",
            (_, false) => "GET",
        });
        Self { callers, ways, allow }
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
async fn body_of(request: Request, bytes: usize) -> Result<Request, Box<Response>> {
    let (parts, body) = request.into_parts();
    let too_long =
        || Box::new(problem(StatusCode::PAYLOAD_TOO_LARGE, &format!("at most {bytes} bytes are taken here")));
    let said = parts.headers.get(header::CONTENT_LENGTH).and_then(|said| said.to_str().ok()?.parse::<usize>().ok());
    if said.is_some_and(|said| said > bytes) {
        return Err(too_long());
    }
    match time::timeout(BODY, to_bytes(body, bytes)).await {
        Ok(Ok(body)) => Ok(Request::from_parts(parts, Body::from(body))),
        // What is no bound is a connection that ended, which no answer reaches.
        Ok(Err(_)) => Err(too_long()),
        Err(_) => Err(Box::new(problem(StatusCode::REQUEST_TIMEOUT, "the body did not come in time"))),
    }
}

/// Refuses a request or passes it on to its handler, with a [`crate::role::Caller`] if it is known who asks.
pub(crate) async fn gate(State(gate): State<Arc<Gate>>, mut request: Request, next: Next) -> Response {
    let verb = match *request.method() {
        Method::GET => Some(Verb::Get),
        Method::POST => Some(Verb::Post),
        _ => None,
    };
    let Some(way) = gate.ways.iter().copied().find(|way| Some(way.verb) == verb) else {
        return not_allowed(&gate.allow);
    };
    let peer = request.extensions().get::<Peer>().copied();
    let caller = match gate.callers.who(request.headers(), peer) {
        Ok(caller) => caller,
        Err(refusal) => return *refusal,
    };
    if let Some(role) = way.role {
        match &caller {
            None => return needed(),
            Some(caller) if caller.role < role => {
                let why =
                    format!("this needs the role {role}, and the token `{}` has the role {}", caller.name, caller.role);
                return problem(StatusCode::FORBIDDEN, &why);
            }
            Some(_) => {}
        }
    }
    forget(request.headers_mut());
    let name = caller.as_ref().map(|caller| Arc::clone(&caller.name));
    if let Some(caller) = caller {
        request.extensions_mut().insert(caller);
    }
    if way.verb == Verb::Get {
        return next.run(request).await;
    }
    if !is_json(request.headers()) {
        let why = "only JSON is taken: send it with `Content-Type: application/json`";
        return problem(StatusCode::UNSUPPORTED_MEDIA_TYPE, why);
    }
    let request = match body_of(request, way.bytes).await {
        Ok(request) => request,
        Err(refusal) => return *refusal,
    };
    let path = request.uri().path().escape_debug().to_string();
    let response = next.run(request).await;
    let status = response.status().as_u16();
    tracing::info!(caller = name.as_deref().unwrap_or("nobody"), path, status, "a change was asked for");
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{routes::TESTED, tokens::Tokens};
    use axum::{Extension, Router, middleware, routing::post};
    use bytes::Bytes;
    use hyper::service::Service;
    use hyper_util::service::TowerToHyperService;

    /// Gives back its body and who asked.
    async fn echo(caller: Option<Extension<crate::role::Caller>>, headers: HeaderMap, body: Bytes) -> String {
        let name = caller.map_or_else(|| "nobody".to_string(), |Extension(caller)| caller.name.to_string());
        assert!(!headers.contains_key(header::AUTHORIZATION), "a handler sees no token");
        format!("{name}: {}", String::from_utf8_lossy(&body))
    }

    /// What a route for operators that takes 64 bytes answers.
    async fn asked(tokens: Option<Tokens>, method: &str, headers: &[(&str, &str)], body: Body) -> (u16, String) {
        let gate = Arc::new(Gate::new(&[&TESTED], Arc::new(Callers::new(tokens))));
        let served = post(echo).layer(middleware::from_fn_with_state(gate, super::gate));
        let app = TowerToHyperService::new(Router::new().route("/x", served));
        let request = Request::builder().method(method).uri("/x");
        let request = headers.iter().fold(request, |request, (name, value)| request.header(*name, *value));
        let response = app.call(request.body(body).unwrap()).await.unwrap();
        let (head, body) = response.into_parts();
        let allow = head.headers.get(header::ALLOW).map(|allow| format!("{}: ", allow.to_str().unwrap()));
        let body = String::from_utf8(to_bytes(body, 4096).await.unwrap().to_vec()).unwrap();
        (head.status.as_u16(), allow.unwrap_or_default() + &body)
    }

    const JSON: (&str, &str) = ("content-type", "application/json");

    #[tokio::test]
    async fn only_json_is_taken() {
        for media in ["application/json", "Application/JSON", "application/json; charset=utf-8", "application/json;a=b"]
        {
            let got = asked(None, "POST", &[("content-type", media)], Body::from("{}")).await;
            assert_eq!(got, (200, "anybody: {}".to_string()), "{media}");
        }
        for media in [
            "text/plain",
            "application/x-www-form-urlencoded",
            "multipart/form-data; boundary=x",
            "text/plain; application/json",
            "application/jsonp",
            "application/json, text/plain",
            "",
        ] {
            assert_eq!(asked(None, "POST", &[("content-type", media)], Body::from("{}")).await.0, 415, "{media}");
        }
        assert_eq!(asked(None, "POST", &[], Body::from("{}")).await.0, 415);
        let twice = [JSON, ("content-type", "text/plain")];
        assert_eq!(asked(None, "POST", &twice, Body::from("{}")).await.0, 415);
    }

    #[tokio::test]
    async fn other_methods_are_told_which_one_is_served() {
        for method in ["GET", "HEAD", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "QUERY"] {
            let (status, text) = asked(None, method, &[JSON], Body::from("{}")).await;
            assert!(status == 405 && text.starts_with("POST: "), "{method}: {status} {text}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_is_bounded_in_length_and_time() {
        let fits = "x".repeat(64);
        assert_eq!(asked(None, "POST", &[JSON], Body::from(fits.clone())).await, (200, format!("anybody: {fits}")));
        assert_eq!(asked(None, "POST", &[JSON], Body::from("x".repeat(65))).await.0, 413);
        // Whatever it says of its length.
        let long = futures::stream::repeat_with(|| Ok::<_, std::io::Error>(Bytes::from_static(b"0123456789")));
        assert_eq!(asked(None, "POST", &[JSON], Body::from_stream(long)).await.0, 413);
        for length in ["65", "99999999999999999999"] {
            let said = [JSON, ("content-length", length)];
            let (status, _) = asked(None, "POST", &said, Body::from("{}")).await;
            assert_eq!(status, if length == "65" { 413 } else { 200 }, "a length that is none is no length");
        }
        // A body that does not come: the paused clock goes on to the bound.
        let never = Body::from_stream(futures::stream::pending::<Result<Bytes, std::io::Error>>());
        assert_eq!(asked(None, "POST", &[JSON], never).await.0, 408);
    }

    #[tokio::test]
    async fn a_role_too_low_is_told_which_one_is_needed_before_the_body_is_read() {
        let tokens = || {
            let text = "viewer viewer-0123456789abc v\noperator operator-0123456789a o\nadmin admin-0123456789abcd a\n";
            Some(Tokens::parse(text, "t").unwrap())
        };
        let never = || Body::from_stream(futures::stream::pending::<Result<Bytes, std::io::Error>>());
        let as_who = |token| [JSON, ("authorization", token)];
        let (status, text) = asked(tokens(), "POST", &as_who("Bearer viewer-0123456789abc"), never()).await;
        assert!(status == 403 && text.contains("the role operator") && text.contains("`v`"), "{status} {text}");
        assert_eq!(asked(tokens(), "POST", &[JSON], never()).await.0, 401);
        assert_eq!(asked(tokens(), "POST", &as_who("Bearer operator-0123456789b"), never()).await.0, 401);
        for (token, name) in [("Bearer operator-0123456789a", "o"), ("bearer admin-0123456789abcd", "a")] {
            let got = asked(tokens(), "POST", &as_who(token), Body::from("{}")).await;
            assert_eq!(got, (200, format!("{name}: {{}}")));
        }
    }
}
