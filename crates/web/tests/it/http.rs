//! The plainest client, so that tests can say exactly what is on the wire.

use serde_json::Value;
use std::net::SocketAddr;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::TcpStream,
};

pub(crate) struct Reply {
    pub(crate) status: u16,
    /// Names in lower case.
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Reply {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }

    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }
}

/// An answer whose head was read.
pub(crate) struct Opened {
    pub(crate) head: Reply,
    stream: BufReader<TcpStream>,
}

/// Sends bytes as they are and reads the head of the answer.
pub(crate) async fn open(address: SocketAddr, request: &str) -> Opened {
    let mut stream = BufReader::new(TcpStream::connect(address).await.unwrap());
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut line = String::new();
    stream.read_line(&mut line).await.unwrap();
    let status = line.split(' ').nth(1).unwrap_or_else(|| panic!("no status in {line:?}")).parse().unwrap();
    let mut headers = Vec::new();
    loop {
        line.clear();
        stream.read_line(&mut line).await.unwrap();
        let Some((name, value)) = line.trim_end().split_once(':') else { break };
        headers.push((name.to_lowercase(), value.trim().to_string()));
    }
    Opened { head: Reply { status, headers, body: Vec::new() }, stream }
}

impl Opened {
    /// With the body, as long as the head says.
    pub(crate) async fn rest(self) -> Reply {
        let Self { mut head, mut stream } = self;
        let length: usize = head.header("content-length").map_or(0, |length| length.parse().unwrap());
        head.body = vec![0; length];
        stream.read_exact(&mut head.body).await.unwrap();
        head
    }
}

/// Sends bytes as they are and reads the whole answer.
pub(crate) async fn send(address: SocketAddr, request: &str) -> Reply {
    let opened = open(address, request).await;
    if request.starts_with("HEAD") { opened.head } else { opened.rest().await }
}

pub(crate) async fn get(address: SocketAddr, path: &str) -> Reply {
    send(address, &format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")).await
}

/// A reader of the live feed.
pub(crate) struct Live {
    stream: BufReader<TcpStream>,
    text: String,
}

impl Live {
    pub(crate) async fn open(address: SocketAddr) -> Self {
        let opened = open(address, &format!("GET /api/live HTTP/1.1\r\nHost: {address}\r\n\r\n")).await;
        assert_eq!(opened.head.status, 200);
        assert_eq!(opened.head.header("content-type"), Some("text/event-stream"));
        Self { stream: opened.stream, text: String::new() }
    }

    /// The next event and its data; `None` at the end.
    pub(crate) async fn next(&mut self) -> Option<(String, Value)> {
        loop {
            if let Some(end) = self.text.find("\n\n") {
                let event: String = self.text.drain(..end + 2).collect();
                let Some(event) = event.strip_prefix("event: ") else { continue };
                let (name, data) = event.trim_end().split_once("\ndata: ").unwrap();
                return Some((name.to_string(), serde_json::from_str(data).unwrap()));
            }
            let mut size = String::new();
            self.stream.read_line(&mut size).await.unwrap();
            let size = usize::from_str_radix(size.trim(), 16).unwrap();
            let mut chunk = vec![0; size + 2];
            self.stream.read_exact(&mut chunk).await.unwrap();
            if size == 0 {
                return None;
            }
            self.text.push_str(std::str::from_utf8(&chunk[..size]).unwrap());
        }
    }

    /// The data of the next event of this name that fits.
    pub(crate) async fn until(&mut self, name: &str, fits: impl Fn(&Value) -> bool) -> Value {
        loop {
            let (event, data) = self.next().await.expect("the feed goes on");
            if event == name && fits(&data) {
                return data;
            }
        }
    }
}
