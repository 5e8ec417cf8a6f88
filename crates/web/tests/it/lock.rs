//! A page that asks for a token, in the browser.

use crate::{
    Site,
    access::{token, tokens},
    api::filled,
    browser::{nothing_strange, with_browser},
    webdriver::Browser,
};
use serde_json::json;
use tidemill_web::Role;

const ASKS: &str = "!document.getElementById('lock').hidden && document.getElementById('page').hidden";
const WORKS: &str = "document.getElementById('lock').hidden && !document.getElementById('page').hidden
    && document.getElementById('phase').textContent === 'running'";

/// Types a token and sends it.
async fn enter(browser: &Browser, token: &str) {
    browser
        .eval(&format!(
            "const field = document.getElementById('lock-token'); field.value = {token:?}; field.focus();
             document.getElementById('lock-open').click()"
        ))
        .await;
}

#[tokio::test]
async fn a_token_is_asked_for_once_and_then_the_page_works() {
    with_browser(asked).await;
}

async fn asked(browser: Browser) {
    let site = filled(Site::open_for(tokens()).await);
    let url = format!("http://{}/", site.address);
    browser.go(&url).await;
    browser.wait(ASKS).await;
    assert_eq!(browser.eval("return document.activeElement.id").await, "lock-token");
    assert_eq!(browser.eval("return document.getElementById('name').textContent").await, "Tidemill", "nothing is told");

    enter(&browser, "spaces are none").await;
    browser.wait("!document.getElementById('lock-why').hidden").await;
    enter(&browser, "a-wrong-token-0123456789").await;
    browser.wait("/does not know/.test(document.getElementById('lock-why').textContent)").await;
    assert_eq!(browser.eval(&format!("return {ASKS}")).await, true);

    let viewer = token(Role::Viewer);
    enter(&browser, &viewer).await;
    browser.wait(WORKS).await;
    browser.wait("document.querySelectorAll('.view').length === 1").await;
    let kept = "return [sessionStorage.getItem('tidemill.token'), localStorage.length, document.cookie, location.href]";
    assert_eq!(browser.eval(kept).await, json!([viewer, 0, "", url]));
    assert_eq!(browser.eval("return document.documentElement.outerHTML").await.as_str().unwrap().find("canary"), None);
    assert_eq!(browser.eval("return document.getElementById('lock-token').value").await, "");
    // The refusals are told by the browser itself.
    let refused = browser.console().await;
    assert!(refused.iter().all(|entry| entry["message"].as_str().unwrap().contains("401")), "{refused:?}");

    // Every page asks with it, and a reload keeps it.
    for page in ["live", "batches", "streams", "lineage", "api", "overview"] {
        browser.eval(&format!("location.hash = '{page}'")).await;
        browser.wait(&format!("document.querySelector('#page > .of-{page}')?.children.length")).await;
    }
    browser.eval("location.hash = 'lineage'").await;
    browser.wait("document.querySelector('.of-lineage svg g')").await;
    browser.eval("location.hash = 'batches/7'").await;
    browser.wait("document.querySelector('.of-batches')?.textContent.includes('panes')").await;
    browser.eval("location.hash = 'api'").await;
    browser.wait("document.querySelectorAll('.of-api tbody tr').length > 12").await;
    assert_eq!(browser.eval("return document.querySelectorAll('.of-api a').length").await, 0, "links bring no token");
    browser.go(&format!("{url}?again")).await;
    browser.wait(WORKS).await;

    // As other pages of ours may, by a script: the role is told, and a socket brings the token.
    let script = "
        const { ask, tell } = await import('/assets/frame/ask.js');
        const caller = await (await ask('/api/v1/caller')).json();
        const token = sessionStorage.getItem('tidemill.token');
        const socket = new WebSocket(`ws://${location.host}/api/v1/feed`, ['tidemill', `bearer.${token}`]);
        const first = await new Promise((resolve, reject) => { socket.onmessage = (m) => resolve(JSON.parse(m.data).event); socket.onerror = reject; });
        const spoken = socket.protocol;
        socket.close();
        const changed = await tell('/api/v1/program', {});
        return [caller.role, first, spoken, changed.status, changed.headers.get('allow')];";
    assert_eq!(browser.promised(script).await, json!(["viewer", "phase", "tidemill", 405, "GET"]));
    let refused = browser.console().await;
    assert!(refused.iter().all(|entry| entry["message"].as_str().unwrap().contains("405")), "{refused:?}");
    nothing_strange(&browser).await;

    // Another tab asks again: it is this one's alone.
    browser.eval("sessionStorage.clear()").await;
    browser.go(&format!("{url}?third")).await;
    browser.wait(ASKS).await;
    browser.eval("document.getElementById('tongue').click()").await;
    browser.wait("document.getElementById('lock-title').textContent === '此程序需要令牌'").await;
    site.close().await;
}

#[tokio::test]
async fn a_page_of_another_site_gets_nothing() {
    with_browser(foreign).await;
}

/// The other site is another server of ours: the browser knows only that its port is another.
async fn foreign(browser: Browser) {
    let (site, other) = (filled(Site::open().await), Site::open().await);
    browser.go(&format!("http://{}/", other.address)).await;
    browser.wait("document.getElementById('phase').textContent === 'starting'").await;
    // Its own policy would keep the page from trying; a foreign page has none.
    browser.devtools("Page.setBypassCSP", &json!({ "enabled": true })).await;
    browser.go(&format!("http://{}/?again", other.address)).await;
    let script = format!(
        "const target = 'http://{}';
         const got = [];
         for (const options of [{{}}, {{ mode: 'no-cors' }}, {{ method: 'POST', body: '{{}}', headers: {{ 'Content-Type': 'application/json' }} }},
             {{ method: 'POST', body: '{{}}', mode: 'no-cors' }}]) {{
             try {{ got.push((await fetch(target + '/api/v1/program', options)).status); }} catch {{ got.push('refused'); }}
         }}
         got.push(await new Promise((resolve) => {{
             const socket = new WebSocket(target.replace('http', 'ws') + '/api/v1/feed');
             socket.onopen = () => resolve('open');
             socket.onerror = () => resolve('refused');
         }}));
         got.push(await new Promise((resolve) => {{
             const script = document.createElement('img');
             script.onload = () => resolve('shown');
             script.onerror = () => resolve('refused');
             script.src = target + '/assets/frame/icon.svg';
         }}));
         return got;",
        site.address
    );
    // What is opaque has the status 0: nothing of it can be read.
    let got = browser.promised(&script).await;
    assert_eq!(got, json!(["refused", "refused", "refused", "refused", "refused", "refused"]));
    site.close().await;
    other.close().await;
}
