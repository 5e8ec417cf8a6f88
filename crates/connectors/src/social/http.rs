//! HTTP requests of collectors: one connection a request, bodies read as they come.
//!
//! It is hyper's HTTP/1.1 client over a connection of our own making, TLS by
//! rustls with the web's certificates, through a proxy where there is one.
//! Collectors hold one long answer, or ask now and then; a pool of connections
//! would be of no use.
//!
//! Invariant: nothing waits without an end (connecting, the head, and each
//! silence of the body are bounded by the injected clock); a credential goes
//! only to the server it is for, and over plain HTTP only to this machine;
//! what a server says in an error is cut short before it is shown.

use super::{clock::WallClock, failure::Failure, proxy::Proxy};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{
    HeaderMap, Method, StatusCode, Uri,
    body::Incoming,
    client::conn::http1,
    header::{self, HeaderName, HeaderValue},
};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use std::{fmt, sync::Arc, time::Duration};
use tidemill_core::{Clock, Options, Result, Timestamp};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    task::JoinHandle,
};
use tokio_rustls::TlsConnector;

/// Connecting, with the proxy's and TLS's handshakes.
const CONNECT: Duration = Duration::from_secs(15);
/// From the request to the answer's head.
const HEAD: Duration = Duration::from_secs(30);
/// Other servers that an answer may send us to.
const REDIRECTS: usize = 3;
/// Bytes of an error's text that are shown.
const SHOWN: usize = 300;
/// A clock that is off by more than this is named as the reason of a 401.
const SKEW: Duration = Duration::from_secs(60);

/// How collectors reach servers.
#[derive(Debug, Clone)]
pub struct Link {
    /// Through what.
    pub proxy: Proxy,
    /// The time.
    pub clock: Arc<dyn Clock>,
    /// What we call ourselves.
    pub agent: String,
}

impl Default for Link {
    fn default() -> Self {
        let agent = concat!("tidemill/", env!("CARGO_PKG_VERSION")).to_string();
        Self { proxy: Proxy::Environment, clock: Arc::new(WallClock), agent }
    }
}

/// A request.
#[derive(Clone)]
pub struct Request {
    method: Method,
    url: Uri,
    headers: HeaderMap,
    body: Bytes,
}

/// Without headers, in which credentials are, and without the query, in which some networks want them.
impl fmt::Debug for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.method, place(&self.url))
    }
}

/// The address without its query.
fn place(url: &Uri) -> String {
    let port = url.port().map(|port| format!(":{port}")).unwrap_or_default();
    format!("{}://{}{port}{}", url.scheme_str().unwrap_or("http"), url.host().unwrap_or_default(), url.path())
}

impl Request {
    /// A GET of an address, which must begin with `http://` or `https://`.
    ///
    /// # Errors
    /// When it is no such address.
    pub fn get(url: &str) -> Result<Self, String> {
        let parsed: Uri = url.parse().map_err(|e| format!("not an address: {e}"))?;
        if !matches!(parsed.scheme_str(), Some("http" | "https")) || parsed.host().is_none_or(str::is_empty) {
            return Err("an address begins with https:// (or http:// on this machine)".to_string());
        }
        Ok(Self { method: Method::GET, url: parsed, headers: HeaderMap::new(), body: Bytes::new() })
    }

    /// The same as a POST with a body.
    #[must_use]
    pub fn post(mut self, kind: &'static str, body: impl Into<Bytes>) -> Self {
        (self.method, self.body) = (Method::POST, body.into());
        self.headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
        self
    }

    /// Adds a header that is no secret.
    #[must_use]
    pub fn header(mut self, name: HeaderName, value: &str) -> Self {
        // What can't stand in a header would have been refused where it was read.
        if let Ok(value) = HeaderValue::from_str(value) {
            self.headers.insert(name, value);
        }
        self
    }

    /// Adds credentials: `Bearer …`, `OAuth …`.
    #[must_use]
    pub fn authorization(mut self, text: &str) -> Self {
        if let Ok(mut value) = HeaderValue::from_str(text) {
            value.set_sensitive(true);
            self.headers.insert(header::AUTHORIZATION, value);
        }
        self
    }

    fn is_secure(&self) -> bool {
        self.url.scheme_str() == Some("https")
    }

    fn host(&self) -> &str {
        self.url.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']')
    }

    fn port(&self) -> u16 {
        self.url.port_u16().unwrap_or(if self.is_secure() { 443 } else { 80 })
    }

    /// The request at another address, where an answer sent us. Credentials go along only to the same host or
    /// one below it, and not from HTTPS to HTTP.
    fn moved(&self, to: &str) -> Result<Self, String> {
        let target = if to.starts_with('/') {
            format!(
                "{}://{}{to}",
                self.url.scheme_str().unwrap_or("https"),
                self.url.authority().map_or("", |a| a.as_str())
            )
        } else {
            to.to_string()
        };
        let mut next = Self::get(&target).map_err(|_| "the server sent us to what is no address".to_string())?;
        let below = next.host() == self.host() || next.host().ends_with(&format!(".{}", self.host()));
        if self.headers.contains_key(header::AUTHORIZATION) && (!below || self.is_secure() && !next.is_secure()) {
            return Err(format!(
                "the server sent us to {}, which is not given the credentials: set option `url` to it if it is right",
                place(&next.url)
            ));
        }
        next.headers = self.headers.clone();
        Ok(next)
    }
}

/// Whether a host is this machine.
pub(super) fn is_local(host: &str) -> bool {
    let host = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || host.parse().is_ok_and(|ip: std::net::IpAddr| ip.is_loopback())
}

/// Option `url`: the server's address, without a path's last `/`.
///
/// # Errors
/// When it is no address, or one that credentials can't be sent to.
pub(super) fn base_url(options: &Options, usual: Option<&str>) -> Result<String> {
    let url = match usual {
        Some(usual) => options.get("url").unwrap_or(usual),
        None => options.require("url", "it names the server, such as https://mastodon.example")?,
    };
    let wrong = |why: String| tidemill_core::Error::user(format!("{}: option `url`: {why}", options.owner()));
    let request = Request::get(url).map_err(wrong)?;
    if !request.is_secure() && !is_local(request.host()) {
        return Err(wrong("http:// is for servers on this machine; write https://".to_string()));
    }
    Ok(url.trim_end_matches('/').to_string())
}

/// An answer whose body is still to come.
#[derive(Debug)]
pub struct Response {
    /// Its code.
    pub status: StatusCode,
    /// Its headers.
    pub headers: HeaderMap,
    body: Incoming,
    driver: JoinHandle<()>,
    clock: Arc<dyn Clock>,
}

impl Drop for Response {
    fn drop(&mut self) {
        // Else the connection would be read on until its end.
        self.driver.abort();
    }
}

impl Response {
    /// The next piece of the body, or `None` at its end.
    ///
    /// # Errors
    /// When the connection breaks, or nothing comes for `quiet`.
    pub async fn piece(&mut self, quiet: Duration) -> Result<Option<Bytes>, Failure> {
        let deadline = self.clock.now().plus(quiet);
        loop {
            let frame = tokio::select! {
                biased;
                frame = self.body.frame() => frame,
                () = self.clock.sleep_until(deadline) => {
                    return Err(Failure::Network(format!("nothing came for {} s", quiet.as_secs())));
                }
            };
            match frame {
                None => return Ok(None),
                Some(Err(error)) => return Err(Failure::Network(format!("the connection broke: {}", because(&error)))),
                // What is no data is a trailer.
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) if data.is_empty() => {}
                    Ok(data) => return Ok(Some(data)),
                    Err(_trailer) => {}
                },
            }
        }
    }

    /// The whole body, of at most `most` bytes.
    ///
    /// # Errors
    /// As [`Response::piece`], and when it is longer.
    pub async fn whole(&mut self, most: usize) -> Result<Vec<u8>, Failure> {
        let mut whole = Vec::new();
        while let Some(piece) = self.piece(HEAD).await? {
            if whole.len() + piece.len() > most {
                return Err(Failure::Http(format!("an answer of over {most} bytes")));
            }
            whole.extend_from_slice(&piece);
        }
        Ok(whole)
    }

    /// A header's text.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// The server's time.
    pub fn date(&self) -> Option<Timestamp> {
        http_date(self.header("date")?)
    }

    /// Why an answer that is no success is none, as a [`Failure`] that says how to go on.
    pub async fn refusal(mut self) -> Failure {
        let text = self.whole(64 << 10).await.unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let shown: String = text.split_whitespace().collect::<Vec<_>>().join(" ").chars().take(SHOWN).collect();
        let mut why = format!("the server answered {}", self.status);
        if !shown.is_empty() {
            why.push_str(&format!(": {shown}"));
        }
        match self.status.as_u16() {
            420 | 429 => Failure::Limited(why, self.until()),
            401 => match self.skew() {
                // A wrong clock is mended by itself, where there is a time service.
                Some(skew) => Failure::Http(format!("{why}; {skew}")),
                None => Failure::Denied(format!("{why}; check the credentials")),
            },
            403 => Failure::Denied(why),
            // What is asked for is wrong or not there, and stays so.
            400 | 404 | 405 | 406 | 410 | 413 | 414 | 422 => Failure::Denied(why),
            503 if self.header("retry-after").is_some() => Failure::Limited(why, self.until()),
            _ => Failure::Http(why),
        }
    }

    /// When there may be more requests: `Retry-After` (seconds or a date), or the reset of a rate limit (seconds
    /// since 1970, or ISO 8601).
    fn until(&self) -> Option<Timestamp> {
        if let Some(after) = self.header("retry-after") {
            let now = self.clock.now();
            let seconds = after.trim().parse().ok().map(|s: u64| now.plus(Duration::from_secs(s)));
            return seconds.or_else(|| http_date(after));
        }
        let reset = self.header("x-rate-limit-reset").or_else(|| self.header("x-ratelimit-reset"))?;
        let seconds = reset.trim().parse::<i64>().ok().and_then(|s| s.checked_mul(1_000_000));
        seconds.or_else(|| crate::format::time::instant(reset)).map(Timestamp)
    }

    /// By how much our clock and the server's differ, in words, if by much.
    fn skew(&self) -> Option<String> {
        let (theirs, ours) = (self.date()?, self.clock.now());
        let (off, word) = if ours > theirs { (ours.since(theirs), "ahead of") } else { (theirs.since(ours), "behind") };
        (off > SKEW).then(|| {
            format!(
                "this machine's clock is {} s {word} the server's ({theirs}), which alone can make it refuse: set the clock right",
                off.as_secs()
            )
        })
    }
}

fn http_date(text: &str) -> Option<Timestamp> {
    let at = httpdate::parse_http_date(text.trim()).ok()?;
    let since = at.duration_since(std::time::UNIX_EPOCH).ok()?;
    i64::try_from(since.as_micros()).ok().map(Timestamp)
}

/// An error with what lies behind it.
fn because(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str(&format!(": {cause}"));
        next = cause.source();
    }
    text
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

impl Link {
    /// Sends a request and gives the answer, whatever its code; redirects of a GET are followed.
    ///
    /// # Errors
    /// When there is no answer.
    pub async fn send(&self, request: &Request) -> Result<Response, Failure> {
        let mut request = request.clone();
        for _ in 0..=REDIRECTS {
            let response = self.send_once(&request).await?;
            let to = response.header("location").map(str::to_string);
            match (response.status.as_u16(), to) {
                (301 | 302 | 303 | 307 | 308, Some(to)) if request.method == Method::GET => {
                    request = request.moved(&to).map_err(Failure::Denied)?;
                }
                _ => return Ok(response),
            }
        }
        Err(Failure::Denied(format!("{request:?}: the server sent us on more than {REDIRECTS} times")))
    }

    /// [`Link::send`], where anything but success is a failure.
    ///
    /// # Errors
    /// When there is no answer, or its code is not 2xx.
    pub async fn ask(&self, request: &Request) -> Result<Response, Failure> {
        let response = self.send(request).await?;
        if response.status.is_success() { Ok(response) } else { Err(response.refusal().await) }
    }

    async fn send_once(&self, request: &Request) -> Result<Response, Failure> {
        let network = |why: String| Failure::Network(format!("{}: {why}", request.host()));
        let stream = self.within(CONNECT, self.connect(request)).await.map_err(network)?.map_err(network)?;
        let handshake = http1::handshake::<_, Full<Bytes>>(TokioIo::new(stream));
        let (mut sender, connection) = handshake.await.map_err(|e| network(because(&e)))?;
        let driver = tokio::spawn(async move {
            // An error is met by whoever reads the body.
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a connection ended");
            }
        });
        let mut message = hyper::Request::new(Full::new(request.body.clone()));
        *message.method_mut() = request.method.clone();
        *message.uri_mut() = request
            .url
            .path_and_query()
            .map_or(Ok(Uri::from_static("/")), |path| path.as_str().parse())
            .map_err(|e| network(format!("not a path: {e}")))?;
        *message.headers_mut() = request.headers.clone();
        let authority = request.url.authority().map_or("", |a| a.as_str());
        for (name, value) in [(header::HOST, authority), (header::USER_AGENT, self.agent.as_str())] {
            let value = HeaderValue::from_str(value).map_err(|_| network(format!("no value of {name}")))?;
            message.headers_mut().insert(name, value);
        }
        let answer = self.within(HEAD, sender.send_request(message)).await;
        let answer = match answer {
            Ok(Ok(answer)) => answer,
            Ok(Err(error)) => {
                driver.abort();
                return Err(network(because(&error)));
            }
            Err(why) => {
                driver.abort();
                return Err(network(why));
            }
        };
        let (head, body) = answer.into_parts();
        Ok(Response { status: head.status, headers: head.headers, body, driver, clock: Arc::clone(&self.clock) })
    }

    async fn within<T>(&self, span: Duration, work: impl Future<Output = T>) -> Result<T, String> {
        let deadline = self.clock.now().plus(span);
        tokio::select! {
            biased;
            done = work => Ok(done),
            () = self.clock.sleep_until(deadline) => Err(format!("no answer within {} s", span.as_secs())),
        }
    }

    async fn connect(&self, request: &Request) -> Result<Box<dyn Stream>, String> {
        let (host, port) = (request.host(), request.port());
        let stream = self.proxy.connect(request.is_secure(), host, port).await?;
        crate::tcp::watch(&stream);
        // A failure only costs delay.
        let _delayed = stream.set_nodelay(true);
        if !request.is_secure() {
            return Ok(Box::new(stream));
        }
        let name = ServerName::try_from(host.to_string()).map_err(|_| format!("`{host}` is no name of a server"))?;
        let secure = TlsConnector::from(crate::jetstream::tls()?).connect(name, stream).await;
        Ok(Box::new(secure.map_err(|e| format!("TLS with {host}:{port}: {e}"))?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_go_where_they_belong() {
        let request = Request::get("https://a.example/x?access_token=hunter2").unwrap().authorization("Bearer hunter3");
        assert_eq!(format!("{request:?}"), "GET https://a.example/x");
        assert!(!format!("{:?}", request.headers).contains("hunter3"));
        assert!(request.moved("https://stream.a.example/y").is_ok());
        assert_eq!(request.moved("/y?z=1").unwrap().url.to_string(), "https://a.example/y?z=1");
        for elsewhere in ["https://b.example/x", "http://a.example/x", "https://xa.example/", "ftp://a.example/"] {
            assert!(request.moved(elsewhere).is_err(), "{elsewhere}");
        }
        assert!(Request::get("https://a.example/").unwrap().moved("https://b.example/").is_ok());
    }

    #[test]
    fn plain_http_is_for_this_machine() {
        let url = |url: &str| base_url(&Options::new("s", [("url", url)]), None);
        assert_eq!(url("https://a.example/").unwrap(), "https://a.example");
        assert!(
            url("http://127.0.0.1:8080").is_ok() && url("http://localhost").is_ok() && url("http://[::1]:1").is_ok()
        );
        for bad in ["http://a.example", "ws://a.example", "a.example", "https://"] {
            assert!(url(bad).unwrap_err().to_string().contains("option `url`"), "{bad}");
        }
    }

    #[test]
    fn dates_of_headers_are_read() {
        assert_eq!(http_date("Wed, 21 Oct 2015 07:28:00 GMT"), Some(Timestamp(1_445_412_480_000_000)));
        assert_eq!(http_date("yesterday"), None);
    }
}
