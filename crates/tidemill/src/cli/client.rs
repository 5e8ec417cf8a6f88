//! A client of a running program's page, for commands that ask it.
//!
//! Invariant: the answer is bounded and so is the wait; a token goes to this
//! machine, or over TLS to a server whose certificate is trusted, and is
//! printed nowhere. Called by `status`.

use super::{secrets, values};
use clap::Args;
use rustls::{
    ClientConfig, ClientConnection, RootCertStore, StreamOwned,
    crypto::ring,
    pki_types::{CertificateDer, ServerName, pem::PemObject},
};
use serde_json::Value;
use std::{
    io::{self, Read, Write},
    net::{SocketAddr, TcpStream, ToSocketAddrs},
    path::{Path, PathBuf},
    sync::Arc,
};
use tidemill::{Duration, Error, Result};

/// Bytes of an answer at most.
const ANSWER: u64 = 16 << 20;
/// How long to wait for each step.
const WAIT: Duration = Duration::from_secs(5);
/// The variable that may hold the token.
const TOKEN: &str = "TIDEMILL_TOKEN";

/// Which page to ask, and as whom.
#[derive(Debug, Args)]
pub(super) struct ClientArgs {
    /// Address of the program's page: host:port on this machine, or https://NAME:PORT.
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:4040", value_parser = site)]
    web: Site,

    /// File with the token, if the page needs one, mode 0600 [or the variable TIDEMILL_TOKEN].
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,

    /// Certificates to trust for https, in PEM [default: the web's].
    #[arg(long, value_name = "FILE", alias = "http-ca")]
    web_ca: Option<PathBuf>,
}

/// Where a page is.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Site {
    Plain(SocketAddr),
    /// The name in its certificate, and the port.
    Tls(String, u16),
}

/// `127.0.0.1:4040` and its short forms, `http://127.0.0.1:4040`, `https://mill.example:4040`.
fn site(text: &str) -> Result<Site, String> {
    let Some(place) = text.strip_prefix("https://") else {
        return values::address(text.strip_prefix("http://").unwrap_or(text).trim_end_matches('/')).map(Site::Plain);
    };
    let place = place.trim_end_matches('/');
    let (name, port) = match place.rsplit_once(':') {
        Some((name, port)) if !port.contains(']') => (name, port.parse().ok()),
        _ => (place, Some(443)),
    };
    let name = name.trim_start_matches('[').trim_end_matches(']');
    match port {
        Some(port) if ServerName::try_from(name).is_ok() => Ok(Site::Tls(name.to_string(), port)),
        _ => Err("write the address of a page as host:port or https://NAME:PORT".to_string()),
    }
}

/// One that asks.
pub(super) struct Client {
    site: Site,
    token: Option<String>,
    tls: Option<Arc<ClientConfig>>,
}

impl ClientArgs {
    /// A client, with the token if there is one.
    ///
    /// # Errors
    /// When the files of the arguments can't be read, or the token would be sent in clear.
    pub(super) fn client(&self) -> Result<Client> {
        let token = match &self.token_file {
            Some(path) => Some((secrets::read(path, "the token", secrets::OWNER_ONLY)?, path.display().to_string())),
            None => secrets::variable(TOKEN).map(|token| (token, format!("the variable {TOKEN}"))),
        };
        let token = token.map(|(text, origin)| one(&text, &origin)).transpose()?;
        if let Site::Plain(address) = self.web
            && token.is_some()
            && !address.ip().is_loopback()
        {
            return Err(Error::user(format!(
                "a token is not sent to {address} in clear: write the page's address as https://NAME:PORT"
            )));
        }
        let tls = match self.web {
            Site::Plain(_) => None,
            Site::Tls(..) => Some(trusting(self.web_ca.as_deref())?),
        };
        Ok(Client { site: self.web.clone(), token, tls })
    }
}

/// The token of a text that holds nothing else.
fn one(text: &str, origin: &str) -> Result<String> {
    let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    match (lines.next(), lines.next()) {
        (Some(token), None) if token.bytes().all(|b| b.is_ascii_graphic()) => Ok(token.to_string()),
        _ => Err(Error::user(format!("{origin} holds no token: one line with the token alone is needed"))),
    }
}

fn trusting(certificates: Option<&Path>) -> Result<Arc<ClientConfig>> {
    let mut roots = RootCertStore::empty();
    match certificates {
        None => roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned()),
        Some(path) => {
            let text = secrets::read(path, "the certificates", secrets::ANYBODY)?;
            let wrong = || Error::user(format!("{} holds no certificate in PEM", path.display()));
            for certificate in CertificateDer::pem_slice_iter(text.as_bytes()) {
                let certificate = certificate.map_err(|e| wrong().because(e))?;
                roots.add(certificate).map_err(|e| wrong().because(e))?;
            }
            if roots.is_empty() {
                return Err(wrong());
            }
        }
    }
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|e| Error::internal("TLS can't be set up").because(e))?;
    Ok(Arc::new(config.with_root_certificates(roots).with_no_client_auth()))
}

impl Client {
    /// A GET of a JSON answer.
    ///
    /// # Errors
    /// When nobody answers, it is no page of ours, or it refuses.
    pub(super) fn get(&self, path: &str) -> Result<Value> {
        let (shown, host) = match &self.site {
            Site::Plain(address) => (format!("http://{address}"), address.to_string()),
            Site::Tls(name, port) => {
                let name = if name.contains(':') { format!("[{name}]") } else { name.clone() };
                (format!("https://{name}:{port}"), format!("{name}:{port}"))
            }
        };
        let nobody = |e: io::Error| {
            let place = shown.strip_prefix("http://").unwrap_or(&shown);
            Error::external(format!(
                "no program answers at {place}: start one, or name its page with --web ADDR (a running program prints it)"
            ))
            .because(e)
        };
        let bearer = self.token.as_ref().map(|token| format!("Authorization: Bearer {token}\r\n")).unwrap_or_default();
        let request = format!(
            "GET {path} HTTP/1.1\r\nHost: {host}\r\nAccept: application/json\r\n{bearer}Connection: close\r\n\r\n"
        );
        let answer = self.exchange(request.as_bytes()).map_err(nobody)?;
        let strange = || Error::external(format!("what answers at {shown}{path} is no Tidemill page"));
        let end = answer.windows(4).position(|w| w == b"\r\n\r\n").ok_or_else(strange)?;
        let head = String::from_utf8_lossy(&answer[..end]);
        let status = head.lines().next().and_then(|line| line.split(' ').nth(1)).unwrap_or_default();
        let body: Value = serde_json::from_slice(&answer[end + 4..]).map_err(|e| strange().because(e))?;
        let why = body["error"].as_str().map(|why| why.chars().filter(|c| !c.is_control()).collect::<String>());
        match (status, why) {
            ("200", _) => Ok(body),
            ("401", _) if self.token.is_none() => Err(Error::user(format!(
                "the page at {shown} asks for a token: put it into a file of mode 0600 and name that with --token-file, or \
                 set {TOKEN}"
            ))),
            ("401" | "403" | "429", Some(why)) => Err(Error::user(format!("the page at {shown} refuses: {why}"))),
            _ => Err(strange()),
        }
    }

    /// Sends a request and takes all that comes.
    fn exchange(&self, request: &[u8]) -> io::Result<Vec<u8>> {
        let mut answer = Vec::new();
        match (&self.site, &self.tls) {
            (Site::Tls(name, port), Some(tls)) => {
                let server = ServerName::try_from(name.clone()).map_err(io::Error::other)?;
                let connection = ClientConnection::new(Arc::clone(tls), server).map_err(io::Error::other)?;
                let mut stream = StreamOwned::new(connection, connect(&mut (name.as_str(), *port).to_socket_addrs()?)?);
                stream.write_all(request)?;
                stream.flush()?;
                stream.take(ANSWER).read_to_end(&mut answer)?;
            }
            (Site::Plain(address), _) => {
                let mut stream = connect(&mut std::iter::once(*address))?;
                stream.write_all(request)?;
                stream.take(ANSWER).read_to_end(&mut answer)?;
            }
            (Site::Tls(..), None) => return Err(io::Error::other("there is no TLS")),
        }
        Ok(answer)
    }
}

/// Connects to the first that answers.
fn connect(addresses: &mut dyn Iterator<Item = SocketAddr>) -> io::Result<TcpStream> {
    let mut last = io::Error::other("this name has no address");
    for address in addresses {
        match TcpStream::connect_timeout(&address, WAIT) {
            Ok(stream) => {
                stream.set_read_timeout(Some(WAIT))?;
                stream.set_write_timeout(Some(WAIT))?;
                return Ok(stream);
            }
            Err(error) => last = error,
        }
    }
    Err(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_named_in_short_or_with_its_scheme() {
        let plain = Site::Plain("127.0.0.1:4040".parse().unwrap());
        for text in ["127.0.0.1:4040", "localhost:4040", "4040", "http://127.0.0.1:4040", "http://127.0.0.1:4040/"] {
            assert_eq!(site(text), Ok(plain.clone()), "{text}");
        }
        let tls = |name: &str, port| Ok(Site::Tls(name.to_string(), port));
        assert_eq!(site("https://mill.example:4040"), tls("mill.example", 4040));
        assert_eq!(site("https://mill.example/"), tls("mill.example", 443));
        assert_eq!(site("https://[2001:db8::1]:4040"), tls("2001:db8::1", 4040));
        for wrong in ["https://", "https://a b", "https://mill.example:x", "https://a/b", "ftp://a:1", "example"] {
            assert!(site(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_token_is_one_line() {
        assert_eq!(one("# mine\n canary \n", "f").unwrap(), "canary");
        for wrong in ["", "canary\ncanary", "ca nary", "canäry", "# canary"] {
            let error = one(wrong, "the file f").unwrap_err().chain();
            assert!(error.contains("the file f holds no token") && !error.contains("nary"), "{error}");
        }
    }
}
