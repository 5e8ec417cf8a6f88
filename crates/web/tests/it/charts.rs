//! Live charts in the browser: forms, the past, files, and the wall.

use crate::{
    Site,
    browser::{nothing_strange, with_browser},
    webdriver::Browser,
};
use arrow_array::{ArrayRef, Float64Array, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray};
use serde_json::json;
use std::sync::Arc;
use tidemill_core::{BatchId, Phase, Timestamp, ViewSnapshot};

fn texts_of<'a>(values: impl IntoIterator<Item = &'a str>) -> ArrayRef {
    Arc::new(StringArray::from_iter_values(values))
}

fn numbers_of(values: impl IntoIterator<Item = i64>) -> ArrayRef {
    Arc::new(Int64Array::from_iter_values(values))
}

/// Views of every kind of columns.
fn show_all(site: &Site, batch: u64) {
    let n = i64::try_from(batch).unwrap();
    let publish = |name: &str, columns: Vec<(&str, ArrayRef)>| {
        site.publish(name, batch, RecordBatch::try_from_iter(columns).unwrap());
    };
    site.show("top", batch, &[("#sea", 30 + n), ("#tide", 20), ("=cmd|' /C calc'!A0", 10)]);
    publish("total", vec![("posts", numbers_of([1_234_567 + n]))]);
    let minutes = TimestampMicrosecondArray::from_iter_values((0..5).map(|m| m * 60_000_000));
    publish("per_minute", vec![("minute", Arc::new(minutes) as ArrayRef), ("posts", numbers_of([5, 9, 7, n, 3]))]);
    let places = [("Amsterdam", 52.37, 4.9), ("上海", 31.23, 121.47), ("Lima", -12.05, -77.04)];
    let degrees =
        |of: fn(&(&str, f64, f64)) -> f64| Arc::new(Float64Array::from_iter_values(places.iter().map(of))) as _;
    publish(
        "places",
        vec![
            ("city", texts_of(places.iter().map(|p| p.0))),
            ("latitude", degrees(|p| p.1)),
            ("longitude", degrees(|p| p.2)),
            ("posts", numbers_of([10, 50, 5])),
        ],
    );
    publish(
        "by_hour",
        vec![
            ("day", texts_of(["Mon", "Mon", "Tue", "Tue"])),
            ("part", texts_of(["am", "pm", "am", "pm"])),
            ("posts", numbers_of([1, 2, 3, n])),
        ],
    );
    publish("notes", vec![("who", texts_of(["a", "b"])), ("what", texts_of(["x", "y"]))]);
}

/// Waits until something other than the ground is drawn on a canvas.
const DRAWN: &str = "(() => { const c = document.querySelector('.plot canvas'); if (!c) return false;
    const copy = document.createElement('canvas').getContext('2d', { willReadFrequently: true });
    copy.drawImage(c, 0, 0, 300, 150); const p = copy.getImageData(0, 0, 300, 150).data;
    const seen = new Set(); for (let i = 0; i < p.length; i += 4) if (p[i + 3] > 40) seen.add(p[i] * 65536 + p[i + 1] * 256 + p[i + 2]);
    return seen.size > 3; })()";

#[tokio::test]
async fn a_view_is_shown_in_the_form_that_its_columns_ask_for() {
    with_browser(forms).await;
}

async fn forms(browser: Browser) {
    let site = Site::open().await;
    site.board.update_program(|p| p.phase = Phase::Running);
    show_all(&site, 1);
    browser.go(&format!("http://{}/#live/top", site.address)).await;
    let form = "document.getElementById('pick-form')?.value";
    for (view, wanted) in [
        ("top", "bars"),
        ("total", "number"),
        ("per_minute", "lines"),
        ("places", "map"),
        ("by_hour", "heat"),
        ("notes", "table"),
    ] {
        browser.eval(&format!("location.hash = 'live/{view}'")).await;
        browser
            .wait(&format!("document.querySelector('.stage h2')?.textContent === '{view}' && {form} === '{wanted}'"))
            .await;
        match wanted {
            "bars" => browser.wait("document.querySelectorAll('.bars li').length === 3").await,
            "number" => browser.wait("document.querySelector('.big output').textContent === '1,234,568'").await,
            "table" => browser.wait("document.querySelectorAll('.picture tbody tr').length === 2").await,
            _ => browser.wait(DRAWN).await,
        };
    }
    // Another form is chosen, and kept for its view.
    let pick = async |form: &str| {
        let script = format!(
            "const s = document.getElementById('pick-form'); s.value = '{form}'; s.dispatchEvent(new Event('change'))"
        );
        browser.eval(&script).await;
    };
    browser.eval("location.hash = 'live/top'").await;
    browser.wait("document.querySelector('.stage h2').textContent === 'top'").await;
    for form in ["lines", "cloud", "heat"] {
        pick(form).await;
        browser.wait(DRAWN).await;
    }
    pick("map").await;
    browser
        .wait("/needs columns of latitude and longitude/.test(document.querySelector('.picture').textContent)")
        .await;
    pick("table").await;
    browser.wait("document.querySelectorAll('.picture tbody tr').length === 3").await;
    pick("cloud").await;
    browser.wait(DRAWN).await;
    browser.eval("location.hash = 'live/total'").await;
    browser.wait("document.querySelector('.big')").await;
    browser.eval("location.hash = 'live/top'").await;
    browser.wait(&format!("{form} === 'cloud'")).await;
    nothing_strange(&browser).await;
    site.close().await;
}

#[tokio::test]
async fn a_chart_is_held_and_goes_back_along_the_batches() {
    with_browser(past).await;
}

async fn past(browser: Browser) {
    let site = Site::open().await;
    site.board.update_program(|p| p.phase = Phase::Running);
    let show = |batch: u64| site.show("top", batch, &[("sea", i64::try_from(batch).unwrap())]);
    let shown = "document.querySelector('.bars .count')?.textContent";
    // What was shown before the page was opened is there as well: the server remembers it.
    let mut live = crate::http::Live::open(site.address).await;
    for batch in 1..=5 {
        show(batch);
        live.until("view", |view| view["batch"] == batch).await;
    }
    browser.go(&format!("http://{}/#live/top", site.address)).await;
    browser.wait(&format!("{shown} === '5' && document.querySelector('.moment').max === '4'")).await;
    let back = "const s = document.querySelector('.moment'); s.value = '1'; s.dispatchEvent(new Event('input'))";
    browser.eval(back).await;
    browser.wait(&format!("{shown} === '2'")).await;
    show(6);
    browser.wait("document.querySelector('.moment').max === '5'").await;
    assert_eq!(browser.eval(&format!("return {shown}")).await, "2", "what is looked at stays");
    assert_eq!(browser.eval("return document.getElementById('hold').textContent").await, "Go on");
    browser.eval("document.getElementById('hold').click()").await;
    browser.wait(&format!("{shown} === '6'")).await;
    browser.eval("document.getElementById('hold').click()").await;
    show(7);
    browser.wait("document.querySelector('.moment').max === '6'").await;
    assert_eq!(browser.eval(&format!("return {shown}")).await, "6", "held");
    browser.eval("document.getElementById('hold').click()").await;
    browser.wait(&format!("{shown} === '7'")).await;
    // A long past is bounded here as well.
    for batch in 8..300 {
        let snapshot = ViewSnapshot {
            name: "top".to_string(),
            batch: BatchId(batch),
            time: Timestamp(i64::try_from(batch).unwrap() * 1_000_000),
            rows: site.board.view("top").unwrap().rows.clone(),
        };
        site.board.publish_view(snapshot);
        live.until("view", |view| view["batch"] == batch).await;
    }
    browser.go(&format!("http://{}/?again#live/top", site.address)).await;
    browser.wait("document.querySelector('.moment')?.max === '239'").await;
    assert!(!browser.console().await.iter().any(|line| line["level"] == "SEVERE"));
    site.close().await;
}

#[tokio::test]
async fn a_chart_is_saved_as_a_picture_and_its_rows_as_a_table() {
    with_browser(files).await;
}

async fn files(browser: Browser) {
    let site = Site::open().await;
    site.board.update_program(|p| p.phase = Phase::Running);
    site.show(
        "../a <b>",
        3,
        &[("#sea, \"salt\"", 30), ("=cmd|' /C calc'!A0", 20), ("<script>alert(1)</script>{a|b}", 10)],
    );
    browser.go(&format!("http://{}/#live", site.address)).await;
    browser.wait("document.querySelectorAll('.bars li').length === 3").await;
    // Files are taken where the page hands them to the browser.
    browser
        .eval(
            "window.saved = []; const make = URL.createObjectURL;
             URL.createObjectURL = (blob) => { saved.push({ blob }); return make(blob); };
             HTMLAnchorElement.prototype.click = function () { saved.at(-1).name = this.download; };",
        )
        .await;
    let file = async |kind: &str| {
        browser.eval(&format!("saved.length = 0; document.querySelector('[data-kind={kind}]').click()")).await;
        browser.wait("saved[0]?.name").await
    };
    assert_eq!(file("csv").await, "_a_b_-3.csv");
    let csv = browser.promised("return await saved[0].blob.text()").await;
    let wanted =
        "word,count\r\n\"#sea, \"\"salt\"\"\",30\r\n'=cmd|' /C calc'!A0,20\r\n<script>alert(1)</script>{a|b},10\r\n";
    assert_eq!(csv, wanted);
    for form in ["bars", "lines", "cloud", "heat", "number"] {
        let pick = format!(
            "const s = document.getElementById('pick-form'); s.value = '{form}'; s.dispatchEvent(new Event('change'))"
        );
        browser.eval(&pick).await;
        assert_eq!(file("svg").await, "_a_b_-3.svg", "{form}");
        let svg = browser.promised("return await saved[0].blob.text()").await;
        let svg = svg.as_str().unwrap();
        assert!(svg.starts_with("<svg") && svg.len() > 500, "{form}: {svg}");
        assert!(!svg.contains("<script") && !svg.contains("<b>"), "{form}: text is text in a file, too: {svg}");
        if form == "bars" {
            assert!(svg.contains("&lt;script&gt;alert(1)&lt;/scrip"), "{svg}");
        }
        assert_eq!(file("png").await, "_a_b_-3.png", "{form}");
        let png = browser
            .promised(
                "return [...new Uint8Array(await saved[0].blob.arrayBuffer())].slice(0, 8).concat(saved[0].blob.size)",
            )
            .await;
        assert_eq!(png.as_array().unwrap()[..8], json!([137, 80, 78, 71, 13, 10, 26, 10]).as_array().unwrap()[..]);
        assert!(png[8].as_u64().unwrap() > 3000, "{form}: {png}");
    }
    assert_eq!(browser.eval("return window.__pwned === undefined").await, true);
    assert_eq!(browser.console().await, Vec::<serde_json::Value>::new());
    site.close().await;
}

#[tokio::test]
async fn the_wall_shows_the_chart_and_nothing_else() {
    with_browser(wall).await;
}

async fn wall(browser: Browser) {
    let site = Site::open().await;
    site.board.update_program(|p| p.phase = Phase::Running);
    show_all(&site, 1);
    browser.go(&format!("http://{}/#live/top", site.address)).await;
    browser.look(1280, 720, "dark").await;
    browser.wait("document.querySelectorAll('.bars li').length === 3").await;
    let visible = "const shown = (e) => e.getClientRects().length > 0; return ['header', 'nav', '.past', '.bars'].map((s) => shown(document.querySelector(s)))";
    assert_eq!(browser.eval(visible).await, json!([true, true, true, true]));
    browser
        .eval("[...document.querySelectorAll('.toolbar button')].find((b) => b.textContent === 'Wall').click()")
        .await;
    browser.wait("document.body.classList.contains('wall')").await;
    assert_eq!(browser.eval(visible).await, json!([false, false, false, true]));
    browser.wait("document.documentElement.scrollHeight <= innerHeight + 1").await;
    browser.press("\u{E00C}").await;
    browser.wait("!document.body.classList.contains('wall')").await;
    assert_eq!(browser.eval(visible).await, json!([true, true, true, true]));
    site.close().await;
}
