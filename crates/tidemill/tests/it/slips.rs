//! Slips at the command line: each is told with the way out, and nothing is harmed by it.

use crate::run::run;
use std::{collections::BTreeMap, fs, path::Path};

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

/// All files with their bytes.
fn files(dir: &Path) -> BTreeMap<std::path::PathBuf, Vec<u8>> {
    let mut all = BTreeMap::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            all.extend(files(&path));
        } else {
            all.insert(path.clone(), fs::read(&path).unwrap());
        }
    }
    all
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

#[test]
fn a_stream_that_was_left_out_goes_on_in_its_topic() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path();
    read(at);
    tide(at, "topic create others", "").code(0);
    let needed = || tide(at, "topic describe words", "").code(0).out.contains("needed by p/words: partition 0 from 2");
    assert!(needed());
    let changed: Vec<&str> = RUN.iter().copied().chain(["--accept-changes"]).collect();
    fs::write(at.join("p.sql"), PROGRAM.replace("words", "others").replace("VIEW n", "VIEW m")).unwrap();
    run(at, &changed, "").code(0);
    assert!(!needed(), "nothing is held for a stream that is not there");
    tide(at, "produce words", "more\n").code(0);
    fs::write(at.join("p.sql"), PROGRAM).unwrap();
    let again = run(at, &changed, "");
    assert!(again.code(0).out.contains("1 records in"), "it goes on after what it had read: {}", again.out);

    // The stream's name, and another topic.
    fs::write(at.join("p.sql"), PROGRAM.replace("topic = 'words'", "topic = 'others'")).unwrap();
    tide(at, "produce others", "a\nb\nc\nd\n").code(0);
    run(at, &changed, "").code(1).says(&["`others` is not the one that stream `words` has read up to offset 3"]);
}

#[test]
fn a_backup_is_no_place_to_run_in() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path();
    read(at);
    tide(at, "backup b", "").code(0);
    let before = files(&at.join("b"));
    let program: Vec<&str> = RUN[..6].iter().copied().chain(["--data", "b"]).collect();
    for words in [&program[..], &["topic", "create", "t", "--data", "b"], &["rewind", "--to", "0", "--data", "b"]] {
        run(at, words, "").code(1).says(&["b is a backup", "tidemill restore b --data DIR"]);
    }
    assert_eq!(files(&at.join("b")), before, "it is as it was");
    run(at, &["verify", "b"], "").code(0);
    run(at, &["restore", "b", "--data", "r"], "").code(0);
    run(at, &[&RUN[..6], &["--data", "r"]].concat(), "").code(0);
}

#[test]
fn a_byte_order_mark_is_passed_over() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path();
    fs::write(at.join("in.json"), "\u{feff}{\"n\":1}\n{\"n\":2}\n").unwrap();
    fs::write(at.join("in.csv"), "\u{feff}n\n4\n8\n").unwrap();
    let program = "\u{feff}CREATE STREAM a (n BIGINT) WITH (connector = 'files', path = 'in.json', format = 'json');\n\
                   CREATE STREAM b WITH (connector = 'files', path = 'in.csv', format = 'csv', header = 'true');\n\
                   CREATE VIEW sums AS SELECT 'all' AS of, sum(n) AS n FROM (SELECT n FROM a UNION ALL SELECT n FROM b) AS u;\n";
    fs::write(at.join("p.sql"), program).unwrap();
    let ended = run(at, &RUN, "");
    assert!(ended.code(0).out.contains(" sums: all 15 |") && ended.out.contains("0 refused"), "{}", ended.out);
    let asked = tide(at, "sql", "\u{feff}SELECT 6 * 7 AS answer;\n");
    assert!(asked.code(0).out.contains("42"), "{}", asked.out);
}

#[cfg(not(feature = "sqlite"))]
#[test]
fn a_connector_of_another_build_names_that_build() {
    let dir = tempfile::tempdir().unwrap();
    let stream = "CREATE STREAM s (n BIGINT) WITH (connector = 'files', path = 'in', format = 'json');\n";
    for what in [
        "CREATE SINK o WITH (connector = 'sqlite', path = 'x.db', table = 't'); INSERT INTO o SELECT n FROM s;",
        "CREATE TABLE o (n BIGINT) WITH (connector = 'postgres', key = 'n'); CREATE VIEW v AS SELECT count(*) AS c FROM s;",
    ] {
        fs::write(dir.path().join("p.sql"), format!("{stream}{what}")).unwrap();
        tide(dir.path(), "check p.sql", "").code(1).says(&["this build has no connector", "--features full"]);
    }
}

#[test]
fn a_programs_name_is_called_so() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("p.sql"), PROGRAM).unwrap();
    let refused = run(dir.path(), &["check", "p.sql", "--name", "a b"], "");
    refused.code(2).says(&["\"a b\" can't be a program's name: use 1 to 200 of A-Z"]);
}

#[test]
fn what_sql_lists_it_describes() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path();
    read(at);
    let listed = tide(at, "sql", "\\d\n");
    let state = listed.code(0).out.lines().find_map(|line| line.strip_prefix("state ")).unwrap().to_string();
    let described = tide(at, "sql", &format!("\\d state.{state}\n"));
    assert!(described.code(0).out.starts_with("column ") && described.out.contains("\nvalue "), "{}", described.out);
    for name in ["dead", "\"dead\"", "p.dead"] {
        let described = tide(at, "sql", &format!("\\d {name}\n"));
        assert!(described.code(0).out.contains("\nreason "), "{name}: {}", described.out);
    }
    tide(at, "sql", "\\d nothing\n").code(1).says(&["there is no `nothing`; \\d lists what there is"]);
    let divided = tide(at, "sql", "SELECT 1 AS a /* ; no\n; */;\nSELECT 2 AS b;\n");
    assert!(divided.code(0).out.contains(" a ") && divided.out.contains(" b "), "{}", divided.out);
}

#[test]
fn a_torn_end_is_a_note_to_who_only_looks() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path();
    read(at);
    let segment = at.join("d/log/words/0/00000000000000000000.seg");
    let mut file = fs::OpenOptions::new().append(true).open(&segment).unwrap();
    std::io::Write::write_all(&mut file, &[7; 100]).unwrap();
    let ledger = fs::read_dir(at.join("d/programs/p/ledger")).unwrap().next().unwrap().unwrap().path();
    let mut file = fs::OpenOptions::new().append(true).open(ledger).unwrap();
    std::io::Write::write_all(&mut file, &[7; 100]).unwrap();
    let before = files(at);
    let verified = tide(at, "verify", "");
    assert!(
        verified.code(0).out.contains("note: ") && verified.out.contains("a torn end of 100 bytes"),
        "{verified:?}"
    );
    assert_eq!(verified.err, "", "nothing is cut off");
    tide(at, "topic list", "").code(0);
    let kept = |all: BTreeMap<_, _>| {
        all.into_iter().filter(|(path, _): &(std::path::PathBuf, Vec<u8>)| !path.ends_with("GATE")).collect::<Vec<_>>()
    };
    assert_eq!(kept(files(at)), kept(before), "verify only reads");
}

#[test]
fn help_has_help() {
    let dir = tempfile::tempdir().unwrap();
    for (with, without) in [("help --help", "help"), ("help -h", "help"), ("topic help --help", "topic help")] {
        let words = |text: &str| run(dir.path(), &text.split(' ').collect::<Vec<_>>(), "").code(0).out.clone();
        assert!(words(with) == words(without) && words(with).contains("Commands:"), "{with}");
    }
}
