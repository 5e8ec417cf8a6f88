//! What the log does when nothing goes wrong.

use super::*;
use std::sync::mpsc;
use tidemill_core::{Blame, Duration};

#[test]
fn rows_come_back_as_they_went_in_cached_or_not_and_after_a_restart() {
    let disk = SimDisk::new();
    let log = quiet(&disk).unwrap();
    let topic = log.create_topic("t", &config(Sync::Always)).unwrap();
    for i in 0..100 {
        let at = topic.append(0, &rows(i * 7, 7, 20), Some(&format!("r{i}"))).unwrap();
        assert_eq!((at.first.0, at.next.0), (i as u64 * 7, i as u64 * 7 + 7));
    }
    assert!(topic.partitions()[0].segments.read().len() > 3);
    let check = |topic: &Topic| {
        assert_eq!(read(topic, 0, 700).unwrap(), (0..700).collect::<Vec<_>>());
        assert_eq!(read(topic, 333, 334).unwrap(), [333]);
        assert_eq!(read(topic, 5, 5).unwrap(), [0i64; 0]);
        assert_eq!(topic.resume(0).as_deref(), Some("r99"));
        assert_eq!((topic.start(0), topic.end(0)), (Offset(0), Offset(700)));
        assert!(read(topic, 699, 701).unwrap_err().to_string().contains("ends at 700"));
    };
    check(&topic);
    forget_cache(&topic);
    check(&topic);
    tidy(&topic);
    let frames: u64 = topic.partitions()[0].segments.read().iter().map(|s| s.extent.read().frames).sum();
    assert!(frames < 40, "{frames} frames after merging");
    check(&topic);
    drop(topic);
    drop(log);
    let log = quiet(&disk).unwrap();
    let topic = log.topic("t").unwrap();
    check(&topic);
    assert_eq!(topic.durable_end(0), Offset(700));
    topic.append(0, &rows(700, 1, 3), None).unwrap();
    assert_eq!(read(&topic, 698, 701).unwrap(), [698, 699, 700]);
}

#[test]
fn threads_make_rows_durable_and_call_everyone_back_once() {
    let disk = SimDisk::new();
    for sync in [Sync::Always, Sync::Every(Duration::from_millis(1)), Sync::Never] {
        let log = Log::open(Arc::new(disk.clone()), Path::new(&format!("/{sync:?}")), clock()).unwrap();
        let topic = log.create_topic("t", &config(sync)).unwrap();
        let (tx, rx) = mpsc::channel();
        for i in 0..200 {
            let tx = tx.clone();
            let told = Box::new(move |result: Result<()>| tx.send((i, result.is_ok())).unwrap());
            topic.append_with(0, &rows(i, 1, 8), None, told).unwrap();
        }
        drop(tx);
        assert_eq!(rx.iter().collect::<Vec<_>>(), (0..200).map(|i| (i, true)).collect::<Vec<_>>(), "{sync:?}");
        assert_eq!(topic.durable_end(0), Offset(200));
    }
}

#[test]
fn callbacks_come_in_the_order_of_the_rows_however_many_threads_append_and_sync() {
    const THREADS: i64 = 4;
    const EACH: i64 = 150;
    let disk = SimDisk::new();
    for sync in [Sync::Always, Sync::Every(Duration::from_millis(1)), Sync::Never] {
        let log = Log::open(Arc::new(disk.clone()), Path::new(&format!("/{sync:?}")), clock()).unwrap();
        let topic = log.create_topic("t", &config(sync)).unwrap();
        let (tx, rx) = mpsc::channel();
        std::thread::scope(|scope| {
            for thread in 0..THREADS {
                let (topic, tx) = (&topic, tx.clone());
                scope.spawn(move || {
                    for i in 0..EACH {
                        let (id, tx) = (thread * EACH + i, tx.clone());
                        let told = Box::new(move |result: Result<()>| {
                            result.unwrap();
                            // A thread that calls back beside this one would now overtake it.
                            std::thread::yield_now();
                            tx.send(id).unwrap();
                        });
                        topic.append_with(0, &rows(id, 1, 8), None, told).unwrap();
                        if i % 7 == 0 {
                            topic.sync_to(0, topic.end(0)).unwrap();
                        }
                    }
                });
            }
        });
        drop(tx);
        let told: Vec<i64> = rx.iter().collect();
        assert_eq!(told, read(&topic, 0, (THREADS * EACH).cast_unsigned()).unwrap(), "{sync:?}");
    }
}

#[test]
fn names_and_columns_are_checked() {
    let log = quiet(&SimDisk::new()).unwrap();
    for name in [
        "",
        ".",
        "..",
        ".x",
        "a/b",
        "../a",
        "a\\b",
        "%2e%2e",
        "%2e",
        "ä",
        "a b",
        "\0",
        "a\0",
        &"x".repeat(201),
        &"x".repeat(249),
    ] {
        assert_eq!(log.create_topic(name, &config(Sync::Always)).unwrap_err().blame(), Blame::User, "{name:?}");
    }
    let topic = log.create_topic(&"x".repeat(200), &config(Sync::Always)).unwrap();
    let other = Arc::new(Schema::new(vec![Field::new("n", DataType::Int64, false)]));
    let other = RecordBatch::try_new(other, vec![Arc::new(Int64Array::from(vec![1]))]).unwrap();
    assert_eq!(topic.append(0, &other, None).unwrap_err().blame(), Blame::User);
    assert_eq!(topic.append(1, &rows(0, 1, 1), None).unwrap_err().blame(), Blame::User);
    assert!(topic.read(1, Offset(0), Offset(1)).next().unwrap().is_err());
    assert_eq!(topic.end(0), Offset(0));
}
