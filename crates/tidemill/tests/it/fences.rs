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
