//! A service of streams that trims, splits, expires and refuses as the test says, by the test's clock.
//!
//! What a server of tests in public use does not: it closes no shard and trims nothing.

use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, VecDeque},
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard},
    time::{Duration, UNIX_EPOCH},
};
use tidemill_core::{Clock, ManualClock, Timestamp};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

/// The account that it knows.
pub(super) const KEY: &str = "tidekey";

#[derive(Default)]
pub(super) struct Shard {
    parents: Vec<String>,
    /// Number, data, arrival.
    records: Vec<(u64, String, Timestamp)>,
    is_closed: bool,
}

/// What is answered instead.
#[derive(Clone)]
pub(super) enum Odd {
    /// A refusal of this code and kind.
    Refusal(u16, &'static str),
    /// A success with this body.
    Body(String),
    /// Nothing: the connection is closed.
    Nothing,
}

pub(super) struct World {
    pub(super) shards: BTreeMap<String, Shard>,
    pub(super) created: i64,
    /// Records of a page at most.
    pub(super) page: usize,
    /// Iterators of earlier generations have expired.
    pub(super) generation: u64,
    /// Whether a number that was trimmed is refused, or taken for the oldest.
    pub(super) refuses_trimmed: bool,
    /// Answers that come instead, by call.
    pub(super) odd: VecDeque<(&'static str, Odd)>,
    /// What was asked: the call, its body, and when.
    pub(super) asked: Vec<(String, Value, Timestamp)>,
    count: u64,
}

#[derive(Clone)]
pub(super) struct Fake {
    pub(super) address: SocketAddr,
    pub(super) clock: Arc<ManualClock>,
    world: Arc<Mutex<World>>,
}

/// A sequence number of the length that they have.
pub(super) fn sequence(number: u64) -> String {
    format!("49{number:054}")
}

impl Fake {
    /// With so many shards, which keep records for a day.
    pub(super) async fn start(shards: usize) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let all = (0..shards).map(|at| (format!("shard-{at}"), Shard::default()));
        let world = World {
            shards: all.collect(),
            created: 1_700_000_000,
            page: 2,
            generation: 0,
            refuses_trimmed: false,
            odd: VecDeque::new(),
            asked: Vec::new(),
            count: 0,
        };
        let fake = Self {
            address: listener.local_addr().unwrap(),
            clock: Arc::new(ManualClock::at(Timestamp(1_700_000_000_000_000))),
            world: Arc::new(Mutex::new(world)),
        };
        let serving = fake.clone();
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                tokio::spawn(serving.clone().serve(stream));
            }
        });
        fake
    }

    pub(super) fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap()
    }

    /// How often a call was asked.
    pub(super) fn count(&self, action: &str) -> usize {
        self.world().asked.iter().filter(|(asked, ..)| asked == action).count()
    }

    /// Records come to a shard.
    pub(super) fn put(&self, shard: &str, data: &[&str]) {
        let now = self.clock.now();
        let mut world = self.world();
        for one in data {
            world.count += 1;
            let number = world.count;
            world.shards.get_mut(shard).unwrap().records.push((number, (*one).to_string(), now));
        }
    }

    /// Shards are closed, and others come of them.
    pub(super) fn reshard(&self, parents: &[&str], children: &[&str]) {
        let mut world = self.world();
        for parent in parents {
            world.shards.get_mut(*parent).unwrap().is_closed = true;
        }
        for child in children {
            let parents = parents.iter().map(ToString::to_string).collect();
            world.shards.insert((*child).to_string(), Shard { parents, ..Shard::default() });
        }
    }

    /// What arrived over a day ago is removed.
    pub(super) fn trim(&self) {
        let horizon = self.clock.now().minus(Duration::from_secs(86_400));
        for shard in self.world().shards.values_mut() {
            shard.records.retain(|(_, _, arrived)| *arrived >= horizon);
        }
    }

    async fn serve(self, mut stream: TcpStream) -> Option<()> {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.ok()?);
        }
        let head = String::from_utf8(head).unwrap();
        let header = |name: &str| {
            head.lines().find_map(|line| {
                let (key, value) = line.split_once(':')?;
                key.eq_ignore_ascii_case(name).then(|| value.trim().to_string())
            })
        };
        let mut body = vec![0; header("content-length").unwrap().parse().unwrap()];
        stream.read_exact(&mut body).await.ok()?;
        assert_eq!(header("content-type").unwrap(), "application/x-amz-json-1.1");
        assert_eq!(header("host").unwrap(), self.address.to_string());
        let action = header("x-amz-target").unwrap().strip_prefix("Kinesis_20131202.").unwrap().to_string();
        let body: Value = serde_json::from_slice(&body).unwrap();
        let signed = header("authorization").unwrap();
        let odd = {
            let mut world = self.world();
            world.asked.push((action.clone(), body.clone(), self.clock.now()));
            let at = world.odd.iter().position(|(call, _)| *call == action);
            at.and_then(|at| world.odd.remove(at)).map(|(_, odd)| odd)
        };
        let known = signed.starts_with(&format!("AWS4-HMAC-SHA256 Credential={KEY}/"))
            && signed.contains("/us-east-1/kinesis/aws4_request")
            && signed.contains("x-amz-target");
        let (code, text) = match odd {
            _ if !known => (400, refusal("UnrecognizedClientException", "The security token is invalid.")),
            Some(Odd::Nothing) => return None,
            Some(Odd::Body(text)) => (200, text),
            Some(Odd::Refusal(code, kind)) => (code, refusal(kind, "so said the test")),
            None => match self.answer(&action, &body) {
                Ok(answer) => (200, answer.to_string()),
                Err(kind) => (400, refusal(kind, "of the service")),
            },
        };
        let micros = u64::try_from(self.clock.now().0).unwrap();
        let date = httpdate::fmt_http_date(UNIX_EPOCH + Duration::from_micros(micros));
        let length = text.len();
        let head =
            format!("HTTP/1.1 {code} X\r\ndate: {date}\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n");
        stream.write_all(format!("{head}{text}").as_bytes()).await.ok()
    }

    fn answer(&self, action: &str, body: &Value) -> Result<Value, &'static str> {
        let world = self.world();
        let is_known = action == "GetRecords" || body.get("NextToken").is_some() || body["StreamName"] == "words";
        if !is_known {
            return Err("ResourceNotFoundException");
        }
        match action {
            "DescribeStreamSummary" => Ok(json!({"StreamDescriptionSummary":
                {"RetentionPeriodHours": 24, "StreamCreationTimestamp": world.created}})),
            "ListShards" => {
                // One a page.
                let at: usize = body["NextToken"].as_str().map_or(0, |token| token.parse().unwrap());
                let listed: Vec<Value> =
                    world.shards.iter().skip(at).take(1).map(|(id, shard)| listed(id, shard)).collect();
                let more = at + 1 < world.shards.len();
                Ok(json!({"Shards": listed, "NextToken": more.then(|| (at + 1).to_string())}))
            }
            "GetShardIterator" => {
                let id = body["ShardId"].as_str().unwrap();
                let shard = world.shards.get(id).ok_or("ResourceNotFoundException")?;
                let oldest = shard.records.first().map_or(0, |(number, ..)| *number);
                let at = match body["ShardIteratorType"].as_str().unwrap() {
                    "TRIM_HORIZON" => 0,
                    "AT_TIMESTAMP" => {
                        let time = body["Timestamp"].as_f64().unwrap() * 1e6;
                        let since = shard.records.iter().find(|(_, _, at)| at.0 as f64 >= time);
                        since.map_or(world.count + 1, |(number, ..)| *number)
                    }
                    "AT_SEQUENCE_NUMBER" => {
                        let number: u64 = body["StartingSequenceNumber"].as_str().unwrap()[2..].parse().unwrap();
                        let is_there = shard.records.iter().any(|(have, ..)| *have == number);
                        if !is_there && world.refuses_trimmed {
                            return Err("InvalidArgumentException");
                        }
                        number.max(oldest)
                    }
                    other => panic!("{other}"),
                };
                Ok(json!({"ShardIterator": format!("{id}/{at}/{}", world.generation)}))
            }
            "GetRecords" => {
                let parts: Vec<&str> = body["ShardIterator"].as_str().unwrap().split('/').collect();
                let (from, generation): (u64, u64) = (parts[1].parse().unwrap(), parts[2].parse().unwrap());
                if generation < world.generation {
                    return Err("ExpiredIteratorException");
                }
                let shard = world.shards.get(parts[0]).ok_or("ResourceNotFoundException")?;
                let limit = world.page.min(usize::try_from(body["Limit"].as_u64().unwrap()).unwrap());
                let mut rest = shard.records.iter().filter(|(number, ..)| *number >= from);
                let page: Vec<_> = rest.by_ref().take(limit).collect();
                let next = page.last().map_or(from, |(number, ..)| number + 1);
                let behind = rest
                    .next()
                    .map_or(Duration::ZERO, |(_, _, at)| self.clock.now().since(*at).max(Duration::from_millis(1)));
                let is_out = shard.is_closed && behind.is_zero();
                let records: Vec<Value> = page.iter().map(|(number, data, at)| record(*number, data, *at)).collect();
                Ok(json!({"Records": records, "MillisBehindLatest": u64::try_from(behind.as_millis()).unwrap(),
                    "NextShardIterator": (!is_out).then(|| format!("{}/{next}/{}", parts[0], world.generation))}))
            }
            other => panic!("{other}"),
        }
    }
}

fn listed(id: &str, shard: &Shard) -> Value {
    let mut listed = json!({"ShardId": id, "SequenceNumberRange": {"StartingSequenceNumber": "1"}});
    for (name, parent) in ["ParentShardId", "AdjacentParentShardId"].iter().zip(&shard.parents) {
        listed[*name] = json!(parent);
    }
    if shard.is_closed {
        listed["SequenceNumberRange"]["EndingSequenceNumber"] = json!("9");
    }
    listed
}

fn record(number: u64, data: &str, at: Timestamp) -> Value {
    use base64::{Engine, engine::general_purpose::STANDARD};
    json!({"SequenceNumber": sequence(number), "PartitionKey": "key", "Data": STANDARD.encode(data),
        "ApproximateArrivalTimestamp": at.millis() as f64 / 1000.0})
}

fn refusal(kind: &str, message: &str) -> String {
    json!({"__type": format!("com.amazonaws.kinesis.v20131202#{kind}"), "message": message}).to_string()
}
