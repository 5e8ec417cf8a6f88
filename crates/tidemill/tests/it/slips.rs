//! Slips at the command line: each is told with the way out, and nothing is harmed by it.

use crate::run::run;
use std::{fs, path::Path};

fn tide(dir: &Path, words: &str, input: &str) -> crate::run::Ended {
    run(dir, &words.split(' ').chain(["--data", "d"]).collect::<Vec<_>>(), input)
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
