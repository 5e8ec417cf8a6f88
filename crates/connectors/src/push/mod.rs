//! Connector `http`: listens, and takes records that are posted to it.
//!
//! | Option | Meaning |
//! |---|---|
//! | `address` | where to listen, `127.0.0.1:8080`; port 0 takes a free one, which the state tells |
//! | `path` | what is posted to (`/`) |
//! | `token_file`, `token_env` | where the bearer tokens are that may post, one a line: a file, or a variable; without either, all may who reach it |
//! | `max_body` | bytes of a request at most, as sent (8 MiB) |
//! | `max_expanded` | bytes of it at most, when it is no longer compressed (32 MiB) |
//! | `max_records` | records of a request at most (100,000) |
//! | `max_line` | bytes of a record at most (1 MiB) |
//! | `queue_bytes` | bytes of all requests at most that are being taken (256 MiB); beyond, 429 |
//! | `wait` | how long a request waits for a log that is behind (10s); beyond, 503 |
//! | `read_timeout` | how long a request may take to arrive (30s); beyond, 408 |
//! | `idempotency_keys` | how many keys of requests are remembered (256; 0 takes no keys) |
//! | `max_connections` | connections at the same time (1024) |
//!
//! A body is JSON (`application/json`: an object is a record, an array one a
//! item), lines (`application/x-ndjson`, `text/plain`, `text/csv`: one a
//! line), or one record of bytes (`application/octet-stream` and its like), as it is or with `Content-Encoding: gzip` or `zstd`. Nothing else is
//! taken: what it is would be guessed.
//!
//! **A request is taken whole or not at all.** 200 is answered when all of its
//! records are durable, as far as the topic's `sync` promises; any other code
//! says why none was taken, as JSON: `error`, `place` (the record and byte,
//! where there is one) and `fix`. Only after 503 for a log that failed, or a
//! connection that broke, it is not known; who then posts again, posts twice,
//! unless the request has an `Idempotency-Key`: the keys of the last requests
//! are kept with the records, and what comes again is answered with 200 and
//! not taken. A key goes with its records: with others, it is refused (422).
//!
//! Pages of the web can make a browser post to this machine. They can't leave
//! out the header `Origin`, so requests that have it are refused.
//!
//! Invariant: what is held of requests is bounded (`queue_bytes`), whatever
//! they expand to; nobody is told 200 of a record that is not in the log.

mod answer;
mod body;
mod desk;
mod keys;
mod records;
#[cfg(test)]
mod tests;

use crate::{
    lines,
    social::secret::Place,
    tcp::{accept, address_claim, bind},
};
use async_trait::async_trait;
use desk::{Desk, serve};
use std::{sync::Arc, time::Duration};
use tidemill_core::{Claim, Error, Input, Intake, Options, Receiver, Result, Stop};
use tokio::sync::Semaphore;

/// Bytes of a body at most that any option allows: a request is one frame of the log, which has its own bound.
const MOST: u64 = 128 << 20;

/// How much of what is taken.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Bytes of a request, as sent.
    pub body: usize,
    /// Bytes of it, expanded.
    pub expanded: usize,
    /// Records of a request.
    pub records: usize,
    /// Bytes of a record.
    pub record: usize,
    /// Bytes of all requests that are being taken.
    pub queue: usize,
    /// Keys that are remembered.
    pub keys: usize,
    /// How long a request waits for the log.
    pub wait: Duration,
    /// How long a request may take to arrive.
    pub read: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            body: 8 << 20,
            expanded: 32 << 20,
            records: 100_000,
            record: lines::MAX_LINE,
            queue: 256 << 20,
            keys: 256,
            wait: Duration::from_secs(10),
            read: Duration::from_secs(30),
        }
    }
}

/// An HTTP server that takes records.
#[derive(Debug, Clone)]
pub struct HttpListen {
    address: String,
    path: String,
    tokens: Option<Place>,
    max_connections: usize,
    limits: Limits,
}

impl HttpListen {
    /// Listens at `address`, for requests to `/`.
    pub fn new(address: impl Into<String>) -> Self {
        let (path, limits) = ("/".to_string(), Limits::default());
        Self { address: address.into(), path, tokens: None, max_connections: 1024, limits }
    }

    /// Takes only what comes with one of these tokens.
    #[must_use]
    pub fn tokens(mut self, place: Place) -> Self {
        self.tokens = Some(place);
        self
    }

    /// With other limits.
    #[must_use]
    pub fn limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// The listener that a stream's options ask for.
    ///
    /// # Errors
    /// When an option is missing or wrong.
    pub fn input(options: &Options) -> Result<Input> {
        let owner = options.owner();
        let wrong = |why: String| Error::user(format!("{owner}: {why}"));
        let mut listen = Self::new(options.require("address", "it says where to listen, such as 127.0.0.1:8080")?);
        if listen.address.contains('/') || !listen.address.contains(':') {
            return Err(wrong(format!(
                "option `address` must be host:port, such as 127.0.0.1:8080, not `{}`; what is posted to stands in option `path`",
                listen.address
            )));
        }
        if let Some(path) = options.get("path") {
            let plain = |b: u8| b.is_ascii_graphic() && !matches!(b, b'?' | b'#');
            if !path.starts_with('/') || !path.bytes().all(plain) {
                return Err(wrong(format!("option `path` must begin with `/` and have no `?`, not `{path}`")));
            }
            listen.path = path.to_string();
        }
        // Also when neither is given: a token in the program's text is refused there.
        let place = Place::from_options(options, "token", "TIDEMILL_HTTP_TOKEN")?;
        let asked = options.get("token_file").is_some() || options.get("token_env").is_some();
        listen.tokens = asked.then_some(place);
        let size = |key: &str, default: usize| -> Result<usize> {
            let bytes = options.bytes(key, default as u64)?;
            match usize::try_from(bytes) {
                Ok(size) if (1..=MOST).contains(&bytes) => Ok(size),
                _ => Err(wrong(format!("option `{key}` must be between 1 byte and 128MiB"))),
            }
        };
        let usual = Limits::default();
        let mut limits = Limits {
            body: size("max_body", usual.body)?,
            expanded: size("max_expanded", usual.expanded)?,
            records: options.parse("max_records", usual.records)?,
            record: lines::max_line(options)?,
            keys: options.parse("idempotency_keys", usual.keys)?,
            wait: options.duration("wait", usual.wait)?,
            read: options.duration("read_timeout", usual.read)?,
            ..usual
        };
        let queue = options.bytes("queue_bytes", limits.queue as u64)?;
        let least = limits.body + limits.expanded;
        limits.queue = match usize::try_from(queue) {
            Ok(queue) if queue >= least && u32::try_from(queue).is_ok() => queue,
            _ => {
                return Err(wrong(format!(
                    "option `queue_bytes` must hold one request at least, which is `max_body` and `max_expanded` ({least} bytes), and be below 4GiB"
                )));
            }
        };
        if limits.records == 0 {
            return Err(wrong("option `max_records` must be 1 at least".to_string()));
        }
        if limits.keys > 4096 {
            return Err(wrong(
                "option `idempotency_keys` must be 4096 at most: all of them are kept with each request".to_string(),
            ));
        }
        if limits.read.is_zero() {
            return Err(wrong("option `read_timeout` must be more than nothing".to_string()));
        }
        listen.limits = limits;
        listen.max_connections =
            options.parse("max_connections", listen.max_connections)?.clamp(1, Semaphore::MAX_PERMITS);
        Ok(Input::Receivers(vec![Arc::new(listen)]))
    }
}

#[async_trait]
impl Receiver for HttpListen {
    fn describe(&self) -> String {
        format!("http {}{}", self.address, self.path)
    }

    fn claim(&self) -> Option<Claim> {
        address_claim(&self.address)
    }

    async fn run(&self, intake: Arc<dyn Intake>, stop: Stop) -> Result<()> {
        if let Some(place) = &self.tokens {
            place.read()?;
        }
        let listener = bind("http", &self.address).await?;
        let desk = Arc::new(Desk::new(&self.path, self.tokens.clone(), self.limits.clone(), Arc::clone(&intake)));
        accept(&listener, self.max_connections, &intake, &stop, |stream, peer| {
            serve(stream, peer, Arc::clone(&desk), stop.clone())
        })
        .await
    }
}
