//! A program is copied while it could be running, and the machine stops.

use super::*;
use crate::{
    Ledger, Log, SimDisk, TopicConfig,
    disk::Fault,
    ledger::{Committed, OperatorEntry, ProgramEntry},
};
use arrow_array::{Int64Array, RecordBatch};
use arrow_schema::{DataType, Field, Schema, SchemaRef};
use std::collections::BTreeMap;
use tidemill_core::{Batch, BatchId, ManualClock, Offset, OffsetRange, Timestamp};

fn schema() -> SchemaRef {
    Arc::new(Schema::new(vec![Field::new("n", DataType::Int64, false)]))
}

fn rows(n: i64) -> RecordBatch {
    RecordBatch::try_new(schema(), vec![Arc::new(Int64Array::from(vec![n, n]))]).unwrap()
}

/// A program `p` with a topic, an operator and four batches in `/a`.
fn program(disk: &SimDisk) {
    let shared: Arc<dyn Disk> = Arc::new(disk.clone());
    let log = Log::open(Arc::clone(&shared), Path::new("/a/log"), Arc::new(ManualClock::default())).unwrap();
    let topic = log.create_topic("lines", &TopicConfig::new(schema())).unwrap();
    let root = Path::new("/a/programs/p");
    let mut ledger = Ledger::open(Arc::clone(&shared), &root.join("ledger")).unwrap();
    let operators = vec![OperatorEntry::new("sum", "update_state_by_key", &schema(), 1).unwrap()];
    ledger.set_program(ProgramEntry { operators, ..ProgramEntry::default() }, BTreeMap::new(), Vec::new()).unwrap();
    let mut state = StateFiles::open(Arc::clone(&shared), &root.join("state/sum"), "sum", schema()).unwrap();
    for id in 1..=4_u64 {
        let at = topic.append(0, &rows(id.cast_signed()), None).unwrap();
        topic.sync_to(0, at.next).unwrap();
        let range = OffsetRange { partition: 0.into(), start: Offset(2 * id - 2), end: Offset(2 * id) };
        let time = Timestamp(id.cast_signed() * 1000);
        let batch = Batch { id: BatchId(id), time, ranges: BTreeMap::from([("lines".to_owned(), vec![range])]) };
        ledger.plan(&batch).unwrap();
        state.save_delta(BatchId(id), &[rows(id.cast_signed())]).unwrap();
        ledger.commit(Committed { batch: BatchId(id), time, ..Committed::default() }).unwrap();
    }
    topic.pin("p/lines", &BTreeMap::from([(0, Offset(8))])).unwrap();
}

/// All files below a directory.
fn tree(disk: &SimDisk, dir: &Path) -> BTreeMap<std::path::PathBuf, Vec<u8>> {
    let mut all = BTreeMap::new();
    for name in disk.list(dir).unwrap() {
        let path = dir.join(name);
        match disk.contents(&path) {
            Some(bytes) => drop(all.insert(path, bytes)),
            None => all.extend(tree(disk, &path)),
        }
    }
    all
}

fn go(disk: &SimDisk, goal: Option<Goal>) -> Result<Rewound> {
    let shared: Arc<dyn Disk> = Arc::new(disk.clone());
    fork(&shared, Path::new("/a"), "p", goal, Path::new("/b"))
}

fn check(disk: &SimDisk, to: u64) {
    let shared: Arc<dyn Disk> = Arc::new(disk.clone());
    let ledger = Ledger::open(Arc::clone(&shared), Path::new("/b/programs/p/ledger")).unwrap();
    assert_eq!((ledger.version(), ledger.last().unwrap().batch), (BatchId(to), BatchId(4)));
    assert_eq!(ledger.positions()["lines"][&0.into()], Offset(2 * to));
    assert!(ledger.past().is_forked());
    let state = StateFiles::look(Arc::clone(&shared), Path::new("/b/programs/p/state/sum"), "sum").unwrap();
    assert_eq!(state.unwrap().load(BatchId(to)).unwrap().len() as u64, to);
    let log = Log::open(shared, Path::new("/b/log"), Arc::new(ManualClock::default())).unwrap();
    let topic = log.topic("lines").unwrap();
    assert_eq!((topic.start(0), topic.end(0)), (Offset(0), Offset(8)));
}

#[test]
fn a_copy_has_all_of_its_batch_and_the_first_is_untouched() {
    for to in 1..=4 {
        let disk = SimDisk::new();
        program(&disk);
        let before = tree(&disk, Path::new("/a"));
        let done = go(&disk, Some(Goal::Batch(BatchId(to)))).unwrap();
        assert_eq!((done.to, done.upto), (BatchId(to), BatchId(4)));
        assert_eq!(tree(&disk, Path::new("/a")), before);
        check(&disk, to);
        assert!(go(&disk, None).unwrap_err().to_string().contains("/b has data already"));
    }
    let disk = SimDisk::new();
    program(&disk);
    go(&disk, None).unwrap();
    check(&disk, 4);
}

#[test]
fn a_crash_at_every_step_of_a_copy_leaves_it_whole_or_no_program() {
    let before = SimDisk::new();
    program(&before);
    let first = tree(&before, Path::new("/a"));
    let goal = Some(Goal::Batch(BatchId(2)));
    let whole = before.fork();
    go(&whole, goal).unwrap();
    let mut programs = 0;
    for (op, seed) in (0..whole.ops()).flat_map(|op| (0..4).map(move |seed| (op, seed))) {
        let disk = before.fork();
        disk.fail_at(op, Fault::Crash);
        assert!(go(&disk, goal).is_err() || disk.is_dead());
        let found = disk.crash(seed);
        assert_eq!(tree(&found, Path::new("/a")), first, "crash at {op}, seed {seed}");
        let ledger = Path::new("/b/programs/p/ledger");
        let past = if found.exists(ledger) { Past::read(&found, ledger).unwrap() } else { None };
        if past.is_some() {
            programs += 1;
            check(&found, 2);
        }
    }
    assert!(programs >= 1, "the last step is the ledger's");
}
