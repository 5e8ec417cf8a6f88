//! Letters are run again once, whatever crashes, and keep where they came from.

use super::*;
use crate::{
    LetterFilter, Letters, Shell, StreamingContext, Trigger,
    ingest::{DeadLetters, tests},
    testing::SqlProgram,
};
use arrow_array::types::Int64Type;
use tidemill_core::{BatchId, DeadLetter, ManualClock, Registry};
use tidemill_store::{
    SimDisk, atomic_write,
    disk::{Fault, create_dir},
};

const NOW: Timestamp = Timestamp(1_000_000_000);

const PROGRAM: &str = "
    CREATE STREAM lines WITH (connector = 'idle');
    CREATE VIEW seen AS SELECT value, _partition, _offset FROM lines;
    CREATE VIEW total AS SELECT count(*) AS n FROM lines";

fn program(dir: &Path, registry: Registry, text: &str) -> SqlProgram {
    let builder = StreamingContext::builder("p").trigger(Trigger::Drain).partitions(2).data_dir(dir);
    let mut program = SqlProgram::over(builder.registry(registry).build());
    program.start(text).unwrap();
    program
}

fn append(program: &SqlProgram, lines: &[&str]) {
    let topic = program.pipeline().keep.as_ref().unwrap().log().topic("lines").unwrap();
    topic.append(0, &tests::lines(lines), None).unwrap();
}

fn total(program: &SqlProgram) -> i64 {
    program.view("total").unwrap().column(0).as_primitive::<Int64Type>().value(0)
}

/// The rows of the last batch that had any: value, partition, offset.
fn seen(program: &SqlProgram) -> Vec<(String, String, u64)> {
    let rows = program.view("seen").unwrap();
    let (value, partition) = (rows.column(0).as_string::<i32>(), rows.column(1).as_string::<i32>());
    let offset = rows.column(2).as_primitive::<UInt64Type>();
    (0..rows.num_rows()).map(|i| (value.value(i).into(), partition.value(i).into(), offset.value(i))).collect()
}

fn ask(dir: &Path, numbers: &[u64], again: bool) {
    let log = Log::look(&dir.join("log"), Arc::new(ManualClock::default())).unwrap();
    let letters = Letters::open(&log, dir, "p").unwrap();
    letters.ask(&numbers.iter().copied().collect(), again, NOW).unwrap();
    let letters = Letters::open(&log, dir, "p").unwrap();
    assert!(numbers.iter().all(|number| letters.is_asked(*number)));
}

#[test]
fn after_the_fix_a_letter_is_a_record_of_its_stream_once() {
    let dir = tempfile::tempdir().unwrap();
    let broken = program(dir.path(), tests::registry(), PROGRAM);
    append(&broken, &["a", "refuse", "b", "refuse"]);
    broken.step().unwrap();
    assert_eq!(total(&broken), 2);
    // Before the fix it is refused again, under the same origin.
    ask(dir.path(), &[0], false);
    broken.step().unwrap();
    broken.step().unwrap();
    assert_eq!(total(&broken), 2);
    let query = "SELECT stream, partition, \"offset\", batch, reason, raw FROM dead ORDER BY _offset";
    // As another process asks while the program has the directory.
    let shell = Shell::open(dir.path()).unwrap();
    let rows = shell.query(query).unwrap();
    assert_eq!(rows[0], shell.query(&query.replace(" dead ", " p.dead ")).unwrap()[0]);
    let offsets = rows[0].column(2).as_primitive::<UInt64Type>().values().to_vec();
    let batches = rows[0].column(3).as_primitive::<UInt64Type>().values().to_vec();
    assert_eq!((offsets, batches), (vec![1, 3, 1], vec![1, 1, 2]));
    assert_eq!(rows[0].column(5).as_string::<i32>().value(2), "refuse", "the raw record is shown as text");
    drop(broken);

    let mended = program(dir.path(), tests::mended_registry(), PROGRAM);
    ask(dir.path(), &[1, 2], false);
    append(&mended, &["c"]);
    mended.step().unwrap();
    let mut rows = seen(&mended);
    rows.sort_by_key(|row| row.2);
    let row = |value: &str, offset| (value.to_string(), "0".to_string(), offset);
    assert_eq!(rows, [row("refuse", 1), row("refuse", 3), row("c", 4)], "each where it came from");
    assert_eq!(total(&mended), 5);
    // Asked once more it is passed over, unless that is said.
    ask(dir.path(), &[1], false);
    mended.step().unwrap();
    assert_eq!(total(&mended), 5);
    ask(dir.path(), &[1], true);
    mended.step().unwrap();
    assert_eq!(total(&mended), 6);
    drop(mended);

    let later = program(dir.path(), tests::mended_registry(), PROGRAM);
    later.step().unwrap();
    assert_eq!(total(&later), 6, "the ledger knows what was run again");
    let log = Log::look(&dir.path().join("log"), Arc::new(ManualClock::default())).unwrap();
    let letters = Letters::open(&log, dir.path(), "p").unwrap();
    assert!((0..3).all(|number| letters.is_replayed(number) && !letters.is_asked(number)));
    let newest = LetterFilter { reason: Some("NO TEXT".into()), numbers: [2].into(), ..LetterFilter::default() };
    assert_eq!(letters.all().filter(|kept| newest.takes(kept.as_ref().unwrap())).count(), 1);
}

#[test]
fn a_request_that_is_none_is_set_aside() {
    let dir = tempfile::tempdir().unwrap();
    let running = program(dir.path(), tests::registry(), PROGRAM);
    let mailbox = dir.path().join("programs/p/replay");
    std::fs::create_dir_all(&mailbox).unwrap();
    std::fs::write(mailbox.join("1.json"), "{}").unwrap();
    append(&running, &["a"]);
    running.step().unwrap();
    assert_eq!(total(&running), 1);
    assert!(mailbox.join("1.bad").exists() && !mailbox.join("1.json").exists());
}

#[test]
fn too_large_a_share_stops_the_program_and_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let bounded = PROGRAM.replace("'idle'", "'idle', dead_stop_share = '0.1', dead_stop_over = '10'");
    let running = program(dir.path(), tests::registry(), &bounded);
    append(&running, &["a", "b", "c", "d", "e", "f", "g", "h", "i", "refuse"]);
    running.step().unwrap();
    assert_eq!(total(&running), 9, "just the share");
    append(&running, &["j", "refuse", "k", "l", "m", "n", "o", "p", "q", "refuse"]);
    let error = running.step().unwrap_err();
    assert_eq!(error.blame(), tidemill_core::Blame::User);
    let error = error.to_string();
    assert!(error.contains("20.0% of the last 10 records were refused, more than the 10.0%"), "{error}");
    assert!(error.contains("no text (partition 0, offset 11); no text (partition 0, offset 19)"), "{error}");
    drop(running);
    let mended = program(dir.path(), tests::mended_registry(), &bounded);
    mended.step().unwrap();
    assert_eq!(total(&mended), 19, "the batch that stopped it is read again");
    let dead = Shell::open(dir.path()).unwrap().query("SELECT count(*) FROM dead").unwrap();
    assert_eq!(dead[0].column(0).as_primitive::<Int64Type>().value(0), 1, "its letters were not kept");
}

fn letter(offset: u64) -> DeadLetter {
    DeadLetter {
        stream: "s".into(),
        partition: PartitionId::from(0),
        offset: Offset(offset),
        batch: Some(BatchId(1)),
        reason: "no text".into(),
        raw: format!("record {offset}").into_bytes(),
    }
}

struct Parts {
    replays: Replays,
    letters: DeadLetters,
    _log: Arc<Log>,
}

fn parts(disk: &SimDisk) -> Parts {
    parts_after(disk, BatchId(1))
}

/// Of a program whose last commit is that of batch `last`.
fn parts_after(disk: &SimDisk, last: BatchId) -> Parts {
    let disk: Arc<dyn Disk> = Arc::new(disk.clone());
    let log = Arc::new(Log::open(Arc::clone(&disk), Path::new("/log"), Arc::new(ManualClock::default())).unwrap());
    let config = TopicConfig { sync: Sync::Always, ..TopicConfig::new(dead_schema()) };
    let dead = log.topic("p.dead").unwrap_or_else(|| log.create_topic("p.dead", &config).unwrap());
    let replays = Replays::open(&log, &dead, &disk, "p", Path::new("/p")).unwrap();
    let letters = DeadLetters::open(dead, &replays, last).unwrap();
    Parts { replays, letters, _log: log }
}

fn request(disk: &SimDisk, name: &str, numbers: impl IntoIterator<Item = u64>, again: bool) {
    create_dir(disk, Path::new("/p/replay")).unwrap();
    let bytes = Request::new(&numbers.into_iter().collect(), again).to_bytes();
    atomic_write(disk, &Path::new("/p/replay").join(name), &bytes).unwrap();
}

#[test]
fn a_crash_at_any_operation_neither_loses_nor_doubles_a_letter() {
    let base = SimDisk::new();
    {
        let before = parts(&base);
        let letters: Vec<DeadLetter> = (0..20).map(letter).collect();
        before.letters.commit(BatchId(1), &letters, &before.replays).unwrap();
        before.replays.settled();
        request(&base, "0.json", [3, 5], false);
        before.replays.take_requests(NOW, true).unwrap();
    }
    request(&base, "1.json", (0..8).chain(12..17), false);
    request(&base, "2.json", [3, 15, 18, 19], true);
    let want: Vec<u64> = [3, 5, 0, 1, 2, 4, 6, 7, 12, 13, 14, 15, 16, 3, 15, 18, 19].into();
    let mut crashes = 0;
    for at in 0.. {
        let disk = base.fork();
        let from = disk.ops();
        disk.fail_at(from + at, Fault::Crash);
        let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let parts = parts(&disk);
            parts.replays.take_requests(NOW, true)
        }));
        let crashed = disk.is_dead();
        let found = if crashed { disk.crash(at) } else { disk.fork() };
        drop(done);
        let after = parts(&found);
        after.replays.take_requests(NOW, true).unwrap();
        let topic = after.replays.topic().unwrap();
        let got: Vec<u64> = topic
            .read(0, topic.start(0), topic.end(0))
            .flat_map(|rows| numbers_of(&rows.unwrap().rows).unwrap().values().to_vec())
            .collect();
        assert_eq!(got, want, "crashed at operation {at}");
        assert_eq!(requests(&found, Path::new("/p/replay")).unwrap().len(), 0);
        if !crashed {
            break;
        }
        crashes += 1;
    }
    assert!(crashes > 10, "{crashes} crashes");
}

/// The letters of batch 1 that may be run again, by offset.
fn runnable(parts: &Parts) -> Vec<u64> {
    let noted = parts.replays.noted().unwrap();
    let all = letters(&parts.replays.dead, Offset(0), parts.replays.dead.end(0)).map(Result::unwrap);
    let mut offsets: Vec<u64> =
        all.filter(|kept| !noted.contains(&kept.number)).map(|kept| kept.letter.offset.0).collect();
    offsets.sort_unstable();
    offsets
}

#[test]
fn a_batch_that_was_not_committed_is_another_one_when_it_runs_again_whatever_crashes() {
    let base = SimDisk::new();
    let first: Vec<DeadLetter> = [1, 2, 3, 4].into_iter().map(letter).collect();
    let before = parts_after(&base, BatchId(0));
    before.letters.commit(BatchId(1), &first, &before.replays).unwrap();
    // As a life does that is to end before its commit: asked for too early, the letters wait.
    request(&base, "1.json", 0..4, false);
    before.replays.take_requests(NOW, true).unwrap();
    assert!(before.replays.topic().is_none(), "nothing of a batch that may never be committed is run again");
    drop(before);
    let again: Vec<DeadLetter> = [2, 3, 9, 10].into_iter().map(letter).collect();
    let receiver = [DeadLetter { batch: None, ..letter(70) }];
    let life = |disk: &SimDisk, receiver: &[DeadLetter]| {
        let parts = parts_after(disk, BatchId(0));
        receiver.iter().try_for_each(|letter| parts.letters.now(letter))?;
        parts.replays.take_requests(NOW, true).unwrap();
        // Repeated, as after a later step that failed.
        for _ in 0..2 {
            parts.letters.commit(BatchId(1), &again, &parts.replays)?;
        }
        Ok::<_, Error>(parts)
    };
    let whole = life(&base.fork(), &receiver).unwrap();
    assert_eq!(runnable(&whole), [2, 3, 9, 10, 70]);
    assert_eq!(whole.replays.dead.end(0), Offset(7), "those that are the same stay as they are");
    assert!(requests(&*whole.replays.disk, Path::new("/p/replay")).unwrap().len() == 1, "it still waits");
    whole.replays.settled();
    whole.replays.take_requests(NOW, true).unwrap();
    let topic = whole.replays.topic().unwrap();
    assert_eq!(replayed(&topic).unwrap().into_iter().collect::<Vec<_>>(), [0, 1, 2, 3], "0 and 3 are noted");
    let rows: usize = topic.read(0, topic.start(0), topic.end(0)).map(|rows| rows.unwrap().rows.num_rows()).sum();
    assert_eq!(rows, 4, "1 and 2 are run again, once");
    let mut crashes = 0;
    for at in 0.. {
        let disk = base.fork();
        disk.fail_at(disk.ops() + at, Fault::Crash);
        let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| life(&disk, &receiver).map(drop)));
        let crashed = disk.is_dead();
        drop(done);
        let found = if crashed { disk.crash(at) } else { disk.fork() };
        let after = life(&found, &[]).unwrap();
        let mut got = runnable(&after);
        // Whether a receiver's letter was durable before the crash is in the next test.
        got.retain(|offset| *offset != 70);
        assert_eq!(got, [2, 3, 9, 10], "crashed at operation {at}");
        if !crashed {
            break;
        }
        crashes += 1;
    }
    assert!(crashes > 5, "{crashes} crashes");
}

#[test]
fn what_a_receiver_refused_is_durable_before_the_next_commit_and_under_no_batch() {
    let disk = SimDisk::new();
    let before = parts_after(&disk, BatchId(0));
    before.letters.commit(BatchId(1), &[letter(1)], &before.replays).unwrap();
    before.replays.settled();
    before.letters.now(&DeadLetter { batch: None, ..letter(70) }).unwrap();
    assert!(before.letters.is_fresh());
    let after = parts_after(&disk.crash(1), BatchId(1));
    assert_eq!(after.replays.dead.end(0), Offset(2));
    assert_eq!(after.replays.dead.resume(0).as_deref(), Some("1"), "the token is that of the last batch");
    assert!(!after.letters.is_unsettled());
    // A batch that was not committed has it not among its letters.
    let other = parts_after(&disk.crash(1), BatchId(0));
    other.letters.commit(BatchId(1), &[], &other.replays).unwrap();
    assert_eq!(runnable(&other), [70]);
}

#[test]
fn what_was_cut_or_late_is_not_run_again() {
    let kept = |reason: &str, batch| KeptLetter {
        number: 0,
        kept: NOW,
        letter: DeadLetter { reason: reason.into(), batch, ..letter(0) },
    };
    let batch = Some(BatchId(1));
    assert_eq!(kept("field \"n\": expected an integer, found \"x\"", batch).only_kept(), None);
    assert!(kept("late: `t` is …", batch).only_kept().unwrap().contains("late row"));
    assert!(kept("a line of 9 bytes, over the bound of 5 (option `max_line`)", batch).only_kept().is_some());
    assert!(kept("byte 0: expected an object", None).only_kept().unwrap().contains("beginning"));
}
