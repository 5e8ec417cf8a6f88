//! Dead letters as their owner meets them: counted, shown, run again after the fix.

use crate::run::{run, start};
use rustix::process::Signal;
use std::{collections::BTreeMap, fs, path::Path};

const BROKEN: &str = "\
CREATE STREAM posts (id BIGINT NOT NULL, n BIGINT) WITH (connector = 'files', path = 'in.json', format = 'json');
CREATE SINK out WITH (connector = 'files', path = 'out', format = 'json');
INSERT INTO out SELECT id, n, _offset FROM posts;
";

fn data<'a>(arguments: &[&'a str]) -> Vec<&'a str> {
    arguments.iter().copied().chain(["--data", "d"]).collect()
}

fn drain(dir: &Path, more: &[&str]) -> String {
    let arguments = [&["run", "p.sql", "--headless", "--no-web", "--trigger", "drain"], more].concat();
    run(dir, &data(&arguments), "").code(0).out.clone()
}

fn written(dir: &Path) -> Vec<String> {
    let mut lines = Vec::new();
    for file in fs::read_dir(dir.join("out")).unwrap().map(|file| file.unwrap()) {
        if file.file_name().to_string_lossy().starts_with('.') {
            continue;
        }
        lines.extend(fs::read_to_string(file.path()).unwrap().lines().map(str::to_string));
    }
    lines.sort();
    lines
}

#[test]
fn letters_are_listed_shown_and_run_again_after_the_fix() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path();
    fs::write(at.join("p.sql"), BROKEN).unwrap();
    fs::write(
        at.join("in.json"),
        "{\"id\":1,\"n\":7}\n{\"id\":2,\"n\":\"seven\"}\n{\"id\":3,\n{\"id\":4,\"n\":\"x\"}\n",
    )
    .unwrap();
    run(at, &data(&["dead", "list"]), "").code(1).says(&["d is no data directory"]);
    let out = drain(at, &[]);
    assert!(out.contains("3 refused"), "{out}");

    let list = run(at, &data(&["dead", "list"]), "");
    let list = &list.code(0).out;
    for text in ["posts", "in.json:15", "field \"n\": expected an integer, found \"seven\"", "byte 8: the record ends"]
    {
        assert!(list.contains(text), "{text}: {list}");
    }
    let counts = run(at, &data(&["dead", "list", "--by-reason"]), "");
    let words: Vec<&str> = counts.code(0).out.lines().nth(1).unwrap().split_whitespace().take(4).collect();
    assert_eq!(words, ["posts", "bad_value", "2", "0"], "{}", counts.out);
    let shown = run(at, &data(&["dead", "show", "0"]), "");
    assert!(shown.code(0).out.ends_with("{\"id\":2,\"n\":\"seven\"}") && shown.out.contains("offset     15"));
    let raw = run(at, &data(&["dead", "show", "--raw", "2"]), "");
    assert_eq!(raw.code(0).out, "{\"id\":4,\"n\":\"x\"}");
    run(at, &data(&["dead", "show", "9"]), "").code(1).says(&["there is no letter 9"]);
    let asked = run(at, &data(&["sql", "-e", "SELECT raw FROM p.dead WHERE reason LIKE '%seven%'"]), "");
    assert!(asked.code(0).out.contains("{\"id\":2,\"n\":\"seven\"}"), "{}", asked.out);

    run(at, &data(&["dead", "replay"]), "").code(1).says(&["say which letters"]);
    let dry = run(at, &data(&["dead", "replay", "--reason", "FIELD \"n\"", "--dry-run"]), "");
    assert!(dry.code(0).out.contains("would run again 2 letters (2 of stream posts)"), "{}", dry.out);
    fs::write(at.join("p.sql"), BROKEN.replace("n BIGINT", "n TEXT")).unwrap();
    let asked = run(at, &data(&["dead", "replay", "--reason", "field \"n\""]), "");
    assert!(asked.code(0).out.starts_with("asked to run again 2 letters"), "{}", asked.out);
    let again = run(at, &data(&["dead", "replay", "--all"]), "");
    assert!(again.code(0).out.contains("2 letters passed over"), "{}", again.out);
    drain(at, &[]);
    let offset = |id: u32, n: &str, at: u32| format!("{{\"id\":{id},\"n\":{n},\"_offset\":{at}}}");
    let want = [offset(1, "7", 0), offset(2, "\"seven\"", 15), offset(4, "\"x\"", 45)];
    assert_eq!(written(at), want, "the letters have their place");
    drain(at, &[]);
    assert_eq!(written(at), want, "once");
    let list = run(at, &data(&["dead", "list"]), "");
    assert_eq!(list.code(0).out.matches("replayed").count(), 3, "all were run again, one in vain: {}", list.out);
    let dead = run(at, &data(&["consume", "p.dead", "--from-beginning"]), "");
    assert_eq!(dead.code(0).out.lines().count(), 4, "which was refused again: {}", dead.out);
}

#[test]
fn a_running_program_takes_a_replay_and_is_asked_beside() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path();
    let program = BROKEN.to_string() + "CREATE VIEW total AS SELECT count(*) AS n FROM posts;";
    fs::write(at.join("p.sql"), program).unwrap();
    fs::write(at.join("in.json"), "{\"id\":1,\"n\":7}\n{\"id\":2,\"n\":\"seven\"}\n").unwrap();
    drain(at, &[]);
    let program = fs::read_to_string(at.join("p.sql")).unwrap().replace("n BIGINT", "n TEXT");
    fs::write(at.join("p.sql"), program).unwrap();
    let mut running = start(at, &data(&["run", "p.sql", "--headless", "--no-web", "--interval", "50ms"]), "");
    running.wait_for("total: 1 |");
    run(at, &data(&["dead", "replay", "--all"]), "").code(0);
    running.wait_for("total: 2 |");
    let count = run(at, &data(&["sql", "-e", "SELECT count(*) AS n FROM \"p.replayed\""]), "");
    assert!(count.code(0).out.contains(" 1 "), "{}", count.out);
    running.signal(Signal::TERM);
    running.end().code(0);
}

#[test]
fn too_many_letters_stop_the_program() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path();
    let bounded = BROKEN.replace(
        "format = 'json');\nCREATE SINK",
        "format = 'json', dead_stop_share = '0.1', dead_stop_over = '3');\nCREATE SINK",
    );
    fs::write(at.join("p.sql"), &bounded).unwrap();
    fs::write(at.join("in.json"), "{\"id\":1,\"n\":7}\n{\"id\":2,\"n\":\"seven\"}\n{\"id\":3}\n").unwrap();
    let arguments = data(&["run", "p.sql", "--headless", "--no-web", "--trigger", "drain"]);
    run(at, &arguments, "")
        .code(1)
        .says(&["33.3% of the last 3 records were refused", "found \"seven\" (partition in.json, offset 15)"]);
    assert!(written(at).is_empty(), "the batch has not happened");
    fs::write(at.join("p.sql"), bounded.replace("0.1", "0.5")).unwrap();
    run(at, &arguments, "").code(0);
    assert_eq!(written(at).len(), 2);
}

/// One record in a hundred is poison: the program stays up, and not one is lost or changed.
fn poison(records: usize) {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path();
    fs::write(at.join("p.sql"), BROKEN).unwrap();
    let (mut text, mut bad) = (Vec::new(), BTreeMap::new());
    for i in 0..records {
        let line = match i % 100 {
            13 if i % 3 == 0 => format!("{{\"id\":{i},\"n\":\"\u{0}\u{202e}{i}").into_bytes(),
            13 if i % 3 == 1 => [b"\xff\xfe", i.to_string().as_bytes()].concat(),
            13 => format!("{{\"n\":{i}}}").into_bytes(),
            _ => format!("{{\"id\":{i},\"n\":{}}}", i * 7).into_bytes(),
        };
        if i % 100 == 13 {
            bad.insert(text.len() as u64, line.clone());
        }
        text.extend(line);
        text.push(b'\n');
    }
    fs::write(at.join("in.json"), &text).unwrap();
    let out = drain(at, &[]);
    assert!(out.contains(&format!("{records} records")) && out.contains(&format!("{} refused", bad.len())), "{out}");
    let letters = run(at, &data(&["consume", "p.dead", "--from-beginning"]), "");
    let mut got = BTreeMap::new();
    for line in letters.code(0).out.lines() {
        let letter: serde_json::Value = serde_json::from_str(line).unwrap();
        let raw = letter["raw"].as_str().unwrap();
        let bytes = match raw.strip_prefix("\\x") {
            Some(hex) => (0..hex.len()).step_by(2).map(|i| u8::from_str_radix(&hex[i..i + 2], 16).unwrap()).collect(),
            None => raw.as_bytes().to_vec(),
        };
        assert!(letter["batch"].as_u64().is_some_and(|batch| batch > 0) && letter["stream"] == "posts");
        assert!(got.insert(letter["offset"].as_u64().unwrap(), bytes).is_none(), "twice: {line}");
    }
    assert_eq!(got.len(), records / 100);
    assert!(got == bad, "raw bytes and offsets are those of the input");
    assert_eq!(written(at).len(), records - bad.len());
}

#[test]
fn one_record_in_a_hundred_is_poison() {
    poison(20_000);
}

#[test]
#[ignore = "a million records: run by ci/reliability"]
fn bad_poison_in_a_million() {
    poison(1_000_000);
}

#[test]
fn a_type_that_is_changed_and_rebuilt_counts_each_record_once_and_loses_none_in_silence() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path();
    let write = |ty: &str| {
        let text = format!(
            "CREATE STREAM s (k TEXT NOT NULL, n {ty}) WITH (connector = 'files', path = 'in.json', format = 'json');\n\
             CREATE VIEW v AS SELECT k, count(*) AS c, sum(n) AS t FROM s GROUP BY k;\n"
        );
        fs::write(at.join("p.sql"), text).unwrap();
    };
    let state = || run(at, &data(&["sql", "-e", "SELECT \"count(*)\" AS c FROM state.v"]), "").code(0).out.clone();
    write("BIGINT");
    fs::write(at.join("in.json"), "{\"k\":\"a\",\"n\":1}\n{\"k\":\"a\",\"n\":1.5}\n").unwrap();
    assert!(drain(at, &[]).contains("1 refused"));
    write("DOUBLE");
    let plan = run(at, &data(&["plan", "p.sql"]), "");
    assert!(plan.code(0).out.contains("dead letters stay out until they are run again"), "{}", plan.out);
    drain(at, &["--accept-changes"]);
    assert!(state().contains(" 1 "), "the letter waits: {}", state());
    run(at, &data(&["dead", "replay", "--all"]), "").code(0);
    drain(at, &[]);
    assert!(state().contains(" 2 "), "each once: {}", state());

    // And back: what the narrower type refuses is told, and kept.
    write("BIGINT");
    let arguments = data(&["run", "p.sql", "--headless", "--no-web", "--trigger", "drain", "--accept-changes"]);
    let ended = run(at, &arguments, "");
    ended.code(0).says(&["a rebuild left out records that the columns of now refuse", "1 bad_value"]);
    assert!(state().contains(" 1 "), "{}", state());
    let list = run(at, &data(&["dead", "list"]), "");
    assert!(list.code(0).out.contains("rebuild: field \"n\"") && list.out.contains("kept only"), "{}", list.out);
    let again = run(at, &data(&["dead", "replay", "--all"]), "");
    assert!(again.code(0).out.contains("1 letter can't be run again: a rebuild left it out"), "{}", again.out);
    write("DOUBLE");
    drain(at, &["--accept-changes"]);
    assert!(state().contains(" 2 "), "nothing is lost: {}", state());
}
