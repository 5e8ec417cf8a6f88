//! Output methods of streams: `foreach_batch`, `to_sink`, `view`, `to_table`.
//!
//! Each only declares an output or a table; `batch/run.rs` runs outputs. No state.

use super::{Output, OutputKind};
use crate::{
    record::{Record, records_of},
    stream::{Chain, DStream},
};
use std::sync::Arc;
use tidemill_core::{BatchId, Result, Sink, Timestamp};

/// Which batch a callback is called for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchInfo {
    /// Its number: the same when the batch is run again.
    pub id: BatchId,
    /// Its time.
    pub time: Timestamp,
}

impl<T: Record, C: Chain<Out = T>> DStream<T, C> {
    pub(crate) fn output(&self, name: String, kind: OutputKind) {
        self.declare.output(Output { name, node: self.rows(), kind });
    }

    /// Calls `f` with the records of each batch. After a crash it may be called
    /// again for the same batch: [`BatchInfo::id`] tells.
    pub fn foreach_batch(&self, f: impl Fn(&BatchInfo, Vec<T>) -> Result<()> + Send + Sync + 'static) {
        let name = self.declare.name("foreach_batch");
        let call = move |info: &BatchInfo, rows: &[arrow_array::RecordBatch]| {
            let mut records = Vec::new();
            for rows in rows {
                records.extend(records_of::<T>(rows)?);
            }
            f(info, records)
        };
        self.output(name, OutputKind::Call(Arc::new(call)));
    }

    /// Writes each batch to a sink. Two outputs that write to one place are refused at the start.
    pub fn to_sink(&self, sink: Arc<dyn Sink>) {
        let name = self.declare.name("sink");
        if let Err(error) = self.declare.take_target(sink.as_ref(), &format!("output `{name}`")) {
            return self.declare.fail(error);
        }
        self.output(name, OutputKind::Sink(sink));
    }

    /// Shows the records of the last batch that had any as the view `name`, in
    /// the columns named `columns`.
    pub fn view(&self, name: &str, columns: &[&str]) {
        if let Err(error) = self.declare.claim("view", name) {
            return self.declare.fail(error);
        }
        let node = crate::ops::renamed(&self.declare, self.rows(), columns);
        self.declare.output(Output { name: name.to_string(), node, kind: OutputKind::View { sticky: true } });
    }

    /// Gives the stream to SQL as the table `name` with the columns named `columns`
    /// (a struct's or tuple's own names when empty).
    pub fn to_table(&self, name: &str, columns: &[&str]) {
        if let Err(error) = self.declare.claim("table", name) {
            return self.declare.fail(error);
        }
        let node = crate::ops::renamed(&self.declare, self.rows(), columns);
        self.declare.table(name, node);
    }
}
