//! Signing requests by OAuth 1.0a: RFC 5849, with HMAC-SHA1.
//!
//! Invariant: what is signed is what is sent: method, address, query and form.
//! Time and nonce are handed in. Called by the collector of version 1.1 of X,
//! and by its simulation, which checks signatures with it.

use super::{common::encode, secret::Secret};
use base64::{Engine, engine::general_purpose::STANDARD};
use ring::hmac;
use tidemill_core::{Error, Result, Timestamp};

/// The keys of a program and of a user.
#[derive(Debug, Clone)]
pub struct Keys {
    /// The program's name.
    pub consumer_key: Secret,
    /// Its secret.
    pub consumer_secret: Secret,
    /// The user's name.
    pub token: Secret,
    /// The user's secret.
    pub token_secret: Secret,
}

impl Keys {
    /// From four credentials: consumer key and secret, access token and secret.
    ///
    /// # Errors
    /// When they are not four.
    pub fn from_secrets(all: Vec<Secret>) -> Result<Self> {
        let found = all.len();
        let [consumer_key, consumer_secret, token, token_secret] = <[Secret; 4]>::try_from(all).map_err(|_| {
            Error::user(format!(
                "OAuth 1.0a needs four credentials, each on a line: consumer key, consumer secret, access token, access token secret; found {found}"
            ))
        })?;
        Ok(Self { consumer_key, consumer_secret, token, token_secret })
    }

    /// The header `Authorization` of a request. `url` is without query; `parameters` are those of query and form, as
    /// they are before they are encoded.
    pub fn header(
        &self,
        method: &str,
        url: &str,
        parameters: &[(String, String)],
        now: Timestamp,
        nonce: &str,
    ) -> String {
        let mut own = vec![
            ("oauth_consumer_key", self.consumer_key.expose().to_string()),
            ("oauth_nonce", nonce.to_string()),
            ("oauth_signature_method", "HMAC-SHA1".to_string()),
            ("oauth_timestamp", now.0.div_euclid(1_000_000).to_string()),
            ("oauth_token", self.token.expose().to_string()),
            ("oauth_version", "1.0".to_string()),
        ];
        let signed = own.iter().map(|(k, v)| ((*k).to_string(), v.clone())).chain(parameters.iter().cloned());
        let signature = self.sign(method, url, signed);
        own.push(("oauth_signature", signature));
        own.sort_unstable();
        let own: Vec<String> = own.iter().map(|(key, value)| format!("{key}=\"{}\"", encode(value))).collect();
        format!("OAuth {}", own.join(", "))
    }

    /// The signature of all parameters, those of OAuth too.
    pub fn sign(&self, method: &str, url: &str, parameters: impl IntoIterator<Item = (String, String)>) -> String {
        let mut encoded: Vec<(String, String)> =
            parameters.into_iter().map(|(key, value)| (encode(&key), encode(&value))).collect();
        encoded.sort_unstable();
        let pairs: Vec<String> = encoded.iter().map(|(key, value)| format!("{key}={value}")).collect();
        let base = format!("{}&{}&{}", method.to_uppercase(), encode(url), encode(&pairs.join("&")));
        let key = format!("{}&{}", encode(self.consumer_secret.expose()), encode(self.token_secret.expose()));
        let key = hmac::Key::new(hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, key.as_bytes());
        STANDARD.encode(hmac::sign(&key, base.as_bytes()))
    }
}

/// Sixteen random bytes, as text.
///
/// # Errors
/// When the system has none.
pub(super) fn nonce() -> Result<String> {
    let bytes: ring::rand::Random<[u8; 16]> = ring::rand::generate(&ring::rand::SystemRandom::new())
        .map_err(|_| Error::external("the system gives no random numbers"))?;
    Ok(bytes.expose().iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(all: [&str; 4]) -> Keys {
        Keys::from_secrets(all.map(Secret::new).to_vec()).unwrap()
    }

    fn owned(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        pairs.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect()
    }

    /// The example of X's guide "Creating a signature".
    #[test]
    fn the_example_of_x_has_its_signature() {
        let keys = keys([
            "xvz1evFS4wEEPTGEFPHBog",
            "kAcSOqF21Fu85e7zjz7ZN2U4ZRhfV3WpwPAoE3Z7kBw",
            "370773112-GmHxMAgYyLbNEtIKZeRNFsMKPR9EyMZeS9weJAEb",
            "LswwdoUaIvS8ltyTt5jkRh4J50vUPVVHtR2YPi5kE",
        ]);
        let parameters =
            owned(&[("include_entities", "true"), ("status", "Hello Ladies + Gentlemen, a signed OAuth request!")]);
        let header = keys.header(
            "post",
            "https://api.twitter.com/1.1/statuses/update.json",
            &parameters,
            Timestamp(1_318_622_958_000_000),
            "kYjzVBB8Y0ZFabxSWbWovY3uYSQ2pTgmZeNu2VS4cg",
        );
        assert!(header.contains("oauth_signature=\"hCtSmYh%2BiHYCEqBWrE7C7hYmtUk%3D\""), "{header}");
        assert!(header.starts_with("OAuth oauth_consumer_key=\"xvz1evFS4wEEPTGEFPHBog\", oauth_nonce="), "{header}");
    }

    /// The example of RFC 5849, section 1.2, which has no `oauth_version`.
    #[test]
    fn the_example_of_the_standard_has_its_signature() {
        let keys = keys(["dpf43f3p2l4k3l03", "kd94hf93k423kf44", "nnch734d00sl2jdk", "pfkkdhi9sl3r4s00"]);
        let parameters = owned(&[
            ("oauth_consumer_key", "dpf43f3p2l4k3l03"),
            ("oauth_token", "nnch734d00sl2jdk"),
            ("oauth_signature_method", "HMAC-SHA1"),
            ("oauth_timestamp", "137131202"),
            ("oauth_nonce", "chapoH"),
            ("file", "vacation.jpg"),
            ("size", "original"),
        ]);
        let signature = keys.sign("GET", "http://photos.example.net/photos", parameters);
        assert_eq!(signature, "MdpQcU8iPSUjWoN/UDMsK2sui9I=");
    }

    #[test]
    fn keys_are_four_and_nonces_differ() {
        assert!(Keys::from_secrets(vec![Secret::new("a")]).unwrap_err().to_string().contains("found 1"));
        let (a, b) = (nonce().unwrap(), nonce().unwrap());
        assert!(a != b && a.len() == 32);
    }
}
