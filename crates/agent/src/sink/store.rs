//! Sink `store`: any sink of the registry (files, databases, Kafka), which stages and commits by numbers.
//!
//! Invariant: a delivery has a number of its own, kept with what was staged together with the channel's position. After
//! a crash the last commit is repeated and what was staged behind it goes; so a sink that promises exactly once keeps
//! that promise here.

use super::Outlet;
use crate::event::Event;
use arrow_array::{ArrayRef, RecordBatch, StringArray, TimestampMicrosecondArray};
use arrow_schema::{DataType, Field, Schema, SchemaRef, TimeUnit};
use async_trait::async_trait;
use futures::{StreamExt, stream};
use serde::{Deserialize, Serialize};
use std::{path::PathBuf, sync::Arc};
use tidemill_core::{BatchId, Clock, Error, Guarantee, Result, Sink, StagedPart};

/// What of an event becomes which columns: `timestamp`, `headers` (as JSON), `body` (text, with U+FFFD for what is not
/// UTF-8: one such event must not stop all behind it), or a header by its name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Columns(Vec<String>);

impl Columns {
    /// The columns of these names; timestamp, headers and body when there are none.
    pub(crate) fn of(names: Vec<String>) -> Self {
        if names.is_empty() { Self(["timestamp", "headers", "body"].map(str::to_owned).to_vec()) } else { Self(names) }
    }

    pub(crate) fn schema(&self) -> SchemaRef {
        let field = |name: &String| match name.as_str() {
            "timestamp" => Field::new(name, DataType::Timestamp(TimeUnit::Microsecond, None), false),
            "headers" | "body" => Field::new(name, DataType::Utf8, false),
            _ => Field::new(name, DataType::Utf8, true),
        };
        Arc::new(Schema::new(self.0.iter().map(field).collect::<Vec<_>>()))
    }

    fn rows(&self, events: &[Event]) -> Result<RecordBatch> {
        let column = |name: &String| -> Result<ArrayRef> {
            Ok(match name.as_str() {
                "timestamp" => {
                    Arc::new(TimestampMicrosecondArray::from_iter_values(events.iter().map(|e| e.timestamp.0)))
                }
                "headers" => {
                    let json = |event: &Event| {
                        serde_json::to_string(&event.headers).map_err(|e| Error::internal("headers").because(e))
                    };
                    Arc::new(StringArray::from(events.iter().map(json).collect::<Result<Vec<_>>>()?))
                }
                "body" => {
                    let texts = events.iter().map(|event| String::from_utf8_lossy(&event.body));
                    Arc::new(StringArray::from_iter_values(texts))
                }
                header => Arc::new(events.iter().map(|event| event.headers.get(header)).collect::<StringArray>()),
            })
        };
        let columns = self.0.iter().map(column).collect::<Result<Vec<_>>>()?;
        RecordBatch::try_new(self.schema(), columns).map_err(|e| Error::internal("columns of events").because(e))
    }
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct Left {
    batch: u64,
    parts: Vec<StagedPart>,
}

/// A sink of the registry.
pub(crate) struct StoreSink {
    sink: Arc<dyn Sink>,
    columns: Columns,
    /// `agent/sink`.
    owner: String,
    aside: PathBuf,
    clock: Arc<dyn Clock>,
    placed: bool,
    last: Left,
}

impl StoreSink {
    pub(crate) fn new(
        sink: Arc<dyn Sink>,
        columns: Columns,
        owner: &str,
        aside: PathBuf,
        clock: Arc<dyn Clock>,
    ) -> Self {
        Self { sink, columns, owner: owner.to_owned(), aside, clock, placed: false, last: Left::default() }
    }
}

#[async_trait]
impl Outlet for StoreSink {
    fn describe(&self) -> String {
        self.sink.describe()
    }

    fn guarantee(&self) -> Guarantee {
        self.sink.guarantee()
    }

    async fn open(&mut self, left: Option<String>, _durable: bool) -> Result<Option<String>> {
        if !std::mem::replace(&mut self.placed, true) {
            self.sink.place(&self.owner, &self.aside);
        }
        self.sink.open(self.columns.schema()).await?;
        let left: Option<Left> = left
            .map(|left| serde_json::from_str(&left))
            .transpose()
            .map_err(|e| Error::external("what the sink left can't be read").because(e).fatal())?;
        if let Some(left) = &left {
            self.sink.commit(BatchId(left.batch), &left.parts).await?;
        }
        self.sink.recover(left.as_ref().map(|left| BatchId(left.batch))).await?;
        self.last = left.unwrap_or_default();
        Ok(None)
    }

    async fn deliver(&mut self, events: &[Event]) -> Result<Option<String>> {
        let rows = self.columns.rows(events)?;
        let batch = self.last.batch + 1;
        let staged = self.sink.stage(BatchId(batch), self.clock.now(), 0, stream::iter([Ok(rows)]).boxed()).await?;
        self.last = Left { batch, parts: staged.into_iter().collect() };
        serde_json::to_string(&self.last).map(Some).map_err(|e| Error::internal("what a sink leaves").because(e))
    }

    async fn settle(&mut self) -> Result<()> {
        self.sink.commit(BatchId(self.last.batch), &self.last.parts).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow_array::cast::AsArray;
    use futures::stream::BoxStream;
    use parking_lot::Mutex;
    use std::collections::BTreeMap;
    use tidemill_core::{ManualClock, Timestamp};

    /// Keeps what is staged apart from what is seen, as a database would.
    #[derive(Debug, Default)]
    struct Table {
        staged: Mutex<BTreeMap<u64, Vec<String>>>,
        seen: Mutex<Vec<String>>,
        last: Mutex<u64>,
    }

    #[async_trait]
    impl Sink for Table {
        fn describe(&self) -> String {
            "table".to_owned()
        }

        fn guarantee(&self) -> Guarantee {
            Guarantee::ExactlyOnce
        }

        async fn stage(
            &self,
            batch: BatchId,
            _time: Timestamp,
            _part: usize,
            mut rows: BoxStream<'_, Result<RecordBatch>>,
        ) -> Result<Option<StagedPart>> {
            let mut all = Vec::new();
            while let Some(rows) = rows.next().await {
                let rows = rows?;
                let texts = |column: usize| rows.column(column).as_string::<i32>().iter().map(|t| t.map(str::to_owned));
                all.extend(
                    texts(0)
                        .zip(texts(1))
                        .map(|(body, host)| format!("{}@{}", body.unwrap(), host.unwrap_or_default())),
                );
            }
            self.staged.lock().insert(batch.0, all);
            Ok(Some(StagedPart(format!("part-{batch}"))))
        }

        async fn commit(&self, batch: BatchId, parts: &[StagedPart]) -> Result<()> {
            assert_eq!(parts, [StagedPart(format!("part-{batch}"))]);
            let mut last = self.last.lock();
            if batch.0 > *last {
                self.seen.lock().extend(self.staged.lock().remove(&batch.0).expect("it is staged"));
                *last = batch.0;
            }
            Ok(())
        }

        async fn recover(&self, last_committed: Option<BatchId>) -> Result<()> {
            assert_eq!(last_committed.map_or(0, |batch| batch.0), *self.last.lock());
            self.staged.lock().clear();
            Ok(())
        }
    }

    fn events(names: &[&str]) -> Vec<Event> {
        let event = |name: &&str| {
            let mut event = Event::new((*name).to_owned(), Timestamp(0));
            event.headers.insert("host".to_owned(), "mill".to_owned());
            event
        };
        names.iter().map(event).collect()
    }

    #[tokio::test]
    async fn deliveries_are_seen_once_wherever_it_stops() {
        let table = Arc::new(Table::default());
        let sink = || {
            let columns = Columns::of(vec!["body".to_owned(), "host".to_owned()]);
            let clock = Arc::new(ManualClock::default());
            StoreSink::new(Arc::clone(&table) as Arc<dyn Sink>, columns, "a1/k1", "/d".into(), clock)
        };
        let seen = || table.seen.lock().clone();
        let mut first = sink();
        assert_eq!(first.open(None, true).await.unwrap(), None);
        // Staged, and the commit does not come.
        first.deliver(&events(&["a"])).await.unwrap();
        let mut second = sink();
        second.open(None, true).await.unwrap();
        let left = second.deliver(&events(&["a", "b"])).await.unwrap();
        assert!(seen().is_empty(), "nothing is seen before the commit");
        // Committed by the channel, and the sink was not told.
        let mut third = sink();
        third.open(left.clone(), true).await.unwrap();
        assert_eq!(seen(), ["a@mill", "b@mill"]);
        third.open(left, true).await.unwrap();
        assert_eq!(seen().len(), 2);
        third.deliver(&events(&["c"])).await.unwrap();
        third.settle().await.unwrap();
        third.settle().await.unwrap();
        assert_eq!(seen(), ["a@mill", "b@mill", "c@mill"]);
        // What is no text does not stop what comes behind it.
        let mut odd = events(&["d", "e"]);
        odd[0].body = vec![b'd', 0xff].into();
        third.deliver(&odd).await.unwrap();
        third.settle().await.unwrap();
        assert_eq!(seen()[3..], ["d\u{fffd}@mill", "e@mill"]);
    }

    #[test]
    fn headers_are_columns_by_name_or_all_of_them_as_json() {
        let mut all = events(&["a", "b"]);
        all[1].headers.clear();
        let rows = Columns::of(vec![]).rows(&all).unwrap();
        assert_eq!(
            rows.column(1).as_string::<i32>().iter().flatten().collect::<Vec<_>>(),
            ["{\"host\":\"mill\"}", "{}"]
        );
        let hosts = Columns::of(vec!["host".to_owned()]).rows(&all).unwrap();
        assert_eq!(hosts.column(0).as_string::<i32>().iter().collect::<Vec<_>>(), [Some("mill"), None]);
    }
}
