//! Where requests are taken: looked at, read, cut, handed to the log, and answered.
//!
//! ```text
//!  head ─ who, where, what ─► body ─ within bounds ─► records ─► append ─► durable ─► 200
//!         401 403 404 405 415         408 413 429       400 413     503        503
//! ```
//!
//! Invariant: a request whose answer is not 200 before its append has left
//! nothing in the log. What waits for the log is given up as a whole: an append
//! that is not done has not begun. Called for each connection.

use super::{
    Limits,
    answer::{Answer, Refusal, taken},
    body::{self, Encoding, Room},
    keys::{self, Key, Keys, Known, durable},
    records::{Kind, records},
};
use crate::social::secret::Place;
use hyper::{HeaderMap, Method, Request, StatusCode, body::Incoming, header, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use ring::digest::{Digest, SHA256, digest};
use std::{
    convert::Infallible,
    net::SocketAddr,
    pin::pin,
    sync::{
        Arc, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tidemill_core::{Block, Error, Intake, Result, Stop, StopHandle};
use tokio::{net::TcpStream, sync::Mutex, time};

/// How long a client may take to send a request's head, and how long an idle connection is kept.
const HEAD: Duration = Duration::from_secs(30);
/// Bytes of a request's head; a longer one is answered with 431.
const HEAD_BYTES: usize = 16 << 10;
/// How long requests may take to end after a stop.
const PARTING: Duration = Duration::from_secs(2);
/// Bodies from this size on, and those that are compressed, are cut beside the connections.
const LARGE: usize = 256 << 10;

/// What all connections share.
#[derive(Debug)]
pub(super) struct Desk {
    path: String,
    tokens: Option<Place>,
    limits: Limits,
    intake: Shared,
    room: Room,
    /// Held from the look at a key to the append of its records, so that tokens grow in the order of the log.
    keys: Mutex<Keys>,
    refused: AtomicU64,
    /// Why the log takes nothing any more.
    broken: std::sync::Mutex<Option<Error>>,
    /// Told when it does not.
    end: StopHandle,
    ended: Stop,
}

/// An intake, which has no form to print.
struct Shared(Arc<dyn Intake>);

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("intake")
    }
}

impl Desk {
    pub(super) fn new(path: &str, tokens: Option<Place>, limits: Limits, intake: Arc<dyn Intake>) -> Self {
        let (end, ended) = StopHandle::new();
        Self {
            path: path.to_string(),
            tokens,
            room: Room::new(limits.queue),
            keys: Mutex::new(Keys::from_token(intake.resume().as_deref(), limits.keys)),
            limits,
            intake: Shared(intake),
            refused: AtomicU64::new(0),
            broken: std::sync::Mutex::default(),
            end,
            ended,
        }
    }

    /// Who may post, as it is now; `None` when all may.
    fn allowed(&self) -> Result<Option<Vec<Digest>>> {
        let Some(place) = &self.tokens else { return Ok(None) };
        Ok(Some(place.read()?.iter().map(|token| digest(&SHA256, token.expose().as_bytes())).collect()))
    }

    async fn answer(&self, request: Request<Incoming>, allowed: &Result<Option<Vec<Digest>>>) -> Answer {
        match self.take(request, allowed).await {
            Ok(answer) => answer,
            Err(refusal) => {
                let refused = self.refused.fetch_add(1, Ordering::Relaxed) + 1;
                tracing::info!(
                    status = refusal.status.as_u16(),
                    error = refusal.error,
                    place = refusal.place,
                    "refused a request"
                );
                let Refusal { status, error, .. } = &refusal;
                self.intake
                    .0
                    .report(&format!("listening; refused {refused} requests, the last with {status}: {error}"));
                let mut answer = refusal.answer();
                // What is not read of the body would be taken for the next request.
                answer.headers_mut().insert(header::CONNECTION, header::HeaderValue::from_static("close"));
                answer
            }
        }
    }

    async fn take(&self, request: Request<Incoming>, allowed: &Result<Option<Vec<Digest>>>) -> Result<Answer, Refusal> {
        let (head, body) = request.into_parts();
        may_post(&head.headers, allowed)?;
        if head.uri.path() != self.path {
            let fix = format!("post to {}", self.path);
            return Err(Refusal::new(StatusCode::NOT_FOUND, "nothing is taken at this path", fix));
        }
        if head.method != Method::POST {
            return Err(Refusal::new(StatusCode::METHOD_NOT_ALLOWED, "records are posted", "send it with POST")
                .with("allow", "POST"));
        }
        if head.headers.contains_key(header::ORIGIN) {
            let fix = "send it from a program, or through a server of yours";
            return Err(Refusal::new(StatusCode::FORBIDDEN, "a page of the web asks, and none may", fix));
        }
        let (kind, encoding) = (Kind::of(&head.headers)?, Encoding::of(&head.headers)?);
        let key = keys::given(&head.headers)?;
        if key.is_some() && self.limits.keys == 0 {
            let fix = "leave the header out, or set the stream's option `idempotency_keys`";
            return Err(Refusal::bad("no Idempotency-Key is remembered here", fix));
        }
        let mut held = self.room.begin();
        let reading = body::read(body, self.limits.body, &mut held);
        let late = |_| {
            let error = format!("the request did not arrive within {:?}", self.limits.read);
            Refusal::new(
                StatusCode::REQUEST_TIMEOUT,
                error,
                "send less at a time, or set the stream's option `read_timeout`",
            )
        };
        let body = time::timeout(self.limits.read, reading).await.map_err(late)??;
        let block = if encoding != Encoding::Plain || body.len() >= LARGE {
            let limits = self.limits.clone();
            let (block, whole) = tokio::task::spawn_blocking(move || {
                let block = body::expand(encoding, body, limits.expanded, &mut held)
                    .and_then(|body| records(kind, body, &limits));
                (block, held)
            })
            .await
            .map_err(|_| {
                Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, "cutting the request failed", "please report it")
            })?;
            held = whole;
            block?
        } else {
            records(kind, body::expand(encoding, body, self.limits.expanded, &mut held)?, &self.limits)?
        };
        let key = key.map(|key| Key::new(key, &block));
        let count = block.len();
        if count == 0 {
            return Ok(taken(0, false));
        }
        let waiting = self.append(block, key);
        // What is given up here has not begun.
        let (durable, repeated) = time::timeout(self.limits.wait, waiting).await.map_err(|_| Refusal::behind())??;
        drop(held);
        match durable {
            None => Ok(taken(count, repeated)),
            Some(durable) => match durable.await {
                Ok(()) => Ok(taken(count, repeated)),
                Err(error) => Err(Refusal::broken(format!("it is not known whether the records are kept: {error}"))),
            },
        }
    }

    /// Hands records to the log; what tells when they are durable, and whether they were there before.
    async fn append(&self, block: Block, key: Option<Key>) -> Result<(Option<keys::Durable>, bool), Refusal> {
        let Some(key) = key else {
            let ack = self.intake.0.append(block, None).await.map_err(|error| self.fail(error))?;
            return Ok((Some(durable(ack)), false));
        };
        let mut keys = self.keys.lock().await;
        match keys.find(&key) {
            Known::Same(durable) => Ok((durable, true)),
            Known::Other => {
                let error = "this Idempotency-Key came with other records before";
                Err(Refusal::new(StatusCode::UNPROCESSABLE_ENTITY, error, "take a new key for other records"))
            }
            Known::New => {
                let token = keys.token_with(&key);
                let ack = self.intake.0.append(block, Some(token)).await.map_err(|error| self.fail(error))?;
                // No wait from here to the end: whoever was appended is known.
                let durable = durable(ack);
                keys.insert(key, durable.clone());
                Ok((Some(durable), false))
            }
        }
    }

    /// The log is closed or broken: the receiver ends.
    fn fail(&self, error: Error) -> Refusal {
        let refusal = Refusal::broken(format!("the log takes nothing: {}", error.chain()));
        self.broken.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
        self.end.stop();
        refusal
    }
}

fn may_post(headers: &HeaderMap, allowed: &Result<Option<Vec<Digest>>>) -> Result<(), Refusal> {
    let allowed = match allowed {
        Ok(None) => return Ok(()),
        Ok(Some(allowed)) => allowed,
        Err(error) => {
            tracing::error!(error = error.chain(), "who may post can't be read");
            return Err(Refusal::broken("who may post is not known now: the receiver can't read its tokens"));
        }
    };
    let given = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let token = given.split_once(' ').filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"));
    // Of hashes: how long the comparison takes tells nothing of a token.
    let known = token.map(|(_, token)| digest(&SHA256, token.trim().as_bytes()));
    if known.is_some_and(|known| allowed.iter().any(|one| one.as_ref() == known.as_ref())) {
        return Ok(());
    }
    let error = if token.is_some() { "this token may not post" } else { "the request has no token" };
    Err(Refusal::new(
        StatusCode::UNAUTHORIZED,
        error,
        "send it with Authorization: Bearer and a token of the receiver's",
    )
    .with("www-authenticate", "Bearer"))
}

/// Serves one connection to its end.
pub(super) async fn serve(stream: TcpStream, peer: SocketAddr, desk: Arc<Desk>, stop: Stop) -> Result<()> {
    crate::tcp::watch(&stream);
    // Answers should leave at once; a failure only costs delay.
    let _delayed = stream.set_nodelay(true);
    // Read anew for each connection, so that a token which was replaced is taken without a restart.
    let allowed = Arc::new(desk.allowed());
    let service = {
        let desk = Arc::clone(&desk);
        service_fn(move |request| {
            let (desk, allowed) = (Arc::clone(&desk), Arc::clone(&allowed));
            async move { Ok::<_, Infallible>(desk.answer(request, &allowed).await) }
        })
    };
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD)
        .max_buf_size(HEAD_BYTES)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = pin!(connection);
    let stopped = async {
        tokio::select! {
            () = stop.stopped() => {}
            () = desk.ended.stopped() => {}
        }
    };
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = stopped => {
            connection.as_mut().graceful_shutdown();
            time::timeout(PARTING, connection).await.unwrap_or(Ok(()))
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%peer, %error, "a connection ended");
    }
    match desk.broken.lock().unwrap_or_else(PoisonError::into_inner).take() {
        Some(error) => Err(error),
        None => Ok(()),
    }
}
