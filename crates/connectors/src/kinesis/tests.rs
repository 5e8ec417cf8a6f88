//! Streams that are read to their end, over restarts, splits, gaps and refusals.
//!
//! Most are against a service of the test's own (`fake.rs`), whose clock the test
//! moves; `moto.rs` is against the server of `TIDEMILL_S3`, which has Kinesis too.

mod fake;
mod moto;
mod ways;

use super::*;
use crate::{
    contract::{Behind, Heard, Recorder},
    http::proxy::Proxy,
};
use fake::{Fake, KEY, Odd, sequence};
use tidemill_core::{Clock, ManualClock, StopHandle};
use tokio::task::JoinHandle;

const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3600);

fn reader(endpoint: &str, clock: &Arc<ManualClock>, options: &[(&str, &str)]) -> Kinesis {
    let mut all = vec![("endpoint", endpoint), ("region", "us-east-1")];
    if !options.iter().any(|(name, _)| *name == "stream") {
        all.push(("stream", "words"));
    }
    all.extend(options);
    let options = Options::new("stream \"s\"", all);
    let mut reader = Kinesis::from_options(&options).unwrap();
    options.finish().unwrap();
    reader.link.clock = Arc::clone(clock) as Arc<dyn Clock>;
    reader.link.proxy = Proxy::Direct;
    reader.caller = Caller::of(KEY, "hunter2", None);
    reader.seed = 1;
    reader
}

struct Running {
    intake: Arc<Recorder>,
    stop: StopHandle,
    task: JoinHandle<Result<()>>,
    clock: Arc<ManualClock>,
}

fn run(reader: Kinesis, clock: &Arc<ManualClock>, token: Option<String>) -> Running {
    let intake = Recorder::resuming(token);
    let given: Arc<dyn Intake> = Arc::<Recorder>::clone(&intake);
    let (stop, stopped) = StopHandle::new();
    let task = tokio::spawn(async move { reader.run(given, stopped).await });
    Running { intake, stop, task, clock: Arc::clone(clock) }
}

impl Fake {
    fn run(&self, options: &[(&str, &str)], token: Option<String>) -> Running {
        run(reader(&format!("http://{}", self.address), &self.clock, options), &self.clock, token)
    }
}

impl Running {
    /// Until something holds, while the clock goes on.
    async fn until(&self, holds: impl Fn(&Heard) -> bool) -> Heard {
        for _ in 0..2000 {
            if let Ok(heard) = tokio::time::timeout(Duration::from_millis(10), self.intake.until(&holds)).await {
                return heard;
            }
            assert!(!self.task.is_finished(), "it has ended; heard {:?}", self.intake.heard());
            self.clock.advance(SECOND / 4);
        }
        panic!("waited in vain; heard {:?}", self.intake.heard());
    }

    async fn records(&self, count: usize) -> Heard {
        self.until(|heard| heard.records.len() >= count).await
    }

    /// The error that ends it.
    async fn fails(self) -> Error {
        for _ in 0..4000 {
            if self.task.is_finished() {
                return self.task.await.unwrap().unwrap_err();
            }
            self.clock.advance(SECOND / 4);
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        panic!("it does not end; heard {:?}", self.intake.heard());
    }

    async fn end(self) -> Heard {
        self.stop.stop();
        self.task.await.unwrap().unwrap();
        self.intake.heard()
    }
}

fn says<'a>(what: &'a str) -> impl Fn(&Heard) -> bool + 'a {
    move |heard| heard.states.iter().any(|state| state.contains(what))
}

fn words(heard: &Heard) -> Vec<&str> {
    heard.records.iter().map(|record| std::str::from_utf8(record).unwrap()).collect()
}

fn sorted(heard: &Heard) -> Vec<&str> {
    let mut all = words(heard);
    all.sort_unstable();
    all
}

#[tokio::test]
async fn a_restart_goes_on_behind_the_last_record_of_each_shard() {
    let fake = Fake::start(2).await;
    fake.put("shard-0", &["a1", "a2", "a3"]);
    fake.put("shard-1", &["b1"]);
    let running = fake.run(&[], None);
    assert_eq!(sorted(&running.records(4).await), ["a1", "a2", "a3", "b1"]);
    let token = running.end().await.resume;
    fake.put("shard-0", &["a4"]);
    fake.put("shard-1", &["b2", "b3"]);
    let running = fake.run(&[("start", "latest")], token);
    running.records(3).await;
    let heard = running.until(says("connected to")).await;
    assert_eq!(sorted(&heard), ["a4", "b2", "b3"]);
    // Nothing comes twice while it goes on.
    fake.put("shard-1", &["b4"]);
    let heard = running.records(4).await;
    assert_eq!(sorted(&heard), ["a4", "b2", "b3", "b4"]);
    assert_eq!(sorted(&running.end().await), ["a4", "b2", "b3", "b4"]);
}

#[tokio::test]
async fn latest_is_where_the_first_start_was_also_when_nothing_came_before_the_next() {
    let fake = Fake::start(1).await;
    fake.put("shard-0", &["old"]);
    fake.clock.advance(SECOND);
    let running = fake.run(&[("start", "latest")], None);
    running.until(|heard| heard.resume.is_some()).await;
    let heard = running.end().await;
    assert!(heard.records.is_empty() && heard.blocks == 1, "a token without records: {heard:?}");
    // Nobody is there.
    fake.clock.advance(HOUR);
    fake.put("shard-0", &["new"]);
    let running = fake.run(&[("start", "latest")], heard.resume);
    assert_eq!(words(&running.records(1).await), ["new"]);
    running.end().await;

    let at = fake.clock.now();
    fake.clock.advance(HOUR);
    fake.put("shard-0", &["later"]);
    let text = at.plus(SECOND).to_string();
    let running = fake.run(&[("start", &text)], None);
    assert_eq!(words(&running.records(1).await), ["later"]);
    running.end().await;
}

#[tokio::test]
async fn a_shard_that_came_of_others_is_read_when_they_are_read_out() {
    let fake = Fake::start(2).await;
    fake.put("shard-0", &["0a", "0b", "0c", "0d", "0e"]);
    fake.put("shard-1", &["1a"]);
    let running = fake.run(&[], None);
    running.records(2).await;
    // A split, the halves of which are merged with the other one.
    fake.reshard(&["shard-0"], &["shard-2", "shard-3"]);
    fake.put("shard-2", &["2a", "2b", "2c"]);
    fake.put("shard-3", &["3a"]);
    fake.reshard(&["shard-3", "shard-1"], &["shard-4"]);
    fake.put("shard-4", &["4a", "4b", "4c"]);
    let heard = running.records(13).await;
    let place = |word: &str| words(&heard).iter().position(|have| *have == word).unwrap();
    for (before, after) in [("0e", "2a"), ("0e", "3a"), ("3a", "4a"), ("1a", "4a"), ("2a", "2b"), ("4b", "4c")] {
        assert!(place(before) < place(after), "{before} before {after}: {:?}", words(&heard));
    }
    let token = running.end().await.resume;
    // A restart knows which are read out.
    fake.put("shard-4", &["4d"]);
    let running = fake.run(&[], token);
    assert_eq!(words(&running.records(1).await), ["4d"]);
    running.end().await;
    let begun = fake.world().asked.iter().filter(|(_, body, _)| body["ShardIteratorType"] == "TRIM_HORIZON").count();
    assert_eq!(begun, 5, "each shard was begun once");
}

#[tokio::test]
async fn a_restart_between_a_split_and_its_halves_loses_neither() {
    let fake = Fake::start(1).await;
    fake.put("shard-0", &["0a"]);
    let running = fake.run(&[], None);
    let token = running.records(1).await.resume;
    running.end().await;
    // Pages of them, while the halves, of one page each, are listed from the beginning.
    fake.put("shard-0", &["0b", "0c", "0d", "0e", "0f", "0g", "0h"]);
    fake.reshard(&["shard-0"], &["shard-1", "shard-2"]);
    fake.put("shard-1", &["1a"]);
    fake.put("shard-2", &["2a"]);
    let running = fake.run(&[], token);
    let heard = running.records(9).await;
    assert_eq!(words(&heard)[..7], ["0b", "0c", "0d", "0e", "0f", "0g", "0h"]);
    assert_eq!(sorted(&heard)[7..], ["1a", "2a"]);
    running.end().await;
    // What `latest` passes over are the closed ones, and for good.
    let running = fake.run(&[("start", "latest")], None);
    let token = running.until(|heard| heard.resume.is_some()).await.resume;
    running.end().await;
    let running = fake.run(&[], token);
    running.until(says("connected")).await;
    fake.put("shard-2", &["2b"]);
    assert_eq!(words(&running.records(1).await), ["2b"]);
    running.end().await;
}

#[tokio::test]
async fn iterators_that_expire_are_renewed_behind_the_last_record() {
    let fake = Fake::start(1).await;
    fake.put("shard-0", &["a", "b"]);
    let running = fake.run(&[("limit", "1")], None);
    for count in 2..8 {
        running.records(count).await;
        fake.world().generation += 1;
        fake.put("shard-0", &["c"]);
    }
    let heard = running.records(8).await;
    assert_eq!(words(&heard), ["a", "b", "c", "c", "c", "c", "c", "c"]);
    assert!(fake.count("GetShardIterator") >= 7);
    running.end().await;
    // One that begins with the newest, and expires before anything came.
    fake.clock.advance(SECOND);
    let running = fake.run(&[("start", "latest")], None);
    running.until(says("connected")).await;
    let asked = fake.count("GetRecords");
    running.until(|_| fake.count("GetRecords") > asked).await;
    fake.clock.advance(SECOND);
    fake.world().generation += 1;
    fake.put("shard-0", &["d"]);
    assert_eq!(words(&running.records(1).await), ["d"]);
    running.end().await;
}

/// A place behind a record that was trimmed since, with another that was trimmed unread, and one that is there.
async fn trimmed(refuses: bool) -> (Fake, Option<String>) {
    let fake = Fake::start(1).await;
    fake.world().refuses_trimmed = refuses;
    fake.put("shard-0", &["read"]);
    let running = fake.run(&[], None);
    let token = running.records(1).await.resume;
    running.end().await;
    fake.clock.advance(HOUR);
    fake.put("shard-0", &["lost"]);
    fake.clock.advance(HOUR * 30);
    fake.trim();
    fake.put("shard-0", &["kept"]);
    (fake, token)
}

#[tokio::test]
async fn what_was_trimmed_unread_is_refused_with_the_gap_or_passed_over_and_told() {
    for refuses in [false, true] {
        let (fake, token) = trimmed(refuses).await;
        let error = fake.run(&[], token.clone()).fails().await;
        let text = error.chain();
        assert!(text.contains(&format!("shard shard-0 has no record {} any more", sequence(1))), "{text}");
        assert!(text.contains("since 2023-11-14T22:") && text.contains("`on_gap = 'skip'`"), "{text}");
        assert!(!error.is_retryable());
        let running = fake.run(&[("on_gap", "skip")], token);
        let heard = running.records(1).await;
        assert_eq!(words(&heard), ["kept"]);
        assert!(says("going on behind a gap: shard shard-0 has no record")(&heard), "{:?}", heard.states);
        // Told once.
        let token = running.end().await.resume;
        let running = fake.run(&[], token);
        fake.put("shard-0", &["more"]);
        assert_eq!(words(&running.records(1).await), ["more"]);
        running.end().await;
    }
}

#[tokio::test]
async fn a_shard_that_was_quiet_has_no_gap() {
    for refuses in [false, true] {
        let fake = Fake::start(1).await;
        fake.world().refuses_trimmed = refuses;
        fake.put("shard-0", &["read"]);
        let running = fake.run(&[], None);
        running.records(1).await;
        // Its last record is trimmed, and it was read all the while: the places are kept without records too.
        let blocks = running.intake.heard().blocks;
        for _ in 0..30 {
            fake.clock.advance(HOUR);
            let asked = fake.count("GetRecords");
            running.until(|_| fake.count("GetRecords") > asked).await;
        }
        fake.trim();
        let heard = running.until(|heard| heard.blocks > blocks + 20).await;
        running.end().await;
        fake.put("shard-0", &["new"]);
        let running = fake.run(&[], heard.resume);
        assert_eq!(words(&running.records(1).await), ["new"]);
        running.end().await;
    }
}

#[tokio::test]
async fn a_record_that_vanished_before_its_time_and_a_shard_that_did_are_gaps() {
    let fake = Fake::start(2).await;
    fake.put("shard-0", &["a", "b", "c"]);
    let running = fake.run(&[], None);
    let token = running.records(3).await.resume;
    running.end().await;
    // As in a stream that was made anew in the same second.
    fake.world().shards.remove("shard-1");
    let error = fake.run(&[], token.clone()).fails().await.chain();
    assert!(error.contains("shard shard-1 is gone, and what came to it"), "{error}");
    fake.world().shards.insert("shard-1".to_string(), fake::Shard::default());
    fake.world().shards.insert("shard-0".to_string(), fake::Shard::default());
    fake.put("shard-0", &["of another"]);
    let error = fake.run(&[], token.clone()).fails().await.chain();
    assert!(error.contains("younger than the stream's retention"), "{error}");
    fake.world().created += 1;
    let error = fake.run(&[("on_gap", "skip")], token).fails().await.chain();
    assert!(error.contains("deleted and made anew"), "{error}");
    let error = fake.run(&[], Some("17".to_string())).fails().await.chain();
    assert!(error.contains("none of this connector"), "{error}");
}

#[tokio::test]
async fn a_shard_is_not_asked_more_often_than_the_service_allows() {
    let fake = Fake::start(1).await;
    fake.world().page = 1;
    let all: Vec<String> = (0..20).map(|n| n.to_string()).collect();
    fake.put("shard-0", &all.iter().map(String::as_str).collect::<Vec<_>>());
    let running = fake.run(&[], None);
    while running.intake.heard().records.len() < all.len() {
        // Work takes no time; what is waited for long is an answer.
        let now = fake.clock.now();
        match fake.clock.waited_for().filter(|next| *next > now && next.since(now) <= SECOND * 2) {
            Some(next) => fake.clock.set(next),
            None => tokio::task::yield_now().await,
        }
    }
    let heard = running.end().await;
    assert_eq!(words(&heard), all);
    let world = fake.world();
    let times: Vec<Timestamp> =
        world.asked.iter().filter(|(call, ..)| call == "GetRecords").map(|(.., at)| *at).collect();
    assert!(times.len() >= 20 && times.windows(6).all(|six| six[5].since(six[0]) > SECOND), "{times:?}");
}

#[tokio::test]
async fn too_many_requests_are_waited_out_longer_each_time() {
    let fake = Fake::start(2).await;
    for _ in 0..4 {
        fake.world().odd.push_back(("GetRecords", Odd::Refusal(400, "ProvisionedThroughputExceededException")));
    }
    fake.world().odd.push_back(("GetShardIterator", Odd::Refusal(400, "LimitExceededException")));
    fake.put("shard-0", &["a", "b", "c"]);
    fake.put("shard-1", &["d", "e"]);
    let running = fake.run(&[], None);
    let heard = running.records(5).await;
    assert_eq!(sorted(&heard), ["a", "b", "c", "d", "e"]);
    assert!(says("gives no more for")(&heard), "{:?}", heard.states);
    running.end().await;
}

#[tokio::test]
async fn a_server_that_is_gone_or_talks_nonsense_is_waited_for() {
    let fake = Fake::start(1).await;
    fake.put("shard-0", &["a", "b", "c"]);
    let nonsense = ["", "<html>", "[]", "{\"Records\":[{}]}", "{\"Records\":[],\"MillisBehindLatest\":\"x\"}"];
    let mut odd = vec![
        ("ListShards", Odd::Nothing),
        ("DescribeStreamSummary", Odd::Refusal(503, "ServiceUnavailable")),
        ("ListShards", Odd::Body("{\"Shards\":[{\"ShardId\":7}]}".to_string())),
        ("ListShards", Odd::Refusal(400, "ResourceInUseException")),
        ("GetShardIterator", Odd::Body("{}".to_string())),
        ("GetRecords", Odd::Nothing),
        ("GetRecords", Odd::Refusal(500, "InternalFailure")),
    ];
    odd.extend(nonsense.map(|body| ("GetRecords", Odd::Body(body.to_string()))));
    fake.world().odd.extend(odd);
    let running = fake.run(&[], None);
    let heard = running.records(3).await;
    assert_eq!(words(&heard), ["a", "b", "c"]);
    assert!(fake.world().odd.is_empty());
    for wanted in ["reconnecting in", "with nonsense: it is no JSON", "InternalFailure", "with nonsense: there is no"] {
        assert!(says(wanted)(&heard), "{wanted}: {:?}", heard.states);
    }
    running.end().await;
}

#[tokio::test]
async fn what_needs_a_human_ends_it_without_a_secret() {
    let fake = Fake::start(1).await;
    let endpoint = format!("http://{}", fake.address);
    let mut stranger = reader(&endpoint, &fake.clock, &[]);
    stranger.caller = Caller::of("stranger", "hunter2", Some("hunter3"));
    let error = run(stranger, &fake.clock, None).fails().await;
    let text = error.chain();
    assert!(text.contains("UnrecognizedClientException") && text.contains("check AWS_ACCESS_KEY_ID"), "{text}");
    assert!(!text.contains("hunter") && !error.is_retryable(), "{text}");
    let mut damaged = reader(&endpoint, &fake.clock, &[]);
    damaged.caller = Caller::of(KEY, "hunter2", Some("hunter\n3"));
    let text = run(damaged, &fake.clock, None).fails().await.chain();
    assert!(text.contains("AWS_SESSION_TOKEN") && !text.contains("hunter"), "{text}");
    let text = fake.run(&[("stream", "sentences")], None).fails().await.chain();
    assert!(text.contains("no stream `sentences`"), "{text}");
    for (kind, wanted) in [
        ("InvalidSignatureException", "the clock of this machine"),
        ("AccessDeniedException", "what they may do"),
        ("", "is `endpoint` right?"),
    ] {
        fake.world().odd.push_back(("ListShards", Odd::Refusal(400, kind)));
        let text = fake.run(&[], None).fails().await.chain();
        assert!(text.contains(wanted), "{text}");
    }
    // A stream that is deleted while it is read.
    let running = fake.run(&[], None);
    running.until(says("connected")).await;
    fake.world().odd.push_back(("GetRecords", Odd::Refusal(400, "ResourceNotFoundException")));
    fake.world().odd.push_back(("DescribeStreamSummary", Odd::Refusal(400, "ResourceNotFoundException")));
    let text = running.fails().await.chain();
    assert!(text.contains("no stream `words`"), "{text}");
}

#[tokio::test]
async fn while_the_log_is_behind_no_more_is_asked_for() {
    let fake = Fake::start(6).await;
    for shard in 0..6 {
        fake.put(&format!("shard-{shard}"), &["a", "b", "c", "d"]);
    }
    let reader = reader(&format!("http://{}", fake.address), &fake.clock, &[]);
    let behind = Behind::new();
    let given: Arc<dyn Intake> = Arc::<Behind>::clone(&behind);
    let (stop, stopped) = StopHandle::new();
    let task = tokio::spawn(async move { reader.run(given, stopped).await });
    // The token of the beginning, and the first records.
    behind.let_through(1);
    while fake.count("GetRecords") == 0 {
        fake.clock.advance(SECOND / 4);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    behind.entered(2).await;
    for _ in 0..100 {
        fake.clock.advance(SECOND / 4);
        tokio::task::yield_now().await;
    }
    assert!(fake.count("GetRecords") <= 4, "{}", fake.count("GetRecords"));
    assert!(behind.heard.heard().records.is_empty());
    behind.let_through(1000);
    while behind.heard.heard().records.len() < 24 {
        fake.clock.advance(SECOND / 4);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(sorted(&behind.heard.heard()).len(), 24);
    stop.stop();
    task.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_long_record_is_refused_and_a_block_has_the_place_of_its_last_record() {
    let fake = Fake::start(1).await;
    fake.world().page = 100;
    let large = "x".repeat(100 << 10);
    let all = [large.as_str(), &large, &large, "end", "too long for this bound of a few bytes"];
    fake.put("shard-0", &all);
    let running = fake.run(&[("max_line", "110kB")], None);
    let heard = running.records(5).await;
    assert_eq!(heard.blocks, 3, "the beginning, and two of 256 KiB");
    let token = running.end().await.resume.unwrap();
    assert!(token.contains(&sequence(5)), "{token}");

    let running = fake.run(&[("max_line", "10")], None);
    let heard = running.until(|heard| heard.refused.len() == 4).await;
    assert_eq!(words(&heard), ["end"]);
    assert!(heard.refused[3].0.contains(&format!("record {} of shard shard-0 has 38 bytes", sequence(5))));
    // A restart does not refuse it again.
    let heard = running.until(|heard| heard.resume.as_ref().is_some_and(|token| token.contains(&sequence(5)))).await;
    running.end().await;
    let running = fake.run(&[("max_line", "10")], heard.resume);
    fake.put("shard-0", &["more"]);
    let heard = running.records(1).await;
    assert!(heard.refused.is_empty() && words(&heard) == ["more"], "{heard:?}");
    running.end().await;
}

#[tokio::test]
async fn a_message_has_what_is_beside_the_data() {
    let fake = Fake::start(1).await;
    fake.put("shard-0", &["{\"n\":1.50}", "text"]);
    let running = fake.run(&[("record", "message")], None);
    let heard = running.records(2).await;
    let (first, second) = (sequence(1), sequence(2));
    let rest = "\"partition_key\":\"key\"";
    assert!(words(&heard)[0].contains("\"data\":{\"n\":1.50}}"), "{:?}", words(&heard));
    for (word, number) in words(&heard).iter().zip([first, second]) {
        assert!(word.contains(&number) && word.contains(rest) && word.contains("\"shard\":\"shard-0\""), "{word}");
        assert!(word.contains("\"arrived\":\"2023-11-14T22:13:20"), "{word}");
    }
    running.end().await;
}

#[test]
fn options_are_checked() {
    let open = |pairs: &[(&str, &str)]| {
        let options = Options::new("stream \"s\"", pairs.iter().copied());
        Kinesis::input(&options).and_then(|input| options.finish().map(|()| input))
    };
    let described = |pairs: &[(&str, &str)]| {
        let Input::Receivers(all) = open(pairs).unwrap() else { panic!("a receiver") };
        all[0].describe()
    };
    assert_eq!(
        described(&[("stream", "a.b-c"), ("region", "eu-west-1")]),
        "kinesis a.b-c at https://kinesis.eu-west-1.amazonaws.com"
    );
    let arn = "arn:aws-cn:kinesis:cn-north-1:123:stream/a";
    assert_eq!(
        described(&[("stream", arn), ("region", "cn-north-1")]),
        format!("kinesis {arn} at https://kinesis.cn-north-1.amazonaws.com.cn")
    );
    let with = |name: &'static str, value: &'static str| vec![("stream", "a"), (name, value)];
    assert!(open(&with("endpoint", "http://localhost:4566/")).is_ok());
    for (pairs, wanted) in [
        (vec![], "option `stream` is missing"),
        (vec![("stream", "a b")], "is no name of a stream"),
        (vec![("stream", "arn:aws:s3:::bucket")], "is no name of a stream"),
        (with("region", "a.b/"), "is no region"),
        (with("endpoint", "http://kinesis.example.org"), "http:// is for servers on this machine"),
        (with("endpoint", "https://kinesis.example.org/path"), "and no more"),
        (with("start", "newest"), "option `start` must be"),
        (with("start", "-5"), "option `start` must be"),
        (with("record", "payload"), "`data` or `message`"),
        (with("on_gap", "go"), "`stop` or `skip`"),
        (with("every", "50ms"), "200ms at least"),
        (with("limit", "0"), "between 1 and 10000"),
        (with("limit", "10001"), "between 1 and 10000"),
        (with("streams", "b"), "did you mean `stream`?"),
    ] {
        let error = open(&pairs).unwrap_err().to_string();
        assert!(error.contains(wanted), "{error}");
    }
}
