//! HTTP requests of connectors: one connection a request, bodies read as they come.
//!
//! It is hyper's HTTP/1.1 client over a connection of our own making, TLS by
//! rustls with the web's certificates, through a proxy where there is one.
//! Collectors hold one long answer, or ask now and then, and a webhook gets whole
//! batches; who asks often keeps connections with `kept.rs`.
//!
//! Invariant: nothing waits without an end (connecting, sending with the head, and
//! each silence of the body are bounded by the injected clock); a credential goes
//! only to the server it is for, and over plain HTTP only to this machine;
//! a server's answer sends us nowhere into this machine or the network around it;
//! what a server says in an error is cut short before it is shown. Called by the
//! collectors of [`crate::social`] and the sink [`crate::webhook`].

mod away;
pub mod clock;
pub mod failure;
#[cfg(feature = "hbase")]
pub(crate) mod kept;
pub mod proxy;
pub(crate) mod refusal;
pub mod secret;

use bytes::Bytes;
use clock::WallClock;
use failure::Failure;
use http_body_util::{BodyExt, Full};
use hyper::{
    HeaderMap, Method, StatusCode, Uri,
    body::Incoming,
    client::conn::http1,
    header::{self, HeaderName, HeaderValue},
};
use hyper_util::rt::TokioIo;
use proxy::Proxy;
use refusal::Refusal;
use rustls::pki_types::ServerName;
use std::{fmt, sync::Arc, time::Duration};
use tidemill_core::{Clock, Options, Result, Timestamp};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    task::JoinHandle,
};
use tokio_rustls::TlsConnector;

/// Connecting, with the proxy's and TLS's handshakes.
pub(crate) const CONNECT: Duration = Duration::from_secs(15);
/// From the request to the answer's head, beside the time that sending its body may take.
const HEAD: Duration = Duration::from_secs(30);
/// Bytes of a body that must be sent in a second, at the slowest.
const SLOWEST: usize = 64 << 10;
/// From the head of an answer that is taken whole to its end.
const WHOLE: Duration = Duration::from_secs(120);
/// Other servers that an answer may send us to.
const REDIRECTS: usize = 3;

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
    /// Whether an answer has sent us to its host, for which nobody has vouched.
    sent: bool,
}

/// Without headers, in which credentials are, and without the query, in which some networks want them.
impl fmt::Debug for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.method, place(&self.url))
    }
}

/// The address without its query.
pub(crate) fn place(url: &Uri) -> String {
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
        if parsed.authority().is_some_and(|authority| authority.as_str().contains('@')) {
            return Err(
                "an address has no user and no password in it: credentials have options of their own".to_string()
            );
        }
        Ok(Self { method: Method::GET, url: parsed, headers: HeaderMap::new(), body: Bytes::new(), sent: false })
    }

    /// [`Request::get`] of an address that credentials may be sent to.
    ///
    /// # Errors
    /// When it is no address, or one with `http://` of another machine.
    pub(crate) fn to_server(url: &str) -> Result<Self, String> {
        let request = Self::get(url)?;
        if !request.is_secure() && !is_local(request.host()) {
            return Err("http:// is for servers on this machine; write https://".to_string());
        }
        Ok(request)
    }

    /// Of any method.
    ///
    /// # Errors
    /// When the address is none.
    #[cfg(any(feature = "hbase", feature = "kinesis", feature = "s3"))]
    pub(crate) fn from_parts(method: Method, url: Uri, headers: HeaderMap, body: Bytes) -> Result<Self, String> {
        if !matches!(url.scheme_str(), Some("http" | "https")) || url.host().is_none_or(str::is_empty) {
            return Err("an address begins with https://".to_string());
        }
        Ok(Self { method, url, headers, body, sent: false })
    }

    /// The server's name and port, for people: of an address whose path is a secret, this may be shown.
    pub(crate) fn server(&self) -> &str {
        self.url.authority().map_or("", |authority| authority.as_str())
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

    /// Adds a header that is a credential.
    ///
    /// # Errors
    /// When it can't stand in a header.
    pub(crate) fn secret(mut self, name: HeaderName, value: &secret::Secret) -> Result<Self, String> {
        let value = HeaderValue::from_str(value.expose()).map_err(|_| "this is no value of a header".to_string());
        let mut value = value?;
        value.set_sensitive(true);
        self.headers.insert(name, value);
        Ok(self)
    }

    pub(crate) fn is_secure(&self) -> bool {
        self.url.scheme_str() == Some("https")
    }

    pub(crate) fn host(&self) -> &str {
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
        // The host that was named may send us from one of its doors to another.
        next.sent = self.sent || next.host() != self.host();
        if next.sent && (is_local(next.host()) || next.host().parse().is_ok_and(|ip| !away::is_public(ip))) {
            return Err(away::inside(next.host()));
        }
        next.headers = self.headers.clone();
        Ok(next)
    }
}

/// Whether a host is this machine.
pub(crate) fn is_local(host: &str) -> bool {
    let host = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || host.parse().is_ok_and(|ip: std::net::IpAddr| ip.is_loopback())
}

/// Option `url`: the server's address, without a path's last `/`.
///
/// # Errors
/// When it is no address, or one that credentials can't be sent to.
pub(crate) fn base_url(options: &Options, usual: Option<&str>) -> Result<String> {
    let url = match usual {
        Some(usual) => options.get("url").unwrap_or(usual),
        None => options.require("url", "it names the server, such as https://mastodon.example")?,
    };
    let wrong = |why: String| tidemill_core::Error::user(format!("{}: option `url`: {why}", options.owner()));
    Request::to_server(url).map_err(wrong)?;
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
    /// Of a connection that was made for this answer; it ends with it.
    _driver: Option<Driver>,
    clock: Arc<dyn Clock>,
}

/// What moves a connection's bytes.
#[derive(Debug)]
struct Driver(JoinHandle<()>);

impl Drop for Driver {
    fn drop(&mut self) {
        // Else the connection would be read on until its end.
        self.0.abort();
    }
}

/// A connection to a server.
#[derive(Debug)]
struct Line {
    sender: http1::SendRequest<Full<Bytes>>,
    driver: Driver,
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
        let until = self.clock.now().plus(WHOLE);
        while let Some(piece) = self.piece(HEAD).await? {
            if self.clock.now() > until {
                return Err(Failure::Network(format!("an answer was not whole after {} s", WHOLE.as_secs())));
            }
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
        refusal::date(&self.headers)
    }

    /// Why an answer that is no success is none, as a [`Failure`] that says how to go on.
    pub async fn refusal(mut self) -> Failure {
        let text = self.whole(64 << 10).await.unwrap_or_default();
        Refusal { status: self.status, headers: &self.headers, clock: &*self.clock }.failure(&text)
    }
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

/// A connection, with TLS or without.
pub(crate) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
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

    /// [`Link::send`], where an answer that sends us elsewhere is an answer.
    ///
    /// # Errors
    /// When there is no answer.
    #[cfg(any(feature = "kinesis", feature = "s3"))]
    pub(crate) async fn send_unmoved(&self, request: &Request) -> Result<Response, Failure> {
        self.send_once(request).await
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
        let Line { mut sender, driver } = self.begin(request).await?;
        self.exchange(&mut sender, request, Some(driver)).await
    }

    /// A connection for a request.
    async fn begin(&self, request: &Request) -> Result<Line, Failure> {
        let network = |why: String| Failure::Network(format!("{}: {why}", request.host()));
        let stream = self.within(CONNECT, self.connect(request)).await.map_err(network)?.map_err(network)?;
        let handshake = http1::handshake::<_, Full<Bytes>>(TokioIo::new(stream));
        let (sender, connection) = handshake.await.map_err(|e| network(because(&e)))?;
        let driver = tokio::spawn(async move {
            // An error is met by whoever reads the body.
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a connection ended");
            }
        });
        Ok(Line { sender, driver: Driver(driver) })
    }

    /// Sends a request, and gives the head of its answer.
    async fn exchange(
        &self,
        sender: &mut http1::SendRequest<Full<Bytes>>,
        request: &Request,
        driver: Option<Driver>,
    ) -> Result<Response, Failure> {
        let network = |why: String| Failure::Network(format!("{}: {why}", request.host()));
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
        let sending = Duration::from_secs((request.body.len() / SLOWEST) as u64);
        let answer = self.within(HEAD + sending, sender.send_request(message)).await;
        let answer = answer.map_err(network)?.map_err(|error| network(because(&error)))?;
        let (head, body) = answer.into_parts();
        let clock = Arc::clone(&self.clock);
        Ok(Response { status: head.status, headers: head.headers, body, _driver: driver, clock })
    }

    /// The work's result, unless it takes longer than a span.
    pub(crate) async fn within<T>(&self, span: Duration, work: impl Future<Output = T>) -> Result<T, String> {
        let deadline = self.clock.now().plus(span);
        tokio::select! {
            biased;
            done = work => Ok(done),
            () = self.clock.sleep_until(deadline) => Err(format!("no answer within {} s", span.as_secs())),
        }
    }

    async fn connect(&self, request: &Request) -> Result<Box<dyn Stream>, String> {
        let (secure, host, port) = (request.is_secure(), request.host(), request.port());
        if request.sent {
            let stream = self.proxy.connect_away(secure, host, port).await?;
            return speak(stream, secure, host, port).await;
        }
        self.dial(secure, host, port).await
    }

    /// Opens a connection to a server, through the proxy if there is one, with TLS if it is to be `secure`.
    pub(crate) async fn dial(&self, secure: bool, host: &str, port: u16) -> Result<Box<dyn Stream>, String> {
        let stream = self.proxy.connect(secure, host, port).await?;
        speak(stream, secure, host, port).await
    }
}

/// The connection, with TLS if it is to be `secure`.
async fn speak(stream: TcpStream, secure: bool, host: &str, port: u16) -> Result<Box<dyn Stream>, String> {
    crate::tcp::watch(&stream);
    // A failure only costs delay.
    let _delayed = stream.set_nodelay(true);
    if !secure {
        return Ok(Box::new(stream));
    }
    let name = ServerName::try_from(host.to_string()).map_err(|_| format!("`{host}` is no name of a server"))?;
    let secure = TlsConnector::from(crate::jetstream::tls()?).connect(name, stream).await;
    Ok(Box::new(secure.map_err(|e| format!("TLS with {host}:{port}: {e}"))?))
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

    #[tokio::test]
    async fn an_answer_sends_us_nowhere_into_this_machine_or_around_it() {
        let request = Request::get("https://a.example/x").unwrap();
        for inside in [
            "http://localhost/",
            "http://127.0.0.1:4040/",
            "http://[::1]/",
            "http://169.254.169.254/latest/meta-data/",
            "https://10.0.0.1/",
            "https://[fd00::1]/",
            "http://0.0.0.0/",
            "http://[::ffff:127.0.0.1]/",
        ] {
            let why = request.moved(inside).unwrap_err();
            assert!(why.contains("set option `url`"), "{inside}: {why}");
        }
        // The step after the next is looked at as well, and so is a name that only stands for such an address.
        let next = request.moved("https://b.example/").unwrap();
        assert!(next.sent && next.moved("/y").unwrap().sent && next.moved("http://127.0.0.1/").is_err());
        let name = Request { sent: true, ..Request::get("http://127.1:1/").unwrap() };
        let link = Link { proxy: Proxy::Direct, ..Link::default() };
        let why = match link.send(&name).await {
            Err(Failure::Network(why)) => why,
            other => panic!("{:?}", other.map(|_| ()).map_err(|_| "another failure")),
        };
        assert!(why.contains("this machine"), "{why}");
        // What the program names it may name.
        let local = Request::get("http://127.0.0.1:8080/x").unwrap();
        assert!(!local.sent && !local.moved("/y").unwrap().sent && local.moved("http://127.0.0.1:8081/").is_ok());
        assert!(local.moved("http://localhost:8081/").is_err());
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
}
