//! A graceful stop while something outside fails: it waits for a while, ends with the
//! error, and the next start loses nothing. A sink that fails at each of its steps is the fault.

use crate::{StreamingContext, Trigger};
use arrow_array::{RecordBatch, cast::AsArray, types::Int64Type};
use arrow_schema::SchemaRef;
use async_trait::async_trait;
use futures::{TryStreamExt, stream::BoxStream};
use parking_lot::Mutex;
use std::{collections::BTreeMap, path::Path, sync::Arc};
use tidemill_core::{
    BatchId, Clock, Duration, Error, Guarantee, ManualClock, Phase, Result, Sink, StagedPart, Timestamp,
};

/// Shows numbers with their commit, and fails at one step of its life.
#[derive(Debug)]
struct Faulty {
    at: &'static str,
    shown: Arc<Mutex<BTreeMap<BatchId, String>>>,
}

impl Faulty {
    fn pass(&self, step: &str) -> Result<()> {
        if self.at == step { Err(Error::external(format!("no {step} today"))) } else { Ok(()) }
    }
}

#[async_trait]
impl Sink for Faulty {
    fn describe(&self) -> String {
        "faulty".to_string()
    }

    fn guarantee(&self) -> Guarantee {
        Guarantee::ExactlyOnce
    }

    async fn open(&self, _schema: SchemaRef) -> Result<()> {
        self.pass("open")
    }

    async fn stage(
        &self,
        _batch: BatchId,
        _time: Timestamp,
        _part: usize,
        rows: BoxStream<'_, Result<RecordBatch>>,
    ) -> Result<Option<StagedPart>> {
        self.pass("stage")?;
        let rows: Vec<RecordBatch> = rows.try_collect().await?;
        let numbers = rows.iter().flat_map(|rows| rows.column(0).as_primitive::<Int64Type>().values());
        let numbers: Vec<String> = numbers.map(i64::to_string).collect();
        Ok((!numbers.is_empty()).then(|| StagedPart(numbers.join(" "))))
    }

    async fn commit(&self, batch: BatchId, parts: &[StagedPart]) -> Result<()> {
        self.pass("commit")?;
        let text: Vec<&str> = parts.iter().map(|StagedPart(text)| text.as_str()).collect();
        self.shown.lock().insert(batch, text.join(" "));
        Ok(())
    }
}

fn program(dir: &Path, at: &'static str, shown: &Arc<Mutex<BTreeMap<BatchId, String>>>) -> Arc<ManualClock> {
    let clock = Arc::new(ManualClock::at(Timestamp(1_000_000)));
    let trigger = if at.is_empty() { Trigger::Drain } else { Trigger::Asap };
    let builder = StreamingContext::builder("p").trigger(trigger).partitions(2).data_dir(dir);
    let context = builder.clock(Arc::clone(&clock) as Arc<dyn Clock>).build();
    let numbers = context.queue_stream([vec![1_i64, 2]]).unwrap();
    numbers.to_sink(Arc::new(Faulty { at, shown: Arc::clone(shown) }));
    let board = context.board();
    context.start().unwrap();
    if at.is_empty() {
        context.await_termination().unwrap();
        return clock;
    }
    let says = format!("no {at} today");
    while !board.program().error.is_some_and(|error| error.contains(&says)) {
        std::thread::yield_now();
    }
    context.request_stop();
    // It goes on trying while the clock stands still, and ends when time has passed.
    let mut ended = None;
    for _ in 0..10_000 {
        match context.await_for(Duration::from_millis(5)) {
            Ok(None) => clock.advance(Duration::from_secs(1)),
            Ok(Some(())) => panic!("it ended as if nothing had failed"),
            Err(error) => {
                ended = Some(error);
                break;
            }
        }
    }
    let error = ended.expect("a stop ends what waits for something outside").chain();
    assert!(error.contains("a stop was asked for") && error.contains(&says), "{error}");
    assert_eq!(board.program().phase, Phase::Failed);
    clock
}

#[test]
fn a_stop_waits_for_what_is_outside_so_long_and_no_longer() {
    for at in ["open", "stage", "commit"] {
        let (dir, shown) = (tempfile::tempdir().unwrap(), Arc::default());
        let clock = program(dir.path(), at, &shown);
        let waited = clock.now().since(Timestamp(1_000_000));
        assert!(waited >= super::patience::DRAIN, "{at}: it gave up after {waited:?}");
        assert_eq!(*shown.lock(), BTreeMap::new(), "{at}");
        // The next start, when all is well, shows everything once.
        program(dir.path(), "", &shown);
        let all: Vec<String> =
            shown.lock().values().flat_map(|text| text.split(' ').map(str::to_string).collect::<Vec<_>>()).collect();
        assert_eq!(all, ["1", "2"], "{at}");
    }
}
