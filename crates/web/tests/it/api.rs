//! The API's own description against what the server answers, and the feed as a WebSocket.

use crate::{
    Site,
    http::{self, Live},
    inspect::Fake,
    report,
};
use serde_json::{Value, json};
use std::sync::Arc;
use tidemill_core::{
    AlertAsk, AlertChange, AlertNow, AlertReport, AlertState, BatchDetail, BatchId, BatchReport, DeadLetter, Duration,
    Graph, GraphColumn, GraphNode, LetterReport, NodeKind, Offset, OffsetRange, OperatorReport, PartitionId,
    PartitionReport, Phase, Silence, Timestamp,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

/// What of `value` does not fit `schema`, with its place.
pub(crate) fn misfits(schema: &Value, value: &Value, document: &Value, at: &str, found: &mut Vec<String>) {
    if let Some(reference) = schema["$ref"].as_str() {
        let name = reference.rsplit('/').next().unwrap();
        return misfits(&document["components"]["schemas"][name], value, document, at, found);
    }
    let kinds: Vec<&str> = match &schema["type"] {
        Value::String(kind) => vec![kind],
        Value::Array(kinds) => kinds.iter().map(|kind| kind.as_str().unwrap()).collect(),
        other => panic!("{at}: a schema without a type: {other}"),
    };
    let is = |kind: &&str| match *kind {
        "string" => value.is_string(),
        "integer" => value.is_i64() || value.is_u64(),
        "number" => value.is_number(),
        "boolean" => value.is_boolean(),
        "null" => value.is_null(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        other => panic!("{at}: no such type: {other}"),
    };
    if !kinds.iter().any(is) {
        found.push(format!("{at}: {value} is none of {kinds:?}"));
    }
    if let Some(allowed) = schema["enum"].as_array().filter(|allowed| !allowed.contains(value)) {
        found.push(format!("{at}: {value} is none of {allowed:?}"));
    }
    for (i, item) in value.as_array().into_iter().flatten().enumerate() {
        misfits(&schema["items"], item, document, &format!("{at}[{i}]"), found);
    }
    let Some(object) = value.as_object() else { return };
    for key in schema["required"].as_array().into_iter().flatten() {
        if !object.contains_key(key.as_str().unwrap()) {
            found.push(format!("{at}: {key} is missing"));
        }
    }
    for (key, value) in object {
        let at = format!("{at}.{key}");
        match (&schema["properties"][key], &schema["additionalProperties"]) {
            (Value::Null, Value::Object(_)) => misfits(&schema["additionalProperties"], value, document, &at, found),
            (Value::Null, Value::Bool(false)) => found.push(format!("{at}: is not described")),
            (Value::Null, _) => {}
            (known, _) => misfits(known, value, document, &at, found),
        }
    }
}

/// A site whose every answer has something in each list.
pub(crate) async fn full() -> Site {
    let (site, _) = crate::notebook::asking(|server| server.inspect(Arc::new(Fake::default()))).await;
    let book = json!({ "text": "x", "revision": null });
    assert_eq!(crate::notebook::post(site.address, "/api/v1/notebooks/words", &book).await.status, 200);
    let question = json!({ "sql": "echo", "id": "words" });
    assert_eq!(crate::notebook::post(site.address, "/api/v1/query", &question).await.status, 200);
    filled(site)
}

/// The site with something in each list.
pub(crate) fn filled(site: Site) -> Site {
    site.show("words", 7, &[("sea", 3), ("tide", 2)]);
    site.board.update_program(|p| {
        p.name = "trending".to_string();
        p.started = Timestamp(5);
        p.phase = Phase::Running;
    });
    site.board.update_input("posts", 0, |input| {
        input.describe = "tcp 127.0.0.1:9".to_string();
        input.state = "connected".to_string();
        (input.records, input.bytes, input.errors, input.reconnects) = (500, 64_000, 2, 1);
        input.last = Some(Timestamp(6_000_000));
        input.last_error = Some("connection refused".to_string());
        input.lag = Some(17);
        let partition = PartitionId::new("0");
        input.partitions = vec![PartitionReport { partition, position: Offset(483), lag: Some(17) }];
    });
    (1..7).for_each(|batch| site.board.publish_batch(report(batch)));
    site.board.publish_batch(BatchReport { detail: Arc::new(detail()), rate_limit: Some(10.5), ..report(7) });
    site.board.publish_graph(graph());
    site.board.publish_alert(alert());
    site
}

fn work(name: &str, rows: u64, busy_us: u64, steps: Vec<OperatorReport>) -> OperatorReport {
    OperatorReport { name: name.to_string(), rows, busy_us, steps, ..OperatorReport::default() }
}

/// Of a batch over `posts` with two operators and a dead letter.
pub(crate) fn detail() -> BatchDetail {
    let letter = DeadLetter {
        stream: "posts".to_string(),
        partition: PartitionId::new("0"),
        offset: Offset(41),
        batch: Some(BatchId(7)),
        reason: "field \"n\": expected an integer, found \"many\"".to_string(),
        raw: b"{\"n\":\"many\"}".to_vec(),
    };
    let mut detail = BatchDetail {
        records: [("posts".to_string(), 10)].into(),
        watermarks: [("posts".to_string(), Timestamp(4_500_000))].into(),
        operators: vec![
            work("posts", 10, 900, vec![work("read and decoded", 10, 900, vec![])]),
            work("words", 2, 2100, vec![work("panes", 10, 600, vec![]), work("state", 2, 1500, vec![])]),
        ],
        outputs: vec![work("words", 2, 30, vec![])],
        letters: LetterReport::first(&[letter]),
        ..BatchDetail::default()
    };
    let range = OffsetRange { partition: PartitionId::new("0"), start: Offset(33), end: Offset(43) };
    detail.take_ranges("posts", &[range]);
    detail
}

/// An alert with a key that fires, one that was silenced, and a change.
pub(crate) fn alert() -> AlertReport {
    let (key, message, since) = ("web-1".to_string(), "web-1 is 0.95 busy".to_string(), Timestamp(3_000_000));
    let (state, value, silenced) = (AlertState::Firing, Some(0.95), false);
    let now = AlertNow { key: key.clone(), state, since, value, message: message.clone(), silenced };
    let (was, at) = (AlertState::Pending, Timestamp(6_000_000));
    AlertReport {
        name: "hot".to_string(),
        view: "load".to_string(),
        severity: "page".to_string(),
        condition: "busy > 0.9".to_string(),
        batch: BatchId(7),
        time: Timestamp(7_000_000),
        firing: 1,
        now: vec![now],
        silences: vec![Silence {
            key: Some("web-2".to_string()),
            until: Timestamp(9_000_000),
            why: "work".to_string(),
        }],
        changes: vec![AlertChange { key, state, was, since, at, value, message, silenced }],
        ..AlertReport::default()
    }
}

/// An input, two operators, an output.
pub(crate) fn graph() -> Graph {
    let node = |kind, name: &str, what: &str, inputs: &[&str]| GraphNode {
        id: format!("{} {name}", serde_json::to_value(kind).unwrap().as_str().unwrap()),
        name: name.to_string(),
        kind,
        what: what.to_string(),
        inputs: inputs.iter().map(ToString::to_string).collect(),
        stateful: what == "aggregate",
        definition: (what == "aggregate").then(|| "SELECT word, count(*) FROM posts GROUP BY word".to_string()),
        columns: vec![GraphColumn { name: "word".to_string(), kind: "Utf8".to_string() }],
        plan: (kind == NodeKind::Output).then(|| "shared\n  words: state".to_string()),
    };
    let nodes = vec![
        node(NodeKind::Input, "posts", "topic posts", &[]),
        node(NodeKind::Operator, "words", "aggregate", &["input posts"]),
        node(NodeKind::Operator, "long", "select", &["operator words"]),
        node(NodeKind::Output, "words", "view", &["operator words"]),
        node(NodeKind::Output, "file", "exactly once into files out", &["operator long"]),
    ];
    Graph { nodes }
}

#[tokio::test]
async fn every_route_answers_as_its_description_says() {
    let site = full().await;
    let document = http::get(site.address, "/api/v1/openapi.json").await.json();
    assert_eq!(document["openapi"], "3.1.0");
    let paths = document["paths"].as_object().unwrap();
    assert!(paths.len() > 12);
    let mut asked = 0;
    for (path, of) in paths.iter().filter(|(_, of)| of["get"].is_object()) {
        let get = &of["get"];
        assert!(get["summary"].as_str().is_some_and(|summary| summary.len() > 10), "{path}");
        for parameter in get["parameters"].as_array().unwrap() {
            let in_path = path.contains(&format!("{{{}}}", parameter["name"].as_str().unwrap()));
            assert_eq!(parameter["in"] == "path", in_path, "{path}");
        }
        let Some(content) = get["responses"]["200"]["content"].as_object() else { continue };
        let (media, schema) = content.iter().next().unwrap();
        let target = path.replace("{name}", "words").replace("{id}", "words").replace("{batch}", "7");
        if media == "text/event-stream" {
            continue;
        }
        let reply = http::get(site.address, &target).await;
        assert_eq!(reply.status, 200, "{target}");
        assert!(reply.header("content-type").unwrap().starts_with(media.as_str()), "{target}");
        if media == "application/json" {
            let mut found = Vec::new();
            misfits(&schema["schema"], &reply.json(), &document, path, &mut found);
            assert!(found.is_empty(), "{found:#?}");
            asked += 1;
        }
        // What is not there is told as described, too.
        if path.contains('{') {
            let target = path.replace("{name}", "nothing").replace("{id}", "nothing").replace("{batch}", "99");
            let reply = http::get(site.address, &target).await;
            assert_eq!(reply.status, 404, "{target}");
            assert!(get["responses"]["404"].is_object() && reply.json()["error"].is_string(), "{target}");
        }
    }
    assert!(asked >= 12, "{asked}");
    // The comparison can fail.
    let (mut found, strange) = (Vec::new(), json!({ "live": 1, "more": 2 }));
    misfits(&json!({ "$ref": "#/components/schemas/Live" }), &strange, &document, "x", &mut found);
    assert_eq!(found.len(), 2, "{found:?}");
    site.close().await;
}

#[tokio::test]
async fn a_batch_a_past_view_and_the_graph_are_told() {
    let site = full().await;
    let batch = http::get(site.address, "/api/v1/batches/7").await.json();
    assert_eq!(batch["detail"]["ranges"]["posts"], json!([{ "partition": "0", "start": 33, "end": 43 }]));
    assert_eq!(batch["detail"]["operators"][1]["steps"][1]["rows"], 2);
    assert_eq!(batch["detail"]["letters"][0]["kind"], "bad_value");
    for gone in ["0", "8", "-1", "seven", "99999999999999999999999"] {
        assert_eq!(http::get(site.address, &format!("/api/v1/batches/{gone}")).await.status, 404, "{gone}");
    }
    let list = http::get(site.address, "/api/v1/batches").await;
    assert!(list.json()[6].get("detail").is_none(), "the list stays short");
    assert_eq!(http::get(site.address, "/api/v1/graph").await.json()["nodes"][1]["inputs"], json!(["input posts"]));

    // The follower has its turn before the feed tells of the view.
    let mut live = Live::open(site.address).await;
    for step in 8..12 {
        site.show("words", step, &[("sea", i64::try_from(step).unwrap())]);
        live.until("view", |view| view["batch"] == step).await;
    }
    let history = http::get(site.address, "/api/v1/views/words/history").await.json();
    let steps: Vec<_> = history["snapshots"].as_array().unwrap().iter().map(|s| s["batch"].as_u64().unwrap()).collect();
    assert_eq!(steps, [7, 8, 9, 10, 11]);
    let then = http::get(site.address, "/api/v1/views/words?batch=9").await.json();
    assert_eq!((&then["batch"], &then["rows"]), (&json!(9), &json!([["sea", 9]])));
    assert_eq!(http::get(site.address, "/api/v1/views/words?batch=3").await.status, 404);
    assert_eq!(http::get(site.address, "/api/v1/views/words?batch=x").await.status, 400);
    site.close().await;
}

#[tokio::test]
async fn silence_and_a_test_are_asked_of_an_alert() {
    let site = full().await;
    let address = site.address;
    let post = async |path: &str, body: &str| {
        let request = format!(
            "POST /api/v1/alerts/{path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\
             Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        http::send(address, &request).await
    };
    assert_eq!(
        post("hot/silence", r#"{"key":"web-1","seconds":60,"why":"work"}"#).await.json(),
        json!({ "asked": "hot" })
    );
    assert_eq!(post("hot/silence", r#"{"seconds":0}"#).await.status, 200);
    assert_eq!(post("hot/test", "{}").await.status, 200);
    let asks = site.board.take_alert_asks("hot");
    let [AlertAsk::Silence(silence), AlertAsk::Silence(lifted), AlertAsk::Test] = asks.as_slice() else {
        panic!("{asks:?}")
    };
    assert_eq!((silence.key.as_deref(), silence.why.ends_with("work")), (Some("web-1"), true), "{silence:?}");
    assert!(lifted.key.is_none() && silence.until > lifted.until.plus(Duration::from_secs(59)), "{asks:?}");
    for (path, body, status) in [
        ("cold/test", "{}", 404),
        ("cold/silence", r#"{"seconds":1}"#, 404),
        ("hot/silence", "{}", 400),
        ("hot/silence", r#"{"seconds":-1}"#, 400),
        ("hot/silence", r#"{"seconds":1,"for":2}"#, 400),
        ("hot/silence", r#"{"seconds":40000000}"#, 400),
    ] {
        let reply = post(path, body).await;
        assert_eq!(reply.status, status, "{path} {body}");
        assert!(reply.json()["error"].is_string(), "{path} {body}");
    }
    assert!(!site.board.is_alert_asked("hot"));
    // Nobody can fill the memory with what no batch takes.
    for _ in 0..100 {
        assert!(site.board.ask_alert("hot", AlertAsk::Test));
    }
    assert_eq!(post("hot/test", "{}").await.status, 503);
    site.close().await;
}

#[tokio::test]
async fn the_feed_is_a_web_socket_too_and_refuses_foreign_pages() {
    let site = full().await;
    let address = site.address;
    let hello = |origin: &str| {
        format!(
            "GET /api/v1/feed HTTP/1.1\r\nHost: {address}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nOrigin: {origin}\r\n\r\n"
        )
    };
    for origin in ["http://evil.example", "null", "https://localhost"] {
        assert_eq!(http::open(address, &hello(origin)).await.head.status, 403, "{origin}");
    }
    let mut socket = TcpStream::connect(address).await.unwrap();
    socket.write_all(hello(&format!("http://{address}")).as_bytes()).await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(socket.read_u8().await.unwrap());
    }
    let head = String::from_utf8(head).unwrap();
    assert!(head.starts_with("HTTP/1.1 101") && head.contains("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="), "{head}");
    for event in ["phase", "inputs", "batch", "view"] {
        let message = message(&mut socket).await.unwrap();
        assert_eq!(message["event"], event, "{message}");
        assert!(!message["data"].is_null());
    }
    site.show("words", 8, &[("</script>\n\u{2028}", 1)]);
    let told = message(&mut socket).await.unwrap();
    assert_eq!((&told["event"], &told["data"]["rows"][0][0]), (&json!("view"), &json!("</script>\n\u{2028}")));
    // A client that sends too much is let go of, and the others are served.
    let long = [&[0x82, 0xfe, 0xff, 0xff, 0, 0, 0, 0][..], &[0; 65_535]].concat();
    // The server may have closed before all is written.
    let _gone = socket.write_all(&long).await;
    while message(&mut socket).await.is_some() {}
    assert_eq!(http::get(address, "/livez").await.status, 200);
    site.close().await;
}

/// The next text of a socket; `None` when it was closed.
pub(crate) async fn message(socket: &mut TcpStream) -> Option<Value> {
    loop {
        let (head, short) = (socket.read_u8().await.ok()?, socket.read_u8().await.ok()?);
        let length = match short & 0x7f {
            126 => usize::from(socket.read_u16().await.ok()?),
            127 => usize::try_from(socket.read_u64().await.ok()?).unwrap(),
            short => usize::from(short),
        };
        let mut data = vec![0; length];
        socket.read_exact(&mut data).await.ok()?;
        match head {
            0x81 => return Some(serde_json::from_slice(&data).unwrap()),
            0x88 => return None,
            other => assert!(matches!(other, 0x89 | 0x8a), "frame {other:x}"),
        }
    }
}

#[tokio::test]
async fn the_description_is_of_this_server() {
    let statuses = |document: &Value| -> Vec<String> {
        let operations =
            document["paths"].as_object().unwrap().values().flat_map(|of| of.as_object().unwrap().values());
        operations.flat_map(|of| of["responses"].as_object().unwrap().keys().cloned()).collect()
    };
    // Whoever reaches one without tokens may do everything.
    let site = full().await;
    let open = http::get(site.address, "/api/v1/openapi.json").await.json();
    assert!(open.get("security").is_none() && open["components"].get("securitySchemes").is_none());
    assert!(!statuses(&open).contains(&"401".to_string()));
    site.close().await;
    let site = Site::open_for(crate::access::tokens()).await;
    let token = crate::access::token(tidemill_web::Role::Viewer);
    let request = format!(
        "GET /api/v1/openapi.json HTTP/1.1\r\nHost: {}\r\nConnection: close\r\nAuthorization: Bearer {token}\r\n\r\n",
        site.address
    );
    let guarded = http::send(site.address, &request).await.json();
    assert_eq!(guarded["security"], json!([{ "token": [] }]));
    assert_eq!(guarded["components"]["securitySchemes"]["token"]["scheme"], "bearer");
    assert_eq!(guarded["paths"]["/readyz"]["get"]["security"], json!([]), "it is open");
    assert!(statuses(&guarded).contains(&"401".to_string()));
    site.close().await;
}

#[tokio::test]
async fn what_is_wrong_is_told_as_json() {
    let site = full().await;
    for (path, status) in [
        ("/api/v1/views/%FF", 400),
        ("/api/v1/views/words?batch=-1", 400),
        ("/api/v1/batches/%FF", 400),
        ("/api/v1/notebooks/%FF", 400),
        ("/api/v1/query/%FF", 400),
        ("/api/v1/feed", 400),
        ("/nowhere", 404),
    ] {
        let reply = http::get(site.address, path).await;
        assert_eq!((reply.status, reply.header("content-type")), (status, Some("application/json")), "{path}");
        assert!(reply.json()["error"].is_string(), "{path}");
    }
    // Nothing but an object is taken, also where there is nothing to say.
    for path in
        ["query", "query/words/cancel", "alerts/hot/test", "alerts/hot/silence", "batches/7/run", "notebooks/words"]
    {
        for body in [json!([]), json!(["SELECT 1"]), json!(null), json!("x"), json!({ "strange": 1 })] {
            let reply = crate::notebook::post(site.address, &format!("/api/v1/{path}"), &body).await;
            assert_eq!(reply.status, 400, "{path} {body}");
        }
    }
    assert!(site.board.take_alert_asks("hot").is_empty());
    site.close().await;
}
