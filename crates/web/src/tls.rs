//! The server's certificate and key.
//!
//! Invariant: rustls with the house's provider, HTTP/1.1 alone; nothing prints
//! the key. Made by whoever starts the server, used by it for each connection.

use rustls::{
    ServerConfig,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};
use std::{fmt, sync::Arc};
use tidemill_core::{Error, Result};
use tokio_rustls::TlsAcceptor;

/// How connections are encrypted.
#[derive(Clone)]
pub struct Tls(Arc<ServerConfig>);

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(a certificate and its key)")
    }
}

impl Tls {
    /// From PEM: the certificate with those between it and its authority, and its key.
    /// The names of both are for errors.
    ///
    /// # Errors
    /// A user's error when one is not there, or they do not belong together.
    pub fn from_pem(certificates: (&str, &[u8]), key: (&str, &[u8])) -> Result<Self> {
        let (chain_name, chain) = certificates;
        let wrong = |why: &str| Error::user(format!("{chain_name} {why}"));
        let chain = CertificateDer::pem_slice_iter(chain)
            .collect::<std::result::Result<Vec<_>, _>>()
            .map_err(|e| wrong("is no certificate in PEM").because(e))?;
        if chain.is_empty() {
            return Err(wrong("holds no certificate: a PEM file with `BEGIN CERTIFICATE` is needed"));
        }
        let (key_name, key) = key;
        // What is wrong with a key is told without the cause, which might show some of it.
        let key = PrivateKeyDer::from_pem_slice(key).map_err(|_| {
            Error::user(format!(
                "{key_name} holds no private key: a PEM file with `BEGIN PRIVATE KEY` and no passphrase is needed"
            ))
        })?;
        let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|e| Error::internal("TLS can't be set up").because(e))?
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .map_err(|e| wrong(&format!("can't be served with the key in {key_name}")).because(e))?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self(Arc::new(config)))
    }

    /// What speaks it.
    pub(crate) fn acceptor(&self) -> TlsAcceptor {
        TlsAcceptor::from(Arc::clone(&self.0))
    }
}
