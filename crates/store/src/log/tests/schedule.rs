//! Several threads append, sync and seal while the log's own threads do so too, and it is closed under them.
//!
//! Threads are held up before operations of the disk, by a dice, so that many
//! orders of appends, syncs and callbacks are met. That is a search, not a
//! proof: orders that differ only between two locks are met by chance alone.

use super::*;
use crate::{
    disk::{Disk, DiskFile, Fault, Mode},
    tests::{
        mutations::Mutations,
        tries::{first_seed, landed, tries},
    },
};
use std::{
    io::{self, IoSlice},
    sync::{Barrier, mpsc::channel},
    thread,
    time::Duration,
};

/// A schedule that ends in none has hung.
const PATIENCE: Duration = Duration::from_secs(60);

/// A disk before whose changes threads are held up for a while.
#[derive(Debug, Clone)]
struct HeldUp {
    disk: SimDisk,
    dice: Arc<Mutex<u64>>,
}

impl HeldUp {
    fn hold_up(&self) {
        let draw = {
            let mut dice = self.dice.lock();
            *dice = Mutations::new(*dice).next();
            *dice
        };
        // Most go on at once; some let everyone else pass.
        let times = if draw.is_multiple_of(3) { draw >> 8 & 0x1f } else { 0 };
        (0..times).for_each(|_| thread::yield_now());
    }
}

impl Disk for HeldUp {
    fn open(&self, path: &Path, mode: Mode) -> io::Result<Arc<dyn DiskFile>> {
        self.hold_up();
        Ok(Arc::new(HeldUpFile(self.disk.open(path, mode)?, self.clone())))
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
        self.hold_up();
        self.disk.rename(from, to)
    }
    fn remove(&self, path: &Path) -> io::Result<()> {
        self.disk.remove(path)
    }
    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        self.disk.remove_dir(path)
    }
    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.hold_up();
        self.disk.sync_dir(dir)
    }
    fn is_shared(&self) -> bool {
        false
    }
}

#[derive(Debug)]
struct HeldUpFile(Arc<dyn DiskFile>, HeldUp);

impl DiskFile for HeldUpFile {
    fn append(&self, parts: &[IoSlice<'_>]) -> io::Result<()> {
        self.1.hold_up();
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
        self.1.hold_up();
        let synced = self.0.sync();
        self.1.hold_up();
        synced
    }
}

/// What callbacks said, in the order in which they were called: the number of the rows, and whether they are durable.
type Told = Arc<Mutex<Vec<(u64, bool)>>>;

const WRITERS: i64 = 3;
const APPENDS: i64 = 4;

/// One schedule; gives what was told, and which rows each append was told to have.
fn play(disk: &SimDisk, seed: u64) -> (Told, Vec<(u64, i64)>) {
    let held = HeldUp { disk: disk.clone(), dice: Arc::new(Mutex::new(seed)) };
    let log = Log::open(Arc::new(held), Path::new("/data/log"), clock()).unwrap();
    let policy =
        if seed.is_multiple_of(2) { Sync::Always } else { Sync::Every(tidemill_core::Duration::from_secs(60)) };
    let config = TopicConfig { segment_bytes: 4096, ..config(policy) };
    let topic = log.create_topic("t", &config).unwrap();
    let mut dice = Mutations::new(seed);
    if dice.below(3) == 0 {
        disk.fail_at(disk.ops() + dice.below(30) as u64, Fault::Eio);
    }
    let (told, places) = (Told::default(), Arc::new(Mutex::new(Vec::new())));
    let start = Arc::new(Barrier::new(usize::try_from(WRITERS).unwrap() + 1));
    let mut threads = Vec::new();
    for writer in 0..WRITERS {
        let (topic, told, places, start) =
            (Arc::clone(&topic), Arc::clone(&told), Arc::clone(&places), Arc::clone(&start));
        threads.push(thread::spawn(move || {
            start.wait();
            for append in 0..APPENDS {
                let number = (writer * APPENDS + append) * 10;
                let told = Arc::clone(&told);
                // By its number: the place is known only when the append has returned, and this may be called before.
                let tell = Box::new(move |done: Result<()>| told.lock().push((number.cast_unsigned(), done.is_ok())));
                let Ok(at) = topic.append_with(0, &rows(number, 2, 700), None, tell) else { return };
                places.lock().push((at.first.0, number));
                if append == 2 {
                    let _told_by_callbacks = topic.sync_to(0, at.next);
                }
            }
        }));
    }
    let (syncing, begins) = (Arc::clone(&topic), Arc::clone(&start));
    threads.push(thread::spawn(move || {
        begins.wait();
        for _ in 0..3 {
            let _told_by_callbacks = syncing.partitions()[0].flush();
            tidy(&syncing);
        }
    }));
    let early = dice.below(4) == 0;
    let mut log = Some(log);
    if early {
        // Closed while they write: what comes later is refused, and what is kept is told.
        drop(log.take());
    }
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    drop((log, topic));
    let places = std::mem::take(&mut *places.lock());
    (told, places)
}

#[test]
fn every_schedule_acks_in_order_what_is_durable() {
    let (mut acked, mut refused) = (0, 0);
    for seed in first_seed()..first_seed() + tries(30) {
        let disk = SimDisk::new();
        let (done, ended) = channel();
        let playing = {
            let disk = disk.clone();
            thread::spawn(move || {
                let played = play(&disk, seed);
                // Nobody listens when it was given up.
                let _gone = done.send(());
                played
            })
        };
        assert!(ended.recv_timeout(PATIENCE).is_ok(), "seed {seed}: it hangs, or a thread of it panicked");
        let (told, mut places) = playing.join().unwrap();
        let told = std::mem::take(&mut *told.lock());
        places.sort_unstable();
        // In the order of the rows, once each, and nothing durable after what is not.
        let offset = |number: u64| places.iter().position(|(_, n)| n.cast_unsigned() == number);
        let order: Vec<Option<usize>> = told.iter().map(|(number, _)| offset(*number)).collect();
        assert!(order.windows(2).all(|two| two[0] < two[1]), "seed {seed}: called back in another order: {told:?}");
        let first_no = told.iter().position(|(_, durable)| !durable).unwrap_or(told.len());
        assert!(told[first_no..].iter().all(|(_, durable)| !durable), "seed {seed}: an ack after a failure: {told:?}");
        acked += first_no;
        refused += told.len() - first_no;
        // What was acked survives, each append whole and where it was said to be.
        let log = quiet(&disk.crash(seed)).unwrap();
        let topic = log.topic("t").unwrap();
        let all = read(&topic, 0, topic.end(0).0).unwrap();
        assert!(all.len() >= 2 * first_no, "seed {seed}: {first_no} appends were acked, {} rows are kept", all.len());
        for ((first, number), kept) in places.iter().zip(all.chunks(2)) {
            assert_eq!(kept, [*number, number + 1], "seed {seed}: at {first}");
        }
    }
    landed(format_args!("{} schedules: {acked} appends acked, {refused} told that they are not kept", tries(30)));
    assert!(acked > 0);
}
