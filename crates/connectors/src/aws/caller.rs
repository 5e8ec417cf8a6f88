//! Who asks a service of Amazon's: credentials, and the signature made with them.
//!
//! Credentials are looked for where the client of S3 looks for them: in
//! `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY` and `AWS_SESSION_TOKEN`, in a web
//! identity, or in the role of the machine. Those that end are fetched anew before.
//!
//! Invariant: a request is signed with its body and headers, and no credential
//! is shown. Called by [`crate::kinesis`].

use super::Over;
use crate::http::{Link, failure::Failure};
use object_store::{
    aws::{AmazonS3Builder, AmazonS3ConfigKey, AwsAuthorizer, AwsCredentialProvider},
    client::HttpRequest,
};
use tidemill_core::{Error, Result};

/// The region, where nobody says one.
const REGION: &str = "us-east-1";

/// Credentials, and the region that they are used in.
#[derive(Debug, Clone)]
pub(crate) struct Caller {
    credentials: AwsCredentialProvider,
    region: String,
}

impl Caller {
    /// Who the environment says that we are.
    ///
    /// # Errors
    /// When what it says does not go together.
    pub(crate) fn from_environment(region: Option<&str>, link: &Link) -> Result<Self> {
        let mut builder = AmazonS3Builder::from_env();
        let said = region.map(str::to_string).or_else(|| builder.get_config_value(&AmazonS3ConfigKey::Region));
        let region = said.unwrap_or_else(|| REGION.to_string());
        // Of the client of S3 only the credentials are taken; it sends nothing to a bucket.
        builder = builder.with_bucket_name("none").with_region(&region).with_http_connector(Over(link.clone()));
        let client = builder.build().map_err(|e| Error::user("AWS credentials can't be found so").because(e))?;
        Ok(Self { credentials: AwsCredentialProvider::clone(client.credentials()), region })
    }

    /// The region of its services.
    pub(crate) fn region(&self) -> &str {
        &self.region
    }

    /// Signs a request to a service.
    ///
    /// # Errors
    /// When there are no credentials, or none that can be sent.
    pub(crate) async fn sign(&self, service: &str, request: &mut HttpRequest) -> Result<(), Failure> {
        let found = self.credentials.get_credential().await.map_err(|error| {
            let hint = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or give this machine a role";
            Failure::Denied(Error::user(format!("no AWS credentials were found: {hint}")).because(error).chain())
        })?;
        let plain = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_graphic());
        if !plain(&found.key_id) || !found.token.as_deref().is_none_or(plain) {
            let why = "AWS_ACCESS_KEY_ID or AWS_SESSION_TOKEN is empty, or has spaces or signs that none has";
            return Err(Failure::Fatal(Error::user(why)));
        }
        let signer = AwsAuthorizer::new(&found, service, &self.region);
        let signed = signer.try_authorize(request, None);
        signed.map_err(|error| Failure::Fatal(Error::internal("a request can't be signed").because(error)))
    }

    /// One with these credentials.
    #[cfg(test)]
    pub(crate) fn of(key: &str, secret: &str, token: Option<&str>) -> Self {
        let credential = object_store::aws::AwsCredential {
            key_id: key.to_string(),
            secret_key: secret.to_string(),
            token: token.map(str::to_string),
        };
        let credentials = std::sync::Arc::new(object_store::StaticCredentialProvider::new(credential));
        Self { credentials, region: REGION.to_string() }
    }
}
