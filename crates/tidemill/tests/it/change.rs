//! A program is changed at three in the afternoon, and rewound, by the command line.

use crate::run::{run, start};
use rustix::process::Signal;
use std::{collections::BTreeMap, fs, path::Path};

const STREAM: &str =
    "CREATE STREAM words (word TEXT NOT NULL, bot BOOLEAN) WITH (connector = 'files', path = 'in', format = 'json');
CREATE SINK out WITH (connector = 'files', path = 'OUT', format = 'json');
";
const WRONG: &str = "CREATE VIEW top AS SELECT word, count(*) AS n FROM words GROUP BY word;
INSERT INTO out SELECT upper(word) AS word FROM words;
";
const RIGHT: &str = "CREATE VIEW top AS SELECT word, count(*) AS n FROM words WHERE NOT bot GROUP BY word;
INSERT INTO out SELECT upper(word) AS word FROM words WHERE NOT bot;
";

fn program(dir: &Path, name: &str, out: &str, views: &str) {
    fs::write(dir.join(name), STREAM.replace("OUT", out) + views).unwrap();
}

fn records(dir: &Path, name: &str, words: &[(&str, bool)]) {
    fs::create_dir_all(dir.join("in")).unwrap();
    let lines: String = words.iter().map(|(word, bot)| format!("{{\"word\":\"{word}\",\"bot\":{bot}}}\n")).collect();
    fs::write(dir.join("in").join(name), lines).unwrap();
}

/// The lines of all files that a sink shows, sorted.
fn shown(dir: &Path) -> Vec<String> {
    let mut lines = Vec::new();
    for entry in fs::read_dir(dir).unwrap().map(Result::unwrap) {
        if !entry.file_name().to_string_lossy().starts_with('.') {
            lines.extend(fs::read_to_string(entry.path()).unwrap().lines().map(str::to_string));
        }
    }
    lines.sort();
    lines
}

const DRAIN: [&str; 6] = ["--trigger", "drain", "--headless", "--no-web", "--name", "top"];

fn drain(dir: &Path, program: &str, data: &str, more: &[&str]) -> crate::run::Ended {
    run(dir, &[&["run", program, "--data", data], &DRAIN[..], more].concat(), "")
}

fn ask(dir: &Path, data: &str, query: &str) -> String {
    run(dir, &["sql", "--data-dir", data, "-e", query], "").code(0).out.clone()
}

const STATE: &str = "SELECT word, \"count(*)\" AS n FROM state.top ORDER BY word";

/// The morning: three files, the last two with bots in them, read by a program that counts them.
fn morning(dir: &Path) {
    program(dir, "top.sql", "out", WRONG);
    records(dir, "1.json", &[("ebb", false), ("flow", false)]);
    drain(dir, "top.sql", "d", &[]).code(0);
    records(dir, "2.json", &[("ebb", true), ("spring", false)]);
    drain(dir, "top.sql", "d", &[]).code(0);
    records(dir, "3.json", &[("neap", true), ("flow", false), ("ebb", false)]);
    drain(dir, "top.sql", "d", &[]).code(0);
}

#[test]
fn a_bug_of_the_morning_is_mended_in_the_afternoon() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    morning(dir);
    // The mended program: told what it would mean, and refused until it is asked for.
    program(dir, "top.sql", "out", RIGHT);
    let plan = run(dir, &["plan", "top.sql", "--data-dir", "d"], "");
    let plan = &plan.code(0).out;
    for says in ["operator", "top", "aggregate", "keep", "its query reads other rows now", "--accept-changes"] {
        assert!(plan.contains(says), "{says}: {plan}");
    }
    let refused = drain(dir, "top.sql", "d", &[]);
    refused.code(1).says(&[
        "differs from the one whose state is kept",
        "tidemill run top.sql --name top --data d --accept-changes",
    ]);

    let list = run(dir, &["rewind", "--data-dir", "d"], "");
    assert!(list.code(0).out.contains("batches that are kept, 1 ("), "{list:?}");
    // Back to after the first file: what was right stays.
    let back = run(dir, &["rewind", "--to", "1", "--data-dir", "d"], "");
    assert!(back.code(0).out.contains("is back to batch 1 ("), "{back:?}");
    let plan = run(dir, &["plan", "top.sql", "--data-dir", "d"], "").code(0).out.clone();
    assert!(plan.contains("its files are moved aside, to out/.undone"), "{plan}");
    drain(dir, "top.sql", "d", &["--accept-changes"]).code(0);

    // The same as if the program had been right from the start.
    program(dir, "right.sql", "right", RIGHT);
    drain(dir, "right.sql", "e", &[]).code(0);
    assert_eq!(shown(&dir.join("out")), shown(&dir.join("right")));
    assert_eq!(ask(dir, "d", STATE), ask(dir, "e", STATE));
    assert!(ask(dir, "d", STATE).contains("ebb    | 2"), "{}", ask(dir, "d", STATE));
    // And what was undone is still there to be looked at.
    let aside: Vec<_> = fs::read_dir(dir.join("out/.undone")).unwrap().collect();
    assert_eq!(aside.len(), 1);
    // It goes on from there, and starts freely.
    records(dir, "4.json", &[("ebb", false)]);
    drain(dir, "top.sql", "d", &[]).code(0);
    assert!(ask(dir, "d", STATE).contains("ebb    | 3"));
}

#[test]
fn an_output_writes_elsewhere_under_its_name_when_that_is_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    morning(dir);
    let before = shown(&dir.join("out"));
    program(dir, "top.sql", "elsewhere", WRONG);
    let plan = run(dir, &["plan", "top.sql", "--data-dir", "d"], "");
    for says in ["files elsewhere (json)", "wrote to files out (json) so far", "--accept-changes"] {
        assert!(plan.code(0).out.contains(says), "{says}: {plan:?}");
    }
    drain(dir, "top.sql", "d", &[]).code(1).says(&["wrote to files out (json) so far"]);
    assert!(!dir.join("elsewhere").exists(), "nothing was changed");
    // Twice, and without a batch between: what the last batch staged is not looked for in the new place.
    drain(dir, "top.sql", "d", &["--accept-changes"]).code(0);
    drain(dir, "top.sql", "d", &[]).code(0);
    records(dir, "4.json", &[("turn", false)]);
    drain(dir, "top.sql", "d", &[]).code(0);
    drain(dir, "top.sql", "d", &[]).code(0);
    assert_eq!(shown(&dir.join("out")), before, "what it wrote stays");
    assert_eq!(shown(&dir.join("elsewhere")), ["{\"word\":\"TURN\"}"]);
    assert!(ask(dir, "d", STATE).contains("turn   | 1"), "{}", ask(dir, "d", STATE));
    // Another format in the same place is no move.
    let text = fs::read_to_string(dir.join("top.sql")).unwrap();
    fs::write(dir.join("top.sql"), text.replace("'elsewhere', format = 'json'", "'elsewhere', format = 'csv'"))
        .unwrap();
    records(dir, "5.json", &[("slack", false)]);
    drain(dir, "top.sql", "d", &[]).code(0);
    assert_eq!(shown(&dir.join("elsewhere")), ["SLACK", "word", "{\"word\":\"TURN\"}"]);
}

#[test]
fn the_beginning_needs_no_consent() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    morning(dir);
    program(dir, "top.sql", "out", RIGHT);
    run(dir, &["rewind", "--to", "0", "--data-dir", "d"], "").code(0);
    drain(dir, "top.sql", "d", &[]).code(0);
    program(dir, "right.sql", "right", RIGHT);
    drain(dir, "right.sql", "e", &[]).code(0);
    assert_eq!(shown(&dir.join("out")), shown(&dir.join("right")));
    assert_eq!(ask(dir, "d", STATE), ask(dir, "e", STATE));
}

#[test]
fn a_batch_is_shown_again_by_the_program_that_ran_it_and_by_another() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    morning(dir);
    let batches = ask(dir, "d", "SELECT * FROM state.\"top@1\" ORDER BY word");
    assert!(batches.contains("flow"), "{batches}");
    let ran = run(dir, &["replay-batch", "1", "--data-dir", "d", "--plan"], "");
    for says in [
        "read from words:",
        "state.top",
        "before, of the keys that changed:",
        "output insert-out:",
        "EBB",
        "plan of top:",
        "Nothing was written.",
    ] {
        assert!(ran.code(0).out.contains(says), "{says}: {ran:?}");
    }
    program(dir, "mended.sql", "out", RIGHT);
    let last = ran.out.lines().next().unwrap().to_string();
    assert!(last.starts_with("program top, batch 1 of "), "{last}");
    let mended = run(dir, &["replay-batch", "1", "--program", "mended.sql", "--data-dir", "d"], "");
    assert!(mended.code(0).out.contains("output insert-out:"), "{mended:?}");
    run(dir, &["replay-batch", "99", "--data-dir", "d"], "").code(1).says(&["batch 99 is not kept: batches 1 to"]);
}

/// All files below a directory with their bytes.
fn tree(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let (mut all, mut dirs) = (BTreeMap::new(), vec![dir.to_owned()]);
    while let Some(at) = dirs.pop() {
        for entry in fs::read_dir(at).unwrap().map(Result::unwrap) {
            if entry.path().is_dir() {
                dirs.push(entry.path());
            } else {
                all.insert(entry.path().display().to_string(), fs::read(entry.path()).unwrap());
            }
        }
    }
    all
}

#[test]
fn a_fork_of_a_running_program_goes_its_own_way() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    morning(dir);
    let quiet = ["run", "top.sql", "--headless", "--no-web", "--trigger", "asap", "--data", "d", "--name", "top"];
    let mut first = start(dir, &quiet, "");
    records(dir, "4.json", &[("now", false)]);
    first.wait_for("now 1");
    let before = shown(&dir.join("out"));
    let forked = run(dir, &["rewind", "--to", "1", "--fork", "f", "--data-dir", "d"], "");
    assert!(forked.code(0).out.contains("is copied to f, as after batch 1 ("), "{forked:?}");
    run(dir, &["rewind", "--to", "1", "--fork", "f", "--data-dir", "d"], "").code(1).says(&["f has data already"]);

    // It must not write where the first one does.
    program(dir, "mended.sql", "out", RIGHT);
    let refused = drain(dir, "mended.sql", "f", &[]);
    refused.code(1).says(&["the program that this is a copy of writes there, too"]);
    program(dir, "mended.sql", "forked", RIGHT);
    drain(dir, "mended.sql", "f", &["--accept-changes"]).code(0);
    program(dir, "right.sql", "right", RIGHT);
    drain(dir, "right.sql", "e", &[]).code(0);
    assert_eq!(ask(dir, "f", STATE), ask(dir, "e", STATE));
    // The copy shows what came after batch 1; the first has not changed at all.
    let with_first =
        [shown(&dir.join("forked")), vec!["{\"word\":\"EBB\"}".into(), "{\"word\":\"FLOW\"}".into()]].concat();
    assert_eq!(with_first.len(), shown(&dir.join("right")).len());
    assert_eq!(shown(&dir.join("out")), before);
    first.signal(Signal::INT);
    first.end().code(0);
    let kept = tree(&dir.join("d/programs"));
    drain(dir, "mended.sql", "f", &[]).code(0);
    assert_eq!(tree(&dir.join("d/programs")), kept);
}
