//! SQL programs by the command line: checked, run to their end, told their mistakes.

use crate::run::{run, start};
use rustix::process::Signal;
use std::{fs, path::Path};

const TOP: &str = "\
CREATE STREAM words (word TEXT NOT NULL) WITH (connector = 'files', path = 'in', format = 'json');
CREATE VIEW top AS SELECT word, count(*) AS n FROM words GROUP BY word ORDER BY n DESC, word LIMIT 3;
";

fn write(dir: &Path, name: &str, text: &str) {
    fs::create_dir_all(dir.join(name).parent().unwrap()).unwrap();
    fs::write(dir.join(name), text).unwrap();
}

#[test]
fn a_right_program_is_ok_and_nothing_is_written() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), "top.sql", TOP);
    write(dir.path(), "in/a.json", "{\"word\":\"ebb\"}\n");
    assert_eq!(run(dir.path(), &["check", "top.sql"], "").code(0).out, "ok");
    assert!(!dir.path().join("tidemill-data").exists());
}

#[test]
fn mistakes_are_told_with_file_line_and_what_was_meant() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), "in/a.json", "");
    for (text, says) in [
        (TOP.replace("path =", "paht ="), vec!["p.sql: line 1, column 1", "option `path` is missing"]),
        (
            TOP.replace("format =", "fromat ="),
            vec!["p.sql: line 1, column 82:", "unknown option `fromat`", "did you mean `format`?"],
        ),
        (TOP.replace("'files'", "'flies'"), vec!["p.sql: line 1, column 60:", "did you mean `files`?"]),
        (TOP.replace("FROM words", "FROM wrods"), vec!["p.sql: line 2, column 52:", "did you mean `words`?"]),
        (TOP.replace("GROUP BY word", "GRUOP BY word"), vec!["p.sql: line 2, column 6"]),
        ("CREATE VEIW top AS SELECT 1;".to_string(), vec!["p.sql: line 1, column 8", "did you mean VIEW?"]),
    ] {
        write(dir.path(), "p.sql", &text);
        for command in ["check", "run"] {
            let told = run(dir.path(), &[command, "p.sql", "--data", "d"], "");
            told.code(1).says(&["error: "]).says(&says);
            assert_eq!(told.out, "", "{text}");
        }
    }
    run(dir.path(), &["check", "none.sql"], "").code(1).says(&["can't read the program none.sql"]);
}

#[test]
fn a_program_over_files_continues_and_sets_bad_records_aside() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), "top.sql", TOP);
    write(dir.path(), "in/a.json", "{\"word\":\"ebb\"}\n{\"word\":\"flow\"}\nbroken\n{\"word\":\"ebb\"}\n");
    let quiet = ["run", "top.sql", "--headless", "--no-web", "--interval", "100ms", "--data", "d"];
    let mut first = start(dir.path(), &quiet, "");
    first.wait_for("top: ebb 2, flow 1 |");
    first.signal(Signal::INT);
    assert!(first.end().code(0).out.contains("1 refused"));

    write(dir.path(), "in/b.json", "{\"word\":\"flow\"}\n{\"word\":\"flow\"}\n");
    let mut second = start(dir.path(), &quiet, "");
    second.wait_for("continues after batch ");
    second.wait_for("top: flow 3, ebb 2 |");
    second.signal(Signal::TERM);
    second.end().code(0);

    let dead = run(dir.path(), &["consume", "top.dead", "--data", "d"], "");
    let letters: Vec<serde_json::Value> =
        dead.code(0).out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(letters.len(), 1, "{letters:?}");
    assert_eq!(letters[0]["raw"], "broken");
    assert_eq!(letters[0]["stream"], "words");
}

#[test]
fn a_plan_shows_outputs_promises_and_plans() {
    let dir = tempfile::tempdir().unwrap();
    let sink = "CREATE SINK out WITH (connector = 'files', path = 'out', format = 'json');\nINSERT INTO out SELECT * FROM top;\n";
    write(dir.path(), "top.sql", &format!("{TOP}{sink}"));
    write(dir.path(), "in/a.json", "{\"word\":\"ebb\"}\n");
    let plan = run(dir.path(), &["plan", "top.sql"], "");
    for text in ["top: a view", "exactly once into files out", "source words"] {
        assert!(plan.code(0).out.contains(text), "{text:?} is missing: {}", plan.out);
    }
    assert!(!dir.path().join("tidemill-data").exists() && !dir.path().join("out").exists());
}

#[test]
fn sql_asks_topics_and_live_views() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path();
    run(at, &["topic", "create", "t", "--data", "d"], "").code(0);
    run(at, &["produce", "t", "--data", "d"], "ebb\nflow\n").code(0);
    let counted = run(at, &["sql", "--data", "d", "-e", "SELECT count(*) AS n, max(_offset) AS last FROM t"], "");
    assert_eq!(counted.code(0).out, " n | last \n---+------\n 2 |    1 \n(1 row)");

    // Statements over lines, and two in one; a mistake ends a script with 1.
    let script = "SELECT 'a;b' AS x -- not; here\n; SELECT 1\nAS y;\n\\d\n";
    let answered = run(at, &["sql", "--data", "d"], script);
    let out = &answered.code(0).out;
    assert!(out.contains(" a;b \n") && out.contains(" y \n") && out.contains("topic t"), "{out}");
    run(at, &["sql", "--data", "d"], "SELECT * FROM nothing;\nSELECT 1;\n").code(1).says(&["error: ", "nothing"]);

    write(at, "top.sql", TOP);
    write(at, "in/a.json", "{\"word\":\"ebb\"}\n{\"word\":\"ebb\"}\n");
    let live = run(at, &["sql", "--data", "d2", "--program", "top.sql", "-e", "SELECT n, word FROM top"], "");
    assert_eq!(live.code(0).out, " n | word \n---+------\n 2 | ebb  \n(1 row)");
}

#[test]
fn programs_read_and_write_topics() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path();
    let first = "\
CREATE STREAM words WITH (connector = 'topic', topic = 'words', format = 'text');
CREATE SINK shout WITH (connector = 'topic', topic = 'loud', retention_age = '7d');
INSERT INTO shout SELECT upper(value) AS word FROM words WHERE value <> 'hush';
";
    let second = "\
CREATE STREAM loud WITH (connector = 'topic', topic = 'loud');
CREATE VIEW top AS SELECT word, count(*) AS n FROM loud GROUP BY word ORDER BY n DESC, word LIMIT 3;
";
    write(at, "first.sql", first);
    write(at, "second.sql", second);
    run(at, &["check", "second.sql", "--data", "d"], "")
        .code(1)
        .says(&["there is no topic `loud` yet", "declare them"]);
    run(at, &["topic", "create", "words", "--retention-age", "1h", "--data", "d"], "").code(0);
    run(at, &["produce", "words", "--data", "d"], "ebb\nflow\nhush\nebb\n").code(0);
    let plan = run(at, &["plan", "first.sql", "--data", "d"], "");
    for text in
        ["words: reads topic words\n", "insert-shout: exactly once into topic loud; gives new rows in each batch"]
    {
        assert!(plan.code(0).out.contains(text), "{text:?} is missing: {}", plan.out);
    }
    let drain = |program| ["run", program, "--headless", "--no-web", "--trigger", "drain", "--data", "d"];
    run(at, &drain("first.sql"), "").code(0);
    run(at, &["check", "second.sql", "--data", "d"], "").code(0);
    assert!(run(at, &drain("second.sql"), "").code(0).out.contains("top: EBB 2, FLOW 1"));
    run(at, &["produce", "words", "--data", "d"], "flow\nflow\n").code(0);
    run(at, &drain("first.sql"), "").code(0);
    assert!(run(at, &drain("second.sql"), "").code(0).out.contains("top: FLOW 3, EBB 2"));
    let dead = "SELECT reason, count(*) AS n FROM \"second.dead\" GROUP BY reason";
    let asked = run(at, &["sql", "--data", "d", "-e", dead], "");
    assert_eq!(asked.code(0).out, " reason | n \n--------+---\n(0 rows)", "an empty topic is an empty table");
    let loud = run(at, &["consume", "loud", "--from-beginning", "--data", "d"], "");
    let lines: Vec<&str> = loud.code(0).out.lines().collect();
    assert_eq!((lines.len(), lines[0]), (5, "{\"word\":\"EBB\"}"), "{}", loud.out);
    let described = run(at, &["topic", "describe", "loud", "--data", "d"], "");
    for text in ["column word Utf8", "needed by second/loud: partition 0 from 5", "older than 604800 s"] {
        assert!(described.code(0).out.contains(text), "{text:?} is missing: {}", described.out);
    }
}

#[test]
fn a_busy_port_and_a_directory_in_use_are_told_with_the_way_out() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path();
    write(at, "top.sql", TOP);
    write(at, "in/a.json", "{\"word\":\"ebb\"}\n");
    let busy = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = busy.local_addr().unwrap();
    let refused = run(at, &["run", "top.sql", "--headless", "--data", "d", "--web", &address.to_string()], "");
    refused.code(1).says(&["error: ", &address.port().to_string(), "--web 127.0.0.1:0"]);
    assert!(!at.join("d").exists(), "nothing was written");

    let mut first = start(at, &["run", "top.sql", "--headless", "--no-web", "--data", "d"], "");
    first.wait_for("top: ebb 1 |");
    for reader in [vec!["sql", "-e", "SELECT count(*) FROM dead"], vec!["topic", "list"], vec!["dead", "list"]] {
        run(at, &[reader, vec!["--data", "d"]].concat(), "").code(0);
    }
    for second in [vec!["run", "top.sql", "--headless", "--no-web"], vec!["produce", "t"]] {
        let second = run(at, &[second, vec!["--data", "d"]].concat(), "");
        second.code(1).says(&["error: the data directory d is in use by process ", "or name another directory"]);
    }
    first.signal(Signal::INT);
    first.end().code(0);
}
