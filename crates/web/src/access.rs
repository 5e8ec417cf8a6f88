//! What a server is told of who may reach it and ask.
//!
//! Invariant: an address that other machines can reach is served only with
//! tokens and TLS. Given by whoever starts the server; [`Access::check`] says
//! before anything is bound whether it is enough.

use crate::{tls::Tls, tokens::Tokens};
use std::net::{IpAddr, SocketAddr};
use tidemill_core::{Error, Result};

/// Who may reach a server, and ask. The default: loopback only, and all who
/// reach it are admins.
#[derive(Debug, Clone, Default)]
pub struct Access {
    pub(crate) tokens: Option<Tokens>,
    pub(crate) tls: Option<Tls>,
    /// As they were given, in lower case.
    pub(crate) hosts: Vec<String>,
}

impl Access {
    /// Only those who have one of these tokens.
    #[must_use]
    pub fn tokens(mut self, tokens: Tokens) -> Self {
        self.tokens = Some(tokens);
        self
    }

    /// Only encrypted.
    #[must_use]
    pub fn tls(mut self, tls: Tls) -> Self {
        self.tls = Some(tls);
        self
    }

    /// Also under this name, `NAME` or `NAME:PORT`. Without a port, it is the server's own.
    ///
    /// # Errors
    /// A user's error when it is no name that a `Host` header could carry.
    pub fn host(mut self, name: &str) -> Result<Self> {
        let wrong = || {
            Error::user(format!(
                "`{}` is no name of a server: write it without a scheme or path, such as mill.example or mill.example:8443",
                name.escape_debug()
            ))
        };
        let (host, port) = match name.rsplit_once(':') {
            // The colons of an address of version 6 stand in brackets.
            Some((host, port)) if !port.contains(']') => (host, Some(port)),
            _ => (name, None),
        };
        if port.is_some_and(|port| port.parse::<u16>().is_err() || port.starts_with(['0', '+'])) {
            return Err(wrong());
        }
        let is_v6 = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')?.parse::<IpAddr>().ok()).is_some();
        let plain = |c: char| c.is_ascii_alphanumeric() || c == '.' || c == '-';
        if !is_v6 && (host.is_empty() || host.len() > 253 || !host.chars().all(plain)) {
            return Err(wrong());
        }
        self.hosts.push(name.to_ascii_lowercase());
        Ok(self)
    }

    /// Whether this is enough to serve `address`.
    ///
    /// # Errors
    /// A user's error that says what is missing, and what else could be done.
    pub fn check(&self, address: SocketAddr) -> Result<()> {
        if address.ip().is_loopback() {
            if self.tokens.is_none() && !self.hosts.is_empty() {
                return Err(Error::user(
                    "a server that is known by another name than this machine's own is reached by others, so it needs \
                     tokens: give `--web-tokens FILE` with `--web-host`",
                ));
            }
            return Ok(());
        }
        let missing = match (&self.tokens, &self.tls) {
            (Some(_), Some(_)) => return Ok(()),
            (None, Some(_)) => "tokens are missing: give `--web-tokens FILE`",
            (Some(_), None) => "TLS is missing: give `--web-tls-cert FILE` and `--web-tls-key FILE`",
            (None, None) => {
                "tokens and TLS are missing: give `--web-tokens FILE`, `--web-tls-cert FILE` and `--web-tls-key FILE`"
            }
        };
        Err(Error::user(format!(
            "other machines can reach {address}, so the page is not served there as it is: {missing}. \
             Or use `--web 127.0.0.1:{port}` and, from another machine, an SSH tunnel (`ssh -L {port}:127.0.0.1:{port} HOST`)",
            port = address.port(),
        )))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Role;

    #[test]
    fn a_name_is_one_that_a_header_could_carry() {
        for name in ["mill.example", "Mill.Example:8443", "192.0.2.1", "[2001:db8::1]", "[2001:db8::1]:443", "mill"] {
            let access = Access::default().host(name).unwrap();
            assert_eq!(access.hosts, [name.to_ascii_lowercase()]);
        }
        for name in [
            "",
            ":1",
            "a:",
            "a:x",
            "a:0",
            "a:+1",
            "a:65536",
            "http://a",
            "a/b",
            "a b",
            "a@b",
            "*",
            "*.example",
            "a,b",
            "2001:db8::1",
            "[a]",
            "é",
        ] {
            let error = Access::default().host(name).unwrap_err().chain();
            assert!(error.contains("is no name of a server"), "{name}: {error}");
        }
    }

    #[test]
    fn what_others_can_reach_needs_tokens_and_tls() {
        let tokens = || Tokens::default().with(Role::Admin, "a-token-of-0123456789", "a").unwrap();
        for address in ["0.0.0.0:4040", "[::]:4040", "192.0.2.1:4040", "[::ffff:127.0.0.1]:4040"] {
            let address: SocketAddr = address.parse().unwrap();
            let error = Access::default().check(address).unwrap_err().chain();
            for told in ["--web-tokens", "--web-tls-cert", "--web-tls-key", "--web 127.0.0.1:4040", "ssh -L"] {
                assert!(error.contains(told), "{error}");
            }
            let error = Access::default().tokens(tokens()).check(address).unwrap_err().chain();
            assert!(error.contains("TLS is missing") && !error.contains("--web-tokens"), "{error}");
        }
        for address in ["127.0.0.1:0", "127.9.9.9:1", "[::1]:1"] {
            let address: SocketAddr = address.parse().unwrap();
            Access::default().check(address).unwrap();
            let named = Access::default().host("mill.example").unwrap();
            assert!(named.check(address).unwrap_err().chain().contains("--web-tokens"));
            named.tokens(tokens()).check(address).unwrap();
        }
    }
}
