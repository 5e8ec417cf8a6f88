//! The notebook's questions and its shelf, against someone who stands in for the engine.

use crate::{
    Site, api,
    http::{self, Reply},
};
use arrow_array::{Int64Array, RecordBatch, StringArray};
use async_trait::async_trait;
use parking_lot::Mutex;
use serde_json::{Value, json};
use std::{collections::BTreeMap, net::SocketAddr, sync::Arc};
use tidemill_core::{
    Answer, Answers, AskedTable, Duration, Error, Names, Notebook, Parameter, Progress, Question, Result, Shelf,
    Shelved,
};
use tidemill_web::Server;

/// Answers by the first word of a question, and keeps notebooks in memory.
#[derive(Debug, Default)]
pub(crate) struct StandIn {
    /// Questions that were asked, and how far each is.
    pub(crate) asked: Mutex<Vec<(Question, Arc<Progress>)>>,
    books: Mutex<BTreeMap<String, String>>,
}

fn answer(columns: Vec<(&str, arrow_array::ArrayRef)>, most: usize) -> Answer {
    let rows = RecordBatch::try_from_iter(columns).unwrap();
    let more = rows.num_rows() > most;
    Answer { schema: rows.schema(), rows: vec![rows.slice(0, rows.num_rows().min(most))], more }
}

#[async_trait]
impl Answers for StandIn {
    async fn answer(&self, question: Question, progress: Arc<Progress>) -> Result<Answer> {
        self.asked.lock().push((question.clone(), Arc::clone(&progress)));
        progress.add(7);
        let numbers = |to: i64| Arc::new(Int64Array::from_iter_values(0..to)) as arrow_array::ArrayRef;
        match question.sql.split_whitespace().next().unwrap_or_default() {
            "endless" => std::future::pending().await,
            "wrong" => Err(Error::user("line 2, column 8: there is no column `vlaue`; did you mean `value`?")),
            "broken" => Err(Error::external("the disk is on fire")),
            "many" => Ok(answer(vec![("n", numbers(20_000))], question.rows)),
            "wide" => {
                let text = StringArray::from_iter_values((0..9000).map(|_| "x".repeat(2000)));
                Ok(answer(vec![("t", Arc::new(text))], question.rows))
            }
            "views" => {
                let names = StringArray::from_iter_values(question.views.keys());
                let rows = question.views.values().map(|rows| i64::try_from(rows.num_rows()).unwrap());
                let rows = Int64Array::from_iter_values(rows);
                Ok(answer(vec![("view", Arc::new(names)), ("rows", Arc::new(rows))], question.rows))
            }
            _ => {
                let given = question.parameters.iter().map(|(name, value)| match value {
                    Parameter::Text(text) => text.clone(),
                    other => format!("{name} {other:?}"),
                });
                let texts: Vec<String> = [question.sql.clone()].into_iter().chain(given).collect();
                let count = numbers(i64::try_from(texts.len()).unwrap());
                Ok(answer(vec![("text", Arc::new(StringArray::from(texts))), ("n", count)], question.rows))
            }
        }
    }

    fn names(&self) -> Result<Names> {
        let columns = vec!["word".to_string(), "n".to_string()];
        let tables = vec![AskedTable { name: "words".to_string(), kind: "view", columns }];
        Ok(Names { tables, functions: vec!["count".to_string(), "lower".to_string()] })
    }
}

impl Shelf for StandIn {
    fn names(&self) -> Result<Vec<String>> {
        Ok(self.books.lock().keys().cloned().collect())
    }

    fn read(&self, name: &str) -> Result<Option<Notebook>> {
        let text = self.books.lock().get(name).cloned();
        Ok(text.map(|text| Notebook { revision: text.len().to_string(), text }))
    }

    fn keep(&self, name: &str, text: &str, seen: Option<&str>) -> Result<Shelved> {
        let mut books = self.books.lock();
        let there = books.get(name).map(|text| text.len().to_string());
        if there.as_deref() != seen {
            return Ok(Shelved::Refused(there));
        }
        books.insert(name.to_string(), text.to_string());
        Ok(Shelved::As(text.len().to_string()))
    }
}

/// A site whose questions are answered.
pub(crate) async fn asking(set: impl FnOnce(Server) -> Server) -> (Site, Arc<StandIn>) {
    let stand_in = Arc::<StandIn>::default();
    let both = Arc::clone(&stand_in);
    let site =
        Site::open_with("127.0.0.1:0", |server| set(server.answers(Arc::clone(&both) as Arc<dyn Answers>).shelf(both)));
    (site.await, stand_in)
}

pub(crate) async fn post(address: SocketAddr, path: &str, body: &Value) -> Reply {
    let body = body.to_string();
    let head = format!(
        "POST {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    http::send(address, &(head + &body)).await
}

async fn ask(address: SocketAddr, body: &Value) -> Reply {
    post(address, "/api/v1/query", body).await
}

/// Waits until a question has come to whom it is asked.
async fn begun(stand_in: &StandIn, count: usize) {
    while stand_in.asked.lock().len() < count {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn an_answer_has_columns_with_types_and_says_when_it_is_cut() {
    let (site, _) = asking(|server| server).await;
    let address = site.address;
    let document = http::get(address, "/api/v1/openapi.json").await.json();
    let params = json!({ "a": "x' --", "b": -5, "c": 0.5, "d": true, "e": null });
    let reply = ask(address, &json!({ "sql": "echo", "params": params })).await;
    assert_eq!(reply.status, 200);
    let got = reply.json();
    assert_eq!(got["columns"], json!([{ "name": "text", "type": "text" }, { "name": "n", "type": "number" }]));
    let rows = json!([
        ["echo", 0],
        ["x' --", 1],
        ["b Whole(-5)", 2],
        ["c Number(0.5)", 3],
        ["d Truth(true)", 4],
        ["e Null", 5]
    ]);
    assert_eq!((&got["rows"], &got["more"], &got["read"]), (&rows, &json!(false), &json!(7)));
    let mut found = Vec::new();
    let schema =
        &document["paths"]["/api/v1/query"]["post"]["responses"]["200"]["content"]["application/json"]["schema"];
    api::misfits(schema, &got, &document, "rows", &mut found);
    assert!(found.is_empty(), "{found:#?}");

    for (limit, shown) in [(json!(null), 1000), (json!(3), 3), (json!(10_000), 10_000)] {
        let got = ask(address, &json!({ "sql": "many", "limit": limit })).await.json();
        assert_eq!((got["rows"].as_array().unwrap().len(), &got["more"]), (shown, &json!(true)), "{limit}");
    }
    let reply = ask(address, &json!({ "sql": "wide", "limit": 10_000 })).await;
    let (bytes, got) = (reply.body.len(), reply.json());
    assert!(bytes < (4 << 20) + 10_000, "{bytes}");
    let shown = got["rows"].as_array().unwrap().len();
    assert!(shown > 1000 && got["more"] == true && got["cut"] == shown, "{shown}");
    site.close().await;
}

#[tokio::test]
async fn an_error_gives_its_line_and_column() {
    let (site, _) = asking(|server| server).await;
    let reply = ask(site.address, &json!({ "sql": "wrong", "id": "mine" })).await;
    let expected =
        json!({ "error": "there is no column `vlaue`; did you mean `value`?", "line": 2, "column": 8, "id": "mine" });
    assert_eq!((reply.status, reply.json()), (400, expected));
    let reply = ask(site.address, &json!({ "sql": "broken" })).await;
    assert_eq!((reply.status, &reply.json()["line"]), (500, &Value::Null));
    assert_eq!(http::get(site.address, "/api/v1/query/mine").await.json()["state"], "failed");
    for (body, status) in [
        (json!({}), 400),
        (json!({ "sql": 5 }), 400),
        (json!({ "sql": "x", "limit": 0 }), 400),
        (json!({ "sql": "x", "limit": 10_001 }), 400),
        (json!({ "sql": "x", "at_batch": -1 }), 400),
        (json!({ "sql": "x", "params": { "a": [1] } }), 400),
        (json!({ "sql": "x", "id": "../x" }), 400),
        (json!({ "sql": "x", "id": "" }), 400),
        (json!({ "sql": "x", "strange": 1 }), 400),
        (json!({ "sql": "x", "id": "mine" }), 409),
        (json!({ "sql": "x".repeat(70_000) }), 413),
    ] {
        assert_eq!(ask(site.address, &body).await.status, status, "{:.80}", body.to_string());
    }
    site.close().await;

    // A page without a program behind it says so.
    let site = Site::open().await;
    assert_eq!(ask(site.address, &json!({ "sql": "x" })).await.status, 404);
    assert_eq!(http::get(site.address, "/api/v1/names").await.json(), json!({ "tables": [], "functions": [] }));
    assert_eq!(http::get(site.address, "/api/v1/notebooks").await.json(), json!({ "kept": false, "names": [] }));
    let book = post(site.address, "/api/v1/notebooks/a", &json!({ "text": "x", "revision": null })).await;
    assert_eq!(book.status, 404);
    site.close().await;
}

#[tokio::test]
async fn a_question_is_followed_and_stopped() {
    let (site, stand_in) = asking(|server| server).await;
    let address = site.address;
    assert_eq!(http::get(address, "/api/v1/query/a").await.status, 404);
    assert_eq!(post(address, "/api/v1/query/a/cancel", &json!({})).await.status, 404);
    let asked = tokio::spawn(async move { ask(address, &json!({ "sql": "endless", "id": "a" })).await });
    begun(&stand_in, 1).await;
    let told = http::get(address, "/api/v1/query/a").await.json();
    assert_eq!((&told["state"], &told["read"]), (&json!("running"), &json!(7)));
    assert_eq!(post(address, "/api/v1/query/a/cancel", &json!({})).await.json()["state"], "stopped");
    let reply = asked.await.unwrap();
    assert_eq!((reply.status, &reply.json()["error"]), (409, &json!("the query was stopped")));
    assert!(stand_in.asked.lock()[0].1.is_stopped(), "who computes is told");
    assert_eq!(http::get(address, "/api/v1/query/a").await.json()["state"], "stopped");
    site.close().await;
}

#[tokio::test]
async fn a_few_run_at_once_and_one_whose_asker_has_gone_makes_room() {
    let (site, stand_in) = asking(|server| server).await;
    let address = site.address;
    let mut asked = Vec::new();
    for n in 1..=4 {
        asked.push(tokio::spawn(
            async move { ask(address, &json!({ "sql": "endless", "id": format!("q-{n}") })).await },
        ));
        begun(&stand_in, n).await;
    }
    let refused = ask(address, &json!({ "sql": "echo" })).await;
    assert_eq!(refused.status, 429, "{}", refused.text());
    // The second goes away.
    asked.remove(1).abort();
    while http::get(address, "/api/v1/query/q-2").await.json()["state"] != "stopped" {}
    assert!(stand_in.asked.lock()[1].1.is_stopped());
    assert_eq!(ask(address, &json!({ "sql": "echo" })).await.status, 200);
    // The end of the server ends the others.
    site.close().await;
    for left in asked {
        assert_eq!(left.await.unwrap().status, 503);
    }
}

#[tokio::test]
async fn a_question_has_its_time() {
    let (site, stand_in) = asking(|server| server.longest_query(Duration::from_millis(1))).await;
    let reply = ask(site.address, &json!({ "sql": "endless" })).await;
    assert_eq!(reply.status, 504);
    assert!(reply.text().contains("was stopped: ask for less"), "{}", reply.text());
    assert!(stand_in.asked.lock()[0].1.is_stopped());
    site.close().await;
}

#[tokio::test]
async fn views_of_the_past_come_with_the_question() {
    let (site, stand_in) = asking(|server| server).await;
    let mut live = http::Live::open(site.address).await;
    for (batch, words) in [(1, &[("sea", 1)][..]), (2, &[("sea", 1), ("tide", 2)])] {
        site.show("words", batch, words);
        live.until("view", |view| view["batch"] == batch).await;
    }
    for (at, rows) in [(1, 1), (2, 2), (7, 2)] {
        let got = ask(site.address, &json!({ "sql": "views", "at_batch": at })).await.json();
        assert_eq!((&got["rows"], &got["batch"]), (&json!([["words", rows]]), &json!(at)));
    }
    let now = ask(site.address, &json!({ "sql": "views" })).await.json();
    assert_eq!(now["rows"], json!([]), "now they are on the board");
    assert_eq!(stand_in.asked.lock()[0].0.at.map(|at| at.0), Some(1));
    site.close().await;
}

#[tokio::test]
async fn two_browsers_do_not_overwrite_each_other() {
    let (site, _) = asking(|server| server).await;
    let address = site.address;
    let keep = async |name: &str, text: &str, revision: Value| {
        post(address, &format!("/api/v1/notebooks/{name}"), &json!({ "text": text, "revision": revision })).await
    };
    let first = keep("top", "# one", Value::Null).await;
    assert_eq!(first.status, 200);
    let seen = first.json()["revision"].clone();
    assert_eq!(keep("top", "# another", Value::Null).await.status, 409, "there is one");
    let second = keep("top", "# second", seen.clone()).await;
    assert_eq!(second.status, 200);
    let late = keep("top", "# late", seen.clone()).await;
    assert!(late.status == 409 && late.text().contains("changed meanwhile"), "{}", late.text());
    assert_eq!(keep("gone", "x", seen).await.status, 409);
    let book = http::get(address, "/api/v1/notebooks/top").await.json();
    assert_eq!((&book["text"], &book["revision"]), (&json!("# second"), &second.json()["revision"]));
    assert_eq!(http::get(address, "/api/v1/notebooks").await.json(), json!({ "kept": true, "names": ["top"] }));
    for name in ["..", ".a", "a%2Fb", "..%2Fx", "a%20b", "%00", "%C3%A4"] {
        let path = format!("/api/v1/notebooks/{name}");
        assert!(matches!(http::get(address, &path).await.status, 400 | 404), "{name}");
        assert!(matches!(keep(name, "x", Value::Null).await.status, 400 | 404), "{name}");
    }
    assert_eq!(keep("large", &"x".repeat((1 << 20) + 1), Value::Null).await.status, 413);
    // A megabyte of what JSON writes longest is taken.
    assert_eq!(keep("long", &"\u{1}".repeat(1 << 20), Value::Null).await.status, 200);
    site.close().await;
}
