//! The notebook's page in a browser: cells, parameters, errors, names, charts, saving, hostile text.

use crate::{
    Site,
    browser::{PAYLOADS, nothing_strange, texts, with_browser},
    http,
    notebook::{StandIn, asking, post},
    report,
    webdriver::Browser,
};
use serde_json::json;
use std::sync::Arc;

/// The page of a site whose questions are answered, with a first cell of SQL.
async fn opened(browser: &Browser) -> (Site, Arc<StandIn>) {
    let (site, stand_in) = asking(|server| server).await;
    site.show("words", 1, &[("sea", 3), ("tide", 2)]);
    site.board.publish_batch(report(1));
    browser.go(&format!("http://{}/#notebook", site.address)).await;
    browser.wait("document.querySelector('.of-notebook')?.dataset.ready").await;
    (site, stand_in)
}

/// Writes into the field of a cell, as one who types.
async fn write(browser: &Browser, cell: &str, text: &str) {
    let script = format!(
        "const field = document.querySelector({:?}); field.focus(); field.value = {}; field.setSelectionRange(field.value.length, field.value.length);
         field.dispatchEvent(new Event('input', {{ bubbles: true }}));",
        format!("{cell} textarea"),
        json!(text)
    );
    browser.eval(&script).await;
}

/// Presses a key with Control, or another, in the field of a cell.
async fn key(browser: &Browser, cell: &str, key: &str, more: &str) {
    let script = format!(
        "document.querySelector({:?}).dispatchEvent(new KeyboardEvent('keydown', {{ key: {key:?}, bubbles: true, cancelable: true, {more} }}))",
        format!("{cell} textarea")
    );
    browser.eval(&script).await;
}

const SQL: &str = ".cell.of-sql";
const CELLS: &str = "return [...document.querySelectorAll('.of-sql .result tbody tr')].map((r) => [...r.cells].map((c) => c.textContent).join('|'))";

#[tokio::test]
async fn a_cell_is_asked_with_parameters_told_its_error_and_stopped() {
    with_browser(cells).await;
}

async fn cells(browser: Browser) {
    let (site, stand_in) = opened(&browser).await;
    let first = browser.eval("return document.querySelector('.of-sql textarea').value").await;
    assert_eq!(first, "SELECT * FROM words LIMIT 10", "something to begin with");
    assert_eq!(browser.eval("return document.querySelector('.prose h2').textContent").await, "Notes");
    write(&browser, SQL, "echo {{who}}, {{least}}").await;
    browser.wait("document.querySelectorAll('.values input').length === 2").await;
    let give = "const [who, least] = document.querySelectorAll('.values input');
        who.value = \"it's '; --\"; least.value = '10';
        document.querySelectorAll('.values select')[1].value = 'number';
        for (const field of document.querySelectorAll('.values input')) field.dispatchEvent(new Event('input', { bubbles: true }));";
    browser.eval(give).await;
    key(&browser, SQL, "Enter", "ctrlKey: true").await;
    browser.wait("document.querySelector('.of-sql [data-pick=form]').value === 'bars'").await;
    let table = "const pick = document.querySelector('.of-sql [data-pick=form]'); pick.value = 'table'; pick.dispatchEvent(new Event('change'))";
    browser.eval(table).await;
    browser.wait("document.querySelectorAll('.of-sql .result tbody tr').length === 3").await;
    let rows = browser.eval(CELLS).await;
    assert_eq!(texts(&rows), ["echo {{who}}, {{least}}|0", "least Whole(10)|1", "it's '; --|2"]);
    browser.wait("/3 rows · 7 read · .* · batch 1$/.test(document.querySelector('.of-sql .said').textContent)").await;

    // An error is marked where it stands, and told to those who do not see.
    write(&browser, SQL, "wrong\nSELECT vlaue FROM words").await;
    key(&browser, SQL, "Enter", "shiftKey: true").await;
    browser.wait("document.querySelector('.of-sql .under mark')?.textContent === 'vlaue'").await;
    let told = browser.eval("const field = document.querySelector('.of-sql textarea'); return [field.getAttribute('aria-invalid'), document.getElementById(field.getAttribute('aria-describedby')).textContent]").await;
    assert_eq!(told, json!(["true", "Line 2, column 8: there is no column `vlaue`; did you mean `value`?"]));
    assert_eq!(browser.eval("return document.querySelector('.of-sql .result').hidden").await, true);
    // What is typed next is not wrong yet.
    write(&browser, SQL, "endless").await;
    assert_eq!(browser.eval("return document.querySelectorAll('.of-sql .under mark').length").await, 0);

    // A long one shows how far it is, and is stopped.
    browser.eval("document.querySelector('.of-sql [data-tool=run]').click()").await;
    browser.wait("/^7 rows read/.test(document.querySelector('.of-sql .said').textContent)").await;
    assert_eq!(browser.eval("return document.querySelector('.of-sql').getAttribute('aria-busy')").await, "true");
    browser.eval("document.querySelector('.of-sql [data-tool=cancel]').click()").await;
    browser.wait("document.querySelector('.of-sql .said').textContent === 'stopped'").await;
    browser.wait("document.querySelector('.of-sql [data-tool=cancel]').hidden").await;
    assert!(stand_in.asked.lock().last().unwrap().1.is_stopped());

    write(&browser, SQL, "many").await;
    browser.eval("document.querySelector('[data-tool=run_all]').click()").await;
    browser
        .wait("/The first 1000 rows; there are more\\./.test(document.querySelector('.of-sql .more').textContent)")
        .await;
    nothing_strange_but_refused(&browser).await;
    site.close().await;
}

/// As [`nothing_strange`], where the browser has noted answers that were refusals on purpose.
async fn nothing_strange_but_refused(browser: &Browser) {
    for line in browser.console().await {
        let text = line["message"].as_str().unwrap();
        assert!(text.contains("/api/v1/") && text.contains("status of 4"), "{text}");
    }
    nothing_strange(browser).await;
}

#[tokio::test]
async fn an_answer_is_drawn_in_every_form_live_and_at_a_batch() {
    with_browser(forms).await;
}

async fn forms(browser: Browser) {
    let (site, stand_in) = opened(&browser).await;
    write(&browser, SQL, "echo {{a}} {{b}}").await;
    key(&browser, SQL, "Enter", "ctrlKey: true").await;
    browser.wait("document.querySelectorAll('.of-sql .bars li').length === 3").await;
    let choose = |form: &str| {
        format!(
            "const pick = document.querySelector('.of-sql [data-pick=form]'); pick.value = '{form}'; pick.dispatchEvent(new Event('change'))"
        )
    };
    for (form, drawn) in [
        ("lines", "canvas"),
        ("heat", "canvas"),
        ("cloud", "canvas"),
        ("number", ".big output"),
        ("table", "tbody tr"),
        ("map", ".await"),
        ("bars", ".bars li"),
    ] {
        browser.eval(&choose(form)).await;
        browser.wait(&format!("document.querySelector('.of-sql .result .picture {drawn}')")).await;
    }
    // Live: asked again after each batch, and not at a batch of the past.
    let count = || stand_in.asked.lock().len();
    let before = count();
    browser.eval("document.querySelector('.of-sql .check input').click()").await;
    browser.wait("/batch 1$/.test(document.querySelector('.of-sql .said').textContent)").await;
    assert!(count() > before);
    site.board.publish_batch(report(2));
    browser.wait("/batch 2$/.test(document.querySelector('.of-sql .said').textContent)").await;
    browser
        .eval("const at = document.getElementById('at-batch'); at.value = '1'; at.dispatchEvent(new Event('input'))")
        .await;
    browser.wait("document.querySelector('.of-sql .check input').disabled").await;
    key(&browser, SQL, "Enter", "ctrlKey: true").await;
    browser.wait("/batch 1$/.test(document.querySelector('.of-sql .said').textContent)").await;
    assert_eq!(stand_in.asked.lock().last().unwrap().0.at.map(|at| at.0), Some(1));
    nothing_strange(&browser).await;
    site.close().await;
}

#[tokio::test]
async fn names_are_offered_and_taken_by_key() {
    with_browser(names).await;
}

async fn names(browser: Browser) {
    let (site, _) = opened(&browser).await;
    let offered = "return [...document.querySelectorAll('.of-sql .names:not([hidden]) li')].map((li) => li.firstChild.textContent)";
    write(&browser, SQL, "SELECT w.n FROM words w WHERE wo").await;
    assert_eq!(browser.eval(offered).await, json!(["word", "words"]));
    let expanded = "return document.querySelector('.of-sql textarea').getAttribute('aria-expanded')";
    assert_eq!(browser.eval(expanded).await, "true");
    key(&browser, SQL, "ArrowDown", "").await;
    let chosen = "const field = document.querySelector('.of-sql textarea'); return document.getElementById(field.getAttribute('aria-activedescendant')).textContent";
    assert_eq!(browser.eval(chosen).await, "wordsview");
    key(&browser, SQL, "ArrowUp", "").await;
    key(&browser, SQL, "Enter", "").await;
    let text = "return document.querySelector('.of-sql textarea').value";
    assert_eq!(browser.eval(text).await, "SELECT w.n FROM words w WHERE word");
    assert_eq!(browser.eval(expanded).await, "false");
    write(&browser, SQL, "SELECT * FROM words w WHERE w.").await;
    assert_eq!(browser.eval(offered).await, json!(["word", "n"]));
    key(&browser, SQL, "Escape", "").await;
    assert_eq!(browser.eval(offered).await, json!([]));
    // A text is no name, and Control-Space asks where no word was begun.
    write(&browser, SQL, "SELECT 'wo").await;
    assert_eq!(browser.eval(offered).await, json!([]));
    write(&browser, SQL, "").await;
    key(&browser, SQL, " ", "ctrlKey: true").await;
    assert_eq!(browser.eval(offered).await[0], "words");
    nothing_strange(&browser).await;
    site.close().await;
}

#[tokio::test]
async fn a_notebook_is_one_file_and_two_browsers_do_not_overwrite_it() {
    with_browser(saved).await;
}

async fn saved(browser: Browser) {
    let (site, _) = opened(&browser).await;
    let address = site.address;
    // What is written is read again as it was, whatever is in it.
    let round = "const { parse, write } = await import('/assets/notebook/file.js');
        const book = { at: 17, parameters: { who: 'it\\'s \"x\"\\n```', n: 10, yes: true }, cells: [
            { kind: 'text', text: '# A\\n\\n```js\\nx\\n```' }, { kind: 'text', text: 'b <!-- x --> **c**' },
            { kind: 'sql', text: 'SELECT 1\\n```\\n-- ````', form: 'bars', label: 'a b=c', number: '数', live: true }, { kind: 'sql', text: '' }] };
        const text = write(book);
        const again = parse(text);
        return [JSON.stringify(again.cells) === JSON.stringify(book.cells), JSON.stringify(again.parameters) === JSON.stringify(book.parameters),
            again.at === 17, write(again) === text, text.includes('````js') ? 'longer' : 'kept'];";
    assert_eq!(browser.promised(round).await, json!([true, true, true, true, "kept"]));

    write(&browser, SQL, "echo {{who}}").await;
    browser.eval("document.querySelector('[data-tool=save]').click()").await;
    browser.wait("/^Give the notebook a name/.test(document.querySelector('.of-notebook .notice').textContent)").await;
    browser.eval("const name = document.getElementById('book-name'); name.value = 'tides'; name.dispatchEvent(new Event('input'))").await;
    browser.eval("const who = document.querySelector('.values input'); who.value = 'sea'; who.dispatchEvent(new Event('input'))").await;
    browser.eval("document.querySelector('[data-tool=save]').click()").await;
    browser.wait("document.querySelector('.of-notebook .notice').textContent === 'Saved as tides.notebook.md.'").await;
    let kept = http::get(address, "/api/v1/notebooks/tides").await.json();
    let text = kept["text"].as_str().unwrap();
    for part in ["```parameters\nwho = \"sea\"\n```", "# Notes", "```sql\necho {{who}}\n```"] {
        assert!(text.contains(part), "{part} in {text}");
    }
    // By its address, in a page that has no draft.
    browser.eval("sessionStorage.clear()").await;
    browser.go(&format!("http://{address}/?again#notebook/tides")).await;
    browser.wait("document.querySelector('.of-sql textarea')?.value === 'echo {{who}}'").await;
    assert_eq!(browser.eval("return document.querySelector('.values input').value").await, "sea");
    // Another browser is faster.
    let faster = json!({ "text": "# faster", "revision": kept["revision"] });
    assert_eq!(post(address, "/api/v1/notebooks/tides", &faster).await.status, 200);
    write(&browser, SQL, "echo slower").await;
    browser.eval("document.querySelector('[data-tool=save]').click()").await;
    browser.wait("/changed meanwhile/.test(document.querySelector('.of-notebook .notice.bad')?.textContent)").await;
    assert_eq!(http::get(address, "/api/v1/notebooks/tides").await.json()["text"], "# faster");
    assert_eq!(browser.eval("return document.querySelector('.of-sql textarea').value").await, "echo slower");
    // What was not saved is there when the page is turned and turned back.
    browser.wait("/slower/.test(sessionStorage.getItem('tidemill.notebook'))").await;
    browser.eval("location.hash = 'streams'").await;
    browser.wait("document.querySelector('#page > .of-streams')").await;
    browser.eval("location.hash = 'notebook'").await;
    browser.wait("document.querySelector('.of-sql textarea')?.value === 'echo slower'").await;
    nothing_strange_but_refused(&browser).await;
    site.close().await;
}

#[tokio::test]
async fn hostile_text_in_rows_and_in_markdown_is_text() {
    with_browser(hostile).await;
}

async fn hostile(browser: Browser) {
    let (site, _) = opened(&browser).await;
    let address = site.address;
    // As text of a file, which anyone may have written, with links that lead where none may.
    let links = [
        "javascript:window.__pwned=1",
        "JaVaScRiPt:window.__pwned=1",
        "data:text/html,x",
        "//evil.example",
        "/api/v1/x",
        "file:///etc/passwd",
        "vbscript:x",
        "blob:x",
        "https:evil.example",
        "#x\"onclick=\"y",
    ];
    let mut text: String = links.iter().map(|to| format!("[go]({to})\n\n")).collect();
    for payload in PAYLOADS {
        text += &format!(
            "{payload}\n\n- {payload}\n\n> {payload}\n\n# {payload}\n\n**{payload}** `{payload}` [{payload}]({payload})\n\n<!-- cell -->\n\n"
        );
    }
    text += "```sql form=bars\"><script>window.__pwned=1</script> label=%3Cscript%3E\necho {{who}}\n```\n";
    let book = json!({ "text": text, "revision": null });
    assert_eq!(post(address, "/api/v1/notebooks/hostile", &book).await.status, 200);
    browser.eval("sessionStorage.clear()").await;
    browser.go(&format!("http://{address}/?hostile#notebook/hostile")).await;
    browser.wait("document.querySelectorAll('.cell').length > 50").await;
    assert_eq!(browser.eval("return document.querySelectorAll('.prose a').length").await, 0, "no link was made");
    for payload in PAYLOADS {
        let give = format!(
            "const who = document.querySelector('.values input'); who.value = {}; who.dispatchEvent(new Event('input'))",
            json!(payload)
        );
        browser.eval(&give).await;
        // A field of one line has no breaks.
        let wanted: String = payload.chars().filter(|c| !matches!(c, '\n' | '\r')).collect();
        browser.eval("document.querySelector('.of-sql [data-tool=run]').click()").await;
        let shown = format!(
            "[...document.querySelectorAll('.of-sql .bars .label, .of-sql td')].some((e) => e.textContent === {})",
            json!(wanted)
        );
        browser.wait(&shown).await;
    }
    nothing_strange(&browser).await;

    // What is no harm is drawn.
    let text = "# Title\n\nsome **bold** and *weak* `code`\n\n1. one\n2. two\n\n[web](https://example.org/a?b=c) [page](#live/words)";
    assert_eq!(post(address, "/api/v1/notebooks/plain", &json!({ "text": text, "revision": null })).await.status, 200);
    browser.eval("sessionStorage.clear()").await;
    browser.go(&format!("http://{address}/?plain#notebook/plain")).await;
    browser.wait("document.querySelectorAll('.prose li').length === 2").await;
    let drawn = browser.eval("return [...document.querySelectorAll('.prose h2, .prose strong, .prose em, .prose code, .prose a')].map((e) => `${e.tagName} ${e.textContent} ${e.getAttribute('href') ?? ''}`.trim())").await;
    assert_eq!(
        texts(&drawn),
        ["H2 Title", "STRONG bold", "EM weak", "CODE code", "A web https://example.org/a?b=c", "A page #live/words"]
    );
    assert_eq!(browser.eval("return document.querySelector('.prose a').rel").await, "noopener noreferrer");
    site.close().await;
}
