//! Who asks, by the token that comes with a request, and what becomes of wrong ones.
//!
//! A client sends `Authorization: Bearer TOKEN`. A page's script can't do that
//! for a WebSocket, so there the token may come as a subprotocol,
//! `Sec-WebSocket-Protocol: tidemill, bearer.TOKEN`. Never as a cookie, which a
//! browser would send along for any page, nor in an address, which is logged.
//!
//! Invariant: without tokens, all who reach the server are admins, and then it
//! listens on loopback only ([`crate::Access`] sees to that). With tokens, a
//! request has the role of its token or none. An address that has tried
//! [`GUESSES`] different wrong tokens within [`SPAN`] is not listened to for the
//! rest of it; one wrong token, however often it is sent, is one. Called by
//! [`crate::gate`].

use crate::{
    api::problem,
    role::{Caller, Role},
    tokens::{Digest, Tokens, hashed},
};
use axum::{
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::Response,
};
use parking_lot::Mutex;
use std::{
    collections::HashMap,
    net::{IpAddr, Ipv6Addr},
    sync::Arc,
};
use tidemill_core::Duration;
use tokio::time::Instant;

/// Different wrong tokens that an address may try in [`SPAN`].
const GUESSES: usize = 10;
/// How long they are remembered.
const SPAN: Duration = Duration::from_secs(60);
/// Addresses whose wrong tokens are remembered; beyond it the oldest is forgotten.
const ADDRESSES: usize = 1024;

/// The other end of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Peer(pub(crate) IpAddr);

/// Knows who asks.
#[derive(Debug)]
pub(crate) struct Callers {
    tokens: Option<Tokens>,
    misses: Mutex<Misses>,
}

impl Callers {
    pub(crate) fn new(tokens: Option<Tokens>) -> Self {
        Self { tokens, misses: Mutex::default() }
    }

    /// Who asks; nobody of whom we know when there is no token, and a refusal when there is a wrong one.
    pub(crate) fn who(&self, headers: &HeaderMap, peer: Option<Peer>) -> Result<Option<Caller>, Box<Response>> {
        let Some(tokens) = &self.tokens else {
            return Ok(Some(Caller { name: Arc::from("anybody"), role: Role::Admin }));
        };
        let token = match presented(headers) {
            Presented::Nothing => return Ok(None),
            Presented::Unreadable => return Err(Box::new(unknown())),
            Presented::Token(token) => hashed(token),
        };
        let peer = peer.map_or(Ipv6Addr::UNSPECIFIED.into(), |peer| peer.0);
        let mut misses = self.misses.lock();
        if let Some(wait) = misses.wait(peer, Instant::now()) {
            return Err(Box::new(too_many(wait)));
        }
        if let Some(caller) = tokens.find(&token) {
            return Ok(Some(caller.clone()));
        }
        if misses.note(peer, token, Instant::now()) {
            drop(misses);
            tracing::warn!(%peer, "the page was asked with a token that is none of its own");
        }
        Err(Box::new(unknown()))
    }
}

/// What a request shows.
#[derive(Debug, PartialEq)]
enum Presented<'a> {
    Nothing,
    /// Something, of which it can't be said what it is.
    Unreadable,
    Token(&'a [u8]),
}

fn presented(headers: &HeaderMap) -> Presented<'_> {
    let mut all = headers.get_all(header::AUTHORIZATION).iter();
    match (all.next(), all.next()) {
        (None, _) => {}
        (Some(one), None) => {
            let (scheme, token) = one.as_bytes().split_at_checked("bearer ".len()).unwrap_or((one.as_bytes(), b""));
            let token = token.trim_ascii();
            let readable = scheme.eq_ignore_ascii_case(b"bearer ") && !token.is_empty();
            return if readable { Presented::Token(token) } else { Presented::Unreadable };
        }
        (Some(_), Some(_)) => return Presented::Unreadable,
    }
    if !headers.get(header::UPGRADE).is_some_and(|to| to.as_bytes().eq_ignore_ascii_case(b"websocket")) {
        return Presented::Nothing;
    }
    let mut tokens = subprotocols(headers).filter_map(|name| name.strip_prefix(b"bearer."));
    match (tokens.next(), tokens.next()) {
        (None, _) => Presented::Nothing,
        (Some(token), None) if !token.is_empty() => Presented::Token(token),
        _ => Presented::Unreadable,
    }
}

fn subprotocols(headers: &HeaderMap) -> impl Iterator<Item = &[u8]> {
    let all = headers.get_all(header::SEC_WEBSOCKET_PROTOCOL).iter();
    all.flat_map(|names| names.as_bytes().split(|b| *b == b',')).map(<[u8]>::trim_ascii)
}

/// Takes the token out of a request, so that no handler can tell it to anybody.
pub(crate) fn forget(headers: &mut HeaderMap) {
    headers.remove(header::AUTHORIZATION);
    if subprotocols(headers).any(|name| name.starts_with(b"bearer.")) {
        let rest: Vec<&[u8]> = subprotocols(headers).filter(|name| !name.starts_with(b"bearer.")).collect();
        let rest = HeaderValue::from_bytes(&rest.join(&b", "[..]));
        headers.remove(header::SEC_WEBSOCKET_PROTOCOL);
        if let Ok(rest) = rest
            && !rest.is_empty()
        {
            headers.insert(header::SEC_WEBSOCKET_PROTOCOL, rest);
        }
    }
}

/// A request without a token, where one is needed.
pub(crate) fn needed() -> Response {
    refusal("this needs a token: send `Authorization: Bearer TOKEN`", "Bearer")
}

/// A request with a token that is not known.
fn unknown() -> Response {
    refusal("this token is none that the program knows", "Bearer error=\"invalid_token\"")
}

fn refusal(why: &str, challenge: &'static str) -> Response {
    let mut response = problem(StatusCode::UNAUTHORIZED, why);
    response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static(challenge));
    response
}

fn too_many(wait: Duration) -> Response {
    let why = "too many wrong tokens came from this address; it is listened to again in a minute at the latest";
    let mut response = problem(StatusCode::TOO_MANY_REQUESTS, why);
    response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(wait.as_secs() + 1));
    response
}

/// Wrong tokens of late, by address.
#[derive(Debug, Default)]
struct Misses {
    of: HashMap<IpAddr, Missed>,
}

#[derive(Debug)]
struct Missed {
    since: Instant,
    /// Different ones, at most [`GUESSES`].
    tokens: Vec<Digest>,
}

impl Misses {
    /// How long an address has to wait that has tried too many.
    fn wait(&self, peer: IpAddr, now: Instant) -> Option<Duration> {
        let missed = self.of.get(&network(peer)).filter(|missed| missed.tokens.len() >= GUESSES)?;
        SPAN.checked_sub(now - missed.since).filter(|wait| !wait.is_zero())
    }

    /// Remembers a wrong token; whether it is a new one.
    fn note(&mut self, peer: IpAddr, token: Digest, now: Instant) -> bool {
        let peer = network(peer);
        if self.of.len() >= ADDRESSES && !self.of.contains_key(&peer) {
            self.of.retain(|_, missed| now - missed.since < SPAN);
            if self.of.len() >= ADDRESSES
                && let Some(oldest) = self.of.iter().min_by_key(|(_, missed)| missed.since).map(|(peer, _)| *peer)
            {
                self.of.remove(&oldest);
            }
        }
        let missed = self.of.entry(peer).or_insert_with(|| Missed { since: now, tokens: Vec::new() });
        if now - missed.since >= SPAN {
            *missed = Missed { since: now, tokens: Vec::new() };
        }
        let new = !missed.tokens.contains(&token);
        if new && missed.tokens.len() < GUESSES {
            missed.tokens.push(token);
        }
        new
    }
}

/// The address, or of version 6 the network of which one client may have all addresses.
fn network(peer: IpAddr) -> IpAddr {
    match peer.to_canonical() {
        IpAddr::V6(address) => Ipv6Addr::from(u128::from(address) & (!0_u128 << 64)).into(),
        v4 @ IpAddr::V4(_) => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "good-token-0123456789";

    fn bearer(token: &str) -> HeaderMap {
        [(header::AUTHORIZATION, HeaderValue::from_str(&format!("Bearer {token}")).unwrap())].into_iter().collect()
    }

    fn callers() -> Callers {
        Callers::new(Some(Tokens::parse(&format!("operator {GOOD} anna"), "t").unwrap()))
    }

    fn status(got: Result<Option<Caller>, Box<Response>>) -> u16 {
        got.map_or_else(|refusal| refusal.status().as_u16(), |caller| if caller.is_some() { 200 } else { 0 })
    }

    #[tokio::test(start_paused = true)]
    async fn an_address_that_guesses_is_not_listened_to_for_a_minute() {
        let callers = callers();
        let (guesser, other) = (Some(Peer([192, 0, 2, 1].into())), Some(Peer([192, 0, 2, 2].into())));
        // A client that was set up with a wrong token guesses nothing.
        for _ in 0..1000 {
            assert_eq!(status(callers.who(&bearer("one-and-the-same-wrong"), guesser)), 401);
        }
        for guess in 1..GUESSES {
            assert_eq!(status(callers.who(&bearer(GOOD), guesser)), 200, "{guess}");
            assert_eq!(status(callers.who(&bearer(&format!("guess-{guess}")), guesser)), 401);
        }
        // Now not even the right one is looked at.
        let refused = callers.who(&bearer(GOOD), guesser).unwrap_err();
        assert_eq!((refused.status().as_u16(), &refused.headers()[header::RETRY_AFTER]), (429, &HeaderValue::from(61)));
        assert_eq!(status(callers.who(&HeaderMap::new(), guesser)), 0, "what needs no token is served");
        assert_eq!(status(callers.who(&bearer(GOOD), other)), 200, "others are not held back");
        tokio::time::advance(SPAN - Duration::from_secs(1)).await;
        assert_eq!(status(callers.who(&bearer(GOOD), guesser)), 429);
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(status(callers.who(&bearer(GOOD), guesser)), 200);
        assert_eq!(status(callers.who(&bearer("guess-again"), guesser)), 401, "counted anew");
        assert_eq!(status(callers.who(&bearer(GOOD), guesser)), 200);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_remembered_of_guessers_is_bounded() {
        let mut misses = Misses::default();
        for i in 0..10_000_u32 {
            let guess = hashed(&i.to_be_bytes());
            misses.note(IpAddr::from(i.to_be_bytes()), guess, Instant::now());
            misses.note([192, 0, 2, 1].into(), guess, Instant::now());
            misses.note(IpAddr::from(u128::from(i).to_be_bytes()), guess, Instant::now());
            tokio::time::advance(Duration::from_micros(1)).await;
        }
        assert!(misses.of.len() <= ADDRESSES && misses.of.values().all(|missed| missed.tokens.len() <= GUESSES));
        let network = |text: &str| network(text.parse().unwrap());
        assert_eq!(network("2001:db8::1"), network("2001:db8::ffff:2"));
        assert_ne!(network("2001:db8::1"), network("2001:db8:0:1::1"));
        assert_eq!(network("::ffff:192.0.2.1"), network("192.0.2.1"));
    }

    #[test]
    fn a_token_is_read_from_one_place() {
        let headers = |all: &[(&'static str, &'static str)]| -> HeaderMap {
            let pair = |(name, value): &(&'static str, &'static str)| {
                (header::HeaderName::from_static(name), HeaderValue::from_static(value))
            };
            all.iter().map(pair).fold(HeaderMap::new(), |mut all, (name, value)| {
                all.append(name, value);
                all
            })
        };
        let (authorization, protocol, upgrade) = ("authorization", "sec-websocket-protocol", ("upgrade", "WebSocket"));
        let token = Presented::Token(b"abc");
        for (given, want) in [
            (headers(&[]), Presented::Nothing),
            (headers(&[(authorization, "Bearer abc")]), Presented::Token(b"abc")),
            (headers(&[(authorization, "bearer  abc ")]), Presented::Token(b"abc")),
            (headers(&[(authorization, "Basic abc")]), Presented::Unreadable),
            (headers(&[(authorization, "Bearer")]), Presented::Unreadable),
            (headers(&[(authorization, "Bearer ")]), Presented::Unreadable),
            (headers(&[(authorization, "")]), Presented::Unreadable),
            (headers(&[(authorization, "Bearer abc"), (authorization, "Bearer abd")]), Presented::Unreadable),
            (headers(&[upgrade, (protocol, "tidemill, bearer.abc")]), Presented::Token(b"abc")),
            (headers(&[upgrade, (protocol, "tidemill"), (protocol, "bearer.abc")]), Presented::Token(b"abc")),
            (headers(&[upgrade, (protocol, "bearer.abc, bearer.abd")]), Presented::Unreadable),
            (headers(&[upgrade, (protocol, "tidemill, bearer.")]), Presented::Unreadable),
            (headers(&[upgrade, (protocol, "tidemill")]), Presented::Nothing),
            // Only a WebSocket brings it there, and a cookie is none.
            (headers(&[(protocol, "tidemill, bearer.abc")]), Presented::Nothing),
            (headers(&[("cookie", "token=abc")]), Presented::Nothing),
        ] {
            assert_eq!(presented(&given), want, "{given:?}");
        }
        let mut given = headers(&[upgrade, (authorization, "Bearer abc"), (protocol, "tidemill, bearer.abc, more")]);
        assert_eq!(presented(&given), token);
        forget(&mut given);
        assert_eq!(given, headers(&[upgrade, (protocol, "tidemill, more")]));
        let mut given = headers(&[upgrade, (protocol, "bearer.abc")]);
        forget(&mut given);
        assert_eq!(given, headers(&[upgrade]));
    }

    #[test]
    fn without_tokens_all_are_admins() {
        let caller = Callers::new(None).who(&bearer("anything"), None).unwrap().unwrap();
        assert_eq!(caller.role, Role::Admin);
    }
}
