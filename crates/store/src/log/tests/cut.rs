//! Rows are taken back from the end; the machine stops at every operation of that.

use super::*;
use crate::disk::Fault;
use std::collections::BTreeMap;

/// A topic of `count` rows in appends of five, with small segments, the filled ones of which are merged.
fn filled(disk: &SimDisk, count: i64, merged: bool) -> Log {
    let log = quiet(disk).unwrap();
    let topic = log.create_topic("t", &config(Sync::Always)).unwrap();
    for from in (0..count).step_by(5) {
        topic.append(0, &rows(from, 5, 90), Some(&(from + 5).to_string())).unwrap();
    }
    topic.sync_to(0, topic.end(0)).unwrap();
    if merged {
        tidy(&topic);
    }
    log
}

#[test]
fn a_partition_that_was_cut_is_one_that_never_had_more() {
    for merged in [false, true] {
        for to in [0, 1, 5, 36, 37, 40, 77, 199, 200] {
            let disk = SimDisk::new();
            let log = filled(&disk, 200, merged);
            let topic = log.topic("t").unwrap();
            topic.cut(0, Offset(to), "cut").unwrap();
            let whole = |topic: &Topic, what: &str| {
                assert_eq!(read(topic, 0, to).unwrap(), (0..to.cast_signed()).collect::<Vec<_>>(), "{what} {to}");
                assert_eq!((topic.end(0), topic.durable_end(0)), (Offset(to), Offset(to)), "{what} {to}");
                assert_eq!(topic.resume(0).as_deref(), Some("cut"), "{what} {to}");
                assert_eq!(topic.damage(0), [], "{what} {to}");
                assert!(read(topic, to, to + 1).is_err(), "{what} {to}");
            };
            whole(&topic, "cut at once");
            // What is found after the power went, and after the log was closed.
            let found = quiet(&disk.fork().crash(to)).unwrap();
            whole(&found.topic("t").unwrap(), "after a crash");
            drop((topic, log));
            let log = quiet(&disk).unwrap();
            let topic = log.topic("t").unwrap();
            whole(&topic, "opened again");
            // It goes on from there, with other rows under the offsets, and fills segments.
            topic.append(0, &rows(1000, 60, 90), Some("on")).unwrap();
            topic.append(0, &rows(1060, 60, 90), Some("on")).unwrap();
            topic.sync_to(0, topic.end(0)).unwrap();
            tidy(&topic);
            let want: Vec<i64> = (0..to.cast_signed()).chain(1000..1120).collect();
            for topic in [topic, quiet(&disk.fork().crash(3)).unwrap().topic("t").unwrap()] {
                forget_cache(&topic);
                assert_eq!(read(&topic, 0, to + 120).unwrap(), want, "merged {merged}, cut at {to}");
                assert_eq!(topic.resume(0).as_deref(), Some("on"));
            }
        }
    }
}

#[test]
fn a_crash_at_every_operation_of_a_cut_leaves_all_rows_or_those_before_it() {
    let before = SimDisk::new();
    let log = filled(&before, 120, true);
    drop(log);
    let life = |disk: &SimDisk| -> Result<()> {
        let log = quiet(disk)?;
        let done = log.topic("t").unwrap().cut(0, Offset(38), "cut");
        // The process dies with the machine.
        std::mem::forget(log);
        done
    };
    let whole = before.fork();
    life(&whole).unwrap();
    let mut seen = BTreeMap::new();
    for (op, seed) in (0..whole.ops()).flat_map(|op| (0..6).map(move |seed| (op, seed))) {
        let disk = before.fork();
        disk.fail_at(op, Fault::Crash);
        assert!(life(&disk).is_err() || disk.is_dead());
        let what = format!("crash at {op}, seed {seed}");
        // A second one, while the first is recovered from.
        let again = disk.crash(seed);
        again.fail_at(op % 7, Fault::Crash);
        drop(quiet(&again));
        let log = quiet(&again.crash(seed + 1)).unwrap_or_else(|e| panic!("{what}: {}", e.chain()));
        let topic = log.topic("t").unwrap();
        let end = topic.end(0).0;
        assert!(end == 120 || end == 38, "{what}: it ends at {end}");
        assert_eq!(topic.resume(0).as_deref(), Some(if end == 120 { "120" } else { "cut" }), "{what}");
        assert_eq!(read(&topic, 0, end).unwrap(), (0..end.cast_signed()).collect::<Vec<_>>(), "{what}");
        assert_eq!(topic.damage(0), [], "{what}");
        *seen.entry(end).or_insert(0) += 1;
    }
    assert!(seen[&120] > 6 && seen[&38] > 6, "{seen:?}");
}

#[test]
fn what_retention_removed_does_not_come_back_and_offsets_are_given_again() {
    let disk = SimDisk::new();
    let log = filled(&disk, 200, true);
    let topic = log.topic("t").unwrap();
    topic.set_retention(Retention { max_age: None, max_bytes: Some(9000) }).unwrap();
    topic.apply_retention(Timestamp(2_000_000)).unwrap();
    let start = topic.start(0).0;
    assert!(start > 20, "{start}");
    topic.cut(0, Offset(20), "cut").unwrap();
    for topic in [topic, quiet(&disk.crash(1)).unwrap().topic("t").unwrap()] {
        assert_eq!((topic.start(0), topic.end(0)), (Offset(20), Offset(20)));
        assert_eq!(topic.resume(0).as_deref(), Some("cut"));
    }
    let log = quiet(&disk.crash(2)).unwrap();
    let topic = log.topic("t").unwrap();
    assert_eq!(topic.append(0, &rows(20, 5, 90), None).unwrap().first, Offset(20));
    assert_eq!(read(&topic, 20, 25).unwrap(), [20, 21, 22, 23, 24]);
}
