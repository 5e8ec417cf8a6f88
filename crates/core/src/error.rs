//! The one error that crosses rooms.
//!
//! Invariant: every error says whose fault it is ([`Blame`]) and whether the
//! same call may succeed later, because the caller decides by these two alone:
//! stop the program, retry with back-off, or set the record aside.

use std::{error::Error as StdError, fmt};

/// `Result` with the shared [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Whose fault an error is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Blame {
    /// The program, the configuration or the data that the user gave.
    User,
    /// A disk, a network, a server: something outside that may heal.
    External,
    /// A bug of ours.
    Internal,
}

/// An error with blame, a retry hint and its cause.
pub struct Error {
    message: String,
    blame: Blame,
    retry: bool,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

impl Error {
    /// The user's program, option or data is wrong; trying again won't help.
    pub fn user(message: impl Into<String>) -> Self {
        Self { message: message.into(), blame: Blame::User, retry: false, source: None }
    }

    /// Something outside failed; it may heal, so it is worth a retry.
    pub fn external(message: impl Into<String>) -> Self {
        Self { message: message.into(), blame: Blame::External, retry: true, source: None }
    }

    /// A bug of ours.
    pub fn internal(message: impl Into<String>) -> Self {
        Self { message: message.into(), blame: Blame::Internal, retry: false, source: None }
    }

    /// Adds the cause.
    #[must_use]
    pub fn because(mut self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// Marks the error as final: the same call will not succeed later.
    #[must_use]
    pub fn fatal(mut self) -> Self {
        self.retry = false;
        self
    }

    /// Whose fault it is.
    pub fn blame(&self) -> Blame {
        self.blame
    }

    /// Whether the same call may succeed later.
    pub fn is_retryable(&self) -> bool {
        self.retry
    }

    /// The message with all its causes, joined by `: `, for one line of a terminal.
    pub fn chain(&self) -> String {
        let mut text = self.message.clone();
        let mut next = self.source();
        while let Some(cause) = next {
            text.push_str(": ");
            text.push_str(&cause.to_string());
            next = cause.source();
        }
        text
    }
}

/// The chain, as people read it: `main` functions that return an error print this form.
impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.chain())
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.source.as_ref().map(|s| &**s as &(dyn StdError + 'static))
    }
}
