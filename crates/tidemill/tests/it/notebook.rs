//! A program that runs, asked through its page: history, views, state, dead letters, and nothing outside of them.

use crate::run::{Running, start};
use rustix::process::Signal;
use serde_json::{Value, json};
use std::{
    fs,
    io::{Read, Write},
    net::TcpStream,
    path::Path,
};

const PROGRAM: &str = "\
CREATE STREAM posts (word TEXT, n BIGINT NOT NULL) WITH (connector = 'stdin', format = 'json');
CREATE VIEW top AS SELECT word, sum(n) AS total FROM posts GROUP BY word;
";
const INPUT: &str = "{\"word\":\"sea\",\"n\":1}\n{\"word\":\"tide\",\"n\":2}\n{\"word\":\"<b>\",\"n\":\"many\"}\n{\"word\":\"sea\",\"n\":3}\n";

/// A program and where its page is.
struct Asked {
    program: Running,
    address: String,
}

impl Asked {
    fn start(dir: &Path) -> Self {
        fs::write(dir.join("top.sql"), PROGRAM).unwrap();
        let arguments = ["run", "top.sql", "--headless", "--web", "127.0.0.1:0", "--data", "d", "--interval", "50ms"];
        let mut program = start(dir, &arguments, INPUT);
        let page = program.wait_for("page: http://");
        let address = page.trim_start_matches("page: http://").to_string();
        let asked = Self { program, address };
        // Until all that was sent has been counted, refused and shown: a letter is there before its batch is.
        while asked.rows("SELECT count(*) FROM posts") != json!([[4]])
            || asked.rows("SELECT * FROM dead").as_array().is_none_or(Vec::is_empty)
            || asked.rows("SELECT total FROM top WHERE word = 'sea'") != json!([[4]])
        {}
        asked
    }

    fn get(&self, path: &str) -> (u16, Value) {
        send(&self.address, &format!("GET {path}"), "")
    }

    fn post(&self, path: &str, body: &Value) -> (u16, Value) {
        send(&self.address, &format!("POST {path}"), &body.to_string())
    }

    fn rows(&self, sql: &str) -> Value {
        let (_, answer) = self.post("/api/v1/query", &json!({ "sql": sql }));
        answer["rows"].clone()
    }

    /// Threads of the process that compute an answer.
    fn computing(&self) -> usize {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.program.id())).unwrap();
        let name = |task: std::io::Result<fs::DirEntry>| fs::read_to_string(task.ok()?.path().join("comm")).ok();
        tasks.filter_map(name).filter(|name| matches!(name.trim(), "tidemill-query" | "tidemill-sql")).count()
    }

    fn end(self) {
        self.program.signal(Signal::INT);
        self.program.end().code(0);
    }
}

fn send(host: &str, head: &str, body: &str) -> (u16, Value) {
    let mut stream = TcpStream::connect(host).unwrap();
    let request = format!(
        "{head} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(request.as_bytes()).unwrap();
    let mut reply = String::new();
    stream.read_to_string(&mut reply).unwrap();
    let (head, body) = reply.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, serde_json::from_str(body).unwrap_or_else(|e| panic!("{e}: {reply}")))
}

#[test]
fn history_views_states_and_dead_letters_are_asked_beside_the_program() {
    let dir = tempfile::tempdir().unwrap();
    let asked = Asked::start(dir.path());
    assert_eq!(asked.rows("SELECT word, total FROM top ORDER BY word"), json!([["sea", 4], ["tide", 2]]));
    assert_eq!(
        asked.rows("SELECT value, _offset FROM posts WHERE _offset = 2"),
        json!([["{\"word\":\"<b>\",\"n\":\"many\"}", 2]])
    );
    assert_eq!(asked.rows("SELECT raw, stream FROM dead"), json!([["{\"word\":\"<b>\",\"n\":\"many\"}", "posts"]]));
    assert_eq!(asked.rows("SELECT count(*) FROM state.top"), json!([[2]]));
    let question = json!({ "sql": "SELECT total FROM top WHERE word = {{word}}", "params": { "word": "sea" } });
    assert_eq!(asked.post("/api/v1/query", &question).1["rows"], json!([[4]]));
    // The batch of now, as a fixed one, gives the same while others come.
    let (_, batches) = asked.get("/api/v1/batches");
    let last = batches.as_array().unwrap().last().unwrap()["batch"].clone();
    for sql in [
        "SELECT word, total FROM top ORDER BY word",
        "SELECT count(*) FROM posts",
        "SELECT count(*) FROM dead",
        "SELECT count(*) FROM state.top",
    ] {
        let (status, then) = asked.post("/api/v1/query", &json!({ "sql": sql, "at_batch": last }));
        assert_eq!((status, &then["rows"], &then["batch"]), (200, &asked.rows(sql), &last), "{sql}: {then}");
    }
    let (status, error) = asked.post("/api/v1/query", &json!({ "sql": "SELECT word,\n  totl FROM top" }));
    let expected = json!([2, 3, "there is no column `totl`; did you mean `total`?"]);
    assert_eq!((status, json!([error["line"], error["column"], error["error"]])), (400, expected));
    let (_, names) = asked.get("/api/v1/names");
    let tables: Vec<_> =
        names["tables"].as_array().unwrap().iter().map(|table| table["name"].as_str().unwrap()).collect();
    assert_eq!(tables, ["\"top\"", "\"top.dead\"", "dead", "posts", "state.\"top\""]);
    asked.end();
}

#[test]
fn nothing_outside_of_the_program_is_opened() {
    let dir = tempfile::tempdir().unwrap();
    let asked = Asked::start(dir.path());
    fs::write(dir.path().join("secret.csv"), "a\n1\n").unwrap();
    for sql in [
        "COPY top TO 'out.csv'",
        "CREATE EXTERNAL TABLE t STORED AS csv LOCATION 'secret.csv'",
        "SET datafusion.execution.batch_size = 1",
        "INSERT INTO top VALUES ('x', 1)",
        "SELECT * FROM '/etc/passwd'",
        "SELECT * FROM 'secret.csv'",
        "SELECT * FROM \"secret.csv\"",
        "SELECT * FROM read_csv('secret.csv')",
        "SELECT * FROM 'http://127.0.0.1:9/x.parquet'",
        "SELECT 1; SELECT 2",
    ] {
        let (status, error) = asked.post("/api/v1/query", &json!({ "sql": sql }));
        assert_eq!(status, 400, "{sql}: {error}");
    }
    let question = json!({ "sql": "SELECT * FROM {{file}}", "params": { "file": "secret.csv" } });
    assert_eq!(asked.post("/api/v1/query", &question).0, 400);
    assert!(!dir.path().join("out.csv").exists());
    // More than its share of memory is refused, and the program goes on.
    let many = "(SELECT unnest(range(1, 2000000)) AS n)";
    let (status, error) =
        asked.post("/api/v1/query", &json!({ "sql": format!("SELECT array_agg(a.n) FROM {many} a, {many} b") }));
    assert!(status >= 400, "{status} {error}");
    assert_eq!(asked.rows("SELECT total FROM top WHERE word = 'sea'"), json!([[4]]));
    asked.end();
}

#[test]
fn a_cross_join_is_cancelled_and_computes_no_more() {
    let dir = tempfile::tempdir().unwrap();
    let asked = Asked::start(dir.path());
    let many = "(SELECT unnest(range(1, 100000)) AS n FROM top WHERE word = 'sea')";
    for (id, condition) in [("pairs", "a.n + b.n > 0"), ("none", "a.n + b.n < 0")] {
        let sql = format!("SELECT count(*) FROM {many} a CROSS JOIN {many} b WHERE {condition}");
        let path = format!("/api/v1/query/{id}");
        std::thread::scope(|scope| {
            let (address, question) = (asked.address.clone(), json!({ "sql": sql, "id": id }).to_string());
            let waiting = scope.spawn(move || send(&address, "POST /api/v1/query", &question));
            // It joins when both sides were read.
            while asked.get(&path).1["read"].as_u64().unwrap_or(0) < 4 && !waiting.is_finished() {
                std::thread::yield_now();
            }
            if waiting.is_finished() {
                panic!("it has ended: {:?}", waiting.join().unwrap());
            }
            assert_eq!(asked.get(&path).1["state"], "running");
            assert_eq!(asked.post(&format!("{path}/cancel"), &json!({})).1["state"], "stopped");
            assert_eq!(waiting.join().unwrap().0, 409);
        });
        while asked.computing() > 0 {}
    }
    asked.end();
}

#[test]
fn a_notebook_lies_beside_the_program() {
    let dir = tempfile::tempdir().unwrap();
    let asked = Asked::start(dir.path());
    let text = "# Top\n\n```sql form=bars\nSELECT * FROM top\n```\n";
    let (status, kept) = asked.post("/api/v1/notebooks/top", &json!({ "text": text, "revision": null }));
    assert_eq!(status, 200, "{kept}");
    let file = dir.path().join("top.notebook.md");
    assert_eq!(fs::read_to_string(&file).unwrap(), text);
    // An editor writes it meanwhile.
    fs::write(&file, "# By hand\n").unwrap();
    let late = json!({ "text": "# Late\n", "revision": kept["revision"] });
    assert_eq!(asked.post("/api/v1/notebooks/top", &late).0, 409);
    let (_, read) = asked.get("/api/v1/notebooks/top");
    assert_eq!(read["text"], "# By hand\n");
    let again = json!({ "text": "# Both\n", "revision": read["revision"] });
    assert_eq!(asked.post("/api/v1/notebooks/top", &again).0, 200);
    for name in ["..%2F..%2Fx", "%2Fetc%2Fpasswd", "..", ".x"] {
        assert!(asked.post(&format!("/api/v1/notebooks/{name}"), &json!({ "text": "x", "revision": null })).0 >= 400);
    }
    assert_eq!(asked.get("/api/v1/notebooks").1, json!({ "kept": true, "names": ["top"] }));
    let mut files: Vec<String> =
        fs::read_dir(dir.path()).unwrap().map(|f| f.unwrap().file_name().into_string().unwrap()).collect();
    files.sort();
    assert_eq!(files, ["d", "top.notebook.md", "top.sql"]);
    asked.end();
}
