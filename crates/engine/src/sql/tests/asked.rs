//! Questions through the page: now and at a batch, with parameters, stopped, and nothing but SELECT.

use super::{program, rows, sorted};
use crate::{
    StreamingContext, Trigger,
    ingest::tests,
    sql::{functions, session},
    testing::SqlProgram,
};
use arrow_array::RecordBatch;
use std::{collections::BTreeMap, path::Path, sync::Arc};
use tidemill_core::{Answer, Answers, BatchId, Clock, ManualClock, Parameter, Progress, Question, Result, Timestamp};

fn ask(program: &SqlProgram, question: Question) -> Result<Answer> {
    futures::executor::block_on(program.context().answer(question, Arc::default()))
}

fn of(sql: &str) -> Question {
    Question { sql: sql.to_string(), rows: 1000, ..Question::default() }
}

fn small() -> SqlProgram {
    let first = rows(&[(1, "a", Some(1)), (2, "b", Some(2)), (3, "it's", Some(-3))]);
    let program = program(1, vec![vec![first]], "CREATE VIEW v AS SELECT tag, n FROM posts");
    program.step().unwrap();
    program
}

/// What a program over words keeps, of which the word `refuse` is refused.
fn words(dir: &Path, batches: &[&str]) -> (SqlProgram, Vec<RecordBatch>) {
    let clock: Arc<dyn Clock> = Arc::new(ManualClock::at(Timestamp(1_000_000_000)));
    let builder = StreamingContext::builder("p").trigger(Trigger::Drain).partitions(2).data_dir(dir).clock(clock);
    let mut program = SqlProgram::over(builder.registry(tests::registry()).build());
    let views = "CREATE STREAM lines WITH (connector = 'idle');
                 CREATE VIEW top AS SELECT value, count(*) AS n FROM lines GROUP BY value;";
    program.start(views).unwrap();
    let mut shown = Vec::new();
    for batch in batches {
        feed(&program, batch);
        program.step().unwrap();
        shown.push(program.view("top").unwrap());
    }
    (program, shown)
}

fn feed(program: &SqlProgram, words: &str) {
    let topic = program.pipeline().keep.as_ref().unwrap().log().topic("lines").unwrap();
    topic.append(0, &tests::lines(words.split(' ')), None).unwrap();
}

#[test]
fn a_parameter_is_one_value_whatever_is_in_it() {
    let program = small();
    let with = |sql: &str, value: Parameter| {
        let parameters = BTreeMap::from([("x".to_string(), value)]);
        ask(&program, Question { parameters, ..of(sql) }).map(|answer| sorted(&answer.rows))
    };
    let text = |text: &str| Parameter::Text(text.to_string());
    assert_eq!(with("SELECT n FROM v WHERE tag = {{x}}", text("it's")).unwrap(), ["|-3|"]);
    // What would end a text or a statement is text.
    for hostile in ["' OR '1'='1", "a'; DROP TABLE v; --", "a' UNION SELECT 1 --", "\\' OR 1=1 /*", "{{x}}"] {
        assert!(with("SELECT n FROM v WHERE tag = {{x}}", text(hostile)).unwrap().is_empty(), "{hostile}");
        assert_eq!(with("SELECT {{x}} AS y", text(hostile)).unwrap(), [format!("|{hostile}|")]);
    }
    assert_eq!(with("SELECT n FROM v WHERE n < {{x}}", Parameter::Whole(-1)).unwrap(), ["|-3|"]);
    assert_eq!(with("SELECT 10 - {{x}} AS y", Parameter::Whole(-3)).unwrap(), ["|13|"]);
    assert_eq!(with("SELECT {{ x }} * 2 AS y", Parameter::Number(1.25)).unwrap(), ["|2.5|"]);
    assert_eq!(with("SELECT tag FROM v ORDER BY n DESC LIMIT {{x}}", Parameter::Whole(1)).unwrap(), ["|b|"]);
    assert_eq!(with("SELECT {{x}} IS NULL AS y", Parameter::Null).unwrap(), ["|true|"]);
    assert_eq!(with("SELECT NOT {{x}} AS y", Parameter::Truth(true)).unwrap(), ["|false|"]);
    // Within a text and a comment it is text.
    assert_eq!(with("SELECT '{{x}}' AS y -- {{x}}", text("b")).unwrap(), ["|{{x}}|"]);
    // As a name it is the name of a table, and no way to a file.
    assert!(with("SELECT * FROM {{x}}", text("/etc/passwd")).is_err());
    let error = ask(&program, of("SELECT n FROM v\nWHERE tag = {{who}}")).unwrap_err().to_string();
    assert_eq!(error, "line 2, column 13: the parameter `who` has no value");
}

#[test]
fn nothing_but_a_select_over_what_is_registered_is_answered() {
    let dir = tempfile::tempdir().unwrap();
    let secret = dir.path().join("secret.csv");
    std::fs::write(&secret, "a\n1\n").unwrap();
    let path = secret.display();
    let program = small();
    let out = dir.path().join("out");
    for sql in [
        format!("COPY v TO '{}'", out.display()),
        format!("COPY (SELECT * FROM v) TO '{}' STORED AS CSV", out.display()),
        format!("CREATE EXTERNAL TABLE s STORED AS csv LOCATION '{path}'"),
        format!("CREATE TABLE s WITH (connector = 'csv', path = '{path}')"),
        "CREATE VIEW w AS SELECT * FROM v".to_string(),
        "CREATE STREAM s WITH (connector = 'stdin')".to_string(),
        "INSERT INTO v SELECT * FROM v".to_string(),
        "UPDATE v SET n = 1".to_string(),
        "DELETE FROM v".to_string(),
        "DROP VIEW v".to_string(),
        "TRUNCATE v".to_string(),
        "ALTER TABLE v RENAME TO w".to_string(),
        "SET datafusion.execution.batch_size = 1".to_string(),
        "RESET datafusion.execution.batch_size".to_string(),
        "SHOW ALL".to_string(),
        "SHOW TABLES".to_string(),
        "EXPLAIN ANALYZE SELECT * FROM v".to_string(),
        "DESCRIBE v".to_string(),
        "PREPARE p AS SELECT 1".to_string(),
        "EXECUTE p".to_string(),
        "BEGIN".to_string(),
        "LOAD 'x.so'".to_string(),
        "ATTACH 'x' AS y".to_string(),
        "CALL f()".to_string(),
        "SELECT 1; SELECT 2".to_string(),
        "SELECT 1; DROP VIEW v".to_string(),
        "SELECT 1 INTO w".to_string(),
        "SELECT * INTO w FROM v".to_string(),
        "WITH w AS (INSERT INTO v SELECT * FROM v) SELECT * FROM w".to_string(),
        format!("SELECT * FROM '{path}'"),
        format!("SELECT * FROM \"{path}\""),
        format!("SELECT * FROM 'file://{path}'"),
        "SELECT * FROM '/etc/passwd'".to_string(),
        "SELECT * FROM \"/etc/passwd\"".to_string(),
        "SELECT * FROM 'http://127.0.0.1:9/x.parquet'".to_string(),
        "SELECT * FROM 's3://bucket/x.parquet'".to_string(),
        format!("SELECT * FROM read_csv('{path}')"),
        format!("SELECT * FROM read_parquet('{path}')"),
        format!("SELECT * FROM parquet_metadata('{path}')"),
        format!("SELECT (SELECT count(*) FROM '{path}')"),
        format!("SELECT * FROM v WHERE EXISTS (SELECT 1 FROM read_csv('{path}'))"),
        "SELECT * FROM generate_series(1, 3)".to_string(),
        "SELECT * FROM range(1, 3)".to_string(),
        "SELECT * FROM information_schema.tables".to_string(),
        "SELECT * FROM other.public.v".to_string(),
        "SELECT read_file('/etc/passwd')".to_string(),
        "SELECT pg_read_file('/etc/passwd')".to_string(),
        "SELECT * FROM v TABLESAMPLE (10 PERCENT)".to_string(),
        "SELECT * FROM v FOR UPDATE".to_string(),
        String::new(),
        ";".to_string(),
        "-- nothing".to_string(),
    ] {
        let error = ask(&program, of(&sql)).map(|answer| sorted(&answer.rows)).expect_err(&sql).to_string();
        assert!(!error.is_empty() && !error.contains("os error"), "{sql}: {error}");
    }
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "nothing was written");
    assert_eq!(sorted(&ask(&program, of("SELECT n FROM v WHERE tag = 'a'")).unwrap().rows), ["|1|"]);
}

#[test]
fn the_functions_that_a_question_has_were_all_looked_at() {
    let whole = session::session(session::config(1), None);
    let kept = session::session(session::config(1), None);
    functions::keep_allowed(&kept);
    let (whole_names, kept_names) = (functions::names(&whole), functions::names(&kept));
    let strange: Vec<&String> = whole_names.iter().filter(|name| !kept_names.contains(name)).collect();
    let unseen: Vec<_> = strange.iter().filter(|name| !functions::LEFT_OUT.contains(&name.as_str())).collect();
    assert!(unseen.is_empty(), "look at what these do, and list them: {unseen:?}");
    assert!(kept.state().table_functions().is_empty() && !whole.state().table_functions().is_empty());
    assert!(kept_names.len() > 200, "{}", kept_names.len());
}

#[test]
fn rows_are_as_many_as_were_asked_for_and_more_is_told() {
    let program = small();
    let some = |rows: usize| ask(&program, Question { rows, ..of("SELECT n FROM v ORDER BY n") }).unwrap();
    let count = |answer: &Answer| answer.rows.iter().map(RecordBatch::num_rows).sum::<usize>();
    for (rows, shown, more) in [(1, 1, true), (2, 2, true), (3, 3, false), (4, 3, false)] {
        let answer = some(rows);
        assert_eq!((count(&answer), answer.more), (shown, more), "{rows}");
    }
    let none = ask(&program, of("SELECT n, tag FROM v WHERE n > 99")).unwrap();
    assert_eq!((count(&none), none.schema.fields().len(), none.more), (0, 2, false));
}

/// Starts a question on a thread, stops it once it has begun, and gives what came of it.
fn stopped(sql: &str) -> String {
    let program = small();
    let (context, progress) = (program.context(), Arc::<Progress>::default());
    let end = std::thread::scope(|scope| {
        let asked = scope.spawn(|| futures::executor::block_on(context.answer(of(sql), Arc::clone(&progress))));
        // The second side of a join is read when the first is there as a whole.
        while progress.read() < 6 && !asked.is_finished() {
            std::thread::yield_now();
        }
        progress.stop();
        asked.join().unwrap()
    });
    end.map(|answer| sorted(&answer.rows).concat()).unwrap_err().to_string()
}

#[test]
fn whatever_a_query_computes_it_can_be_stopped() {
    // Each would take hours. No pair fits in the first three, so that their joins give nothing to anybody meanwhile.
    let many = "(SELECT unnest(range(1, 300000)) AS n FROM v)";
    for sql in [
        format!("SELECT count(*) FROM {many} a CROSS JOIN {many} b WHERE a.n + b.n < 0"),
        format!("SELECT count(*) FROM {many} a LEFT JOIN {many} b ON a.n * b.n = -1"),
        format!("SELECT count(*) FROM {many} a JOIN {many} b ON a.n % 1 = b.n % 1 AND a.n + b.n < 0"),
        format!("SELECT count(*) FROM {many} a CROSS JOIN {many} b"),
        "WITH RECURSIVE t AS (SELECT n FROM v UNION ALL SELECT n + 1 FROM t) SELECT max(n) FROM t".to_string(),
    ] {
        let error = stopped(&sql);
        assert!(error.ends_with("the query was stopped"), "{sql}: {error}");
    }
}

#[test]
fn gates_change_no_answer() {
    let program = small();
    for (sql, expected) in [
        ("SELECT a.tag FROM v a JOIN v b ON a.n < b.n ORDER BY 1", vec!["|a|", "|it's|", "|it's|"]),
        (
            "SELECT a.tag, b.tag AS c FROM v a LEFT JOIN v b ON a.n = -b.n AND a.n > b.n",
            vec!["|a||", "|b||", "|it's||"],
        ),
        ("SELECT tag FROM v WHERE n = (SELECT max(n) FROM v)", vec!["|b|"]),
        ("SELECT tag FROM v a WHERE EXISTS (SELECT 1 FROM v b WHERE b.n > a.n AND b.n < 2)", vec!["|it's|"]),
        (
            "WITH RECURSIVE t AS (SELECT 1 AS k UNION ALL SELECT k + 1 FROM t WHERE k < 4) SELECT sum(k) AS s FROM t",
            vec!["|10|"],
        ),
        ("SELECT tag, row_number() OVER (ORDER BY n) AS k FROM v", vec!["|a|2|", "|b|3|", "|it's|1|"]),
    ] {
        assert_eq!(sorted(&ask(&program, of(sql)).unwrap().rows), expected, "{sql}");
    }
}

#[test]
fn a_batch_of_the_past_is_asked_as_one() {
    let dir = tempfile::tempdir().unwrap();
    let (program, shown) = words(dir.path(), &["a a refuse", "b", "refuse a c"]);
    // Received and not read by any batch yet.
    feed(&program, "z z");
    let at = |batch: u64, sql: &str| {
        let views = usize::try_from(batch).ok().and_then(|at| shown.get(at - 1)).cloned();
        let views = views.map(|rows| ("top".to_string(), rows)).into_iter().collect();
        ask(&program, Question { at: Some(BatchId(batch)), views, ..of(sql) }).map(|answer| sorted(&answer.rows))
    };
    let now = |sql: &str| sorted(&ask(&program, of(sql)).unwrap().rows);
    let state = "SELECT value, \"count(*)\" AS n FROM state.top";
    let topic = "SELECT count(*) AS n FROM lines";
    let letters = "SELECT batch FROM dead";
    assert_eq!(now(state), ["|a|3|", "|b|1|", "|c|1|"]);
    assert_eq!((now(topic), now(letters)), (vec!["|9|".to_string()], vec!["|1|".to_string(), "|3|".to_string()]));
    assert_eq!(at(1, state).unwrap(), ["|a|2|"]);
    assert_eq!(at(2, state).unwrap(), ["|a|2|", "|b|1|"]);
    assert_eq!(at(2, topic).unwrap(), ["|4|"]);
    assert_eq!(at(3, topic).unwrap(), ["|7|"], "what no batch has read is not of the past");
    assert_eq!(at(2, letters).unwrap(), ["|1|"]);
    assert_eq!(at(2, "SELECT batch FROM \"p.dead\"").unwrap(), ["|1|"]);
    assert_eq!(at(2, "SELECT value, n FROM top").unwrap(), ["|a|2|", "|b|1|"]);
    // Another batch can be named beside it.
    assert_eq!(at(2, "SELECT count(*) AS n FROM state.\"top@3\"").unwrap(), ["|3|"]);
    assert_eq!(at(9, state).unwrap_err().to_string(), "batch 9 is not kept: kept are batches 1 to 3");
    let forgotten = ask(&program, Question { at: Some(BatchId(2)), ..of("SELECT * FROM top") }).unwrap_err();
    assert_eq!(forgotten.to_string(), "line 1, column 15: what `top` showed after batch 2 is no longer remembered");
    let memory = ask(&small(), Question { at: Some(BatchId(1)), ..of("SELECT * FROM v") }).unwrap_err();
    assert!(memory.to_string().contains("nothing of the past is kept here"), "{memory}");
}

#[test]
fn what_can_be_named_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let (program, _) = words(dir.path(), &["a refuse"]);
    let names = program.context().names().unwrap();
    let kinds: Vec<_> = names.tables.iter().map(|table| (table.name.as_str(), table.kind)).collect();
    for wanted in [
        ("dead", "letters"),
        ("lines", "topic"),
        ("\"p.dead\"", "letters"),
        ("state.\"top\"", "state"),
        ("\"top\"", "view"),
    ] {
        assert!(kinds.contains(&wanted), "{wanted:?} in {kinds:?}");
    }
    for table in &names.tables {
        let sql = format!("SELECT * FROM {}", table.name);
        ask(&program, of(&sql)).unwrap_or_else(|e| panic!("{sql}: {e}"));
        for column in &table.columns {
            let sql = format!("SELECT {column} FROM {}", table.name);
            ask(&program, of(&sql)).unwrap_or_else(|e| panic!("{sql}: {e}"));
        }
    }
    assert!(names.functions.iter().any(|name| name == "hashtags"));
}
