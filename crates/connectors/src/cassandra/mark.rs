//! The mark of a table: which batch is whole in it, and at which write time.
//!
//! Cassandra keeps, of two values of a cell, the one of the later write time, whichever comes first. So each batch
//! has one: its own time, or just behind the last batch's where clocks went back.
//!
//! ```text
//! batch 7, 15:00:01   mark 6 at 15:00:00   written at 15:00:01
//! again, cut off      mark 6 at 15:00:00   written at 15:00:01    the same cells: nothing changes
//! batch 8, 14:59:00   mark 7 at 15:00:01   written at 15:00:01.000001
//! ```
//!
//! Invariant: that of [`crate::stamp`], which says when. Called by the sink.

use super::{server::Server, table::quoted};
use crate::stamp::{ANY, BATCHES, Mark};
use scylla::statement::Statement;
use tidemill_core::{Error, Result};

/// Of write times, in microseconds.
pub(super) const UNIT: i64 = 1;

/// The statement that makes the table of marks.
pub(super) fn create(keyspace: &str) -> String {
    format!(
        "CREATE TABLE IF NOT EXISTS {}.{BATCHES} (sink text PRIMARY KEY, batch_number bigint, batch_time bigint, write_time bigint)",
        quoted(keyspace)
    )
}

/// Reads the mark of a table; one of no batch when there is none.
///
/// # Errors
/// When the cluster does not answer, or with what is no mark.
pub(super) async fn read(server: &Server, table: &str) -> Result<Mark> {
    let text = format!(
        "SELECT batch_number, batch_time, write_time FROM {}.{BATCHES} WHERE sink = ?",
        quoted(&server.keyspace)
    );
    let mut statement = Statement::new(text);
    statement.set_consistency(server.for_marks());
    statement.set_is_idempotent(true);
    let what = format!("read the mark of `{table}`");
    let answer = server.session().await?.query_unpaged(statement, (table,)).await;
    let answer = answer.map_err(|e| server.failed(&what, e))?;
    let no_mark = |e: String| {
        Error::external(format!("cassandra: can't {what} at {}: `{BATCHES}` has another form", server.place)).because(e)
    };
    let rows = answer.into_rows_result().map_err(|e| no_mark(e.to_string()))?;
    let row = rows.maybe_first_row::<(Option<i64>, Option<i64>, Option<i64>)>().map_err(|e| no_mark(e.to_string()))?;
    Ok(row.map_or_else(Mark::default, |(batch, time, stamp)| Mark {
        batch: batch.unwrap_or_default(),
        // What someone removed by hand is not taken for the time of a batch.
        time: time.unwrap_or(ANY),
        stamp: stamp.unwrap_or_default(),
    }))
}

/// Notes which batch is whole.
///
/// # Errors
/// When the cluster does not take it.
pub(super) async fn note(server: &Server, table: &str, mark: Mark) -> Result<()> {
    let text = format!(
        "INSERT INTO {}.{BATCHES} (sink, batch_number, batch_time, write_time) VALUES (?, ?, ?, ?)",
        quoted(&server.keyspace)
    );
    let mut statement = Statement::new(text);
    statement.set_consistency(server.for_marks());
    statement.set_is_idempotent(true);
    // As the rows: a note that comes late is not taken for the newest.
    statement.set_timestamp(Some(mark.stamp));
    let done = server.session().await?.query_unpaged(statement, (table, mark.batch, mark.time, mark.stamp)).await;
    done.map(drop).map_err(|e| server.failed(&format!("note the batch of `{table}`"), e))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stamp::Step;
    use tidemill_core::Timestamp;

    #[test]
    fn a_batch_is_written_at_one_time_behind_all_others() {
        let none = Mark::default();
        assert_eq!(none.step(1, Timestamp(5000), UNIT), Step::Write(5000));
        let first = Mark::of(1, Timestamp(5000), 5000);
        assert_eq!(first.step(1, Timestamp(5000), UNIT), Step::Nothing);
        assert_eq!(first.step(2, Timestamp(6000), UNIT), Step::Write(6000));
        // Clocks that stand still or go back.
        assert_eq!(first.step(2, Timestamp(5000), UNIT), Step::Write(5001));
        assert_eq!(first.step(2, Timestamp(10), UNIT), Step::Write(5001));
        // The same number of another history is another batch.
        assert_eq!(first.step(1, Timestamp(4000), UNIT), Step::Write(5001));
        // A program that was restored at batch 2, and then repeats it, and goes on.
        let ahead = Mark::of(7, Timestamp(9000), 9000);
        assert_eq!(ahead.step(2, Timestamp(6000), UNIT), Step::Nothing);
        let back = ahead.back(2);
        assert_eq!(back.step(2, Timestamp(6000), UNIT), Step::Nothing);
        assert_eq!(back.step(3, Timestamp(7000), UNIT), Step::Write(9002));
    }
}
