//! What a rewind takes back, by the command line: topics, partitioned files, letters that were run again, and
//! all of it in directories that were restored or copied. The oracle is a program that was right from the start.

use crate::run::{Ended, run};
use std::{fs, path::Path};

const STREAM: &str =
    "CREATE STREAM words (word TEXT NOT NULL, bot BOOLEAN) WITH (connector = 'files', path = 'in', format = 'json');
CREATE SINK loud WITH (connector = 'topic', topic = 'loud');
CREATE STREAM heard (word TEXT) WITH (connector = 'topic', topic = 'loud');
CREATE VIEW echo AS SELECT word, count(*) AS n FROM heard GROUP BY word;
";
const FILES: &str = "CREATE SINK out WITH (connector = 'files', path = 'OUT', format = 'csv', partition_by = 'first');
INSERT INTO out SELECT substr(word, 1, 1) AS first, word FROM words WHERE_RIGHT;
";
const WRONG: &str = "INSERT INTO loud SELECT upper(word) AS word FROM words;\n";
const RIGHT: &str = "INSERT INTO loud SELECT upper(word) AS word FROM words WHERE NOT bot;\n";

fn program(dir: &Path, name: &str, parts: &[&str]) {
    fs::write(dir.join(name), parts.concat()).unwrap();
}

fn records(dir: &Path, name: &str, words: &[(&str, bool)]) {
    fs::create_dir_all(dir.join("in")).unwrap();
    let lines: String = words.iter().map(|(word, bot)| format!("{{\"word\":\"{word}\",\"bot\":{bot}}}\n")).collect();
    fs::write(dir.join("in").join(name), lines).unwrap();
}

fn drain(dir: &Path, program: &str, data: &str, more: &[&str]) -> Ended {
    let always = ["run", program, "--data", data, "--trigger", "drain", "--headless", "--no-web"];
    let name = if more.contains(&"--name") { &[][..] } else { &["--name", "top"] };
    run(dir, &[&always[..], name, more].concat(), "")
}

fn rewind(dir: &Path, data: &str, more: &[&str]) -> Ended {
    let name = if more.contains(&"--name") { &[][..] } else { &["--name", "top"] };
    run(dir, &[&["rewind", "--data", data], name, more].concat(), "")
}

fn ask(dir: &Path, data: &str, query: &str) -> String {
    run(dir, &["sql", "--data-dir", data, "-e", query], "").code(0).out.clone()
}

/// What others see of the topic, in order.
fn consumed(dir: &Path, data: &str) -> String {
    run(dir, &["consume", "loud", "--from-beginning", "--data", data], "").code(0).out.clone()
}

/// What others see of the topic, sorted, as files that one batch reads go in side by side; and what the program has
/// heard of it.
fn heard(dir: &Path, data: &str) -> (Vec<String>, String) {
    let mut rows: Vec<String> = consumed(dir, data).lines().map(str::to_string).collect();
    rows.sort();
    (rows, ask(dir, data, "SELECT word, \"count(*)\" AS n FROM state.\"top/echo\" ORDER BY word"))
}

/// The last batch of a program.
fn last(dir: &Path, data: &str) -> u64 {
    let list = rewind(dir, data, &[]).code(0).out.clone();
    let batch = list.lines().next().unwrap().split(" to ").nth(1).unwrap().split(' ').next().unwrap();
    batch.parse().unwrap_or_else(|_| panic!("{list}"))
}

/// Three files, the last two with bots in them, read by a program that shows bots, too.
fn morning(dir: &Path, parts: &[&str]) -> u64 {
    program(dir, "top.sql", &[&[STREAM, WRONG], parts].concat());
    records(dir, "1.json", &[("ebb", false), ("flow", false)]);
    drain(dir, "top.sql", "d", &[]).code(0);
    let first = last(dir, "d");
    records(dir, "2.json", &[("ebb", true), ("spring", false)]);
    drain(dir, "top.sql", "d", &[]).code(0);
    records(dir, "3.json", &[("neap", true), ("flow", false), ("ebb", false)]);
    drain(dir, "top.sql", "d", &[]).code(0);
    first
}

/// The topic of a program that was right from the start.
fn right(dir: &Path) -> (Vec<String>, String) {
    program(dir, "right.sql", &[STREAM, RIGHT]);
    drain(dir, "right.sql", "right.d", &[]).code(0);
    heard(dir, "right.d")
}

/// Lines of the files below a directory, each with the directory that it lies in, sorted.
fn lines(dir: &Path, below: &str, into: &mut Vec<String>) {
    for entry in fs::read_dir(dir.join(below)).unwrap().map(Result::unwrap) {
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with('.') {
            continue;
        }
        if entry.path().is_dir() {
            lines(dir, &format!("{below}/{name}"), into);
        } else {
            let text = fs::read_to_string(entry.path()).unwrap();
            // Below the heading, of which each file has its own.
            into.extend(text.lines().skip(1).map(|line| format!("{below} {line}")));
        }
    }
    into.sort();
}

#[test]
fn a_topic_and_partitioned_files_show_what_a_right_program_would_have() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let files = FILES.replace("OUT", "out");
    let first = morning(dir, &[&files.replace("WHERE_RIGHT", "")]);
    let wrong = consumed(dir, "d");
    assert!(wrong.contains("NEAP"), "{wrong}");

    let to = first.to_string();
    let dry = rewind(dir, "d", &["--to", &to, "--dry-run"]);
    for says in
        ["would go back to batch", "(topic loud): 5 rows are cut off, at offset 2 of partition 0", "moved aside"]
    {
        assert!(dry.code(0).out.contains(says), "{says}: {}", dry.out);
    }
    assert_eq!(consumed(dir, "d"), wrong, "nothing was changed");
    let back = rewind(dir, "d", &["--to", &to]);
    assert!(back.code(0).out.contains("5 rows are cut off, at offset 2 of partition 0"), "{}", back.out);
    program(dir, "top.sql", &[STREAM, RIGHT, &files.replace("WHERE_RIGHT", "WHERE NOT bot")]);
    let plan = run(dir, &["plan", "top.sql", "--data-dir", "d"], "").code(0).out.clone();
    assert!(plan.contains("5 rows are cut off, at offset 2 of partition 0"), "{plan}");
    drain(dir, "top.sql", "d", &[]).code(0);

    program(dir, "right.sql", &[STREAM, RIGHT, &FILES.replace("OUT", "right").replace("WHERE_RIGHT", "WHERE NOT bot")]);
    drain(dir, "right.sql", "right.d", &[]).code(0);
    assert_eq!(heard(dir, "d"), heard(dir, "right.d"));
    let (mut got, mut want) = (Vec::new(), Vec::new());
    lines(&dir.join("out"), ".", &mut got);
    lines(&dir.join("right"), ".", &mut want);
    assert_eq!(got, want);
    let verified = run(dir, &["verify", "--data", "d"], "");
    assert!(verified.code(0).out.ends_with("all is whole"), "{}", verified.out);

    // It goes on, and back once more: all of it again, from the beginning.
    records(dir, "4.json", &[("slack", false)]);
    drain(dir, "top.sql", "d", &[]).code(0);
    rewind(dir, "d", &["--to", "0"]).code(0);
    drain(dir, "top.sql", "d", &[]).code(0);
    drain(dir, "right.sql", "right.d", &[]).code(0);
    assert_eq!(heard(dir, "d"), heard(dir, "right.d"));
}

const READER: &str = "CREATE STREAM loud WITH (connector = 'topic', topic = 'loud');
CREATE VIEW total AS SELECT word, count(*) AS n FROM loud GROUP BY word;
";

#[test]
fn a_topic_that_another_program_has_read_is_cut_only_when_that_goes_back_as_well() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let to = morning(dir, &[]).to_string();
    program(dir, "q.sql", &[READER]);
    let q = |more: &[&str]| drain(dir, "q.sql", "d", &[&["--name", "q"], more].concat());
    q(&[]).code(0);
    let wrong = consumed(dir, "d");
    let says =
        ["topic `loud` can't be taken back", "program `q` has read partition 0 up to offset 7, as stream `loud`"];
    for more in [&["--to", to.as_str()][..], &["--to", &to, "--dry-run"]] {
        rewind(dir, "d", more).code(1).says(&says);
    }
    rewind(dir, "d", &["--to", &to]).code(1).says(&["--keep-topics"]);

    // Both go back, and the reader reads again before the writer has started: too early.
    rewind(dir, "d", &["--name", "q", "--to", "0"]).code(0);
    rewind(dir, "d", &["--to", &to]).code(0);
    q(&[]).code(0);
    program(dir, "top.sql", &[STREAM, RIGHT]);
    drain(dir, "top.sql", "d", &[]).code(1).says(&["program `q` has read partition 0", "--accept-changes"]);
    assert_eq!(consumed(dir, "d"), wrong, "nothing was cut");
    rewind(dir, "d", &["--name", "q", "--to", "0"]).code(0);
    drain(dir, "top.sql", "d", &[]).code(0);
    q(&[]).code(0);
    assert_eq!(heard(dir, "d"), right(dir));
    let total = "SELECT word, \"count(*)\" AS n FROM state.\"q/total\" ORDER BY word";
    let echo = "SELECT word, \"count(*)\" AS n FROM state.\"top/echo\" ORDER BY word";
    assert_eq!(ask(dir, "d", total), ask(dir, "d", echo), "the reader has read what is there now, each row once");
}

#[test]
fn rows_that_are_to_stay_stay_and_what_is_computed_anew_comes_after_them() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let to = morning(dir, &[]).to_string();
    let wrong = consumed(dir, "d");
    let back = rewind(dir, "d", &["--to", &to, "--keep-topics"]);
    assert!(back.code(0).out.contains("its rows stay, and what is computed anew comes after them"), "{}", back.out);
    program(dir, "top.sql", &[STREAM, RIGHT]);
    let plan = run(dir, &["plan", "top.sql", "--data-dir", "d"], "").code(0).out.clone();
    assert!(plan.contains("as the rewind said"), "{plan}");
    drain(dir, "top.sql", "d", &[]).code(0);
    let rows = consumed(dir, "d");
    let anew = rows.strip_prefix(&wrong).unwrap_or_else(|| panic!("{rows}"));
    assert_eq!(anew.lines().filter(|line| !line.is_empty()).count(), 3, "{anew}");
    // The next rewind cuts what came after them only.
    rewind(dir, "d", &["--to", &to]).code(0);
    drain(dir, "top.sql", "d", &[]).code(0);
    let lines = |text: &str| text.lines().map(str::to_string).collect::<std::collections::BTreeSet<_>>();
    let again = consumed(dir, "d");
    assert!(again.starts_with(&wrong) && again.len() == rows.len() && lines(&again) == lines(&rows), "{again}");
}

const PLAIN: &str =
    "CREATE STREAM words (word TEXT NOT NULL, bot BOOLEAN) WITH (connector = 'files', path = 'in', format = 'json');
CREATE SINK loud WITH (connector = 'topic', topic = 'loud');
";

#[test]
fn a_topic_that_was_deleted_begins_anew_and_one_that_lost_rows_is_not_appended_to() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    program(dir, "top.sql", &[PLAIN, WRONG]);
    records(dir, "1.json", &[("ebb", false)]);
    drain(dir, "top.sql", "d", &[]).code(0);
    let to = last(dir, "d").to_string();
    records(dir, "2.json", &[("flow", false)]);
    drain(dir, "top.sql", "d", &[]).code(0);
    run(dir, &["topic", "delete", "loud", "--data", "d"], "").code(0);
    drain(dir, "top.sql", "d", &[]).code(0);
    records(dir, "3.json", &[("slack", false)]);
    drain(dir, "top.sql", "d", &[]).code(0);
    let rows = run(dir, &["consume", "loud", "--from-beginning", "--data", "d"], "");
    assert_eq!(rows.code(0).out.lines().count(), 1, "{}", rows.out);
    // Where the rows of before lay says nothing any more.
    rewind(dir, "d", &["--to", &to]).code(1).says(&["did not note where their rows lie", "--keep-topics"]);
    // Files of it are lost from outside: that is told, with the gap.
    for entry in fs::read_dir(dir.join("d/log/loud/0")).unwrap() {
        fs::remove_file(entry.unwrap().path()).unwrap();
    }
    drain(dir, "top.sql", "d", &[]).code(1).says(&["topic `loud` partition 0 ends at offset 0", "[0, 1) is gone"]);
    let verified = run(dir, &["verify", "--data", "d"], "");
    assert!(
        verified.code(1).out.contains("program `top` has filled it up to offset 1, and it ends at 0"),
        "{}",
        verified.out
    );
}

const BROKEN: &str =
    "CREATE STREAM posts (id BIGINT NOT NULL, n BIGINT NOT NULL) WITH (connector = 'files', path = 'posts', format = 'json');
CREATE SINK out WITH (connector = 'topic', topic = 'clean');
INSERT INTO out SELECT id, coalesce(n, 0) AS n FROM posts;
";

fn clean(dir: &Path, data: &str) -> Vec<String> {
    let rows = run(dir, &["consume", "clean", "--from-beginning", "--data", data], "").code(0).out.clone();
    let mut rows: Vec<String> = rows.lines().map(str::to_string).collect();
    rows.sort();
    rows
}

/// A record is refused by a batch, and run again by a later one after the fix. Gives the batches before, with the
/// refusal, and before the replay.
fn refused_and_run_again(dir: &Path) -> [u64; 2] {
    fs::create_dir_all(dir.join("posts")).unwrap();
    program(dir, "p.sql", &[BROKEN]);
    fs::write(dir.join("posts/1.json"), "{\"id\":1,\"n\":7}\n").unwrap();
    drain(dir, "p.sql", "d", &[]).code(0);
    let before = last(dir, "d");
    fs::write(dir.join("posts/2.json"), "{\"id\":2}\n{\"id\":3,\"n\":8}\n").unwrap();
    drain(dir, "p.sql", "d", &[]).code(0);
    let refused = last(dir, "d");
    program(dir, "p.sql", &[&BROKEN.replace("n BIGINT NOT NULL", "n BIGINT")]);
    run(dir, &["dead", "replay", "--all", "--data", "d"], "").code(0);
    fs::write(dir.join("posts/3.json"), "{\"id\":4,\"n\":9}\n").unwrap();
    drain(dir, "p.sql", "d", &[]).code(0);
    assert_eq!(clean(dir, "d").len(), 4);
    [before, refused]
}

#[test]
fn a_letter_that_was_run_again_is_one_record_whatever_is_rewound() {
    for which in 0..3 {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        let batches = refused_and_run_again(dir);
        let want = clean(dir, "d");
        drain(dir, "p.sql", "right.d", &[]).code(0);
        assert_eq!(want, clean(dir, "right.d"));
        let to = [0, batches[0], batches[1]][which];
        rewind(dir, "d", &["--to", &to.to_string()]).code(0);
        drain(dir, "p.sql", "d", &[]).code(0);
        assert_eq!(clean(dir, "d"), want, "back to {to}");
        let list = run(dir, &["dead", "list", "--data", "d"], "").code(0).out.clone();
        let again = run(dir, &["dead", "replay", "--all", "--again", "--data", "d"], "").code(0).out.clone();
        if which == 2 {
            // The batch that refused it still counts, and so does its letter.
            assert!(list.contains("replayed") && !list.contains("undone"), "{list}");
            assert!(again.contains("asked to run again 1 letter"), "{again}");
        } else {
            assert!(list.contains("undone"), "{list}");
            assert!(
                again.contains("its batch was undone by a rewind") && again.contains("nothing to run again"),
                "{again}"
            );
            drain(dir, "p.sql", "d", &[]).code(0);
            assert_eq!(clean(dir, "d"), want, "back to {to}, and asked for it again");
        }
    }
}

#[test]
fn a_request_that_waits_while_its_batch_is_undone_runs_nothing_twice() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let [before, _] = refused_and_run_again(dir);
    let want = clean(dir, "d");
    run(dir, &["dead", "replay", "--all", "--again", "--data", "d"], "").code(0);
    rewind(dir, "d", &["--to", &before.to_string()]).code(0);
    drain(dir, "p.sql", "d", &[]).code(0);
    assert_eq!(clean(dir, "d"), want);
}

#[test]
fn a_batch_that_read_letters_again_is_shown_with_them() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let [_, refused] = refused_and_run_again(dir);
    let (mut shown, end) = (Vec::new(), last(dir, "d"));
    for batch in refused + 1..=end {
        let batch = batch.to_string();
        let ran = run(dir, &["replay-batch", &batch, "--data", "d", "--name", "top"], "").code(0).out.clone();
        if ran.contains("//replayed[0, 1)") {
            let output = ran.split("output out:").nth(1).or_else(|| ran.split("\noutput ").nth(1)).unwrap();
            assert!(output.contains('2') && !ran.contains("refused:"), "{ran}");
            shown.push(batch);
        }
    }
    assert_eq!(shown.len(), 1, "one batch read it");
    assert_eq!(clean(dir, "d").len(), 4, "nothing was written");
}

#[test]
fn a_restored_directory_goes_back_and_is_copied_as_the_first_one() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let to = morning(dir, &[]).to_string();
    run(dir, &["backup", "b", "--data", "d"], "").code(0);
    for data in ["r", "s"] {
        run(dir, &["restore", "b", "--data", data], "").code(0);
        assert_eq!(heard(dir, data), heard(dir, "d"));
    }
    program(dir, "top.sql", &[STREAM, RIGHT]);
    let right = right(dir);
    rewind(dir, "r", &["--to", &to]).code(0);
    drain(dir, "top.sql", "r", &[]).code(0);
    assert_eq!(heard(dir, "r"), right);

    // A copy of a restored directory, gone back: its topics are its own, and are cut.
    let forked = rewind(dir, "s", &["--to", &to, "--fork", "f"]);
    assert!(forked.code(0).out.contains("is copied to f"), "{}", forked.out);
    let first = heard(dir, "s");
    drain(dir, "top.sql", "f", &[]).code(0);
    assert_eq!(heard(dir, "f"), right);
    assert_eq!(heard(dir, "s"), first, "the first one is as it was");
    // And one of a directory that was rewound and has run since; of now, with outputs elsewhere.
    rewind(dir, "r", &["--fork", "g"]).code(0);
    records(dir, "4.json", &[("slack", false)]);
    for data in ["g", "r"] {
        drain(dir, "top.sql", data, &[]).code(0);
    }
    assert_eq!(heard(dir, "g"), heard(dir, "r"));
    let verified = run(dir, &["verify", "--data", "g"], "");
    assert!(verified.code(0).out.ends_with("all is whole"), "{}", verified.out);
}

#[test]
fn a_copy_of_now_writes_its_files_elsewhere_and_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let files = FILES.replace("WHERE_RIGHT", "");
    morning(dir, &[&files.replace("OUT", "out")]);
    rewind(dir, "d", &["--fork", "f"]).code(0);
    drain(dir, "top.sql", "f", &[]).code(1).says(&["the program that this is a copy of writes there, too"]);
    // Also from the beginning, where no program had any output yet.
    rewind(dir, "d", &["--to", "0", "--fork", "g"]).code(0);
    drain(dir, "top.sql", "g", &[]).code(1).says(&["the program that this is a copy of writes there, too"]);
    program(dir, "top.sql", &[STREAM, WRONG, &files.replace("OUT", "forked")]);
    records(dir, "4.json", &[("slack", false)]);
    drain(dir, "top.sql", "f", &[]).code(0);
    let mut got = Vec::new();
    lines(&dir.join("forked"), ".", &mut got);
    assert_eq!(got.iter().filter(|line| line.contains("slack")).count(), 1, "{got:?}");
}
