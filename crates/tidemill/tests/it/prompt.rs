//! The prompt of `tidemill sql`, at a terminal.

use crate::{
    pty::{Terminal, open},
    run::run,
};
use std::path::Path;

const PROMPT: &str = "tidemill> ";
const MORE: &str = "     ...> ";
/// What a terminal sends for these keys.
const CTRL_C: &str = "\u{3}";
const CTRL_D: &str = "\u{4}";
const UP: &str = "\u{1b}[A";
const RED: &str = "\u{1b}[1;31m";

/// A topic `t` of two lines, and the prompt over it.
fn prompt(dir: &Path, environment: &[(&str, &str)]) -> Terminal {
    let mut terminal = open(dir, &["sql", "--data", "d"], environment);
    terminal.shows(PROMPT);
    terminal
}

fn topic(dir: &Path) {
    run(dir, &["topic", "create", "t", "--data", "d"], "").code(0);
    run(dir, &["produce", "t", "--data", "d"], "ebb\nflow\n").code(0);
}

#[test]
fn it_answers_queries_over_lines_and_ends_with_ctrl_d() {
    let dir = tempfile::tempdir().unwrap();
    topic(dir.path());
    let mut at = prompt(dir.path(), &[]);
    at.types("SELECT count(*) AS n\r");
    at.shows(MORE);
    at.types("FROM t;\r");
    at.shows(" n \r\n---\r\n 2 \r\n(1 row)\r\n");
    at.shows(PROMPT);
    at.types("\\d\r");
    at.shows("topic t\r\n");
    at.shows(PROMPT);
    at.types(CTRL_D);
    let (status, shown) = at.end();
    assert_eq!(status.code(), Some(0), "{shown}");
}

#[test]
fn a_mistake_is_told_with_its_place_in_red_and_the_prompt_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    topic(dir.path());
    let mut at = prompt(dir.path(), &[]);
    at.types("SELECT *\r");
    at.shows(MORE);
    at.types("FORM t;\r");
    at.shows(&format!("{RED}error:\u{1b}[0m line 2, column "));
    at.shows(PROMPT);
    at.types("SELECT vlaue FROM t;\r");
    at.shows("error:\u{1b}[0m line 1, column 8: there is no column `vlaue`; did you mean `value`?");
    at.shows(PROMPT);
    at.types("SELECT 6 * 7 AS answer;\r");
    at.shows("     42 \r\n(1 row)");
    at.shows(PROMPT);
    at.types("\\q\r");
    assert_eq!(at.end().0.code(), Some(0));

    let mut plain = prompt(dir.path(), &[("NO_COLOR", "1")]);
    plain.types("SELECT * FORM t;\r");
    plain.shows("error: line 1, column ");
    plain.shows(PROMPT);
    plain.types(CTRL_D);
    let (_, shown) = plain.end();
    assert!(!shown.contains(RED), "{shown}");
    // Away from a terminal there is neither colour nor prompt.
    let piped = run(dir.path(), &["sql", "--data", "d"], "SELECT * FORM t;\n");
    piped.code(1).says(&["error: line 1, column "]);
    assert!(!piped.err.contains('\u{1b}') && piped.out.is_empty(), "{piped:?}");
}

#[test]
fn ctrl_c_drops_what_was_begun_and_stays() {
    let dir = tempfile::tempdir().unwrap();
    topic(dir.path());
    let mut at = prompt(dir.path(), &[]);
    at.types("SELECT broken\r");
    at.shows(MORE);
    at.types("FROM and not finished");
    at.shows("not finished");
    at.types(CTRL_C);
    at.shows(PROMPT);
    at.types("SELECT 6 * 7 AS answer;\r");
    at.shows("     42 \r\n(1 row)");
    at.shows(PROMPT);
    at.types(CTRL_D);
    let (status, shown) = at.end();
    assert_eq!(status.code(), Some(0), "{shown}");
    assert!(!shown.contains("error:"), "{shown}");
}

#[test]
fn ctrl_c_stops_a_query_and_stays() {
    let dir = tempfile::tempdir().unwrap();
    topic(dir.path());
    let mut at = prompt(dir.path(), &[]);
    // Ten million million rows. What is planned at once is stopped as well: here it runs.
    let many = "(SELECT unnest(range(1, 2000000)) AS n)";
    at.types(&format!("SELECT count(*) FROM {many} a CROSS JOIN {many} b WHERE (a.n + b.n) % 7 = 1;\r"));
    at.shows("\n");
    at.works();
    at.signal(rustix::process::Signal::INT);
    at.shows("error:\u{1b}[0m the query was stopped");
    at.shows(PROMPT);
    at.types("SELECT 6 * 7 AS answer;\r");
    at.shows("     42 \r\n(1 row)");
    at.shows(PROMPT);
    at.types(CTRL_D);
    let (status, shown) = at.end();
    assert_eq!(status.code(), Some(0), "{shown}");
}

#[test]
fn the_history_outlives_the_process_and_keeps_statements_whole() {
    let dir = tempfile::tempdir().unwrap();
    topic(dir.path());
    let mut first = prompt(dir.path(), &[]);
    first.types("SELECT 6 * 7\r");
    first.shows(MORE);
    first.types("AS answer;\r");
    first.shows("(1 row)");
    first.shows(PROMPT);
    first.types(&format!("{UP}\r"));
    first.shows("     42 \r\n(1 row)");
    first.shows(PROMPT);
    first.types(CTRL_D);
    assert_eq!(first.end().0.code(), Some(0));

    let mut second = prompt(dir.path(), &[]);
    second.types(&format!("{UP}\r"));
    second.shows("     42 \r\n(1 row)");
    second.shows(PROMPT);
    second.types(CTRL_D);
    assert_eq!(second.end().0.code(), Some(0));
}
