//! Programs are set and batches undone; a list of versions is the oracle.

use super::{super::tests, *};
use crate::{
    Ledger, Past, SimDisk,
    disk::{Disk, Fault},
};
use std::{path::Path, sync::Arc};
use tidemill_core::{Batch, Position};

const DIR: &str = "/data/ledger";

fn open(disk: &SimDisk) -> Result<Ledger> {
    Ledger::open(Arc::new(disk.clone()), Path::new(DIR))
}

fn program(name: &str) -> ProgramEntry {
    let operator = OperatorEntry { name: name.to_owned(), ..OperatorEntry::default() };
    ProgramEntry { operators: vec![operator], outputs: Vec::new(), text: Some(format!("CREATE VIEW {name}")) }
}

/// All that going back to a version must bring back.
#[derive(Debug, Clone, PartialEq, Default)]
struct Version {
    id: u64,
    positions: BTreeMap<String, Position>,
    watermarks: BTreeMap<String, Timestamp>,
    program: ProgramEntry,
}

/// Reads on where the ledger stands.
fn next(ledger: &Ledger) -> (Batch, Committed) {
    let id = ledger.last().map_or(1, |last| last.batch.0 + 1);
    let mut batch = tests::batch(id);
    for (stream, ranges) in &mut batch.ranges {
        for range in ranges.iter_mut() {
            let at = ledger.positions().get(stream).and_then(|p| p.get(&range.partition)).copied().unwrap_or_default();
            (range.start, range.end) = (at, tidemill_core::Offset(at.0 + id));
        }
        ranges.truncate(1);
    }
    (batch, tests::committed(id))
}

fn step(ledger: &mut Ledger) -> Result<()> {
    let (batch, committed) = next(ledger);
    ledger.plan(&batch)?;
    ledger.commit(committed)
}

fn now(ledger: &Ledger) -> Version {
    Version {
        id: ledger.version().0,
        positions: ledger.positions().clone(),
        watermarks: ledger.last().map(|last| last.watermarks.clone()).unwrap_or_default(),
        program: ledger.program(),
    }
}

/// Positions at which nothing was read are as good as none.
fn read(mut version: Version) -> Version {
    version.positions.values_mut().for_each(|p| p.retain(|_, at| at.0 > 0));
    version.positions.retain(|_, position| !position.is_empty());
    version
}

#[test]
fn every_version_comes_back_whatever_came_after_it() {
    let mut seed = 7_u64;
    let mut dice = |n: usize| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(seed >> 33).unwrap() % n
    };
    let disk = SimDisk::new();
    let mut ledger = open(&disk).unwrap().with_rotation(2000);
    let (mut versions, mut used) = (vec![Version::default()], 0);
    for turn in 0..400 {
        match dice(10) {
            0 => ledger.set_program(program(&format!("p{}", dice(4))), BTreeMap::new(), Vec::new()).unwrap(),
            1 if turn > 20 => {
                let to = versions[versions.len() - 1 - dice(versions.len().min(8))].clone();
                ledger.rewind(BatchId(to.id), BatchId(0), false).unwrap();
                versions.retain(|version| version.id <= to.id);
                assert_eq!(read(now(&ledger)), read(to), "turn {turn}");
                assert_eq!(ledger.last().map_or(0, |last| last.batch.0), used, "numbers stay used");
                assert!(ledger.last().is_none_or(|last| last.staged.is_empty()), "nothing is to be shown again");
            }
            2 => ledger = open(&disk).unwrap().with_rotation(2000),
            _ => {
                step(&mut ledger).unwrap();
                used += 1;
                versions.push(now(&ledger));
            }
        }
        let past = Past::read(&disk, Path::new(DIR)).unwrap().unwrap();
        assert_eq!((past.version(), past.program()), (ledger.version(), ledger.program()), "turn {turn}");
        assert_eq!(
            past.recent().map(|b| b.id.0).collect::<Vec<_>>(),
            versions[1..].iter().map(|v| v.id).collect::<Vec<_>>()
        );
        for version in &versions[1..] {
            let positions = past.positions_at(BatchId(version.id));
            let then = Version { positions, program: past.program_at(BatchId(version.id)), ..version.clone() };
            assert_eq!(read(then).positions, read(version.clone()).positions, "turn {turn}");
            assert_eq!(past.commit(BatchId(version.id)).unwrap().watermarks, version.watermarks);
        }
    }
    assert_ne!(ledger.number, 0, "files were begun");
}

#[test]
fn a_crash_at_every_operation_undoes_all_or_nothing() {
    let before = SimDisk::new();
    let mut ledger = open(&before).unwrap();
    ledger.set_program(program("a"), BTreeMap::new(), Vec::new()).unwrap();
    (0..4).for_each(|_| step(&mut ledger).unwrap());
    let at_two = {
        let mut back = open(&before.fork()).unwrap();
        back.rewind(BatchId(2), BatchId(0), false).unwrap();
        now(&back)
    };
    ledger.set_program(program("b"), BTreeMap::new(), Vec::new()).unwrap();
    (0..2).for_each(|_| step(&mut ledger).unwrap());
    let at_six = now(&ledger);
    drop(ledger);
    let life = |disk: &SimDisk| -> Result<()> {
        let mut ledger = open(disk)?;
        ledger.rewind(BatchId(2), BatchId(0), false)?;
        ledger.taken_back()
    };
    let whole = before.fork();
    life(&whole).unwrap();
    let (mut was, mut back) = (0, 0);
    for op in 0..whole.ops() {
        for seed in 0..8 {
            let disk = before.fork();
            disk.fail_at(op, Fault::Crash);
            assert!(life(&disk).is_err() || disk.is_dead());
            let mut ledger = open(&disk.crash(seed)).unwrap();
            if now(&ledger) == at_six {
                was += 1;
                assert!(ledger.undone().is_empty());
            } else {
                back += 1;
                assert_eq!(now(&ledger), at_two, "crash at {op}, seed {seed}");
                assert!(ledger.undone().iter().all(|u| (u.to.0, u.upto.0) == (2, 6)));
            }
            step(&mut ledger).unwrap();
            assert_eq!(ledger.last().unwrap().batch, BatchId(7));
        }
    }
    assert!(was > 8 && back > 8, "{was} as it was, {back} back");
}

#[test]
fn a_batch_that_is_not_kept_is_refused_and_nothing_changes() {
    let disk = SimDisk::new();
    let mut ledger = open(&disk).unwrap();
    (0..5).for_each(|_| step(&mut ledger).unwrap());
    ledger.forget_before(BatchId(4));
    let (before, ops) = (now(&ledger), disk.ops());
    for to in [1, 3, 6] {
        let error = ledger.rewind(BatchId(to), BatchId(0), false).unwrap_err().to_string();
        assert!(error.contains("is not kept: batches 4 to 5 are"), "{error}");
    }
    assert_eq!((now(&ledger), disk.ops()), (before, ops));
    // Looking beside the owner writes nothing either.
    Past::read(&disk, Path::new(DIR)).unwrap().unwrap();
    assert_eq!(disk.ops(), ops);
    assert!(!disk.exists(Path::new("/data/none")) && Past::read(&disk, Path::new("/data/none")).unwrap().is_none());
}
