//! Programs that would lose, share or make up rows without a word: `check` and
//! `run` refuse them, with the place and the way out.

use crate::run::run;
use std::{fs, path::Path};

const WORDS: &str =
    "CREATE STREAM words (word TEXT, n BIGINT) WITH (connector = 'files', path = 'in', format = 'json');\n";

/// A directory with two words to read.
fn words() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("in")).unwrap();
    fs::write(dir.path().join("in/a.json"), "{\"word\":\"ebb\",\"n\":1}\n{\"word\":\"flow\",\"n\":2}\n").unwrap();
    dir
}

/// Both commands say so, and nothing is read or written.
fn refused(dir: &Path, text: &str, says: &[&str]) {
    fs::write(dir.join("p.sql"), text).unwrap();
    for command in ["check", "run"] {
        run(dir, &[command, "p.sql", "--data", "d"], "").code(1).says(&["error: "]).says(says);
    }
}

#[test]
fn two_sinks_into_one_directory_are_refused() {
    let dir = words();
    let two = |path: &str| {
        format!(
            "{WORDS}CREATE SINK s WITH (connector = 'files', path = 'two', format = 'json');\n\
             CREATE SINK t WITH (connector = 'files', path = '{path}', format = 'json');\n\
             INSERT INTO s SELECT word FROM words;\nINSERT INTO t SELECT n FROM words;\n"
        )
    };
    for path in ["two/", "./two", "in/../two"] {
        let says =
            ["p.sql: line 3, column 13: CREATE SINK t: sink `t` would write to directory ", "/two, as sink `s` does"];
        refused(dir.path(), &two(path), &says);
    }
    assert!(!dir.path().join("two").exists());
    fs::write(dir.path().join("p.sql"), two("three")).unwrap();
    let args = ["run", "p.sql", "--data", "d", "--trigger", "drain", "--headless", "--no-web"];
    run(dir.path(), &args, "").code(0);
    let lines = |path: &str| -> Vec<String> {
        let files = fs::read_dir(dir.path().join(path)).unwrap().map(|file| file.unwrap().path());
        let mut lines: Vec<String> = files
            .flat_map(|file| fs::read_to_string(file).unwrap().lines().map(str::to_string).collect::<Vec<_>>())
            .collect();
        lines.sort();
        lines
    };
    assert_eq!(lines("two"), [r#"{"word":"ebb"}"#, r#"{"word":"flow"}"#]);
    assert_eq!(lines("three"), [r#"{"n":1}"#, r#"{"n":2}"#]);
}

#[test]
fn what_run_refuses_is_refused_by_check() {
    let dir = words();
    let into = |options: &str, columns: &str| {
        format!("{WORDS}CREATE SINK s WITH ({options});\nINSERT INTO s SELECT {columns} FROM words;\n")
    };
    let files = "connector = 'files', path = 'out', format = 'json'";
    let topic = "connector = 'topic', topic = 't'";
    let place = "p.sql: line 3, column 1";
    for (text, says) in [
        (
            into(&format!("{files}, partition_by = 'wrod'"), "word, n"),
            [place, "option `partition_by`: there is no column `wrod`; did you mean `word`?"],
        ),
        (into(&files.replace("json", "text"), "word, n"), [place, "format `text` takes one column of TEXT"]),
        (WORDS.to_string(), ["the program has no output", "add a view"]),
        (into(files, "word").replace("INSERT", "-- INSERT"), ["the program has no output", "add a view"]),
    ] {
        refused(dir.path(), &text, &says);
    }
    assert!(!dir.path().join("out").exists());

    // A topic that is there has columns of its own.
    fs::write(dir.path().join("p.sql"), into(topic, "word")).unwrap();
    let args = ["run", "p.sql", "--data", "d", "--trigger", "drain", "--headless", "--no-web"];
    run(dir.path(), &args, "").code(0);
    run(dir.path(), &["check", "p.sql", "--data", "d"], "").code(0);
    let says = [place, "topic `t` has the columns (word Utf8), and the rows have (word Utf8, n Int64)"];
    refused(dir.path(), &into(topic, "word, n"), &says);
}

#[test]
fn two_streams_over_standard_input_are_refused() {
    let dir = words();
    let text = "CREATE STREAM a WITH (connector = 'stdin');\nCREATE STREAM b WITH (connector = 'stdin');\n\
                CREATE VIEW v AS SELECT * FROM a UNION ALL SELECT * FROM b;\n";
    let says = ["p.sql: line 2, column 15: CREATE STREAM b: stream `b` would read standard input, as stream `a` does"];
    refused(dir.path(), text, &says);
    fs::write(
        dir.path().join("p.sql"),
        text.replace("CREATE STREAM b", "-- ").replace(" UNION ALL SELECT * FROM b", ""),
    )
    .unwrap();
    run(dir.path(), &["check", "p.sql", "--data", "d"], "").code(0);
}

#[test]
fn two_streams_that_would_listen_at_one_address_are_refused() {
    let dir = words();
    let text = |first: &str, second: &str| {
        format!(
            "CREATE STREAM a WITH (connector = 'tcp-listen', address = '{first}');\n\
             CREATE STREAM b WITH (connector = 'tcp-listen', address = '{second}');\n\
             CREATE VIEW v AS SELECT * FROM a UNION ALL SELECT * FROM b;\n"
        )
    };
    let says = [
        "p.sql: line 2, column 15: CREATE STREAM b: stream `b` would read TCP address 127.0.0.1:9999, as stream `a` does",
    ];
    for first in ["127.0.0.1:9999", "localhost:9999"] {
        refused(dir.path(), &text(first, "127.0.0.1:9999"), &says);
    }
    for first in ["127.0.0.1:9998", "127.0.0.2:9999"] {
        fs::write(dir.path().join("p.sql"), text(first, "127.0.0.1:9999")).unwrap();
        run(dir.path(), &["check", "p.sql", "--data", "d"], "").code(0);
    }
    fs::write(dir.path().join("p.sql"), text("127.0.0.1:0", "127.0.0.1:0")).unwrap();
    run(dir.path(), &["check", "p.sql", "--data", "d"], "").code(0);
}
