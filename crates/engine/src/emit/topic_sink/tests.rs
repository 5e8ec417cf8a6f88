//! A machine that stops anywhere, and programs that write and read topics.

use super::*;
use crate::{
    QueueSource, StreamingContext, Trigger,
    ingest::tests::{lines, registry},
    testing::SqlProgram,
};
use arrow_array::{Int64Array, cast::AsArray, types::Int64Type};
use arrow_schema::DataType;
use std::path::Path;
use tidemill_core::{Clock, ManualClock, Offset};
use tidemill_store::{SimDisk, disk::Fault};

fn numbers(numbers: impl IntoIterator<Item = i64>) -> RecordBatch {
    let schema = Schema::new(vec![Field::new("n", DataType::Int64, false)]);
    RecordBatch::try_new(Arc::new(schema), vec![Arc::new(Int64Array::from_iter_values(numbers))]).unwrap()
}

fn read(topic: &Topic) -> Vec<i64> {
    (0..topic.config().partitions)
        .flat_map(|p| topic.read(p, topic.start(p), topic.end(p)).collect::<Vec<_>>())
        .flat_map(|rows| rows.unwrap().rows.column(0).as_primitive::<Int64Type>().values().to_vec())
        .collect()
}

/// The rows of a part: more than one frame of them in the first part.
fn part_rows(batch: u64, part: usize) -> Vec<RecordBatch> {
    let first = batch.cast_signed() * 1_000_000 + i64::try_from(part).unwrap() * 100_000;
    let count = if part == 0 { 9000 } else { 3 };
    vec![numbers(first..first + count), numbers(first + count..first + count + 10)]
}

/// What a ledger knows: the last committed batch, and what it staged.
type Ledger = Option<(u64, Vec<StagedPart>)>;

const BATCHES: u64 = 3;

/// Runs a program's batches from where the ledger stands.
async fn life(disk: &SimDisk, ledger: &mut Ledger) -> Result<()> {
    let clock: Arc<dyn Clock> = Arc::new(ManualClock::at(Timestamp(1_000_000)));
    let log = Arc::new(Log::open(Arc::new(disk.clone()), Path::new("/d/log"), clock)?);
    let options = Options::new("sink", [("topic", "t"), ("partitions", "2")]);
    let sink = TopicSink::from_options(&options)?;
    let (staged, owner) = ("/d/staged/out".into(), "p/out".to_string());
    sink.place(TopicPlace {
        log,
        disk: Arc::new(disk.clone()),
        staged,
        owner,
        sync: Sync::Always,
        past: TopicPast::default(),
    });
    sink.open(numbers([]).schema()).await?;
    if let Some((batch, parts)) = &ledger {
        sink.commit(BatchId(*batch), parts).await?;
    }
    sink.recover(ledger.as_ref().map(|(batch, _)| BatchId(*batch))).await?;
    for batch in ledger.as_ref().map_or(0, |(batch, _)| *batch) + 1..=BATCHES {
        let mut parts = Vec::new();
        for part in 0..3 {
            let rows = futures::stream::iter(part_rows(batch, part).into_iter().map(Ok)).boxed();
            let time = Timestamp(batch.cast_signed() * 1_000_000);
            parts.extend(sink.stage(BatchId(batch), time, part, rows).await?);
        }
        if disk.is_dead() {
            return Err(Error::external("the machine has stopped"));
        }
        // The ledger's own disk never loses a record here.
        *ledger = Some((batch, parts.clone()));
        sink.commit(BatchId(batch), &parts).await?;
        sink.commit(BatchId(batch), &parts).await?;
    }
    Ok(())
}

fn all(disk: &SimDisk) -> Vec<i64> {
    let clock: Arc<dyn Clock> = Arc::new(ManualClock::default());
    let log = Log::open(Arc::new(disk.clone()), Path::new("/d/log"), clock).unwrap();
    read(&log.topic("t").unwrap())
}

#[test]
fn a_machine_that_stops_anywhere_shows_each_batch_once() {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let disk = SimDisk::new();
    runtime.block_on(life(&disk, &mut None)).unwrap();
    let (ops, want) = (disk.ops(), all(&disk));
    let mut expected: Vec<i64> = Vec::new();
    for (batch, part) in (1..=BATCHES).flat_map(|batch| (0..3).map(move |part| (batch, part))) {
        let rows = part_rows(batch, part);
        expected.extend(rows.iter().flat_map(|rows| rows.column(0).as_primitive::<Int64Type>().values().to_vec()));
    }
    let sorted = |mut rows: Vec<i64>| {
        rows.sort_unstable();
        rows
    };
    assert!(sorted(want.clone()) == expected, "an undisturbed run has all rows");
    let mut stopped = 0;
    for op in 0..ops {
        let disk = SimDisk::new();
        disk.fail_at(op, Fault::Crash);
        let mut ledger = None;
        stopped += u32::from(runtime.block_on(life(&disk, &mut ledger)).is_err());
        let disk = disk.crash(op);
        runtime.block_on(life(&disk, &mut ledger)).unwrap_or_else(|e| panic!("stopped at {op}: {}", e.chain()));
        // Whole runs are too long to be shown.
        assert!(all(&disk) == want, "stopped at operation {op}: not the same rows in the same order");
    }
    assert!(u64::from(stopped) > ops / 2, "{stopped} of {ops} runs were stopped");
}

fn program(name: &str, dir: &Path, text: &str) -> Result<SqlProgram> {
    let builder = StreamingContext::builder(name).trigger(Trigger::Drain).partitions(2).data_dir(dir);
    let mut program = SqlProgram::over(builder.registry(registry()).build());
    program.queue("numbers", (0..6).map(|i| vec![numbers([i * 2]), numbers([i * 2 + 1])]).collect());
    program.start(text)?;
    Ok(program)
}

#[test]
fn an_output_whose_last_batch_is_perhaps_not_whole_does_not_move() {
    const INTO: &str = "
        CREATE STREAM numbers WITH (connector = 'program');
        CREATE SINK out WITH (connector = 'topic', topic = 'doubled');
        INSERT INTO out SELECT n * 2 AS n FROM numbers";
    let dir = tempfile::tempdir().unwrap();
    let running = program("p", dir.path(), INTO).unwrap();
    running.step().unwrap();
    drop(running);
    let moved = || {
        let builder = StreamingContext::builder("p").trigger(Trigger::Drain).partitions(2).data_dir(dir.path());
        let mut program = SqlProgram::over(builder.accept_changes().registry(registry()).build());
        program.queue("numbers", (0..6).map(|i| vec![numbers([i])]).collect());
        program.start(&INTO.replace("'doubled'", "'others'")).map(|()| program)
    };
    // The machine stopped between the commit and the word that all of it was shown.
    let path = dir.path().join("programs/p/ledger/00000000000000000000.ledger");
    let bytes = std::fs::read(&path).unwrap();
    let told = (0..bytes.len())
        .step_by(16)
        .rfind(|at| bytes[*at..].starts_with(b"TMF1") && bytes[at + 64..].starts_with(b"{\"shown\""));
    std::fs::write(&path, &bytes[..told.unwrap()]).unwrap();
    let error = moved().unwrap_err().to_string();
    for says in ["output `insert-out`", "topic others", "batch 1 is whole in topic doubled", "once more as it was"] {
        assert!(error.contains(says), "{error}");
    }
    let running = program("p", dir.path(), INTO).unwrap();
    running.step().unwrap();
    drop(running);
    let running = moved().unwrap();
    running.step().unwrap();
    let log = running.pipeline().keep.as_ref().unwrap().log();
    let rows = |topic: &str| log.topic(topic).map(|topic| read(&topic)).unwrap();
    assert_eq!((rows("doubled"), rows("others")), (vec![0, 2, 4, 6], vec![4]));
}

fn shown(program: &SqlProgram, view: &str) -> Vec<i64> {
    let rows = program.view(view).unwrap_or_else(|| panic!("{view} has no rows"));
    rows.columns().iter().map(|column| column.as_primitive::<Int64Type>().value(0)).collect()
}

const BOTH: &str = "
    CREATE STREAM numbers WITH (connector = 'program');
    CREATE SINK out WITH (connector = 'topic', topic = 'doubled', partitions = '2', retention_bytes = '1GB');
    INSERT INTO out SELECT n * 2 AS n FROM numbers;
    CREATE STREAM doubled WITH (connector = 'topic', topic = 'doubled');
    CREATE VIEW total AS SELECT count(*) AS c, sum(n) AS n, count(_timestamp) AS timed FROM doubled";

#[test]
fn a_program_reads_what_it_writes_and_goes_on_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let sum = |rows: i64| vec![rows, rows * (rows - 1), rows];
    let running = program("p", dir.path(), BOTH).unwrap();
    let plan = running.context().explain().unwrap();
    assert!(plan.contains("doubled: reads topic doubled\n"), "{plan}");
    for batch in 1..=3 {
        running.step().unwrap();
        if batch > 1 {
            assert_eq!(shown(&running, "total"), sum(2 * (batch - 1)));
        }
    }
    drop(running);
    let running = program("p", dir.path(), BOTH).unwrap();
    for _ in 4..=7 {
        running.step().unwrap();
    }
    assert_eq!(shown(&running, "total"), sum(12));
    let topic = running.pipeline().keep.as_ref().unwrap().log().topic("doubled").unwrap();
    assert_eq!((topic.end(0), topic.end(1)), (Offset(6), Offset(6)), "each part goes into a partition");
    assert_eq!(topic.retention().max_bytes, Some(1_000_000_000));
    assert_eq!(topic.pins().into_keys().collect::<Vec<_>>(), ["p/doubled"]);
    drop((topic, running));

    // Another program reads the same topic, and one that begins at its end reads what comes.
    let other = "CREATE STREAM d (n BIGINT) WITH (connector = 'topic', topic = 'doubled');
        CREATE VIEW total AS SELECT count(*) AS c, sum(n) AS n FROM d;
        CREATE STREAM new WITH (connector = 'topic', topic = 'doubled', start = 'latest');
        CREATE VIEW came AS SELECT count(*) AS n FROM new";
    let running = program("q", dir.path(), other).unwrap();
    running.step().unwrap();
    assert_eq!((shown(&running, "total"), shown(&running, "came")), (vec![12, 132], vec![0]));
    drop(running);
    // What comes while it is stopped is read, too: where it began is in the ledger.
    let writer = program("w", dir.path(), &BOTH.replace("n * 2", "n")).unwrap();
    writer.step().unwrap();
    drop(writer);
    let running = program("q", dir.path(), other).unwrap();
    running.step().unwrap();
    assert_eq!((shown(&running, "total"), shown(&running, "came")), (vec![14, 133], vec![2]));
}

#[test]
fn a_program_that_ends_by_itself_has_read_what_its_last_batch_wrote() {
    let dir = tempfile::tempdir().unwrap();
    let context =
        StreamingContext::builder("p").trigger(Trigger::Drain).partitions(2).data_dir(dir.path()).registry(registry());
    let context = context.build();
    let words = context.queue_stream([vec!["ebb".to_string()], vec!["flow".to_string(), "tide".to_string()]]).unwrap();
    words.map(|word: &str| (word.to_uppercase(), 1_i64)).save_to_topic("upper", &["word", "n"]).unwrap();
    context
        .declare_sql(
            "CREATE STREAM upper WITH (connector = 'topic', topic = 'upper');
             CREATE VIEW seen AS SELECT count(*) AS n, max(word) AS last FROM upper",
        )
        .unwrap();
    context.start().unwrap();
    context.await_termination().unwrap();
    let seen = context.sql("SELECT n FROM seen WHERE last = 'TIDE'").unwrap();
    assert_eq!(seen[0].column(0).as_primitive::<Int64Type>().values().to_vec(), [3]);
}

#[test]
fn lines_of_a_topic_are_decoded_where_they_lie() {
    let dir = tempfile::tempdir().unwrap();
    {
        let disk = Arc::new(tidemill_store::RealDisk);
        let log = Log::open(disk, &dir.path().join("log"), Arc::new(crate::SystemClock)).unwrap();
        let topic = log.create_topic("made", &TopicConfig::new(lines(["a"]).schema())).unwrap();
        topic.append(0, &lines(["ebb", "refuse", "flow"]), None).unwrap();
        topic.sync_to(0, Offset(3)).unwrap();
    }
    let text = "CREATE STREAM made WITH (connector = 'topic', topic = 'made', format = 'text');
        CREATE VIEW total AS SELECT count(*) AS n, max(_offset) AS last FROM made WHERE value <> ''";
    let running = program("p", dir.path(), text).unwrap();
    running.step().unwrap();
    let rows = running.view("total").unwrap();
    assert_eq!(rows.column(0).as_primitive::<Int64Type>().value(0), 2);
    let keep = running.pipeline().keep.as_ref().unwrap();
    assert_eq!(keep.log().topic("p.dead").unwrap().end(0), Offset(1), "what can't be decoded is a dead letter");
    assert_eq!(keep.log().topics().len(), 2, "no second copy is made");
}

#[test]
fn mistakes_are_told() {
    let dir = tempfile::tempdir().unwrap();
    let numbers = "CREATE STREAM numbers WITH (connector = 'program');";
    let sink = "CREATE SINK out WITH (connector = 'topic', topic = 't');";
    let insert = "INSERT INTO out SELECT n FROM numbers;";
    for (text, says) in [
        ("CREATE STREAM s WITH (connector = 'topic')".to_string(), "option `topic` is missing"),
        ("CREATE SINK s WITH (connector = 'topic', topic = 'a b')".to_string(), "can't be a topic's name"),
        ("CREATE SINK s WITH (connector = 'topic', topic = 't', partitions = '0')".to_string(), "1 to 4096 partitions"),
        ("CREATE STREAM s WITH (connector = 'topc', topic = 't')".to_string(), "did you mean `topic`?"),
        ("CREATE STREAM s WITH (connector = 'topic', topic = 't')".to_string(), "there is no topic `t` yet"),
        ("CREATE STREAM s (n BIGINT) WITH (connector = 'topic', topic = 't', start = 'now')".to_string(), "'earliest'"),
        (
            "CREATE STREAM s (n BIGINT) WITH (connector = 'topic', topic = 't', retention_age = '1h')".to_string(),
            "leave out `retention_age`",
        ),
        (
            format!(
                "{numbers} {sink} {insert} CREATE STREAM s WITH (connector = 'topic', topic = 't', format = 'text')"
            ),
            "leave out `format`",
        ),
        (
            format!("{numbers} {sink} {insert} CREATE STREAM s (m BIGINT) WITH (connector = 'topic', topic = 't')"),
            "the source has no such column; it has n",
        ),
        (
            format!("{numbers} {sink} {insert} {} {}", sink.replace("out", "two"), insert.replace("out", "two")),
            "topic `t` is filled by another stream or output",
        ),
        (
            "CREATE STREAM s (n BIGINT) WITH (connector = 'topic', topic = 't'); CREATE VIEW v AS SELECT n FROM s"
                .to_string(),
            "make it with `tidemill topic create t`",
        ),
    ] {
        let error = program("p", dir.path(), &text).map(|_| ()).unwrap_err().chain();
        assert!(error.contains(says), "{text}: {error}");
    }
    drop(program("p", dir.path(), &format!("{numbers} {sink} {insert}")).unwrap());
    let other = "INSERT INTO out SELECT n AS m FROM numbers";
    let error = program("q", dir.path(), &format!("{numbers} {sink} {other}")).map(|_| ()).unwrap_err().chain();
    assert!(error.contains("(n Int64") && error.contains("(m Int64"), "{error}");
    let declared = "CREATE STREAM s (n TEXT) WITH (connector = 'topic', topic = 't')";
    let error = program("q", dir.path(), declared).map(|_| ()).unwrap_err().chain();
    assert!(error.contains("`n` is declared as Utf8 and the source gives Int64"), "{error}");
    let context = StreamingContext::builder("p").build();
    let source = Arc::new(QueueSource::of([vec![1_i64]]).unwrap());
    context.source_stream::<i64>("n", source, None).unwrap().save_to_topic("t", &[]).unwrap();
    assert!(context.start().unwrap_err().to_string().contains("give the context one"));
}
