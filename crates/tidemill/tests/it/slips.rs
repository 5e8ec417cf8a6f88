//! Slips at the command line: each is told with the way out, and nothing is harmed by it.

use crate::run::run;
use std::{fs, path::Path};

const PROGRAM: &str = "CREATE STREAM words WITH (connector = 'topic', topic = 'words', format = 'text');\n\
                       CREATE VIEW n AS SELECT value, count(*) AS c FROM words GROUP BY value;\n";
const RUN: [&str; 8] = ["run", "p.sql", "--trigger", "drain", "--headless", "--no-web", "--data", "d"];

fn tide(dir: &Path, words: &str, input: &str) -> crate::run::Ended {
    run(dir, &words.split(' ').chain(["--data", "d"]).collect::<Vec<_>>(), input)
}

/// A topic of two words, and a program that has read it.
fn read(dir: &Path) {
    tide(dir, "topic create words", "").code(0);
    tide(dir, "produce words", "ebb\nflow\n").code(0);
    fs::write(dir.join("p.sql"), PROGRAM).unwrap();
    run(dir, &RUN, "").code(0);
}

#[test]
fn a_time_without_its_unit_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path();
    tide(at, "topic create t --keep-for 7", "").code(2).says(&["with its unit (ms, s, m, h, d)"]);
    tide(at, "topic create t --keep-for 7d", "").code(0);
    let described = tide(at, "topic describe t", "");
    assert!(described.code(0).out.contains("records older than 604800 s are removed"), "{}", described.out);
    let program = "CREATE STREAM s (n BIGINT) WITH (connector = 'tcp', address = '127.0.0.1:9', format = 'json', retention_age = 3600);\n\
                   CREATE VIEW v AS SELECT count(*) AS c FROM s;";
    fs::write(at.join("p.sql"), program).unwrap();
    tide(at, "check p.sql", "").code(1).says(&["option `retention_age`", "with its unit (ms, s, m, h, d)", "`3600`"]);
}

#[test]
fn a_topic_that_a_program_reads_is_not_deleted_by_the_way() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path();
    read(at);
    let refused = tide(at, "topic delete words", "");
    refused.code(1).says(&["`words` is read by program `p` (stream `words`)", "nothing was deleted", "--force"]);
    assert_eq!(tide(at, "consume words", "").code(0).out, "ebb\nflow");
    tide(at, "topic delete words --force", "").code(0);

    // Made anew, and longer than what was read.
    tide(at, "topic create words", "").code(0);
    tide(at, "produce words", "a\nb\nc\n").code(0);
    run(at, &RUN, "").code(1).says(&["`words` is not the one that stream `words` has read", "tidemill rewind --to 0"]);
    tide(at, "rewind --to 0", "").code(0);
    assert!(run(at, &RUN, "").code(0).out.contains("3 records"));
}
