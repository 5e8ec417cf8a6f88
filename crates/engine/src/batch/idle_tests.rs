//! Timeouts and timers of programs to which nothing comes, or that nobody ran.
//!
//! Real starts over a clock that is moved; a test waits for a batch, never for a time.

use super::Trigger;
use crate::{State, StreamingContext};
use arrow_array::{RecordBatch, cast::AsArray, types::Int64Type};
use parking_lot::Mutex;
use std::{path::Path, sync::Arc};
use tidemill_core::{BatchId, Clock, Duration, Event, ManualClock, Timestamp};
use tokio::sync::broadcast::Receiver;

const KEYS: i64 = 1_000;

/// Keys that ended, by the second of the batch in which they did.
type Left = Arc<Mutex<Vec<(i64, i64)>>>;

fn second(n: i64) -> Timestamp {
    Timestamp(n * 1_000_000)
}

/// A state of [`KEYS`] keys that time out ten seconds after the first batch.
fn visits(dir: &Path, trigger: Trigger, clock: &Arc<ManualClock>) -> (StreamingContext, Receiver<Event>, Left) {
    let context = StreamingContext::builder("p")
        .trigger(trigger)
        .partitions(2)
        .clock(Arc::clone(clock) as Arc<dyn Clock>)
        .data_dir(dir)
        .build();
    let left = Left::default();
    let told = Arc::clone(&left);
    let records = context.queue_stream([(0..KEYS).map(|key| (key, key)).collect::<Vec<_>>()]).unwrap();
    let gone = records.map_with_state(|time: Timestamp, key: i64, value: Option<i64>, state: &mut State<i64>| {
        if let Some(value) = value {
            state.update(value);
            return None;
        }
        Some((time.0 / 1_000_000, key))
    });
    gone.timeout(Duration::from_secs(10)).mapped().foreach_batch(move |_, gone| {
        told.lock().extend(gone);
        Ok(())
    });
    let events = context.board().subscribe();
    (context, events, left)
}

fn committed(events: &mut Receiver<Event>, id: u64) -> Timestamp {
    loop {
        if let Event::Batch(report) = events.blocking_recv().unwrap()
            && report.batch == BatchId(id)
        {
            return report.time;
        }
    }
}

fn all_at(second: i64) -> Vec<(i64, i64)> {
    (0..KEYS).map(|key| (second, key)).collect()
}

fn sorted(left: &Left) -> Vec<(i64, i64)> {
    let mut left = left.lock().clone();
    left.sort_unstable();
    left
}

#[test]
fn an_idle_program_runs_a_batch_when_a_timeout_is_due() {
    let dir = tempfile::tempdir().unwrap();
    let clock = Arc::new(ManualClock::at(second(100)));
    let (context, mut events, left) = visits(dir.path(), Trigger::Asap, &clock);
    context.start().unwrap();
    committed(&mut events, 1);
    assert!(left.lock().is_empty());
    clock.set(second(110));
    assert_eq!(committed(&mut events, 2), second(110));
    assert_eq!(sorted(&left), all_at(110));
    context.stop(true).unwrap();
    assert_eq!(context.board().reports().len(), 2, "nothing else was due");
}

#[test]
fn windows_close_when_all_partitions_fell_quiet_though_nothing_comes() {
    let row = |seconds: &[i64]| {
        let times = arrow_array::TimestampMicrosecondArray::from_iter_values(seconds.iter().map(|s| s * 1_000_000));
        RecordBatch::try_from_iter([("t", Arc::new(times) as arrow_array::ArrayRef)]).unwrap()
    };
    let clock = Arc::new(ManualClock::at(second(100)));
    let context = StreamingContext::builder("p")
        .trigger(Trigger::Asap)
        .partitions(2)
        .clock(Arc::clone(&clock) as Arc<dyn Clock>)
        .build();
    // One partition is far ahead of the other; then neither brings anything.
    context.provide_source("posts", crate::testing::parts(vec![vec![row(&[90]), row(&[51, 52])]]));
    context
        .declare_sql(
            "CREATE STREAM posts (WATERMARK FOR t AS t - INTERVAL '0' SECOND) WITH (connector = 'program', idle_after = '10s');
             CREATE VIEW v AS SELECT window_end, count(*) AS n FROM TUMBLE(posts, t, INTERVAL '10' SECOND) GROUP BY window_start, window_end",
        )
        .unwrap();
    let mut events = context.board().subscribe();
    context.start().unwrap();
    committed(&mut events, 1);
    clock.set(second(105));
    assert_eq!(committed(&mut events, 2), second(105), "a pause counts for half of it");
    assert!(context.board().view("v").is_none(), "the slower partition may still bring something");
    clock.set(second(110));
    assert_eq!(committed(&mut events, 3), second(110));
    let shown = context.board().view("v").unwrap();
    assert_eq!(shown.rows.column(1).as_primitive::<Int64Type>().values(), &[2], "the window of the slower one");
    clock.set(second(500));
    context.stop(true).unwrap();
    assert_eq!(context.board().reports().len(), 3, "nothing else is to be found out");
}

#[test]
fn after_a_day_away_one_batch_does_all_that_came_due() {
    for trigger in [Trigger::Asap, Trigger::Every(Duration::from_secs(1))] {
        let dir = tempfile::tempdir().unwrap();
        let clock = Arc::new(ManualClock::at(second(100)));
        let (context, mut events, left) = visits(dir.path(), trigger, &clock);
        context.start().unwrap();
        clock.set(second(101));
        committed(&mut events, 1);
        context.stop(false).unwrap();
        assert!(left.lock().is_empty());

        let day = 86_400;
        clock.set(second(day));
        let (context, mut events, left) = visits(dir.path(), trigger, &clock);
        context.start().unwrap();
        clock.set(second(day + 1));
        let time = committed(&mut events, 2);
        assert!((second(day)..=second(day + 1)).contains(&time), "{trigger:?}: {time}");
        assert_eq!(sorted(&left).len(), usize::try_from(KEYS).unwrap(), "{trigger:?}: each once, all in one batch");
        context.stop(false).unwrap();
    }
}
