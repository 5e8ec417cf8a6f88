//! `save_as_text_files`: each batch to files of lines, exactly once.
//!
//! Goes through the `files` sink of the context's registry, which stages a
//! batch and shows it with its commit.

use crate::{
    record::Record,
    stream::{Chain, DStream},
};
use arrow_schema::DataType;
use std::fmt::Debug;
use tidemill_core::{Options, Result};

impl<T: Record + Debug, C: Chain<Out = T>> DStream<T, C> {
    /// Writes a line for each record below the directory `prefix`, a file a
    /// batch and partition, each batch exactly once. Text is written as it is,
    /// other records as `{:?}` has them.
    ///
    /// # Errors
    /// When the context has no `files` sink, or the sink refuses the path.
    pub fn save_as_text_files(&self, prefix: &str) -> Result<()> {
        let options = Options::new(
            format!("save_as_text_files(\"{prefix}\")"),
            [("connector", "files"), ("path", prefix), ("format", "text")],
        );
        let sink = self.declare.sink(&options)?;
        if T::data_type() == DataType::Utf8 && !T::nullable() {
            self.to_sink(sink);
        } else {
            self.map(|record: T::Ref<'_>| format!("{:?}", T::own(record))).to_sink(sink);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use crate::{StreamingContext, Trigger, record::records_of};
    use arrow_array::RecordBatch;
    use async_trait::async_trait;
    use futures::{StreamExt, stream::BoxStream};
    use parking_lot::Mutex;
    use std::sync::LazyLock;
    use tidemill_core::{BatchId, Guarantee, Options, Registry, Result, Sink, StagedPart, Timestamp};

    /// Lines that were committed, by path.
    static COMMITTED: LazyLock<Mutex<Vec<(String, BatchId, String)>>> = LazyLock::new(Mutex::default);

    #[derive(Debug)]
    struct Lines {
        path: String,
    }

    #[async_trait]
    impl Sink for Lines {
        fn describe(&self) -> String {
            self.path.clone()
        }
        fn guarantee(&self) -> Guarantee {
            Guarantee::ExactlyOnce
        }
        async fn stage(
            &self,
            _batch: BatchId,
            _time: Timestamp,
            _part: usize,
            mut rows: BoxStream<'_, Result<RecordBatch>>,
        ) -> Result<Option<StagedPart>> {
            let mut lines = Vec::new();
            while let Some(rows) = rows.next().await {
                lines.extend(records_of::<String>(&rows?)?);
            }
            Ok((!lines.is_empty()).then(|| StagedPart(lines.join("\n"))))
        }
        async fn commit(&self, batch: BatchId, parts: &[StagedPart]) -> Result<()> {
            COMMITTED.lock().extend(parts.iter().map(|part| (self.path.clone(), batch, part.0.clone())));
            Ok(())
        }
    }

    fn context() -> StreamingContext {
        let mut registry = Registry::default();
        registry.add_sink("files", |options: &Options| {
            assert_eq!((options.get("connector"), options.get("format")), (Some("files"), Some("text")));
            Ok(std::sync::Arc::new(Lines { path: options.require("path", "where to")?.to_string() }))
        });
        StreamingContext::builder("test").trigger(Trigger::Drain).partitions(1).registry(registry).build()
    }

    #[test]
    fn text_is_written_as_it_is_and_other_records_as_debug() {
        let context = context();
        let words = context.queue_stream([vec!["a".to_string(), "b".to_string()], vec!["c".to_string()]]).unwrap();
        words.save_as_text_files("words").unwrap();
        words.map(|w| (w.to_string(), 1)).save_as_text_files("pairs").unwrap();
        context.start().unwrap();
        context.await_termination().unwrap();
        let mut got = std::mem::take(&mut *COMMITTED.lock());
        got.sort();
        let line = |path: &str, batch, text: &str| (path.to_string(), BatchId(batch), text.to_string());
        let want = [
            line("pairs", 1, "(\"a\", 1)\n(\"b\", 1)"),
            line("pairs", 2, "(\"c\", 1)"),
            line("words", 1, "a\nb"),
            line("words", 2, "c"),
        ];
        assert_eq!(got, want);
    }

    #[test]
    fn a_context_without_the_sink_says_so() {
        let context = StreamingContext::builder("test").build();
        let error = context.queue_stream([vec![1]]).unwrap().save_as_text_files("out").unwrap_err().to_string();
        assert!(error.contains("save_as_text_files(\"out\")") && error.contains("files"), "{error}");
    }
}
