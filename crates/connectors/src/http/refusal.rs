//! Why an answer that is no success is none, and how to go on after it.
//!
//! Invariant: what a server says in an error is cut short before it is shown.
//! Called by the client of [`super`] and by [`crate::websocket`], whose opening is
//! an answer too.

use super::failure::Failure;
use hyper::{HeaderMap, StatusCode};
use std::time::Duration;
use tidemill_core::{Clock, Timestamp};

/// Bytes of an error's text that are shown.
const SHOWN: usize = 300;
/// A clock that is off by more than this is named as the reason of a 401.
const SKEW: Duration = Duration::from_secs(60);

/// An answer that is no success.
pub(crate) struct Refusal<'a> {
    pub(crate) status: StatusCode,
    pub(crate) headers: &'a HeaderMap,
    pub(crate) clock: &'a dyn Clock,
}

impl Refusal<'_> {
    /// With the text that came along, as a [`Failure`] that says how to go on.
    pub(crate) fn failure(&self, text: &[u8]) -> Failure {
        let text = String::from_utf8_lossy(text);
        let shown: String = text.split_whitespace().collect::<Vec<_>>().join(" ").chars().take(SHOWN).collect();
        let mut why = format!("the server answered {}", self.status);
        if !shown.is_empty() {
            why.push_str(&format!(": {shown}"));
        }
        match self.status.as_u16() {
            420 | 429 => Failure::Limited(why, self.until()),
            401 => match self.skew() {
                // A wrong clock is mended by itself, where there is a time service.
                Some(skew) => Failure::Http(format!("{why}; {skew}")),
                None => Failure::Denied(format!("{why}; check the credentials")),
            },
            403 => Failure::Denied(why),
            // What is asked for is wrong or not there, and stays so.
            400 | 404 | 405 | 406 | 410 | 413 | 414 | 422 | 426 => Failure::Denied(why),
            503 if self.header("retry-after").is_some() => Failure::Limited(why, self.until()),
            _ => Failure::Http(why),
        }
    }

    fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// When there may be more requests: `Retry-After` (seconds or a date), or the reset of a rate limit (seconds
    /// since 1970, or ISO 8601).
    fn until(&self) -> Option<Timestamp> {
        if let Some(after) = self.header("retry-after") {
            let now = self.clock.now();
            let seconds = after.trim().parse().ok().map(|s: u64| now.plus(Duration::from_secs(s)));
            return seconds.or_else(|| http_date(after));
        }
        let reset = self.header("x-rate-limit-reset").or_else(|| self.header("x-ratelimit-reset"))?;
        let seconds = reset.trim().parse::<i64>().ok().and_then(|s| s.checked_mul(1_000_000));
        seconds.or_else(|| crate::format::time::instant(reset)).map(Timestamp)
    }

    /// By how much our clock and the server's differ, in words, if by much.
    fn skew(&self) -> Option<String> {
        let (theirs, ours) = (date(self.headers)?, self.clock.now());
        let (off, word) = if ours > theirs { (ours.since(theirs), "ahead of") } else { (theirs.since(ours), "behind") };
        (off > SKEW).then(|| {
            format!(
                "this machine's clock is {} s {word} the server's ({theirs}), which alone can make it refuse: set the clock right",
                off.as_secs()
            )
        })
    }
}

/// The server's time.
pub(crate) fn date(headers: &HeaderMap) -> Option<Timestamp> {
    http_date(headers.get("date")?.to_str().ok()?)
}

fn http_date(text: &str) -> Option<Timestamp> {
    let at = httpdate::parse_http_date(text.trim()).ok()?;
    let since = at.duration_since(std::time::UNIX_EPOCH).ok()?;
    i64::try_from(since.as_micros()).ok().map(Timestamp)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_of_headers_are_read() {
        assert_eq!(http_date("Wed, 21 Oct 2015 07:28:00 GMT"), Some(Timestamp(1_445_412_480_000_000)));
        assert_eq!(http_date("yesterday"), None);
    }
}
