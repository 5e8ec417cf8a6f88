//! What was taken back is hidden wherever history is shown, and nothing else is.

use super::*;
use crate::{
    Shell, StreamingContext, Trigger,
    ingest::tests::{self, lines},
    testing::SqlProgram,
};
use arrow_array::{Array, RecordBatch, StringArray};
use std::path::Path;
use tidemill_core::{Answers, BatchId, Clock, Decoder, Duration, Format, ManualClock, Progress, Question};
use tidemill_store::{
    SimDisk,
    log::{Log, TopicConfig},
};

/// A record shows the names in it; `-a` takes `a` back.
#[derive(Debug)]
struct Names;

impl Notices for Names {
    fn name(&self) -> &'static str {
        "names"
    }

    fn taken_back(&self, record: &[u8]) -> Option<String> {
        record.strip_prefix(b"-").map(|name| String::from_utf8_lossy(name).into_owned())
    }

    fn shown(&self, record: &[u8], id: &mut dyn FnMut(&str)) {
        let text = String::from_utf8_lossy(record);
        text.split(' ').filter(|name| !name.starts_with('-')).for_each(id);
    }
}

/// Lines, among them notices.
#[derive(Debug)]
struct Named(Arc<dyn Format>);

impl Format for Named {
    fn name(&self) -> &'static str {
        "named"
    }

    fn schema(&self) -> arrow_schema::SchemaRef {
        self.0.schema()
    }

    fn decoder(&self, projection: &[usize]) -> Box<dyn Decoder> {
        self.0.decoder(projection)
    }

    fn notices(&self) -> Option<Arc<dyn Notices>> {
        Some(Arc::new(Names))
    }
}

fn registry() -> Registry {
    let mut registry = tests::registry();
    registry.add_format("named", |_, _| Ok(Arc::new(Named(tests::idle().1))));
    registry.add_notices(Arc::new(Names));
    registry
}

fn texts(batches: &[RecordBatch]) -> Vec<String> {
    let column = |rows: &RecordBatch| {
        let texts = rows.column(0).as_any().downcast_ref::<StringArray>().unwrap().clone();
        (0..texts.len()).map(move |row| texts.value(row).to_string()).collect::<Vec<_>>()
    };
    batches.iter().flat_map(column).collect()
}

/// A number below `below`.
fn next(seed: &mut u64, below: u64) -> u64 {
    *seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    (*seed >> 33) % below
}

#[test]
fn a_record_is_hidden_if_a_notice_about_it_came_after() {
    let mut hidden = 0;
    for seed in 0..200_u64 {
        let mut dice = seed;
        let clock = Arc::new(ManualClock::default());
        let disk = Arc::new(SimDisk::new());
        let log = Log::open(disk, Path::new("/d/log"), Arc::clone(&clock) as Arc<dyn Clock>).unwrap();
        let mut config = TopicConfig { partitions: 3, ..TopicConfig::new(lines(["a"]).schema()) };
        config.notices = Some("names".to_string());
        let topic = log.create_topic("t", &config).unwrap();
        // All records in the order in which they came: partition, offset, text.
        let mut all: Vec<(u32, u64, String)> = Vec::new();
        for _ in 0..next(&mut dice, 30) {
            clock.advance(Duration::from_millis(1));
            let p = u32::try_from(next(&mut dice, 3)).unwrap();
            let mut texts = Vec::new();
            for _ in 0..=next(&mut dice, 3) {
                let mut name = || format!("n{}", next(&mut dice, 6));
                let (one, two) = (name(), name());
                texts.push(match next(&mut dice, 4) {
                    0 => format!("-{one}"),
                    1 => format!("{one} {two}"),
                    _ => one,
                });
            }
            let first = topic.append(p, &lines(&texts), None).unwrap().first.0;
            all.extend(texts.into_iter().zip(first..).map(|(text, offset)| (p, offset, text)));
        }
        let part = |p: u32, dice: &mut u64| {
            let end = topic.end(p).0;
            let from = next(dice, end + 1);
            (p, Offset(from), Offset(from + next(dice, end - from + 1)))
        };
        let ranges: Vec<_> = (0..3).map(|p| part(p, &mut dice)).collect();
        let mut want = Vec::new();
        for (at, (p, offset, text)) in all.iter().enumerate() {
            let (_, from, to) = ranges[*p as usize];
            let later: Vec<&str> = all[at + 1..].iter().filter_map(|(.., text)| text.strip_prefix('-')).collect();
            if (from.0..to.0).contains(offset) && !text.split(' ').any(|name| later.contains(&name)) {
                want.push((*p, *offset, text.clone()));
            }
            hidden += usize::from(text.split(' ').any(|name| later.contains(&name)));
        }
        let standing = Standing::of(&topic, &registry(), &ranges).unwrap().unwrap().read().unwrap();
        let mut got = Vec::new();
        for (p, from, to) in ranges {
            for rows in topic.read(p, from, to) {
                let rows = rows.unwrap();
                let stand = standing.standing(p, &rows);
                for row in 0..rows.rows.num_rows() {
                    if stand.as_ref().is_none_or(|stand| stand.value(row)) {
                        let text = String::from_utf8_lossy(rows.rows.column(0).as_binary::<i32>().value(row));
                        got.push((p, rows.base.0 + row as u64, text.into_owned()));
                    }
                }
            }
        }
        want.sort();
        got.sort();
        assert_eq!(got, want, "seed {seed}");
    }
    assert!(hidden > 500, "{hidden} were hidden");
}

const PROGRAM: &str = "
    CREATE STREAM posts WITH (connector = 'idle', format = 'named');
    CREATE VIEW seen AS SELECT value FROM posts";

fn program(dir: &Path, registry: Registry) -> SqlProgram {
    let builder = StreamingContext::builder("p").trigger(Trigger::Drain).partitions(2).data_dir(dir);
    let mut program = SqlProgram::over(builder.registry(registry).build());
    program.start(PROGRAM).unwrap();
    program
}

fn append(program: &SqlProgram, texts: &[&str]) {
    let topic = program.pipeline().keep.as_ref().unwrap().log().topic("posts").unwrap();
    topic.append(0, &lines(texts), None).unwrap();
}

#[test]
fn queries_leave_out_what_was_taken_back_now_and_as_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let program = program(dir.path(), registry());
    let all = "SELECT value FROM posts ORDER BY _offset";
    let asked = |sql: &str| texts(&program.context().sql(sql).unwrap());
    append(&program, &["a", "b", "b c", "c"]);
    program.step().unwrap();
    assert_eq!(asked(all), ["a", "b", "b c", "c"]);
    append(&program, &["-b", "-x", "d"]);
    program.step().unwrap();
    // A program is told as it comes: the record in its turn, then the notice.
    assert_eq!(texts(&[program.view("seen").unwrap()]), ["-b", "-x", "d"]);
    assert_eq!(asked(all), ["a", "c", "-b", "-x", "d"]);
    assert_eq!(asked("SELECT value FROM posts WHERE _offset BETWEEN 1 AND 3"), ["c"]);
    assert_eq!(asked("SELECT CAST(count(*) AS TEXT) FROM posts"), ["5"]);
    assert_eq!(asked("SELECT value FROM posts LIMIT 2"), ["a", "c"]);
    assert_eq!(asked("SELECT value FROM posts WHERE _offset > 4"), ["-x", "d"]);
    assert_eq!(asked("SELECT value FROM posts WHERE _offset > 99"), [""; 0]);
    // Made anew under its old name it is another one.
    append(&program, &["b"]);
    assert_eq!(asked(all), ["a", "c", "-b", "-x", "d", "b"]);
    // What was there after the first batch, without what was taken back since.
    let question = Question { sql: all.to_string(), rows: 100, at: Some(BatchId(1)), ..Question::default() };
    let then = futures::executor::block_on(program.context().answer(question, Arc::new(Progress::default()))).unwrap();
    assert_eq!(texts(&then.rows), ["a", "c"]);

    // Another process, while the program has the directory.
    let shell = Shell::open(dir.path()).unwrap().registry(registry());
    assert_eq!(texts(&shell.query(all).unwrap()), ["a", "c", "-b", "-x", "d", "b"]);
    let blind = Shell::open(dir.path()).unwrap();
    let error = blind.query(all).unwrap_err().to_string();
    assert!(error.contains("topic `posts` has notices of deleted names, which can't be read here"), "{error}");
    assert!(blind.query("SELECT * FROM dead").is_ok(), "another topic");
}

#[test]
fn a_topic_from_before_keeps_whose_notices_are_in_it_from_the_next_start_on() {
    let dir = tempfile::tempdir().unwrap();
    let notices = |program: &SqlProgram| {
        let log = Arc::clone(program.pipeline().keep.as_ref().unwrap().log());
        log.topic("posts").unwrap().notices()
    };
    let mut plain = registry();
    plain.add_format("named", |_, _| Ok(tests::idle().1));
    let before = program(dir.path(), plain.clone());
    append(&before, &["a", "-a"]);
    assert_eq!(notices(&before), None);
    assert_eq!(texts(&before.context().sql("SELECT value FROM posts").unwrap()), ["a", "-a"]);
    drop(before);
    let now = program(dir.path(), registry());
    assert_eq!(notices(&now).as_deref(), Some("names"));
    assert_eq!(texts(&now.context().sql("SELECT value FROM posts").unwrap()), ["-a"]);
    drop(now);
    // A program that reads them otherwise takes nothing away.
    assert_eq!(notices(&program(dir.path(), plain)).as_deref(), Some("names"));
}

#[test]
fn more_notices_than_can_be_held_are_an_error() {
    let log = Log::open(Arc::new(SimDisk::new()), Path::new("/d/log"), Arc::new(ManualClock::default())).unwrap();
    let config = TopicConfig { notices: Some("names".to_string()), ..TopicConfig::new(lines(["a"]).schema()) };
    let topic = log.create_topic("t", &config).unwrap();
    topic.append(0, &lines(["a", "-a", "-b", "-a"]), None).unwrap();
    let of = |most| {
        let mut standing = Standing::of(&topic, &registry(), &[(0, Offset(0), Offset(4))]).unwrap().unwrap();
        standing.most = most;
        standing.read()
    };
    assert!(of(2).is_ok());
    let error = of(1).unwrap_err().to_string();
    assert!(error.starts_with("over 1 records of topic `t` were taken back"), "{error}");
}
