//! A reader that goes away (`… | head -0`) ends no command with a fault, and hides none.

use crate::run::{run, start};
use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
};

/// Runs `tidemill` with nobody at the other end of its standard output; its code and what it says.
fn unread(dir: &Path, arguments: &[&str]) -> (Option<i32>, String) {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let mut command = Command::new(env!("CARGO_BIN_EXE_tidemill"));
    command.args(arguments).current_dir(dir).env_remove("TIDEMILL_DATA").env_remove("TIDEMILL_LOG");
    let ended = command.stdin(Stdio::null()).stdout(writer).output().unwrap();
    (ended.status.code(), String::from_utf8_lossy(&ended.stderr).into_owned())
}

const PROGRAM: &str = "CREATE STREAM n (id BIGINT NOT NULL) WITH (connector = 'files', path = 'in.json', format = 'json');\n\
                       CREATE VIEW total AS SELECT count(*) AS c FROM n;\n";

#[test]
fn a_closed_pipe_ends_a_command_quietly() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path();
    fs::write(at.join("in.json"), "{\"id\":1}\nbad\n").unwrap();
    fs::write(at.join("p.sql"), PROGRAM).unwrap();
    run(at, &["run", "p.sql", "--trigger", "drain", "--headless", "--no-web", "--data", "d"], "").code(0);
    for command in [
        "dead list",
        "dead list --by-reason",
        "dead show 0",
        "dead show 0 --raw",
        "dead replay --all --dry-run",
        "plan p.sql",
        "check p.sql",
        "topic create t",
        "topic list",
        "topic describe t",
        "produce t",
        "consume p.dead --from-beginning",
        "topic delete t",
        "rewind",
        "rewind --to 0 --fork f",
        "verify",
        "replay-batch 1 --plan",
        "backup b",
        "sql -e 'SELECT'",
    ] {
        let mut words: Vec<&str> = command.split(' ').collect();
        if command.starts_with("sql") {
            words = vec!["sql", "-e", "SELECT * FROM dead; SELECT 1"];
        }
        words.extend(["--data", "d"]);
        assert_eq!(unread(at, &words), (Some(0), String::new()), "{command}");
    }
    assert_eq!(unread(at, &["restore", "b", "--data", "r"]), (Some(0), String::new()));
}

#[test]
fn a_closed_pipe_hides_no_failure() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path();
    run(at, &["topic", "create", "t", "--data", "d"], "").code(0);
    fs::write(at.join("d/FORMAT"), "3\ncrc32c 00000000\n").unwrap();
    let (code, error) = unread(at, &["verify", "--data", "d"]);
    assert!(code == Some(1) && error.starts_with("error: d is damaged in 1 place"), "{code:?}: {error}");
}

#[test]
fn a_status_that_nobody_reads_is_no_fault() {
    let dir = tempfile::tempdir().unwrap();
    let mut demo = start(dir.path(), &["demo", "--headless", "--web", "127.0.0.1:0"], "");
    let page = demo.wait_for("page: http://").replace("page: http://", "");
    demo.wait_for("words: ");
    for more in [&[][..], &["--json"]] {
        let words = [&["status", "--web", &page], more].concat();
        assert_eq!(unread(dir.path(), &words), (Some(0), String::new()));
    }
    demo.signal(rustix::process::Signal::INT);
    demo.end().code(0);
}

#[test]
fn a_fault_of_standard_output_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path();
    run(at, &["topic", "create", "t", "--data", "d"], "").code(0);
    let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_tidemill"));
    let ended = command.args(["topic", "list", "--data", "d"]).current_dir(at).stdout(full).output().unwrap();
    let error = String::from_utf8_lossy(&ended.stderr);
    assert!(ended.status.code() == Some(1) && error.contains("can't write to standard output"), "{error}");
}
