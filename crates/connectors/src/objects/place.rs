//! A store of objects, where in it a connector is, and how it is spoken of.
//!
//! Invariant: an error names the place, and says whose it is: what a human has to mend (credentials, a bucket that is
//! not there) is not tried again. Called by sources and sinks of objects.

use async_trait::async_trait;
use glob::Pattern;
use object_store::{ObjectStore, path::Path as Key};
use std::{fmt::Debug, sync::Arc};
use tidemill_core::{Error, Options, Result};

/// How a store names what it writes before it is whole: `.name.7f3a.tmp` beside `name`. Readers pass over such.
pub(crate) mod half {
    /// The name to write under first.
    #[cfg(any(feature = "hdfs", test))]
    pub(crate) fn of(name: &str, tag: &str) -> String {
        format!(".{name}.{tag}.tmp")
    }

    /// What a half one is to become.
    pub(crate) fn whole(name: &str) -> Option<&str> {
        let (name, tag) = name.strip_prefix('.')?.strip_suffix(".tmp")?.rsplit_once('.')?;
        (!name.is_empty() && tag.bytes().all(|b| b.is_ascii_hexdigit())).then_some(name)
    }
}

/// What a store that is a file system knows more of: its directories are there or not, and its files grow.
#[async_trait]
pub(crate) trait Tree: Debug + Send + Sync {
    /// Whether nobody writes to a file any more.
    async fn is_closed(&self, file: &Key) -> object_store::Result<bool>;
}

/// What names begin with, and what of them is a pattern: `logs/`, `**/*.json`.
///
/// # Errors
/// When option `url`, which has those names, has a pattern that is none.
pub(crate) fn pattern<'a>(options: &Options, names: &'a str) -> Result<(&'a str, Option<Pattern>)> {
    let Some(first) = names.find(['*', '?', '[']) else { return Ok((names, None)) };
    let dir = names[..first].rfind('/').map_or(0, |slash| slash + 1);
    let pattern = Pattern::new(&names[dir..]).map_err(|e| {
        let url = options.get("url").unwrap_or(names);
        Error::user(format!("{}: option `url`: `{url}` is not a pattern: {e}", options.owner()))
    })?;
    Ok((&names[..dir], Some(pattern)))
}

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
    /// Where the store is a file system, what it knows more.
    pub(crate) tree: Option<Arc<dyn Tree>>,
    /// What a human has to mend, where an error of the store needs one.
    pub(crate) fix: fn(&Place, &object_store::Error) -> Option<String>,
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

    /// Whether an error says that there is no such object; not, that there is no such bucket.
    pub(crate) fn is_absent(&self, error: &object_store::Error) -> bool {
        matches!(error, object_store::Error::NotFound { source, .. } if !source.to_string().contains("NoSuchBucket"))
    }

    /// Why `what` (`list`, `write to`) was not possible here.
    pub(crate) fn failed(&self, what: &str, error: object_store::Error) -> Error {
        use object_store::Error as Cause;
        let text = format!("{}: can't {what} {}", self.kind, self.url());
        match ((self.fix)(self, &error), error) {
            (Some(fix), error) => Error::user(format!("{text}: {fix}")).because(error),
            (None, error @ (Cause::NotSupported { .. } | Cause::NotImplemented { .. } | Cause::InvalidPath { .. })) => {
                Error::user(text).because(error)
            }
            (None, error) => Error::external(text).because(error),
        }
    }
}
