//! Who may ask, and what every answer carries.
//!
//! A web page from anywhere can make the user's browser send requests to
//! `127.0.0.1`, and can rebind its own name to that address. So before any
//! routing, the `Host` must name loopback with our port (rebinding fails with
//! 421), and a foreign `Origin` or a cross-site embedding is refused (403). A
//! request that may change something is held to more: where a browser says
//! where it comes from, it comes from our own page or from the user.
//!
//! Invariant: every answer, refusals included, carries [`HEADERS`]; none
//! carries a CORS header. Called by the server around all routes.

use crate::api::problem;
use axum::{
    extract::{Request, State},
    http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header},
    middleware::Next,
    response::Response,
};
use std::{net::SocketAddr, sync::Arc};

/// Headers of every answer. Scripts, styles, images and connections come from
/// this server only, nothing is inline, and with `trusted-types 'none'` the
/// browser itself refuses to turn a string into markup.
const HEADERS: [(HeaderName, HeaderValue); 6] = [
    (
        header::CONTENT_SECURITY_POLICY,
        HeaderValue::from_static(
            "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; \
             base-uri 'none'; form-action 'none'; frame-ancestors 'none'; \
             require-trusted-types-for 'script'; trusted-types 'none'",
        ),
    ),
    (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
    (header::X_FRAME_OPTIONS, HeaderValue::from_static("DENY")),
    (header::REFERRER_POLICY, HeaderValue::from_static("no-referrer")),
    (HeaderName::from_static("cross-origin-resource-policy"), HeaderValue::from_static("same-origin")),
    (header::CACHE_CONTROL, HeaderValue::from_static("no-store")),
];

/// The names under which this server may be asked.
#[derive(Debug)]
pub(crate) struct Guard {
    /// In lower case, with the port.
    hosts: Vec<String>,
}

impl Guard {
    /// For a server that listens on `address`.
    pub(crate) fn new(address: SocketAddr) -> Self {
        let port = address.port();
        let mut hosts = vec![
            format!("127.0.0.1:{port}"),
            format!("localhost:{port}"),
            format!("[::1]:{port}"),
            // The same as the first, unless it is another address of 127.0.0.0/8.
            address.to_string(),
        ];
        if port == 80 {
            // Clients leave out the default port.
            hosts.extend(["127.0.0.1", "localhost", "[::1]"].map(String::from));
        }
        Self { hosts }
    }

    fn names_us(&self, host: &str) -> bool {
        self.hosts.iter().any(|ours| ours.eq_ignore_ascii_case(host))
    }

    /// The refusal of a request, if it is refused.
    fn refusal(&self, request: &Request) -> Option<Response> {
        let headers = request.headers();
        if !self.host_is_ours(request) {
            return Some(problem(
                StatusCode::MISDIRECTED_REQUEST,
                "this server answers only to 127.0.0.1, localhost and [::1] with its port in the Host header",
            ));
        }
        if let Some(origin) = headers.get(header::ORIGIN)
            && !origin.to_str().ok().and_then(|o| o.strip_prefix("http://")).is_some_and(|o| self.names_us(o))
        {
            return Some(problem(StatusCode::FORBIDDEN, "requests from other sites are refused"));
        }
        if is_embedded_elsewhere(headers) {
            return Some(problem(StatusCode::FORBIDDEN, "other sites may link to this page and not embed it"));
        }
        let from = headers.get("sec-fetch-site");
        if request.method() != Method::GET && !from.is_none_or(|from| from == "same-origin" || from == "none") {
            return Some(problem(StatusCode::FORBIDDEN, "other sites may link to this page and change nothing"));
        }
        None
    }

    /// Exactly one `Host`, one of ours; and so the authority of an absolute request target.
    fn host_is_ours(&self, request: &Request) -> bool {
        let mut hosts = request.headers().get_all(header::HOST).iter();
        let (Some(host), None) = (hosts.next(), hosts.next()) else { return false };
        host.to_str().is_ok_and(|host| self.names_us(host))
            && request.uri().authority().is_none_or(|authority| self.names_us(authority.as_str()))
    }
}

/// Whether the browser says that another site asks, other than by a link that the user followed.
fn is_embedded_elsewhere(headers: &HeaderMap) -> bool {
    let is = |name: &str, value: &str| headers.get(name).is_some_and(|v| v == value);
    let foreign = is("sec-fetch-site", "cross-site") || is("sec-fetch-site", "same-site");
    foreign && !is("sec-fetch-mode", "navigate")
}

/// Refuses or passes on a request, and puts the common headers on the answer.
pub(crate) async fn guard(State(guard): State<Arc<Guard>>, request: Request, next: Next) -> Response {
    let mut response = match guard.refusal(&request) {
        None => next.run(request).await,
        Some(refusal) => refusal,
    };
    for (name, value) in HEADERS {
        response.headers_mut().insert(name, value);
    }
    response
}
