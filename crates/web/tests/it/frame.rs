//! The frame around the pages: navigation, keyboard, languages, colours, sizes, and
//! a program that hangs.

use crate::{
    Site,
    api::full,
    browser::{nothing_strange, texts, with_browser},
    webdriver::Browser,
};
use serde_json::json;
use std::sync::{Arc, mpsc};
use tidemill_core::{Board, Duration, Phase, StopHandle};
use tidemill_web::Server;

const PAGES: [&str; 8] = ["overview", "live", "batches", "streams", "lineage", "alerts", "notebook", "api"];

#[tokio::test]
async fn pages_are_reached_by_link_by_address_and_by_key() {
    with_browser(pages).await;
}

async fn pages(browser: Browser) {
    let site = full().await;
    let url = format!("http://{}/", site.address);
    browser.go(&url).await;
    let current = "document.querySelector('nav a[aria-current]')?.dataset.page";
    browser.wait(&format!("{current} === 'overview'")).await;
    let names = browser.eval("return [...document.querySelectorAll('nav a')].map((a) => a.dataset.page)").await;
    assert_eq!(texts(&names), PAGES);
    for page in PAGES {
        browser.eval(&format!("document.querySelector('nav a[data-page={page}]').click()")).await;
        browser
            .wait(&format!("{current} === '{page}' && document.querySelector('#page > .of-{page}')?.children.length"))
            .await;
    }
    browser.press("[").await;
    browser.wait(&format!("{current} === 'notebook'")).await;
    browser.press("]").await;
    browser.press("]").await;
    browser.wait(&format!("{current} === 'overview'")).await;
    browser.go(&format!("{url}#streams")).await;
    browser.wait("document.querySelector('.of-streams .card')?.textContent.includes('connection refused')").await;
    browser.go(&format!("{url}#nowhere")).await;
    browser.wait("document.getElementById('page').textContent === 'There is no page of this name.'").await;
    // Whoever comes by keyboard can pass over the navigation.
    browser.eval("document.getElementById('skip').focus(); document.getElementById('skip').click()").await;
    assert_eq!(browser.eval("return document.activeElement.id").await, "page");
    nothing_strange(&browser).await;
    site.close().await;
}

#[tokio::test]
async fn every_page_fits_a_phone_and_a_wall_in_both_languages_and_both_colours() {
    with_browser(sizes).await;
}

async fn sizes(browser: Browser) {
    let site = full().await;
    let url = format!("http://{}/", site.address);
    browser.go(&url).await;
    browser.wait("document.querySelector('.figure output')").await;
    for (width, height, scheme) in [(360, 740, "light"), (1280, 800, "dark"), (3840, 2160, "dark")] {
        browser.look(width, height, scheme).await;
        for page in PAGES {
            browser.eval(&format!("location.hash = '{page}'")).await;
            browser.wait(&format!("document.querySelector('#page > .of-{page}')?.children.length")).await;
            browser.wait("document.documentElement.scrollWidth <= innerWidth").await;
            // What is written can be told from what it is written on.
            let names = "getComputedStyle(document.body)";
            let contrast = format!(
                "const light = (c) => {{ const [r, g, b] = c.match(/[\\d.]+/g).map((v) => {{ v /= 255; return v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4; }}); return .2126 * r + .7152 * g + .0722 * b; }};
                 const [a, b] = [light({names}.color), light({names}.backgroundColor)].sort((x, y) => y - x);
                 return (a + .05) / (b + .05);"
            );
            assert!(browser.eval(&contrast).await.as_f64().unwrap() > 7.0, "{page} {scheme}");
        }
    }
    assert_eq!(browser.eval("return document.documentElement.lang").await, "en");
    browser.eval("document.getElementById('tongue').click()").await;
    browser.wait("document.documentElement.lang === 'zh-Hans'").await;
    browser.eval("location.hash = 'overview'").await;
    browser.wait("document.querySelector('.figure h2')?.textContent === '记录/秒'").await;
    browser.wait("document.getElementById('phase').textContent === '运行中'").await;
    // Both choices are kept for the next time.
    browser.eval("document.getElementById('theme').click()").await;
    browser.go(&format!("{url}?again")).await;
    browser.wait("document.querySelector('.figure h2')?.textContent === '记录/秒'").await;
    assert_eq!(browser.eval("return document.documentElement.dataset.theme").await, "light");
    assert_eq!(browser.eval("return getComputedStyle(document.body).backgroundColor").await, "rgb(245, 246, 244)");
    nothing_strange(&browser).await;
    site.close().await;
}

#[tokio::test]
async fn a_program_that_commits_nothing_is_shown_as_stalled() {
    with_browser(stalled).await;
}

async fn stalled(browser: Browser) {
    let site = Site::open_with("127.0.0.1:0", |server| server.stall_after(Duration::from_secs(2))).await;
    site.board.update_program(|p| p.phase = Phase::Running);
    site.board.publish_batch(crate::report(1));
    browser.go(&format!("http://{}/", site.address)).await;
    // However long the browser takes, batches come until it shows them.
    let well = "return document.getElementById('phase')?.className === 'phase good'";
    let mut batches = 2..;
    while browser.eval(well).await != true {
        site.board.publish_batch(crate::report(batches.next().unwrap()));
    }
    // From here on the program hangs: its phase is still `running`.
    browser.wait("document.getElementById('phase').textContent === 'stalled'").await;
    assert_eq!(browser.eval("return document.getElementById('phase').className").await, "phase bad");
    browser.wait("/stalled: no batch for \\d+ s/.test(document.getElementById('health').textContent)").await;
    browser.wait("document.querySelector('.figure output').textContent === '0'").await;
    let again = "return document.getElementById('phase').className === 'phase good' && document.getElementById('health').hidden";
    while browser.eval(again).await != true {
        site.board.publish_batch(crate::report(batches.next().unwrap()));
    }
    site.close().await;
}

#[tokio::test]
async fn a_process_that_is_frozen_is_not_shown_as_well() {
    with_browser(frozen).await;
}

async fn frozen(browser: Browser) {
    let (tell, told) = std::sync::mpsc::channel();
    let (stop, stopping) = StopHandle::new();
    // A thread of its own, which stands still as that of a stopped process does.
    let server = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let board = Arc::new(Board::default());
            board.update_program(|p| p.phase = Phase::Running);
            let server = Server::bind("127.0.0.1:0".parse().unwrap(), board).await.unwrap();
            tell.send((server.address(), tokio::runtime::Handle::current())).unwrap();
            server.run(stopping).await.unwrap();
        });
    });
    let (address, runtime) = told.recv().unwrap();
    browser.go(&format!("http://{address}/")).await;
    browser.wait("document.getElementById('phase').className === 'phase good'").await;
    let (thaw, thawed) = mpsc::channel::<()>();
    runtime.spawn(async move { thawed.recv() });
    browser.wait("document.getElementById('phase').textContent === 'no answer'").await;
    let shown = browser
        .eval("return [document.getElementById('phase').className, document.getElementById('lost').textContent]")
        .await;
    assert_eq!(shown[0], "phase bad");
    assert!(shown[1].as_str().unwrap().contains("Nothing has been heard from the program for"), "{shown}");
    thaw.send(()).unwrap();
    browser
        .wait("document.getElementById('phase').className === 'phase good' && document.getElementById('lost').hidden")
        .await;
    assert_eq!(browser.console().await, Vec::<serde_json::Value>::new());
    stop.stop();
    server.join().unwrap();
}

#[tokio::test]
async fn a_day_of_batches_leaves_the_pages_as_large_as_an_hour_does() {
    with_browser(a_day).await;
}

/// Opens every page over a store that is fed a day of batches: events, not time.
async fn a_day(browser: Browser) {
    let site = full().await;
    browser.go(&format!("http://{}/", site.address)).await;
    browser.wait("document.querySelector('.figure output')").await;
    let start = "
        const { Store } = await import('/assets/frame/store.js');
        const store = new Store();
        store.wait = null;
        store.phase({ name: 'day', started: 1, now: 1, phase: 'running', error: null, records_in: 0, refused: 0, late: 0,
            batches: 0, letters: {}, views: ['words', 'day'], health: { ready: true, state: 'running', reason: '' } });
        document.getElementById('page').replaceChildren();
        for (const name of ['overview', 'live', 'batches', 'streams', 'lineage', 'alerts']) {
            const root = document.getElementById('page').appendChild(document.createElement('div'));
            const { open } = await import(`/assets/${name}/page.js`);
            store.listen(open(root, { store, go() {}, rest: () => (name === 'live' ? 'day' : ''), colours: () => ({}) }));
        }
        window.feed = (from, to) => {
            for (let minute = from; minute < to; minute++) {
                const reports = Array.from({ length: 60 }, (_, i) => ({ batch: minute * 60 + i, time: (minute * 60 + i) * 1e6,
                    records_in: 10, rows_out: 3, refused: 0, letters: {}, late: 0, scheduling_delay_us: 100,
                    processing_us: 1000 + ((i * 7919) % 500), queued: 0, state_bytes: 5, state_spilled: 0, rate_limit: null,
                    watermark: minute * 6e7 }));
                store.batch({ fresh: false, reports });
                const rows = Array.from({ length: 20 }, (_, i) => [`word ${(minute * 31 + i * 7) % 997}`, i * minute]);
                store.view({ name: 'day', batch: minute, time: minute * 6e7, total: 20, cut: 0, rows,
                    columns: [{ name: 'word', type: 'text' }, { name: 'n', type: 'number' }] });
                store.takeInputs([{ stream: 's', index: 0, describe: '', state: 'connected', failed: null, records: minute, bytes: 1,
                    last: 1, errors: 0, reconnects: 0, last_error: null, lag: 1, partitions: [] }]);
                store.tell('tick');
            }
            return [store.reports.length, store.history.points.length, store.views.size];
        };";
    // Movements end by time, which stands still here.
    let calm = json!({ "features": [{ "name": "prefers-reduced-motion", "value": "reduce" }] });
    browser.devtools("Emulation.setEmulatedMedia", &calm).await;
    browser.promised(start).await;
    let measure = async || {
        browser.devtools("HeapProfiler.collectGarbage", &json!({})).await;
        let heap = browser.devtools("Runtime.getHeapUsage", &json!({})).await["usedSize"].as_f64().unwrap();
        let nodes = browser.devtools("Memory.getDOMCounters", &json!({})).await["nodes"].as_u64().unwrap();
        (heap, nodes)
    };
    // Four hours fill every list; twenty more change nothing.
    for minute in (0..260).step_by(20) {
        browser.eval(&format!("return feed({minute}, {})", minute + 20)).await;
    }
    assert_eq!(browser.eval("return feed(0, 0)").await, json!([600, 120, 1]));
    let (heap, nodes) = measure().await;
    for minute in (260..1440).step_by(20) {
        browser.eval(&format!("return feed({minute}, {})", minute + 20)).await;
    }
    let (after, nodes_after) = measure().await;
    println!("heap {:.1} MB, then {:.1} MB; {nodes} nodes, then {nodes_after}", heap / 1e6, after / 1e6);
    assert!(after < heap + 2e6, "{heap} bytes, and {after} after a day");
    assert!(nodes_after < nodes + 2000, "{nodes} nodes, and {nodes_after} after a day");
    site.close().await;
}
