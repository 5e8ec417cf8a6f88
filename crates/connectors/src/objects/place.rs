//! A store of objects, where in it a connector is, and how it is spoken of.
//!
//! Invariant: an error names the place, and says whose it is: what a human has to mend (credentials, a bucket that is
//! not there) is not tried again. Called by sources and sinks of objects.

use object_store::{ObjectStore, path::Path as Key};
use std::sync::Arc;
use tidemill_core::{Error, Result};

/// Objects below a prefix.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    pub(crate) store: Arc<dyn ObjectStore>,
    /// Begins messages: `s3`.
    pub(crate) kind: &'static str,
    /// What all names lie in, without a slash behind: `s3://bucket`.
    pub(crate) root: String,
    /// What names begin with, without slashes around; empty for all of the store.
    pub(crate) prefix: String,
    /// Whether objects are listed in the order of their names.
    pub(crate) is_sorted: bool,
    /// The server, where it is not the usual one.
    pub(crate) endpoint: Option<String>,
    /// What helps when credentials are refused.
    pub(crate) denied: &'static str,
}

impl Place {
    /// The beginning of names, for people.
    pub(crate) fn url(&self) -> String {
        let slash = if self.prefix.is_empty() { "" } else { "/" };
        format!("{}{slash}{}", self.root, self.prefix)
    }

    /// The server, for people: nothing, or ` at …`.
    pub(crate) fn at(&self) -> String {
        self.endpoint.as_ref().map(|endpoint| format!(" at {endpoint}")).unwrap_or_default()
    }

    /// The name of an object by what follows the prefix.
    pub(crate) fn key(&self, rest: &str) -> Result<Key> {
        let whole = if self.prefix.is_empty() { rest.to_string() } else { format!("{}/{rest}", self.prefix) };
        Key::parse(whole).map_err(|e| Error::internal(format!("{}: a name of an object", self.kind)).because(e))
    }

    /// The prefix as the store wants it.
    pub(crate) fn prefix(&self) -> Result<Key> {
        Key::parse(&self.prefix).map_err(|e| Error::internal(format!("{}: a prefix", self.kind)).because(e))
    }

    /// What follows the prefix.
    pub(crate) fn rest<'a>(&self, key: &'a Key) -> &'a str {
        key.as_ref().get(self.prefix.len()..).unwrap_or_default().trim_start_matches('/')
    }

    /// Why `what` (`list`, `write to`) was not possible here.
    pub(crate) fn failed(&self, what: &str, error: object_store::Error) -> Error {
        use object_store::Error as Cause;
        let text = format!("{}: can't {what} {}", self.kind, self.url());
        // The store's word for a bucket that is not there.
        let said = error.to_string();
        let no_bucket = said.contains("NoSuchBucket");
        // Of a list that is refused the client makes a general error.
        let denied = matches!(error, Cause::PermissionDenied { .. } | Cause::Unauthenticated { .. })
            || said.contains("status code: 403")
            || said.contains("status code: 401");
        match error {
            error if denied => Error::user(format!("{text}: {}", self.denied)).because(error),
            error if no_bucket => {
                let bucket = self.root.rsplit('/').next().unwrap_or_default();
                Error::user(format!("{text}: there is no bucket `{bucket}`: make it first")).because(error)
            }
            error @ (Cause::NotSupported { .. } | Cause::NotImplemented { .. } | Cause::InvalidPath { .. }) => {
                Error::user(text).because(error)
            }
            error => Error::external(text).because(error),
        }
    }
}
