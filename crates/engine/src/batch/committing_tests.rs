//! Batches that run while the disk holds up the commits before them.
//!
//! The disk's syncs are held until the test lets them go; what the disk would show after a
//! crash in between is started again, and must give what all input at once gives.

use super::Trigger;
use crate::{StreamingContext, records_of};
use parking_lot::{Condvar, Mutex};
use std::{
    collections::BTreeMap,
    io::{self, IoSlice},
    path::Path,
    sync::{Arc, mpsc},
};
use tidemill_core::{BatchId, Clock, Duration, Event, ManualClock, Timestamp};
use tidemill_store::disk::{Disk, DiskFile, Fault, Mode, SimDisk};
use tokio::sync::broadcast::Receiver;

const INTERVAL: Duration = Duration::from_millis(10);
const BATCHES: i64 = 30;
/// Longer than any machine takes for a batch that waits for nothing.
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(60);

/// A disk whose syncs wait while it is held.
#[derive(Debug, Clone)]
struct HeldDisk {
    disk: SimDisk,
    held: Arc<(Mutex<bool>, Condvar)>,
}

impl HeldDisk {
    fn over(disk: SimDisk) -> Self {
        Self { disk, held: Arc::default() }
    }

    fn hold(&self, held: bool) {
        *self.held.0.lock() = held;
        self.held.1.notify_all();
    }

    fn wait(&self) {
        self.held.1.wait_while(&mut self.held.0.lock(), |held| *held);
    }
}

impl Disk for HeldDisk {
    fn open(&self, path: &Path, mode: Mode) -> io::Result<Arc<dyn DiskFile>> {
        Ok(Arc::new(HeldFile(self.disk.open(path, mode)?, self.clone())))
    }
    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        self.disk.create_dir_all(path)
    }
    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        self.disk.list(dir)
    }
    fn exists(&self, path: &Path) -> bool {
        self.disk.exists(path)
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.disk.rename(from, to)
    }
    fn remove(&self, path: &Path) -> io::Result<()> {
        self.disk.remove(path)
    }
    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        self.disk.remove_dir(path)
    }
    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.wait();
        self.disk.sync_dir(dir)
    }
    fn is_shared(&self) -> bool {
        false
    }
}

#[derive(Debug)]
struct HeldFile(Arc<dyn DiskFile>, HeldDisk);

impl DiskFile for HeldFile {
    fn append(&self, parts: &[IoSlice<'_>]) -> io::Result<()> {
        self.0.append(parts)
    }
    fn read_at(&self, position: u64, into: &mut [u8]) -> io::Result<()> {
        self.0.read_at(position, into)
    }
    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }
    fn truncate(&self, len: u64) -> io::Result<()> {
        self.0.truncate(len)
    }
    fn sync(&self) -> io::Result<()> {
        self.1.wait();
        self.0.sync()
    }
}

/// A program that keeps a total by key: one record a batch.
struct Program {
    context: StreamingContext,
    clock: Arc<ManualClock>,
    events: Receiver<Event>,
    /// Each record as it is computed on.
    passed: mpsc::Receiver<i64>,
}

fn program(disk: &HeldDisk, trigger: Trigger, records: i64) -> Program {
    let clock = Arc::new(ManualClock::at(Timestamp(0)));
    let context = StreamingContext::builder("p")
        .trigger(trigger)
        .partitions(2)
        .clock(Arc::clone(&clock) as Arc<dyn Clock>)
        .data_dir("/data")
        .disk(Arc::new(disk.clone()))
        .build();
    let (pass, passed) = mpsc::channel();
    let records = context.queue_stream((0..records).map(|i| vec![i])).unwrap();
    let keyed = records.map(move |i: i64| {
        // Nobody looks at those of a program that only drains.
        let _unseen = pass.send(i);
        (i % 7, i)
    });
    let totals =
        keyed.update_state_by_key(|new: &[i64], total: Option<i64>| Some(total.unwrap_or(0) + new.iter().sum::<i64>()));
    totals.snapshot().view("totals", &["key", "total"]);
    let events = context.board().subscribe();
    Program { context, clock, events, passed }
}

impl Program {
    /// The next batch begins, and computes on its record.
    fn tick(&self, record: i64) {
        self.clock.advance(INTERVAL);
        assert_eq!(self.passed.recv_timeout(PATIENCE).expect("a batch waits for a commit"), record);
    }

    fn committed(&mut self, id: i64) {
        loop {
            if let Event::Batch(report) = self.events.blocking_recv().unwrap() {
                assert_eq!(report.batch, BatchId(id.cast_unsigned()));
                assert_eq!(report.scheduling_delay_us, 0, "batch {id} was late");
                return;
            }
        }
    }

    fn totals(&self) -> BTreeMap<i64, i64> {
        let view = self.context.board().view("totals");
        view.map(|view| records_of::<(i64, i64)>(&view.rows).unwrap().into_iter().collect()).unwrap_or_default()
    }
}

/// The totals over the first records.
fn over(records: i64) -> BTreeMap<i64, i64> {
    let mut totals = BTreeMap::new();
    (0..records).for_each(|i| *totals.entry(i % 7).or_default() += i);
    totals
}

/// What a start on `disk` makes of the rest, and of a record more, is what all input at once gives.
fn ends_well(disk: SimDisk, what: &str) {
    let program = program(&HeldDisk::over(disk), Trigger::Drain, BATCHES + 1);
    program.context.start().unwrap();
    program.context.await_termination().unwrap();
    assert_eq!(program.totals(), over(BATCHES + 1), "{what}");
}

#[test]
fn batches_run_on_time_while_the_disk_is_slow_and_show_nothing_before_their_turn() {
    let disk = HeldDisk::over(SimDisk::new());
    let mut program = program(&disk, Trigger::Every(INTERVAL), BATCHES);
    program.context.start().unwrap();
    for i in 0..2 {
        program.tick(i);
        program.committed(i + 1);
    }
    disk.hold(true);
    let held = i64::try_from(super::committing::WAITING).unwrap();
    (2..2 + held).for_each(|i| program.tick(i));
    assert_eq!(program.totals(), over(2), "nothing of a batch is seen before its commit");
    let found = [("the process died", disk.disk.fork()), ("the power went", disk.disk.fork().crash(7))];
    disk.hold(false);
    for i in 2..2 + held {
        program.committed(i + 1);
    }
    assert_eq!(program.totals(), over(2 + held));
    for i in 2 + held..BATCHES {
        program.tick(i);
        program.committed(i + 1);
    }
    program.context.stop(true).unwrap();
    assert_eq!(program.totals(), over(BATCHES));
    for (what, disk) in found {
        ends_well(disk, what);
    }
}

#[test]
fn when_a_commit_fails_none_after_it_happens_and_a_start_goes_on_from_there() {
    let (mut failed, mut went_on) = (0, 0);
    for op in 0..12 {
        let disk = HeldDisk::over(SimDisk::new());
        let mut program = program(&disk, Trigger::Every(INTERVAL), BATCHES);
        program.context.start().unwrap();
        program.tick(0);
        program.committed(1);
        disk.hold(true);
        (1..6).for_each(|i| program.tick(i));
        disk.disk.fail_at(disk.disk.ops() + op, Fault::Eio);
        disk.hold(false);
        // It goes on, or ends with the fault, as the disk's operation is one that may be tried again or not.
        program.context.request_stop();
        let ended = loop {
            match program.context.await_for(Duration::from_millis(5)) {
                // What waits to try again waits for this clock.
                Ok(None) => program.clock.advance(Duration::from_millis(500)),
                ended => break ended,
            }
        };
        *(if ended.is_err() { &mut failed } else { &mut went_on }) += 1;
        let shown = program.totals();
        let all: Vec<_> = (1..=BATCHES).map(over).collect();
        assert!(all.contains(&shown), "operation {op}: {shown:?} is no batch's");
        assert!(ended.is_err() || shown.len() >= over(6).len(), "operation {op}: batches that ran were left out");
        ends_well(disk.disk.fork(), &format!("after a fault at operation {op}"));
        ends_well(disk.disk.crash(op), &format!("after a fault at operation {op}, and the power went"));
    }
    assert!(failed > 0 && went_on > 0, "{failed} faults ended the program, {went_on} did not");
}
