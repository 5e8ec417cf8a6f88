//! The machine stops, or the disk fails, at every single operation.
//!
//! The oracle: row *n* has offset *n*; each append carries the resume token of
//! its end. After any crash the log holds the rows of a beginning, each once
//! and in order, at least up to the last ack, and the token that belongs to it.

use super::*;
use crate::{
    disk::{Fault, canary},
    tests::tries::{first_seed, landed, tries},
};
use std::{collections::BTreeMap, sync::atomic::AtomicU64};
use tidemill_core::{Clock, Duration};

/// What outsiders were told.
#[derive(Debug, Default, Clone, Copy)]
struct Told {
    acked: u64,
    /// No retention was asked to pass this.
    pinned: u64,
    /// The pin that was set, or one before it.
    pin: Option<u64>,
}

/// Steps of a process, of which all but the last one die without closing anything.
const PROCESSES: [std::ops::Range<u32>; 3] = [0..17, 17..25, 25..30];

/// Creates, appends, syncs, dies, fills segments, merges, retires, closes, until something fails.
fn life(disk: &SimDisk, told: &mut Told, per_append: i64) -> Result<()> {
    let clock = clock();
    let durable = Arc::new(AtomicU64::new(told.acked));
    let ended = PROCESSES.into_iter().try_for_each(|steps| process(disk, told, per_append, steps, &clock, &durable));
    told.acked = durable.load(Ordering::Relaxed);
    ended
}

fn process(
    disk: &SimDisk,
    told: &mut Told,
    per_append: i64,
    steps: std::ops::Range<u32>,
    clock: &Arc<ManualClock>,
    durable: &Arc<AtomicU64>,
) -> Result<()> {
    let log = Log::quiet(Arc::new(disk.clone()), Path::new("/data/log"), Arc::clone(clock) as Arc<dyn Clock>)?;
    let mut config = config(Sync::Always);
    config.retention.max_bytes = Some(9000);
    let topic = match log.topic("t") {
        Some(topic) => topic,
        None => log.create_topic("t", &config)?,
    };
    durable.fetch_max(topic.durable_end(0).0, Ordering::Relaxed);
    let last = steps.end == PROCESSES[2].end;
    for step in steps {
        clock.advance(Duration::from_millis(1));
        let from = topic.end(0).0.cast_signed();
        let next = from + per_append;
        // Told as soon as it is durable, whoever asked for the sync.
        let ack = Arc::clone(durable);
        let on_durable = Box::new(move |result: Result<()>| {
            if result.is_ok() {
                ack.fetch_max(next.cast_unsigned(), Ordering::Relaxed);
            }
        });
        topic.append_with(0, &rows(from, per_append, 90), Some(&next.to_string()), on_durable)?;
        if step % 3 == 2 {
            topic.sync_to(0, topic.end(0))?;
        }
        if step == 12 || step == 26 {
            tidy(&topic);
        }
        if step == 20 {
            told.pinned = told.pinned.max(durable.load(Ordering::Relaxed) / 2);
            topic.pin("reader", &BTreeMap::from([(0, Offset(told.pinned))]))?;
            told.pin = Some(told.pinned);
            topic.apply_retention(clock.now())?;
        }
    }
    if !last {
        // The process dies: nothing is closed, and the machine goes on.
        std::mem::forget((log, topic));
    }
    Ok(())
}

fn check(disk: &SimDisk, told: Told, what: &str) {
    let log = quiet(disk).unwrap_or_else(|e| panic!("{what}: {}", e.chain()));
    let Some(topic) = log.topic("t") else {
        assert_eq!(told.acked, 0, "{what}: the topic is gone");
        return;
    };
    let (start, end) = (topic.start(0).0, topic.end(0).0);
    assert_eq!(topic.damage(0), [], "{what}");
    assert!(end >= told.acked, "{what}: {} were acked, the log ends at {end}", told.acked);
    assert!(start <= told.pinned, "{what}: {} is pinned, the log begins at {start}", told.pinned);
    if let Some(pin) = told.pin {
        let found = topic.pins().get("reader").map(|pins| pins[&0].0);
        assert!(found.is_some_and(|found| found <= pin), "{what}: {pin} was pinned, found {found:?}");
    }
    let expected: Vec<i64> = (start.cast_signed()..end.cast_signed()).collect();
    assert_eq!(read(&topic, start, end).unwrap_or_else(|e| panic!("{what}: {}", e.chain())), expected, "{what}");
    let resume = if end == 0 { None } else { Some(end.to_string()) };
    assert_eq!(topic.resume(0), resume, "{what}");
}

#[test]
fn a_crash_at_every_operation_loses_nothing_that_was_acked() {
    let whole = SimDisk::new();
    life(&whole, &mut Told::default(), 5).unwrap();
    let ops = whole.ops();
    assert!(ops > 80, "{ops}");
    for op in 0..ops {
        for seed in (0..tries(2)).map(|s| first_seed() + op * 31 + s) {
            let what = format!("crash at operation {op} of {ops}, seed {seed}");
            let disk = SimDisk::new();
            disk.fail_at(op, Fault::Crash);
            let mut told = Told::default();
            assert!(life(&disk, &mut told, 5).is_err() || disk.is_dead(), "{what}");
            let after = disk.crash(seed);
            check(&after.fork(), told, &what);
            // A second life, cut short somewhere, also while it recovers.
            after.fail_at((op * 7 + seed * 13) % 40, Fault::Crash);
            let again = life(&after, &mut told, 3);
            assert!(again.is_err() || after.is_dead(), "{what}");
            check(&after.crash(seed + 1), told, &format!("{what}, and again"));
        }
    }
    landed(format_args!("{} times power lost, {ops} operations, twice each", 2 * ops * tries(2)));
}

#[test]
fn an_error_at_every_operation_is_never_followed_by_a_false_ack() {
    let whole = SimDisk::new();
    life(&whole, &mut Told::default(), 5).unwrap();
    for op in 0..whole.ops() {
        for fault in [Fault::Eio, Fault::Enospc] {
            let what = format!("{fault:?} at operation {op}");
            let disk = SimDisk::new();
            disk.fail_at(op, fault);
            let mut told = Told::default();
            // Merging and closing only log their errors, so the life may end well.
            let _ended = life(&disk, &mut told, 5);
            check(&disk.fork(), told, &format!("{what}, process killed"));
            check(&disk.crash(op), told, &format!("{what}, power lost"));
        }
    }
}

#[test]
fn a_failed_sync_poisons_and_acks_nothing_afterwards() {
    let disk = SimDisk::new();
    let log = quiet(&disk).unwrap();
    let topic = log.create_topic("t", &config(Sync::Always)).unwrap();
    topic.append(0, &rows(0, 3, 8), None).unwrap();
    topic.sync_to(0, Offset(3)).unwrap();
    let told = Arc::new(Mutex::new(Vec::new()));
    let tell = |i: i32| {
        let told = Arc::clone(&told);
        Box::new(move |result: Result<()>| told.lock().push((i, result.is_ok()))) as OnDurable
    };
    topic.append_with(0, &rows(3, 1, 8), None, tell(1)).unwrap();
    disk.fail_at(disk.ops(), Fault::Eio);
    assert!(!topic.sync_to(0, Offset(4)).unwrap_err().is_retryable());
    assert_eq!(*told.lock(), [(1, false)]);
    let error = topic.append_with(0, &rows(4, 1, 8), None, tell(2)).unwrap_err();
    assert!(error.to_string().contains("simulated input/output error"), "{error}");
    assert!(topic.sync_to(0, Offset(4)).is_err());
    topic.sync_to(0, Offset(3)).unwrap();
    assert_eq!((told.lock().len(), topic.durable_end(0)), (1, Offset(3)));
    drop(topic);
    drop(log);
    let log = quiet(&disk.crash(3)).unwrap();
    let topic = log.topic("t").unwrap();
    assert_eq!(read(&topic, 0, 3).unwrap(), [0, 1, 2]);
}

#[test]
fn a_full_disk_refuses_rows_and_takes_them_when_there_is_space() {
    let disk = SimDisk::new();
    let log = quiet(&disk).unwrap();
    let topic = log.create_topic("t", &config(Sync::Always)).unwrap();
    let mut next = 0;
    let mut refused = 0;
    for space in (0..6000).step_by(37) {
        disk.set_space(Some(space % 2500));
        let token = (next + 5).to_string();
        match topic.append(0, &rows(next, 5, 90), Some(&token)) {
            Ok(at) => next = at.next.0.cast_signed(),
            Err(error) => {
                assert!(error.is_retryable() && error.to_string().contains("/data/log/t/0/"), "{error}");
                refused += 1;
            }
        }
        assert_eq!(topic.end(0).0.cast_signed(), next);
    }
    assert!(refused > 10 && next > 50, "{refused} refused, {next} rows");
    disk.set_space(None);
    topic.sync_to(0, topic.end(0)).unwrap();
    check(&disk.crash(1), Told { acked: next.cast_unsigned(), ..Told::default() }, "after the disk was full");
}

/// A test of the tests: a sync that is left out is noticed.
#[test]
fn a_forgotten_sync_is_found() {
    let life = |disk: &SimDisk| {
        let mut told = Told::default();
        let _stopped = life(disk, &mut told, 5);
        told
    };
    let syncs = canary::each_sync_is_needed(
        life,
        |disk, told| check(disk, told, "a sync was left out"),
        &[
            ("an index can be made again from its segment, and is never needed to read rows", |sync| {
                sync.path.to_string_lossy().ends_with(".idx.tmp")
            }),
            ("the last name that retention takes: nothing goes after it, so it may come back", |sync| {
                sync.names == ["-00000000000000000020.idx", "-00000000000000000020.seg"]
            }),
            ("the name of an index, or that of a merged segment in place of one with the same rows", |sync| {
                let merged = |name: &String| sync.names.contains(&format!("-{name}.tmp"));
                let fine = |name: &String| name.ends_with(".tmp") || merged(name);
                !sync.names.is_empty() && sync.names.iter().all(fine)
            }),
        ],
    );
    assert!(syncs > 30, "{syncs}");
}
