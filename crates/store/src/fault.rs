//! From errors of the disk and of Arrow to the error that crosses rooms.
//!
//! Invariant: every message names the path. Called all over this crate.

use crate::disk::Crashed;
use std::{io, path::Path};
use tidemill_core::Error;

/// An error of the disk: worth a retry, since disks fill up and are emptied again.
/// That a simulated machine has stopped is final: no disk comes back to the process.
pub fn io_error(what: &str, path: &Path, error: io::Error) -> Error {
    let hint = if is_full(&error) { " (no space left: free some)" } else { "" };
    let is_final = error.get_ref().is_some_and(|inner| inner.is::<Crashed>());
    let error = Error::external(format!("can't {what} {}{hint}", path.display())).because(error);
    if is_final { error.fatal() } else { error }
}

/// Whether the disk, the quota or the file's limit is exhausted.
pub(crate) fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge)
}

/// Adds "can't `what` `path`" to an [`io::Result`].
pub(crate) trait Named<T> {
    fn named(self, what: &str, path: &Path) -> Result<T, Error>;
}

impl<T> Named<T> for io::Result<T> {
    fn named(self, what: &str, path: &Path) -> Result<T, Error> {
        self.map_err(|e| io_error(what, path, e))
    }
}
