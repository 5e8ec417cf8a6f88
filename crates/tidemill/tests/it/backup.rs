//! Backups of a program that runs, and ends that leave nothing to be run again.

use crate::run::{run, start};
use rustix::process::Signal;
use std::{fs, path::Path, sync::Arc};
use tidemill::store::{Ledger, RealDisk};

/// Numbers from a generator into a topic of the same data directory.
const NUMBERS: &str = r#"
CREATE STREAM numbers WITH (connector = 'generator', rows = '60000', rows_per_plan = '200');
CREATE SINK out WITH (connector = 'topic', topic = 'out');
INSERT INTO out SELECT "offset" AS n FROM numbers;
CREATE VIEW total AS SELECT count(*) AS n, sum("offset") AS sum FROM numbers;
"#;

fn planned(dir: &Path) -> bool {
    let ledger = Ledger::open(Arc::new(RealDisk), &dir.join("programs/p/ledger")).unwrap();
    ledger.planned().is_some()
}

#[test]
fn a_backup_of_a_running_program_goes_on_after_its_batch() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path();
    fs::write(at.join("p.sql"), NUMBERS).unwrap();
    let program = ["run", "p.sql", "--headless", "--no-web"];
    let mut running = start(at, &[&program[..], &["--interval", "20ms", "--data", "d"]].concat(), "");
    running.wait_for("total: ");
    for number in 0..3 {
        let copy = format!("b{number}");
        let made = run(at, &["backup", &copy, "--data", "d"], "");
        assert!(made.code(0).out.contains("program p up to batch "), "{}", made.out);
        run(at, &["verify", &copy], "").code(0);
        running.wait_for("total: ");
    }
    let checked = run(at, &["verify", "--data", "d"], "");
    assert!(checked.code(0).out.ends_with("all is whole"), "{}", checked.out);
    running.signal(Signal::TERM);
    running.end().code(0);
    assert!(!planned(&at.join("d")), "a stop leaves nothing to be run again");
    for number in 0..3 {
        let (copy, back) = (format!("b{number}"), format!("r{number}"));
        run(at, &["restore", &copy, "--data", &back], "").code(0);
        run(at, &["restore", &copy, "--data", &back], "").code(1).says(&["needs an empty directory"]);
        let ended = run(at, &[&program[..], &["--trigger", "drain", "--data", &back]].concat(), "");
        assert!(ended.code(0).out.contains("continues after batch "), "{}", ended.out);
        let query = "SELECT count(*), count(DISTINCT n), min(n), max(n) FROM \"out\"";
        let sums = run(at, &["sql", "-e", query, "--data", &back], "");
        let numbers: Vec<&str> = sums.code(0).out.lines().nth(2).unwrap().split('|').map(str::trim).collect();
        assert_eq!(numbers, ["60000", "60000", "0", "59999"], "each number once");
    }
}

#[test]
fn a_termination_under_load_leaves_nothing_to_be_run_again() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path();
    fs::write(at.join("p.sql"), NUMBERS.replace("60000", "100000000")).unwrap();
    let arguments = ["run", "p.sql", "--headless", "--no-web", "--trigger", "asap", "--data", "d"];
    let mut running = start(at, &arguments, "");
    running.wait_for("total: ");
    running.signal(Signal::TERM);
    let ended = running.end();
    ended.code(0);
    assert!(!planned(&at.join("d")), "{}", ended.out);
}

#[test]
fn damage_is_told_with_its_place() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path();
    run(at, &["topic", "create", "t", "--data", "d"], "").code(0);
    run(at, &["produce", "t", "--data", "d"], &"a line\n".repeat(1000)).code(0);
    let segment = at.join("d/log/t/0/00000000000000000000.seg");
    let mut bytes = fs::read(&segment).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 4;
    fs::write(segment, bytes).unwrap();
    let found = run(at, &["verify", "--data", "d"], "");
    found.code(1).says(&["d is damaged in "]);
    assert!(found.out.contains("damage: d/log/t/0/00000000000000000000.seg at byte "), "{}", found.out);
    run(at, &["backup", "b", "--data", "d"], "").code(1).says(&["is damaged, and so is the copy"]);
    run(at, &["restore", "b", "--data", "r"], "").code(1).says(&["no whole backup"]);
    run(at, &["verify", "nowhere"], "").code(1).says(&["neither a data directory nor a backup"]);
}
