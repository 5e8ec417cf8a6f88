//! A batch run again through the page: the API with a stand-in for the engine, and the page in the browser.

use crate::{
    Site,
    api::{detail, graph, misfits},
    browser::{PAYLOADS, nothing_strange, texts, with_browser},
    http::{self, Reply},
    report,
    webdriver::Browser,
};
use arrow_array::{Int64Array, RecordBatch, StringArray};
use serde_json::{Value, json};
use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        mpsc::{Receiver, Sender, channel},
    },
};
use tidemill_core::{
    BatchDetail, BatchId, BatchReport, Error, Inspect, Kept, LetterReport, OperatorReport, Phase, PlanNode, PlanReport,
    ProgramThen, Rerun, RerunOutput, RerunState, Result, Sample, Timestamp,
};

/// Answers as a program would whose batches count words.
#[derive(Debug, Default)]
pub(crate) struct Fake {
    /// A run says that it has begun, and waits until it may end.
    held: Option<(Sender<()>, Mutex<Receiver<()>>)>,
    /// Names and texts instead of the usual ones.
    names: Option<Vec<String>>,
}

fn sample(name: &str, rows: &[(&str, i64)]) -> Sample {
    named(name, ["word", "count"], rows)
}

fn named(name: &str, columns: [&str; 2], rows: &[(&str, i64)]) -> Sample {
    let words = Arc::new(StringArray::from_iter_values(rows.iter().map(|row| row.0))) as _;
    let counts = Arc::new(Int64Array::from_iter_values(rows.iter().map(|row| row.1))) as _;
    let batch = RecordBatch::try_from_iter([(columns[0], words), (columns[1], counts)]).unwrap();
    Sample { name: name.to_string(), total: rows.len() as u64, rows: vec![batch] }
}

fn step(id: &str, name: &str, inputs: &[&str], rows: Option<u64>, busy_us: Option<u64>) -> PlanNode {
    let inputs = inputs.iter().map(ToString::to_string).collect();
    PlanNode { id: id.to_string(), name: name.to_string(), what: format!("does {name}"), inputs, rows, busy_us }
}

impl Inspect for Fake {
    fn run_again(&self, batch: BatchId) -> Result<Rerun> {
        if let Some((begun, go_on)) = &self.held {
            begun.send(()).unwrap();
            go_on.lock().unwrap().recv().unwrap();
        }
        match batch.0 {
            1..=9 => {}
            77 => return Err(Error::external("the disk is on fire")),
            _ => return Err(Error::user(format!("batch {batch} is not kept: batches 1 to 9 are"))),
        }
        if let Some(names) = &self.names {
            return Ok(strange(batch, names));
        }
        let output = |now: Sample, then| RerunOutput { now, then, why: None };
        Ok(Rerun {
            batch,
            time: Timestamp(7_000_000),
            took_us: 5000,
            program: ProgramThen::Other,
            inputs: vec![Sample { total: 10, ..sample("posts", &[("sea", 1), ("tide", 2)]) }],
            operators: vec![OperatorReport {
                name: "words".to_string(),
                rows: 2,
                busy_us: 900,
                ..OperatorReport::default()
            }],
            plans: vec![PlanReport {
                output: "words".to_string(),
                nodes: vec![
                    step("0", "posts", &[], Some(10), Some(50)),
                    step("1", "AggregateExec", &["0"], Some(2), Some(900)),
                    step("2", "words", &["1"], None, None),
                ],
                left_out: 0,
            }],
            outputs: vec![
                output(sample("words", &[("sea", 4), ("tide", 2)]), None),
                output(
                    sample("loud", &[("SEA", 1), ("EBB", 2), ("NEW", 3)]),
                    Some((Kept::Topic, sample("loud", &[("EBB", 2), ("GONE", 9), ("SEA", 1)]))),
                ),
                output(sample("same", &[("a", 1)]), Some((Kept::Program, sample("same", &[("a", 1)])))),
                output(sample("file", &[("x", 1), ("y", 2)]), None),
                RerunOutput { why: Some("the topic is gone".to_string()), ..output(sample("lost", &[]), None) },
                output(sample("fewer", &[("a", 1)]), Some((Kept::Topic, sample("fewer", &[("a", 1), ("b", 2)])))),
                output(sample("more", &[("a", 1), ("b", 2)]), Some((Kept::Topic, sample("more", &[("b", 2)])))),
                output(sample("none", &[]), None),
            ],
            states: vec![RerunState {
                operator: "words".to_string(),
                before: sample("words", &[("sea", 2)]),
                after: sample("words", &[("sea", 4)]),
                differ: Some((sample("words", &[("sea", 3)]), sample("words", &[("sea", 4)]))),
                note: None,
            }],
            refused: 3,
            letters: Vec::new(),
        })
    }

    fn state(&self, operator: &str) -> Result<Option<Sample>> {
        if let Some(names) = &self.names {
            let rows: Vec<(&str, i64)> = names.iter().map(|name| (name.as_str(), 1)).collect();
            return Ok(Some(named(operator, [names[0].as_str(), names[8].as_str()], &rows)));
        }
        match operator {
            "words" => Ok(Some(Sample { total: 900, ..sample("words", &[("sea", 4), ("tide", 2)]) })),
            "large" => Err(Error::user("the states take 999 MiB: too much")),
            _ => Ok(None),
        }
    }
}

/// Everything that has a name has a hostile one.
fn strange(batch: BatchId, names: &[String]) -> Rerun {
    let rows: Vec<(&str, i64)> = names.iter().map(|name| (name.as_str(), 1)).collect();
    let columns = [names[0].as_str(), names[8].as_str()];
    let of = |name: &String| named(name, columns, &rows);
    let letter = |name: &String| tidemill_core::DeadLetter {
        stream: name.clone(),
        reason: name.clone(),
        raw: name.as_bytes().to_vec(),
        partition: tidemill_core::PartitionId::new(name),
        offset: tidemill_core::Offset(1),
        batch: None,
    };
    let outputs = names.iter().map(|name| RerunOutput {
        now: of(name),
        then: Some((Kept::Topic, named(name, columns, &[("other", 1)]))),
        why: Some(name.clone()),
    });
    let states = names.iter().map(|name| RerunState {
        operator: name.clone(),
        before: of(name),
        after: of(name),
        differ: Some((of(name), Sample::default())),
        note: Some(name.clone()),
    });
    let node = |name: &String| PlanNode { what: name.clone(), ..step(name, name, &[], Some(1), Some(1)) };
    let plan =
        |name: &String| PlanReport { output: name.clone(), nodes: names.iter().map(node).collect(), left_out: 0 };
    Rerun {
        batch,
        inputs: names.iter().map(of).collect(),
        operators: names.iter().map(|n| OperatorReport { name: n.clone(), ..OperatorReport::default() }).collect(),
        plans: names.iter().map(plan).collect(),
        outputs: outputs.collect(),
        states: states.collect(),
        letters: LetterReport::first(&names.iter().map(letter).collect::<Vec<_>>()),
        ..Rerun::default()
    }
}

/// A site of a program that can be looked into, with one batch whose report is remembered.
async fn site(fake: Fake) -> Site {
    let site = Site::open_with("127.0.0.1:0", |server| server.inspect(Arc::new(fake))).await;
    site.board.update_program(|program| program.phase = Phase::Running);
    site.board.publish_graph(graph());
    site.show("words", 7, &[("sea", 3), ("tide", 2)]);
    let mut told: BatchDetail = detail();
    told.outputs.push(OperatorReport { name: "file".to_string(), rows: 3, ..OperatorReport::default() });
    told.outputs.push(OperatorReport { name: "none".to_string(), ..OperatorReport::default() });
    site.board.publish_batch(BatchReport { detail: Arc::new(told), ..report(7) });
    site
}

async fn run(address: SocketAddr, batch: &str, body: &str) -> Reply {
    let request = format!(
        "POST /api/v1/batches/{batch}/run HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\
         Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    http::send(address, &request).await
}

#[tokio::test]
async fn a_batch_runs_again_and_is_compared_with_what_is_known_of_then() {
    let site = site(Fake::default()).await;
    let reply = run(site.address, "7", "{}").await;
    assert_eq!(reply.status, 200, "{}", reply.text());
    let told = reply.json();
    let document = http::get(site.address, "/api/v1/openapi.json").await.json();
    let route = &document["paths"]["/api/v1/batches/{batch}/run"]["post"];
    let schema = &route["responses"]["200"]["content"]["application/json"]["schema"];
    let mut found = Vec::new();
    misfits(schema, &told, &document, "run", &mut found);
    assert!(found.is_empty(), "{found:#?}");
    let outputs = told["outputs"].as_array().unwrap();
    let of = |name: &str| outputs.iter().find(|output| output["name"] == name).unwrap();
    let words = of("words");
    assert_eq!((&words["kept"], &words["same"], &words["common"]), (&json!("view"), &json!(false), &json!(1)));
    assert_eq!((&words["removed"]["rows"], &words["added"]["rows"]), (&json!([["sea", 3]]), &json!([["sea", 4]])));
    let loud = of("loud");
    assert_eq!((&loud["kept"], &loud["common"]), (&json!("topic"), &json!(2)));
    assert_eq!((&loud["removed"]["rows"], &loud["added"]["rows"]), (&json!([["GONE", 9]]), &json!([["NEW", 3]])));
    assert_eq!((&of("same")["same"], &of("same")["kept"]), (&json!(true), &json!("program")));
    // Only their number is known: it differs.
    let file = of("file");
    assert_eq!((&file["kept"], &file["counted"], &file["same"]), (&json!("count"), &json!(3), &json!(false)));
    // Rows that only went, or only came, are a difference, too.
    for (name, removed, added) in [("fewer", 1, 0), ("more", 0, 1)] {
        let told = of(name);
        assert_eq!((&told["same"], &told["common"]), (&json!(false), &json!(1)), "{name}");
        assert_eq!((&told["removed"]["total"], &told["added"]["total"]), (&json!(removed), &json!(added)), "{name}");
    }
    // None were given then, and none are now.
    let none = of("none");
    assert_eq!((&none["kept"], &none["same"]), (&json!("view"), &json!(true)));
    let lost = of("lost");
    assert_eq!(
        (&lost["kept"], &lost["same"], &lost["why"]),
        (&json!("nothing"), &Value::Null, &json!("the topic is gone"))
    );
    assert_eq!((&told["records_then"], &told["refused_then"], &told["refused"]), (&json!(10), &json!(1), &json!(3)));
    assert_eq!(told["states"][0]["removed"]["rows"], json!([["sea", 3]]));
    assert_eq!((&told["inputs"][0]["total"], &told["inputs"][0]["rows"][1]), (&json!(10), &json!(["tide", 2])));
    // Of a batch whose report is gone, less is known.
    for batch in ["3", "9"] {
        let old = run(site.address, batch, "{}").await.json();
        assert_eq!((&old["records_then"], &old["outputs"][0]["kept"]), (&Value::Null, &json!("nothing")), "{batch}");
    }
    site.close().await;
}

#[tokio::test]
async fn what_can_not_be_run_again_is_said_with_its_status() {
    let site = site(Fake::default()).await;
    for (batch, body, status, says) in [
        ("12", "{}", 409, "batch 12 is not kept: batches 1 to 9 are"),
        ("77", "{}", 503, "on fire"),
        ("seven", "{}", 404, "number"),
        ("-1", "{}", 404, "number"),
        ("7", "{\"more\":1}", 400, "more"),
        ("7", "[", 400, "body"),
    ] {
        let reply = run(site.address, batch, body).await;
        assert_eq!(reply.status, status, "{batch} {body}");
        assert!(reply.json()["error"].as_str().unwrap().contains(says), "{}", reply.text());
    }
    let rows = http::get(site.address, "/api/v1/states/words").await.json();
    assert_eq!((&rows["total"], &rows["rows"][0]), (&json!(900), &json!(["sea", 4])));
    assert_eq!(http::get(site.address, "/api/v1/states/large").await.status, 409);
    assert_eq!(http::get(site.address, "/api/v1/states/none").await.status, 404);
    site.close().await;
    let blind = Site::open().await;
    assert_eq!(run(blind.address, "7", "{}").await.status, 404);
    assert_eq!(http::get(blind.address, "/api/v1/states/words").await.status, 404);
    blind.close().await;
}

#[tokio::test]
async fn one_at_a_time_looks_and_others_are_told_to_wait() {
    let ((begun, has_begun), (go, may_go)) = (channel(), channel());
    let site = site(Fake { held: Some((begun, Mutex::new(may_go))), ..Fake::default() }).await;
    let address = site.address;
    let first = tokio::spawn(async move { run(address, "7", "{}").await.status });
    let has_begun = tokio::task::spawn_blocking(move || {
        has_begun.recv().unwrap();
        has_begun
    });
    let has_begun = has_begun.await.unwrap();
    assert_eq!(run(address, "7", "{}").await.status, 429);
    assert_eq!(http::get(address, "/api/v1/states/words").await.status, 429);
    assert_eq!(http::get(address, "/api/v1/batches/7").await.status, 200, "all else is answered");
    go.send(()).unwrap();
    assert_eq!(first.await.unwrap(), 200);
    go.send(()).unwrap();
    assert_eq!(run(address, "7", "{}").await.status, 200, "the turn is free again");
    drop(has_begun);
    site.close().await;
}

#[tokio::test]
async fn the_page_draws_the_plan_and_marks_what_differs() {
    with_browser(again).await;
}

async fn again(browser: Browser) {
    let site = site(Fake::default()).await;
    browser.go(&format!("http://{}/#batches/7", site.address)).await;
    browser.wait("document.querySelectorAll('.plan .node').length === 5").await;
    let figures = "return Object.fromEntries([...document.querySelectorAll('.plan .node')].map((n) => [n.dataset.id, n.querySelector('.figures')?.textContent]))";
    let figures = browser.eval(figures).await;
    assert_eq!(figures["input posts"], "10 rows · 900 µs");
    assert_eq!(figures["operator words"], "2 rows · 2.1 ms · slowest, 69 %");
    let slow = "return [...document.querySelectorAll('.plan .slowest')].map((n) => n.dataset.id)";
    assert_eq!(browser.eval(slow).await, json!(["operator words"]));

    // By keyboard.
    browser.eval("document.querySelector('.again button').focus()").await;
    browser.press("\u{E007}").await;
    browser.wait("document.querySelector('.verdict')?.textContent.startsWith('≠ What it gives now differs')").await;
    let lines = "return [...document.querySelectorAll('.compare tbody tr')].map((r) => r.className + ' ' + [...r.cells].map((c) => c.textContent).join('|'))";
    let lines = browser.eval(lines).await;
    let lines = texts(&lines);
    for wanted in
        ["gone −|sea|3", "came +|sea|4", "gone −|GONE|9", "came +|NEW|3", " Refused|1|3|≠", " Records|10|10|="]
    {
        assert!(lines.contains(&wanted), "{wanted} in {lines:#?}");
    }
    let said = browser.eval("return document.querySelector('.compare').innerText").await;
    for wanted in [
        "Rows: 1, all of them the same.",
        "Rows then: 3, now: 2: the number differs.",
        "the topic is gone",
        "Rows gone: 1, come: 1, the same: 2.",
    ] {
        assert!(said.as_str().unwrap().contains(wanted), "{wanted} in {said}");
    }
    let signs = "return [...document.querySelectorAll('.compare tr .sign')].every((s) => s.getAttribute('aria-label'))";
    assert_eq!(browser.eval(signs).await, true);
    let ins = browser.eval("return document.querySelector('.samples_in').innerText").await;
    assert!(ins.as_str().unwrap().contains("The first 2 of 10 rows."), "{ins}");

    // The plan of the output that was run again.
    let pick = "const s = document.querySelector('.plan select'); s.value = '1'; s.dispatchEvent(new Event('change'))";
    browser.eval(pick).await;
    browser.wait("document.querySelectorAll('.plan .node').length === 3").await;
    let slow = browser.eval("return document.querySelector('.plan .slowest').getAttribute('aria-label')").await;
    assert!(slow.as_str().unwrap().contains("AggregateExec: 2 rows · 900 µs, slowest, 95 %"), "{slow}");

    // On a phone, in Chinese and in the dark, nothing is wider than the page.
    browser.look(390, 800, "dark").await;
    browser.eval("document.getElementById('tongue').click()").await;
    browser.wait("document.querySelectorAll('.plan .node').length === 5").await;
    browser.eval("document.querySelector('.again button').click()").await;
    browser.wait("document.querySelector('.verdict')?.textContent.includes('结果与当时不同')").await;
    let wide = browser.eval("return document.documentElement.scrollWidth <= innerWidth").await;
    assert_eq!(wide, true);
    browser.eval("document.getElementById('tongue').click()").await;

    nothing_strange(&browser).await;

    // Another batch shows nothing of this one; one that is not kept says so.
    browser.eval("location.hash = 'batches/12'").await;
    browser.wait("document.querySelector('.detail').textContent === 'Batch 12 is no longer remembered.'").await;
    assert_eq!(browser.eval("return document.querySelector('.again .stack').children.length").await, 0);
    assert_eq!(browser.eval("return document.querySelector('.plan').hidden").await, true);
    browser.eval("document.querySelector('.again button').click()").await;
    browser.wait("document.querySelector('.verdict').textContent === 'batch 12 is not kept: batches 1 to 9 are'").await;

    // The browser tells of each refusal.
    assert_eq!(browser.console().await.len(), 2);

    // From the lineage to a state's first rows.
    browser.eval("location.hash = 'lineage/operator words'").await;
    browser.wait("document.querySelector('.first-rows button')").await;
    browser.eval("document.querySelector('.first-rows button').click()").await;
    browser
        .wait("[...document.querySelectorAll('.first-rows td')].map((c) => c.textContent).join() === 'sea,4,tide,2'")
        .await;
    browser.wait("document.querySelector('.first-rows').textContent.includes('The first 2 of 900 rows.')").await;
    nothing_strange(&browser).await;
    site.close().await;
}

#[tokio::test]
async fn hostile_names_are_only_text_in_a_batch_that_is_run_again() {
    with_browser(hostile).await;
}

async fn hostile(browser: Browser) {
    let names = PAYLOADS.map(str::to_string).to_vec();
    let site = site(Fake { names: Some(names), ..Fake::default() }).await;
    browser.go(&format!("http://{}/#batches/7", site.address)).await;
    browser.wait("document.querySelectorAll('.plan .node').length === 5").await;
    browser.eval("document.querySelector('.again button').click()").await;
    browser.wait("document.querySelectorAll('.samples_in h4').length === 56").await;
    let shown = browser.eval("return [...document.querySelectorAll('.samples_in h4')].map((e) => e.textContent)").await;
    assert_eq!(texts(&shown), PAYLOADS);
    let pick = "const s = document.querySelector('.plan select'); s.value = '9'; s.dispatchEvent(new Event('change'))";
    browser.eval(pick).await;
    browser.wait("document.querySelectorAll('.plan .node').length === 56").await;
    nothing_strange(&browser).await;

    browser.eval("location.hash = 'lineage/operator words'").await;
    browser.wait("document.querySelector('.first-rows button')").await;
    browser.eval("document.querySelector('.first-rows button').click()").await;
    // As many rows as are shown of any sample.
    browser.wait("document.querySelectorAll('.first-rows tbody tr').length === 50").await;
    let shown = async |cells: &str| {
        let read = format!("return [...document.querySelectorAll('.first-rows {cells}')].map((e) => e.textContent)");
        browser.eval(&read).await
    };
    assert_eq!(texts(&shown("td:first-child").await), PAYLOADS[..50]);
    assert_eq!(texts(&shown("th").await), [PAYLOADS[0], PAYLOADS[8]]);
    nothing_strange(&browser).await;
    site.close().await;
}
