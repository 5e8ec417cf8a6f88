//! The sink into topics passes the suite of all sinks, on a disk that forgets what was not synced.

use std::{
    path::Path,
    sync::{Arc, Mutex},
};
use tidemill::{
    Options, Sync, Timestamp,
    connectors::contract,
    core::{Clock, ManualClock, Sink},
    engine::{TopicPast, TopicPlace, TopicSink},
    store::{Log, SimDisk},
};

#[tokio::test]
async fn the_topic_sink_passes_the_suite_over_machines_that_stop() {
    let now: Mutex<(SimDisk, Option<Arc<Log>>)> = Mutex::new((SimDisk::new(), None));
    let open = || {
        let mut now = now.lock().unwrap();
        // The machine stops: what was not synced is gone, and the old log is closed on another disk.
        let disk = now.0.fork().crash(7);
        let clock: Arc<dyn Clock> = Arc::new(ManualClock::at(Timestamp(1)));
        let log = Arc::new(Log::open(Arc::new(disk.clone()), Path::new("/d/log"), clock).unwrap());
        let sink = TopicSink::from_options(&Options::new("sink", [("topic", "t"), ("partitions", "2")])).unwrap();
        sink.place(TopicPlace {
            log: Arc::clone(&log),
            disk: Arc::new(disk.clone()),
            staged: "/d/staged".into(),
            owner: "p/out".to_string(),
            sync: Sync::Always,
            past: TopicPast::default(),
        });
        *now = (disk, Some(log));
        Arc::new(sink) as Arc<dyn Sink>
    };
    let seen = || {
        let now = now.lock().unwrap();
        let Some(topic) = now.1.as_ref().and_then(|log| log.topic("t")) else { return Vec::new() };
        let rows = (0..2).flat_map(|p| topic.read(p, topic.start(p), topic.end(p)).collect::<Vec<_>>());
        let mut seen: Vec<String> = rows
            .map(Result::unwrap)
            .flat_map(|rows| {
                (0..rows.rows.num_rows()).map(move |row| format!("{:?}", rows.rows.slice(row, 1).columns()))
            })
            .collect();
        seen.sort();
        seen
    };
    contract::check_sink(open, seen).await;
    assert_eq!(seen().len(), 5, "four rows of the first batch, one of the second");
}
