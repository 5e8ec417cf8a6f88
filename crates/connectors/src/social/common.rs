//! The options that all collectors have.
//!
//! Invariant: each is taken once, so that an option which nobody asked for is
//! still told. Called by the collectors' `from_options`.

use super::{http::Link, proxy::Proxy};
use crate::lines;
use std::time::Duration;
use tidemill_core::{Error, Options, Result};

/// What all collectors have.
#[derive(Debug, Clone)]
pub struct Common {
    /// The way to servers, and the clock.
    pub link: Link,
    /// Bytes of a message at most.
    pub max_line: usize,
    /// Silence after which a connection is taken for dead.
    pub quiet: Duration,
    /// How long records are gathered to a block; a tenth of a second unless a test says otherwise.
    pub gather: Option<Duration>,
}

impl Common {
    /// As it is unless options say otherwise. `quiet` is more than the protocol's own keep-alive.
    pub fn new(quiet: Duration) -> Self {
        Self { link: Link::default(), max_line: lines::MAX_LINE, quiet, gather: None }
    }

    /// From the options `proxy`, `user_agent`, `max_line` and `idle_timeout`.
    ///
    /// # Errors
    /// When one is wrong.
    pub fn from_options(options: &Options, quiet: Duration) -> Result<Self> {
        let mut common = Self::new(quiet);
        common.link.proxy = Proxy::from_options(options)?;
        if let Some(agent) = user_agent(options)? {
            common.link.agent = agent;
        }
        common.max_line = lines::max_line(options)?;
        common.quiet = options.duration("idle_timeout", quiet)?.max(Duration::from_secs(1));
        Ok(common)
    }
}

/// The option `user_agent`.
pub(crate) fn user_agent(options: &Options) -> Result<Option<String>> {
    let Some(agent) = options.get("user_agent") else { return Ok(None) };
    if agent.is_empty() || !agent.bytes().all(|b| (b' '..=b'~').contains(&b)) {
        let owner = options.owner();
        return Err(Error::user(format!("{owner}: option `user_agent` must be plain text of a line")));
    }
    Ok(Some(agent.to_string()))
}

/// A list of texts, with commas.
pub(crate) fn list(text: &str) -> Vec<String> {
    text.split(',').map(str::trim).filter(|t| !t.is_empty()).map(str::to_string).collect()
}

/// A text as it may stand in a query: RFC 3986, all but letters, digits and `-._~` by their bytes.
pub(super) fn encode(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => out.push(char::from(byte)),
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

/// The parameters of a query, or of a form: `a=1&b=2`.
pub(super) fn query<'a>(pairs: impl IntoIterator<Item = (&'a str, String)>) -> String {
    let pairs: Vec<String> =
        pairs.into_iter().map(|(key, value)| format!("{}={}", encode(key), encode(&value))).collect();
    pairs.join("&")
}
