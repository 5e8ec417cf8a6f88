//! What is answered: how many records were taken, or why none was, where, and what helps.
//!
//! Invariant: an answer shows nothing of a token, and of a body only places.
//! Called by [`super::desk`], and made by all that refuse.

use bytes::Bytes;
use http_body_util::Full;
use hyper::{
    Response, StatusCode,
    header::{self, HeaderValue},
};
use serde_json::json;

/// An answer on its way.
pub(super) type Answer = Response<Full<Bytes>>;

/// Why a request is not taken.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) status: StatusCode,
    /// What is wrong.
    pub(super) error: String,
    /// Where in the body.
    pub(super) place: Option<String>,
    /// What to do about it.
    pub(super) fix: String,
    header: Option<(&'static str, &'static str)>,
}

impl Refusal {
    pub(super) fn new(status: StatusCode, error: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { status, error: error.into(), place: None, fix: fix.into(), header: None }
    }

    /// With the place in the body.
    pub(super) fn at(mut self, place: impl Into<String>) -> Self {
        self.place = Some(place.into());
        self
    }

    /// With a header that belongs to the code.
    pub(super) fn with(mut self, name: &'static str, value: &'static str) -> Self {
        self.header = Some((name, value));
        self
    }

    /// What is larger than an option allows.
    pub(super) fn too_large(error: impl Into<String>, option: &str) -> Self {
        let fix = format!("send less at a time, or set the stream's option `{option}`");
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, error, fix)
    }

    /// What is not as it says it is.
    pub(super) fn bad(error: impl Into<String>, fix: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, error, fix)
    }

    /// This receiver has its hands full.
    pub(super) fn too_many() -> Self {
        let fix = "send it again after a second, and fewer requests at the same time";
        Self::new(StatusCode::TOO_MANY_REQUESTS, "more requests are being taken than there is room for", fix)
            .with("retry-after", "1")
    }

    /// The log takes nothing now, and has nothing of this request.
    pub(super) fn behind() -> Self {
        let error = "the program is behind with what it has; nothing of this request was taken";
        Self::new(StatusCode::SERVICE_UNAVAILABLE, error, "send it again after a second").with("retry-after", "1")
    }

    /// The log has failed or is being closed.
    pub(super) fn broken(error: impl Into<String>) -> Self {
        let fix = "send it again, with the same Idempotency-Key if it has one";
        Self::new(StatusCode::SERVICE_UNAVAILABLE, error, fix).with("retry-after", "5")
    }

    pub(super) fn answer(&self) -> Answer {
        let mut body = json!({ "error": self.error, "fix": self.fix });
        if let Some(place) = &self.place {
            body["place"] = json!(place);
        }
        let mut answer = write(self.status, &body);
        if let Some((name, value)) = self.header {
            answer.headers_mut().insert(name, HeaderValue::from_static(value));
        }
        answer
    }
}

/// All records are durable.
pub(super) fn taken(records: usize, repeated: bool) -> Answer {
    let mut body = json!({ "records": records });
    if repeated {
        body["repeated"] = json!(true);
    }
    write(StatusCode::OK, &body)
}

fn write(status: StatusCode, body: &serde_json::Value) -> Answer {
    let mut answer = Response::new(Full::new(Bytes::from(format!("{body}\n"))));
    *answer.status_mut() = status;
    let headers = answer.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    answer
}
