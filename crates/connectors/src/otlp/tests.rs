//! The export against a collector on this machine, whose posts are compared with what the board told.
//!
//! Time is moved by the tests, to whatever is waited for; requests go over real sockets.

use super::*;
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{Response, body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use serde_json::Value as Json;
use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::Mutex,
    time::{Duration, Instant},
};
use tidemill_core::{
    BatchDetail, BatchId, BatchReport, ManualClock, Offset, OffsetRange, OperatorReport, PartitionId, ReadReport,
    Stage, StageReport, Stretch, Timestamp, TracesReport,
};
use tokio::{net::TcpListener, sync::Notify, task::yield_now};

/// Far more than any step takes on a machine that does other things as well.
const PATIENCE: Duration = Duration::from_secs(120);
/// When the tests begin.
const START: i64 = 1_700_000_000_000_000;

/// What was posted: the headers, and the spans' JSON.
type Posted = (HashMap<String, String>, Json);

/// How a collector answers.
#[derive(Debug, Clone, Copy)]
enum Answers {
    With(u16, &'static str, &'static str),
    /// Not before [`Collector::go_on`].
    Late,
    HangsUp,
}

/// A collector with an answer for each request; `{}` when it has none left.
#[derive(Debug, Default)]
struct Collector {
    posted: Mutex<Vec<Posted>>,
    answers: Mutex<VecDeque<Answers>>,
    go_on: Notify,
}

impl Collector {
    fn posted(&self) -> Vec<Posted> {
        self.posted.lock().unwrap().clone()
    }

    /// The number of posts, once there are so many.
    fn has(&self, posts: usize) -> Option<usize> {
        Some(self.posted().len()).filter(|have| *have >= posts)
    }

    /// Spans of all posts.
    fn spans(&self) -> Vec<Json> {
        let spans = |(_, json): Posted| json["resourceSpans"][0]["scopeSpans"][0]["spans"].as_array().unwrap().clone();
        self.posted().into_iter().flat_map(spans).collect()
    }

    /// Batches of which there are traces, in the order in which they came.
    fn batches(&self) -> Vec<u64> {
        let roots = self.spans().into_iter().filter(|span| span["name"] == "batch");
        roots.map(|root| attributes(&root)["tidemill.batch"].parse().unwrap()).collect()
    }

    async fn note(&self, request: hyper::Request<Incoming>) -> Option<Response<Full<Bytes>>> {
        let (head, body) = request.into_parts();
        assert_eq!((head.method.as_str(), head.uri.path()), ("POST", "/v1/traces"));
        let headers = head.headers.iter().map(|(k, v)| (k.to_string(), v.to_str().unwrap().to_string())).collect();
        let body = serde_json::from_slice(&body.collect().await.unwrap().to_bytes()).unwrap();
        self.posted.lock().unwrap().push((headers, body));
        let answer = self.answers.lock().unwrap().pop_front().unwrap_or(Answers::With(200, "", "{}"));
        let (status, header, body) = match answer {
            Answers::With(status, header, body) => (status, header, body),
            Answers::HangsUp => return None,
            Answers::Late => {
                self.go_on.notified().await;
                (200, "", "{}")
            }
        };
        let mut response = Response::builder().status(status);
        if let Some((name, value)) = header.split_once(": ") {
            response = response.header(name, value);
        }
        Some(response.body(Full::new(Bytes::from(body))).unwrap())
    }
}

/// A collector with these answers first, and its address.
async fn serve(answers: &[Answers]) -> (Arc<Collector>, String) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let collector = Arc::new(Collector { answers: Mutex::new(answers.to_vec().into()), ..Collector::default() });
    let served = Arc::clone(&collector);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let collector = Arc::clone(&served);
            let service = service_fn(move |request| {
                let collector = Arc::clone(&collector);
                async move { collector.note(request).await.ok_or("hangs up") }
            });
            tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
        }
    });
    (collector, url)
}

/// A program whose batches are exported.
struct Site {
    collector: Arc<Collector>,
    clock: Arc<ManualClock>,
    board: Arc<Board>,
    following: Option<Following>,
}

impl Site {
    /// With these answers first. The time of requests is the machine's own, unless they are to run out of it.
    async fn open(answers: &[Answers], timed: bool) -> Self {
        let (collector, url) = serve(answers).await;
        Self::at(&url, collector, timed, "")
    }

    fn at(url: &str, collector: Arc<Collector>, timed: bool, headers: &str) -> Self {
        let (clock, board) = (Arc::new(ManualClock::at(Timestamp(START))), Arc::new(Board::default()));
        let mut traces = Traces::to(url).unwrap().program("p").headers(headers).unwrap();
        traces.clock = Arc::clone(&clock) as Arc<dyn Clock>;
        traces.tracer.seed = 7;
        if timed {
            traces.link.clock = Arc::clone(&clock) as Arc<dyn Clock>;
        }
        let following = Some(traces.follow(Arc::clone(&board)));
        Self { collector, clock, board, following }
    }

    fn told(&self) -> TracesReport {
        self.board.traces().unwrap()
    }

    /// Looks until there is something, moving the time to whatever is waited for.
    async fn until<T>(&self, mut look: impl FnMut(&Self) -> Option<T>) -> T {
        self.look(|site| {
            let found = look(site);
            if found.is_none() {
                site.pass();
            }
            found
        })
        .await
    }

    /// Looks until there is something, in one moment.
    async fn look<T>(&self, mut look: impl FnMut(&Self) -> Option<T>) -> T {
        let begun = Instant::now();
        while begun.elapsed() < PATIENCE {
            if let Some(found) = look(self) {
                return found;
            }
            yield_now().await;
        }
        panic!("it never comes; {:?}, {} posts", self.told(), self.collector.posted().len())
    }

    /// Moves the time to what is waited for next, once something is.
    async fn step(&self) {
        let next = |site: &Self| site.clock.waited_for().filter(|at| *at > site.clock.now());
        self.clock.set(self.look(next).await);
    }

    fn pass(&self) {
        if let Some(at) = self.clock.waited_for() {
            self.clock.set(at.max(self.clock.now()));
        }
    }

    /// Ends the export; the time that it took.
    async fn end(&mut self) -> Duration {
        let begun = self.clock.now();
        let ending = tokio::spawn(self.following.take().unwrap().end());
        // All tasks have their turns before the time goes on.
        for _ in 0..100 {
            yield_now().await;
        }
        self.until(|_| ending.is_finished().then_some(())).await;
        ending.await.unwrap();
        self.clock.now().since(begun)
    }
}

/// Microseconds after the start.
fn at(begun: i64, ended: i64) -> Stretch {
    Stretch { begun: Timestamp(START + begun), ended: Timestamp(START + ended) }
}

fn stage(stage: Stage, of: Option<&str>, at: Stretch) -> StageReport {
    StageReport { stage, of: of.map(str::to_string), at, tries: 1, error: None, failed: false }
}

fn work(name: &str, rows: u64, busy_us: u64, at: Option<Stretch>) -> OperatorReport {
    OperatorReport { name: name.to_string(), rows, busy_us, steps: Vec::new(), at }
}

/// A batch as the engine tells it.
fn report(batch: u64) -> BatchReport {
    let range =
        |p: &str, start, end| OffsetRange { partition: PartitionId::new(p), start: Offset(start), end: Offset(end) };
    let reads = [("0", 5, 40), ("1", 0, 7)].map(|(partition, start, end)| ReadReport {
        stream: "lines".to_string(),
        range: range(partition, start, end),
        records: end - start,
        at: at(210, 290),
    });
    let mut top = work("top", 3, 55, Some(at(220, 390)));
    top.steps = vec![work("partial", 9, 30, Some(at(220, 300))), work("state", 3, 25, Some(at(300, 390)))];
    let mut show = stage(Stage::Show, Some("out"), at(700, 800));
    (show.tries, show.error) = (3, Some("the disk was full".to_string()));
    let detail = BatchDetail {
        ranges: BTreeMap::from([("lines".to_string(), vec![range("0", 5, 40), range("1", 0, 7)])]),
        records: BTreeMap::from([("lines".to_string(), 42)]),
        bytes: BTreeMap::from([("lines".to_string(), 4200)]),
        operators: vec![work("lines", 41, 60, Some(at(210, 295))), top, work("later", 1, 10, None)],
        outputs: vec![work("top", 3, 4, None), work("out", 3, 5, None)],
        reads: reads.into(),
        stages: vec![
            stage(Stage::Ranges, None, at(100, 120)),
            stage(Stage::Plan, None, at(120, 200)),
            stage(Stage::Run, None, at(200, 400)),
            stage(Stage::Gather, None, at(400, 450)),
            // The clock went back: no span leaves its parent for it.
            stage(Stage::Output, Some("top"), at(390, 380)),
            stage(Stage::Stage, Some("out"), at(205, 4000)),
            stage(Stage::Commit, None, at(500, 700)),
            stage(Stage::Inputs, None, at(500, 510)),
            stage(Stage::Checkpoint, None, at(510, 600)),
            stage(Stage::Ledger, None, at(600, 700)),
            show,
        ],
        ..BatchDetail::default()
    };
    BatchReport {
        batch: BatchId(batch),
        time: Timestamp(START),
        records_in: 42,
        rows_out: 6,
        refused: 1,
        letters: BTreeMap::from([("bad_value", 1), ("late", 2)]),
        late: 2,
        scheduling_delay_us: 200,
        processing_us: 600,
        state_bytes: 99,
        watermark: Some(Timestamp(START - 5_000_000)),
        rate_limit: Some(2.5),
        detail: Arc::new(detail),
        ..BatchReport::default()
    }
}

/// Attributes as texts.
fn attributes(span: &Json) -> BTreeMap<String, String> {
    let value = |value: &Json| {
        let (_, value) = value.as_object().unwrap().iter().next().unwrap();
        value.as_str().map_or_else(|| value.to_string(), str::to_string)
    };
    let all = span["attributes"].as_array().unwrap().iter();
    all.map(|one| (one["key"].as_str().unwrap().to_string(), value(&one["value"]))).collect()
}

/// Each span's names up to the root.
fn paths(spans: &[Json]) -> Vec<String> {
    let by_id: HashMap<&str, &Json> = spans.iter().map(|span| (span["spanId"].as_str().unwrap(), span)).collect();
    assert_eq!(by_id.len(), spans.len(), "each id is there once");
    let path = |span: &Json| {
        let mut path = span["name"].as_str().unwrap().to_string();
        let mut below = span;
        while let Some(parent) = below["parentSpanId"].as_str() {
            below = by_id[parent];
            path = format!("{}/{path}", below["name"].as_str().unwrap());
        }
        path
    };
    spans.iter().map(path).collect()
}

fn nanos(span: &Json, key: &str) -> u64 {
    span[key].as_str().unwrap().parse().unwrap()
}

/// Ids are of their length and not zero, all are one trace, and each span lies within its parent.
fn is_well_formed(spans: &[Json]) {
    let hex = |text: &str, length| {
        assert!(text.len() == length && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)));
        assert!(text.bytes().any(|b| b != b'0'));
    };
    for span in spans {
        hex(span["traceId"].as_str().unwrap(), 32);
        hex(span["spanId"].as_str().unwrap(), 16);
        assert_eq!((&span["traceId"], &span["kind"]), (&spans[0]["traceId"], &Json::from(1)));
        let (begun, ended) = (nanos(span, "startTimeUnixNano"), nanos(span, "endTimeUnixNano"));
        assert!(begun <= ended, "{span}");
        let Some(parent) = span.get("parentSpanId") else { continue };
        let parent = spans.iter().find(|other| other["spanId"] == *parent).unwrap();
        let (from, to) = (nanos(parent, "startTimeUnixNano"), nanos(parent, "endTimeUnixNano"));
        assert!(from <= begun && ended <= to, "{span} in {parent}");
    }
}

#[tokio::test]
async fn a_batch_is_a_trace_with_all_that_was_told() {
    let mut site = Site::open(&[], false).await;
    site.board.publish_batch(report(17));
    site.until(|site| site.collector.has(1)).await;
    let (headers, json) = site.collector.posted().remove(0);
    assert_eq!(headers["content-type"], "application/json");
    let resource = attributes(&json["resourceSpans"][0]["resource"]);
    let version = env!("CARGO_PKG_VERSION");
    assert_eq!((resource["service.name"].as_str(), resource["service.version"].as_str()), ("p", version));

    let spans = site.collector.spans();
    is_well_formed(&spans);
    let wanted = [
        "batch",
        "batch/ranges",
        "batch/plan",
        "batch/run",
        "batch/run/read lines",
        "batch/run/read lines/range",
        "batch/run/read lines/range",
        "batch/run/operator top",
        "batch/run/operator top/partial",
        "batch/run/operator top/state",
        "batch/run/operator later",
        "batch/run/output top",
        "batch/run/stage out",
        "batch/gather",
        "batch/commit",
        "batch/commit/inputs",
        "batch/commit/checkpoint",
        "batch/commit/ledger",
        "batch/show out",
    ];
    assert_eq!(paths(&spans), wanted);
    let span = |path: &str| &spans[wanted.iter().position(|wanted| *wanted == path).unwrap()];
    let root = attributes(span("batch"));
    for (key, value) in [
        ("program", "p"),
        ("batch", "17"),
        ("batch_time", "2023-11-14T22:13:20.000Z"),
        ("outcome", "committed"),
        ("records", "42"),
        ("bytes", "4200"),
        ("rows_out", "6"),
        ("dead_letters", "3"),
        ("late", "2"),
        ("scheduling_delay_us", "200"),
        ("processing_us", "600"),
        ("watermark", "2023-11-14T22:13:15.000Z"),
        ("rate_limit", "2.5"),
    ] {
        assert_eq!(root.get(&format!("tidemill.{key}")).map(String::as_str), Some(value), "{key} in {root:#?}");
    }
    let times = |path: &str| (nanos(span(path), "startTimeUnixNano"), nanos(span(path), "endTimeUnixNano"));
    let micro = |begun: i64, ended: i64| ((START + begun) as u64 * 1000, (START + ended) as u64 * 1000);
    assert_eq!(times("batch"), micro(100, 800));
    assert_eq!(times("batch/run/operator top"), micro(220, 390));
    assert_eq!(times("batch/run/stage out"), micro(205, 400), "cut to its parent");
    assert_eq!(times("batch/run/operator later"), micro(200, 210), "known by its work alone");
    assert_eq!(attributes(span("batch/run/operator top"))["tidemill.busy_us"], "55");
    let read = attributes(span("batch/run/read lines"));
    assert_eq!((read["tidemill.records"].as_str(), read["tidemill.bytes"].as_str()), ("42", "4200"));
    let range = attributes(span("batch/run/read lines/range"));
    let of = |key: &str| range[&format!("tidemill.{key}")].as_str();
    assert_eq!((of("partition"), of("start"), of("end"), of("records")), ("0", "5", "40", "35"));
    let show = span("batch/show out");
    assert_eq!(attributes(show)["tidemill.tries"], "3");
    assert_eq!(show["events"][0]["attributes"][0]["value"]["stringValue"], "the disk was full");
    assert!(spans.iter().all(|span| span.get("status").is_none()), "what was overcome is no error");
    site.until(|site| (site.told().sent > 0).then_some(())).await;
    assert_eq!(site.end().await, Duration::ZERO);
    assert_eq!(site.told(), TracesReport { sent: 19, dropped: 0 });
}

#[tokio::test]
async fn a_batch_that_failed_is_told_with_its_error() {
    let mut site = Site::open(&[], false).await;
    let mut run = stage(Stage::Run, None, at(200, 300));
    (run.failed, run.error) = (true, Some("no such file".to_string()));
    let mut again = report(3);
    Arc::get_mut(&mut again.detail).unwrap().stages.insert(2, run.clone());
    site.board.publish_batch(again);
    let stages = vec![stage(Stage::Plan, None, at(120, 200)), run];
    let detail = BatchDetail { stages, error: Some("no such file".to_string()), ..BatchDetail::default() };
    let time = Timestamp(START);
    site.board.publish_failed(BatchReport { batch: BatchId(4), time, detail: detail.into(), ..BatchReport::default() });
    site.until(|site| site.collector.has(1)).await;
    assert_eq!(site.collector.batches(), [3, 4], "both in one request");
    let spans = site.collector.spans();
    let (first, second) = spans.split_at(20);
    first.iter().for_each(|span| assert_ne!(span["traceId"], second[0]["traceId"]));
    is_well_formed(first);
    is_well_formed(second);
    assert_eq!(paths(second), ["batch", "batch/plan", "batch/run"]);
    // A run that failed and one that worked: the batch itself did not fail.
    let failed = |spans: &[Json]| spans.iter().map(|span| span.get("status").cloned()).collect::<Vec<_>>();
    let error = serde_json::json!({ "code": 2, "message": "no such file" });
    assert_eq!(failed(first).iter().flatten().collect::<Vec<_>>(), [&error]);
    assert_eq!(paths(first)[3..5], ["batch/run", "batch/run"], "what was computed belongs to the run that worked");
    assert_eq!(failed(first)[3], Some(error.clone()));
    assert_eq!(paths(first)[5], "batch/run/read lines");
    assert_eq!(first[5]["parentSpanId"], first[4]["spanId"]);
    assert_eq!(failed(second), [Some(error.clone()), None, Some(error)]);
    assert_eq!(attributes(&second[0])["tidemill.outcome"], "failed");
    site.end().await;
}

#[tokio::test]
async fn ids_follow_from_the_seed_and_a_trace_has_a_bound() {
    let tracer = |seed| spans::Tracer { program: "p".to_string(), seed };
    assert_eq!(tracer(1).spans(&report(1)), tracer(1).spans(&report(1)));
    let id = |seed, batch| tracer(seed).spans(&report(batch))[0].trace;
    assert!(id(1, 1) != id(2, 1) && id(1, 1) != id(1, 2));
    let mut many = report(1);
    let detail = Arc::get_mut(&mut many.detail).unwrap();
    detail.operators.extend((0..1000).map(|n| work(&format!("o{n}"), 1, 1, None)));
    let spans = tracer(1).spans(&many);
    assert_eq!(spans.len(), 500);
    let left = spans[0].attributes.iter().find(|(key, _)| *key == "tidemill.spans_left_out");
    assert_eq!(left.map(|(_, left)| left.clone()), Some(spans::Value::Whole(519)));
    // A report without anything in detail, as a program's first.
    let bare = BatchReport { scheduling_delay_us: 5, processing_us: 9, ..BatchReport::default() };
    let spans = tracer(1).spans(&bare);
    assert_eq!((spans.len(), spans[0].at.begun, spans[0].at.ended), (1, Timestamp(5), Timestamp(14)));
}

#[tokio::test]
async fn what_a_collector_asks_for_again_is_sent_again_and_what_it_refuses_is_dropped() {
    let (body, none) = ("{\"partialSuccess\":{\"rejectedSpans\":\"4\",\"errorMessage\":\"too old\"}}", "");
    let answers = [
        Answers::With(503, "Retry-After: 90", "later"),
        Answers::With(429, none, none),
        Answers::HangsUp,
        Answers::With(502, none, "<html>"),
        Answers::With(200, none, none),
        Answers::With(400, none, "no such thing"),
        Answers::With(200, none, body),
        Answers::With(307, "Location: /elsewhere", none),
        Answers::With(202, none, "nonsense"),
    ];
    let mut site = Site::open(&answers, false).await;
    site.board.publish_batch(report(1));
    let begun = site.clock.now();
    site.until(|site| site.collector.has(1)).await;
    site.until(|site| site.collector.has(2)).await;
    assert!(site.clock.now().since(begun) >= Duration::from_secs(89), "not before it says");
    site.until(|site| (site.told().sent == 19).then_some(())).await;
    let posted = site.collector.posted();
    assert_eq!(posted.len(), 5);
    assert!(posted.iter().all(|(_, json)| *json == posted[0].1), "the same again, with the same ids");
    // Each in a request of its own.
    for (batch, sent, dropped) in [(2, 19, 19), (3, 34, 23), (4, 34, 42), (5, 53, 42)] {
        site.board.publish_batch(report(batch));
        let told = TracesReport { sent, dropped };
        site.until(|site| (site.told() == told).then_some(())).await;
    }
    assert_eq!(site.collector.posted().len(), 9);
    assert_eq!(site.end().await, Duration::ZERO);
}

#[tokio::test]
async fn a_collector_that_is_away_costs_the_oldest_spans_and_nothing_else() {
    // A port that nobody listens at.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let mut site = Site::at(&url, Arc::default(), false, "");
    for batch in 1..=1000 {
        // Nothing here waits: the board takes them all at once.
        site.board.publish_batch(report(batch));
        if batch % 10 == 0 {
            let then = site.clock.now();
            site.until(|site| (site.clock.now() > then).then_some(())).await;
        }
    }
    // One parcel of 500 spans or so is tried, and 256 batches wait; the others are gone.
    let all = 1000 * 19;
    let parcel = 27 * 19;
    site.until(|site| (site.told().dropped >= all - 256 * 19 - parcel).then_some(())).await;
    assert_eq!(site.told().sent, 0);
    assert!(site.end().await <= Duration::from_secs(1));
    assert_eq!(site.told(), TracesReport { sent: 0, dropped: all }, "each is counted, once");
}

#[tokio::test]
async fn a_collector_that_does_not_answer_holds_nothing_up() {
    let mut site = Site::open(&[Answers::Late, Answers::Late], true).await;
    site.board.publish_batch(report(1));
    // Time goes on only while the request is where it should be.
    site.step().await;
    site.look(|site| site.collector.has(1)).await;
    // It runs out of its time, and the same is sent again.
    site.step().await;
    site.step().await;
    site.look(|site| site.collector.has(2)).await;
    site.board.publish_batch(report(2));
    // A stop while that request is under way waits for a second, and no longer.
    let took = site.end().await;
    assert!(took <= Duration::from_secs(1), "{took:?}");
    assert_eq!(site.told(), TracesReport { sent: 0, dropped: 38 });
}

#[tokio::test]
async fn a_stop_sends_what_is_left() {
    let mut site = Site::open(&[Answers::Late], false).await;
    site.board.publish_batch(report(1));
    site.until(|site| site.collector.has(1)).await;
    site.board.publish_batch(report(2));
    // The answer comes while the stop waits: then there is time for the rest, too.
    site.collector.go_on.notify_one();
    let following = site.following.take().unwrap();
    following.end().await;
    assert_eq!(site.collector.batches(), [1, 2]);
    assert_eq!(site.told(), TracesReport { sent: 38, dropped: 0 });
}

#[tokio::test]
async fn batches_that_were_missed_are_counted() {
    let mut site = Site::open(&[], false).await;
    site.board.publish_batch(report(1));
    site.until(|site| site.collector.has(1)).await;
    // More than the board tells events and remembers, before the export has its turn.
    (2..=1000).for_each(|batch| site.board.publish_batch(report(batch)));
    site.until(|site| (site.told().sent + site.told().dropped >= 601 * 19 + 399).then_some(())).await;
    site.end().await;
    let (told, batches) = (site.told(), site.collector.batches());
    assert_eq!(told.sent + told.dropped, 601 * 19 + 399, "one for each batch that nobody remembers: {told:?}");
    assert_eq!(told.sent, batches.len() as u64 * 19);
    assert!(batches.windows(2).all(|pair| pair[0] < pair[1]) && batches.last() == Some(&1000), "{batches:?}");
}

#[tokio::test]
async fn headers_go_along_and_are_never_shown() {
    let of = |url: &str| Traces::to(url).unwrap();
    let text = "# from the vault\nauthorization: Bearer hunter2\n\nx-scope:  a%20b \n";
    assert!(!format!("{:?}", of("https://a.example").headers(text).unwrap()).contains("hunter2"));
    let list = of("https://a.example").header_list("a=hunter%202, b=x=y").unwrap();
    assert!(!format!("{list:?}").contains("hunter"));
    for (wrong, says) in
        [("hunter2", "line 1"), ("a b: hunter2", "no name"), ("\na: hunter2\u{7f}", "line 2"), (": hunter2", "no name")]
    {
        let error = of("https://a.example").headers(wrong).unwrap_err().chain();
        assert!(error.contains(says) && !error.contains("hunter2"), "{error}");
    }
    // Credentials go to another machine by HTTPS only; traces alone may go by HTTP.
    let error = of("http://collector.example:4318").headers(text).unwrap_err().chain();
    assert!(error.contains("https://") && error.contains("collector.example:4318"), "{error}");
    assert!(of("http://collector.example:4318").headers("# none\n").is_ok());
    assert!(of("http://127.0.0.1:4318").header_list("a=b").is_ok());
    let (collector, url) = serve(&[]).await;
    let mut site = Site::at(&url, collector, false, text);
    site.board.publish_batch(report(1));
    site.until(|site| site.collector.has(1)).await;
    let (headers, _) = site.collector.posted().remove(0);
    assert_eq!((headers["authorization"].as_str(), headers["x-scope"].as_str()), ("Bearer hunter2", "a%20b"));
    site.end().await;
}

#[test]
fn addresses_are_read() {
    let place = |traces: Result<Traces>| format!("{:?}", traces.unwrap().request);
    for (given, wanted) in [
        ("http://127.0.0.1:4318", "POST http://127.0.0.1:4318/v1/traces"),
        ("http://127.0.0.1:4318/", "POST http://127.0.0.1:4318/v1/traces"),
        ("https://a.example/otlp", "POST https://a.example/otlp/v1/traces"),
        ("https://a.example/v1/traces", "POST https://a.example/v1/traces"),
        ("http://collector:4318", "POST http://collector:4318/v1/traces"),
    ] {
        assert_eq!(place(Traces::to(given)), wanted);
    }
    assert_eq!(place(Traces::at("https://a.example/x")), "POST https://a.example/x");
    for bad in
        ["a.example:4318", "grpc://a.example", "http://", "https://u:hunter2@a.example", "https://a.example/?k=hunter2"]
    {
        let error = Traces::to(bad).unwrap_err().chain();
        assert!(
            error.contains("collector of traces")
                && error.contains("http://127.0.0.1:4318")
                && !error.contains("hunter2"),
            "{error}"
        );
    }
}
