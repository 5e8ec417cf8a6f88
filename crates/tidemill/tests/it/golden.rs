//! Whole answers of `check` and `plan`, beside the files in `golden/`.
//!
//! A wanted change is written down with `TIDEMILL_GOLDEN=write cargo test --workspace --test it golden`.

use crate::run::run;
use std::{fs, path::Path};

const POSTS: &str = include_str!("../../data/posts.sql");
const VIEWS: &str = include_str!("../../data/demo.sql");
/// Several mistakes; a misspelt option, a misspelt column, a sink that is not there.
const WRONG: &str = "\
-- What is said most.
CREATE STREAM words (word TEXT NOT NULL)
  WITH (connector = 'files', path = 'in', format = 'json', max_lnie = '1KiB');
CREATE VIEW top AS
SELECT wrod, count(*) AS n
FROM words
GROUP BY wrod;
INSERT INTO nowhere SELECT * FROM top;
";

/// Runs `tidemill` over a program and holds all that it says to the golden file.
fn check(name: &str, command: &str, program: &str, code: i32) {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("in")).unwrap();
    fs::write(dir.path().join("program.sql"), program).unwrap();
    let ended = run(dir.path(), &[command, "program.sql"], "");
    ended.code(code);
    let said = format!("{}\n{}", ended.out, ended.err).trim_start().to_string();
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/golden").join(name);
    if std::env::var_os("TIDEMILL_GOLDEN").is_some_and(|v| v == "write") {
        fs::write(&path, &said).unwrap();
    }
    let wanted = fs::read_to_string(&path).unwrap_or_default();
    assert!(said == wanted, "{name} differs.\n--- wanted\n{wanted}\n--- said\n{said}");
}

fn posts() -> String {
    POSTS.replace("{address}", "127.0.0.1:9").replace("{receivers}", "3")
}

#[test]
fn a_program_without_an_output_is_told() {
    check("no-output.txt", "check", &posts(), 1);
}

#[test]
fn right_programs_are_ok() {
    check("ok.txt", "check", &(posts() + VIEWS), 0);
}

#[test]
fn the_plan_of_a_stream_alone_is_empty() {
    check("plan-posts.txt", "plan", &posts(), 0);
}

#[test]
fn the_plan_of_the_demo() {
    check("plan-demo.txt", "plan", &(posts() + VIEWS), 0);
}

#[test]
fn mistakes_are_told_one_after_the_other() {
    check("wrong-option.txt", "check", WRONG, 1);
    check("wrong-option.txt", "plan", WRONG, 1);
    let option = WRONG.replace("max_lnie", "max_line");
    check("wrong-column.txt", "check", &option, 1);
    let column = option.replace("wrod", "word");
    check("wrong-sink.txt", "check", &column, 1);
    check("ok.txt", "check", &column.replace("INSERT", "-- INSERT"), 0);
}
