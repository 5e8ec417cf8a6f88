//! The arguments of a page: where it is served, to whom, and encrypted or not.
//!
//! Invariant: tokens and keys come from files that only their owner can read,
//! or from the environment, and are printed nowhere. What is wrong with these
//! arguments is told before anything is started, as a wrong command line is.
//! Called by `run` and `demo`.

use super::{secrets, values};
use clap::Args;
use std::{net::SocketAddr, path::PathBuf};
use tidemill::{
    Result,
    web::{Access, Role, Tls, Tokens},
};

/// The variable that may hold a token of an admin.
const TOKEN: &str = "TIDEMILL_WEB_TOKEN";

/// Where the page is served, and to whom.
#[derive(Debug, Args)]
pub(super) struct PageArgs {
    /// Address of the page; port 0 takes any free port. Another than loopback needs tokens and TLS.
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:4040", value_parser = values::address)]
    pub(super) web: SocketAddr,

    /// File of those who may ask the page, mode 0600, with lines `role token name`; roles are viewer, operator and
    /// admin, and `sha256:HEX` stands for a token's hash.
    #[arg(long, value_name = "FILE", alias = "http-tokens", help_heading = HEADING)]
    web_tokens: Option<PathBuf>,

    /// Certificate of the page, in PEM; it is then served by https alone.
    #[arg(long, value_name = "FILE", alias = "http-tls-cert", requires = "web_tls_key", help_heading = HEADING)]
    web_tls_cert: Option<PathBuf>,

    /// Key of the certificate, in PEM, readable by no others.
    #[arg(long, value_name = "FILE", alias = "http-tls-key", requires = "web_tls_cert", help_heading = HEADING)]
    web_tls_key: Option<PathBuf>,

    /// Another name by which the page is asked, such as mill.example; may be given more than once.
    #[arg(long, value_name = "NAME[:PORT]", alias = "http-host", help_heading = HEADING)]
    web_host: Vec<String>,
}

const HEADING: &str = "Who may ask the page";

impl PageArgs {
    /// What the server is told of who may reach it, checked against the address.
    ///
    /// # Errors
    /// A user's error when a file can't be read or is open to others, or when it is not enough for the address.
    pub(super) fn access(&self) -> Result<Access> {
        let mut access = Access::default();
        let mut tokens = None;
        if let Some(path) = &self.web_tokens {
            let text = secrets::read(path, "the tokens", secrets::OWNER_ONLY)?;
            tokens = Some(Tokens::parse(&text, &path.display().to_string())?);
        }
        if let Some(token) = secrets::variable(TOKEN) {
            tokens = Some(tokens.unwrap_or_default().with(Role::Admin, token.trim(), "environment")?);
        }
        if let Some(tokens) = tokens {
            access = access.tokens(tokens);
        }
        if let (Some(certificate), Some(key)) = (&self.web_tls_cert, &self.web_tls_key) {
            let chain = secrets::read(certificate, "the certificate", secrets::ANYBODY)?;
            let secret = secrets::read(key, "the key", secrets::NO_OTHERS)?;
            let (chain_name, key_name) = (certificate.display().to_string(), key.display().to_string());
            access = access.tls(Tls::from_pem((&chain_name, chain.as_bytes()), (&key_name, secret.as_bytes()))?);
        }
        for name in &self.web_host {
            access = access.host(name)?;
        }
        access.check(self.web)?;
        Ok(access)
    }
}
