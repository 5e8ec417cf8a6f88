//! Batches, streams and lineage in the browser; and hostile text on every page.

use crate::{
    Site,
    api::{alert, detail, full},
    browser::{PAYLOADS, nothing_strange, texts, with_browser},
    report,
    webdriver::Browser,
};
use arrow_array::{Float64Array, Int64Array, RecordBatch, StringArray};
use serde_json::json;
use std::sync::Arc;
use tidemill_core::{
    AlertAsk, AlertChange, AlertNow, AlertReport, BatchDetail, BatchReport, DeadLetter, Graph, GraphColumn, GraphNode,
    LetterReport, NodeKind, Offset, OperatorReport, PartitionId, PartitionReport, Phase, Silence,
};

#[tokio::test]
async fn slow_batches_stand_out_and_one_is_shown_in_detail() {
    with_browser(batches).await;
}

async fn batches(browser: Browser) {
    let site = Site::open().await;
    site.board.update_program(|p| p.phase = Phase::Running);
    for batch in 1..=40 {
        let processing_us = if batch == 30 { 300_000 } else { 30_000 };
        site.board.publish_batch(BatchReport { processing_us, ..report(batch) });
    }
    site.board.publish_batch(BatchReport { detail: Arc::new(detail()), ..report(41) });
    browser.go(&format!("http://{}/#batches", site.address)).await;
    browser.wait("document.querySelectorAll('.of-batches .stack table tbody tr').length === 40").await;
    let slow = "return [...document.querySelectorAll('.stack tbody tr')].filter((r) => r.querySelector('.slow')).map((r) => r.cells[0].textContent)";
    assert_eq!(browser.eval(slow).await, json!(["30"]));
    let drawn = "document.querySelector('.timeline .slow').getAttribute('d').split('M').length - 1";
    assert_eq!(browser.eval(&format!("return {drawn}")).await, 1);
    assert_eq!(
        browser.eval("return document.querySelector('.timeline .took').getAttribute('d').split('M').length - 1").await,
        40
    );
    let histogram =
        browser.eval("return [...document.querySelectorAll('.histogram .n')].map((n) => n.textContent)").await;
    assert_eq!(histogram, json!(["40", "", "", "", "1"]));
    assert_eq!(
        browser.eval("return [...document.querySelectorAll('.histogram li')].map((b) => b.className)").await,
        json!(["", "", "", "slow", "slow"])
    );

    // By keyboard: to the newest, and open it.
    browser.eval("document.querySelector('.timeline').focus()").await;
    browser.press("\u{E010}").await;
    browser.wait("/Batch 41 ·/.test(document.querySelector('.timeline .said').textContent)").await;
    browser.press("\u{E007}").await;
    browser
        .wait("location.hash === '#batches/41' && document.querySelector('.detail h2')?.textContent === 'Batch 41'")
        .await;
    let rows = "return [...document.querySelectorAll('.detail tbody tr')].map((r) => [...r.cells].map((c) => c.textContent).join(' | '))";
    let shown = browser.eval(rows).await;
    let shown = texts(&shown);
    for wanted in [
        "posts | 10 | 900 µs",
        "words | 2 | 2.1 ms",
        "state | 2 | 1.5 ms",
        "posts | 0 | 33 | 43 | 10",
        "posts 0 | 41 | field \"n\": expected an integer, found \"many\" | {\"n\":\"many\"}",
    ] {
        assert!(shown.contains(&wanted), "{wanted} in {shown:#?}");
    }
    browser.eval("location.hash = 'batches/999'").await;
    browser.wait("document.querySelector('.detail').textContent === 'Batch 999 is no longer remembered.'").await;
    // A batch that comes is drawn, and what is looked at stays.
    browser.eval("location.hash = 'batches/41'").await;
    browser.wait("document.querySelector('.detail h2')?.textContent === 'Batch 41'").await;
    site.board.publish_batch(report(42));
    browser.wait("document.querySelector('.stack tbody tr').cells[0].textContent === '42'").await;
    assert_eq!(browser.eval("return document.querySelector('.detail h2').textContent").await, "Batch 41");
    site.close().await;
}

#[tokio::test]
async fn inputs_are_shown_with_their_errors_and_what_is_not_read() {
    with_browser(streams).await;
}

async fn streams(browser: Browser) {
    let site = full().await;
    browser.go(&format!("http://{}/#streams", site.address)).await;
    browser.wait("document.querySelector('.streams .card')").await;
    let facts = "return Object.fromEntries([...document.querySelectorAll('.streams dt')].map((t) => [t.textContent, t.nextSibling.textContent]))";
    let facts = browser.eval(facts).await;
    for (name, value) in
        [("Records", "500"), ("Not read yet", "17"), ("Errors", "2"), ("Reconnects", "1"), ("Bytes", "64 kB")]
    {
        assert_eq!(facts[name], value, "{facts}");
    }
    browser.wait("[...document.querySelectorAll('.streams td')].map((c) => c.textContent).join() === '0,483,17'").await;
    site.board.update_input("posts", 0, |input| input.records += 5000);
    browser.wait("/^[1-9][\\d,.]*$/.test(document.querySelector('.streams dd').textContent)").await;
    site.board.update_input("posts", 0, |input| input.failed = Some("the file is gone".to_string()));
    browser.wait("document.querySelector('.streams .state').textContent === 'the file is gone' && document.querySelector('.streams .dot').className === 'dot bad'").await;
    site.close().await;
}

#[tokio::test]
async fn alerts_are_listed_and_silenced() {
    with_browser(alerts).await;
}

async fn alerts(browser: Browser) {
    let site = full().await;
    browser.go(&format!("http://{}/#alerts", site.address)).await;
    browser.wait("document.querySelector('.alert td')?.textContent === 'web-1'").await;
    let shown = browser.eval("return document.querySelector('.alert').textContent").await;
    for part in ["hot", "page", "load: busy > 0.9", "1 firing, 0 pending", "web-1 is 0.95 busy", "web-2", "History"] {
        assert!(shown.as_str().unwrap().contains(part), "{part}: {shown}");
    }
    browser.eval("[...document.querySelectorAll('.alert td button')][0].click()").await;
    browser
        .wait("document.querySelector('.alert [role=status]').textContent === 'Asked for; the next batch takes it.'")
        .await;
    let asks = site.board.take_alert_asks("hot");
    assert!(matches!(&asks[..], [AlertAsk::Silence(silence)] if silence.key.as_deref() == Some("web-1")), "{asks:?}");
    nothing_strange(&browser).await;
    site.close().await;
}

#[tokio::test]
async fn the_program_is_a_graph_with_the_rates_of_now() {
    with_browser(lineage).await;
}

async fn lineage(browser: Browser) {
    let site = full().await;
    browser.go(&format!("http://{}/#lineage", site.address)).await;
    browser
        .wait("document.querySelectorAll('.node').length === 5 && document.querySelectorAll('.edge').length === 4")
        .await;
    let left = "return Object.fromEntries([...document.querySelectorAll('.node')].map((n) => [n.dataset.id, n.getBoundingClientRect().left]))";
    let left = browser.eval(left).await;
    let at = |id: &str| left[id].as_f64().unwrap();
    assert!(at("input posts") < at("operator words") && at("operator words") < at("operator long"));
    assert_eq!(at("output words"), at("output file"), "outputs stand at one edge");
    // A second after the batch before, ten records: ten a second.
    site.board.publish_batch(BatchReport { detail: Arc::new(detail()), ..report(8) });
    browser.wait("[...document.querySelectorAll('.rate')].some((t) => t.textContent === '10/s')").await;
    browser.wait("[...document.querySelectorAll('.rate')].some((t) => t.textContent === '2/s')").await;
    browser.eval("document.querySelector('.node[data-id=\"operator words\"]').focus()").await;
    browser.press("\u{E007}").await;
    browser.wait("document.querySelector('.detail h2')?.textContent === 'words'").await;
    browser.wait("/2 Rows, 2.1 ms/.test(document.querySelector('.detail').textContent)").await;
    let detail = browser.eval("return document.querySelector('.detail').textContent").await;
    for wanted in ["SELECT word, count(*) FROM posts", "state.\"words\"", "Reads: posts", "Read by: long, words"] {
        assert!(detail.as_str().unwrap().contains(wanted), "{wanted} in {detail}");
    }
    browser.eval("document.querySelector('.node[data-id=\"output words\"]').dispatchEvent(new MouseEvent('click', { bubbles: true }))").await;
    browser.wait("/words: state/.test(document.querySelector('.detail pre')?.textContent)").await;
    browser
        .eval("[...document.querySelectorAll('.detail a')].find((a) => a.textContent === 'Show as a chart').click()")
        .await;
    browser.wait("location.hash === '#live/words' && document.querySelectorAll('.bars li').length === 2").await;
    site.close().await;
}

/// Text of the stream in every place of every page that shows some.
fn hostile(site: &Site) {
    let letters: Vec<_> = PAYLOADS
        .iter()
        .map(|payload| DeadLetter {
            stream: (*payload).to_string(),
            partition: PartitionId::new(payload),
            offset: Offset(1),
            batch: None,
            reason: (*payload).to_string(),
            raw: payload.as_bytes().to_vec(),
        })
        .collect();
    let work = |payload: &&str| OperatorReport {
        name: (*payload).to_string(),
        rows: 1,
        busy_us: 5,
        steps: ["a", payload].map(|name| OperatorReport { name: name.to_string(), ..OperatorReport::default() }).into(),
        ..OperatorReport::default()
    };
    for (batch, letters) in (1..).zip(letters.chunks(20)) {
        let detail = BatchDetail {
            letters: LetterReport::first(letters),
            operators: PAYLOADS.iter().map(work).collect(),
            outputs: PAYLOADS.iter().map(work).collect(),
            watermarks: PAYLOADS.iter().map(|p| ((*p).to_string(), tidemill_core::Timestamp(5))).collect(),
            ..BatchDetail::default()
        };
        site.board.publish_batch(BatchReport { detail: Arc::new(detail), ..report(batch) });
    }
    let node = |payload: &str, kind, id: String, inputs| GraphNode {
        id,
        name: payload.to_string(),
        kind,
        what: payload.to_string(),
        inputs,
        stateful: true,
        definition: Some(payload.to_string()),
        columns: vec![GraphColumn { name: payload.to_string(), kind: payload.to_string() }],
        plan: Some(payload.to_string()),
    };
    let ops = PAYLOADS.iter().map(|p| node(p, NodeKind::Operator, format!("operator {p}"), vec![]));
    let outs = PAYLOADS.iter().map(|p| node(p, NodeKind::Output, format!("output {p}"), vec![format!("operator {p}")]));
    site.board.publish_graph(Graph { nodes: ops.chain(outs).collect() });
    for payload in PAYLOADS {
        site.board.update_input(payload, 0, |input| {
            input.describe = payload.to_string();
            input.state = payload.to_string();
            input.failed = Some(payload.to_string());
            input.last_error = Some(payload.to_string());
            let partition = PartitionId::new(payload);
            input.partitions = vec![PartitionReport { partition, position: Offset(1), lag: None }];
        });
    }
    for payload in PAYLOADS {
        site.board.publish_alert(hostile_alert(payload));
    }
    let count = i64::try_from(PAYLOADS.len()).unwrap();
    let texts = || Arc::new(StringArray::from(PAYLOADS.to_vec())) as _;
    let numbers = || Arc::new(Int64Array::from_iter_values((1..=count).rev())) as _;
    let degrees = |at: f64| Arc::new(Float64Array::from(vec![at; PAYLOADS.len()])) as _;
    let rows = [
        (PAYLOADS[0], texts()),
        (PAYLOADS[8], texts()),
        ("n", numbers()),
        ("lat", degrees(1.0)),
        ("lon", degrees(2.0)),
    ];
    site.publish(PAYLOADS[8], 1, RecordBatch::try_from_iter(rows).unwrap());
}

/// An alert of which everything that is text is this one.
fn hostile_alert(payload: &str) -> AlertReport {
    let text = || payload.to_string();
    let like = alert();
    AlertReport {
        name: text(),
        view: text(),
        severity: text(),
        condition: text(),
        now: like.now.into_iter().map(|now| AlertNow { key: text(), message: text(), ..now }).collect(),
        silences: like.silences.into_iter().map(|of| Silence { key: Some(text()), why: text(), ..of }).collect(),
        changes: like.changes.into_iter().map(|of| AlertChange { key: text(), message: text(), ..of }).collect(),
        ..like
    }
}

#[tokio::test]
async fn hostile_text_is_only_text_on_every_page() {
    with_browser(hostile_pages).await;
}

async fn hostile_pages(browser: Browser) {
    let site = Site::open().await;
    hostile(&site);
    site.board.update_program(|p| p.phase = Phase::Running);
    browser.go(&format!("http://{}/", site.address)).await;
    let shown = async |page: &str, ready: &str, selector: &str| {
        browser.eval(&format!("location.hash = {}", json!(page))).await;
        browser.wait(ready).await;
        let found = browser
            .eval(&format!("return [...document.querySelectorAll({selector:?})].map((e) => e.textContent)"))
            .await;
        texts(&found).into_iter().map(str::to_string).collect::<Vec<_>>()
    };
    let mut raw = Vec::new();
    for batch in 1..=3 {
        let ready = format!("document.querySelector('.detail h2')?.textContent === 'Batch {batch}'");
        raw.extend(shown(&format!("batches/{batch}"), &ready, ".detail code").await);
        nothing_strange(&browser).await;
    }
    assert_eq!(raw, PAYLOADS);
    let names = shown("streams", "document.querySelectorAll('.streams .card').length === 56", ".streams .state").await;
    let mut sorted = PAYLOADS.to_vec();
    sorted.sort_unstable();
    assert_eq!(names, sorted);
    nothing_strange(&browser).await;
    let titles = shown("lineage", "document.querySelectorAll('.node').length === 112", ".node.operator title").await;
    let mut titles: Vec<_> = titles.iter().map(|title| title.split('\n').next().unwrap()).collect();
    let mut first: Vec<_> = PAYLOADS.iter().map(|payload| payload.split('\n').next().unwrap()).collect();
    titles.sort_unstable();
    first.sort_unstable();
    assert_eq!(titles, first);
    for payload in [PAYLOADS[0], PAYLOADS[8], PAYLOADS[21], PAYLOADS[40]] {
        let node = format!("output {payload}");
        browser.eval(&format!("[...document.querySelectorAll('.node')].find((n) => n.dataset.id === {}).dispatchEvent(new MouseEvent('click', {{ bubbles: true }}))", json!(node))).await;
        browser.wait(&format!("document.querySelector('.detail h2')?.textContent === {}", json!(payload))).await;
        nothing_strange(&browser).await;
    }
    let cells = ".alert h2, .alert td:not(:has(*)), .alert > code";
    let all = shown("alerts", "document.querySelectorAll('.alert').length === 56", cells).await;
    for payload in PAYLOADS {
        let told = all.iter().filter(|text| *text == payload).count();
        assert_eq!(told, 7, "its name, and key and text of what is, what is silenced and what changed: {payload}");
        let condition = format!("{payload}: {payload}");
        assert!(all.contains(&condition), "{condition}");
    }
    // What is asked of an alert reaches the one of this name.
    for payload in [PAYLOADS[0], PAYLOADS[50], PAYLOADS[53]] {
        let click = format!(
            "[...document.querySelectorAll('.alert')].find((a) => a.querySelector('h2').textContent === {}).querySelector('td button').click()",
            json!(payload)
        );
        browser.eval(&click).await;
        browser
            .wait(
                "[...document.querySelectorAll('.alert [role=status]')].some((s) => s.textContent.startsWith('Asked'))",
            )
            .await;
        let asks = site.board.take_alert_asks(payload);
        assert!(matches!(&asks[..], [AlertAsk::Silence(of)] if of.key.as_deref() == Some(payload)), "{asks:?}");
        browser.eval("document.querySelectorAll('.alert [role=status]').forEach((s) => (s.textContent = ''))").await;
    }
    nothing_strange(&browser).await;
    // Every form, with hostile names of views and columns in the lists.
    browser.eval("location.hash = 'live'").await;
    browser.wait("document.getElementById('pick-form')?.value === 'map'").await;
    for form in ["bars", "lines", "table", "number", "heat", "cloud", "map"] {
        browser.eval(&format!("const s = document.getElementById('pick-form'); s.value = '{form}'; s.dispatchEvent(new Event('change'))")).await;
        let drawn =
            if ["bars", "table", "number"].contains(&form) { ".picture li, .picture td, .big" } else { ".plot canvas" };
        browser.wait(&format!("document.querySelector('{drawn}')")).await;
        nothing_strange(&browser).await;
    }
    assert_eq!(
        browser.eval("return document.getElementById('pick-view').selectedOptions[0].textContent").await,
        PAYLOADS[8]
    );
    site.close().await;
}
