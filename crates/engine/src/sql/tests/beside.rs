//! Sinks, and queries over the log.

use super::{POSTS, rows, sorted};
use crate::{Shell, testing::SqlProgram};
use arrow_array::{Int64Array, RecordBatch};
use async_trait::async_trait;
use futures::{TryStreamExt, stream::BoxStream};
use parking_lot::Mutex;
use std::sync::Arc;
use tidemill_core::{BatchId, Claim, Guarantee, ManualClock, Registry, Result, Sink, StagedPart, Timestamp};
use tidemill_store::{
    DataDir,
    log::{Log, TopicConfig},
};

static STORED: Mutex<Vec<(u64, RecordBatch)>> = Mutex::new(Vec::new());

#[derive(Debug)]
struct Memory;

#[async_trait]
impl Sink for Memory {
    fn describe(&self) -> String {
        "memory".into()
    }

    fn guarantee(&self) -> Guarantee {
        Guarantee::ExactlyOnce
    }

    async fn stage(
        &self,
        batch: BatchId,
        _time: Timestamp,
        _part: usize,
        rows: BoxStream<'_, Result<RecordBatch>>,
    ) -> Result<Option<StagedPart>> {
        let rows: Vec<RecordBatch> = rows.try_collect().await?;
        STORED.lock().extend(rows.into_iter().filter(|r| r.num_rows() > 0).map(|r| (batch.0, r)));
        Ok(None)
    }

    async fn commit(&self, _batch: BatchId, _parts: &[StagedPart]) -> Result<()> {
        Ok(())
    }
}

#[test]
fn rows_go_into_sinks_when_there_are_any() {
    let mut registry = Registry::default();
    registry.add_sink("memory", |_| Ok(Arc::new(Memory)));
    let context = crate::StreamingContext::builder("test").partitions(2).registry(registry).build();
    let mut program = SqlProgram::over(context);
    program.queue("posts", vec![vec![rows(&[(1, "a", Some(1))])], vec![rows(&[(30, "b", Some(2))])]]);
    program
        .start(&format!(
            "{POSTS}CREATE SINK out WITH (connector = 'memory');
             CREATE VIEW closed AS SELECT tag, sum(n) AS s FROM TUMBLE(posts, t, INTERVAL '10' SECOND)
                 GROUP BY window_start, tag;
             INSERT INTO out SELECT tag, s * 2 AS s FROM closed"
        ))
        .unwrap();
    let again = program.context().declare_sql("INSERT INTO out SELECT * FROM closed").unwrap_err().to_string();
    assert_eq!(
        again,
        "line 1, column 13: INSERT INTO out: sink `out` has an INSERT already: put both into one with UNION ALL, or create a second sink"
    );
    for _ in 0..4 {
        program.step().unwrap();
    }
    let stored = std::mem::take(&mut *STORED.lock());
    assert_eq!(stored.len(), 1, "one window closed");
    assert_eq!((stored[0].0, sorted(&[stored[0].1.clone()])), (2, vec!["|a|2|".to_string()]));
}

/// Has the place that its option names for itself.
#[derive(Debug)]
struct Placed(String);

#[async_trait]
impl Sink for Placed {
    fn describe(&self) -> String {
        format!("placed {}", self.0)
    }

    fn guarantee(&self) -> Guarantee {
        Guarantee::ExactlyOnce
    }

    fn claim(&self) -> Option<Claim> {
        Some(Claim::new(format!("place {}", self.0)))
    }

    async fn stage(
        &self,
        _batch: BatchId,
        _time: Timestamp,
        _part: usize,
        _rows: BoxStream<'_, Result<RecordBatch>>,
    ) -> Result<Option<StagedPart>> {
        Ok(None)
    }

    async fn commit(&self, _batch: BatchId, _parts: &[StagedPart]) -> Result<()> {
        Ok(())
    }
}

#[test]
fn two_outputs_into_one_place_are_refused() {
    let start = |program: &str, beside: Option<&str>| {
        let mut registry = Registry::default();
        registry.add_sink("placed", |o| Ok(Arc::new(Placed(o.require("at", "where")?.to_string()))));
        let context = crate::StreamingContext::builder("test").partitions(2).registry(registry).build();
        let mut sql = SqlProgram::over(context);
        sql.queue("posts", vec![vec![rows(&[(1, "a", Some(1))])]]);
        if let Some(at) = beside {
            let numbers = sql.context().queue_stream([vec![1_i64]]).unwrap();
            numbers.to_sink(Arc::new(Placed(at.to_string())));
        }
        sql.start(&format!("{POSTS}{program}"))
    };
    let insert = "INSERT INTO s SELECT tag FROM posts;";
    let two = format!(
        "CREATE SINK s WITH (connector = 'placed', at = 'x');\nCREATE SINK t WITH (at = 'x', connector = 'placed');{insert}"
    );
    let told = "sink `t` would write to place x, as sink `s` does, and rows of one would take the place of the other's";
    let error = start(&two, None).unwrap_err().to_string();
    assert!(error.starts_with("line 3, column 13: CREATE SINK t: ") && error.contains(told), "{error}");
    start(&two.replacen("'x'", "'y'", 1), None).unwrap();

    let one = format!("CREATE SINK s WITH (connector = 'placed', at = 'x'); {insert}");
    let error = start(&one, Some("x")).unwrap_err().to_string();
    assert!(error.contains("sink `s` would write to place x, as output `sink` does"), "{error}");
    start(&one, Some("y")).unwrap();
}

#[test]
fn a_whole_result_is_stored_when_it_has_changed() {
    static STORED: Mutex<Vec<u64>> = Mutex::new(Vec::new());
    let entries = vec![vec![rows(&[(1, "a", Some(1))])], vec![], vec![rows(&[(30, "b", Some(2))])]];
    let mut registry = Registry::default();
    registry.add_sink("noting", |_| Ok(Arc::new(Noting(&STORED))));
    let context = crate::StreamingContext::builder("test").partitions(2).registry(registry).build();
    let mut program = SqlProgram::over(context);
    program.queue("posts", entries);
    program
        .start(&format!(
            "{POSTS}CREATE SINK direct WITH (connector = 'noting'); CREATE SINK through WITH (connector = 'noting');
             INSERT INTO direct SELECT tag, count(*) AS n FROM posts GROUP BY tag;
             CREATE VIEW counts AS SELECT tag, count(*) AS n FROM posts GROUP BY tag;
             INSERT INTO through SELECT upper(tag) AS tag, n FROM counts"
        ))
        .unwrap();
    for _ in 0..3 {
        program.step().unwrap();
    }
    assert_eq!(*STORED.lock(), [1, 1], "idle batches store nothing");
    assert_eq!(sorted(&[program.view("counts").unwrap()]), ["|a|1|"], "and show what there is");
}

#[test]
fn what_reads_no_stream_is_shown_and_not_written() {
    static STORED: Mutex<Vec<u64>> = Mutex::new(Vec::new());
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("names.csv");
    std::fs::write(&path, "tag,name\na,Anna\n").unwrap();
    let path = path.display();
    let tables = format!(
        "CREATE TABLE names WITH (connector = 'csv', path = '{path}');
         CREATE TABLE read_again WITH (connector = 'csv', path = '{path}', reload = '1s');
         CREATE VIEW one AS SELECT 1 AS tag;
         CREATE VIEW named AS SELECT name, count(*) AS n FROM names GROUP BY name;
         CREATE SINK out WITH (connector = 'noting');"
    );
    let start = |statement: &str| {
        let mut registry = Registry::default();
        registry.add_sink("noting", |_| Ok(Arc::new(Noting(&STORED))));
        let context = crate::StreamingContext::builder("test").partitions(2).registry(registry).build();
        let mut program = SqlProgram::over(context);
        program.queue("posts", vec![vec![rows(&[(1, "a", Some(1))])]]);
        program.start(&format!("{POSTS}{tables}\n{statement}")).map(|()| program)
    };
    for query in [
        "SELECT * FROM names",
        "VALUES (7)",
        "SELECT 1 AS a",
        "SELECT * FROM read_again",
        "SELECT * FROM one",
        "SELECT * FROM named WHERE name IN (SELECT tag FROM names)",
        "SELECT name FROM names UNION ALL SELECT 'x' AS name",
    ] {
        let error = start(&format!("INSERT INTO out {query}")).map(|_| ()).unwrap_err().to_string();
        let expected = "INSERT INTO out: its rows come from no stream, and would be written again in each batch";
        assert!(error.contains(expected), "{query}: {error}");
    }
    let program =
        start("INSERT INTO out SELECT posts.tag, name FROM posts LEFT JOIN names ON posts.tag = names.tag").unwrap();
    for _ in 0..3 {
        program.step().unwrap();
    }
    assert_eq!(*STORED.lock(), [1], "a stream's rows are written once");
    assert_eq!(sorted(&[program.view("one").unwrap()]), ["|1|"]);
    assert_eq!(sorted(&[program.view("named").unwrap()]), ["|Anna|1|"]);
    let looked_at = crate::StreamingContext::builder("test").check_only().build();
    looked_at.declare_sql("CREATE VIEW one AS SELECT 1 AS tag").unwrap();
    let plan = looked_at.explain().unwrap();
    assert!(plan.contains("gives the rows of tables, as they stand, in each batch (complete)"), "{plan}");
    // An INSERT of which the planner finds that it gives nothing still reads a stream.
    start("INSERT INTO out SELECT tag FROM posts WHERE false").unwrap();
}

/// Notes the batches in which it got rows.
#[derive(Debug)]
struct Noting(&'static Mutex<Vec<u64>>);

#[async_trait]
impl Sink for Noting {
    fn describe(&self) -> String {
        "noting".into()
    }

    fn guarantee(&self) -> Guarantee {
        Guarantee::ExactlyOnce
    }

    async fn stage(
        &self,
        batch: BatchId,
        _time: Timestamp,
        _part: usize,
        rows: BoxStream<'_, Result<RecordBatch>>,
    ) -> Result<Option<StagedPart>> {
        let rows: Vec<RecordBatch> = rows.try_collect().await?;
        if rows.iter().any(|rows| rows.num_rows() > 0) {
            self.0.lock().push(batch.0);
        }
        Ok(None)
    }

    async fn commit(&self, _batch: BatchId, _parts: &[StagedPart]) -> Result<()> {
        Ok(())
    }
}

#[test]
fn topics_are_tables_that_are_read_in_part() {
    let dir = tempfile::tempdir().unwrap();
    let numbers = |from: i64| {
        RecordBatch::try_from_iter([("n", Arc::new(Int64Array::from_iter_values(from..from + 10)) as _)]).unwrap()
    };
    {
        let owned = DataDir::open(dir.path()).unwrap();
        let clock = Arc::new(ManualClock::default());
        let log = Log::open(owned.disk(), &dir.path().join("log"), Arc::clone(&clock) as _).unwrap();
        let config = TopicConfig { partitions: 2, ..TopicConfig::new(numbers(0).schema()) };
        let topic = log.create_topic("numbers", &config).unwrap();
        for batch in 0..10 {
            clock.set(Timestamp(batch * 1_000_000));
            topic.append(u32::try_from(batch % 2).unwrap(), &numbers(batch * 10), None).unwrap();
        }
        topic.sync_to(0, topic.end(0)).unwrap();
        topic.sync_to(1, topic.end(1)).unwrap();
    }
    let shell = Shell::open(dir.path()).unwrap();
    assert_eq!(shell.topics().unwrap().len(), 1);
    let _owner = tidemill_store::DataDir::open(dir.path()).unwrap();
    assert!(Shell::open(dir.path()).is_ok(), "whoever owns the directory, it can be looked at");
    let one = |query: &str| sorted(&shell.query(query).unwrap());
    assert_eq!(one("SELECT count(*) AS c, sum(n) AS s FROM numbers"), ["|100|4950|"]);
    assert_eq!(one("SELECT n FROM numbers WHERE _offset = 12 AND _partition = 1"), ["|32|"]);
    assert_eq!(one("SELECT min(n) AS a, max(n) AS b FROM numbers WHERE _offset >= 45"), ["|85|99|"]);
    assert_eq!(
        one(
            "SELECT min(n) AS a, max(n) AS b FROM numbers WHERE _timestamp BETWEEN '1970-01-01T00:00:03Z' AND '1970-01-01T00:00:04Z'"
        ),
        ["|30|49|"]
    );
    assert_eq!(one("SELECT count(*) AS c FROM numbers WHERE _timestamp > '1970-01-01T00:00:08Z' OR n = 1"), ["|11|"]);
}

#[test]
fn topics_are_pruned_by_their_own_columns() {
    use crate::sql::topics::TopicTable;
    use datafusion::logical_expr::{col, lit};
    use datafusion::scalar::ScalarValue;
    let dir = tempfile::tempdir().unwrap();
    let owned = DataDir::open(dir.path()).unwrap();
    let clock = Arc::new(ManualClock::default());
    let log = Log::open(owned.disk(), &dir.path().join("log"), Arc::clone(&clock) as _).unwrap();
    let one = RecordBatch::try_from_iter([("n", Arc::new(Int64Array::from(vec![1, 2])) as _)]).unwrap();
    let topic = log.create_topic("t", &TopicConfig { partitions: 2, ..TopicConfig::new(one.schema()) }).unwrap();
    for second in 0..5 {
        clock.set(Timestamp(second * 1_000_000));
        topic.append(0, &one, None).unwrap();
        topic.append(1, &one, None).unwrap();
    }
    let table = TopicTable::new(topic, Arc::default()).unwrap();
    let time = |s: i64| lit(ScalarValue::TimestampMicrosecond(Some(s * 1_000_000), Some("UTC".into())));
    let ranges = |filters: &[datafusion::logical_expr::Expr]| {
        let ranges = table.ranges(filters).unwrap();
        ranges.into_iter().map(|(p, from, to)| (p, from.0, to.0)).collect::<Vec<_>>()
    };
    assert_eq!(ranges(&[]), [(0, 0, 10), (1, 0, 10)]);
    assert_eq!(ranges(&[col("_partition").eq(lit(1_u32)), col("_offset").gt(lit(3_u64))]), [(1, 4, 10)]);
    assert_eq!(ranges(&[lit(3_u64).gt_eq(col("_offset"))]), [(0, 0, 4), (1, 0, 4)]);
    assert_eq!(ranges(&[col("_timestamp").gt(time(1)), col("_timestamp").lt_eq(time(3))]), [(0, 4, 8), (1, 4, 8)]);
    assert_eq!(ranges(&[col("_timestamp").gt_eq(time(1)), col("_timestamp").lt(time(3))]), [(0, 2, 6), (1, 2, 6)]);
    assert_eq!(ranges(&[col("_offset").eq(lit(99_u64))]), []);
    assert_eq!(ranges(&[col("n").eq(lit(1_i64))]), [(0, 0, 10), (1, 0, 10)], "not its affair");
}

#[test]
fn typed_streams_are_tables_and_mixed_names_need_no_quotes() {
    let context = crate::StreamingContext::builder("test").partitions(2).build();
    let pairs = context.queue_stream([vec![("a".to_string(), 1_i64), ("b".to_string(), 5)]]).unwrap();
    pairs.filter(|(_, n)| n > 1).to_table("pairs", &["userName", "n"]);
    let mut program = SqlProgram::over(context);
    // Streams without options are known before the first statement that names them.
    program.start("CREATE VIEW v AS SELECT \"userName\" AS who, sum(n) AS s FROM pairs GROUP BY \"userName\"").unwrap();
    program.step().unwrap();
    assert_eq!(sorted(&[program.view("v").unwrap()]), ["|b|5|"]);
    let mut program = SqlProgram::new(1);
    program.queue(
        "s",
        vec![vec![RecordBatch::try_from_iter([("createdAt", Arc::new(Int64Array::from(vec![7])) as _)]).unwrap()]],
    );
    program
        .start(
            "CREATE STREAM s (createdAt BIGINT) WITH (connector = 'program');
             CREATE VIEW v AS SELECT createdAt FROM s WHERE s.createdAt > 1",
        )
        .unwrap();
    program.step().unwrap();
    assert_eq!(sorted(&[program.view("v").unwrap()]), ["|7|"]);
}
