//! Programs between topics of a real Kafka: killed again and again, each record is there once; commands on its topics.
//!
//! Against the server that `TIDEMILL_KAFKA` names: skipped without, unless `TIDEMILL_SERVICES=required`.
//! `cargo test --workspace --features tidemill/full --test it kafka::`

use crate::run::{run, start};
use rustix::process::Signal;
use std::{collections::BTreeSet, fs, path::Path};
use tidemill::connectors::kafka::probe;

const ROWS: u32 = 30_000;
const KILLS: usize = 24;

/// What consumers of committed records see, as numbers.
fn numbers(brokers: &str, topic: &str) -> Vec<u32> {
    let number = |value: &str| value.split(['"', ':', '}']).find_map(|part| part.parse().ok()).unwrap();
    probe::committed(brokers, topic).iter().map(|record| number(&record.3)).collect()
}

/// Runs a program to its end, having killed it many times; each of `0..ROWS` is in `topic` once.
fn kill_and_check(dir: &Path, brokers: &str, program: &str, topic: &str) {
    fs::write(dir.join("p.sql"), program).unwrap();
    let plan = run(dir, &["plan", "p.sql", "--data", "d"], "");
    assert!(plan.code(0).out.contains("insert-out: exactly once into kafka "), "{}", plan.out);
    let arguments = ["run", "p.sql", "--headless", "--no-web", "--data", "d"];
    let (mut grown, mut before) = (0, 0);
    for kill in 0..KILLS {
        let mut running = start(dir, &[&arguments[..], &["--interval", "10ms"]].concat(), "");
        // After one batch or several: in the middle of whatever it does then.
        for _ in 0..=kill % 4 {
            running.wait_for("total: ");
        }
        running.signal(Signal::KILL);
        let _killed = running.end();
        let seen = numbers(brokers, topic);
        assert_eq!(seen.iter().collect::<BTreeSet<_>>().len(), seen.len(), "kill {kill}: nothing twice");
        grown += usize::from(seen.len() > before);
        before = seen.len();
    }
    assert!(grown > KILLS / 2, "{grown} of {KILLS} kills came while rows were written");
    assert!(before < ROWS as usize, "the program did not end before it was killed enough");
    run(dir, &[&arguments[..], &["--trigger", "drain"]].concat(), "").code(0);
    let mut seen = numbers(brokers, topic);
    seen.sort_unstable();
    assert_eq!(seen, (0..ROWS).collect::<Vec<_>>(), "nothing lost, nothing twice");
    let staged = dir.join("d/programs/p/staged/insert-out");
    assert_eq!(fs::read_dir(staged).unwrap().count(), 0, "nothing staged is left");
}

#[test]
fn kafka_has_each_row_once_whenever_the_program_is_killed() {
    let Some(brokers) = probe::server() else { return };
    for topic in ["kills-in", "kills-out"] {
        probe::topic(&brokers, topic, 3, &[]);
    }
    probe::forget(&brokers, "tidemill.p.insert-out");
    for partition in 0..3 {
        let own = (0..ROWS).filter(|n| n % 3 == partition);
        let records = own.map(|n| (Some(n.to_string()), format!("{{\"n\":{n}}}")));
        // Of one that is committed, and so has offsets without a record at its end.
        probe::produce(&brokers, "kills-in", partition.cast_signed(), records, Some(true));
    }
    let dir = tempfile::tempdir().unwrap();
    let program = format!(
        "CREATE STREAM numbers (n BIGINT, k TEXT) WITH (connector = 'kafka', brokers = '{brokers}', topic = 'kills-in',
             format = 'json', key_column = 'k', partition_records = '100', group = 'kills-lag');
         CREATE SINK out WITH (connector = 'kafka', brokers = '{brokers}', topic = 'kills-out', key_column = 'n',
             guarantee = 'exactly once');
         INSERT INTO out SELECT n FROM numbers WHERE k = CAST(n AS TEXT);
         CREATE VIEW total AS SELECT count(*) AS n FROM numbers;"
    );
    kill_and_check(dir.path(), &brokers, &program, "kills-out");
    for partition in 0..3 {
        let lag = probe::group_offset(&brokers, "kills-lag", "kills-in", partition);
        assert!(lag.is_some_and(|at| at > 0), "offsets are in the group for those who look");
    }
}

#[test]
fn kafka_is_read_up_to_a_place_for_a_backfill() {
    let Some(brokers) = probe::server() else { return };
    probe::topic(&brokers, "backfill", 2, &[]);
    for partition in 0..2 {
        let records = (0..50).map(|n| (None, format!("{{\"n\":{n}}}")));
        probe::produce(&brokers, "backfill", partition, records, None);
    }
    let dir = tempfile::tempdir().unwrap();
    let program = format!(
        "CREATE STREAM numbers (n BIGINT) WITH (connector = 'kafka', brokers = '{brokers}', topic = 'backfill', \
             format = 'json', start = 'backfill-0:10, backfill-1:20', until = 'backfill-0:40, backfill-1:50');
         CREATE SINK out WITH (connector = 'files', path = 'out', format = 'json');
         INSERT INTO out SELECT n, _partition, _offset FROM numbers;"
    );
    fs::write(dir.path().join("p.sql"), program).unwrap();
    let arguments = ["run", "p.sql", "--headless", "--no-web", "--data", "d", "--trigger", "drain"];
    run(dir.path(), &arguments, "").code(0);
    let files =
        fs::read_dir(dir.path().join("out")).unwrap().map(|file| fs::read_to_string(file.unwrap().path()).unwrap());
    let mut lines: Vec<String> = files.flat_map(|text| text.lines().map(str::to_string).collect::<Vec<_>>()).collect();
    lines.sort();
    let want =
        |partition: u32, n: u32| format!("{{\"n\":{n},\"_partition\":\"backfill-{partition}\",\"_offset\":{n}}}");
    let mut wanted: Vec<String> = (10..40).map(|n| want(0, n)).chain((20..50).map(|n| want(1, n))).collect();
    wanted.sort();
    assert_eq!(lines, wanted);
}

#[test]
fn kafka_topics_are_handled_as_those_of_the_log() {
    let Some(brokers) = probe::server() else { return };
    let dir = tempfile::tempdir().unwrap();
    let on = |arguments: &[&str], input: &str| run(dir.path(), &[arguments, &["--kafka", &brokers]].concat(), input);
    // Of an earlier run.
    let _gone = on(&["topic", "delete", "by-hand"], "");
    // One that was deleted goes in its own time.
    let make = || on(&["topic", "create", "by-hand", "--partitions", "2", "--keep-for", "7d"], "");
    let made = (0..100).map(|_| make()).find(|made| made.status.success()).unwrap();
    assert_eq!(made.out, "made topic by-hand");
    on(&["topic", "create", "by-hand"], "").code(1).says(&["there is a topic `by-hand` already"]);
    let kept = on(&["produce", "by-hand", "--partition", "1"], "to be\nor not\r\nto be\n");
    assert_eq!(kept.code(0).out, "kept 3 lines in by-hand");
    let shown = on(&["consume", "by-hand", "--from-beginning", "--offsets"], "");
    assert_eq!(shown.code(0).out, "1:0\tto be\n1:1\tor not\n1:2\tto be");
    assert_eq!(on(&["consume", "by-hand", "--max", "1"], "").code(0).out, "to be");
    let list = on(&["topic", "list"], "");
    assert!(list.code(0).out.lines().any(|line| line.split_whitespace().eq(["by-hand", "2", "3"])), "{}", list.out);
    let described = on(&["topic", "describe", "by-hand"], "");
    assert!(described.code(0).out.contains("topic by-hand\n"), "{}", described.out);
    on(&["consume", "by-hand", "--partition", "2"], "").code(1).says(&["has no partition 2: it has 2 of them"]);
    assert_eq!(on(&["topic", "delete", "by-hand"], "").code(0).out, "deleted topic by-hand");
    assert!(!dir.path().join("tidemill-data").exists(), "no data directory is made");
}
