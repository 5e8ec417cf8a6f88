//! Old rows go, pinned ones stay, and times find offsets.

use super::*;
use crate::disk::Disk;
use std::collections::BTreeMap;
use tidemill_core::{Clock, Duration};

/// 100 appends of five rows, one each second from 1 s on, in many segments.
fn filled(disk: &SimDisk, retention: Retention) -> (Log, Arc<Topic>, Arc<ManualClock>) {
    let clock = clock();
    let log = Log::quiet(Arc::new(disk.clone()), Path::new("/data/log"), Arc::clone(&clock) as Arc<dyn Clock>).unwrap();
    let topic = log.create_topic("t", &TopicConfig { retention, ..config(Sync::Always) }).unwrap();
    for i in 0..100 {
        topic.append(0, &rows(i * 5, 5, 90), Some(&format!("{i}"))).unwrap();
        clock.advance(Duration::from_secs(1));
    }
    (log, topic, clock)
}

fn by_age(secs: u64) -> Retention {
    Retention { max_age: Some(Duration::from_secs(secs)), max_bytes: None }
}

#[test]
fn age_and_size_take_whole_segments_from_the_front() {
    let disk = SimDisk::new();
    let (log, topic, clock) = filled(&disk, by_age(30));
    tidy(&topic);
    let retired = topic.apply_retention(clock.now()).unwrap();
    let start = topic.start(0).0;
    assert!(retired.segments > 5 && start > 300 && start <= 355, "{retired:?}, start {start}");
    forget_cache(&topic);
    assert_eq!(read(&topic, start, 500).unwrap(), (start.cast_signed()..500).collect::<Vec<_>>());
    let error = read(&topic, 10, 500).unwrap_err().to_string();
    assert!(error.contains(&format!("[10, {start}) is gone")), "{error}");

    // All rows are old: the partition is empty, and knows its end and token.
    topic.apply_retention(clock.now().plus(Duration::from_secs(100))).unwrap();
    assert_eq!((topic.start(0), topic.end(0)), (Offset(500), Offset(500)));
    for seed in 0..4 {
        // A machine that stops now finds the same: nothing but an empty segment says where the log ends.
        let log = quiet(&disk.fork().crash(seed)).unwrap();
        let topic = log.topic("t").unwrap();
        assert_eq!((topic.start(0), topic.end(0)), (Offset(500), Offset(500)));
        assert_eq!(topic.resume(0).as_deref(), Some("99"));
    }
    drop((topic, log));
    let names = disk.list(Path::new("/data/log/t/0")).unwrap();
    assert_eq!(names, ["00000000000000000500.idx", "00000000000000000500.seg"]);
    let log = quiet(&disk.crash(0)).unwrap();
    let topic = log.topic("t").unwrap();
    assert_eq!((topic.start(0), topic.end(0)), (Offset(500), Offset(500)));
    assert_eq!(topic.resume(0).as_deref(), Some("99"));
    topic.append(0, &rows(500, 1, 8), None).unwrap();
    assert_eq!(read(&topic, 500, 501).unwrap(), [500]);

    let disk = SimDisk::new();
    let (_log, topic, clock) = filled(&disk, Retention { max_age: None, max_bytes: Some(20_000) });
    let before = topic.bytes();
    let retired = topic.apply_retention(clock.now()).unwrap();
    assert_eq!(before - retired.bytes, topic.bytes());
    assert!((14_000..=20_000).contains(&topic.bytes()), "{}", topic.bytes());
}

#[test]
fn retention_never_passes_a_pin() {
    let disk = SimDisk::new();
    let (log, topic, clock) = filled(&disk, by_age(1));
    let late = clock.now().plus(Duration::from_secs(1000));
    topic.pin("slow", &BTreeMap::from([(0, Offset(203))])).unwrap();
    topic.pin("fast", &BTreeMap::from([(0, Offset(480))])).unwrap();
    topic.apply_retention(late).unwrap();
    let start = topic.start(0).0;
    assert!((150..=203).contains(&start), "{start}");
    assert!(
        topic
            .pin("third", &BTreeMap::from([(0, Offset(5))]))
            .unwrap_err()
            .to_string()
            .contains(&format!("[5, {start}) is gone"))
    );
    drop((topic, log));

    // Also after the machine stopped.
    let disk = disk.crash(7);
    let log = quiet(&disk).unwrap();
    let topic = log.topic("t").unwrap();
    topic.apply_retention(late).unwrap();
    assert_eq!(topic.start(0).0, start);
    // A pin that moves forward is cheap: nothing is written.
    let ops = disk.ops();
    topic.pin("slow", &BTreeMap::from([(0, Offset(400))])).unwrap();
    assert_eq!(disk.ops(), ops);
    topic.apply_retention(late).unwrap();
    let moved = topic.start(0).0;
    assert!(moved > start && moved <= 400);
    // And was written before anything was deleted for it.
    let again = quiet(&disk.crash(1)).unwrap();
    assert_eq!(again.topic("t").unwrap().pins()["slow"], BTreeMap::from([(0, Offset(400))]));
    let topic = again.topic("t").unwrap();
    topic.unpin("slow").unwrap();
    topic.unpin("fast").unwrap();
    topic.apply_retention(late).unwrap();
    assert_eq!(topic.start(0), Offset(500));
}

#[test]
fn a_reader_goes_on_while_segments_are_merged_and_names_those_that_went() {
    let disk = SimDisk::new();
    let (_log, topic, clock) = filled(&disk, by_age(1));
    forget_cache(&topic);
    let mut reader = topic.read(0, Offset(0), Offset(500));
    let mut next = reader.next().unwrap().unwrap().next().0;
    tidy(&topic);
    for _ in 0..8 {
        let run = reader.next().unwrap().unwrap();
        assert_eq!((run.base.0, numbers(&run.rows)[0]), (next, next.cast_signed()));
        next = run.next().0;
    }
    topic.apply_retention(clock.now().plus(Duration::from_secs(10))).unwrap();
    let error = reader.find_map(Result::err).unwrap().to_string();
    assert!(error.contains("is gone"), "{error}");
    assert!(reader.next().is_none());
}

#[test]
fn a_time_finds_the_first_row_at_or_after_it() {
    let disk = SimDisk::new();
    let (log, topic, clock) = filled(&disk, Retention::default());
    let check = |topic: &Topic| {
        for second in 0..100i64 {
            let at = Timestamp((second + 1) * 1_000_000);
            assert_eq!(topic.read_time(0, at).unwrap().0.cast_signed(), second * 5);
            let after = if second == 99 { topic.end(0).0.cast_signed() } else { second * 5 + 5 };
            assert_eq!(topic.read_time(0, Timestamp(at.0 + 1)).unwrap().0.cast_signed(), after);
        }
        assert_eq!(topic.read_time(0, Timestamp::MIN).unwrap(), Offset(0));
        let times: Vec<_> = topic.read(0, Offset(3), Offset(12)).flat_map(|r| r.unwrap().times).collect();
        assert_eq!(times, [(2, Timestamp(1_000_000)), (5, Timestamp(2_000_000)), (2, Timestamp(3_000_000))]);
    };
    check(&topic);
    forget_cache(&topic);
    check(&topic);
    tidy(&topic);
    check(&topic);
    // A clock that steps back doesn't take the rows' times with it.
    clock.set(Timestamp(5));
    topic.append(0, &rows(500, 1, 1), None).unwrap();
    assert_eq!(topic.read(0, Offset(500), Offset(501)).next().unwrap().unwrap().times, [(1, Timestamp(100_000_000))]);
    drop((topic, log));
    check(&quiet(&disk).unwrap().topic("t").unwrap());
}

#[test]
fn a_token_without_rows_is_kept_too() {
    let disk = SimDisk::new();
    let log = quiet(&disk).unwrap();
    let topic = log.create_topic("t", &config(Sync::Always)).unwrap();
    topic.append(0, &rows(0, 2, 8), Some("a")).unwrap();
    topic.append(0, &rows(2, 0, 8), Some("b")).unwrap();
    topic.append(0, &rows(2, 1, 8), None).unwrap();
    topic.append(0, &rows(3, 0, 8), Some("c")).unwrap();
    topic.append(0, &rows(3, 0, 8), None).unwrap();
    let news = topic.wait_handle();
    assert_eq!(*news.borrow(), 4);
    let told = Arc::new(Mutex::new(0));
    let count = Arc::clone(&told);
    topic.append_with(0, &rows(3, 0, 8), Some("d"), Box::new(move |r| *count.lock() += i32::from(r.is_ok()))).unwrap();
    assert_eq!(*told.lock(), 0);
    topic.partitions()[0].flush().unwrap();
    assert_eq!(*told.lock(), 1);
    let log = quiet(&disk.crash(0)).unwrap();
    let topic = log.topic("t").unwrap();
    assert_eq!(topic.resume(0).as_deref(), Some("d"));
    assert_eq!(read(&topic, 0, 3).unwrap(), [0, 1, 2]);
}

#[test]
fn a_full_disk_does_not_stop_what_makes_space() {
    let disk = SimDisk::new();
    let (_log, topic, clock) = filled(&disk, by_age(1));
    topic.pin("p", &BTreeMap::from([(0, Offset(300))])).unwrap();
    tidy(&topic);
    topic.pin("p", &BTreeMap::from([(0, Offset(480))])).unwrap();
    disk.set_space(Some(0));
    let late = clock.now().plus(Duration::from_secs(60));
    // The pin on disk counts while the new one can't be written.
    assert!(topic.apply_retention(late).unwrap().segments > 5);
    assert!((250..=300).contains(&topic.start(0).0), "{}", topic.start(0));
    disk.set_space(None);
    topic.apply_retention(late).unwrap();
    assert!((400..=480).contains(&topic.start(0).0), "{}", topic.start(0));
}

/// Rows lie in one segment of 64 MiB; the bounds hold all the same.
#[test]
fn small_bounds_hold_in_large_segments() {
    let disk = SimDisk::new();
    let clock = clock();
    let log = Log::quiet(Arc::new(disk.clone()), Path::new("/data/log"), Arc::clone(&clock) as Arc<dyn Clock>).unwrap();
    let large = TopicConfig { segment_bytes: 64 << 20, ..config(Sync::Always) };
    let (aged, sized) = (log.create_topic("aged", &large).unwrap(), log.create_topic("sized", &large).unwrap());
    aged.set_retention(by_age(60)).unwrap();
    sized.set_retention(Retention { max_age: None, max_bytes: Some(20_000) }).unwrap();
    aged.set_notices("posts").unwrap();
    aged.set_retention(by_age(40)).unwrap();
    for i in 0..500 {
        for topic in [&aged, &sized] {
            topic.append(0, &rows(i * 5, 5, 90), None).unwrap();
            topic.apply_retention(clock.now()).unwrap();
        }
        // What is kept of 20,000 bytes, and a quarter of it that is one segment's.
        assert!(sized.bytes() <= 26_000, "append {i}: {}", sized.bytes());
        let rows = aged.end(0).0 - aged.start(0).0;
        assert!(rows <= 5 * (40 + 12), "append {i}: {rows} rows of the last 40 seconds");
        clock.advance(Duration::from_secs(1));
    }
    assert!(sized.bytes() > 10_000 && aged.end(0).0 - aged.start(0).0 >= 5 * 40);
    drop((aged, sized, log));
    let log = quiet(&disk).unwrap();
    assert_eq!(log.topic("aged").unwrap().retention(), by_age(40), "what was set lasts");
    assert_eq!(log.topic("aged").unwrap().notices().as_deref(), Some("posts"));
    assert_eq!(log.topic("sized").unwrap().notices(), None);
    assert_eq!(log.topic("aged").unwrap().config().segment_bytes, 64 << 20);
}

/// What came at once is not taken away at once.
#[test]
fn a_burst_beyond_the_bound_leaves_the_newest() {
    let disk = SimDisk::new();
    let log = quiet(&disk).unwrap();
    let large = TopicConfig { segment_bytes: 64 << 20, ..config(Sync::Always) };
    let bound = Retention { max_age: None, max_bytes: Some(20_000) };
    let cut = log.create_topic("cut", &TopicConfig { retention: bound, ..large.clone() }).unwrap();
    let whole = log.create_topic("whole", &large).unwrap();
    for topic in [&cut, &whole] {
        for i in 0..200 {
            topic.append(0, &rows(i * 5, 5, 90), None).unwrap();
        }
    }
    whole.set_retention(bound).unwrap();
    for topic in [&cut, &whole] {
        topic.apply_retention(Timestamp(2_000_000)).unwrap();
    }
    assert!((14_000..=20_000).contains(&cut.bytes()), "{} bytes are left", cut.bytes());
    assert!(cut.end(0).0 - cut.start(0).0 > 50, "with the newest rows");
    // One segment from before the bound was set goes when as much as is to be kept has come.
    assert_eq!((whole.start(0), whole.end(0)), (Offset(0), Offset(1000)));
    for i in 200..400 {
        whole.append(0, &rows(i * 5, 5, 90), None).unwrap();
        whole.apply_retention(Timestamp(2_000_000)).unwrap();
        assert!(whole.end(0).0 - whole.start(0).0 > 50, "append {i}");
    }
    assert!(whole.bytes() <= 26_000 && whole.start(0).0 >= 1000, "{} bytes are left", whole.bytes());
}

#[test]
fn options_say_what_is_kept() {
    let of = |pairs: &[(&str, &str)]| {
        Retention::from_options(&tidemill_core::Options::new("stream \"s\"", pairs.iter().copied()))
    };
    assert_eq!(of(&[]).unwrap(), None);
    let both = of(&[("retention_age", "1h"), ("retention_bytes", "1GB")]).unwrap().unwrap();
    assert_eq!(both, Retention { max_age: Some(Duration::from_secs(3600)), max_bytes: Some(1_000_000_000) });
    for wrong in [
        ("retention_age", "0s"),
        ("retention_age", "soon"),
        ("retention_age", "3600"),
        ("retention_bytes", "0"),
        ("retention_bytes", "x"),
    ] {
        let error = of(&[wrong]).unwrap_err().to_string();
        assert!(error.contains("stream \"s\"") && error.contains(wrong.0), "{error}");
    }
}

/// The log of a disk, by a clock, with nobody behind it.
fn quiet_at(disk: &SimDisk, clock: &Arc<ManualClock>) -> Log {
    let clock = Arc::clone(clock) as Arc<dyn tidemill_core::Clock>;
    Log::quiet(Arc::new(disk.clone()), Path::new("/l"), clock).unwrap()
}

fn kept_for_a_minute() -> TopicConfig {
    let mut config = config(Sync::Always);
    config.retention.max_age = Some(Duration::from_secs(60));
    config
}

/// A segment that has no rows yet is begun anew under the same name, when it is idle or large: what its head and its
/// frames said durably is never less than it was.
#[test]
fn a_token_without_rows_outlives_a_segment_that_is_begun_anew() {
    let clock = clock();
    let open = |disk: &SimDisk| quiet_at(disk, &clock);
    let disk = SimDisk::new();
    let log = open(&disk);
    let topic = log.create_topic("t", &kept_for_a_minute()).unwrap();
    let mut end = 0;
    // The last of them begins a segment, which has no rows.
    for (count, width, token) in [
        (5, 100, None),
        (7, 252, None),
        (2, 233, None),
        (4, 217, None),
        (5, 148, Some("first")),
        (3, 6, None),
        (0, 0, Some("second")),
    ] {
        topic.append(0, &rows(end, count, width), token).unwrap();
        end += count;
    }
    let last = Path::new("/l/t/0/00000000000000000026.seg");
    assert!(disk.contents(last).is_some());
    drop((topic, log));
    for (retains, then) in [(true, "retention"), (false, "a full segment")] {
        let disk = disk.fork();
        let log = open(&disk);
        let topic = log.topic("t").unwrap();
        tidy(&topic);
        if retains {
            topic.apply_retention(clock.now()).unwrap();
        } else {
            let long = "second".repeat(1000);
            topic.append(0, &rows(26, 0, 0), Some(&long)).unwrap();
            topic.append(0, &rows(26, 9, 1000), None).unwrap();
        }
        for seed in 0..300 {
            let topic = open(&disk.fork().crash(seed)).topic("t").unwrap();
            let token = topic.resume(0);
            assert!(token.as_deref().is_some_and(|t| t.starts_with("second")), "{then}, seed {seed}: {token:?}");
            assert_eq!(read(&topic, 0, 26).unwrap(), (0..26).collect::<Vec<_>>());
        }
    }
}

/// The same over rows that are not durable: the segment that is begun anew is, and does not vouch for them.
#[test]
fn a_segment_that_is_begun_anew_says_nothing_of_rows_before_it() {
    let clock = clock();
    let open = |disk: &SimDisk| quiet_at(disk, &clock);
    let disk = SimDisk::new();
    let log = open(&disk);
    let topic = log.create_topic("t", &kept_for_a_minute()).unwrap();
    let mut end = 0;
    for (count, width, token) in [
        (1, 177, None),
        (1, 97, None),
        (0, 0, Some("first")),
        (5, 68, None),
        (8, 109, None),
        (0, 0, Some("second")),
        (0, 0, Some("third")),
    ] {
        topic.append(0, &rows(end, count, width), token).unwrap();
        end += count;
    }
    assert!(disk.contents(Path::new("/l/t/0/00000000000000000015.seg")).is_some(), "a segment with a token alone");
    clock.advance(Duration::from_secs(16));
    topic.apply_retention(clock.now()).unwrap();
    topic.append(0, &rows(end, 1, 0), None).unwrap();
    let mut cut = 0;
    for seed in 0..1000 {
        let topic = open(&disk.fork().crash(seed)).topic("t").unwrap();
        let (start, end) = (topic.start(0).0, topic.end(0).0);
        assert_eq!(read(&topic, start, end).unwrap(), (0..end.cast_signed()).collect::<Vec<_>>(), "seed {seed}");
        cut += usize::from(end < 15);
    }
    assert!(cut > 100, "rows were lost by {cut} of the crashes");
}
