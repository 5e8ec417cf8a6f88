//! Tables that are read again, and streams beside views.

use super::{POSTS, rows, sorted};
use crate::{StreamingContext, Trigger, testing::SqlProgram};
use std::path::Path;

fn names(path: &Path, names: &[(&str, &str)]) {
    let rows: String = names.iter().map(|(tag, name)| format!("{tag},{name}\n")).collect();
    std::fs::write(path, format!("tag,name\n{rows}")).unwrap();
}

fn program(path: &Path, reload: &str, view: &str, data: Option<&Path>) -> SqlProgram {
    let mut builder = StreamingContext::builder("test").trigger(Trigger::Drain).partitions(2);
    if let Some(data) = data {
        builder = builder.data_dir(data);
    }
    let mut program = SqlProgram::over(builder.build());
    program.queue("posts", (0..9).map(|n| vec![rows(&[(n, "a", Some(n)), (n, "b", None)])]).collect());
    program
        .start(&format!(
            "{POSTS}CREATE TABLE names WITH (connector = 'csv', path = '{}', reload = '{reload}');\n{view}",
            path.display()
        ))
        .unwrap();
    program
}

const NAMED: &str = "CREATE VIEW v AS SELECT posts.tag, name, n FROM posts LEFT JOIN names ON posts.tag = names.tag";

#[test]
fn a_table_that_changed_is_seen_by_the_next_batch() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("names.csv");
    names(&path, &[("a", "Anna")]);
    let program = program(&path, "0s", NAMED, None);
    let step = || {
        program.step().unwrap();
        sorted(&[program.view("v").unwrap()])
    };
    assert_eq!(step(), ["|a|Anna|0|", "|b|||"]);
    names(&path, &[("a", "Annette"), ("b", "Bert")]);
    assert_eq!(step(), ["|a|Annette|1|", "|b|Bert||"]);
    assert_eq!(sorted(&program.context().sql("SELECT * FROM names").unwrap()), ["|a|Annette|", "|b|Bert|"]);
    std::fs::write(&path, "not,what\nit,was\n").unwrap();
    assert_eq!(step(), ["|a|Annette|2|", "|b|Bert||"], "a table of other columns is not taken");
    std::fs::remove_file(&path).unwrap();
    assert_eq!(step(), ["|a|Annette|3|", "|b|Bert||"], "and neither is none");
}

#[test]
fn a_table_is_looked_at_when_its_time_has_come() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("names.csv");
    names(&path, &[("a", "Anna"), ("b", "B")]);
    // Batches are a second apart.
    let program = program(&path, "3s", NAMED, None);
    program.step().unwrap();
    names(&path, &[("a", "Annette"), ("b", "B")]);
    let mut seen = Vec::new();
    for _ in 0..4 {
        program.step().unwrap();
        seen.push(sorted(&[program.view("v").unwrap()])[0].contains("Annette"));
    }
    assert_eq!(seen, [false, false, true, true]);
}

#[test]
fn a_restart_finds_the_version_of_the_last_batch() {
    let (dir, data) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let path = dir.path().join("names.csv");
    names(&path, &[("a", "Anna"), ("b", "B")]);
    let first = program(&path, "1h", NAMED, Some(data.path()));
    first.step().unwrap();
    drop(first);
    names(&path, &[("a", "Annette"), ("b", "B")]);
    let again = program(&path, "1h", NAMED, Some(data.path()));
    again.step().unwrap();
    assert_eq!(sorted(&[again.view("v").unwrap()]), ["|a|Anna|1|", "|b|B||"], "its hour begins anew");
    drop(again);
    let soon = program(&path, "1s", NAMED, Some(data.path()));
    soon.step().unwrap();
    soon.step().unwrap();
    assert_eq!(sorted(&[soon.view("v").unwrap()]), ["|a|Annette|3|", "|b|B||"]);
}

#[test]
fn aggregates_follow_a_table_and_a_stream_looks_into_a_view() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("names.csv");
    names(&path, &[("a", "Anna"), ("b", "Bert")]);
    let program = program(
        &path,
        "0s",
        "CREATE VIEW counts AS SELECT tag, count(*) AS c FROM posts GROUP BY tag;
         CREATE VIEW named AS SELECT name, c FROM counts JOIN names ON counts.tag = names.tag;
         CREATE VIEW v AS SELECT posts.tag, n, c FROM posts JOIN counts ON posts.tag = counts.tag WHERE n IS NOT NULL",
        None,
    );
    program.step().unwrap();
    program.step().unwrap();
    assert_eq!(sorted(&[program.view("named").unwrap()]), ["|Anna|2|", "|Bert|2|"]);
    assert_eq!(sorted(&[program.view("v").unwrap()]), ["|a|1|2|"], "a row sees the view of its own batch");
    names(&path, &[("a", "Annette"), ("b", "Bert")]);
    program.step().unwrap();
    assert_eq!(sorted(&[program.view("named").unwrap()]), ["|Annette|3|", "|Bert|3|"]);
}
