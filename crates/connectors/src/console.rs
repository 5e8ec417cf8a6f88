//! Sink `console`: rows as a table on standard output, for people.
//!
//! | Option | Meaning |
//! |---|---|
//! | `rows` | rows of a batch and partition that are printed (50); how many more there were is said |
//!
//! Invariant: at least once. A batch is printed when it is staged, for a
//! terminal takes nothing back; after a crash it may be printed again.

use arrow_array::RecordBatch;
use arrow_cast::pretty::pretty_format_batches;
use async_trait::async_trait;
use futures::{StreamExt, stream::BoxStream};
use std::{
    fmt,
    io::{self, Write},
    sync::{Mutex, PoisonError},
};
use tidemill_core::{BatchId, Error, Guarantee, Options, Result, Sink, StagedPart, Timestamp};

/// Prints rows as a table.
pub struct Console {
    rows: usize,
    /// Taken for one table at a time, so that tables of partitions don't mix.
    out: Mutex<Box<dyn Write + Send>>,
}

impl fmt::Debug for Console {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Console").field("rows", &self.rows).finish_non_exhaustive()
    }
}

impl Console {
    /// Prints at most `rows` rows of a batch and partition to `out`.
    pub fn new(rows: usize, out: impl Write + Send + 'static) -> Self {
        Self { rows, out: Mutex::new(Box::new(out)) }
    }

    /// From a sink's options.
    ///
    /// # Errors
    /// When one is wrong.
    pub fn from_options(options: &Options) -> Result<Self> {
        Ok(Self::new(options.parse("rows", 50)?, io::stdout()))
    }
}

#[async_trait]
impl Sink for Console {
    fn describe(&self) -> String {
        "console".to_string()
    }

    fn guarantee(&self) -> Guarantee {
        Guarantee::AtLeastOnce
    }

    async fn stage(
        &self,
        batch: BatchId,
        time: Timestamp,
        _part: usize,
        mut rows: BoxStream<'_, Result<RecordBatch>>,
    ) -> Result<Option<StagedPart>> {
        let (mut shown, mut kept, mut more) = (Vec::new(), 0, 0);
        while let Some(rows) = rows.next().await {
            let rows = rows?;
            let room = rows.num_rows().min(self.rows - kept);
            kept += room;
            more += rows.num_rows() - room;
            if room > 0 {
                shown.push(rows.slice(0, room));
            }
        }
        if kept + more == 0 {
            return Ok(None);
        }
        let table = pretty_format_batches(&shown)
            .map_err(|e| Error::user("console: these columns can't be printed").because(e))?;
        let rest = if more > 0 { format!("… and {more} more\n") } else { String::new() };
        let text = format!("batch {batch}, {time}\n{table}\n{rest}");
        let mut out = self.out.lock().unwrap_or_else(PoisonError::into_inner);
        out.write_all(text.as_bytes())
            .and_then(|()| out.flush())
            .map_err(|e| Error::external("console: standard output can't be written").because(e))?;
        Ok(Some(StagedPart(String::new())))
    }

    async fn commit(&self, _batch: BatchId, _parts: &[StagedPart]) -> Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contract::{rows, stage};
    use std::sync::Arc;

    #[derive(Clone, Default)]
    struct Page(Arc<Mutex<Vec<u8>>>);

    impl Write for Page {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[tokio::test]
    async fn rows_are_a_table_up_to_the_bound() {
        let page = Page::default();
        let console = Console::new(3, page.clone());
        assert_eq!(stage(&console, 7, 0, vec![rows([])]).await, None);
        assert!(stage(&console, 7, 1, vec![rows([1, 2]), rows([3, 4, 5])]).await.is_some());
        let text = String::from_utf8(page.0.lock().unwrap().clone()).unwrap();
        let want = "batch 7, 1970-01-01T00:00:01.000Z
+---+--------+
| n | word   |
+---+--------+
| 1 | word-1 |
| 2 | word-2 |
| 3 | word-3 |
+---+--------+
… and 2 more
";
        assert_eq!(text, want);
    }
}
