//! Tables that are asked by key.

use super::{POSTS, Row, batches, entries, rows, session, sorted};
use crate::{
    StreamingContext, Trigger,
    testing::{SqlProgram, Trial},
};
use arrow_array::{ArrayRef, Int64Array, RecordBatch, StringArray, cast::AsArray};
use async_trait::async_trait;
use datafusion::datasource::MemTable;
use parking_lot::Mutex;
use proptest::prelude::*;
use std::{collections::BTreeMap, path::Path, sync::Arc};
use tidemill_core::{BatchId, Error, Lookup, Result};

type Names = BTreeMap<&'static str, Vec<(&'static str, i64)>>;

/// Names of tags, and what was asked of them.
#[derive(Debug, Default)]
struct People {
    names: Mutex<Names>,
    asked: Mutex<Vec<Vec<String>>>,
    /// Questions that fail before one is answered.
    failing: Mutex<usize>,
}

impl People {
    fn of(names: &[(&'static str, &'static str, i64)]) -> Arc<Self> {
        let people = Self::default();
        people.set(names);
        Arc::new(people)
    }

    fn set(&self, names: &[(&'static str, &'static str, i64)]) {
        let mut all = Names::new();
        for (tag, name, age) in names {
            all.entry(*tag).or_default().push((name, *age));
        }
        *self.names.lock() = all;
    }

    fn asked(&self) -> Vec<String> {
        std::mem::take(&mut *self.asked.lock()).into_iter().map(|keys| keys.join(" ")).collect()
    }

    fn rows_of(names: &Names, tags: &[&str]) -> RecordBatch {
        let found: Vec<(&str, &str, i64)> = tags
            .iter()
            .flat_map(|tag| names.get(*tag).into_iter().flatten().map(move |(name, age)| (*tag, *name, *age)))
            .collect();
        RecordBatch::try_from_iter_with_nullable([
            ("name", Arc::new(StringArray::from_iter_values(found.iter().map(|f| f.1))) as ArrayRef, true),
            ("tag", Arc::new(StringArray::from_iter_values(found.iter().map(|f| f.0))) as _, true),
            ("age", Arc::new(Int64Array::from_iter_values(found.iter().map(|f| f.2))) as _, true),
        ])
        .unwrap()
    }
}

#[async_trait]
impl Lookup for People {
    fn describe(&self) -> String {
        "people of a test".to_string()
    }

    async fn rows(&self, keys: &RecordBatch) -> Result<Vec<RecordBatch>> {
        assert_eq!((keys.num_columns(), keys.schema().field(0).name().as_str()), (1, "tag"));
        let keys: Vec<&str> =
            keys.column(0).as_string::<i32>().iter().map(|key| key.expect("no NULL is asked for")).collect();
        self.asked.lock().push(keys.iter().map(ToString::to_string).collect());
        {
            let mut failing = self.failing.lock();
            if *failing > 0 {
                *failing -= 1;
                return Err(Error::external("nobody answers"));
            }
        }
        Ok(vec![Self::rows_of(&self.names.lock(), &keys)])
    }
}

const PEOPLE: &str = "CREATE TABLE people (name TEXT, tag TEXT, age BIGINT) WITH (connector = 'program', key = 'tag'";
const NAMED: &str = "CREATE VIEW v AS SELECT posts.tag, name, n FROM posts LEFT JOIN people ON posts.tag = people.tag";

fn program(
    people: &Arc<People>,
    entries: Vec<Vec<RecordBatch>>,
    with: &str,
    views: &str,
    data: Option<&Path>,
) -> SqlProgram {
    let mut builder = StreamingContext::builder("test").trigger(Trigger::Drain).partitions(2);
    if let Some(data) = data {
        builder = builder.data_dir(data);
    }
    let mut program = SqlProgram::over(builder.build());
    program.context().provide_lookup("people", Arc::clone(people) as _);
    program.queue("posts", entries);
    program.start(&format!("{POSTS}{PEOPLE}{with});\n{views}")).unwrap();
    program
}

fn posts(tags: &[&[&'static str]]) -> Vec<Vec<RecordBatch>> {
    let row = |(n, tag): (i64, &&'static str)| (n, *tag, Some(n));
    tags.iter().map(|tags| vec![rows(&(0..).zip(*tags).map(row).collect::<Vec<_>>())]).collect()
}

fn step(program: &SqlProgram) -> Vec<String> {
    program.step().unwrap();
    sorted(&[program.view("v").unwrap()])
}

#[test]
fn a_batch_asks_once_for_the_keys_that_are_not_known() {
    let people = People::of(&[("a", "Anna", 7), ("c", "Cleo", 9), ("c", "Chris", 8)]);
    let entries = posts(&[&["b", "a", "b", "c"], &["a", "b"], &["d", "a"], &["a", "b", "d"], &["a", "b", "d"]]);
    // Batches are a second apart.
    let program = program(&people, entries, ", cache_ttl = '3s'", NAMED, None);
    assert_eq!(step(&program), ["|a|Anna|1|", "|b||0|", "|b||2|", "|c|Chris|3|", "|c|Cleo|3|"]);
    assert_eq!(people.asked(), ["a b c"]);
    people.set(&[("a", "Annette", 7), ("b", "Bert", 1), ("d", "Dora", 2)]);
    assert_eq!(step(&program), ["|a|Anna|0|", "|b||1|"], "that there is no row is known, too");
    assert_eq!(people.asked(), Vec::<String>::new());
    assert_eq!(step(&program), ["|a|Anna|1|", "|d|Dora|0|"]);
    assert_eq!(people.asked(), ["d"]);
    assert_eq!(step(&program), ["|a|Annette|0|", "|b|Bert|1|", "|d|Dora|2|"], "three seconds have passed");
    assert_eq!(people.asked(), ["a b"]);
    assert_eq!(step(&program).len(), 3);
    assert_eq!(people.asked(), Vec::<String>::new());
}

#[test]
fn answers_are_as_many_as_were_allowed_and_the_oldest_go_first() {
    let people = People::of(&[("a", "Anna", 7)]);
    let entries = posts(&[&["a"], &["b"], &["c"], &["a", "c"], &["a", "b", "c", "d", "e"]]);
    let program = program(&people, entries, ", cache_ttl = '1h', cache_keys = '2'", NAMED, None);
    for _ in 0..4 {
        step(&program);
    }
    assert_eq!(people.asked(), ["a", "b", "c", "a"], "three are one too many when the next batch comes");
    assert_eq!(step(&program).len(), 5, "a batch may have more keys than are kept");
}

#[test]
fn without_a_time_to_live_each_batch_asks() {
    let people = People::of(&[("a", "Anna", 7)]);
    let program = program(&people, posts(&[&["a", "b"], &["a"]]), ", cache_ttl = '0s'", NAMED, None);
    step(&program);
    step(&program);
    assert_eq!(people.asked(), ["a b", "a"]);
}

#[test]
fn a_table_that_does_not_answer_is_named_and_worth_another_try() {
    let people = People::of(&[("a", "Anna", 7)]);
    *people.failing.lock() = 1;
    let program = program(&people, posts(&[&["a"]]), "", NAMED, None);
    let error = program.step().unwrap_err();
    assert!(error.is_retryable(), "{}", error.chain());
    assert!(error.chain().contains("table `people`: nobody answers"), "{}", error.chain());
}

#[test]
fn a_restart_knows_the_answers_and_a_replay_gives_those_of_its_batch() {
    let people = People::of(&[("a", "Anna", 7)]);
    let dir = tempfile::tempdir().unwrap();
    let entries = || posts(&[&["a", "b"], &["a", "b", "c"], &["a", "c"]]);
    let first = program(&people, entries(), "", NAMED, Some(dir.path()));
    assert_eq!(step(&first), ["|a|Anna|0|", "|b||1|"]);
    drop(first);
    people.set(&[("a", "Annette", 7), ("b", "Bert", 1), ("c", "Cleo", 3)]);
    let second = program(&people, entries(), "", NAMED, Some(dir.path()));
    assert_eq!(step(&second), ["|a|Anna|0|", "|b||1|", "|c|Cleo|2|"]);
    assert_eq!(people.asked(), ["a b", "c"]);
    drop(second);
    people.set(&[("c", "Chris", 3)]);
    for (batch, expected) in [(1, &["|a|Anna|0|", "|b||1|"][..]), (2, &["|a|Anna|0|", "|b||1|", "|c|Cleo|2|"])] {
        let context =
            StreamingContext::builder("test").trigger(Trigger::Drain).partitions(3).data_dir(dir.path()).build();
        let sql = SqlProgram::over(context);
        sql.context().provide_lookup("people", Arc::clone(&people) as _);
        sql.queue("posts", entries());
        sql.context().declare_sql(&format!("{POSTS}{PEOPLE});\n{NAMED}")).unwrap();
        let replayed = sql.context().replay_batch(BatchId(batch)).unwrap();
        let (_, shown) = replayed.outputs.iter().find(|(name, _)| name == "v").unwrap();
        assert_eq!(sorted(shown), expected, "batch {batch}");
        assert_eq!(people.asked(), Vec::<String>::new(), "nobody is asked again");
    }
    // Another table: what the first one answered is not known of it.
    let other = format!(
        "{POSTS}CREATE TABLE people (name TEXT, tag TEXT, age INT) WITH (connector = 'program', key = 'tag');\n{NAMED}"
    );
    let context =
        StreamingContext::builder("test").trigger(Trigger::Drain).data_dir(dir.path()).accept_changes().build();
    let mut third = SqlProgram::over(context);
    third.context().provide_lookup("people", Arc::new(Young) as _);
    third.queue("posts", entries());
    third.start(&other).unwrap();
    assert_eq!(step(&third), ["|a|young|0|", "|c|young|1|"]);
}

/// Knows of everybody the same.
#[derive(Debug)]
struct Young;

#[async_trait]
impl Lookup for Young {
    fn describe(&self) -> String {
        "the young".to_string()
    }

    async fn rows(&self, keys: &RecordBatch) -> Result<Vec<RecordBatch>> {
        let count = keys.num_rows();
        let columns: [(&str, ArrayRef, bool); 3] = [
            ("name", Arc::new(StringArray::from(vec!["young"; count])), true),
            ("tag", Arc::clone(keys.column(0)), true),
            ("age", Arc::new(arrow_array::Int32Array::from(vec![1; count])), true),
        ];
        Ok(vec![RecordBatch::try_from_iter_with_nullable(columns).unwrap()])
    }
}

/// Queries whose answer is that of one query over all rows and the whole table; whether they give a whole result.
const QUERIES: [(&str, &str, bool); 9] = [
    ("", "SELECT posts.tag, name, n FROM posts JOIN people ON posts.tag = people.tag AND n < age", false),
    ("", "SELECT posts.t, people.* FROM people RIGHT JOIN posts ON posts.tag = people.tag AND people.name <> 'Cleo'", false),
    ("", "SELECT p.tag, n, u.name FROM posts p, people u WHERE u.tag = p.tag AND u.age > 7 AND p.n IS NOT NULL", false),
    ("", "SELECT tag, n FROM posts WHERE tag IN (SELECT tag FROM people WHERE age > 7)", false),
    ("", "SELECT tag, n FROM posts WHERE NOT EXISTS (SELECT 1 FROM people WHERE people.tag = posts.tag AND age > n)", false),
    ("", "SELECT p.tag, p.n, o.oldest FROM posts p LEFT JOIN (SELECT tag, max(age) AS oldest FROM people GROUP BY tag) o ON o.tag = p.tag", false),
    ("", "SELECT name, count(*) AS c, sum(n) AS s FROM posts JOIN people ON posts.tag = people.tag GROUP BY name", true),
    (
        "CREATE VIEW counts AS SELECT tag, count(*) AS c FROM posts GROUP BY tag;",
        "SELECT counts.tag, c, name FROM counts LEFT JOIN people ON counts.tag = people.tag",
        true,
    ),
    (
        "",
        "SELECT a.tag, a.name, b.name AS also, n FROM (SELECT posts.tag, name, n FROM posts LEFT JOIN people ON posts.tag = people.tag) a
         LEFT JOIN people b ON b.tag = a.tag",
        false,
    ),
];

const ALL: [(&str, &str, i64); 4] = [("a", "Anna", 2), ("c", "Cleo", 9), ("c", "Chris", 8), ("z", "Zoe", 9)];

fn oracle(all: &[Vec<RecordBatch>], query: &str) -> Vec<String> {
    let rows = session::with_room(|| async {
        let session = session::session(session::config(2), None);
        let all: Vec<RecordBatch> = all.iter().flatten().cloned().collect();
        session.register_table("posts", Arc::new(MemTable::try_new(all[0].schema(), vec![all]).unwrap())).unwrap();
        let names = People::of(&ALL);
        let people = People::rows_of(&names.names.lock(), &["a", "c", "z"]);
        session
            .register_table("people", Arc::new(MemTable::try_new(people.schema(), vec![vec![people]]).unwrap()))
            .unwrap();
        // Whole results are views in the program, and here.
        session.sql("CREATE VIEW counts AS SELECT tag, count(*) AS c FROM posts GROUP BY tag").await.unwrap();
        Ok(session.sql(query).await.unwrap().collect().await.unwrap())
    });
    sorted(&rows.unwrap())
}

fn streamed(entries: &[Vec<Vec<Row>>], (views, query, whole): (&str, &str, bool), ttl: u64, cut: usize) -> Vec<String> {
    let dir = tempfile::tempdir().unwrap();
    let people = People::of(&ALL);
    let with = format!(", cache_ttl = '{ttl}s', cache_keys = '2'");
    let start =
        || program(&people, batches(entries), &with, &format!("{views} CREATE VIEW v AS {query}"), Some(dir.path()));
    let mut running = start();
    let mut out: Vec<String> = Vec::new();
    for batch in 0..entries.len() {
        if batch == cut {
            drop(running);
            running = start();
        }
        running.step().unwrap();
        match running.context().board().view("v") {
            Some(view) if whole => out = sorted(std::slice::from_ref(&view.rows)),
            Some(view) if view.batch.0 == batch as u64 + 1 => out.extend(sorted(std::slice::from_ref(&view.rows))),
            _ => {}
        }
    }
    out.sort();
    out
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(5))]

    #[test]
    fn joins_give_what_the_whole_table_would(entries in entries(), ttl in 0..4_u64, cut in 0..7_usize) {
        for query in QUERIES {
            let expected = oracle(&batches(&entries), query.1);
            prop_assert_eq!(streamed(&entries, query, ttl, cut), expected, "{}", query.1);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(8))]

    #[test]
    fn windows_over_a_joined_view_close_with_the_stream(entries in entries(), partitions in 1..4_usize) {
        let window = |of: &str, columns: &str| {
            format!("SELECT window_start, tag, {columns} FROM TUMBLE({of}, t, INTERVAL '5' SECOND) GROUP BY window_start, window_end, tag")
        };
        let mut program = SqlProgram::new(partitions);
        program.context().provide_lookup("people", People::of(&[("a", "Anna", 2), ("c", "Cleo", 9)]) as _);
        program.queue("posts", batches(&entries));
        program.start(&format!(
            "{POSTS}{PEOPLE});
             CREATE VIEW named AS SELECT posts.*, name FROM posts LEFT JOIN people ON posts.tag = people.tag;
             CREATE VIEW bare AS {};
             CREATE VIEW v AS {}",
            window("posts", "count(*) AS c, CASE tag WHEN 'a' THEN 'Anna' WHEN 'c' THEN 'Cleo' END AS name"),
            window("named", "count(*) AS c, max(name) AS name"),
        )).unwrap();
        for batch in 0..entries.len() {
            program.step().unwrap();
            let shown = |view: &str| program.view(view).map(|rows| sorted(&[rows]));
            prop_assert_eq!(shown("v"), shown("bare"), "batch {}", batch + 1);
        }
    }
}

#[test]
fn crashes_at_any_step_change_nothing() {
    let trial = Trial::new(|trial| {
        let people = People::of(&[("a", "Anna", 7), ("c", "Cleo", 9)]);
        trial.context().provide_lookup("people", people as _);
        let posts = |of: &[(&str, i64)]| of.iter().map(|(tag, n)| (tag.to_string(), *n)).collect::<Vec<_>>();
        let stream =
            trial.input([posts(&[("a", 1), ("b", 2)]), posts(&[("c", 3), ("a", 4)]), vec![], posts(&[("b", 5)])])?;
        stream.to_table("posts", &["tag", "n"]);
        trial.context().declare_sql(&format!(
            "{PEOPLE}, cache_ttl = '2s');
             CREATE VIEW v AS SELECT posts.tag, name, n FROM posts LEFT JOIN people ON posts.tag = people.tag;
             CREATE VIEW ages AS SELECT name, sum(n) AS s FROM v GROUP BY name"
        ))
    });
    let row = |tag: &str, name: Option<&str>, n: i64| (tag.to_string(), name.map(ToString::to_string), Some(n));
    trial.check(
        "v",
        [
            vec![row("a", Some("Anna"), 1), row("b", None, 2)],
            vec![row("c", Some("Cleo"), 3), row("a", Some("Anna"), 4)],
            vec![],
            vec![row("b", None, 5)],
        ],
    );
    trial.crash_at_every_step();
    trial.restart_at_every_batch(&[1, 2, 3]);
}

#[test]
fn what_can_not_be_asked_is_refused_with_the_way_out() {
    let error_of = |with: &str, view: &str| {
        let mut sql = SqlProgram::new(2);
        sql.context().provide_lookup("people", People::of(&[]) as _);
        sql.queue("posts", posts(&[&["a"]]));
        sql.start(&format!("{POSTS}{PEOPLE}{with});\n{view}")).expect_err("an error").to_string()
    };
    for (view, expected) in [
        (
            "CREATE VIEW v AS SELECT * FROM people",
            "table `people` is asked by its key (tag) and never read as a whole: join",
        ),
        (
            "CREATE VIEW v AS SELECT name FROM posts JOIN people ON posts.n = people.age",
            "is asked by its key (tag), and the join does not say which: compare each of these columns",
        ),
        (
            "CREATE VIEW v AS SELECT tag FROM posts WHERE tag NOT IN (SELECT tag FROM people)",
            "write NOT EXISTS (SELECT 1 FROM people WHERE …)",
        ),
        ("CREATE VIEW v AS SELECT name FROM people LEFT JOIN posts ON posts.tag = people.tag", "put the stream on the"),
        (
            "CREATE VIEW v AS SELECT window_start, name, count(*) AS c FROM TUMBLE(posts, t, INTERVAL '5' SECOND) w
             JOIN people ON w.tag = people.tag GROUP BY window_start, name",
            "join first, CREATE VIEW joined AS SELECT … JOIN people …, and window that view",
        ),
    ] {
        let error = error_of("", view);
        assert!(error.contains(expected), "{view}:\n{error}");
    }
    for (with, expected) in [
        (", cache_tll = '3s'", "unknown option `cache_tll`; did you mean `cache_ttl`?"),
        (", cache_keys = 'many'", "option `cache_keys` must be a whole number"),
    ] {
        let error = error_of(with, NAMED);
        assert!(error.contains(expected), "{with}:\n{error}");
    }
    let mut sql = SqlProgram::new(2);
    for (table, expected) in [
        ("CREATE TABLE people WITH (connector = 'program', key = 'tag')", "needs its columns"),
        ("CREATE TABLE people (tag TEXT) WITH (connector = 'program')", "option `key` is missing"),
        (
            "CREATE TABLE people (tag TEXT) WITH (connector = 'program', key = 'tga')",
            "there is no column `tga`; there are tag",
        ),
        ("CREATE TABLE people (tag TEXT) WITH (connector = 'program', key = 'tag')", "call provide_lookup before"),
    ] {
        let error = sql.start(table).expect_err("an error").to_string();
        assert!(error.contains(expected), "{table}:\n{error}");
        sql = SqlProgram::new(2);
    }
}
