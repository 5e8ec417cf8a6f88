//! The REST gateway, as options name it, the connections to it, and what its answers mean.
//!
//! | Option | Meaning |
//! |---|---|
//! | `url` | the gateway: `https://rest.example.org:8080`; `http://` only on this machine |
//! | `tls` | `off`: also `http://` of another machine, in a network that you trust |
//! | `user`, `password_env`, `password_file` | who asks, and the environment's variable or the file with the password |
//! | `proxy` | as collectors have it |
//!
//! Invariant: no password stands in a program, a log or an error; it and the rows go over the network without TLS only
//! where `tls` says so; nothing waits without an end. An error that passes by itself is external, one that a human has
//! to mend is the user's. Called by the sink.

use crate::http::{
    Link, Request, is_local,
    kept::{Answer, Kept},
    proxy::Proxy,
    refusal::Refusal,
    secret::Place,
};
use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use hyper::{HeaderMap, Method, StatusCode, header};
use std::{
    fmt,
    sync::{Mutex, PoisonError},
};
use tidemill_core::{Error, Options, Result};

/// Bytes of an answer at most: marks and descriptions of tables are small, and stack traces not large.
const ANSWER: usize = 4 << 20;
/// What the gateway's answers are to be.
const JSON: &str = "application/json";

/// A REST gateway.
pub(super) struct Server {
    /// Without a last `/`.
    url: String,
    user: Option<(String, Place)>,
    link: Link,
    /// Connections that wait for a request.
    idle: Mutex<Vec<Kept>>,
    /// For people, without anything secret.
    pub(super) place: String,
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server").field("place", &self.place).finish_non_exhaustive()
    }
}

impl Server {
    /// From the options of the table above.
    ///
    /// # Errors
    /// When one is missing or wrong, or a password stands in the program.
    pub(super) fn from_options(options: &Options) -> Result<Self> {
        let owner = options.owner();
        let wrong = |key: &str, why: &str| Err(Error::user(format!("{owner}: option `{key}`{why}")));
        let url = options.require("url", "it names HBase's REST gateway: https://rest.example.org:8080")?;
        let tls = match options.get("tls") {
            None | Some("on" | "true") => true,
            Some("off" | "false") => false,
            Some(other) => return wrong("tls", &format!(": `{other}` is neither on nor off")),
        };
        let checked = if tls { Request::to_server(url) } else { Request::get(url) };
        if let Err(why) = checked {
            // Of an address that is one, it is what keeps it from that.
            let or = if tls && Request::get(url).is_ok() {
                ", or, within a network that you trust, set option `tls` to off"
            } else {
                ""
            };
            return wrong("url", &format!(": {why}{or}"));
        }
        if url.contains(['?', '#']) {
            return wrong("url", " has a `?` or `#`: it is the address under which the gateway's tables are");
        }
        let secret = ["password", "password_file", "password_env"].map(|key| options.get(key).is_some());
        let user = match (options.get("user"), secret.contains(&true)) {
            // Of a name with a colon the rest would be taken for the password.
            (Some(user), _) if user.contains(':') => return wrong("user", " has a `:`, which no name here can have"),
            (Some(user), true) => {
                Some((user.to_string(), Place::from_options(options, "password", "TIDEMILL_HBASE_PASSWORD")?))
            }
            (Some(_), false) => {
                return wrong(
                    "user",
                    " stands without a password: name the environment's variable that holds it in option `password_env`, or its file in `password_file`",
                );
            }
            (None, true) => return Err(Error::user(format!("{owner}: there is a password, and no `user`"))),
            (None, false) => None,
        };
        let url = url.trim_end_matches('/').to_string();
        let place = crate::http::place(&url.parse().map_err(|e| Error::internal("an address").because(e))?);
        Ok(Self {
            place: place.trim_end_matches('/').to_string(),
            link: Link { proxy: Proxy::from_options(options)?, ..Link::default() },
            idle: Mutex::default(),
            user,
            url,
        })
    }

    /// The gateway in a spelling of its own.
    pub(super) fn real_place(&self) -> String {
        let (scheme, rest) = self.place.split_once("://").unwrap_or(("", &self.place));
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        let usual = if scheme == "https" { ":443" } else { ":80" };
        let (host, port) = match authority.rsplit_once(':') {
            Some((host, port)) if !port.contains(']') => (host, format!(":{port}")),
            _ => (authority, usual.to_string()),
        };
        let host = if is_local(host) { "localhost".to_string() } else { host.to_lowercase() };
        format!("{host}{port}/{path}")
    }

    /// Asks for what lies under a path.
    ///
    /// # Errors
    /// When there is no answer.
    pub(super) async fn get(&self, what: &str, path: &str) -> Result<Answer> {
        self.ask(what, Method::GET, path, Bytes::new(), None).await
    }

    /// Asks with a key of bytes: row and columns stand in the path as Base64.
    ///
    /// # Errors
    /// When there is no answer.
    pub(super) async fn encoded(&self, what: &str, method: Method, path: &str) -> Result<Answer> {
        self.ask(what, method, path, Bytes::new(), Some("b64url")).await
    }

    /// Sends JSON.
    ///
    /// # Errors
    /// When there is no answer, or one that is no success.
    pub(super) async fn post(&self, what: &str, path: &str, body: Bytes) -> Result<()> {
        let answer = self.ask(what, Method::POST, path, body, None).await?;
        if answer.status.is_success() { Ok(()) } else { Err(self.refused(what, &answer)) }
    }

    async fn ask(
        &self,
        what: &str,
        method: Method,
        path: &str,
        body: Bytes,
        encoding: Option<&'static str>,
    ) -> Result<Answer> {
        let mut headers = HeaderMap::new();
        headers.insert(header::ACCEPT, header::HeaderValue::from_static(JSON));
        if !body.is_empty() {
            headers.insert(header::CONTENT_TYPE, header::HeaderValue::from_static(JSON));
        }
        if let Some(encoding) = encoding {
            headers.insert("encoding", header::HeaderValue::from_static(encoding));
        }
        let url = format!("{}{path}", self.url).parse().map_err(|e| Error::internal("an address").because(e))?;
        let request = Request::from_parts(method, url, headers, body).map_err(Error::internal)?;
        let request = match &self.user {
            Some((user, password)) => {
                // Read anew, so that one which was replaced is taken without a restart.
                let pair = format!("{user}:{}", password.read_one()?.expose());
                request.authorization(&format!("Basic {}", STANDARD.encode(pair)))
            }
            None => request,
        };
        let mut kept = self.idle(Vec::pop).unwrap_or_default();
        let answer = kept.ask(&self.link, &request, ANSWER).await;
        let answer =
            answer.map_err(|failure| Error::external(format!("hbase: can't {what} at {}: {failure}", self.place)))?;
        self.idle(|idle| idle.push(kept));
        Ok(answer)
    }

    fn idle<T>(&self, act: impl FnOnce(&mut Vec<Kept>) -> T) -> T {
        act(&mut self.idle.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// What an answer that is no success means.
    pub(super) fn refused(&self, what: &str, answer: &Answer) -> Error {
        let body = String::from_utf8_lossy(&answer.body);
        // What follows is where in HBase it happened.
        let said = body.split("\n\tat ").next().unwrap_or_default();
        let refusal = Refusal { status: answer.status, headers: &answer.headers, clock: &*self.link.clock };
        let text = format!("hbase: can't {what} at {}: {}", self.place, refusal.failure(said.as_bytes()));
        match mend(answer.status, said) {
            Some(hint) => Error::user(format!("{text}; {hint}")),
            None => Error::external(text),
        }
    }
}

/// What a human has to do about an answer; `None` when trying again may help.
fn mend(status: StatusCode, said: &str) -> Option<&'static str> {
    let names = |exception: &str| said.contains(exception);
    Some(match status.as_u16() {
        200..=299 => "this is no REST gateway of HBase: check option `url`",
        300..=399 => "it sends us elsewhere: set option `url` to where the gateway is",
        401 => "see options `user` and `password_env`",
        403 => "the gateway only reads (`-ro`), or its user may not: grant it",
        // Of a namespace that is not there it says that it is unavailable.
        503 if names("NamespaceNotFoundException") => "make the namespace: create_namespace '…' in HBase's shell",
        404 if names("NoSuchColumnFamilyException") => "the family is gone: add it to the table, and start again",
        404 if names("TableNotFoundException") => "the table is gone: make it, and start again",
        404 | 405 | 410 => "is this a REST gateway of HBase? Check option `url`",
        413 => "lower option `max_bytes`",
        408 | 425 | 429 | 500.. => return None,
        _ => "it will refuse this each time: see what it says, and change the query or the table",
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(options: &[(&str, &str)]) -> Result<Server> {
        Server::from_options(&Options::new("sink \"out\"", options.iter().copied()))
    }

    #[test]
    fn what_is_no_gateway_is_told_and_nothing_secret_is_shown() {
        for (options, want) in [
            (&[][..], "option `url` is missing"),
            (&[("url", "rest:8080")], "option `url`"),
            (&[("url", "https://u:hunter2@rest")], "credentials have options of their own"),
            (&[("url", "http://rest:8080")], "set option `tls` to off"),
            (&[("url", "https://rest?x=hunter2")], "has a `?`"),
            (&[("url", "https://rest"), ("tls", "maybe")], "neither on nor off"),
            (&[("url", "https://rest"), ("user", "u")], "stands without a password"),
            (&[("url", "https://rest"), ("user", "u:v"), ("password_env", "P")], "has a `:`"),
            (&[("url", "https://rest"), ("password_env", "P")], "no `user`"),
            (&[("url", "https://rest"), ("user", "u"), ("password", "hunter2")], "does not stand in a program"),
        ] {
            let told = server(options).unwrap_err().to_string();
            assert!(told.contains(want) && !told.contains("hunter2"), "{told}");
        }
        let place = |url| server(&[("url", url), ("tls", "off")]).unwrap().real_place();
        assert_eq!(place("http://127.0.0.1:8080/"), place("http://localhost:8080"));
        assert_eq!(place("https://Rest.Example.org/hbase"), place("https://rest.example.org:443/hbase/"));
        assert_ne!(place("https://rest.example.org/a"), place("https://rest.example.org/b"));
        assert_eq!(place("http://[::1]"), "localhost:80/");
    }

    #[test]
    fn answers_are_for_a_human_or_pass() {
        let mended = |status: u16, said| mend(StatusCode::from_u16(status).unwrap(), said).is_some();
        for passes in [408, 429, 500, 502, 503, 504] {
            assert!(!mended(passes, "org.apache.hadoop.hbase.RegionTooBusyException"), "{passes}");
        }
        for lasts in [200, 301, 400, 401, 403, 404, 405, 413, 415, 422] {
            assert!(mended(lasts, ""), "{lasts}");
        }
        assert!(mended(503, "org.apache.hadoop.hbase.NamespaceNotFoundException: shop"));
    }
}
