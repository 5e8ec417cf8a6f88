//! Traces of whole programs, as a collector gets them: `tidemill run --traces`.
//!
//! The collector is a thread of the test that takes what is posted; what it got is compared with what the program
//! was given and says that it did.

use crate::run::{run, start, start_by};
use rustix::process::Signal;
use serde_json::Value;
use std::{
    collections::{BTreeMap, HashMap},
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    os::unix::fs::PermissionsExt,
    path::Path,
    sync::{
        Arc, Mutex,
        mpsc::{Receiver, Sender, channel},
    },
};

const PROGRAM: &str = "\
CREATE STREAM words (word TEXT, n BIGINT) WITH (connector = 'files', path = 'in', format = 'json');
CREATE VIEW top AS SELECT word, sum(n) AS n FROM words GROUP BY word ORDER BY n DESC LIMIT 3;
CREATE SINK out WITH (connector = 'files', path = 'out', format = 'json');
INSERT INTO out SELECT word FROM words WHERE n > 1;
";

/// What was posted: its headers, and its body.
type Posted = (Vec<String>, Value);

struct Collector {
    address: SocketAddr,
    posted: Arc<Mutex<Vec<Posted>>>,
    /// Told at each post, before it is answered.
    news: Receiver<()>,
    /// Lets a post be answered, where it waits for that.
    answer: Sender<()>,
}

impl Collector {
    /// Answers at once, or when it is told to.
    fn open(at_once: bool) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let posted = Arc::new(Mutex::new(Vec::new()));
        let ((tell, news), (answer, answers)) = (channel(), channel::<()>());
        let kept = Arc::clone(&posted);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let request = read(&stream);
                kept.lock().unwrap().push(request);
                let _test_ended = tell.send(());
                if !at_once && answers.recv().is_err() {
                    return;
                }
                let _hung_up = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}");
            }
        });
        Self { address, posted, news, answer }
    }

    fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// All spans so far.
    fn spans(&self) -> Vec<Value> {
        let posted = self.posted.lock().unwrap();
        let spans = |json: &Value| json["resourceSpans"][0]["scopeSpans"][0]["spans"].as_array().unwrap().clone();
        posted.iter().flat_map(|(_, json)| spans(json)).collect()
    }

    fn count(&self) -> usize {
        self.posted.lock().unwrap().len()
    }
}

fn read(stream: &TcpStream) -> Posted {
    let mut reader = BufReader::new(stream);
    let mut head = Vec::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).unwrap();
        if line.trim().is_empty() {
            break;
        }
        head.push(line.trim().to_string());
    }
    let length = head.iter().find_map(|line| line.to_lowercase().strip_prefix("content-length: ")?.parse().ok());
    let mut body = vec![0; length.unwrap_or(0)];
    reader.read_exact(&mut body).unwrap();
    (head, serde_json::from_slice(&body).unwrap())
}

fn folder(program: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("in")).unwrap();
    let lines = "{\"word\":\"ebb\",\"n\":1}\n{\"word\":\"flow\",\"n\":2}\nno JSON\n{\"word\":\"flow\",\"n\":3}\n";
    fs::write(dir.path().join("in/a.json"), lines).unwrap();
    fs::write(dir.path().join("in/b.json"), "{\"word\":\"tide\",\"n\":7}\n").unwrap();
    fs::write(dir.path().join("p.sql"), program).unwrap();
    dir
}

fn attributes(span: &Value) -> BTreeMap<String, String> {
    let value = |value: &Value| {
        let (_, value) = value.as_object().unwrap().iter().next().unwrap();
        value.as_str().map_or_else(|| value.to_string(), str::to_string)
    };
    let all = span["attributes"].as_array().unwrap().iter();
    all.map(|one| (one["key"].as_str().unwrap().to_string(), value(&one["value"]))).collect()
}

/// Spans by their trace, each with its names from the root on. A child lies within its parent.
fn traces(spans: &[Value]) -> BTreeMap<u64, Vec<(String, Value)>> {
    let by_id: HashMap<&str, &Value> = spans.iter().map(|span| (span["spanId"].as_str().unwrap(), span)).collect();
    assert_eq!(by_id.len(), spans.len());
    let at = |span: &Value, key: &str| -> u64 { span[key].as_str().unwrap().parse().unwrap() };
    let mut traces: BTreeMap<u64, Vec<(String, Value)>> = BTreeMap::new();
    for span in spans {
        let (mut path, mut below) = (span["name"].as_str().unwrap().to_string(), span);
        while let Some(parent) = below["parentSpanId"].as_str() {
            let parent = by_id[parent];
            assert_eq!(parent["traceId"], below["traceId"]);
            assert!(at(parent, "startTimeUnixNano") <= at(below, "startTimeUnixNano"));
            assert!(at(parent, "endTimeUnixNano") >= at(below, "endTimeUnixNano"));
            assert!(at(below, "startTimeUnixNano") <= at(below, "endTimeUnixNano"));
            path = format!("{}/{path}", parent["name"].as_str().unwrap());
            below = parent;
        }
        let batch = attributes(below)["tidemill.batch"].parse().unwrap();
        traces.entry(batch).or_default().push((path, span.clone()));
    }
    traces
}

fn drain(dir: &Path, more: &[&str]) -> crate::run::Ended {
    let words = ["run", "p.sql", "--data", "d", "--trigger", "drain", "--headless", "--no-web"];
    run(dir, &[&words[..], more].concat(), "")
}

#[test]
fn a_program_is_traced_from_its_first_batch_to_its_last() {
    let (collector, dir) = (Collector::open(true), folder(PROGRAM));
    let headers = dir.path().join("headers");
    fs::write(&headers, "authorization: Bearer canary\n").unwrap();
    fs::set_permissions(&headers, fs::Permissions::from_mode(0o600)).unwrap();
    let url = collector.url();
    let ended = drain(dir.path(), &["--traces", &url, "--traces-headers", "headers"]);
    ended.code(0).prints(&["1 refused"]);
    assert!(!format!("{ended:?}").contains("canary") && ended.err.is_empty(), "{ended:?}");
    {
        let posted = collector.posted.lock().unwrap();
        let (head, json) = &posted[0];
        assert_eq!(head[0], "POST /v1/traces HTTP/1.1");
        assert!(head.contains(&"authorization: Bearer canary".to_string()), "{head:?}");
        let resource = attributes(&json["resourceSpans"][0]["resource"]);
        assert_eq!((resource["service.name"].as_str(), resource.len()), ("p", 2));
    }
    let traces = traces(&collector.spans());
    let of = |batch: u64, path: &str| -> Vec<Value> {
        traces[&batch].iter().filter(|(known, _)| known == path).map(|(_, span)| span.clone()).collect()
    };
    let (mut records, mut letters, mut staged) = (0, 0, 0);
    for (batch, spans) in &traces {
        let root = attributes(&of(*batch, "batch")[0]);
        let number = |key: &str| root[&format!("tidemill.{key}")].parse::<u64>().unwrap();
        assert_eq!(root["tidemill.outcome"], "committed");
        (records, letters) = (records + number("records"), letters + number("dead_letters"));
        for path in [
            "plan",
            "run",
            "gather",
            "commit",
            "commit/inputs",
            "commit/checkpoint",
            "commit/ledger",
            "show insert-out",
        ] {
            assert_eq!(of(*batch, &format!("batch/{path}")).len(), 1, "{path} of {spans:#?}");
        }
        for path in ["batch/run/stage insert-out", "batch/run/output top", "batch/run/operator top"] {
            assert_eq!(of(*batch, path).len(), 1, "{path} of {spans:#?}");
        }
        staged += attributes(&of(*batch, "batch/run/stage insert-out")[0])["tidemill.rows"].parse::<u64>().unwrap();
    }
    assert_eq!((records, letters, staged), (5, 1, 3));
    let first = *traces.keys().next().unwrap();
    let ranges: Vec<_> = traces.keys().flat_map(|batch| of(*batch, "batch/run/read words/range")).collect();
    let ranges: Vec<_> = ranges.iter().map(attributes).collect();
    let read: u64 = ranges.iter().map(|range| range["tidemill.records"].parse::<u64>().unwrap()).sum();
    assert_eq!((ranges.len(), read), (2, 5), "{ranges:#?}");
    let bytes: u64 = ranges.iter().map(|range| range["tidemill.end"].parse::<u64>().unwrap()).sum();
    let files = ["in/a.json", "in/b.json"].map(|file| fs::metadata(dir.path().join(file)).unwrap().len());
    assert_eq!(bytes, files.iter().sum::<u64>());
    assert_eq!(of(first, "batch/ranges").len(), 1);
    assert_eq!(of(first, "batch/commit/letters").len(), 1);
}

#[test]
fn a_batch_that_ends_its_program_is_an_error() {
    let collector = Collector::open(true);
    let dir = folder(&PROGRAM.replace("SELECT word FROM words WHERE n > 1", "SELECT 7 / (n - 7) AS x FROM words"));
    let ended = drain(dir.path(), &["--traces", &collector.url()]);
    ended.code(1).says(&["a query failed on a record of this batch"]);
    let traces = traces(&collector.spans());
    let (_, spans) = traces.iter().next_back().unwrap();
    let paths: Vec<&str> = spans.iter().map(|(path, _)| path.as_str()).collect();
    assert_eq!(paths, ["batch", "batch/ranges", "batch/plan", "batch/run"]);
    assert_eq!(attributes(&spans[0].1)["tidemill.outcome"], "failed");
    for failed in [0, 3] {
        let status = &spans[failed].1["status"];
        assert_eq!(status["code"], 2);
        assert!(status["message"].as_str().unwrap().contains("a query failed on a record"), "{status}");
    }
}

#[test]
fn nothing_is_exported_unless_it_is_asked_for() {
    let (collector, dir) = (Collector::open(true), folder(PROGRAM));
    let endpoint = format!("OTEL_EXPORTER_OTLP_ENDPOINT={}", collector.url());
    let by = ["env", endpoint.as_str()];
    let words = ["run", "p.sql", "--data", "d", "--trigger", "drain", "--headless", "--no-web"];
    start_by(dir.path(), &by, &words, "").end().code(0);
    assert_eq!(collector.count(), 0);
    // The environment's collector, where that is asked for.
    fs::write(dir.path().join("in/c.json"), "{\"word\":\"neap\",\"n\":1}\n").unwrap();
    start_by(dir.path(), &by, &[&words[..], &["--traces", "env"]].concat(), "").end().code(0);
    assert_eq!(collector.count(), 1);
    // What can't be followed is told before anything starts.
    for (more, says) in [
        (&["--traces", "127.0.0.1:4318"][..], "address of the collector"),
        (&["--traces", "env"], "OTEL_EXPORTER_OTLP_ENDPOINT"),
        (&["--traces-headers", "h"], "--traces"),
        (&["--traces", "http://127.0.0.1:1", "--traces-headers", "none"], "none"),
    ] {
        drain(dir.path(), more).code(2).says(&[says]);
    }
    assert_eq!(collector.count(), 1);
}

#[test]
fn a_program_never_waits_for_its_collector() {
    let (collector, dir) = (Collector::open(false), folder(PROGRAM));
    let url = collector.url();
    let words =
        ["run", "p.sql", "--data", "d", "--interval", "10ms", "--headless", "--web", "127.0.0.1:0", "--traces", &url];
    let mut running = start(dir.path(), &words, "");
    let page = running.wait_for("page: http://").replace("page: http://", "");
    collector.news.recv().unwrap();
    // The collector holds its answer back: batches go on.
    let batches = |page: &str| metric(page, "tidemill_batches_total");
    let then = batches(&page);
    while batches(&page) < then + 20 {}
    assert_eq!((metric(&page, "tidemill_spans_exported_total"), collector.count()), (0, 1));
    running.signal(Signal::INT);
    let ended = running.end();
    ended.code(0).says(&["the program ended before the collector had taken them"]);
    drop(collector.answer);
    // A collector that nobody is: the same, and spans are counted.
    let words: Vec<&str> = words.iter().map(|word| if *word == url { "http://127.0.0.1:1" } else { word }).collect();
    let mut running = start(dir.path(), &words, "");
    let page = running.wait_for("page: http://").replace("page: http://", "");
    while metric(&page, "tidemill_spans_dropped_total") == 0 {}
    running.signal(Signal::INT);
    running.end().code(0).says(&["127.0.0.1:1"]);
}

/// A value of `/metrics`.
fn metric(page: &str, name: &str) -> u64 {
    let address = page.trim_end_matches('/');
    let mut stream = TcpStream::connect(address).unwrap();
    write!(stream, "GET /metrics HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let line = answer.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.map_or(0, |value| value.trim().parse().unwrap())
}
