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
//! Invariant: the write time of a batch depends on its own time and the mark alone, which stays until the batch is
//! whole; it is behind that of all whole batches, so nothing that was given up and comes late stands over it. Called
//! by the sink.

use super::{server::Server, table::quoted};
use scylla::statement::Statement;
use tidemill_core::{BatchId, Error, Result, Timestamp};

/// The table of marks.
pub(super) const BATCHES: &str = "tidemill_batches";

/// The time of a mark that was set back: what it says is in the table, whatever its time was.
const ANY: i64 = i64::MIN;

/// What is whole in a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Mark {
    /// The last batch; 0 is none.
    pub(super) batch: i64,
    /// Its time, or [`ANY`].
    time: i64,
    /// Its write time.
    stamp: i64,
}

/// What a commit has to do.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// The batch is in the table, or later ones are: `recover` decides.
    Nothing,
    /// Its rows go in at this write time.
    Write(i64),
}

/// Number of a batch, as the cluster counts.
pub(super) fn signed(batch: BatchId) -> Result<i64> {
    i64::try_from(batch.0).map_err(|_| Error::internal("a batch's number exceeds what a database counts"))
}

impl Mark {
    pub(super) fn step(&self, batch: i64, time: Timestamp) -> Step {
        let is_whole = self.batch == batch && (self.time == time.0 || self.time == ANY);
        if is_whole || self.batch > batch { Step::Nothing } else { Step::Write(self.behind(time)) }
    }

    /// A write time that none before it reaches.
    fn behind(&self, time: Timestamp) -> i64 {
        time.0.max(self.stamp.saturating_add(1))
    }

    /// The mark of a batch that was written.
    pub(super) fn of(batch: i64, time: Timestamp, stamp: i64) -> Self {
        Self { batch, time: time.0, stamp }
    }

    /// The mark of a program that is at an earlier batch.
    pub(super) fn back(&self, batch: i64) -> Self {
        Self { batch, time: ANY, stamp: self.stamp.saturating_add(1) }
    }
}

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

    #[test]
    fn a_batch_is_written_at_one_time_behind_all_others() {
        let none = Mark::default();
        assert_eq!(none.step(1, Timestamp(5000)), Step::Write(5000));
        let first = Mark::of(1, Timestamp(5000), 5000);
        assert_eq!(first.step(1, Timestamp(5000)), Step::Nothing);
        assert_eq!(first.step(2, Timestamp(6000)), Step::Write(6000));
        // Clocks that stand still or go back.
        assert_eq!(first.step(2, Timestamp(5000)), Step::Write(5001));
        assert_eq!(first.step(2, Timestamp(10)), Step::Write(5001));
        // The same number of another history is another batch.
        assert_eq!(first.step(1, Timestamp(4000)), Step::Write(5001));
        // A program that was restored at batch 2, and then repeats it, and goes on.
        let ahead = Mark::of(7, Timestamp(9000), 9000);
        assert_eq!(ahead.step(2, Timestamp(6000)), Step::Nothing);
        let back = ahead.back(2);
        assert_eq!(back.step(2, Timestamp(6000)), Step::Nothing);
        assert_eq!(back.step(3, Timestamp(7000)), Step::Write(9002));
    }
}
