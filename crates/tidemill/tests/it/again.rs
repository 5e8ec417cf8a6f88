//! A batch of a running program, run again by its page: the same rows, a difference where the program has
//! changed, and nothing written.

use crate::run::{Running, start};
use rustix::process::Signal;
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    fs,
    io::{Read, Write},
    net::TcpStream,
    path::{Path, PathBuf},
};

const PROGRAM: &str =
    "CREATE STREAM words (word TEXT NOT NULL, n BIGINT) WITH (connector = 'files', path = 'in', format = 'json');
CREATE VIEW top AS SELECT word, sum(n) AS n FROM words GROUP BY word;
CREATE SINK loud WITH (connector = 'topic', topic = 'loud');
INSERT INTO loud SELECT upper(word) AS word, n FROM words WHERE n > 0;
CREATE SINK out WITH (connector = 'files', path = 'out', format = 'json');
INSERT INTO out SELECT word, n FROM words;
";

fn ask(page: &str, method: &str, path: &str, body: &str) -> (u16, Value) {
    let mut stream = TcpStream::connect(page).unwrap();
    let length = body.len();
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nHost: {page}\r\nConnection: close\r\nContent-Type: application/json\r\n\
         Content-Length: {length}\r\n\r\n{body}"
    )
    .unwrap();
    let mut reply = String::new();
    stream.read_to_string(&mut reply).unwrap();
    let (head, body) = reply.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, serde_json::from_str(body).unwrap_or_else(|e| panic!("{e}: {reply}")))
}

fn get(page: &str, path: &str) -> Value {
    let (status, told) = ask(page, "GET", path, "");
    assert_eq!(status, 200, "{path}: {told}");
    told
}

fn again(page: &str, batch: u64) -> (u16, Value) {
    ask(page, "POST", &format!("/api/v1/batches/{batch}/run"), "{}")
}

/// Puts a file into `in` at once, so that one batch reads all of it.
fn records(dir: &Path, name: &str, rows: &[(&str, i64)]) {
    fs::create_dir_all(dir.join("in")).unwrap();
    let lines: String = rows.iter().map(|(word, n)| format!("{{\"word\":\"{word}\",\"n\":{n}}}\n")).collect();
    fs::write(dir.join("aside"), lines).unwrap();
    fs::rename(dir.join("aside"), dir.join("in").join(name)).unwrap();
}

/// The program, its page, and the batch that has read `word`.
fn begin(dir: &Path, word: &str) -> (Running, String, u64) {
    let arguments = ["run", "top.sql", "--data", "d", "--headless", "--interval", "200ms", "--web", "127.0.0.1:0"];
    let mut program = start(dir, &[&arguments[..], &["--accept-changes"]].concat(), "");
    let page = program.wait_for("page: http://").replace("page: http://", "");
    program.wait_for(word);
    // Batches that read nothing come after it.
    let batches = get(&page, "/api/v1/batches");
    let read = batches.as_array().unwrap().iter().find(|batch| batch["records_in"] != 0).unwrap();
    (program, page, read["batch"].as_u64().unwrap())
}

/// What lies in the data directory and among the files of the sink, but for the log's own. The running program
/// itself goes on in its ledger.
fn listing(dir: &Path) -> BTreeMap<PathBuf, u64> {
    let (mut all, mut dirs) = (BTreeMap::new(), vec![dir.join("d"), dir.join("out")]);
    while let Some(at) = dirs.pop() {
        for entry in fs::read_dir(at).unwrap().map(Result::unwrap) {
            if entry.path() == dir.join("d/log") {
                continue;
            }
            if entry.path().is_dir() {
                dirs.push(entry.path());
            } else {
                let grows = entry.path().extension().is_some_and(|extension| extension == "ledger");
                all.insert(entry.path(), if grows { 0 } else { entry.metadata().unwrap().len() });
            }
        }
    }
    all
}

fn output<'a>(told: &'a Value, name: &str) -> &'a Value {
    told["outputs"].as_array().unwrap().iter().find(|output| output["name"] == name).unwrap_or_else(|| panic!("{told}"))
}

fn sorted(rows: &Value) -> Vec<String> {
    let mut rows: Vec<String> = rows.as_array().unwrap().iter().map(ToString::to_string).collect();
    rows.sort();
    rows
}

#[test]
fn a_batch_of_a_running_program_gives_what_it_gave_and_a_changed_program_does_not() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    fs::write(dir.join("top.sql"), PROGRAM).unwrap();
    records(dir, "1.json", &[("ebb", 1), ("flow", 2), ("ebb", -4)]);
    let (program, page, batch) = begin(dir, "ebb");
    let written = listing(dir);
    let (status, told) = again(&page, batch);
    assert_eq!(status, 200, "{told}");
    assert_eq!(listing(dir), written, "nothing is written");
    assert_eq!((&told["program"], &told["records_then"]), (&json!("same"), &json!(3)));
    assert_eq!((&told["inputs"][0]["name"], &told["inputs"][0]["total"]), (&json!("words"), &json!(3)));
    let top = output(&told, "top");
    assert_eq!((&top["kept"], &top["same"]), (&json!("view"), &json!(true)), "{top}");
    let live = get(&page, &format!("/api/v1/views/top?batch={batch}"));
    assert_eq!(sorted(&top["now"]["rows"]), sorted(&live["rows"]));
    let loud = output(&told, "insert-loud");
    assert_eq!((&loud["kept"], &loud["same"], &loud["common"]), (&json!("topic"), &json!(true), &json!(2)), "{loud}");
    let out = output(&told, "insert-out");
    assert_eq!((&out["kept"], &out["counted"], &out["same"]), (&json!("count"), &json!(3), &Value::Null), "{out}");
    let state = &told["states"][0];
    assert_eq!((&state["compared"], &state["removed"]["total"]), (&json!(true), &json!(0)), "{state}");
    let plan = told["plans"].as_array().unwrap().iter().find(|plan| plan["output"] == "top").unwrap();
    assert!(plan["nodes"].as_array().unwrap().iter().any(|node| node["rows"] == 3), "{plan}");
    let first = get(&page, "/api/v1/states/top");
    assert_eq!(first["total"], 2, "{first}");
    let (status, told) = again(&page, 9_999_999);
    assert_eq!(status, 409);
    assert!(told["error"].as_str().unwrap().contains("is not kept: batch"), "{told}");
    program.signal(Signal::INT);
    program.end().code(0);

    // The same batch by a program that counts otherwise.
    fs::write(dir.join("top.sql"), PROGRAM.replace("FROM words GROUP", "FROM words WHERE n > 0 GROUP")).unwrap();
    records(dir, "2.json", &[("neap", 5)]);
    let (program, page, _) = begin(dir, "neap");
    let (status, told) = again(&page, batch);
    assert_eq!(status, 200, "{told}");
    assert_eq!((&told["program"], &told["records_then"]), (&json!("other"), &Value::Null));
    let top = output(&told, "top");
    assert_eq!((&top["kept"], &top["same"]), (&json!("program"), &json!(false)), "{top}");
    assert_eq!(
        (&top["removed"]["rows"], &top["added"]["rows"]),
        (&json!([["ebb", -3]]), &json!([["ebb", 1]])),
        "{top}"
    );
    assert_eq!(output(&told, "insert-loud")["same"], true, "{told}");
    assert_eq!(output(&told, "insert-out")["same"], true, "by the program of then");
    program.signal(Signal::INT);
    program.end().code(0);
}
