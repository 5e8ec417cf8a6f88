//! Servers of tests: one that answers as a test says, and one that has documents and changes.
//!
//! [`serve`] speaks the wire protocol (OP_MSG, and the old query that a first
//! greeting may be). [`Sea`] is a collection whose changes are told later than its
//! documents show them, as of a replica set whose members are not equally far.
//!
//! Invariant: all is on loopback, and what a sea does is drawn by a seed. Used by tests alone.

use crate::backoff::splitmix64;
use futures::FutureExt;
use mongodb::bson::{Bson, Document, Timestamp as ServerTime, doc};
use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, copy},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::watch,
};

/// Answers a command, or hangs up.
pub(in crate::mongo) type Answer = Arc<dyn Fn(&Document) -> Option<Document> + Send + Sync>;

/// A refusal.
pub(super) fn refusal(code: i32, why: &str) -> Option<Document> {
    Some(doc! { "ok": 0, "code": code, "errmsg": why })
}

/// Answers everybody.
pub(in crate::mongo) async fn serve(answer: Answer) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            // Who hangs up is no error here.
            tokio::spawn(talk(stream, Arc::clone(&answer)).map(drop));
        }
    });
    format!("mongodb://{address}/db")
}

fn hello() -> Document {
    doc! {
        "ok": 1, "helloOk": true, "isWritablePrimary": true, "ismaster": true, "minWireVersion": 0, "maxWireVersion": 21,
        "maxBsonObjectSize": 16 << 20, "maxMessageSizeBytes": 48_000_000, "maxWriteBatchSize": 100_000,
    }
}

async fn talk(mut stream: TcpStream, answer: Answer) -> std::io::Result<()> {
    loop {
        let mut head = [0; 16];
        stream.read_exact(&mut head).await?;
        let number = |at: usize| i32::from_le_bytes(head[at..at + 4].try_into().unwrap());
        let mut body = vec![0; usize::try_from(number(0)).unwrap() - 16];
        stream.read_exact(&mut body).await?;
        let is_query = number(12) == 2004;
        let at = if is_query { 4 + body[4..].iter().position(|b| *b == 0).unwrap() + 9 } else { 5 };
        let command = Document::from_reader(&body[at..]).unwrap();
        let name = command.keys().next().unwrap().to_lowercase();
        let answer = match name.as_str() {
            "hello" | "ismaster" => Some(hello()),
            "endsessions" | "killcursors" => Some(doc! { "ok": 1 }),
            _ => answer(&command),
        };
        let Some(answer) = answer else { return Ok(()) };
        let mut payload = if is_query { [vec![0; 16], 1_i32.to_le_bytes().to_vec()].concat() } else { vec![0; 5] };
        answer.to_writer(&mut payload).unwrap();
        let length = i32::try_from(payload.len() + 16).unwrap();
        let kind = if is_query { 1 } else { 2013 };
        let head = [length, 1, number(4), kind].map(i32::to_le_bytes).concat();
        // At once: a second piece would wait for the acknowledgement of the first.
        stream.write_all(&[head, payload].concat()).await?;
    }
}

/// A way to a server that can be cut, for a while.
pub(super) struct Way {
    pub(super) url: String,
    pub(super) open: watch::Sender<bool>,
}

/// A way to the server of an address.
pub(super) async fn way(to: &str) -> Way {
    let (host, database) = to.strip_prefix("mongodb://").unwrap().split_once('/').unwrap();
    let to: SocketAddr = host.parse().unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("mongodb://{}/{database}", listener.local_addr().unwrap());
    let (open, opened) = watch::channel(true);
    tokio::spawn(async move {
        while let Ok((near, _)) = listener.accept().await {
            let mut opened = opened.clone();
            if !*opened.borrow() {
                continue;
            }
            tokio::spawn(async move {
                let Ok(far) = TcpStream::connect(to).await else { return };
                let ((mut asks, mut hears), (mut answers, mut server)) = (near.into_split(), far.into_split());
                tokio::select! {
                    _ended = copy(&mut asks, &mut server) => {}
                    _ended = pass_on(&mut answers, &mut hears) => {}
                    _cut = opened.wait_for(|open| !open) => {}
                }
            });
        }
    });
    Way { url, open }
}

/// Passes answers on. The server of the tests numbers its cursors of changes with 32 bits, where the protocol has 64
/// and the driver takes no others.
async fn pass_on(from: &mut OwnedReadHalf, to: &mut OwnedWriteHalf) -> std::io::Result<()> {
    loop {
        let mut head = [0; 16];
        from.read_exact(&mut head).await?;
        let number = |at: usize| i32::from_le_bytes(head[at..at + 4].try_into().unwrap());
        let mut body = vec![0; usize::try_from(number(0)).unwrap() - 16];
        from.read_exact(&mut body).await?;
        if number(12) == 2013 {
            let mut answer = Document::from_reader(&body[5..]).unwrap();
            let cursor = answer.get_document_mut("cursor").ok();
            if let Some((cursor, id)) = cursor.and_then(|cursor| cursor.get_i32("id").ok().map(|id| (cursor, id))) {
                cursor.insert("id", i64::from(id));
                body.truncate(5);
                answer.to_writer(&mut body).unwrap();
            }
        }
        head[..4].copy_from_slice(&i32::try_from(body.len() + 16).unwrap().to_le_bytes());
        to.write_all(&[&head[..], &body].concat()).await?;
    }
}

/// A collection that changes while it is read.
pub(super) struct Sea(Mutex<Water>);

struct Water {
    documents: std::collections::BTreeMap<String, i64>,
    /// Each change, at the time of its place.
    changes: Vec<Document>,
    /// How many of them are told.
    told: usize,
    /// Cursors: their place among the changes.
    cursors: Vec<usize>,
    /// Changes that it still makes by itself.
    left: usize,
    random: u64,
}

impl Water {
    fn draw(&mut self, below: usize) -> usize {
        self.random = self.random.wrapping_add(1);
        usize::try_from(splitmix64(self.random) % below as u64).unwrap()
    }

    fn change(&mut self, what: &str, id: &str) {
        let n = i64::try_from(self.changes.len()).unwrap();
        match what {
            "delete" => drop(self.documents.remove(id)),
            _ => drop(self.documents.insert(id.to_string(), n)),
        }
        let full = if what == "delete" { Bson::Null } else { doc! { "_id": id, "n": n }.into() };
        self.changes.push(doc! {
            "_id": token(self.changes.len() + 1), "operationType": what, "fullDocument": full,
            "documentKey": { "_id": id }, "ns": { "db": "db", "coll": "c" },
        });
    }

    /// Something happens, now and then.
    fn drift(&mut self) {
        for _ in 0..self.draw(4) {
            if self.left == 0 {
                return;
            }
            self.left -= 1;
            let known: Vec<String> = self.documents.keys().cloned().collect();
            match (self.draw(5), known.len()) {
                (0, 1..) => {
                    let id = known[self.draw(known.len())].clone();
                    self.change("update", &id);
                }
                _ => {
                    // Anywhere among the others.
                    let id = format!("{:03}-{}", self.draw(1000), self.changes.len());
                    self.change("insert", &id);
                }
            }
        }
    }

    fn cursor(&mut self, id: i64, part: &str, at: usize) -> Document {
        let batch: Vec<Bson> = self.changes[at..self.told.max(at)].iter().take(3).cloned().map(Bson::from).collect();
        let next = at + batch.len();
        self.cursors[usize::try_from(id).unwrap() - 1] = next;
        let place = if batch.is_empty() { self.told.max(at) } else { next };
        doc! { "ok": 1, "cursor": { "id": id, "ns": "db.c", part: batch, "postBatchResumeToken": token(place) } }
    }
}

/// The token behind so many changes.
fn token(place: usize) -> Document {
    doc! { "_data": format!("82{:08x}00000001", place) }
}

fn place(token: &Document) -> usize {
    usize::from_str_radix(&token.get_str("_data").unwrap()[2..10], 16).unwrap()
}

impl Sea {
    /// With so many documents, and so many changes to come.
    pub(super) fn new(seed: u64, documents: usize, changes: usize) -> Arc<Self> {
        let mut water = Water {
            documents: Default::default(),
            changes: Vec::new(),
            told: 0,
            cursors: Vec::new(),
            left: changes,
            random: seed << 32,
        };
        for n in 0..documents {
            let id = format!("{:03}-{n}", water.draw(1000));
            water.change("insert", &id);
        }
        water.told = water.changes.len();
        Arc::new(Self(Mutex::new(water)))
    }

    /// Inserts a document, behind which nothing happens any more.
    pub(super) fn end_with(&self, id: &str) {
        let mut water = self.0.lock().unwrap();
        water.left = 0;
        water.change("insert", id);
    }

    /// The ids that were ever inserted, in order.
    pub(super) fn inserted(&self) -> Vec<String> {
        let water = self.0.lock().unwrap();
        let inserts = water.changes.iter().filter(|change| change.get_str("operationType").unwrap() == "insert");
        let mut ids: Vec<String> = inserts
            .map(|change| change.get_document("documentKey").unwrap().get_str("_id").unwrap().to_string())
            .collect();
        ids.sort();
        ids
    }

    pub(super) fn answer(&self, command: &Document) -> Option<Document> {
        let mut water = self.0.lock().unwrap();
        match command.keys().next().unwrap().as_str() {
            "ping" => {
                let time = u32::try_from(water.changes.len()).unwrap();
                Some(doc! { "ok": 1, "operationTime": ServerTime { time, increment: 1 } })
            }
            "aggregate" => {
                let stage = command.get_array("pipeline").unwrap()[0].as_document().unwrap();
                let options = stage.get_document("$changeStream").unwrap();
                let from = ["resumeAfter", "startAfter"].iter().find_map(|key| options.get_document(key).ok());
                let at = from.map_or(water.told, place);
                water.cursors.push(at);
                let id = i64::try_from(water.cursors.len()).unwrap();
                let mut first = water.cursor(id, "firstBatch", at);
                if from.is_none() {
                    first.get_document_mut("cursor").unwrap().insert("firstBatch", Bson::Array(Vec::new()));
                    water.cursors[usize::try_from(id).unwrap() - 1] = at;
                }
                Some(first)
            }
            "getMore" => {
                water.drift();
                // It tells later than it shows.
                let more = water.draw(3);
                water.told = (water.told + more).min(water.changes.len());
                let id = command.get_i64("getMore").unwrap();
                let at = water.cursors[usize::try_from(id).unwrap() - 1];
                Some(water.cursor(id, "nextBatch", at))
            }
            "find" => {
                water.drift();
                let filter = command.get_document("filter").unwrap();
                let behind = filter.get_document("_id").ok().map(|id| id.get_str("$gt").unwrap().to_string());
                let limit = usize::try_from(command.get_i64("limit").unwrap()).unwrap();
                let all = water.documents.iter().filter(|(id, _)| behind.as_ref().is_none_or(|behind| *id > behind));
                let one = |(id, n): (&String, &i64)| Bson::from(doc! { "_id": id, "n": n });
                let found: Vec<Bson> = if command.get_document("sort").unwrap().get_i32("_id").unwrap() < 0 {
                    all.rev().take(limit).map(one).collect()
                } else {
                    all.take(limit).map(one).collect()
                };
                water.drift();
                Some(doc! { "ok": 1, "cursor": { "id": 0_i64, "ns": "db.c", "firstBatch": found } })
            }
            other => refusal(59, other),
        }
    }
}
