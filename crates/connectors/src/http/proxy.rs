//! The way to a server: direct, through an HTTP proxy, or through a SOCKS5 proxy.
//!
//! An HTTP proxy is asked with `CONNECT` for every server, also for plain HTTP;
//! a SOCKS5 proxy (RFC 1928, 1929) is given the server's name and looks it up
//! itself.
//!
//! Invariant: what a proxy answers is bounded and never taken for the server's
//! word; a proxy's password is never shown. Called by [`super`].

use super::{away, secret::Secret};
use base64::{Engine, engine::general_purpose::STANDARD};
use std::{env, fmt};
use tidemill_core::{Error, Options, Result};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpStream, lookup_host},
};

/// Bytes of a proxy's answer at most.
const ANSWER: usize = 8 << 10;

/// How to reach servers.
#[derive(Debug, Clone, Default)]
pub enum Proxy {
    /// As the environment says (`HTTPS_PROXY`, `HTTP_PROXY`, `ALL_PROXY`, `NO_PROXY`).
    #[default]
    Environment,
    /// Without one.
    Direct,
    /// Through this one.
    Through(Way),
}

/// One proxy.
#[derive(Debug, Clone)]
pub struct Way {
    socks: bool,
    host: String,
    port: u16,
    user: Option<(String, Secret)>,
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} proxy {}:{}", if self.socks { "SOCKS5" } else { "HTTP" }, self.host, self.port)
    }
}

impl Way {
    /// From `http://host:port`, `socks5://host:port`, with `user:password@` where it is asked for.
    ///
    /// # Errors
    /// What is wrong with it, without its text, which may hold a password.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        let (scheme, rest) = text.trim().split_once("://").unwrap_or(("http", text.trim()));
        let socks = match scheme.to_ascii_lowercase().as_str() {
            "http" => false,
            "socks5" | "socks5h" | "socks" => true,
            "https" => return Err("a proxy that itself speaks TLS is not supported; write http:// or socks5://"),
            _ => return Err("a proxy is http://host:port or socks5://host:port"),
        };
        let rest = rest.split('/').next().unwrap_or_default();
        let (user, place) = match rest.rsplit_once('@') {
            Some((user, place)) => (Some(user), place),
            None => (None, rest),
        };
        let (host, port) = match place.rsplit_once(':') {
            Some((host, port)) => (host, port.parse().map_err(|_| "a proxy's port is a number up to 65535")?),
            None => (place, if socks { 1080 } else { 8080 }),
        };
        let host = host.trim_start_matches('[').trim_end_matches(']');
        if host.is_empty() {
            return Err("a proxy needs a host: http://host:port or socks5://host:port");
        }
        let user = user.map(|user| {
            let (name, password) = user.split_once(':').unwrap_or((user, ""));
            (decode(name), Secret::new(decode(password)))
        });
        Ok(Self { socks, host: host.to_string(), port, user })
    }

    /// A connection to `host:port`.
    async fn connect(&self, host: &str, port: u16) -> Result<TcpStream, String> {
        let stream = TcpStream::connect((self.host.as_str(), self.port)).await;
        let mut stream = stream.map_err(|e| format!("the {self} can't be reached: {e}"))?;
        let opened = if self.socks {
            self.socks(&mut stream, host, port).await
        } else {
            self.tunnel(&mut stream, host, port).await
        };
        opened.map_err(|why| format!("the {self} {why}"))?;
        Ok(stream)
    }

    async fn tunnel(&self, stream: &mut TcpStream, host: &str, port: u16) -> Result<(), String> {
        let place = if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") };
        let mut request = format!("CONNECT {place} HTTP/1.1\r\nHost: {place}\r\n");
        if let Some((user, password)) = &self.user {
            let basic = STANDARD.encode(format!("{user}:{}", password.expose()));
            request.push_str(&format!("Proxy-Authorization: Basic {basic}\r\n"));
        }
        request.push_str("\r\n");
        stream.write_all(request.as_bytes()).await.map_err(|e| e.to_string())?;
        let mut answer = Vec::new();
        // By the byte: what follows the empty line is the server's.
        while !answer.ends_with(b"\r\n\r\n") {
            if answer.len() == ANSWER {
                return Err("answered with a head that has no end".to_string());
            }
            answer.push(stream.read_u8().await.map_err(|_| "hung up")?);
        }
        let line = String::from_utf8_lossy(&answer);
        let line = line.lines().next().unwrap_or_default();
        match line.split(' ').nth(1) {
            Some(code) if line.starts_with("HTTP/1.") && code.len() == 3 && code.starts_with('2') => Ok(()),
            Some("407") => Err("wants a user and a password, or others (407): they stand in the proxy's address, as http://user:password@host:port".to_string()),
            _ => Err(format!("refused to reach {place}: {line}")),
        }
    }

    async fn socks(&self, stream: &mut TcpStream, host: &str, port: u16) -> Result<(), String> {
        let gone = |_| "hung up".to_string();
        let method = if self.user.is_some() { 2 } else { 0 };
        stream.write_all(&[5, 1, method]).await.map_err(gone)?;
        let mut chosen = [0; 2];
        stream.read_exact(&mut chosen).await.map_err(gone)?;
        if chosen[0] != 5 {
            return Err("does not speak SOCKS5".to_string());
        }
        if chosen[1] != method {
            return Err(if method == 0 {
                "wants a user and a password: they stand in the proxy's address, as socks5://user:password@host:port"
            } else {
                "does not take users with passwords"
            }
            .to_string());
        }
        if let Some((user, password)) = &self.user {
            let short =
                |text: &str| u8::try_from(text.len()).map_err(|_| "takes no user or password of over 255 bytes");
            let mut message = vec![1, short(user)?];
            message.extend_from_slice(user.as_bytes());
            message.push(short(password.expose())?);
            message.extend_from_slice(password.expose().as_bytes());
            stream.write_all(&message).await.map_err(gone)?;
            let mut verdict = [0; 2];
            stream.read_exact(&mut verdict).await.map_err(gone)?;
            if verdict[1] != 0 {
                return Err("refused the user or the password".to_string());
            }
        }
        let length = u8::try_from(host.len()).map_err(|_| "takes no name of over 255 bytes")?;
        let mut message = vec![5, 1, 0, 3, length];
        message.extend_from_slice(host.as_bytes());
        message.extend_from_slice(&port.to_be_bytes());
        stream.write_all(&message).await.map_err(gone)?;
        let mut head = [0; 4];
        stream.read_exact(&mut head).await.map_err(gone)?;
        if head[1] != 0 {
            let why = match head[1] {
                2 => "its rules forbid it",
                3 => "the network can't be reached",
                4 => "the host can't be reached",
                5 => "the connection was refused",
                _ => "it failed",
            };
            return Err(format!("did not reach {host}:{port}: {why}"));
        }
        // The address that it is bound to, which is of no use here.
        let rest = match head[3] {
            1 => 4,
            4 => 16,
            3 => usize::from(stream.read_u8().await.map_err(gone)?),
            _ => return Err("does not speak SOCKS5".to_string()),
        };
        stream.read_exact(&mut vec![0; rest + 2]).await.map_err(gone)?;
        Ok(())
    }
}

impl Proxy {
    /// From option `proxy`: `http://host:port`, `socks5://host:port`, `none`; the environment's unless said.
    ///
    /// # Errors
    /// When it is none of these, or holds a password.
    pub fn from_options(options: &Options) -> Result<Self> {
        let owner = options.owner();
        match options.get("proxy") {
            None => Ok(Self::Environment),
            Some("none") => Ok(Self::Direct),
            Some(text) if text.contains('@') => Err(Error::user(format!(
                "{owner}: option `proxy`: a password does not stand in a program; leave the option out and put the proxy's whole address into the environment as HTTPS_PROXY or ALL_PROXY"
            ))),
            Some(text) => {
                let way = Way::parse(text).map_err(|why| Error::user(format!("{owner}: option `proxy`: {why}")))?;
                Ok(Self::Through(way))
            }
        }
    }

    /// The proxy for a server, if any.
    fn way(&self, secure: bool, host: &str) -> Result<Option<Way>, String> {
        match self {
            Self::Direct => Ok(None),
            Self::Through(way) => Ok(Some(way.clone())),
            Self::Environment => from_environment(secure, host, |name| env::var(name).ok()),
        }
    }

    /// A connection to `host:port`.
    pub(crate) async fn connect(&self, secure: bool, host: &str, port: u16) -> Result<TcpStream, String> {
        match self.way(secure, host)? {
            Some(way) => way.connect(host, port).await,
            None => TcpStream::connect((host, port)).await.map_err(|e| format!("{host}:{port}: {e}")),
        }
    }

    /// A connection to where a server has sent us, which is not in this machine or around it. Names that a proxy
    /// looks up are its own to judge.
    pub(super) async fn connect_away(&self, secure: bool, host: &str, port: u16) -> Result<TcpStream, String> {
        if let Some(way) = self.way(secure, host)? {
            return way.connect(host, port).await;
        }
        let failed = |e: std::io::Error| format!("{host}:{port}: {e}");
        let found = lookup_host((host, port)).await.map_err(failed)?.collect();
        TcpStream::connect(away::public_ones(host, found)?.as_slice()).await.map_err(failed)
    }
}

fn from_environment(secure: bool, host: &str, var: impl Fn(&str) -> Option<String>) -> Result<Option<Way>, String> {
    let var = |names: &[&str]| {
        names.iter().find_map(|name| Some((var(name)?, name.to_string()))).filter(|(v, _)| !v.is_empty())
    };
    // A server on this machine is not behind a proxy.
    let local = host == "localhost" || host.parse().is_ok_and(|ip: std::net::IpAddr| ip.is_loopback());
    if local || var(&["NO_PROXY", "no_proxy"]).is_some_and(|(list, _)| is_listed(host, &list)) {
        return Ok(None);
    }
    // `HTTP_PROXY` in capitals can be set by a request to a CGI program, so only the other is taken for plain HTTP.
    let names: &[&str] = if secure {
        &["HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"]
    } else {
        &["http_proxy", "ALL_PROXY", "all_proxy"]
    };
    let Some((text, name)) = var(names) else { return Ok(None) };
    Way::parse(&text).map(Some).map_err(|why| format!("the environment's variable {name}: {why}"))
}

/// Whether `NO_PROXY` has the host: itself, a domain that it is in, or `*`.
fn is_listed(host: &str, list: &str) -> bool {
    list.split(',').map(str::trim).filter(|item| !item.is_empty()).any(|item| {
        let domain = item.trim_start_matches("*.").trim_start_matches('.');
        let below = host.len().checked_sub(domain.len()).and_then(|at| host.get(at..).zip(host.get(..at)));
        item == "*"
            || below.is_some_and(|(end, before)| {
                end.eq_ignore_ascii_case(domain) && (before.is_empty() || before.ends_with('.'))
            })
    })
}

/// `%41` is `A`.
pub(crate) fn decode(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let hex = text.get(at + 1..at + 3).filter(|_| bytes[at] == b'%');
        match hex.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            Some(byte) => {
                out.push(byte);
                at += 3;
            }
            None => {
                out.push(bytes[at]);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proxies_are_read_and_their_passwords_hidden() {
        let way = Way::parse("socks5://ada:p%40ss@proxy.example:1081").unwrap();
        assert_eq!((way.socks, way.host.as_str(), way.port), (true, "proxy.example", 1081));
        assert_eq!(way.user, Some(("ada".to_string(), Secret::new("p@ss"))));
        assert!(!format!("{way:?} {way}").contains("p@ss"));
        assert_eq!(Way::parse("proxy.example").unwrap().port, 8080);
        assert_eq!(Way::parse("http://[::1]:3128/").unwrap().host, "::1");
        for bad in ["ftp://a:1", "http://", "http://a:port", "https://a:1"] {
            assert!(Way::parse(bad).is_err(), "{bad}");
        }
        let error = Proxy::from_options(&Options::new("s", [("proxy", "http://ada:hunter2@a:1")])).unwrap_err();
        assert!(error.to_string().contains("HTTPS_PROXY") && !error.to_string().contains("hunter2"), "{error}");
    }

    #[test]
    fn the_environment_says_which_proxy() {
        let way = |secure, host: &str, vars: &[(&str, &str)]| {
            let vars = vars.to_vec();
            from_environment(secure, host, |name| vars.iter().find(|(n, _)| *n == name).map(|(_, v)| v.to_string()))
                .map(|way| way.map(|way| way.host))
        };
        assert_eq!(way(true, "a.example", &[]), Ok(None));
        assert_eq!(way(true, "a.example", &[("HTTPS_PROXY", "http://p:1")]), Ok(Some("p".to_string())));
        assert_eq!(way(true, "a.example", &[("all_proxy", "socks5://q:1")]), Ok(Some("q".to_string())));
        // Plain HTTP does not take the variable that a request could set.
        assert_eq!(way(false, "a.example", &[("HTTP_PROXY", "http://p:1")]), Ok(None));
        assert_eq!(way(false, "a.example", &[("http_proxy", "http://p:1")]), Ok(Some("p".to_string())));
        for (no, host, direct) in [
            ("a.example", "a.example", true),
            ("example", "a.example", true),
            (".Example", "a.example", true),
            ("b.example, *", "a.example", true),
            ("xample", "a.example", false),
            ("", "a.example", false),
            ("x", "localhost", true),
            ("x", "127.0.0.1", true),
        ] {
            let found = way(true, host, &[("HTTPS_PROXY", "http://p:1"), ("NO_PROXY", no)]).unwrap();
            assert_eq!(found.is_none(), direct, "{no} {host}");
        }
        assert!(way(true, "a.example", &[("HTTPS_PROXY", "gopher://p")]).unwrap_err().contains("HTTPS_PROXY"));
    }
}
