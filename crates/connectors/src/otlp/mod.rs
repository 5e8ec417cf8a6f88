//! Traces of batches for a collector of OpenTelemetry, by OTLP over HTTP as JSON.
//!
//! ```text
//! board ─► reports that wait, 256 at most ─► spans, 500 or so a request ─► POST …/v1/traces
//! ```
//!
//! It reads the events of a [`Board`] as the page does, beside the program.
//! Invariant: no batch ever waits for a collector: when it is slow or away, the
//! oldest reports go, and their spans are counted on the board; a stop waits for
//! it a second at most; headers, which are credentials, go only to the address
//! they were given with, are never shown, and over plain HTTP go only to this
//! machine. Called by the facade's `assemble`.

mod export;
mod json;
mod spans;
#[cfg(test)]
mod tests;

use crate::http::{Link, Request, clock::WallClock, is_local, proxy, secret::Secret};
use hyper::header::HeaderName;
use ring::rand::{SecureRandom, SystemRandom};
use spans::Tracer;
use std::sync::Arc;
use tidemill_core::{Board, Clock, Error, Result, StopHandle};
use tokio::task::JoinHandle;

/// Where a collector takes traces, below its address.
const PATH: &str = "/v1/traces";
/// Headers at most.
const HEADERS: usize = 32;

/// Where traces go, before they do.
#[derive(Debug)]
pub struct Traces {
    request: Request,
    link: Link,
    clock: Arc<dyn Clock>,
    tracer: Tracer,
}

impl Traces {
    /// To the collector at `url`, such as `http://127.0.0.1:4318`; `/v1/traces` is put behind it, unless it ends so.
    ///
    /// # Errors
    /// When it is no address.
    pub fn to(url: &str) -> Result<Self> {
        let base = url.trim().trim_end_matches('/');
        let url = if base.ends_with(PATH) { base.to_string() } else { format!("{base}{PATH}") };
        Self::at(&url)
    }

    /// As [`Traces::to`], to the address as it is.
    ///
    /// # Errors
    /// When it is no address.
    pub fn at(url: &str) -> Result<Self> {
        let wrong = |why: &str| {
            Error::user(format!("address of the collector of traces: {why}; write it as http://127.0.0.1:4318"))
        };
        if url.contains(['?', '#']) {
            return Err(wrong("it has a query, which would be shown; credentials go into headers"));
        }
        let request =
            Request::get(url).map_err(|why| wrong(&why.replace(" (or http:// on this machine)", " or http://")))?;
        let request = request.post("application/json", "");
        let mut seed = [0; 8];
        SystemRandom::new().fill(&mut seed).map_err(|_| Error::external("the system gives no random numbers"))?;
        let tracer = Tracer { program: String::new(), seed: u64::from_be_bytes(seed) };
        Ok(Self { request, link: Link::default(), clock: Arc::new(WallClock), tracer })
    }

    /// With headers of `text`, a line each: `name: value`; empty lines and those that begin with `#` are passed over.
    ///
    /// # Errors
    /// When a line is none, without what stands in it, or the collector is another machine and not asked by HTTPS.
    pub fn headers(self, text: &str) -> Result<Self> {
        let lines = text.lines().enumerate().map(|(at, line)| (at + 1, line.trim()));
        let lines = lines.filter(|(_, line)| !line.is_empty() && !line.starts_with('#'));
        self.with(lines.map(|(at, line)| {
            let header = line.split_once(':').map(|(name, value)| (name, value.trim().to_string()));
            (format!("line {at}"), header)
        }))
    }

    /// With headers as `OTEL_EXPORTER_OTLP_HEADERS` has them: `name=value,name=value`, with `%20` for a space.
    ///
    /// # Errors
    /// As [`Traces::headers`].
    pub fn header_list(self, text: &str) -> Result<Self> {
        let pairs = text.split(',').map(str::trim).filter(|pair| !pair.is_empty());
        self.with(pairs.enumerate().map(|(at, pair)| {
            let header = pair.split_once('=').map(|(name, value)| (name, proxy::decode(value.trim())));
            (format!("pair {}", at + 1), header)
        }))
    }

    fn with<'a>(mut self, headers: impl Iterator<Item = (String, Option<(&'a str, String)>)>) -> Result<Self> {
        let mut count = 0;
        for (place, header) in headers {
            let wrong = |why: &str| Error::user(format!("headers for the collector of traces, {place}: {why}"));
            count += 1;
            if count > HEADERS {
                return Err(wrong("there are too many of them"));
            }
            let (name, value) = header.ok_or_else(|| wrong("a header has a name and a value"))?;
            let name: HeaderName = name.trim().parse().map_err(|_| wrong("this is no name of a header"))?;
            self.request = self.request.secret(name, &Secret::new(value)).map_err(|why| wrong(&why))?;
        }
        if count > 0 && !self.request.is_secure() && !is_local(self.request.host()) {
            let server = self.request.server();
            let why = "headers are credentials and go to another machine by https:// only";
            return Err(Error::user(format!("address of the collector of traces at {server}: {why}")));
        }
        Ok(self)
    }

    /// The program whose batches they are.
    #[must_use]
    pub fn program(mut self, name: &str) -> Self {
        self.tracer.program = name.to_string();
        self
    }

    /// The collector, for people.
    pub fn server(&self) -> &str {
        self.request.server()
    }

    /// Exports what the board tells from now on, in a task of the runtime that this is called in.
    pub fn follow(self, board: Arc<Board>) -> Following {
        let (stop, stopped) = StopHandle::new();
        let exporter = export::Exporter::new(self, board);
        Following { stop, task: tokio::spawn(exporter.run(stopped)) }
    }
}

/// An export that goes on until it is ended, or this is dropped.
#[derive(Debug)]
pub struct Following {
    stop: StopHandle,
    task: JoinHandle<()>,
}

impl Following {
    /// Sends what is left; a second later at most it has ended.
    pub async fn end(mut self) {
        self.stop.stop();
        if let Err(error) = (&mut self.task).await {
            tracing::warn!(%error, "the export of traces panicked");
        }
    }
}

impl Drop for Following {
    fn drop(&mut self) {
        self.task.abort();
    }
}
