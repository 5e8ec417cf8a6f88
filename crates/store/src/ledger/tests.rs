//! Batches are planned and committed, and the machine stops.

use super::*;
use crate::{
    SimDisk,
    disk::{Fault, canary},
    tests::tries::{first_seed, tries},
};
use tidemill_core::{Blame, Duration, Offset, PartitionId, WatermarkSpec};

const DIR: &str = "/data/ledger";
const FILE: &str = "/data/ledger/00000000000000000000.ledger";

fn open(disk: &SimDisk) -> Result<Ledger> {
    Ledger::open(Arc::new(disk.clone()), Path::new(DIR))
}

/// Batches that a test looks at.
const LAST: u64 = 256;

/// Batch `id` reads `[10 * (id - 1), 10 * id)` of partition 0 and its id in files.
pub(super) fn batch(id: u64) -> Batch {
    let range = |partition: &str, start, end| OffsetRange {
        partition: PartitionId::new(partition),
        start: Offset(start),
        end: Offset(end),
    };
    Batch {
        id: BatchId(id),
        time: Timestamp(id.cast_signed() * 1000),
        ranges: BTreeMap::from([
            ("clicks".to_owned(), vec![range("0", 10 * (id - 1), 10 * id - 5), range("0", 10 * id - 5, 10 * id)]),
            ("files".to_owned(), vec![range(&format!("dir/{}", id % 3), id - 1, id)]),
        ]),
    }
}

pub(super) fn committed(id: u64) -> Committed {
    Committed {
        batch: BatchId(id),
        time: Timestamp(id.cast_signed() * 1000),
        watermarks: BTreeMap::from([("clicks".to_owned(), Timestamp(id.cast_signed() * 900))]),
        streams: BTreeMap::from([("clicks".to_owned(), watermark(id))]),
        staged: BTreeMap::from([("out".to_owned(), vec![StagedPart(format!("part-{id}"))])]),
        written: written(id),
        meta: BTreeMap::from([("rows".to_owned(), serde_json::json!(id))]),
    }
}

/// Batch `id` fills a topic with as many rows as its number, and every third one another, behind those of others.
fn written(id: u64) -> BTreeMap<String, Vec<OffsetRange>> {
    let range = |start, end| vec![OffsetRange { partition: 0.into(), start: Offset(start), end: Offset(end) }];
    let mut written = BTreeMap::from([("sums".to_owned(), range(id * (id - 1) / 2, id * (id + 1) / 2))]);
    if id.is_multiple_of(3) {
        written.insert("thirds".to_owned(), range(100 * id, 100 * id + 7));
    }
    written
}

/// That of a stream whose second partition has been quiet for a while.
fn watermark(id: u64) -> Watermark {
    let spec = WatermarkSpec::new(Duration::from_micros(5));
    let (ahead, behind) = (PartitionId::new("0"), PartitionId::new("1"));
    let mut mark = Watermark::default();
    mark.advance(spec, [(&behind, Timestamp(1))], |_| true, Duration::ZERO);
    mark.advance(spec, [(&ahead, Timestamp(id.cast_signed()))], |p| *p == ahead, Duration::from_secs(id));
    mark
}

#[test]
fn a_commit_of_before_there_were_watermarks_of_streams_is_read() {
    let kept = r#"{"batch":7,"time":9,"watermarks":{"v":5},"staged":{},"meta":{}}"#;
    let committed: Committed = serde_json::from_str(kept).unwrap();
    assert!(committed.streams.is_empty());
    assert_eq!(serde_json::to_string(&committed).unwrap(), kept, "and is written as it was");
    let mark = serde_json::to_string(&watermark(9)).unwrap();
    let form = r#"{"at":-4,"partitions":{"0":{"at":4,"quiet":0},"1":{"at":-4,"quiet":9000000}}}"#;
    assert_eq!(mark, form, "as docs/formats/ledger.md describes");
}

fn operators() -> Vec<OperatorEntry> {
    vec![OperatorEntry {
        name: "count".into(),
        kind: "reduce_by_key".into(),
        fingerprint: "ab12".into(),
        ..OperatorEntry::default()
    }]
}

/// Whether the ledger is exactly what `n` commits make.
fn check(ledger: &Ledger, n: u64, what: &str) {
    assert_eq!(ledger.last(), (n > 0).then(|| committed(n)).as_ref(), "{what}");
    let mut positions: BTreeMap<String, Position> = BTreeMap::new();
    for id in 1..=n {
        for stream in batch(id).ranges.keys() {
            batch(id).advance(stream, positions.entry(stream.clone()).or_default());
        }
    }
    assert_eq!(ledger.positions(), &positions, "{what}");
    for id in (n + 1).saturating_sub(LAST).max(1)..=n {
        assert_eq!(ledger.ranges(BatchId(id)), Some(&batch(id).ranges), "{what}");
    }
    assert_eq!(ledger.ranges(BatchId(n + 1)), None, "{what}");
}

#[test]
fn batches_are_found_again_over_restarts_and_rotations() {
    let disk = SimDisk::new();
    let mut ledger = open(&disk).unwrap().with_rotation(3000);
    assert!(ledger.planned().is_none() && ledger.last().is_none() && ledger.operators().is_empty());
    ledger.set_operators(operators()).unwrap();
    for id in 1..=40 {
        ledger.plan(&batch(id)).unwrap();
        assert_eq!(ledger.planned(), Some(&batch(id)));
        if id % 7 == 0 {
            ledger = open(&disk).unwrap().with_rotation(3000);
            assert_eq!(ledger.planned(), Some(&batch(id)));
            check(&ledger, id - 1, "planned");
        }
        ledger.commit(committed(id)).unwrap();
        assert!(ledger.planned().is_none());
        check(&ledger, id, "committed");
        if id % 5 == 0 {
            ledger = open(&disk).unwrap().with_rotation(3000);
            check(&ledger, id, "reopened");
            assert_eq!(ledger.operators(), operators());
        }
    }
    assert_ne!(ledger.number, 0);
    assert_eq!(disk.list(Path::new(DIR)).unwrap().len(), 1);
}

#[test]
fn only_the_last_batches_keep_their_ranges() {
    let disk = SimDisk::new();
    let mut ledger = open(&disk).unwrap();
    for id in 1..=300 {
        ledger.plan(&batch(id)).unwrap();
        ledger.commit(committed(id)).unwrap();
        ledger.forget_before(BatchId((id + 1).saturating_sub(LAST)));
    }
    check(&ledger, 300, "after 300");
    check(&open(&disk).unwrap(), 300, "after 300, reopened");
    assert_eq!(ledger.ranges(BatchId(300 - LAST)), None);
    assert_eq!(ledger.recent().count() as u64, LAST);
    assert_eq!(ledger.past().commit(BatchId(300 - LAST)), None);
    assert_eq!(ledger.past().commit(BatchId(301 - LAST)), Some(&committed(301 - LAST)));
}

#[test]
fn ids_and_times_follow_each_other() {
    let mut ledger = open(&SimDisk::new()).unwrap();
    assert!(ledger.commit(committed(1)).is_err());
    ledger.plan(&batch(1)).unwrap();
    assert_eq!(ledger.commit(committed(2)).unwrap_err().blame(), Blame::Internal);
    ledger.commit(committed(1)).unwrap();
    assert!(ledger.commit(committed(1)).is_err());
    assert!(ledger.plan(&batch(1)).is_err() && ledger.plan(&batch(3)).is_err());
    assert!(ledger.plan(&Batch { time: Timestamp(1000), ..batch(2) }).is_err());
    ledger.plan(&batch(2)).unwrap();
    // A plan that came to nothing may be replaced.
    ledger.plan(&Batch { ranges: BTreeMap::new(), ..batch(2) }).unwrap();
    assert!(ledger.planned().unwrap().is_empty());
}

fn life(disk: &SimDisk, told: &mut u64) -> Result<()> {
    let mut ledger = open(disk)?.with_rotation(2500);
    ledger.set_operators(operators())?;
    loop {
        let next = ledger.last().map_or(1, |c| c.batch.0 + 1);
        if next > 12 {
            return Ok(());
        }
        ledger.plan(&batch(next))?;
        ledger.commit(committed(next))?;
        *told = next;
    }
}

#[test]
fn a_crash_at_every_operation_keeps_what_was_committed() {
    let whole = SimDisk::new();
    life(&whole, &mut 0).unwrap();
    for op in 0..whole.ops() {
        for seed in (0..tries(8)).map(|s| first_seed() + s) {
            let what = format!("crash at {op} of {}, seed {seed}", whole.ops());
            let disk = SimDisk::new();
            disk.fail_at(op, Fault::Crash);
            let mut told = 0;
            assert!(life(&disk, &mut told).is_err() || disk.is_dead());
            let after = disk.crash(seed);
            let mut check_after = |disk: &SimDisk| {
                let ledger = open(disk).unwrap_or_else(|e| panic!("{what}: {}", e.chain()));
                let n = ledger.last().map_or(0, |c| c.batch.0);
                // The batch in hand may have happened; the one before it has.
                assert!(n == told || n == told + 1, "{what}: {told} told, {n} found");
                check(&ledger, n, &what);
                told = n;
            };
            check_after(&after);
            after.fail_at((op + seed) % 9, Fault::Crash);
            let crashed = open(&after).is_err() || after.is_dead();
            after.clear_faults();
            check_after(&if crashed { after.crash(seed) } else { after });
        }
    }
}

/// A test of the tests: a sync that is left out is noticed.
#[test]
fn a_forgotten_sync_is_found() {
    let life = |disk: &SimDisk| {
        let mut told = 0;
        let _stopped = life(disk, &mut told);
        told
    };
    let check = |disk: &SimDisk, told| {
        let ledger = open(disk).unwrap();
        let n = ledger.last().map_or(0, |c| c.batch.0);
        assert!(n == told || n == told + 1);
        check(&ledger, n, "a sync was left out");
    };
    let syncs = canary::each_sync_is_needed(life, check, &[]);
    assert!(syncs > 10, "{syncs}");
}

#[test]
fn an_error_at_every_operation_never_unsays_a_commit() {
    let whole = SimDisk::new();
    life(&whole, &mut 0).unwrap();
    for op in 0..whole.ops() {
        for fault in [Fault::Eio, Fault::Enospc] {
            let disk = SimDisk::new();
            disk.fail_at(op, fault);
            let mut told = 0;
            let _ended = life(&disk, &mut told);
            for disk in [disk.fork(), disk.crash(op)] {
                let n = open(&disk).unwrap().last().map_or(0, |c| c.batch.0);
                assert!(n == told || n == told + 1, "{fault:?} at {op}: {told} told, {n} found");
            }
        }
    }
}

#[test]
fn a_failed_sync_ends_all_commits() {
    let disk = SimDisk::new();
    let mut ledger = open(&disk).unwrap();
    ledger.plan(&batch(1)).unwrap();
    disk.fail_at(disk.ops() + 1, Fault::Eio);
    assert!(!ledger.commit(committed(1)).unwrap_err().is_retryable());
    assert!(ledger.commit(committed(1)).unwrap_err().to_string().contains("takes nothing more"));
    assert!(ledger.plan(&batch(1)).is_err());
}

#[test]
fn a_full_disk_is_worth_a_retry() {
    let disk = SimDisk::new();
    let mut ledger = open(&disk).unwrap();
    ledger.plan(&batch(1)).unwrap();
    disk.set_space(Some(100));
    assert!(ledger.commit(committed(1)).unwrap_err().is_retryable());
    disk.set_space(None);
    ledger.commit(committed(1)).unwrap();
    check(&open(&disk.crash(0)).unwrap(), 1, "after space came back");
}

fn three() -> (SimDisk, Vec<u8>) {
    let disk = SimDisk::new();
    let mut ledger = open(&disk).unwrap();
    for id in 1..=3 {
        ledger.plan(&batch(id)).unwrap();
        ledger.commit(committed(id)).unwrap();
    }
    let bytes = disk.contents(Path::new(FILE)).unwrap();
    (disk, bytes)
}

#[test]
fn a_ledger_cut_at_every_byte_recovers_to_the_last_whole_record() {
    let (disk, bytes) = three();
    let mut last = 0;
    for cut in 0..bytes.len() {
        disk.set_contents(Path::new(FILE), bytes[..cut].to_vec());
        match open(&disk) {
            Ok(mut ledger) => {
                let n = ledger.last().map_or(0, |c| c.batch.0);
                assert!(n >= last && n <= 3, "cut at {cut}");
                last = n;
                check(&ledger, n, "cut");
                ledger.plan(&batch(n + 1)).unwrap();
                ledger.commit(committed(n + 1)).unwrap();
                check(&open(&disk.fork()).unwrap(), n + 1, "gone on");
            }
            // The checkpoint at the beginning was whole before the file had its name.
            Err(error) => assert!(last == 0 && error.to_string().contains("at byte 0"), "cut at {cut}: {error}"),
        }
    }
    assert_eq!(last, 2);
}

#[test]
fn a_flipped_bit_is_refused_or_only_costs_the_end() {
    let (disk, bytes) = three();
    let mut refused = 0;
    for at in 0..bytes.len() {
        let mut flipped = bytes.clone();
        flipped[at] ^= 1 << (at % 8);
        disk.set_contents(Path::new(FILE), flipped);
        match open(&disk) {
            Ok(ledger) => check(&ledger, 2, &format!("byte {at}")),
            Err(error) => {
                assert!(error.to_string().contains(FILE) && error.to_string().contains("at byte"), "{error}");
                refused += 1;
            }
        }
    }
    assert!(refused > bytes.len() / 2, "{refused} of {} refused", bytes.len());
}
