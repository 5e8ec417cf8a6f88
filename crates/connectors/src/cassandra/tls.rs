//! TLS with nodes: whom to trust.
//!
//! A driver finds nodes by their addresses, and asks for certificates of those. So that a certificate may say the
//! names as well under which the program knows the cluster, it is good when it is for the address or for one of
//! option `hosts`.
//!
//! Invariant: a certificate is trusted only by way of those that the file of option `ca` has, or of the web's; for
//! which name alone is open. Called by `server.rs`.

use rustls::{
    ClientConfig, DigitallySignedStruct, Error as TlsError, RootCertStore, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::ring,
    pki_types::{CertificateDer, ServerName, UnixTime, pem::PemObject},
};
use std::{path::Path, sync::Arc};
use tidemill_core::{Error, Result};

/// One of several names.
#[derive(Debug)]
struct AnyName {
    usual: Arc<WebPkiServerVerifier>,
    names: Vec<ServerName<'static>>,
}

impl ServerCertVerifier for AnyName {
    fn verify_server_cert(
        &self,
        own: &CertificateDer<'_>,
        chain: &[CertificateDer<'_>],
        address: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, TlsError> {
        let first = self.usual.verify_server_cert(own, chain, address, ocsp, now);
        let of = |name| self.usual.verify_server_cert(own, chain, name, ocsp, now);
        first.or_else(|error| self.names.iter().find_map(|name| of(name).ok()).ok_or(error))
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        own: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        self.usual.verify_tls12_signature(message, own, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        own: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        self.usual.verify_tls13_signature(message, own, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.usual.supported_verify_schemes()
    }
}

/// What connections are made with.
///
/// # Errors
/// When the file can't be read, or has no certificate.
pub(super) fn config<'a>(ca: Option<&Path>, names: impl Iterator<Item = &'a str>) -> Result<Arc<ClientConfig>> {
    let mut roots = RootCertStore::empty();
    match ca {
        None => roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned()),
        Some(path) => {
            let wrong = |why| Error::user(format!("cassandra: option `ca`: {} {why}", path.display()));
            let all = CertificateDer::pem_file_iter(path).map_err(|e| wrong("can't be read").because(e))?;
            for certificate in all {
                let certificate = certificate.map_err(|e| wrong("is no file of certificates").because(e))?;
                roots.add(certificate).map_err(|e| wrong("has a certificate that is none").because(e))?;
            }
            if roots.is_empty() {
                return Err(wrong("has no certificate"));
            }
        }
    }
    let provider = Arc::new(ring::default_provider());
    let usual = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider));
    let usual = usual.build().map_err(|e| Error::internal("cassandra: TLS").because(e))?;
    let names = names.filter_map(|name| ServerName::try_from(name.trim_matches(['[', ']']).to_string()).ok());
    let verifier = AnyName { usual, names: names.collect() };
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| Error::internal("cassandra: TLS").because(e))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    Ok(Arc::new(config))
}
