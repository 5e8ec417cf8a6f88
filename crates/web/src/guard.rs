//! Who may ask, and what every answer carries.
//!
//! A web page from anywhere can make the user's browser send requests to
//! `127.0.0.1`, and can rebind its own name to that address. So before any
//! routing, the `Host` must name loopback with our port, or a name that was
//! given for this server (rebinding fails with 421), and a foreign `Origin` or a cross-site embedding is refused (403). A
//! request that may change something is held to more: where a browser says
//! where it comes from, it comes from our own page or from the user.
//!
//! Invariant: every answer, refusals included, carries [`HEADERS`]; none
//! carries a CORS header. Called by the server around all routes.

use crate::{access::Access, api::problem};
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

/// The names under which this server may be asked, in lower case, with the port where clients say it.
#[derive(Debug)]
pub(crate) struct Guard {
    own: Vec<String>,
    /// Those that were given. What is in front of the server may speak TLS for it there.
    given: Vec<String>,
    tls: bool,
}

impl Guard {
    /// For a server that listens on `address`.
    pub(crate) fn new(address: SocketAddr, access: &Access) -> Self {
        let (port, tls) = (address.port(), access.tls.is_some());
        let usual = if tls { 443 } else { 80 };
        let mut own = vec![format!("127.0.0.1:{port}"), format!("localhost:{port}"), format!("[::1]:{port}")];
        if !address.ip().is_unspecified() {
            // Another address of 127.0.0.0/8, or one that other machines can reach.
            own.push(address.to_string());
        }
        if port == usual {
            // Clients leave out the default port.
            let bare: Vec<String> = own.iter().filter_map(|host| Some(host.rsplit_once(':')?.0.to_string())).collect();
            own.extend(bare);
        }
        let mut given = Vec::new();
        for name in &access.hosts {
            match name.rsplit_once(':').filter(|(_, port)| !port.contains(']')) {
                Some((bare, port)) => {
                    given.push(name.clone());
                    given.extend((port == "443" || port == "80").then(|| bare.to_string()));
                }
                None => {
                    given.push(format!("{name}:{port}"));
                    given.extend((port == usual).then(|| name.clone()));
                }
            }
        }
        Self { own, given, tls }
    }

    fn names_us(&self, host: &str) -> bool {
        self.own.iter().chain(&self.given).any(|ours| ours.eq_ignore_ascii_case(host))
    }

    /// Whether a page of this origin came from us.
    fn is_ours(&self, origin: &str) -> bool {
        if let Some(host) = origin.strip_prefix("https://") {
            let mut named = self.given.iter().chain(self.own.iter().filter(|_| self.tls));
            return named.any(|ours| ours.eq_ignore_ascii_case(host));
        }
        !self.tls && origin.strip_prefix("http://").is_some_and(|host| self.names_us(host))
    }

    /// The refusal of a request, if it is refused.
    fn refusal(&self, request: &Request) -> Option<Response> {
        let headers = request.headers();
        if !self.host_is_ours(request) {
            return Some(problem(
                StatusCode::MISDIRECTED_REQUEST,
                "this server answers only to 127.0.0.1, localhost and [::1] with its port in the Host header, and to the \
                 names that `--web-host` gave it",
            ));
        }
        if let Some(origin) = headers.get(header::ORIGIN)
            && !origin.to_str().is_ok_and(|origin| self.is_ours(origin))
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
