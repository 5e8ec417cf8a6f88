//! Bytes that nobody wrote, for everything that reads bytes here.
//!
//! Two depths: files whose bytes are changed anywhere, which checksums must
//! find; and what is behind the checksums, changed and sealed again, which must
//! be understood or refused. Never a panic, and never rows that were not written.

use crate::{
    Disk, SimDisk,
    disk::Mode,
    frame::{Frame, Head, Kind, Scanner, Sealed},
    ipc::{RowEncoder, decode_rows, schema_from, schema_message},
    ledger::Ledger,
    log::{Log, TopicConfig},
    state::StateFiles,
    tests::{
        mutations::Mutations,
        tries::{first_seed, landed, tries},
    },
};
use arrow_array::{Array, ArrayRef, Int64Array, RecordBatch, StringArray, builder::*, cast::AsArray, types::Int64Type};
use arrow_buffer::Buffer;
use std::{collections::BTreeMap, path::Path, sync::Arc};
use tidemill_core::{Batch, BatchId, ManualClock, Offset, OffsetRange, PartitionId, Timestamp};

fn seeds(everyday: u64) -> std::ops::Range<u64> {
    first_seed()..first_seed() + tries(everyday)
}

fn rows(from: i64, count: i64) -> RecordBatch {
    let mut lists = ListBuilder::new(StringBuilder::new());
    for n in from..from + count {
        lists.append_value((0..n % 3).map(|i| Some(format!("{i}"))));
    }
    let columns: [(&str, ArrayRef); 3] = [
        ("n", Arc::new(Int64Array::from_iter_values(from..from + count))),
        ("text", Arc::new(StringArray::from_iter_values((from..from + count).map(|n| format!("text {n} 潮"))))),
        ("tags", Arc::new(lists.finish())),
    ];
    RecordBatch::try_from_iter_with_nullable(columns.map(|(n, c)| (n, c, true))).unwrap()
}

fn is_sound(rows: &RecordBatch) {
    for column in rows.columns() {
        column.to_data().validate_full().unwrap();
    }
}

#[test]
fn fuzz_rows_and_schemas() {
    let (wanted, mut taken) = (rows(0, 5), 0);
    let parts = RowEncoder::new(&wanted.schema()).unwrap().encode(&wanted).unwrap();
    let message: Vec<u8> = parts.iter().flat_map(|b| b.iter().copied()).collect();
    let schema = schema_message(&wanted.schema()).unwrap();
    for seed in seeds(1_000) {
        let mut mutations = Mutations::new(seed);
        if let Ok(found) = decode_rows(&Buffer::from(mutations.of(&[&message])), &wanted.schema()) {
            assert_eq!(found.schema(), wanted.schema(), "seed {seed}");
            is_sound(&found);
            taken += 1;
        }
        let _understood_or_not = schema_from(&mutations.of(&[&schema]));
    }
    landed(format_args!("{} messages, {taken} taken for rows", tries(1_000)));
}

#[test]
fn fuzz_frames() {
    let frame = |first: u64| {
        let head = Head { kind: Kind::Ledger, first, rows: 3, salt: 7, synced: first, time: 5 };
        Sealed::new(head, format!("meta {first}").into_bytes(), vec![Buffer::from(vec![7_u8; 100])]).unwrap().bytes()
    };
    let all: Vec<Vec<u8>> = (0..4).map(frame).collect();
    let parts: Vec<&[u8]> = all.iter().map(Vec::as_slice).collect();
    let whole = all.concat();
    let mut found = 0;
    for seed in seeds(3_000) {
        let mutated = Mutations::new(seed).of(&[&[whole.as_slice()], parts.as_slice()].concat());
        if let Some(frame) = Frame::parse(&Buffer::from(mutated.clone())) {
            assert!(frame.meta().starts_with(b"meta ") && frame.payload().as_slice() == [7; 100], "seed {seed}");
        }
        let disk = SimDisk::new();
        let file = disk.open(Path::new("/f"), Mode::Create).unwrap();
        file.append(&[std::io::IoSlice::new(&mutated)]).unwrap();
        let mut scan = Scanner::new(&*file, 0).unwrap();
        loop {
            while let Some(frame) = scan.next().unwrap() {
                let first = usize::try_from(frame.head().first).unwrap();
                assert_eq!(frame.meta(), format!("meta {first}").as_bytes(), "seed {seed}");
                found += 1;
            }
            if scan.resync(|_| true).unwrap().is_none() {
                break;
            }
            // A header alone may be whole, and what follows it not.
            scan.at += 8;
        }
    }
    landed(format_args!("{} files, {found} whole frames found in them", tries(3_000)));
}

/// Every file below a directory.
fn files(disk: &SimDisk, dir: &Path, into: &mut BTreeMap<std::path::PathBuf, Vec<u8>>) {
    for name in disk.list(dir).unwrap() {
        let path = dir.join(name);
        match disk.contents(&path) {
            Some(bytes) => {
                into.insert(path, bytes);
            }
            None => files(disk, &path, into),
        }
    }
}

#[test]
fn fuzz_log() {
    let clock = Arc::new(ManualClock::at(Timestamp(1_000)));
    let disk = SimDisk::new();
    let open = |disk: &SimDisk| Log::open(Arc::new(disk.clone()), Path::new("/l"), Arc::clone(&clock) as Arc<_>);
    {
        let log = open(&disk).unwrap();
        let config = TopicConfig { segment_bytes: 4096, ..TopicConfig::new(rows(0, 1).schema()) };
        let topic = log.create_topic("t", &config).unwrap();
        for i in 0..20 {
            topic.append(0, &rows(i * 3, 3), Some("token")).unwrap();
        }
        topic.pin("reader", &BTreeMap::from([(0, Offset(5))])).unwrap();
    }
    let mut all = BTreeMap::new();
    files(&disk, Path::new("/l"), &mut all);
    let paths: Vec<_> = all.keys().collect();
    let (mut refused, mut short) = (0, 0);
    for seed in seeds(400) {
        let mut mutations = Mutations::new(seed);
        let path = paths[mutations.below(paths.len())];
        let disk = disk.fork();
        disk.set_contents(path, mutations.of(&[&all[path]]));
        let what = format!("seed {seed}: {}", path.display());
        let Ok(log) = open(&disk) else {
            refused += 1;
            continue;
        };
        let Some(topic) = log.topic("t") else { continue };
        let (start, end) = (topic.start(0).0, topic.end(0).0);
        assert!(start <= end && end <= 60, "{what}: [{start}, {end})");
        short += u64::from(end < 60);
        for run in topic.read(0, Offset(start), Offset(end)) {
            let Ok(run) = run else { break };
            let numbers = run.rows.column(0).as_primitive::<Int64Type>().values().to_vec();
            let wanted: Vec<i64> = (run.base.0.cast_signed()..).take(numbers.len()).collect();
            assert_eq!(numbers, wanted, "{what}");
        }
        let _found = topic.read_time(0, Timestamp(1_000));
    }
    landed(format_args!("{} logs, {refused} refused, {short} cut short", tries(400)));
}

fn planned(id: u64) -> Batch {
    let range = OffsetRange { partition: PartitionId::new("0"), start: Offset(id), end: Offset(id + 1) };
    Batch {
        id: BatchId(id),
        time: Timestamp(id.cast_signed()),
        ranges: BTreeMap::from([("s".to_string(), vec![range])]),
    }
}

#[test]
fn fuzz_ledger() {
    let disk = SimDisk::new();
    let open = |disk: &SimDisk| Ledger::open(Arc::new(disk.clone()), Path::new("/p"));
    let mut ledger = open(&disk).unwrap();
    for id in 1..=5 {
        ledger.plan(&planned(id)).unwrap();
        let committed = crate::ledger::Committed { batch: BatchId(id), time: planned(id).time, ..Default::default() };
        ledger.commit(committed).unwrap();
    }
    drop(ledger);
    let mut all = BTreeMap::new();
    files(&disk, Path::new("/p"), &mut all);
    let (path, bytes) = all.first_key_value().unwrap();
    let (mut refused, mut understood) = (0, 0);
    for seed in seeds(1_500) {
        let mut mutations = Mutations::new(seed);
        let disk = disk.fork();
        let deep = seed % 2 == 1;
        // Behind the checksums: one record is changed and sealed again.
        let changed = if deep { reseal(bytes, &mut mutations) } else { mutations.of(&[bytes]) };
        disk.set_contents(path, changed);
        match open(&disk) {
            Ok(ledger) => {
                let last = ledger.last().map_or(0, |last| last.batch.0);
                assert!(deep || last <= 5, "seed {seed}: batch {last} was never committed");
                understood += 1;
            }
            Err(error) => {
                assert!(error.to_string().contains("/p/"), "seed {seed}: {error}");
                refused += 1;
            }
        }
    }
    landed(format_args!("{} ledgers, {refused} refused, {understood} understood", tries(1_500)));
}

/// A file of frames with one frame's text changed, and its checksums right.
fn reseal(bytes: &[u8], mutations: &mut Mutations) -> Vec<u8> {
    let disk = SimDisk::new();
    let file = disk.open(Path::new("/f"), Mode::Create).unwrap();
    file.append(&[std::io::IoSlice::new(bytes)]).unwrap();
    let mut scan = Scanner::new(&*file, 0).unwrap();
    let mut frames = Vec::new();
    while let Some(frame) = scan.next().unwrap() {
        frames.push(frame);
    }
    let victim = mutations.below(frames.len());
    let sealed = frames.iter().enumerate().map(|(i, frame)| {
        let meta = if i == victim { mutations.of(&[frame.meta()]) } else { frame.meta().to_vec() };
        Sealed::new(*frame.head(), meta, vec![frame.payload()]).unwrap().bytes()
    });
    sealed.collect::<Vec<_>>().concat()
}

#[test]
fn fuzz_state() {
    let disk = SimDisk::new();
    let schema = rows(0, 1).schema();
    let open = |disk: &SimDisk| StateFiles::open(Arc::new(disk.clone()), Path::new("/s"), "op", Arc::clone(&schema));
    let mut state = open(&disk).unwrap();
    state.save_delta(BatchId(1), &[rows(0, 4)]).unwrap();
    state.save_snapshot(BatchId(2), [rows(0, 4), rows(4, 4)].into_iter()).unwrap();
    state.save_delta(BatchId(3), &[rows(8, 4)]).unwrap();
    drop(state);
    let mut all = BTreeMap::new();
    files(&disk, Path::new("/s"), &mut all);
    let paths: Vec<_> = all.keys().collect();
    let (mut refused, mut loaded) = (0, 0);
    for seed in seeds(1_500) {
        let mut mutations = Mutations::new(seed);
        let path = paths[mutations.below(paths.len())];
        let disk = disk.fork();
        let deep = seed % 2 == 1;
        let bytes = &all[path];
        disk.set_contents(path, if deep { reseal(bytes, &mut mutations) } else { mutations.of(&[bytes]) });
        match open(&disk).and_then(|mut state| state.load(BatchId(3))) {
            Ok(versions) => {
                let found = versions.iter().flat_map(|(_, _, rows)| rows);
                let numbers: Vec<i64> =
                    found.flat_map(|rows| rows.column(0).as_primitive::<Int64Type>().values().to_vec()).collect();
                // Who forges checksums may forge numbers.
                let wanted: Vec<i64> = (0..12).collect();
                assert!(deep || numbers == wanted, "seed {seed}: {}: {numbers:?}", path.display());
                loaded += 1;
            }
            Err(error) => {
                assert!(error.to_string().contains("/s/") || error.to_string().contains("operator"), "{error}");
                refused += 1;
            }
        }
    }
    landed(format_args!("{} states, {refused} refused, {loaded} taken", tries(1_500)));
}
