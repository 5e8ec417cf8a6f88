//! What tests see of a bucket: its objects, by plain requests.
//!
//! Invariant: it goes past the sink's client, so that the two can't share a
//! fault. The server of tests looks at no signature. Called by tests here and above.

pub use crate::objects::probe::rows_of;

use crate::http::{Link, Request};
use bytes::Bytes;
use std::collections::BTreeMap;

/// The server that tests talk to, `TIDEMILL_S3`, with an empty bucket of this name. `None`, and said, when there is none.
///
/// # Panics
/// When there is none and `TIDEMILL_SERVICES=required`.
pub async fn server(bucket: &str) -> Option<String> {
    let Ok(endpoint) = std::env::var("TIDEMILL_S3") else {
        let required = std::env::var("TIDEMILL_SERVICES").is_ok_and(|services| services == "required");
        assert!(!required, "TIDEMILL_S3 is not set, and TIDEMILL_SERVICES=required");
        eprintln!("skipped: TIDEMILL_S3 is not set; ci/services up starts a server");
        return None;
    };
    // Of an earlier run; then anew.
    for key in names(&endpoint, bucket).await {
        ask("DELETE", &format!("{endpoint}/{bucket}/{key}")).await;
    }
    ask("PUT", &format!("{endpoint}/{bucket}")).await;
    Some(endpoint)
}

async fn ask(method: &str, url: &str) -> (u16, Vec<u8>) {
    let method = hyper::Method::from_bytes(method.as_bytes()).expect("a method");
    // Looked at for the account alone.
    let credential =
        "AWS4-HMAC-SHA256 Credential=test/20260131/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=0";
    let headers = [("authorization", credential)].map(|(name, value)| {
        let value = hyper::header::HeaderValue::from_static(value);
        (hyper::header::HeaderName::from_static(name), value)
    });
    let url = url.replace('%', "%25").replace(' ', "%20");
    let request =
        Request::from_parts(method, url.parse().expect("an address"), headers.into_iter().collect(), Bytes::new());
    let mut answer = Link::default().send_unmoved(&request.expect("a request")).await.expect("an answer");
    (answer.status.as_u16(), answer.whole(1 << 26).await.expect("a body"))
}

/// The names of a bucket's objects; none when it is not there.
///
/// # Panics
/// When the server does not answer.
pub async fn names(endpoint: &str, bucket: &str) -> Vec<String> {
    let (mut all, mut after) = (Vec::new(), String::new());
    loop {
        let (_, list) = ask("GET", &format!("{endpoint}/{bucket}?list-type=2&start-after={after}")).await;
        let list = String::from_utf8(list).expect("text");
        let before = all.len();
        all.extend(list.split("<Key>").skip(1).filter_map(|rest| Some(rest.split_once("</Key>")?.0.to_string())));
        match all.last() {
            Some(last) if all.len() > before => after = last.clone(),
            _ => return all,
        }
    }
}

/// All objects of a bucket by name.
///
/// # Panics
/// When the server does not answer.
pub async fn objects(endpoint: &str, bucket: &str) -> BTreeMap<String, Vec<u8>> {
    let mut all = BTreeMap::new();
    for key in names(endpoint, bucket).await {
        let bytes = ask("GET", &format!("{endpoint}/{bucket}/{key}")).await.1;
        all.insert(key, bytes);
    }
    all
}
