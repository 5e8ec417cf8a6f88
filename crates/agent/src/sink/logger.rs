//! Sinks `logger`, which prints events for people, and `null`, which drops them.
//!
//! ```text
//! Event: { headers:{host=a} body: 48 65 6C 6C 6F                                  Hello }
//! ```
//!
//! Invariant: the form is Flume's: 16 bytes at most by default, as hexadecimal and as text, where what can't be shown
//! is a dot. Both are at least once: after a crash an event may be printed again.

use super::Outlet;
use crate::event::Event;
use async_trait::async_trait;
use std::{
    fmt::Write as _,
    io::Write,
    sync::{Arc, Mutex, PoisonError},
};
use tidemill_core::{Error, Guarantee, Result};

/// Where lines for people go; shared with whoever else prints.
pub type Out = Arc<Mutex<dyn Write + Send>>;

/// Prints events.
pub(crate) struct Logger {
    /// Bytes of a body that are shown.
    pub(crate) most: usize,
    pub(crate) out: Out,
}

/// The line of an event.
pub(crate) fn line(event: &Event, most: usize) -> String {
    let headers: Vec<String> = event.headers.iter().map(|(key, value)| format!("{key}={value}")).collect();
    let shown = &event.body[..event.body.len().min(most)];
    let (mut hex, mut text) = (String::new(), String::new());
    for byte in shown {
        // Writing to a string can't fail.
        let _written = write!(hex, "{byte:02X} ");
        text.push(if (0x20..0x7f).contains(byte) { char::from(*byte) } else { '.' });
    }
    let width = most.min(16) * 3;
    format!("Event: {{ headers:{{{}}} body: {hex:<width$} {text} }}\n", headers.join(", "))
}

#[async_trait]
impl Outlet for Logger {
    fn describe(&self) -> String {
        "logger".to_owned()
    }

    fn guarantee(&self) -> Guarantee {
        Guarantee::AtLeastOnce
    }

    async fn open(&mut self, _left: Option<String>, _durable: bool) -> Result<Option<String>> {
        Ok(None)
    }

    async fn deliver(&mut self, events: &[Event]) -> Result<Option<String>> {
        let text: String = events.iter().map(|event| line(event, self.most)).collect();
        let mut out = self.out.lock().unwrap_or_else(PoisonError::into_inner);
        let written = out.write_all(text.as_bytes()).and_then(|()| out.flush());
        written.map_err(|e| Error::external("logger: standard output can't be written").because(e))?;
        Ok(None)
    }
}

/// Drops events.
#[derive(Debug, Default)]
pub(crate) struct Null;

#[async_trait]
impl Outlet for Null {
    fn describe(&self) -> String {
        "null".to_owned()
    }

    fn guarantee(&self) -> Guarantee {
        Guarantee::AtLeastOnce
    }

    async fn open(&mut self, _left: Option<String>, _durable: bool) -> Result<Option<String>> {
        Ok(None)
    }

    async fn deliver(&mut self, _events: &[Event]) -> Result<Option<String>> {
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tidemill_core::Timestamp;

    #[test]
    fn an_event_is_shown_as_flume_shows_it() {
        let mut event = Event::new("Hello world!\r", Timestamp(0));
        assert_eq!(
            line(&event, 16),
            "Event: { headers:{} body: 48 65 6C 6C 6F 20 77 6F 72 6C 64 21 0D           Hello world!. }\n"
        );
        event.headers.insert("host".to_owned(), "a".to_owned());
        event.headers.insert("at".to_owned(), "1".to_owned());
        event.body = "潮".into();
        assert_eq!(line(&event, 2), "Event: { headers:{at=1, host=a} body: E6 BD  .. }\n");
    }
}
