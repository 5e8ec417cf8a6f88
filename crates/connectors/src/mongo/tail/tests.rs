//! The tail: against servers of the tests' own, against nx-27017, which has change streams
//! (`TIDEMILL_MONGODB_TTL`), and against FerretDB, which has none (`TIDEMILL_MONGODB`).

mod ways;

use super::{
    fake::{Sea, Way, refusal, serve, way},
    *,
};
use crate::{
    contract::{Heard, Recorder},
    lines::HEAD,
    mongo::probe,
};
use mongodb::bson::{DateTime, Document, Timestamp as ServerTime, doc};
use std::sync::Mutex;
use tidemill_core::{Ack, Blame, Block, Clock, DeadLetter, ManualClock, StopHandle};
use tokio::task::JoinHandle;

/// A log of which a crash may leave any beginning.
#[derive(Default)]
struct Blocks {
    kept: Mutex<Vec<(Vec<String>, Option<String>)>>,
    recorder: Recorder,
}

#[async_trait]
impl Intake for Blocks {
    async fn append(&self, block: Block, resume: Option<String>) -> Result<Ack> {
        let texts = block.records().map(|record| String::from_utf8(record.to_vec()).unwrap()).collect();
        self.kept.lock().unwrap().push((texts, resume.clone()));
        self.recorder.append(block, resume).await
    }
    async fn refuse(&self, letter: DeadLetter) -> Result<()> {
        self.recorder.refuse(letter).await
    }
    fn resume(&self) -> Option<String> {
        self.kept.lock().unwrap().iter().rev().find_map(|(_, resume)| resume.clone())
    }
    fn report(&self, state: &str) {
        self.recorder.report(state);
    }
}

impl Blocks {
    /// A log with what a crash left of another.
    fn cut(&self, blocks: usize) -> Arc<Self> {
        let kept = self.kept.lock().unwrap().iter().take(blocks).cloned().collect();
        Arc::new(Self { kept: Mutex::new(kept), recorder: Recorder::default() })
    }

    fn len(&self) -> usize {
        self.kept.lock().unwrap().len()
    }

    /// The ids of all records, sorted.
    fn ids(&self) -> Vec<String> {
        let kept = self.kept.lock().unwrap();
        let mut ids: Vec<String> =
            kept.iter().flat_map(|(records, _)| records).map(|record| member_of(record, "_id")).collect();
        ids.sort();
        ids
    }
}

fn member_of(record: &str, name: &str) -> String {
    let value = &serde_json::from_str::<serde_json::Value>(record).unwrap()[name];
    value.as_str().map_or_else(|| value.to_string(), str::to_string)
}

fn tail(url: &str, collection: &str, more: &[(&str, &str)]) -> MongoTail {
    let all = [("url", url), ("collection", collection)].into_iter().chain(more.iter().copied());
    let options = Options::new("stream \"s\"", all);
    let tail = MongoTail::from_options(&options).unwrap();
    options.finish().unwrap();
    tail
}

struct Running {
    stop: StopHandle,
    task: JoinHandle<Result<()>>,
}

fn start(tail: &MongoTail, intake: Arc<dyn Intake>) -> Running {
    let (stop, stopped) = StopHandle::new();
    let tail = tail.clone();
    Running { stop, task: tokio::spawn(async move { tail.run(intake, stopped).await }) }
}

impl Running {
    async fn end(self) {
        self.stop.stop();
        self.task.await.unwrap().unwrap();
    }
    async fn fails(self) -> Error {
        tokio::time::timeout(Duration::from_secs(60), self.task).await.unwrap().unwrap().unwrap_err()
    }
}

fn texts(heard: &Heard) -> Vec<String> {
    heard.records.iter().map(|record| String::from_utf8(record.clone()).unwrap()).collect()
}

fn numbered(from: usize, to: usize) -> Vec<Document> {
    (from..to).map(|n| doc! { "_id": format!("{n:05}"), "n": i64::try_from(n).unwrap() }).collect()
}

fn ids(from: usize, to: usize) -> Vec<String> {
    (from..to).map(|n| format!("{n:05}")).collect()
}

/// The server with change streams, and the way to it.
async fn streaming(collection: &str) -> Option<(String, Way)> {
    let url = probe::server_of("TIDEMILL_MONGODB_TTL", "tail")?;
    probe::forget(&url, &[collection]).await;
    let way = way(&url).await;
    Some((url, way))
}

/// The server without.
async fn without(collection: &str) -> Option<String> {
    let url = probe::server("tail")?;
    probe::forget(&url, &[collection]).await;
    Some(url)
}

#[tokio::test]
async fn what_is_there_and_what_comes_is_read_once_whatever_the_order_and_wherever_it_crashes() {
    for seed in 0..16_u8 {
        let sea = Sea::new(u64::from(seed), 40, 60);
        let of = Arc::clone(&sea);
        let url = serve(Arc::new(move |command| of.answer(command))).await;
        let mut tail = tail(&url, "c", &[]);
        tail.page = 7;
        let mut log = Arc::new(Blocks::default());
        // Lives that end anywhere, and of whose last blocks a crash leaves some.
        for life in 0..4 {
            let (before, more) = (log.len(), 1 + (usize::from(seed) + life) % 4);
            let running = start(&tail, Arc::<Blocks>::clone(&log));
            log.recorder
                .until(|_| log.len() >= before + more || log.resume().is_some_and(|r| r.contains("behind")))
                .await;
            running.end().await;
            let left = log.len().saturating_sub(life % 3).max(before);
            log = log.cut(left);
        }
        let running = start(&tail, Arc::<Blocks>::clone(&log));
        log.recorder.until(|_| log.resume().is_some_and(|resume| resume.contains("behind"))).await;
        sea.end_with("zzz");
        log.recorder.until(|_| log.ids().last().is_some_and(|last| last == "zzz")).await;
        running.end().await;
        assert_eq!(log.ids(), sea.inserted(), "seed {seed}");
    }
}

#[tokio::test]
async fn a_place_that_the_server_no_longer_has_is_refused() {
    let place = Place::Behind(mongodb::bson::rawdoc! { "_data": "8265F0" }).token("db.c", None);
    for code in [286, 260, 280] {
        let url = serve(Arc::new(move |command| {
            if command.contains_key("aggregate") { refusal(code, "the resume point is gone") } else { None }
        }))
        .await;
        let running = start(&tail(&url, "c", &[]), Recorder::resuming(Some(place.clone())));
        let error = running.fails().await;
        let text = error.chain();
        assert_eq!(error.blame(), Blame::User, "{text}");
        for part in
            ["no longer has the changes of `c`", "another name", "earliest", "oplog", "the resume point is gone"]
        {
            assert!(text.contains(part), "{text}");
        }
    }
    // It answers, and does not tell again what was handed on.
    let from = mongodb::bson::rawdoc! { "_data": "820000000200000001" };
    let events = Some(mongodb::bson::rawdoc! { "_data": "820000000300000009" });
    let first = place::First { from, events, upto: mongodb::bson::rawdoc! { "_id": "a" }, after: None };
    let sea = Sea::new(1, 5, 0);
    let of = Arc::clone(&sea);
    let url = serve(Arc::new(move |command| of.answer(command))).await;
    let kept = Some(Place::First(first).token("db.c", None));
    let error = start(&tail(&url, "c", &[]), Recorder::resuming(kept)).fails().await.to_string();
    assert!(error.contains("no longer has the changes of `c`"), "{error}");
}

#[tokio::test]
async fn a_start_by_time_and_the_kinds_of_changes_are_asked_for() {
    let asked = Arc::new(Mutex::new(None));
    let heard = Arc::clone(&asked);
    let url = serve(Arc::new(move |command| {
        if command.contains_key("aggregate") {
            heard.lock().unwrap().get_or_insert(command.clone());
        }
        refusal(40573, "only on replica sets")
    }))
    .await;
    let options = [("start", "2026-01-31T15:00:00Z"), ("changes", "insert,update")];
    let error = start(&tail(&url, "c", &options), Recorder::resuming(None)).fails().await.to_string();
    assert!(error.contains("cursor = '_id'") && error.contains("replica set"), "{error}");
    let asked = asked.lock().unwrap().take().unwrap();
    let stages = asked.get_array("pipeline").unwrap();
    let stream = stages[0].as_document().unwrap().get_document("$changeStream").unwrap();
    let time = ServerTime { time: 1_769_871_600, increment: 0 };
    assert_eq!(stream.get_timestamp("startAtOperationTime").unwrap(), time);
    assert_eq!(stream.get_str("fullDocument").unwrap(), "updateLookup");
    assert_eq!(stages[1].as_document().unwrap(), &tail("mongodb://x/y", "c", &options).wants.filter());
}

#[tokio::test]
async fn wrong_credentials_end_it_and_nonsense_is_tried_again() {
    let url = serve(Arc::new(|_| refusal(18, "Authentication failed."))).await;
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("password");
    std::fs::write(&file, "hunter2\n").unwrap();
    let url = url.replace("mongodb://", "mongodb://me@");
    let options = [("password_file", file.to_str().unwrap())];
    let error = start(&tail(&url, "c", &options), Recorder::resuming(None)).fails().await;
    let text = error.chain();
    assert!(error.blame() == Blame::User && text.contains("check the user"), "{text}");
    assert!(!text.contains("hunter2"), "{text}");
    let event = |event: Document| doc! { "id": 7_i64, "ns": "db.c", "firstBatch": [event], "postBatchResumeToken": { "_data": "82" } };
    let cursors = [
        doc! { "id": "seven", "ns": 7 },
        doc! { "id": 7_i64, "ns": "db.c", "firstBatch": [7] },
        event(doc! { "operationType": "insert" }),
        event(doc! { "_id": { "_data": "x" }, "operationType": 7 }),
        doc! { "id": 0_i64, "ns": "db.c", "firstBatch": [], "postBatchResumeToken": { "_data": "82" } },
    ];
    let tried = cursors.into_iter().map(async |cursor| {
        let told = cursor.to_string();
        let answer = doc! { "ok": 1, "cursor": cursor };
        let url = serve(Arc::new(move |_| Some(answer.clone()))).await;
        let intake = Recorder::resuming(None);
        let running =
            start(&tail(&url, "c", &[("start", "latest")]), Arc::<Recorder>::clone(&intake) as Arc<dyn Intake>);
        let heard = intake.until(|heard| heard.states.iter().any(|state| state.starts_with("reconnecting"))).await;
        running.end().await;
        assert!(heard.records.is_empty() && heard.refused.is_empty(), "{told}: {heard:?}");
    });
    futures::future::join_all(tried).await;
}

#[tokio::test]
async fn a_malformed_document_is_a_dead_letter_and_its_place_is_kept() {
    let told = Arc::new(Mutex::new(0));
    let url = serve(Arc::new(move |command| {
        let part = if command.contains_key("aggregate") { "firstBatch" } else { "nextBatch" };
        let mut told = told.lock().unwrap();
        *told += 1;
        let change = doc! { "_id": { "_data": "8207" }, "operationType": "insert", "documentKey": { "_id": 7 } };
        let batch = if *told == 2 { vec![change] } else { Vec::new() };
        let place = if *told < 2 { "8201" } else { "8207" };
        Some(doc! { "ok": 1, "cursor": { "id": 9_i64, "ns": "db.c", part: batch, "postBatchResumeToken": { "_data": place } } })
    }))
    .await;
    let intake = Recorder::resuming(None);
    let running = start(&tail(&url, "c", &[("start", "latest")]), Arc::<Recorder>::clone(&intake));
    let behind = Place::Behind(mongodb::bson::rawdoc! { "_data": "8207" }).token("db.c", None);
    let heard = intake.until(|heard| heard.resume.as_ref() == Some(&behind)).await;
    running.end().await;
    assert!(heard.records.is_empty() && heard.refused.len() == 1, "{heard:?}");
    assert!(heard.refused[0].0.contains("without its document"), "{:?}", heard.refused);
}

#[tokio::test]
async fn documents_and_changes_of_a_server_come_once_over_restarts() {
    let Some((url, way)) = streaming("restarts").await else { return };
    probe::insert(&url, "restarts", numbered(0, 95)).await;
    let mut tail = tail(&way.url, "restarts", &[]);
    tail.page = 20;
    let mut log = Arc::new(Blocks::default());
    for life in 0..6 {
        let before = log.len();
        let running = start(&tail, Arc::<Blocks>::clone(&log));
        // Among those that are read, and behind them.
        let (more, among) = (95 + life * 5, doc! { "_id": format!("000{life}5-late") });
        probe::insert(&url, "restarts", numbered(more, more + 5)).await;
        probe::insert(&url, "restarts", vec![among]).await;
        log.recorder.until(|_| log.len() > before + life % 3).await;
        running.end().await;
        log = log.cut(log.len().saturating_sub(life % 2).max(before));
    }
    let running = start(&tail, Arc::<Blocks>::clone(&log));
    log.recorder.until(|_| log.resume().is_some_and(|resume| resume.contains("behind"))).await;
    probe::insert(&url, "restarts", vec![doc! { "_id": "zzz" }]).await;
    log.recorder.until(|_| log.ids().last().is_some_and(|last| last == "zzz")).await;
    running.end().await;
    let mut all = ids(0, 125);
    all.extend((0..6).map(|life| format!("000{life}5-late")));
    all.push("zzz".to_string());
    all.sort();
    assert_eq!(log.ids(), all);
}

#[tokio::test]
async fn latest_begins_now_also_when_nothing_came_before_a_restart() {
    let Some((url, way)) = streaming("latest").await else { return };
    probe::insert(&url, "latest", numbered(0, 3)).await;
    let tail = tail(&way.url, "latest", &[("start", "latest")]);
    let log = Arc::new(Blocks::default());
    let running = start(&tail, Arc::<Blocks>::clone(&log));
    log.recorder.until(|_| log.resume().is_some()).await;
    running.end().await;
    probe::insert(&url, "latest", numbered(3, 5)).await;
    let running = start(&tail, Arc::<Blocks>::clone(&log));
    log.recorder.until(|_| log.ids().len() >= 2).await;
    running.end().await;
    assert_eq!(log.ids(), ids(3, 5));
}

#[tokio::test]
async fn updates_and_deletions_are_marked() {
    let Some((url, way)) = streaming("kinds").await else { return };
    probe::insert(&url, "kinds", vec![doc! { "_id": "a", "n": 1 }]).await;
    let tail = tail(&way.url, "kinds", &[("changes", "insert,update,delete"), ("change_field", "how")]);
    let intake = Recorder::resuming(None);
    let running = start(&tail, Arc::<Recorder>::clone(&intake));
    intake.until(|heard| heard.resume.as_ref().is_some_and(|resume| resume.contains("behind"))).await;
    probe::insert(&url, "kinds", vec![doc! { "_id": "b", "n": 2 }]).await;
    let set = doc! { "q": { "_id": "a" }, "u": { "$set": { "n": 3 } } };
    probe::command(&url, doc! { "update": "kinds", "updates": [set] }).await;
    probe::command(&url, doc! { "delete": "kinds", "deletes": [{ "q": { "_id": "b" }, "limit": 1 }] }).await;
    let heard = intake.until(|heard| heard.records.len() >= 4).await;
    running.end().await;
    let want = [
        r#"{"_id":"a","n":1,"how":"insert"}"#,
        r#"{"_id":"b","n":2,"how":"insert"}"#,
        r#"{"_id":"a","n":3,"how":"update"}"#,
        r#"{"_id":"b","how":"delete"}"#,
    ];
    let sorted = |texts: &[String]| {
        // The order of members is the server's.
        let members = |text: &String| serde_json::from_str::<serde_json::Value>(text).unwrap().to_string();
        texts.iter().map(members).collect::<Vec<_>>()
    };
    assert_eq!(sorted(&texts(&heard)), sorted(&want.map(str::to_string)));
}

#[tokio::test]
async fn a_server_that_was_gone_is_found_again() {
    let Some((url, way)) = streaming("gone").await else { return };
    let tail = tail(&way.url, "gone", &[]);
    let log = Arc::new(Blocks::default());
    let running = start(&tail, Arc::<Blocks>::clone(&log));
    let mut sent = 0;
    for _ in 0..3 {
        probe::insert(&url, "gone", numbered(sent, sent + 10)).await;
        sent += 10;
        log.recorder.until(|_| log.ids().len() >= sent).await;
        let tries = |heard: &Heard| heard.states.iter().filter(|state| state.starts_with("reconnecting")).count();
        let before = tries(&log.recorder.heard());
        way.open.send_replace(false);
        probe::insert(&url, "gone", numbered(sent, sent + 10)).await;
        sent += 10;
        log.recorder.until(|heard| tries(heard) > before).await;
        way.open.send_replace(true);
    }
    log.recorder.until(|_| log.ids().len() >= sent).await;
    running.end().await;
    assert_eq!(log.ids(), ids(0, sent));
}

#[tokio::test]
async fn a_document_that_is_too_long_is_a_dead_letter() {
    let Some((url, way)) = streaming("long").await else { return };
    let long = |id: &str| doc! { "_id": id, "text": "x".repeat(3000) };
    probe::insert(&url, "long", vec![doc! { "_id": "a" }, long("b"), doc! { "_id": "c" }]).await;
    let tail = tail(&way.url, "long", &[("max_line", "2KB")]);
    let intake = Recorder::resuming(None);
    let running = start(&tail, Arc::<Recorder>::clone(&intake));
    intake.until(|heard| heard.records.len() >= 2).await;
    intake.until(|heard| heard.resume.as_ref().is_some_and(|resume| resume.contains("behind"))).await;
    probe::insert(&url, "long", vec![long("d"), doc! { "_id": "e" }]).await;
    let heard = intake.until(|heard| heard.records.len() >= 3).await;
    running.end().await;
    assert_eq!(texts(&heard).iter().map(|text| member_of(text, "_id")).collect::<Vec<_>>(), ["a", "c", "e"]);
    assert_eq!(heard.refused.len(), 2, "{:?}", heard.refused);
    assert!(heard.refused.iter().all(|(why, head)| why.contains("max_line") && head.len() == HEAD));
}

/// Documents that are looked for, by a clock of the test's.
struct Looking {
    running: Running,
    intake: Arc<Recorder>,
    clock: Arc<ManualClock>,
}

fn look(url: &str, collection: &str, more: &[(&str, &str)], token: Option<String>) -> Looking {
    let clock = Arc::new(ManualClock::at(Timestamp(0)));
    let mut tail = tail(url, collection, more);
    tail.link.clock = Arc::clone(&clock) as Arc<dyn Clock>;
    tail.page = 3;
    let intake = Recorder::resuming(token);
    Looking { running: start(&tail, Arc::<Recorder>::clone(&intake) as Arc<dyn Intake>), intake, clock }
}

impl Looking {
    /// One look more, from its beginning to its end.
    async fn step(&self) {
        let next = self.rests().await;
        self.clock.set(next);
        self.rests().await;
    }

    /// When it will look again; nobody waits while it is looked.
    async fn rests(&self) -> Timestamp {
        let waits = async {
            loop {
                match self.clock.waited_for().filter(|next| *next > self.clock.now()) {
                    Some(next) => break next,
                    None => tokio::task::yield_now().await,
                }
            }
        };
        tokio::time::timeout(Duration::from_secs(60), waits).await.expect("it looks again")
    }

    async fn until(&self, records: usize) -> Heard {
        for _ in 0..100 {
            if self.intake.heard().records.len() >= records {
                return self.intake.heard();
            }
            self.step().await;
        }
        panic!("waited in vain; heard {:?}", self.intake.heard());
    }
}

fn seen(heard: &Heard) -> Vec<String> {
    texts(heard).iter().map(|text| member_of(text, "_id")).collect()
}

#[tokio::test]
async fn new_documents_are_looked_for_and_a_restart_goes_on() {
    let Some(url) = without("looked").await else { return };
    probe::insert(&url, "looked", numbered(0, 8)).await;
    let looking = look(&url, "looked", &[("cursor", "_id")], None);
    let heard = looking.until(8).await;
    assert_eq!(texts(&heard)[0], r#"{"_id":"00000","n":0}"#);
    probe::insert(&url, "looked", numbered(8, 10)).await;
    let heard = looking.until(10).await;
    assert_eq!(seen(&heard), ids(0, 10));
    looking.running.end().await;
    probe::insert(&url, "looked", numbered(10, 12)).await;
    let again = look(&url, "looked", &[("cursor", "_id")], heard.resume);
    let heard = again.until(2).await;
    for _ in 0..3 {
        again.step().await;
    }
    assert_eq!((seen(&heard), again.intake.heard().records.len()), (ids(10, 12), 2));
    again.running.end().await;
}

#[tokio::test]
async fn documents_wait_for_those_that_may_come_before_them() {
    let Some(url) = without("aged").await else { return };
    let at = |id: &str, ms: i64| doc! { "_id": id, "at": DateTime::from_millis(ms) };
    probe::insert(&url, "aged", vec![at("c", 5), at("d", 5), at("a", 1)]).await;
    let options = [("cursor", "at"), ("wait_for_writers", "10s"), ("every", "1s")];
    let looking = look(&url, "aged", &options, None);
    looking.rests().await;
    // It comes late, and would lie before what was seen.
    probe::insert(&url, "aged", vec![at("b", 3)]).await;
    for _ in 0..9 {
        looking.step().await;
    }
    assert!(looking.intake.heard().records.is_empty(), "they are nine seconds old");
    let heard = looking.until(4).await;
    assert_eq!(seen(&heard), ["a", "b", "c", "d"]);
    // Of the same time as the last one, and told apart by its id.
    probe::insert(&url, "aged", vec![at("e", 5), at("f", 6)]).await;
    let heard = looking.until(6).await;
    looking.running.end().await;
    assert_eq!(seen(&heard)[4..], ["e", "f"]);
    let timed = look(&url, "aged", &[("cursor", "at"), ("start", "1970-01-01T00:00:00.005Z")], None);
    let heard = timed.until(4).await;
    timed.running.end().await;
    assert_eq!(seen(&heard), ["c", "d", "e", "f"]);
}

#[tokio::test]
async fn latest_of_a_server_that_is_asked_passes_over_what_is_there() {
    let Some(url) = without("passed").await else { return };
    let options = [("cursor", "_id"), ("start", "latest")];
    // Of nothing there is nothing to pass over, also by a restart.
    let looking = look(&url, "passed", &options, None);
    looking.rests().await;
    let kept = looking.intake.heard().resume;
    looking.running.end().await;
    probe::insert(&url, "passed", numbered(0, 2)).await;
    let looking = look(&url, "passed", &options, kept);
    assert_eq!(seen(&looking.until(2).await), ids(0, 2));
    looking.running.end().await;
    let looking = look(&url, "passed", &options, None);
    looking.rests().await;
    probe::insert(&url, "passed", numbered(2, 4)).await;
    assert_eq!(seen(&looking.until(2).await), ids(2, 4));
    looking.running.end().await;
}

#[tokio::test]
async fn a_server_that_is_asked_and_was_gone_is_found_again() {
    let Some(url) = without("away").await else { return };
    let way = way(&url).await;
    probe::insert(&url, "away", numbered(0, 5)).await;
    let looking = look(&way.url, "away", &[("cursor", "_id")], None);
    looking.until(5).await;
    way.open.send_replace(false);
    probe::insert(&url, "away", numbered(5, 10)).await;
    for _ in 0..4 {
        looking.step().await;
    }
    let heard = looking.intake.heard();
    assert!(heard.states.last().unwrap().starts_with("reconnecting"), "{:?}", heard.states);
    way.open.send_replace(true);
    let heard = looking.until(10).await;
    looking.running.end().await;
    assert_eq!(seen(&heard), ids(0, 10));
    assert!(heard.states.last().unwrap().starts_with("connected"), "{:?}", heard.states);
}

#[tokio::test]
async fn what_is_wrong_is_told() {
    let told = |options: &[(&str, &str)]| {
        let all = [("url", "mongodb://127.0.0.1:1/x")].into_iter().chain(options.iter().copied());
        MongoTail::from_options(&Options::new("stream \"s\"", all)).unwrap_err().to_string()
    };
    for (options, why) in [
        (&[][..], "option `collection`"),
        (&[("collection", "a$")], "can't be its name"),
        (&[("collection", "a"), ("start", "now")], "'earliest', 'latest' or a time"),
        (&[("collection", "a"), ("changes", "upsert")], "option `changes`"),
        (&[("collection", "a"), ("every", "1s")], "`every` goes with `cursor`"),
        (&[("collection", "a"), ("cursor", "a,b")], "names one member"),
        (&[("collection", "a"), ("cursor", "a"), ("changes", "update")], "inserts alone"),
    ] {
        let error = told(options);
        assert!(error.contains(why), "{error}");
    }
    let Some(url) = without("wrong").await else { return };
    let error = start(&tail(&url, "wrong", &[]), Recorder::resuming(None)).fails().await.to_string();
    assert!(error.contains("has no change streams") && error.contains("cursor = '_id'"), "{error}");
    probe::insert(&url, "wrong", vec![doc! { "_id": 1, "by": true }, doc! { "_id": "b" }]).await;
    for (options, why) in [(&[("cursor", "_id")][..], "several kinds"), (&[("cursor", "by")], "does not grow")] {
        let error = look(&url, "wrong", options, None).running.fails().await.to_string();
        assert!(error.contains(why), "{error}");
    }
    probe::forget(&url, &["wrong"]).await;
    probe::insert(&url, "wrong", numbered(0, 1)).await;
    let options = [("cursor", "_id"), ("start", "2026-01-31T15:00:00Z")];
    let error = look(&url, "wrong", &options, None).running.fails().await.to_string();
    assert!(error.contains("has no times in it"), "{error}");
    let kept = Some(Place::Row(None).token("tail.other", Some("_id")));
    let error = look(&url, "wrong", &[("cursor", "_id")], kept).running.fails().await.to_string();
    assert!(error.contains("read `tail.other`"), "{error}");
}
