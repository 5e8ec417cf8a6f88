//! What wrong programs are told.

use super::*;

fn error_of(program: &str) -> String {
    let mut sql = SqlProgram::new(2);
    sql.queue("posts", vec![vec![rows(&[(1, "a", None)])]]);
    sql.start(&format!("{POSTS}{program}")).expect_err("an error").to_string()
}

#[test]
fn declared_columns_must_be_those_of_the_source() {
    for (columns, expected) in [
        ("(tagg TEXT)", "column `tagg` is declared and the source has no such column; it has t, tag, n, x"),
        ("(n TEXT)", "column `n` is declared as Utf8 and the source gives Int64"),
        ("(WATERMARK FOR tag AS tag)", "WATERMARK FOR `tag`: the column is TEXT, and event time is a TIMESTAMP"),
    ] {
        let mut sql = SqlProgram::new(1);
        sql.queue("posts", vec![vec![rows(&[(1, "a", None)])]]);
        let error = sql.start(&format!("CREATE STREAM posts {columns} WITH (connector = 'program')")).unwrap_err();
        assert!(error.to_string().contains(expected), "{error}");
    }
}

#[test]
fn errors_name_the_place_and_the_way_out() {
    for (program, expected) in [
        (
            "CREATE STREEM x",
            "line 2, column 8: expected STREAM, TABLE, VIEW, SINK, ALERT after CREATE, found `STREEM`; did you mean STREAM?",
        ),
        (
            "SELEC 1",
            "line 2, column 1: expected CREATE, INSERT, SELECT, WITH at the beginning of a statement, found `SELEC`; did you mean SELECT?",
        ),
        ("CREATE VIEW v AS SELECT FROM", "line 2, column"),
        ("CREATE VIEW v AS SELECT 1 AS a 2", "expected the end of the statement, found `2`"),
        ("CREATE VIEW v AS SELECT * FROM post", "there is no stream, table or view `post`; did you mean `posts`?"),
        ("CREATE VIEW posts AS SELECT 1 AS a", "there is a stream of that name"),
        (
            "CREATE VIEW v AS\n SELECT tagg FROM posts",
            "line 3, column 9: CREATE VIEW v: there is no column `tagg`; did you mean `tag`?",
        ),
        (
            "CREATE VIEW v AS SELECT window_end FROM posts",
            "line 2, column 25: CREATE VIEW v: there is no column `window_end`; it comes from TUMBLE, HOP, SESSION or COUNT_WINDOW in FROM",
        ),
        (
            "CREATE VIEW v AS SELECT coutn(*) AS n FROM posts",
            "line 2, column 25: CREATE VIEW v: there is no function `coutn`; did you mean `count`?",
        ),
        (
            "CREATE VIEW v AS SELECT tag, count(*) AS n FROM posts",
            "line 2, column 25: CREATE VIEW v: column `tag` stands beside an aggregate in SELECT: add it to GROUP BY",
        ),
        (
            "CREATE VIEW v AS SELECT count(*) AS c FROM posts GROUP BY tag HAVING n > 1",
            "line 2, column 70: CREATE VIEW v: column `n` stands beside an aggregate in HAVING",
        ),
        (
            "CREATE VIEW v AS SELECT sum(tag) AS n FROM posts",
            "line 2, column 25: CREATE VIEW v: function `sum` can't take TEXT: convert it, as in CAST(x AS BIGINT)",
        ),
        ("CREATE VIEW v AS SELECT upper(tag, tag) AS n FROM posts", "function `upper` takes 1 argument, not 2"),
        ("CREATE VIEW v AS SELECT upper() AS n FROM posts", "function `upper` takes 1 argument, not none"),
        ("CREATE VIEW v AS SELECT date_trunc(t) AS n FROM posts", "function `date_trunc` takes 2 arguments, not 1"),
        ("CREATE VIEW v AS SELECT round(x, 1, 2) AS n FROM posts", "function `round` takes 1 or 2 arguments, not 3"),
        ("CREATE VIEW v AS SELECT sum(n, n) AS n FROM posts", "function `sum` takes 1 argument, not 2"),
        (
            "CREATE VIEW v AS SELECT n FROM posts WHERE tag = \"ebb\"",
            "line 2, column 50: CREATE VIEW v: there is no column `ebb`; there are t, tag, n, x; a text stands in single quotes: 'ebb'",
        ),
        ("CREATE VIEW v AS SELECT n FROM posts WHERE tag", "line 2, column 44: CREATE VIEW v: `tag` is no condition"),
        ("CREATE VIEW v AS SELECT CAST(n AS MONEY) AS n FROM posts", "there is no type `MONEY` here; use TEXT"),
        ("CREATE VIEW v AS SELECT substr(tag) AS n FROM posts", "`substr` needs a start"),
        ("CREATE VIEW v AS SELECT n AS a, n AS a FROM posts", "another name with AS"),
        ("CREATE VIEW v AS SELECT tag + 1 AS n FROM posts", "there is no TEXT + BIGINT: convert one side"),
        (
            "CREATE VIEW v AS SELECT n FROM posts WHERE t > '2026-13-01'",
            "line 2, column 48: CREATE VIEW v: `2026-13-01` is no time: write it as '2026-05-25 14:00:00'",
        ),
        ("CREATE VIEW v AS SELECT tag FROM posts WHERE", "in this statement: expected an expression, found its end"),
        ("SELECT 1", "a query alone shows nothing in a program"),
        ("INSERT INTO nowhere SELECT 1 AS a", "there is no sink `nowhere`"),
        ("INSERT INTO posts SELECT 1 AS a", "`posts` is a stream, and rows go into sinks only"),
        ("CREATE STREAM s (a TEXT, WATERMARK FOR b AS b) WITH (connector = 'x')", "there is no such column"),
        ("CREATE STREAM s (a MONEY) WITH (connector = 'x')", "there is no type MONEY here"),
        ("CREATE STREAM s WITH (connector = 'x', connector = 'y')", "option `connector` is there twice"),
        ("CREATE STREAM s (a TEXT)", "expected WITH"),
        ("CREATE STREAM s WITH (connector = 'program')", "gave no source of that name"),
        (
            "CREATE TABLE t WITH (connector = 'csv', path = '/nowhere/x.csv')",
            "there is no file or directory `/nowhere/x.csv`",
        ),
        ("CREATE TABLE t WITH (connector = 'cvs', path = '/')", "did you mean `csv`?"),
        ("CREATE TABLE t WITH (connector = 'csv', path = 's3://x/y')", "not a local path"),
        (
            "CREATE VIEW v AS SELECT count(*) AS n FROM TUMBLE(posts, t, INTERVAL '10' SECOND)",
            "must be grouped by the window: add window_start",
        ),
        ("CREATE VIEW v AS SELECT tag FROM TUMBLE(posts, t, INTERVAL '10' SECOND)", "needs an aggregate"),
        (
            "CREATE VIEW v AS SELECT count(*) AS n FROM TUMBLE(posts, tag, INTERVAL '10' SECOND) GROUP BY window_start",
            "a window needs a TIMESTAMP column, and `tag` is Utf8",
        ),
        (
            "CREATE VIEW v AS SELECT count(*) AS n FROM HOP(posts, t, INTERVAL '60' SECOND, INTERVAL '10' SECOND) GROUP BY window_start",
            "a window's slide (60s) must not exceed its size (10s): records between two windows would be lost; it reads: HOP(",
        ),
        (
            "CREATE VIEW v AS SELECT count(*) AS n FROM TUMBLE(posts, t, INTERVAL '1' MONTH) GROUP BY window_start",
            "no fixed length",
        ),
        ("CREATE VIEW v AS SELECT count(*) AS n FROM TUMBLE(posts, t) GROUP BY window_start", "TUMBLE reads: TUMBLE("),
        (
            "CREATE VIEW v AS SELECT count(*) AS n FROM TUMBLE(posts, t, INTERVAL '10' SECOND) WHERE window_start > t GROUP BY window_start",
            "known only when the window closes",
        ),
        (
            "CREATE VIEW v AS SELECT a.tag FROM posts a JOIN posts b ON a.n > b.n",
            "a join of two streams without a column that must be equal",
        ),
        (
            "CREATE VIEW v AS SELECT a.tag FROM posts a LEFT JOIN posts b ON a.tag = b.tag",
            "ON does not say when: add a bound such as `right.time BETWEEN left.time",
        ),
        (
            "CREATE VIEW v AS SELECT tag FROM posts a WHERE EXISTS (SELECT 1 FROM posts b WHERE a.tag = b.tag)",
            "a subquery over a stream",
        ),
        ("CREATE VIEW v AS SELECT tag FROM posts INTERSECT SELECT upper(tag) FROM posts", "INTERSECT"),
        (
            "CREATE VIEW v AS SELECT k, tag FROM (VALUES ('a')) AS keys (k) LEFT JOIN posts ON k = tag",
            "keeps the rows of its left side",
        ),
        (
            "CREATE VIEW counts AS SELECT tag, count(*) AS c FROM posts GROUP BY tag;
             CREATE VIEW v AS SELECT counts.tag FROM counts LEFT JOIN posts ON counts.tag = posts.tag",
            "keeps the rows of its left side",
        ),
        (
            "CREATE VIEW v AS SELECT DISTINCT ON (tag) tag, n FROM posts ORDER BY tag, n",
            "row_number() OVER (PARTITION BY key",
        ),
        (
            "CREATE VIEW v AS SELECT row_number() OVER (ORDER BY t) AS n FROM posts",
            "window functions (OVER) over a stream",
        ),
        ("CREATE VIEW v AS SELECT tag FROM posts WHERE n = (SELECT max(n) FROM posts)", "a subquery over a stream"),
        ("CREATE VIEW v AS SELECT count(*) AS n FROM (SELECT * FROM posts LIMIT 3)", "a LIMIT below an aggregate"),
        ("CREATE VIEW v AS SELECT tag, count(*) AS n FROM posts GROUP BY ROLLUP(tag)", "ROLLUP"),
        (
            "CREATE VIEW v AS SELECT count(*) AS n FROM posts UNION ALL SELECT n FROM posts",
            "would come again in each batch",
        ),
        (
            "CREATE VIEW v AS SELECT tag FROM posts\n WHERE t > now() - INTERVAL '1' HOUR",
            "line 3, column 12: CREATE VIEW v: `now` would be the time of the program's start for ever: take the row's own time",
        ),
        (
            "CREATE VIEW v AS SELECT Current_Timestamp AS at FROM posts",
            "column 25: CREATE VIEW v: `Current_Timestamp` would be",
        ),
        ("CREATE VIEW v AS SELECT current_date AS at FROM posts", "`current_date` would be the time of"),
        ("CREATE VIEW v AS SELECT current_time AS at FROM posts", "`current_time` would be the time of"),
        ("CREATE VIEW v AS SELECT today() AS at FROM posts", "`today` would be the time of"),
        (
            "CREATE VIEW v AS SELECT tag FROM posts WHERE tag IN (SELECT CASE WHEN now() > '2020-01-01' THEN 'a' END)",
            "`now` would be the time of",
        ),
        (
            "CREATE VIEW v AS WITH w AS (SELECT date_part('year', NOW()) AS y FROM posts) SELECT max(y) AS y FROM w",
            "`NOW` would be the time of",
        ),
        (
            "CREATE VIEW v AS SELECT random() AS r FROM posts",
            "line 2, column 25: CREATE VIEW v: `random` gives another value each time, and a batch that runs again",
        ),
        ("CREATE VIEW v AS SELECT count(*) AS n FROM posts GROUP BY uuid()", "`uuid` gives another value each time"),
        ("CREATE VIEW v AS SELECT tag FROM posts ORDER BY rand() LIMIT 1", "`rand` gives another value each time"),
        (
            "CREATE VIEW v AS SELECT tag FROM posts TABLESAMPLE BERNOULLI (10)",
            "line 2, column 40: CREATE VIEW v: `TABLESAMPLE` is not done here: take rows by what they are",
        ),
        (
            "CREATE VIEW v AS SELECT tag FROM posts FOR UPDATE",
            "line 2, column 44: CREATE VIEW v: FOR `UPDATE` locks rows",
        ),
        ("CREATE VIEW v AS SELECT tag FROM (SELECT tag FROM posts FOR SHARE) AS p", "FOR `SHARE` locks rows"),
        ("CREATE VIEW v AS SELECT tag, upper(tag) AS tag FROM posts", "another name with AS"),
        ("CREATE VIEW \"a b\" AS SELECT tag FROM posts", "can't name a view"),
    ] {
        let error = error_of(program);
        assert!(error.contains(expected), "{program}\n  gave     {error}\n  expected {expected}");
        assert!(error.starts_with("line "), "{program} gave {error}");
    }
}

#[test]
fn calls_that_make_much_from_little_are_refused_before_they_do() {
    for (call, expected) in [
        ("range(1, 9000000000)", "`range` would make 9000000000 values at once, and 16777216 are the most"),
        ("generate_series(9000000000, n, -1)", "`generate_series` would make 9000000000 values at once"),
        ("array_repeat(n, 9000000000)", "`array_repeat` would make 9000000000 values"),
        ("repeat('tide', 2000000000)", "`repeat` would make 8000000000 bytes"),
        ("repeat(tag, 2000000000)", "`repeat` would make 2000000000 bytes"),
        ("lpad(tag, 2000000000, 'x')", "`lpad` would make 2000000000 characters"),
    ] {
        let mut sql = SqlProgram::new(1);
        sql.queue("posts", vec![vec![rows(&[(1, "a", Some(1))])]]);
        // One of constants is refused when it is planned.
        let ended =
            sql.start(&format!("{POSTS}CREATE VIEW v AS SELECT {call} AS much FROM posts")).and_then(|()| sql.step());
        let error = ended.unwrap_err().chain();
        assert!(error.contains(expected), "{call} gave {error}");
    }
    let mut sql = SqlProgram::new(1);
    sql.queue("posts", vec![vec![rows(&[(1, "ab", Some(3))])]]);
    sql.start(&format!(
        "{POSTS}CREATE VIEW v AS SELECT range(n) AS a, generate_series(1, n) AS b, generate_series(n, 1, -2) AS c,
         array_repeat(tag, 2) AS d, repeat(tag, n) AS e, lpad(tag, 4, '-') AS f, rpad(tag, 1) AS g FROM posts"
    ))
    .unwrap();
    sql.step().unwrap();
    assert_eq!(
        sorted(&[sql.view("v").unwrap()]),
        ["|[0, 1, 2]|[1, 2, 3]|[3, 1]|[ab, ab]|ababab|--ab|a|"],
        "they are what they were"
    );
}

#[test]
fn statements_that_are_too_deep_or_too_long_are_refused() {
    let deep = format!("CREATE VIEW v AS SELECT {}1{} AS a", "(".repeat(10_000), ")".repeat(10_000));
    let long = format!("CREATE VIEW v AS SELECT 1{} AS a", " + 1".repeat(100_000));
    let ors = format!("CREATE VIEW v AS SELECT tag FROM posts WHERE n = 0{}", " OR n = 1".repeat(20_000));
    let chain = format!("CREATE VIEW v AS SELECT n{} AS a FROM posts", " + n".repeat(600));
    let minus = format!("CREATE VIEW v AS SELECT {}1 AS a", "- ".repeat(1_900));
    for (program, expected) in [
        (deep, "nested over 64 deep"),
        (long, "over 2000 operators"),
        (ors, "over 2000 operators"),
        (chain, "nested over 400 deep"),
        (minus, "nested too deep"),
    ] {
        let error = error_of(&program);
        assert!(error.contains(expected), "{}… gave {error}", &program[..60]);
    }
    let mut sql = SqlProgram::new(1);
    sql.queue("posts", vec![vec![rows(&[(1, "a", Some(1))])]]);
    sql.start(&format!("{POSTS}CREATE VIEW v AS SELECT tag FROM posts WHERE n = 0{}", " OR n + 0 = 1".repeat(380)))
        .unwrap();
    sql.step().unwrap();
    assert_eq!(sql.view("v").unwrap().num_rows(), 1, "what is within the bounds runs");
}

#[test]
fn every_statement_that_is_wrong_is_told_and_nothing_that_follows_from_it() {
    let error = error_of(
        "CREATE VIEW a AS SELECT tagg FROM posts;
         CREATE VIEW b AS SELECT * FROM a;
         CREATE VEIW c AS SELECT 1;
         CREATE VIEW d AS SELECT tag, n FROM c;
         INSERT INTO out SELECT tag FROM b;
         CREATE VIEW e AS SELECT sum(tag) AS n FROM posts;
         CREATE VIEW f AS SELECT tag FROM posts",
    );
    let lines: Vec<&str> = error.lines().collect();
    assert_eq!(lines.len(), 3, "{error}");
    assert!(lines[0].starts_with("line 2, column 25: CREATE VIEW a: there is no column `tagg`"), "{error}");
    assert!(
        lines[1].starts_with("line 4, column 17: expected STREAM, TABLE, VIEW, SINK, ALERT after CREATE"),
        "{error}"
    );
    assert!(lines[2].starts_with("line 7, column 34: CREATE VIEW e: function `sum` can't take TEXT"), "{error}");
}

#[test]
fn a_question_by_hand_may_ask_for_the_time_and_not_for_what_is_passed_over() {
    let program = program(1, vec![vec![rows(&[(1, "a", Some(1))])]], "CREATE VIEW v AS SELECT tag, n FROM posts");
    program.step().unwrap();
    let ask = |query: &str| program.context().sql(query);
    let now = "SELECT n FROM v WHERE now() > '2020-01-01' AND random() < 1 AND current_date > '2020-01-01'";
    assert_eq!(sorted(&ask(now).unwrap()), ["|1|"]);
    for (query, expected) in [
        ("SELECT n FROM v TABLESAMPLE (10 PERCENT)", "line 1, column 17: `TABLESAMPLE` is not done here"),
        ("SELECT n FROM v FOR UPDATE", "line 1, column 21: FOR `UPDATE` locks rows"),
    ] {
        let error = ask(query).unwrap_err().to_string();
        assert!(error.starts_with(expected), "{query}: {error}");
    }
}
