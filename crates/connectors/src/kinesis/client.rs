//! Calls of the service: signed requests, and what its refusals mean.
//!
//! A call is a POST of JSON with its name in `X-Amz-Target`; a refusal names its
//! kind in `__type`. Those that a shard's reader mends by itself are kinds of
//! [`Fault`]; all others are failures, which wait or need a human.
//!
//! Invariant: a call is bounded in time and in the bytes of its answer. Called by
//! [`super::session`].

use super::{
    Name,
    answer::{self, Listed, Page, Summary},
};
use crate::{
    aws::Caller,
    http::{Link, Request, failure::Failure},
};
use bytes::Bytes;
use object_store::client::HttpRequestBody;
use serde_json::{Value, json};
use tidemill_core::{Error, Timestamp};

/// Bytes of an answer at most: 10 MiB of records are 14 MiB of base64, and 10,000 of them have names and keys.
const ANSWER: usize = 32 << 20;
/// Pages of a list of shards at most, each of up to a thousand.
const PAGES: usize = 100;

/// Why a call failed.
#[derive(Debug)]
pub(super) enum Fault {
    /// The iterator is too old.
    Expired,
    /// The shard gives no more for now: others read it as well, or it was too much at once.
    Throttled(String),
    /// There is no such stream, or shard.
    Missing(String),
    /// The service takes an argument for wrong, as it does with a sequence number that it has not.
    Argument(String),
    /// All else.
    Other(Failure),
}

impl Fault {
    /// As a failure of everything.
    pub(super) fn failure(self, stream: &str) -> Failure {
        match self {
            Self::Expired => Failure::Network("an iterator expired at once".to_string()),
            Self::Throttled(why) => Failure::Network(why),
            Self::Missing(why) => Failure::Fatal(Error::user(format!(
                "kinesis: there is no stream `{stream}` in this region and account: check `stream` and `region` ({why})"
            ))),
            Self::Argument(why) => Failure::Denied(format!("kinesis: {why}")),
            Self::Other(failure) => failure,
        }
    }
}

/// From where a shard is read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum From {
    Oldest,
    Time(Timestamp),
    /// The record with this number, and on.
    At(String),
}

/// The service, for one stream.
#[derive(Debug)]
pub(super) struct Client {
    pub(super) caller: Caller,
    pub(super) endpoint: String,
    pub(super) stream: Name,
    pub(super) link: Link,
}

impl Client {
    /// All shards of the stream, those that are closed as well, and the service's time.
    pub(super) async fn list(&self) -> Result<(Vec<Listed>, Timestamp), Fault> {
        let (mut all, mut body) = (Vec::new(), self.stream.named());
        for _ in 0..PAGES {
            let (answer, at) = self.call("ListShards", &body).await?;
            let (mut listed, next) = answer::shards(&answer).map_err(|why| self.nonsense("ListShards", &why))?;
            all.append(&mut listed);
            match next {
                None => return Ok((all, at)),
                Some(next) => body = json!({ "NextToken": next }),
            }
        }
        Err(self.nonsense("ListShards", &format!("the list has over {PAGES} pages")))
    }

    /// When the stream was made, and how long it keeps records.
    pub(super) async fn summary(&self) -> Result<Summary, Fault> {
        let (answer, _) = self.call("DescribeStreamSummary", &self.stream.named()).await?;
        answer::summary(&answer).map_err(|why| self.nonsense("DescribeStreamSummary", &why))
    }

    /// An iterator of a shard.
    pub(super) async fn iterator(&self, shard: &str, from: &From) -> Result<String, Fault> {
        let mut body = self.stream.named();
        body["ShardId"] = json!(shard);
        let kind = match from {
            From::Oldest => "TRIM_HORIZON",
            From::Time(time) => {
                #[expect(clippy::cast_precision_loss, reason = "milliseconds of this era have 41 bits")]
                let seconds = time.millis() as f64 / 1000.0;
                body["Timestamp"] = json!(seconds);
                "AT_TIMESTAMP"
            }
            From::At(sequence) => {
                body["StartingSequenceNumber"] = json!(sequence);
                "AT_SEQUENCE_NUMBER"
            }
        };
        body["ShardIteratorType"] = json!(kind);
        let (answer, _) = self.call("GetShardIterator", &body).await?;
        answer::iterator(&answer).map_err(|why| self.nonsense("GetShardIterator", &why))
    }

    /// The records at an iterator, at most so many, and the service's time.
    pub(super) async fn records(&self, iterator: &str, limit: usize) -> Result<(Page, Timestamp), Fault> {
        let body = json!({ "ShardIterator": iterator, "Limit": limit });
        let (answer, at) = self.call("GetRecords", &body).await?;
        Ok((answer::page(&answer).map_err(|why| self.nonsense("GetRecords", &why))?, at))
    }

    fn nonsense(&self, action: &str, why: &str) -> Fault {
        Fault::Other(Failure::Network(format!("{} answers {action} with nonsense: {why}", self.endpoint)))
    }

    pub(super) async fn call(&self, action: &str, body: &Value) -> Result<(Value, Timestamp), Fault> {
        let broken = |why: String| Fault::Other(Failure::Fatal(Error::internal(format!("kinesis: {why}"))));
        let body = Bytes::from(body.to_string());
        let request = hyper::Request::post(format!("{}/", self.endpoint))
            .header(hyper::header::CONTENT_TYPE, "application/x-amz-json-1.1")
            .header("x-amz-target", format!("Kinesis_20131202.{action}"))
            .body(HttpRequestBody::from(body.clone()));
        let mut request = request.map_err(|e| broken(e.to_string()))?;
        self.caller.sign("kinesis", &mut request).await.map_err(Fault::Other)?;
        let (head, _) = request.into_parts();
        let request = Request::from_parts(head.method, head.uri, head.headers, body).map_err(broken)?;
        let mut answer = self.link.send_unmoved(&request).await.map_err(Fault::Other)?;
        let whole = answer.whole(ANSWER).await.map_err(Fault::Other)?;
        let at = answer.date().unwrap_or_else(|| self.link.clock.now());
        let (status, kind) = (answer.status.as_u16(), answer.header("x-amzn-errortype").map(str::to_string));
        if answer.status.is_success() {
            let value = serde_json::from_slice(&whole);
            return Ok((value.map_err(|_| self.nonsense(action, "it is no JSON"))?, at));
        }
        Err(self.refusal(action, status, kind.as_deref(), &whole))
    }

    /// What a refusal means.
    fn refusal(&self, action: &str, status: u16, kind: Option<&str>, body: &[u8]) -> Fault {
        let said: Value = serde_json::from_slice(body).unwrap_or_default();
        let kind = said["__type"].as_str().or(kind).unwrap_or_default();
        // `com.amazonaws.kinesis#LimitExceededException:http://…`
        let kind = kind.rsplit('#').next().unwrap_or_default().split(':').next().unwrap_or_default();
        let message = said["message"].as_str().or(said["Message"].as_str()).unwrap_or_default();
        let kind_shown: String = kind.chars().filter(|c| c.is_ascii_alphanumeric()).take(80).collect();
        let message: String = message.chars().filter(|c| !c.is_control()).take(300).collect();
        let why = if kind.is_empty() {
            format!("{} answers {action} with {status}", self.endpoint)
        } else {
            format!("{action}: {kind_shown}: {message}")
        };
        match kind {
            "ExpiredIteratorException" => Fault::Expired,
            "ProvisionedThroughputExceededException"
            | "LimitExceededException"
            | "KMSThrottlingException"
            | "ThrottlingException" => Fault::Throttled(why),
            "ResourceNotFoundException" => Fault::Missing(message),
            "InvalidArgumentException" => Fault::Argument(why),
            // A list's token is too old, or the stream is just being made.
            "ExpiredNextTokenException" | "ResourceInUseException" => Fault::Other(Failure::Network(why)),
            _ if status >= 500 || status == 429 || status == 408 => Fault::Other(Failure::Network(why)),
            "InvalidSignatureException" | "SignatureDoesNotMatch" | "RequestExpired" => {
                let hint = "check AWS_SECRET_ACCESS_KEY, and the clock of this machine";
                Fault::Other(Failure::Denied(format!("kinesis: {why}; {hint}")))
            }
            "AccessDeniedException"
            | "UnrecognizedClientException"
            | "InvalidClientTokenId"
            | "ExpiredTokenException"
            | "MissingAuthenticationTokenException"
            | "IncompleteSignatureException"
            | "OptInRequired" => {
                let hint = "check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, and what they may do";
                Fault::Other(Failure::Denied(format!("kinesis: {why}; {hint}")))
            }
            // As servers before the service answer.
            "" if matches!(status, 401 | 403) => {
                let hint = "check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY";
                Fault::Other(Failure::Denied(format!("kinesis: {why}; {hint}")))
            }
            "" => Fault::Other(Failure::Denied(format!("kinesis: {why}; is `endpoint` right?"))),
            _ => Fault::Other(Failure::Denied(format!("kinesis: {why}"))),
        }
    }
}
