//! The page in headless Chromium.
//!
//! `TIDEMILL_WEBDRIVER` names a running ChromeDriver (`http://127.0.0.1:9515`).
//! Without it these tests are skipped, and fail if `TIDEMILL_SERVICES=required`.

use crate::{Site, report, webdriver::Browser};
use arrow_array::{RecordBatch, StringArray};
use serde_json::{Value, json};
use std::{net::SocketAddr, sync::Arc};
use tidemill_core::{Phase, Timestamp};

/// Text that a stream may bring. Each would set `__pwned` if anything took it for more than text.
pub(crate) const PAYLOADS: [&str; 56] = [
    "<script>window.__pwned=1</script>",
    "<SCRIPT>window.__pwned=1</SCRIPT>",
    "<script>alert(1)</script>",
    "<script src=\"data:text/javascript,window.__pwned=1\"></script>",
    "<script type=module>window.__pwned=1</script>",
    "</script><script>window.__pwned=1</script>",
    "<scr<script>ipt>window.__pwned=1</scr</script>ipt>",
    "<script\u{0}>window.__pwned=1</script>",
    "<img src=x onerror=\"window.__pwned=1\">",
    "<img src=x onerror=alert(1)//",
    "\"><img src=x onerror=window.__pwned=1>",
    "'><img src=x onerror=window.__pwned=1>",
    "\" onmouseover=\"window.__pwned=1\" x=\"",
    "' autofocus onfocus='window.__pwned=1' x='",
    "<svg onload=window.__pwned=1>",
    "<svg/onload=window.__pwned=1>",
    "<svg><script>window.__pwned=1</script></svg>",
    "<svg><animate onbegin=window.__pwned=1 attributeName=x dur=1s>",
    "<svg><a xlink:href=\"javascript:window.__pwned=1\"><text>x</text></a></svg>",
    "<math><mtext></table><img src=x onerror=window.__pwned=1>",
    "<body onload=window.__pwned=1>",
    "<iframe src=\"javascript:parent.__pwned=1\"></iframe>",
    "<iframe srcdoc=\"<script>parent.__pwned=1</script>\"></iframe>",
    "<object data=\"javascript:window.__pwned=1\"></object>",
    "<embed src=\"javascript:window.__pwned=1\">",
    "<a href=\"javascript:window.__pwned=1\">click</a>",
    "javascript:window.__pwned=1",
    "data:text/html,<script>parent.__pwned=1</script>",
    "<details open ontoggle=window.__pwned=1>",
    "<video><source onerror=window.__pwned=1></video>",
    "<audio src=x onerror=window.__pwned=1>",
    "<input autofocus onfocus=window.__pwned=1>",
    "<marquee onstart=window.__pwned=1>",
    "<style>@import 'data:text/css,body{display:none}';</style>",
    "<style>body{display:none}</style>",
    "<link rel=stylesheet href=\"data:text/css,body{display:none}\">",
    "<base href=\"http://evil.example/\">",
    "<meta http-equiv=refresh content=\"0;url=javascript:window.__pwned=1\">",
    "<form action=\"javascript:window.__pwned=1\"><button autofocus>x</button></form>",
    "<template><script>window.__pwned=1</script></template>",
    "<noscript><p title=\"</noscript><img src=x onerror=window.__pwned=1>\">",
    "<!--><img src=x onerror=window.__pwned=1>-->",
    "<![CDATA[<script>window.__pwned=1</script>]]>",
    "{{constructor.constructor('window.__pwned=1')()}}",
    "${window.__pwned=1}",
    "`;window.__pwned=1;//",
    "\";window.__pwned=1;//",
    "\\u003cscript\\u003ewindow.__pwned=1\\u003c/script\\u003e",
    "&lt;script&gt;window.__pwned=1&lt;/script&gt;",
    "%3Cscript%3Ewindow.__pwned=1%3C/script%3E",
    "event: view\ndata: {\"name\":\"forged\"}\n\n",
    "\u{2028}window.__pwned=1\u{2029}",
    "\u{202e}>tpircs/<1=denwp__.wodniw>tpircs<",
    "__proto__",
    "constructor",
    "日本語 👩‍👩‍👧‍👦 עברית العربية <b>\u{0301}",
];

/// Runs a test with a browser, which is ended also when the test fails.
pub(crate) async fn with_browser<F: Future<Output = ()> + Send + 'static>(test: impl FnOnce(Browser) -> F) {
    let Ok(driver) = std::env::var("TIDEMILL_WEBDRIVER") else {
        let required = std::env::var("TIDEMILL_SERVICES").is_ok_and(|services| services == "required");
        assert!(!required, "TIDEMILL_WEBDRIVER is not set, and TIDEMILL_SERVICES=required");
        println!("skipped: set TIDEMILL_WEBDRIVER to the address of a ChromeDriver, as http://127.0.0.1:9515");
        return;
    };
    let driver: SocketAddr = driver.trim_start_matches("http://").trim_end_matches('/').parse().unwrap();
    let profile = tempfile::tempdir().unwrap();
    let browser = Browser::start(driver, profile.path()).await;
    let outcome = tokio::spawn(test(browser.clone())).await;
    browser.end().await;
    if let Err(panic) = outcome {
        std::panic::resume_unwind(panic.into_panic());
    }
}

pub(crate) fn texts(value: &Value) -> Vec<&str> {
    value.as_array().unwrap().iter().map(|text| text.as_str().unwrap()).collect()
}

#[tokio::test]
async fn hostile_text_is_shown_and_never_run() {
    with_browser(hostile_text).await;
}

async fn hostile_text(browser: Browser) {
    let site = Site::open().await;
    let url = format!("http://{}/", site.address);
    browser.go(&url).await;
    browser.wait("document.getElementById('phase').textContent === 'starting'").await;

    // Before any data: the browser would refuse markup even if a script of ours tried.
    let trial = "try { document.body.insertAdjacentHTML('beforeend', '<i>x</i>'); return 'taken'; } \
                 catch (e) { return e.name; }";
    assert_eq!(browser.eval(trial).await, "TypeError");
    let _own = browser.console().await;

    let ranked: Vec<(&str, i64)> = PAYLOADS.iter().zip((1..=56).rev()).map(|(text, n)| (*text, n)).collect();
    site.show("bars", 1, &ranked);
    // Of two texts, so a table; the first payloads are its columns' names.
    let column = || Arc::new(StringArray::from(PAYLOADS.to_vec())) as _;
    let table = RecordBatch::try_from_iter([(PAYLOADS[0], column()), (PAYLOADS[8], column())]).unwrap();
    site.publish("table", 1, table);
    for payload in PAYLOADS {
        site.show(payload, 1, &[("row", 1)]);
        site.board.update_input(payload, 0, |input| {
            input.describe = payload.to_string();
            input.state = payload.to_string();
        });
    }
    let error = PAYLOADS.join(" | ");
    site.board.update_program(|p| {
        p.name = PAYLOADS[0].to_string();
        p.started = Timestamp(1);
        p.phase = Phase::Failed;
        p.error = Some(error.clone());
    });
    site.board.publish_batch(report(1));

    browser
        .wait(
            "document.querySelectorAll('.view').length === 58 && document.querySelectorAll('#inputs li').length === 56",
        )
        .await;
    let shown = async |selector: &str| {
        browser.eval(&format!("return [...document.querySelectorAll({selector:?})].map((e) => e.textContent)")).await
    };
    let card = "[...document.querySelectorAll('.view')].find((v) => v.querySelector('h2').textContent === 'bars')";
    let bars = browser.eval(&format!("return [...{card}.querySelectorAll('.label')].map((e) => e.textContent)")).await;
    assert_eq!(texts(&bars), PAYLOADS);
    assert_eq!(texts(&shown("tbody td:first-child").await), PAYLOADS);
    assert_eq!(texts(&shown("th").await), [PAYLOADS[0], PAYLOADS[8]]);
    let mut sorted = [&PAYLOADS[..], &["bars", "table"]].concat();
    sorted.sort_unstable();
    let names = shown(".view h2").await;
    let mut names = texts(&names);
    names.sort_unstable();
    assert_eq!(names, sorted);
    let mut sorted = PAYLOADS.to_vec();
    sorted.sort_unstable();
    assert_eq!(texts(&shown("#inputs b").await), sorted);
    assert_eq!(texts(&shown("#inputs .small:nth-of-type(1)").await), sorted);
    assert_eq!(shown("#error").await, json!([error]));
    assert_eq!(shown("h1").await, json!([PAYLOADS[0]]));
    let title = browser.eval("return document.title").await;
    assert_eq!(title, format!("{} · Tidemill", PAYLOADS[0]));

    // Nothing but what the page itself makes is in the document.
    nothing_strange(&browser).await;
    assert_eq!(browser.eval("return location.href").await, url);
    site.close().await;
}

/// Whether nothing is in the document but what the page itself makes, nothing was run, and no rule broken.
pub(crate) async fn nothing_strange(browser: &Browser) {
    let own = "HTML HEAD META TITLE LINK SCRIPT BODY HEADER NAV IMG H1 H2 H3 H4 SPAN P SECTION DIV MAIN ASIDE UL OL LI DL DT \
               DD OUTPUT B I A BUTTON LABEL SELECT OPTION INPUT CODE PRE CANVAS TABLE THEAD TBODY TR TH TD NOSCRIPT svg \
               path g rect text title TEXTAREA MARK STRONG EM BLOCKQUOTE HR H4 H5 H6";
    let strange = format!(
        "const own = new Set({own:?}.split(/\\s+/));
         return [...document.querySelectorAll('*')].map((e) => e.tagName).filter((tag) => !own.has(tag))"
    );
    assert_eq!(browser.eval(&strange).await, json!([]));
    let counts = "return [document.scripts.length, document.images.length, document.querySelectorAll('iframe').length]";
    assert_eq!(browser.eval(counts).await, json!([1, 1, 0]));
    // Links lead to pages, and on the page of the API to its own addresses.
    let links = "return [...document.querySelectorAll('[href]:not(head *)')].map((a) => a.getAttribute('href'))
        .filter((to) => !/^#[a-z]+(\\/[^<>\"' ]*)?$/.test(to) && !/^\\/[a-z0-9\\/.]+$/.test(to))";
    assert_eq!(browser.eval(links).await, json!([]));
    let handlers = "return [...document.querySelectorAll('*')].flatMap((e) => [...e.attributes]).filter((a) => /^on/i.test(a.name)).length";
    assert_eq!(browser.eval(handlers).await, 0);
    assert_eq!(browser.eval("return window.__pwned === undefined && frames.length === 0").await, true);
    assert!(!browser.has_alert().await);
    let foreign = "return performance.getEntriesByType('resource').map((r) => r.name).filter((n) => !n.startsWith(location.origin))";
    assert_eq!(browser.eval(foreign).await, json!([]));
    assert_eq!(browser.console().await, Vec::<Value>::new(), "the page broke a rule of its policy, or threw");
}

#[tokio::test]
async fn bars_move_to_their_new_places() {
    with_browser(moving_bars).await;
}

async fn moving_bars(browser: Browser) {
    let site = Site::open().await;
    site.board.update_program(|p| p.phase = Phase::Running);
    browser.go(&format!("http://{}/", site.address)).await;
    browser.wait("/No view has rows yet/.test(document.getElementById('views').textContent)").await;
    site.show("top", 1, &[("sea", 30), ("tide", 20), ("mill", 10)]);
    let labels = "[...document.querySelectorAll('.bars .label')].map((e) => e.textContent).join()";
    browser.wait(&format!("{labels} === 'sea,tide,mill'")).await;
    browser.eval("for (const row of document.querySelectorAll('.bars li')) row.mark = row.textContent").await;
    // Movements stand still, so that the test can look at them.
    browser
        .eval(
            "const animate = Element.prototype.animate; window.moves = [];
             Element.prototype.animate = function (frames, timing) {
                 const animation = animate.call(this, frames, timing);
                 animation.pause();
                 moves.push(animation);
                 return animation;
             };",
        )
        .await;
    let place =
        "const row = (text) => [...document.querySelectorAll('.bars li')].find((r) => r.textContent.startsWith(text));
                 const top = (text) => row(text)?.getBoundingClientRect().top;";
    let before = browser.eval(&format!("{place} return ['sea', 'tide', 'mill'].map(top)")).await;

    site.show("top", 2, &[("mill", 50), ("sea", 40), ("reef", 5)]);
    browser.wait(&format!("{labels} === 'mill,sea,reef' && moves.length > 0")).await;
    let during = browser.eval(&format!("{place} return ['sea', 'mill'].map(top)")).await;
    assert_eq!(during, json!([before[0], before[2]]), "a movement begins where the bar was");
    browser.eval("moves.forEach((move) => move.finish())").await;
    let after =
        browser.eval(&format!("{place} return ['mill', 'sea', 'reef', 'tide'].map((t) => top(t) ?? null)")).await;
    assert_eq!(after, json!([before[0], before[1], before[2], null]));
    let kept = browser.eval(&format!("{place} return ['mill', 'sea', 'reef'].map((t) => row(t).mark ?? null)")).await;
    assert_eq!(kept, json!(["mill10", "sea30", null]), "a bar is the same element in its new place");
    let fills = "return [...document.querySelectorAll('.bars .fill')].map((f) => f.style.width)";
    assert_eq!(browser.eval(fills).await, json!(["100%", "80%", "10%"]));

    // Whoever asks for less motion gets none.
    let calm = json!({ "features": [{ "name": "prefers-reduced-motion", "value": "reduce" }] });
    browser.devtools("Emulation.setEmulatedMedia", &calm).await;
    browser.eval("moves.length = 0").await;
    site.show("top", 3, &[("reef", 9), ("mill", 8), ("sea", 7)]);
    browser.wait(&format!("{labels} === 'reef,mill,sea'")).await;
    assert_eq!(browser.eval("return moves.length").await, 0);

    // A view without an order of its own is shown by size; a text that comes twice is shown twice.
    site.show("top", 4, &[("b", 1), ("a", 3), ("a", 2)]);
    browser.wait(&format!("{labels} === 'a,a,b'")).await;
    assert!(!browser.console().await.iter().any(|line| line["level"] == "SEVERE"));
    site.close().await;
}

#[tokio::test]
async fn a_lost_line_is_shown_and_found_again() {
    with_browser(lost_line).await;
}

async fn lost_line(browser: Browser) {
    let site = Site::open().await;
    let address = site.address.to_string();
    browser.go(&format!("http://{address}/")).await;
    site.show("old", 9, &[("sea", 1)]);
    (1..=9).for_each(|batch| site.board.publish_batch(report(batch)));
    site.board.update_input("lines", 0, |i| i.state = "connected".to_string());
    browser.wait("document.querySelectorAll('.view').length === 1").await;
    browser.wait("document.querySelector('.figure output').textContent === '10'").await;
    browser.wait("document.querySelector('.spark .stroke').getAttribute('d').length > 20").await;
    browser.wait("document.getElementById('totals').textContent === 'Records90Batches9Refused9Late18'").await;
    browser.wait("document.getElementById('inputs').textContent.includes('connected')").await;
    for (width, scheme) in [(400, "light"), (400, "dark"), (1600, "light"), (1600, "dark")] {
        browser.look(width, 900, scheme).await;
        browser.wait("document.documentElement.scrollWidth <= innerWidth").await;
    }
    site.close().await;
    browser.wait("!document.getElementById('lost').hidden && /No connection/.test(document.body.innerText)").await;
    assert_eq!(browser.eval("return document.querySelectorAll('.view').length").await, 1, "what was known stays");

    let site = Site::open_at(&address).await;
    site.board.update_program(|p| p.started = Timestamp(7));
    site.show("new", 1, &[("sea", 1)]);
    browser.wait("document.getElementById('lost').hidden").await;
    browser.wait("document.querySelector('.view h2').textContent === 'new'").await;
    assert_eq!(browser.eval("return document.querySelectorAll('.view').length").await, 1, "the old program's is gone");
    site.close().await;
}
