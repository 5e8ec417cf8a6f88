//! As much of the WebDriver protocol as the browser tests speak.

use crate::http;
use serde_json::{Value, json};
use std::net::SocketAddr;

/// One browser window.
#[derive(Clone)]
pub(crate) struct Browser {
    driver: SocketAddr,
    session: String,
}

impl Browser {
    /// Starts a browser with a profile of its own.
    pub(crate) async fn start(driver: SocketAddr, profile: &std::path::Path) -> Self {
        let profile = format!("--user-data-dir={}", profile.display());
        let arguments = [
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            &profile,
        ];
        let wanted = json!({ "capabilities": { "alwaysMatch": {
            "goog:chromeOptions": { "args": arguments },
            "goog:loggingPrefs": { "browser": "ALL" },
            // An alert stays, so that the test can see it.
            "unhandledPromptBehavior": "ignore",
        } } });
        let session = ask(driver, "POST", "/session", &wanted).await.unwrap_or_else(|e| panic!("no browser: {e}"));
        Self { driver, session: session["sessionId"].as_str().unwrap().to_string() }
    }

    pub(crate) async fn end(self) {
        self.ask("DELETE", "", &json!({})).await.unwrap();
    }

    pub(crate) async fn go(&self, url: &str) {
        self.ask("POST", "/url", &json!({ "url": url })).await.unwrap();
    }

    /// What a script returns.
    pub(crate) async fn eval(&self, script: &str) -> Value {
        let body = json!({ "script": script, "args": [] });
        self.ask("POST", "/execute/sync", &body).await.unwrap_or_else(|e| panic!("{script}: {e}"))
    }

    /// What an expression gives once it is truthy; looks at each frame.
    pub(crate) async fn wait(&self, expression: &str) -> Value {
        let script = format!(
            "const done = arguments[0];
             (function look() {{
                 const got = ({expression});
                 if (got) done(got); else requestAnimationFrame(look);
             }})();"
        );
        let body = json!({ "script": script, "args": [] });
        match self.ask("POST", "/execute/async", &body).await {
            Ok(got) => got,
            Err(e) => {
                panic!("waited in vain for {expression}: {e}\n{}", self.eval("return document.body.innerText").await)
            }
        }
    }

    /// Sets the size of the page in CSS pixels and the colour scheme.
    pub(crate) async fn look(&self, width: u32, height: u32, scheme: &str) {
        let size = json!({ "width": width, "height": height, "deviceScaleFactor": 1, "mobile": false });
        self.devtools("Emulation.setDeviceMetricsOverride", &size).await;
        let media = json!({ "features": [{ "name": "prefers-color-scheme", "value": scheme }] });
        self.devtools("Emulation.setEmulatedMedia", &media).await;
    }

    /// What a command of the browser's own tools gives.
    pub(crate) async fn devtools(&self, command: &str, parameters: &Value) -> Value {
        self.ask("POST", "/goog/cdp/execute", &json!({ "cmd": command, "params": parameters })).await.unwrap()
    }

    /// What a promise of the page gives; `script` is the body of an async function.
    pub(crate) async fn promised(&self, script: &str) -> Value {
        let script = format!(
            "const done = arguments[0];
             (async () => {{ {script} }})().then((value) => done({{ value: value ?? null }}), (error) => done({{ error: String(error.stack ?? error) }}));"
        );
        let body = json!({ "script": script, "args": [] });
        let got = self.ask("POST", "/execute/async", &body).await.unwrap_or_else(|e| panic!("{script}: {e}"));
        assert!(got.get("error").is_none(), "{}", got["error"]);
        got["value"].clone()
    }

    /// Types keys into what has the focus.
    pub(crate) async fn press(&self, key: &str) {
        let keys = json!([{ "type": "keyDown", "value": key }, { "type": "keyUp", "value": key }]);
        let body = json!({ "actions": [{ "type": "key", "id": "keys", "actions": keys }] });
        self.ask("POST", "/actions", &body).await.unwrap();
    }

    /// Whether a dialog is open.
    pub(crate) async fn has_alert(&self) -> bool {
        match self.ask("GET", "/alert/text", &Value::Null).await {
            Ok(_) => true,
            Err(e) => {
                assert_eq!(e["error"], "no such alert");
                false
            }
        }
    }

    /// Messages of the browser's console since the last call.
    pub(crate) async fn console(&self) -> Vec<Value> {
        let log = self.ask("POST", "/se/log", &json!({ "type": "browser" })).await.unwrap();
        log.as_array().unwrap().clone()
    }

    async fn ask(&self, method: &str, path: &str, body: &Value) -> Result<Value, Value> {
        ask(self.driver, method, &format!("/session/{}{path}", self.session), body).await
    }
}

async fn ask(driver: SocketAddr, method: &str, path: &str, body: &Value) -> Result<Value, Value> {
    let body = if body.is_null() { String::new() } else { body.to_string() };
    let request = format!(
        "{method} {path} HTTP/1.1\r\nHost: {driver}\r\nConnection: close\r\n\
         Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let reply = http::send(driver, &request).await;
    let value = reply.json()["value"].clone();
    if reply.status == 200 { Ok(value) } else { Err(value) }
}
