//! Files are cut and bits are flipped.

use super::*;
use crate::{
    disk::{Disk, Fault},
    tests::tries::{first_seed, tries},
};

const SEGMENT: &str = "/data/log/t/0/00000000000000000000.seg";

/// Five appends of two rows in one segment; `each` syncs after every append,
/// `close` ends the life cleanly.
fn small(each: bool, close: bool) -> SimDisk {
    let disk = SimDisk::new();
    let log = quiet(&disk).unwrap();
    let topic = log.create_topic("t", &config(Sync::Always)).unwrap();
    for i in 0..5 {
        topic.append(0, &rows(i * 2, 2, 10), Some("token")).unwrap();
        if each {
            topic.sync_to(0, topic.end(0)).unwrap();
        }
    }
    topic.sync_to(0, topic.end(0)).unwrap();
    if close {
        drop(topic);
        drop(log);
        return disk;
    }
    disk.fork()
}

#[test]
fn a_segment_cut_at_every_byte_recovers_to_the_last_whole_frame() {
    let disk = small(false, false);
    let bytes = disk.contents(Path::new(SEGMENT)).unwrap();
    let frames = frame_ends(&disk);
    assert_eq!(frames.len(), 5);
    for cut in 0..bytes.len() {
        let disk = disk.fork();
        disk.set_contents(Path::new(SEGMENT), bytes[..cut].to_vec());
        let whole = frames.iter().filter(|end| **end <= cut as u64).count() as u64;
        let log = quiet(&disk).unwrap();
        let topic = log.topic("t").unwrap();
        assert_eq!(topic.end(0).0, whole * 2, "cut at {cut}");
        assert_eq!(read(&topic, 0, whole * 2).unwrap(), (0..whole.cast_signed() * 2).collect::<Vec<_>>());
        // And the log goes on.
        topic.append(0, &rows(whole.cast_signed() * 2, 1, 10), None).unwrap();
        topic.sync_to(0, Offset(whole * 2 + 1)).unwrap();
        let log = quiet(&disk.crash(cut as u64)).unwrap();
        let all = read(&log.topic("t").unwrap(), 0, whole * 2 + 1).unwrap();
        assert_eq!(all, (0..whole.cast_signed() * 2 + 1).collect::<Vec<_>>(), "cut at {cut}");
    }
}

/// Where the frames of rows end.
fn frame_ends(disk: &SimDisk) -> Vec<u64> {
    let file = disk.open(Path::new(SEGMENT), crate::disk::Mode::Read).unwrap();
    let mut scan = crate::frame::Scanner::new(&*file, 0).unwrap();
    let mut ends = Vec::new();
    while scan.next().unwrap().is_some() {
        ends.push(scan.at);
    }
    // The first frame is the segment's head.
    ends.split_off(1)
}

#[test]
fn a_flipped_bit_anywhere_is_never_taken_for_data() {
    for (each, close, step) in [(true, false, 1), (false, false, 8), (true, true, 8)] {
        let disk = small(each, close);
        let bytes = disk.contents(Path::new(SEGMENT)).unwrap();
        let mut loud = 0;
        for at in (0..bytes.len()).step_by(step) {
            let what = format!("byte {at}, synced each {each}, closed {close}");
            let disk = disk.fork();
            let mut flipped = bytes.clone();
            flipped[at] ^= 1 << (at % 8);
            disk.set_contents(Path::new(SEGMENT), flipped);
            let log = quiet(&disk).unwrap();
            let topic = log.topic("t").unwrap();
            let (end, damage) = (topic.end(0).0, topic.damage(0));
            assert!(end <= 10);
            if close {
                // What was durable is known: nothing is cut off.
                assert_eq!(end, 10, "{what}");
            }
            loud += usize::from(!damage.is_empty());
            for offset in 0..end {
                let lost = damage.iter().any(|(a, b)| (a.0..b.0).contains(&offset));
                match read(&topic, offset, offset + 1) {
                    Ok(found) => assert!(!lost && found == [offset.cast_signed()], "{what}"),
                    Err(error) => {
                        let (a, b) = damage[0];
                        assert!(lost, "{what}: {}", error.chain());
                        assert!(error.to_string().contains(&format!("[{offset}, {b})")), "{what}: {error}, {a}");
                    }
                }
            }
            if let [(a, b)] = damage[..] {
                assert_eq!((b.0 - a.0, a.0 % 2), (2, 0), "{what}");
                let error = read(&topic, 0, end).unwrap_err().to_string();
                assert!(
                    error.contains("topic \"t\", partition 0") && error.contains(&format!("[{a}, {b})")),
                    "{error}"
                );
                assert_eq!(read(&topic, b.0, end).unwrap(), (b.0.cast_signed()..end.cast_signed()).collect::<Vec<_>>());
            }
            // New rows follow, and are found beside the damage after a restart.
            topic.append(0, &rows(end.cast_signed(), 1, 10), None).unwrap();
            topic.sync_to(0, Offset(end + 1)).unwrap();
            let log = quiet(&disk.crash(0)).unwrap();
            let topic = log.topic("t").unwrap();
            assert_eq!(topic.damage(0), damage, "{what}");
            assert_eq!(read(&topic, end, end + 1).unwrap(), [end.cast_signed()], "{what}");
        }
        // Four of five frames are vouched for by later ones; all of them by a clean close.
        let share = if close {
            9
        } else if each {
            6
        } else {
            0
        };
        assert!(
            loud * step >= bytes.len() * share / 12,
            "{loud} of {} loud, synced each {each}, closed {close}",
            bytes.len()
        );
    }
}

#[test]
fn damage_in_a_sealed_segment_names_its_offsets_and_spares_the_rest() {
    let disk = SimDisk::new();
    let log = quiet(&disk).unwrap();
    let topic = log.create_topic("t", &config(Sync::Always)).unwrap();
    for i in 0..60 {
        topic.append(0, &rows(i * 5, 5, 100), None).unwrap();
    }
    topic.sync_to(0, Offset(300)).unwrap();
    tidy(&topic);
    let segments: Vec<_> = topic.partitions()[0].segments.read().iter().map(Arc::clone).collect();
    assert!(segments.len() > 5);
    drop((topic, log));
    // All but the newest, at random places.
    for seed in (0..tries(300)).map(|s| first_seed() + s) {
        let draw = |n: u64| {
            let z = (seed * 8 + n + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            usize::try_from((z ^ (z >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9) >> 33).unwrap()
        };
        let victim = &segments[draw(0) % (segments.len() - 1)];
        let bytes = disk.contents(&victim.path).unwrap();
        let at = draw(1) % bytes.len();
        let disk = disk.fork();
        let mut flipped = bytes.clone();
        flipped[at] ^= 1 << (draw(2) % 8);
        disk.set_contents(&victim.path, flipped);
        let log = quiet(&disk).unwrap();
        let topic = log.topic("t").unwrap();
        let (a, b) = (victim.first, victim.end());
        assert_eq!(topic.end(0), Offset(300));
        assert_eq!(read(&topic, 0, a).unwrap().len() as u64, a);
        assert_eq!(read(&topic, b, 300).unwrap().len() as u64, 300 - b);
        match read(&topic, 0, 300) {
            // The head of a segment holds no rows.
            Ok(all) => assert!(all == (0..300).collect::<Vec<_>>() && at < 1024),
            Err(error) => assert!(error.to_string().contains(&format!("[{a}, {b})")), "byte {at}: {error}"),
        }
    }
}

#[test]
fn rows_behind_a_torn_one_are_kept_beside() {
    let disk = small(false, false);
    let mut bytes = disk.contents(Path::new(SEGMENT)).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    disk.set_contents(Path::new(SEGMENT), bytes);
    let log = quiet(&disk).unwrap();
    let topic = log.topic("t").unwrap();
    assert!(topic.damage(0).is_empty() && topic.end(0).0 < 10);
    let names = disk.list(Path::new("/data/log/t/0")).unwrap();
    assert!(names.iter().any(|n| n.ends_with(".torn")), "{names:?}");
}

/// What a start cuts off stays off: rows that come later are durable, those that were cut never were.
#[test]
fn a_cut_that_is_followed_by_durable_rows_survives_the_next_crash() {
    for seed in 0..50 {
        let disk = SimDisk::new();
        let log = quiet(&disk).unwrap();
        let topic = log.create_topic("t", &config(Sync::Every(tidemill_core::Duration::from_secs(1)))).unwrap();
        topic.append(0, &rows(0, 4, 100), None).unwrap();
        // A mark that ends where the first segment will be torn.
        drop((topic, log));
        let log = quiet(&disk).unwrap();
        let topic = log.topic("t").unwrap();
        // Frames that are not durable: the rest of the segment, and a segment behind it.
        for from in (4..40).step_by(4) {
            topic.append(0, &rows(from, 4, 100), None).unwrap();
        }
        let disk = disk.crash(seed);
        let log = quiet(&disk).unwrap();
        let topic = log.topic("t").unwrap();
        let cut = topic.end(0).0;
        for from in (cut..cut + 6).step_by(3) {
            // The second frame says that the first is durable.
            topic.append(0, &rows(from.cast_signed(), 3, 10), None).unwrap();
            topic.partitions()[0].flush().unwrap();
        }
        for again in 0..4 {
            let disk = disk.fork().crash(seed ^ again);
            let log = quiet(&disk).unwrap_or_else(|e| panic!("seed {seed}, {again}: {}", e.chain()));
            let topic = log.topic("t").unwrap();
            assert_eq!(topic.end(0).0, cut + 6, "seed {seed}, {again}");
            assert_eq!(read(&topic, 0, cut + 6).unwrap().len() as u64, cut + 6, "seed {seed}, {again}");
        }
    }
}

#[test]
fn a_log_that_can_not_be_read_says_where() {
    let disk = small(true, true);
    disk.set_contents(Path::new("/data/log/t/topic.json"), b"{".to_vec());
    let error = quiet(&disk).unwrap_err();
    assert!(error.to_string().contains("/data/log/t/topic.json"), "{error}");
    disk.set_contents(Path::new("/data/log/t/topic.json"), b"{\"version\": 9}".to_vec());
    assert!(quiet(&disk).unwrap_err().to_string().contains("version 9"));
    let disk = small(true, true);
    disk.remove(Path::new("/data/log/t/topic.json")).unwrap();
    let log = quiet(&disk).unwrap();
    assert!(log.create_topic("t", &config(Sync::Always)).unwrap_err().to_string().contains("no topic.json"));
}

#[test]
fn a_topic_is_deleted_whole_or_not_at_all() {
    let disk = small(true, true);
    let ops = {
        let disk = disk.fork();
        let log = quiet(&disk).unwrap();
        let before = disk.ops();
        log.delete_topic("t").unwrap();
        assert!(log.topic("t").is_none() && disk.list(Path::new("/data/log")).unwrap().is_empty());
        assert!(log.delete_topic("t").is_err());
        before..disk.ops()
    };
    for op in ops {
        for seed in 0..8 {
            let disk = disk.fork();
            let log = quiet(&disk).unwrap();
            disk.fail_at(op, Fault::Crash);
            assert!(log.delete_topic("t").is_err() || disk.is_dead());
            let disk = disk.crash(seed);
            let log = quiet(&disk).unwrap();
            if let Some(topic) = log.topic("t") {
                assert_eq!(read(&topic, 0, 10).unwrap().len(), 10, "crash at {op}, seed {seed}");
            }
            assert!(disk.list(Path::new("/data/log")).unwrap().iter().all(|n| n == "t"));
        }
    }
}
