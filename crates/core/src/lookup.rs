//! A table outside that is asked for the rows of some keys and never held whole.
//!
//! ```text
//! distinct keys of a batch ─► one question ─► all rows of those keys
//! ```
//!
//! Invariant: what is asked in one call is answered as of one moment, where the
//! table can do that; a key without rows is no error. Called by the engine once
//! a batch at most, for the keys whose answers it does not know.

use crate::Result;
use arrow_array::RecordBatch;
use async_trait::async_trait;
use std::fmt;

/// Rows by keys.
#[async_trait]
pub trait Lookup: Send + Sync + fmt::Debug {
    /// For people: `sqlite shop.db, table users`.
    fn describe(&self) -> String;

    /// All rows of which the key columns equal those of one row of `keys`, in
    /// any order, with the columns that the table was declared with. The columns
    /// of `keys` are those of the key, in its order, under their types; no key
    /// stands there twice, and none is NULL.
    ///
    /// # Errors
    /// When the table can't be asked now (external: the batch is tried again), or
    /// does not have what was declared (the user's).
    async fn rows(&self, keys: &RecordBatch) -> Result<Vec<RecordBatch>>;
}
