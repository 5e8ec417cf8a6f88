//! A whole program through everything that a machine can do to it.
//!
//! ```text
//! producers ─► log ─► batches ─┬► each record into files          (producer, seq, crc)
//!     ▲ acks, kept outside     ├► a state by producer into a topic (producer, records, sum of seq)
//!                              └► refused records: the dead letters
//! ```
//!
//! The oracle: what was acked is in the files, or if refused in the dead letters,
//! exactly once; what was not acked at most once; each value of the state is the
//! fold of what the files hold of that producer. Producer 0 goes on from the
//! token that the log kept, so that all of its records must arrive; producer 1
//! sends each of its records once and never again.

mod canary;
mod disk;
mod faults;

use arrow_array::{cast::AsArray, types::Int64Type};
use arrow_schema::{DataType, Field, Schema};
use disk::PlantedDisk;
use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    sync::{Arc, Mutex},
    time::Instant,
};
use tidemill::{
    Duration, Error, Record, Result, StreamingContext, Timestamp, Trigger,
    connectors::{
        files::{FileFormat, FilesSink},
        format::JsonFormat,
    },
    core::{Ack, Block, Clock, Intake, ManualClock, Receiver, Sink, Stop},
    store::{Log, disk::SimDisk},
};

/// Records of each producer.
const EACH: u64 = 40;
/// The data directory, and where the files go.
const DATA: &str = "/d";
const OUT: &str = "/out";

/// A number from a number (splitmix64).
pub(crate) fn mix(number: u64) -> u64 {
    let z = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

fn crc(producer: usize, seq: u64) -> i64 {
    (mix(((producer as u64) << 32) | seq) >> 16).cast_signed()
}

/// Whether a record is one that can't be decoded.
fn is_poison(seq: u64) -> bool {
    seq % 7 == 3
}

fn record(producer: usize, seq: u64) -> String {
    if is_poison(seq) {
        return format!("poison {producer} {seq}");
    }
    format!("{{\"producer\":{producer},\"seq\":{seq},\"crc\":{}}}", crc(producer, seq))
}

#[derive(Debug, Clone, PartialEq, Record)]
struct Sent {
    producer: i64,
    seq: i64,
    crc: i64,
}

/// What producers know, outside of the program.
#[derive(Debug, Default)]
struct World {
    acked: [Mutex<BTreeSet<u64>>; 2],
    /// The next record of producer 1, who sends none again.
    next: Mutex<u64>,
    wrong: Mutex<Option<String>>,
}

#[derive(Debug)]
struct Producer {
    number: usize,
    world: Arc<World>,
    /// A bug that is planted: it takes a record for acked when it is sent.
    acks_early: bool,
}

impl Producer {
    async fn told(&self, waiting: &mut Vec<(Vec<u64>, Ack)>) -> Result<()> {
        for (seqs, ack) in waiting.drain(..) {
            ack.await?;
            self.world.acked[self.number].lock().unwrap().extend(seqs);
        }
        Ok(())
    }
}

#[async_trait::async_trait]
impl Receiver for Producer {
    fn describe(&self) -> String {
        format!("producer {}", self.number)
    }

    async fn run(&self, intake: Arc<dyn Intake>, _stop: Stop) -> Result<()> {
        let kept = intake.resume().map_or(0, |token| token.parse::<u64>().unwrap());
        let mut next = if self.number == 0 { kept } else { *self.world.next.lock().unwrap() };
        if let Some(last) = self.world.acked[self.number].lock().unwrap().last().filter(|last| **last >= kept) {
            self.world.wrong.lock().unwrap().get_or_insert(format!(
                "record {last} of producer {} is acked, and the log goes on from {kept}",
                self.number
            ));
        }
        let mut waiting = Vec::new();
        while next < EACH {
            let until = (next + 1 + mix(next) % 4).min(EACH);
            let seqs: Vec<u64> = (next..until).collect();
            let block = Block::from_records(seqs.iter().map(|seq| record(self.number, *seq)));
            if self.number == 1 {
                *self.world.next.lock().unwrap() = until;
            }
            if self.acks_early {
                self.world.acked[self.number].lock().unwrap().extend(&seqs);
            }
            waiting.push((seqs, intake.append(block, Some(until.to_string())).await?));
            next = until;
            if waiting.len() > 2 {
                self.told(&mut waiting).await?;
            }
        }
        self.told(&mut waiting).await
    }
}

/// Bugs that are planted outside of the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Bug {
    None,
    /// A producer is told that its records are kept before they are appended.
    AckBeforeAppend,
    /// The sink shows a batch when it stages it, before the ledger has its commit.
    ShowBeforeCommit,
    /// The sink forgets to show what it staged, one batch in three.
    ForgetToShow,
}

/// The program on a disk.
fn declared(disk: &Arc<PlantedDisk>, world: &Arc<World>, clock: &Arc<ManualClock>, bug: Bug) -> StreamingContext {
    let context = tidemill::context("whole")
        .trigger(Trigger::Drain)
        .partitions(2)
        .sync(tidemill::Sync::Always)
        .batch_records(9)
        .clock(Arc::clone(clock) as Arc<dyn Clock>)
        .disk(Arc::clone(disk) as Arc<_>)
        .data_dir(DATA)
        .build();
    let column = |name| Field::new(name, DataType::Int64, false);
    let format =
        JsonFormat::new(Arc::new(Schema::new(vec![column("producer"), column("seq"), column("crc")]))).unwrap();
    let producers = (0..2).map(|number| {
        let acks_early = bug == Bug::AckBeforeAppend;
        Arc::new(Producer { number, world: Arc::clone(world), acks_early }) as Arc<dyn Receiver>
    });
    let sent = context.receiver_stream::<Sent>("sent", producers.collect(), Arc::new(format)).unwrap();
    let files = FilesSink::new(OUT, FileFormat::Json, Arc::clone(disk) as Arc<_>);
    let files: Arc<dyn Sink> = match bug {
        Bug::ShowBeforeCommit | Bug::ForgetToShow => Arc::new(canary::WrongSink { files, bug }),
        Bug::None | Bug::AckBeforeAppend => Arc::new(files),
    };
    sent.to_sink(files);
    let folded = sent.map(|sent| (sent.producer, sent.seq)).with_name("by_producer").update_state_by_key(
        |new: &[i64], state: Option<(i64, i64)>| {
            let (records, sum) = state.unwrap_or_default();
            Some((records + i64::try_from(new.len()).unwrap_or(0), sum + new.iter().sum::<i64>()))
        },
    );
    let rows = folded.changes().map(|(producer, (records, sum))| (producer, records, sum));
    rows.save_to_topic("totals", &["producer", "records", "sum"]).unwrap();
    context
}

/// How a life of the program ended.
#[derive(Debug)]
enum Ended {
    /// It read all, or failed with this error.
    Itself(Result<()>),
    /// The machine stopped.
    Dead,
}

/// Runs the program until it ends or its disk dies.
fn live(disk: &Arc<PlantedDisk>, world: &Arc<World>, bug: Bug) -> Ended {
    // Long after any life before: times of batches grow.
    let clock = Arc::new(ManualClock::at(Timestamp::from_millis(1_000)));
    let context = declared(disk, world, &clock, bug);
    if let Err(error) = context.start() {
        return if disk.disk.is_dead() { Ended::Dead } else { Ended::Itself(Err(error)) };
    }
    let until = Instant::now() + crate::run::PATIENCE;
    loop {
        match context.await_for(Duration::from_millis(2)) {
            // What tries again does so each second of its clock.
            Ok(None) => clock.advance(Duration::from_secs(1)),
            _ended if disk.disk.is_dead() => return Ended::Dead,
            Ok(Some(())) => return Ended::Itself(Ok(())),
            Err(error) => return Ended::Itself(Err(error)),
        }
        if disk.disk.is_dead() {
            let _whatever_it_says = context.stop(false);
            return Ended::Dead;
        }
        assert!(Instant::now() < until, "the program neither ends nor fails: {:?}", context.board().program());
    }
}

/// What the outputs hold, when all is as it must be.
#[derive(Debug, Default)]
struct Held {
    rows: [BTreeSet<u64>; 2],
    letters: [BTreeSet<u64>; 2],
}

/// Compares outputs with what producers know. With `all`, nothing that was acked may be missing.
fn check(disk: &SimDisk, world: &World, all: bool) -> Result<Held, String> {
    if let Some(wrong) = world.wrong.lock().unwrap().clone() {
        return Err(wrong);
    }
    let mut held = Held::default();
    rows_of_files(disk, &mut held)?;
    let log = Log::open(Arc::new(disk.fork()), Path::new("/d/log"), Arc::new(ManualClock::at(Timestamp(1))))
        .map_err(|e| format!("the log: {}", e.chain()))?;
    letters_of(&log, &mut held)?;
    for producer in 0..2 {
        let sent = if producer == 0 { EACH } else { *world.next.lock().unwrap() };
        let got: BTreeSet<u64> = &held.rows[producer] | &held.letters[producer];
        if let Some(seq) = got.iter().find(|seq| **seq >= sent) {
            return Err(format!("record {seq} of producer {producer} was never sent"));
        }
        let acked = world.acked[producer].lock().unwrap().clone();
        let must = if producer == 0 { (0..EACH).collect() } else { acked };
        if let Some(seq) = must.difference(&got).next().filter(|_| all) {
            return Err(format!("record {seq} of producer {producer} is lost"));
        }
    }
    states_of(&log, &held)?;
    Ok(held)
}

fn rows_of_files(disk: &SimDisk, held: &mut Held) -> Result<(), String> {
    use tidemill::store::Disk;
    for name in disk.list(Path::new(OUT)).unwrap_or_default().iter().filter(|name| name.starts_with("batch-")) {
        let text = String::from_utf8(disk.contents(&Path::new(OUT).join(name)).unwrap_or_default())
            .map_err(|_| format!("{name} is no text"))?;
        for line in text.lines() {
            let row: serde_json::Value = serde_json::from_str(line).map_err(|e| format!("{name}: {line:?}: {e}"))?;
            let number = |field: &str| row[field].as_i64().ok_or_else(|| format!("{name}: no `{field}` in {line}"));
            let (producer, seq) = (number("producer")?, number("seq")?);
            let (Ok(producer @ 0..2), Ok(seq)) = (usize::try_from(producer), u64::try_from(seq)) else {
                return Err(format!("{name}: nobody sent {line}"));
            };
            if number("crc")? != crc(producer, seq) || is_poison(seq) {
                return Err(format!("{name}: a changed record: {line}"));
            }
            if !held.rows[producer].insert(seq) {
                return Err(format!("{name}: record {seq} of producer {producer} is there twice"));
            }
        }
    }
    Ok(())
}

fn letters_of(log: &Log, held: &mut Held) -> Result<(), String> {
    let Some(topic) = log.topic("whole.dead") else { return Err("there is no topic of dead letters".into()) };
    for run in topic.read(0, topic.start(0), topic.end(0)) {
        let run = run.map_err(|e| format!("dead letters: {}", e.chain()))?;
        for raw in run.rows.column_by_name("raw").ok_or("no column `raw`")?.as_binary::<i32>().iter().flatten() {
            let text = String::from_utf8_lossy(raw);
            let mut words = text.split(' ').skip(1).map(str::parse::<u64>);
            let (Some(Ok(producer @ 0..2)), Some(Ok(seq))) = (words.next(), words.next()) else {
                return Err(format!("a dead letter that nobody sent: {text}"));
            };
            let producer = usize::try_from(producer).unwrap_or(0);
            if text != record(producer, seq) || !held.letters[producer].insert(seq) {
                return Err(format!("a dead letter that is changed, or there twice: {text}"));
            }
        }
    }
    Ok(())
}

fn states_of(log: &Log, held: &Held) -> Result<(), String> {
    let Some(topic) = log.topic("totals") else { return Err("there is no topic of totals".into()) };
    let mut last: BTreeMap<i64, (i64, i64)> = BTreeMap::new();
    for run in topic.read(0, topic.start(0), topic.end(0)) {
        let rows = run.map_err(|e| format!("totals: {}", e.chain()))?.rows;
        let of = |column: usize| rows.column(column).as_primitive::<Int64Type>().values().to_vec();
        for ((producer, records), sum) in of(0).into_iter().zip(of(1)).zip(of(2)) {
            let seqs = &held.rows[usize::try_from(producer).map_err(|_| "a producer below zero")?];
            let count = usize::try_from(records).map_err(|_| "a count below zero")?;
            let folded: u64 = seqs.iter().take(count).sum();
            if sum.cast_unsigned() != folded || count > seqs.len() {
                return Err(format!("the state of producer {producer} is {records}, {sum}: no fold of its records"));
            }
            let before = last.insert(producer, (records, sum));
            if before.is_some_and(|(before, _)| before >= records) {
                return Err(format!("the state of producer {producer} went back to {records} records"));
            }
        }
    }
    for (producer, seqs) in (0..).zip(&held.rows) {
        let counted = last.get(&producer).map_or(0, |(records, _)| *records);
        if counted != i64::try_from(seqs.len()).unwrap_or(-1) {
            return Err(format!("producer {producer} has {} records, and its state says {counted}", seqs.len()));
        }
    }
    Ok(())
}

/// Lives through `trouble`, one a life, then undisturbed to the end, and checks. `trouble` prepares the disk
/// of a life and says what is found after it. Gives how many lives were cut short.
fn survive(
    first: SimDisk,
    trouble: &[&dyn Fn(&PlantedDisk)],
    after: impl Fn(&SimDisk, u64) -> SimDisk,
    plant: disk::Plant,
    bug: Bug,
) -> Result<u64, String> {
    let world = Arc::new(World::default());
    let mut disk = first;
    let mut landed = 0;
    for (life, prepare) in (0..).zip(trouble) {
        let planted = Arc::new(PlantedDisk::new(disk.clone(), plant));
        prepare(&planted);
        match live(&planted, &world, bug) {
            Ended::Dead => landed += 1,
            Ended::Itself(Ok(())) => {}
            Ended::Itself(Err(error)) => {
                let told = error.chain();
                if told.contains("panicked") {
                    return Err(format!("life {life}: {told}"));
                }
                landed += 1;
            }
        }
        disk = after(&disk, life);
    }
    let planted = Arc::new(PlantedDisk::new(disk.clone(), plant));
    match live(&planted, &world, bug) {
        Ended::Itself(Ok(())) => {}
        ended => return Err(format!("the last life: {ended:?}")),
    }
    check(&disk, &world, true)?;
    Ok(landed)
}

/// Changing operations of an undisturbed life.
fn operations() -> u64 {
    let disk = SimDisk::new();
    survive(disk.clone(), &[], |disk, _| disk.fork(), disk::NO_PLANT, Bug::None).unwrap();
    disk.ops()
}

/// An error that says what and where.
fn fault(text: String) -> Error {
    Error::internal(text)
}

#[test]
fn an_undisturbed_life_gives_every_record_once() {
    let disk = SimDisk::new();
    let world = Arc::new(World::default());
    let planted = Arc::new(PlantedDisk::new(disk.clone(), disk::NO_PLANT));
    assert!(matches!(live(&planted, &world, Bug::None), Ended::Itself(Ok(()))));
    let held = check(&disk, &world, true).unwrap();
    for producer in 0..2 {
        let poison = (0..EACH).filter(|seq| is_poison(*seq)).collect();
        assert_eq!(held.letters[producer], poison);
        assert_eq!(held.rows[producer].len() + held.letters[producer].len(), 40);
        assert_eq!(world.acked[producer].lock().unwrap().len(), 40, "all were acked");
    }
}
