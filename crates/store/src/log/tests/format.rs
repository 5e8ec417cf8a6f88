//! The bytes on disk are those of the checked-in fixture of their version.
//!
//! `TIDEMILL_WRITE_FIXTURES=1 cargo test` writes the fixture of the present
//! version; that of a released version is never written again.

use super::*;
use crate::{
    Disk, Ledger, StateFiles,
    disk::{Mode, create_dir, read_file},
    ledger::{Committed, FilledPartition, OperatorEntry, OutputEntry, ProgramEntry, TakesBack},
    state::{Again, KeptAgain},
};
use std::{collections::BTreeMap, io::IoSlice};
use tidemill_core::{Batch, BatchId, Clock, Duration, OffsetRange, StagedPart};

/// The version that this build writes.
const NOW: &str = "v6";

fn fixture(version: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(version)
}

/// All files under a directory, by their path from it.
fn files(disk: &dyn Disk, dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    fn walk(disk: &dyn Disk, root: &Path, dir: &Path, into: &mut BTreeMap<PathBuf, Vec<u8>>) {
        for name in disk.list(dir).unwrap() {
            let path = dir.join(name);
            if disk.list(&path).is_ok() {
                walk(disk, root, &path, into);
            } else {
                into.insert(path.strip_prefix(root).unwrap().to_owned(), read_file(disk, &path).unwrap());
            }
        }
    }
    let mut all = BTreeMap::new();
    walk(disk, dir, dir, &mut all);
    all
}

fn batch(id: u64) -> Batch {
    let range = OffsetRange { partition: 0.into(), start: Offset(id * 10), end: Offset(id * 10 + 10) };
    Batch {
        id: BatchId(id),
        time: Timestamp(id.cast_signed() * 1_000_000),
        ranges: BTreeMap::from([("clicks".to_owned(), vec![range])]),
    }
}

fn committed(id: u64) -> Committed {
    Committed {
        batch: BatchId(id),
        time: batch(id).time,
        watermarks: BTreeMap::from([("clicks".to_owned(), Timestamp(id.cast_signed() * 900_000))]),
        streams: BTreeMap::new(),
        staged: BTreeMap::from([("out".to_owned(), vec![StagedPart(format!("{id}-0.json"))])]),
        written: BTreeMap::new(),
        meta: BTreeMap::from([("note".to_owned(), serde_json::json!({"rows": 10}))]),
    }
}

/// A data directory that uses every part of the format.
fn write() -> SimDisk {
    let disk = SimDisk::new();
    let clock = clock();
    let log = Log::quiet(Arc::new(disk.clone()), Path::new("/d/log"), Arc::clone(&clock) as Arc<dyn Clock>).unwrap();
    let mut config = config(Sync::Every(Duration::from_millis(10)));
    config.retention = Retention { max_age: Some(Duration::from_secs(3600)), max_bytes: None };
    config.notices = Some("posts of mastodon".to_owned());
    let topic = log.create_topic("clicks", &config).unwrap();
    for i in 0..8 {
        topic.append(0, &rows(i * 10, 10, 20), (i % 2 == 0).then_some("token")).unwrap();
        clock.advance(Duration::from_millis(5));
    }
    topic.pin("program", &BTreeMap::from([(0, Offset(13))])).unwrap();
    tidy(&topic);
    drop((topic, log));

    let shared: Arc<dyn Disk> = Arc::new(disk.clone());
    let mut ledger = Ledger::open(Arc::clone(&shared), Path::new("/d/ledger")).unwrap();
    let operator = OperatorEntry::new("count", "reduce_by_key", &schema(), 1).unwrap();
    let program = |definition: &str| ProgramEntry {
        operators: vec![OperatorEntry { definition: Some(definition.to_owned()), ..operator.clone() }],
        outputs: vec![OutputEntry {
            name: "out".to_owned(),
            what: "files out (json)".to_owned(),
            topic: None,
            undoes: Some("its files are moved aside".to_owned()),
        }],
        text: Some("CREATE …".to_owned()),
    };
    ledger.set_program(program("FROM a"), BTreeMap::new(), Vec::new()).unwrap();
    for id in 1..=3 {
        ledger.plan(&batch(id)).unwrap();
        let at = |n| Offset(10 * (id + n));
        let written = vec![OffsetRange { partition: 0.into(), start: at(0), end: at(1) }];
        ledger.commit(Committed { written: BTreeMap::from([("upper".to_owned(), written)]), ..committed(id) }).unwrap();
        if id == 2 {
            let mut next = program("FROM b");
            next.operators[0].dir = Some("count@2".to_owned());
            ledger.set_program(next, BTreeMap::from([("count".to_owned(), Timestamp(7))]), Vec::new()).unwrap();
        }
    }
    ledger.rewind(BatchId(1), BatchId(3), false).unwrap();
    ledger.plan(&batch(4)).unwrap();

    let mut state = StateFiles::open(Arc::clone(&shared), Path::new("/d/state/count"), "count", schema()).unwrap();
    state.save_delta(BatchId(1), &[rows(0, 3, 9), rows(3, 2, 9)]).unwrap();
    state.save_snapshot(BatchId(2), [rows(0, 7, 9)].into_iter()).unwrap();
    // One that keeps rows again in turn: the first version is gone.
    let mut rolled = StateFiles::open(Arc::clone(&shared), Path::new("/d/state/sums"), "sums", schema()).unwrap();
    rolled.save_rolled(BatchId(1), &[rows(0, 3, 9)], None).unwrap();
    rolled.save_rolled(BatchId(2), &[rows(3, 2, 9), rows(0, 2, 9)], None).unwrap();
    rolled.save_rolled(BatchId(3), &[rows(5, 1, 9), rows(2, 3, 9)], Some(BatchId(2))).unwrap();
    rolled.prune(BatchId(3)).unwrap();
    // And one whose rows add up.
    let mut adding = StateFiles::open(Arc::clone(&shared), Path::new("/d/state/joined"), "joined", schema()).unwrap();
    for (version, own, again, since) in [
        (1, rows(0, 3, 9), vec![], 1),
        (2, rows(3, 2, 9), vec![rows(0, 3, 9)], 2),
        (3, rows(5, 1, 9), vec![rows(0, 2, 9)], 2),
    ] {
        let again = KeptAgain { round: BatchId(version), again: &Again::InPlaceOf(vec![0]), rows: &again };
        adding.save_again(BatchId(version), &[own], &again, Some(BatchId(since))).unwrap();
    }
    adding.prune(BatchId(3)).unwrap();
    // And one of so many rows that their numbers are written in fewer bytes.
    let mut many = StateFiles::open(shared, Path::new("/d/state/many"), "many", schema()).unwrap();
    many.save_delta(BatchId(1), &[rows(0, 300, 1)]).unwrap();
    disk
}

#[test]
fn the_bytes_written_are_those_of_the_present_version() {
    let written = files(&write(), Path::new("/d"));
    assert!(written.len() >= 9, "{:?}", written.keys());
    if std::env::var_os("TIDEMILL_WRITE_FIXTURES").is_some() {
        for (path, bytes) in &written {
            let path = fixture(NOW).join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, bytes).unwrap();
        }
    }
    let kept = files(&crate::RealDisk, &fixture(NOW));
    assert_eq!(kept.keys().collect::<Vec<_>>(), written.keys().collect::<Vec<_>>());
    for (path, bytes) in kept {
        assert!(bytes == written[&path], "{} differs from the fixture", path.display());
    }
}

/// A version's fixture on a disk of its own.
fn copied(version: &str) -> Arc<dyn Disk> {
    let disk = SimDisk::new();
    for (path, bytes) in files(&crate::RealDisk, &fixture(version)) {
        let path = Path::new("/d").join(path);
        create_dir(&disk, path.parent().unwrap()).unwrap();
        disk.open(&path, Mode::Create).unwrap().append(&[IoSlice::new(&bytes)]).unwrap();
    }
    Arc::new(disk)
}

#[test]
fn every_version_is_read_back() {
    for version in ["v1", "v2", "v3", "v4", "v5", NOW] {
        let shared = copied(version);
        let log = Log::quiet(Arc::clone(&shared), Path::new("/d/log"), clock()).unwrap();
        let topic = log.topic("clicks").unwrap();
        assert_eq!(read(&topic, 0, 80).unwrap(), (0..80).collect::<Vec<_>>());
        assert_eq!(topic.resume(0).as_deref(), Some("token"));
        assert_eq!(topic.pins()["program"], BTreeMap::from([(0, Offset(13))]));
        assert_eq!(topic.config().sync, Sync::Every(Duration::from_millis(10)));
        assert_eq!(topic.config().schema, schema());
        assert_eq!(topic.notices().as_deref(), (version == NOW).then_some("posts of mastodon"));
        assert_eq!(topic.read_time(0, Timestamp(1_015_000)).unwrap(), Offset(30));

        let mut state = StateFiles::open(shared, Path::new("/d/state/count"), "count", schema()).unwrap();
        assert_eq!(state.load(BatchId(2)).unwrap()[0].2, [rows(0, 7, 9)]);
        assert_eq!(state.load(BatchId(1)).unwrap()[0].2, [rows(0, 3, 9), rows(3, 2, 9)]);
    }
}

#[test]
fn a_state_whose_rows_were_kept_in_turn_is_read_back() {
    for version in ["v4", "v5", NOW] {
        let mut state = StateFiles::open(copied(version), Path::new("/d/state/sums"), "sums", schema()).unwrap();
        assert_eq!((state.oldest().unwrap(), state.since(BatchId(3)).unwrap()), (BatchId(3), Some(BatchId(2))));
        let versions = state.load(BatchId(3)).unwrap();
        let found: Vec<_> = versions.iter().map(|(version, _, rows)| (version.0, rows.clone())).collect();
        let want = [(2, vec![rows(3, 2, 9), rows(0, 2, 9)]), (3, vec![rows(5, 1, 9), rows(2, 3, 9)])];
        assert_eq!(found, want);
        assert!(state.load(BatchId(2)).unwrap_err().to_string().contains("builds on version 1"));

        let mut state = StateFiles::open(copied(version), Path::new("/d/state/joined"), "joined", schema()).unwrap();
        let versions = state.load(BatchId(3)).unwrap();
        let found: Vec<_> = versions.iter().map(|(version, _, rows)| (version.0, rows.clone())).collect();
        assert_eq!(found, [(2, vec![rows(3, 2, 9), rows(0, 3, 9)]), (3, vec![rows(5, 1, 9)])]);
    }
}

#[test]
fn numbers_that_were_written_in_fewer_bytes_come_back() {
    let shared = copied(NOW);
    let mut state = StateFiles::open(Arc::clone(&shared), Path::new("/d/state/many"), "many", schema()).unwrap();
    assert_eq!(state.load(BatchId(1)).unwrap()[0].2, [rows(0, 300, 1)]);
    let file = shared.open(&state.paths_upto(BatchId(1))[0], Mode::Read).unwrap();
    let whole: usize = rows(0, 300, 1).columns().iter().map(|column| column.get_buffer_memory_size()).sum();
    assert!(file.len().unwrap() < whole as u64, "{} of {whole} bytes", file.len().unwrap());
}

#[test]
fn a_ledger_of_version_1_is_read_and_gone_on_with() {
    let shared = copied("v1");
    let mut ledger = Ledger::open(Arc::clone(&shared), Path::new("/d/ledger")).unwrap();
    assert_eq!(ledger.planned(), Some(&batch(2)));
    assert_eq!(ledger.last(), Some(&committed(1)));
    assert_eq!(ledger.positions()["clicks"][&0.into()], Offset(20));
    let operator = &ledger.operators()[0];
    assert_eq!((operator.name.as_str(), operator.dir(), operator.columns().unwrap()), ("count", "count", None));
    // The files have the columns that it did not keep.
    let mut past = ledger.past();
    past.fill_columns(|_| {
        let files = StateFiles::look(Arc::clone(&shared), Path::new("/d/state/count"), "count")?;
        Ok(files.map(|files| Arc::clone(files.columns())))
    })
    .unwrap();
    assert_eq!(past.program().operators[0].columns().unwrap(), Some(schema()));
    ledger.commit(committed(2)).unwrap();
    ledger.rewind(BatchId(1), BatchId(2), false).unwrap();
    let again = Ledger::open(shared, Path::new("/d/ledger")).unwrap();
    assert_eq!((again.version(), again.last().unwrap().batch), (BatchId(1), BatchId(2)));
    assert_eq!(again.last().unwrap().watermarks, committed(1).watermarks);
    assert_eq!(again.positions()["clicks"][&0.into()], Offset(20));
}

#[test]
fn a_ledger_of_version_2_or_later_knows_its_past() {
    for version in ["v2", "v3", "v4", "v5", NOW] {
        let past = crate::Past::read(&*copied(version), Path::new("/d/ledger")).unwrap().unwrap();
        knows_its_past(&past);
        let gone: Vec<bool> = (1..=4).map(|batch| past.gone().has(BatchId(batch))).collect();
        assert_eq!(gone, [false, true, true, false]);
        let back = past.takes_back("upper");
        if ["v4", "v5", NOW].contains(&version) {
            let kept = FilledPartition { begun: Offset(10), end: Offset(20), rows: 10, undone: 20 };
            assert_eq!(back, TakesBack::Cut(BTreeMap::from([(0.into(), kept)])));
            assert_eq!(past.takes_back("other"), TakesBack::Nothing);
            assert_eq!(past.program().outputs[0].undoes.as_deref(), Some("its files are moved aside"));
        } else {
            assert_eq!(back, TakesBack::Unknown, "it did not note where rows lie");
        }
    }
}

fn knows_its_past(past: &crate::Past) {
    assert_eq!((past.version(), past.last().unwrap().batch), (BatchId(1), BatchId(3)));
    assert_eq!(past.planned(), Some(&batch(4)));
    assert_eq!(past.positions()["clicks"][&0.into()], Offset(20));
    assert_eq!(past.undone(), [crate::ledger::Undone { to: BatchId(1), upto: BatchId(3), keeps_topics: false }]);
    let program = past.program();
    assert_eq!(program.operators[0].definition.as_deref(), Some("FROM a"), "that of batch 1");
    assert_eq!((program.operators[0].dir(), program.operators[0].keys), ("count", Some(1)));
    assert_eq!(program.operators[0].columns().unwrap(), Some(schema()));
    assert_eq!(program.outputs[0].what, "files out (json)");
}
