//! Tables of databases: as sinks, exactly once, asked by key ([`lookup`]), and read as streams (`poll`).
//!
//! ```text
//! stage    rows into `tidemill_staged_<table>`, under batch and part          a transaction of its own, seen by nobody
//! commit   staged rows ─► <table>, and `tidemill_batches` says: batch, time   one transaction
//! ```
//!
//! The number of the batch is in the same transaction as its rows, so a commit
//! that is repeated, or was cut off after the database took it, finds its own
//! mark and changes nothing. Staged rows of batches that were never committed
//! go at the next start; those of a commit that was cut off are kept for it, also when the program's columns
//! have changed (`staged`). No file and no list grows beside the table.
//!
//! With option `key` a row replaces the row of the same key (upsert); of several
//! in a batch the last counts. Without, rows are added. Should the table be ahead
//! of the program, because the program's data were restored from a backup or
//! begun anew, then its mark is set back and upserts are applied again, and a table
//! that is only added to refuses to go on.
//!
//! Invariant: a table has one program, and one output of it.

#[cfg(test)]
#[cfg(feature = "postgres")]
mod fault_tests;
mod lookup;
#[cfg(test)]
#[cfg(any(feature = "sqlite", feature = "postgres"))]
mod lookup_tests;
#[cfg(feature = "postgres")]
mod poll;
#[cfg(feature = "postgres")]
mod postgres;
#[cfg(feature = "postgres")]
mod postgres_lookup;
#[cfg(feature = "postgres")]
mod postgres_server;
#[cfg(test)]
#[cfg(feature = "postgres")]
mod postgres_tests;
#[doc(hidden)]
pub mod probe;
#[cfg(feature = "sqlite")]
mod sqlite;
#[cfg(feature = "sqlite")]
mod sqlite_lookup;
#[cfg(any(feature = "sqlite", feature = "postgres"))]
mod staged;
#[cfg(test)]
#[cfg(any(feature = "sqlite", feature = "postgres"))]
mod staged_tests;
mod table;
#[cfg(test)]
#[cfg(any(feature = "sqlite", feature = "postgres"))]
mod tests;

#[cfg(feature = "postgres")]
pub use poll::PostgresRows;
#[cfg(feature = "postgres")]
pub use postgres::PostgresSink;
#[cfg(feature = "postgres")]
pub use postgres_lookup::PostgresLookup;
#[cfg(feature = "sqlite")]
pub use sqlite::SqliteSink;
#[cfg(feature = "sqlite")]
pub use sqlite_lookup::SqliteLookup;

/// The rows of a part that has any; it is written in one transaction.
#[cfg(any(feature = "sqlite", feature = "postgres"))]
async fn gathered(
    mut rows: futures::stream::BoxStream<'_, tidemill_core::Result<arrow_array::RecordBatch>>,
) -> tidemill_core::Result<Vec<arrow_array::RecordBatch>> {
    use futures::StreamExt;
    let mut all = Vec::new();
    while let Some(rows) = rows.next().await {
        let rows = rows?;
        if rows.num_rows() > 0 {
            all.push(rows);
        }
    }
    Ok(all)
}

/// The table that says which batch each table has.
const BATCHES: &str = "tidemill_batches";
