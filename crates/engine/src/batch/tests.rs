//! How programs end, pause and continue: real starts over a clock that is moved.

use super::Trigger;
use crate::{StreamingContext, testing::SqlProgram};
use arrow_array::{Int64Array, RecordBatch, TimestampMicrosecondArray, cast::AsArray, types::Int64Type};
use arrow_schema::{DataType, Field, Schema};
use futures::{StreamExt, stream};
use parking_lot::Mutex;
use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};
use tidemill_core::{
    Batch, BatchId, Board, Budget, Chunk, ChunkStream, Clock, Duration, Error, Event, ManualClock, Offset, OffsetRange,
    PartitionId, Phase, Position, Result, Shape, Source, Timestamp,
};
use tokio::sync::broadcast::Receiver;

const PROGRAM: &str = "\
CREATE STREAM posts (WATERMARK FOR t AS t - INTERVAL '3' SECOND) WITH (connector = 'program');
CREATE VIEW sums AS SELECT window_end, sum(n) AS n
FROM TUMBLE(TABLE posts, DESCRIPTOR(t), INTERVAL '10' SECOND) GROUP BY window_end;
CREATE VIEW big AS SELECT n FROM posts WHERE n > 100";

fn entry(rows: &[(i64, i64)]) -> Vec<RecordBatch> {
    let times = TimestampMicrosecondArray::from_iter_values(rows.iter().map(|r| r.0 * 1_000_000)).with_timezone("UTC");
    let numbers = Int64Array::from_iter_values(rows.iter().map(|r| r.1));
    vec![RecordBatch::try_from_iter([("t", Arc::new(times) as _), ("n", Arc::new(numbers) as _)]).unwrap()]
}

/// The program over `entries`, started with what `dir` keeps of it.
fn started(dir: &Path, trigger: Trigger, entries: &[&[(i64, i64)]]) -> (SqlProgram, Receiver<Event>) {
    let program = SqlProgram::over(StreamingContext::builder("p").trigger(trigger).partitions(2).data_dir(dir).build());
    program.queue("posts", entries.iter().map(|rows| entry(rows)).collect());
    program.context().declare_sql(PROGRAM).unwrap();
    let events = program.context().board().subscribe();
    program.context().start().unwrap();
    (program, events)
}

/// The sums that `sums` shows, by the second in which their window ends.
fn sums(program: &SqlProgram) -> Vec<(i64, i64)> {
    let Some(rows) = program.view("sums") else { return vec![] };
    let ends = rows.column(0).as_primitive::<arrow_array::types::TimestampMicrosecondType>().values();
    let sums = rows.column(1).as_primitive::<Int64Type>().values();
    let mut all: Vec<(i64, i64)> = ends.iter().map(|end| end / 1_000_000).zip(sums.iter().copied()).collect();
    all.sort_unstable();
    all
}

/// Waits until batch `id` is committed.
fn committed(events: &mut Receiver<Event>, id: u64) -> Timestamp {
    loop {
        if let Event::Batch(report) = events.blocking_recv().unwrap()
            && report.batch == BatchId(id)
        {
            return report.time;
        }
    }
}

#[test]
fn an_exhausted_input_closes_its_last_windows_and_may_go_on_later() {
    let dir = tempfile::tempdir().unwrap();
    let first: [&[(i64, i64)]; 2] = [&[(1, 1), (11, 2), (5, 400)], &[(12, 4), (25, 8)]];
    let (program, _) = started(dir.path(), Trigger::Drain, &first);
    program.context().await_termination().unwrap();
    assert_eq!(sums(&program), [(30, 8)], "the last window, closed by the end alone");
    assert_eq!(program.view("big").unwrap().num_rows(), 1, "the end takes nothing away");

    // Started again with nothing new, it has nothing left to give.
    let (program, _) = started(dir.path(), Trigger::Drain, &first);
    program.context().await_termination().unwrap();
    assert_eq!(sums(&program), []);

    // What comes later is late only for the windows that were given.
    let (program, _) = started(dir.path(), Trigger::Drain, &[first[0], first[1], &[(29, 16), (31, 32), (30, 64)]]);
    program.context().await_termination().unwrap();
    assert_eq!((sums(&program), program.context().board().program().late), (vec![(40, 96)], 1));
}

#[test]
fn all_windows_of_an_exhausted_input_add_up_to_its_rows() {
    let dir = tempfile::tempdir().unwrap();
    let entries: Vec<Vec<(i64, i64)>> = (0..20).map(|i| vec![(i * 3, 1), (i * 3 + 2, 10)]).collect();
    let entries: Vec<&[(i64, i64)]> = entries.iter().map(Vec::as_slice).collect();
    let (program, mut events) = started(dir.path(), Trigger::Drain, &entries);
    let mut total = 0;
    program.context().await_termination().unwrap();
    while let Ok(event) = events.try_recv() {
        if let Event::View(view) = event
            && view.name == "sums"
        {
            total += view.rows.column(1).as_primitive::<Int64Type>().values().iter().sum::<i64>();
        }
    }
    assert_eq!(total, 20 * 11);
}

#[test]
fn a_stop_closes_no_window_and_the_next_start_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let entries: [&[(i64, i64)]; 1] = [&[(1, 1), (11, 2)]];
    for gracefully in [true, false] {
        let (program, mut events) = started(dir.path(), Trigger::Asap, &entries);
        if gracefully {
            committed(&mut events, 1);
        }
        program.context().stop(gracefully).unwrap();
        assert_eq!(sums(&program), [], "stopped gracefully: {gracefully}");
    }
    let (program, _) = started(dir.path(), Trigger::Drain, &[entries[0], &[(12, 4)]]);
    program.context().await_termination().unwrap();
    assert_eq!(sums(&program), [(10, 1), (20, 6)]);
}

const EACH_SECOND: Trigger = Trigger::Every(Duration::from_secs(1));

/// Sums of 4 s each 4 s by batch time; a batch reads one of `entries`.
fn by_batch_time(dir: &Path, trigger: Trigger, clock: &Arc<ManualClock>, entries: &[i64]) -> (StreamingContext, Given) {
    let context = StreamingContext::builder("p")
        .trigger(trigger)
        .partitions(1)
        .clock(Arc::clone(clock) as Arc<dyn Clock>)
        .data_dir(dir)
        .build();
    let given = Given::default();
    let told = Arc::clone(&given);
    let span = Duration::from_secs(4);
    let numbers = context.queue_stream(entries.iter().map(|n| vec![*n])).unwrap();
    numbers.reduce_by_window(|a, b| a + b, span, span).foreach_batch(move |batch, sums: Vec<i64>| {
        if !sums.is_empty() {
            told.lock().push((batch.time.0 / 1_000_000, sums));
        }
        Ok(())
    });
    (context, given)
}

/// What windows gave, with the second in which they did.
type Given = Arc<Mutex<Vec<(i64, Vec<i64>)>>>;

fn at(millis: i64) -> Timestamp {
    Timestamp::from_millis(millis)
}

fn times(board: &Board) -> Vec<i64> {
    board.reports().iter().map(|report| report.time.millis()).collect()
}

#[test]
fn a_restart_skips_missed_ticks_but_those_that_a_window_needs() {
    let dir = tempfile::tempdir().unwrap();
    let clock = Arc::new(ManualClock::at(at(10_500)));
    let (context, given) = by_batch_time(dir.path(), EACH_SECOND, &clock, &[1]);
    let mut events = context.board().subscribe();
    context.start().unwrap();
    clock.set(at(11_000));
    assert_eq!(committed(&mut events, 1), at(11_000));
    context.stop(false).unwrap();
    assert!(given.lock().is_empty());

    clock.set(at(3_600_200));
    let (context, given) = by_batch_time(dir.path(), EACH_SECOND, &clock, &[1, 2, 3]);
    let mut events = context.board().subscribe();
    context.start().unwrap();
    // 12 gives the window of 11, and at 15 that batch has left all windows.
    committed(&mut events, 5);
    clock.set(at(3_601_000));
    committed(&mut events, 6);
    clock.set(at(3_602_000));
    committed(&mut events, 7);
    assert_eq!(times(&context.board()), [12_000, 13_000, 14_000, 15_000, 3_601_000, 3_602_000]);
    let reports = context.board().reports();
    assert!(reports.iter().all(|report| report.scheduling_delay_us == 0), "{reports:#?}");
    let read: Vec<u64> = reports.iter().map(|report| report.records_in).collect();
    assert_eq!(read, [0, 0, 0, 0, 1, 1], "a missed tick reads nothing");
    clock.set(at(3_603_000));
    committed(&mut events, 8);
    clock.set(at(3_604_000));
    committed(&mut events, 9);
    assert_eq!(*given.lock(), [(12, vec![1]), (3_604, vec![2 + 3])], "each record in one window, once");
    context.stop(false).unwrap();
}

#[test]
fn without_windows_by_batch_time_no_missed_tick_is_run() {
    let dir = tempfile::tempdir().unwrap();
    let clock = Arc::new(ManualClock::at(at(500)));
    // Half a second, and a day: 86,400 ticks.
    for (now, first) in [(500, 1_000), (86_400_200, 86_401_000)] {
        clock.set(at(now));
        let context = StreamingContext::builder("p")
            .interval(Duration::from_secs(1))
            .clock(Arc::clone(&clock) as Arc<dyn Clock>)
            .data_dir(dir.path())
            .build();
        context.queue_stream([vec![1_i64]]).unwrap().view("v", &["n"]);
        let mut events = context.board().subscribe();
        context.start().unwrap();
        while !matches!(events.blocking_recv().unwrap(), Event::Phase(Phase::Running)) {}
        clock.set(at(first));
        while !matches!(events.blocking_recv().unwrap(), Event::Batch(_)) {}
        assert_eq!(times(&context.board()), [first]);
        context.stop(false).unwrap();
    }
}

#[test]
fn each_window_by_batch_time_asks_for_its_batch_and_nothing_else_does() {
    let context = StreamingContext::builder("p").trigger(Trigger::Asap).build();
    let span = Duration::from_secs(4);
    let numbers = context.queue_stream([vec![1_i64]]).unwrap();
    numbers.window(span, span).print();
    numbers.count_by_window(span, span).print();
    numbers.reduce_by_window(|a, b| a + b, span, span).print();
    numbers.count_by_value_and_window(span, span).print();
    let pairs = numbers.map(|n: i64| (n, n));
    pairs.reduce_by_key_and_window(|a, b| a + b, span, span).print();
    pairs.update_state_by_key(|new, _: Option<i64>| new.last().copied()).changes().print();
    let runtime = tokio::runtime::Builder::new_multi_thread().build().unwrap();
    let _in_runtime = runtime.enter();
    let pipeline = super::Pipeline::open(&context.config, &context.declare, context.board(), None).unwrap();
    let due = |ending| -> Vec<Option<i64>> {
        let last = pipeline.previous_time().unwrap_or_default();
        pipeline.states.all().iter().map(|state| state.due(last, ending).map(Timestamp::millis)).collect()
    };
    assert_eq!(due(false), [None; 6], "nothing is held yet");
    for (now, later, at_the_end) in
        [(9_000, Some(12_000), Some(12_000)), (12_000, Some(16_000), None), (16_000, None, None)]
    {
        runtime.block_on(pipeline.step(at(now))).unwrap();
        let but_state = |due| [vec![due; 5], vec![None]].concat();
        assert_eq!(due(false), but_state(later), "after {now}");
        assert_eq!(due(true), but_state(at_the_end), "after {now}, at the end");
    }
}

#[test]
fn without_an_interval_each_record_is_shown_in_its_window_too() {
    let dir = tempfile::tempdir().unwrap();
    let clock = Arc::new(ManualClock::at(at(10_500)));
    let (context, given) = by_batch_time(dir.path(), Trigger::Asap, &clock, &[1]);
    let mut events = context.board().subscribe();
    context.start().unwrap();
    assert_eq!(committed(&mut events, 1), at(10_500));
    clock.set(at(12_300));
    assert_eq!(committed(&mut events, 2), at(12_000), "nothing came, and the window is given");
    context.stop(false).unwrap();
    assert_eq!(*given.lock(), [(12, vec![1])]);

    // Long afterwards: what had been shown expires, what is new waits for its own window.
    clock.set(at(3_600_200));
    let (context, given) = by_batch_time(dir.path(), Trigger::Asap, &clock, &[1, 2]);
    let mut events = context.board().subscribe();
    context.start().unwrap();
    assert_eq!(committed(&mut events, 3), at(16_000));
    assert_eq!(committed(&mut events, 4), at(3_600_200));
    context.stop(false).unwrap();
    assert!(given.lock().is_empty());

    // The end of an exhausted input gives what no window has shown.
    for expected in [vec![(3_604, vec![2 + 4])], vec![]] {
        let (context, given) = by_batch_time(dir.path(), Trigger::Drain, &clock, &[1, 2, 4]);
        context.start().unwrap();
        context.await_termination().unwrap();
        assert_eq!(*given.lock(), expected);
    }
}

#[test]
fn a_program_without_anything_to_do_says_so() {
    for trigger in [Trigger::Asap, Trigger::Every(Duration::from_secs(3_600))] {
        let clock = Arc::new(ManualClock::at(at(500)));
        let context =
            StreamingContext::builder("p").trigger(trigger).clock(Arc::clone(&clock) as Arc<dyn Clock>).build();
        context.queue_stream(Vec::<Vec<i64>>::new()).unwrap().view("v", &["n"]);
        let mut events = context.board().subscribe();
        context.start().unwrap();
        loop {
            match events.try_recv() {
                Ok(Event::Idle) => break,
                Ok(Event::Batch(batch)) => panic!("{trigger:?} ran {batch:?}"),
                Ok(_) => {}
                // Nothing yet: the program may not have looked at the clock before it moved.
                Err(_) => {
                    clock.advance(Duration::from_millis(1));
                    std::thread::yield_now();
                }
            }
        }
        context.stop(false).unwrap();
    }
}

#[test]
fn a_batch_that_was_planned_and_not_committed_runs_again_with_its_own_time() {
    let dir = tempfile::tempdir().unwrap();
    let clock = Arc::new(ManualClock::at(at(10_500)));
    let started = |call: Box<dyn Fn(u64, i64, Vec<i64>) + Send + Sync>| {
        let context = StreamingContext::builder("p")
            .interval(Duration::from_secs(1))
            .clock(Arc::clone(&clock) as Arc<dyn Clock>)
            .data_dir(dir.path())
            .build();
        context.queue_stream([vec![1_i64, 2], vec![3]]).unwrap().foreach_batch(move |batch, records| {
            call(batch.id.0, batch.time.millis(), records);
            Ok(())
        });
        let events = context.board().subscribe();
        context.start().unwrap();
        (context, events)
    };
    let (enter, entered) = std::sync::mpsc::channel();
    let (leave, left) = std::sync::mpsc::channel::<()>();
    let (enter, left) = (Mutex::new(enter), Mutex::new(left));
    let (context, _) = started(Box::new(move |id, time, records| {
        enter.lock().send((id, time, records)).unwrap();
        // Until the test has stopped the program, in the middle of the batch.
        let _stopped = left.lock().recv();
    }));
    clock.set(at(11_000));
    let first = entered.recv().unwrap();
    assert_eq!(first, (1, 11_000, vec![1, 2]));
    context.stop(false).unwrap();
    drop((leave, context));

    clock.set(at(3_600_200));
    let seen = Arc::new(Mutex::new(Vec::new()));
    let told = Arc::clone(&seen);
    let (context, mut events) = started(Box::new(move |id, time, records| told.lock().push((id, time, records))));
    committed(&mut events, 1);
    clock.set(at(3_601_000));
    committed(&mut events, 2);
    assert_eq!(*seen.lock(), [first, (2, 3_601_000, vec![3])]);
    assert!(context.board().reports().iter().all(|report| report.scheduling_delay_us == 0));
    context.stop(false).unwrap();
}

/// Always has another row, and fails when it is asked far too often.
#[derive(Debug)]
struct Endless(AtomicU64);

#[async_trait::async_trait]
impl Source for Endless {
    fn describe(&self) -> String {
        "a source without an end".to_string()
    }

    fn shape(&self) -> Shape {
        Shape::Columns(Arc::new(Schema::new(vec![Field::new("value", DataType::Int64, false)])))
    }

    async fn plan(&self, position: &Position, _budget: Budget) -> Result<Vec<OffsetRange>> {
        if self.0.fetch_add(1, Ordering::Relaxed) > 100_000 {
            return Err(Error::user("it is asked again and again"));
        }
        let partition = PartitionId::from(0);
        let start = position.get(&partition).copied().unwrap_or_default();
        Ok(vec![OffsetRange { partition, start, end: Offset(start.0 + 1) }])
    }

    fn read(&self, range: &OffsetRange) -> ChunkStream {
        let Shape::Columns(schema) = self.shape() else { return stream::empty().boxed() };
        let value = Int64Array::from(vec![range.start.0.cast_signed()]);
        let rows = RecordBatch::try_new(schema, vec![Arc::new(value)]).unwrap();
        stream::iter([Ok(Chunk::Columns { rows, base: range.start, times: Vec::new() })]).boxed()
    }

    fn is_endless(&self) -> bool {
        true
    }
}

#[test]
fn a_stop_does_not_wait_for_the_end_of_what_has_none() {
    let dir = tempfile::tempdir().unwrap();
    // The clock stands still: a stop that reads on would not end by itself.
    let clock = Arc::new(ManualClock::at(Timestamp(1_000_000)));
    let builder = StreamingContext::builder("p").trigger(Trigger::Asap).data_dir(dir.path());
    let context = builder.clock(Arc::clone(&clock) as Arc<dyn Clock>).build();
    let source = Arc::new(Endless(AtomicU64::new(0)));
    let numbers = context.source_stream::<i64>("numbers", Arc::clone(&source) as Arc<dyn Source>, None).unwrap();
    numbers.foreach_batch(|_, _| Ok(()));
    let board = context.board();
    let last = || board.reports().last().map_or(0, |report| report.batch.0);
    context.start().unwrap();
    while last() < 3 {
        std::thread::yield_now();
    }
    context.stop(true).unwrap();
    let last = last();
    assert!(source.0.load(Ordering::Relaxed) <= last + 2, "it was asked for no more than the batches that ran");
}

#[test]
fn a_plan_whose_records_went_with_the_power_is_dropped() {
    use crate::{
        ingest::tests::{lines, registry},
        testing::SqlProgram,
    };
    let dir = tempfile::tempdir().unwrap();
    let program = || {
        let builder = StreamingContext::builder("p").trigger(Trigger::Drain).data_dir(dir.path());
        let mut program = SqlProgram::over(builder.registry(registry()).build());
        program
            .start("CREATE STREAM lines WITH (connector = 'idle'); CREATE VIEW n AS SELECT count(*) AS n FROM lines")
            .unwrap();
        program
    };
    let planned = |end: u64| {
        let range = OffsetRange { partition: 0.into(), start: Offset(0), end: Offset(end) };
        Batch { id: BatchId(1), time: Timestamp(1), ranges: [("lines".to_string(), vec![range])].into() }
    };
    let first = program();
    let keep = first.pipeline().keep.as_ref().unwrap();
    keep.log().topic("lines").unwrap().append(0, &lines(["a", "b"]), None).unwrap();
    // As a ledger is after the power went: the plan is there, and of its records the first two.
    keep.plan(&planned(4)).unwrap();
    drop(first);
    let second = program();
    let keep = second.pipeline().keep.as_ref().unwrap();
    assert_eq!(keep.planned(), None);
    keep.plan(&planned(2)).unwrap();
    drop(second);
    assert_eq!(program().pipeline().keep.as_ref().unwrap().planned(), Some(planned(2)));
}

#[test]
fn a_log_that_ends_before_what_was_read_is_refused_with_the_gap() {
    use crate::{
        ingest::tests::{lines, registry},
        testing::SqlProgram,
    };
    let dir = tempfile::tempdir().unwrap();
    let program = || {
        let builder = StreamingContext::builder("p").trigger(Trigger::Drain).data_dir(dir.path());
        SqlProgram::over(builder.registry(registry()).build())
    };
    let text = "CREATE STREAM lines WITH (connector = 'idle'); CREATE VIEW n AS SELECT count(*) AS n FROM lines";
    let mut first = program();
    first.start(text).unwrap();
    let topic = first.pipeline().keep.as_ref().unwrap().log().topic("lines").unwrap();
    topic.append(0, &lines(["a", "b"]), None).unwrap();
    first.step().unwrap();
    drop((topic, first));
    let segment = dir.path().join("log/lines/0/00000000000000000000.seg");
    std::fs::OpenOptions::new().write(true).open(segment).unwrap().set_len(9).unwrap();
    let error = program().start(text).unwrap_err().to_string();
    assert!(error.contains("`lines` partition 0 ends at offset 0") && error.contains("[0, 2) is gone"), "{error}");
}
