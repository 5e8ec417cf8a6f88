//! A leader that is new and tells an end too early: between us and the server stands one that answers so.

use super::*;
use crate::{contract::read, kafka::probe};
use std::{
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU32, Ordering::SeqCst},
    },
    thread::JoinHandle,
};
use tidemill_core::{Budget, Position};

const ALL: Budget = Budget { records: u64::MAX, bytes: u64::MAX, parallelism: 1 };

/// The protocol's numbers of requests.
const FETCH: i16 = 1;
const API_VERSIONS: i16 = 18;
/// The last version of a fetch whose numbers all have a fixed size.
const FIXED: i16 = 11;

/// One who stands between, and answers so many fetches by itself: there is nothing, it ends where you are.
struct Between {
    address: String,
    answers: Arc<AtomicU32>,
    goes: Arc<AtomicBool>,
    stands: Option<JoinHandle<()>>,
}

impl Between {
    fn stand(address: String, target: String) -> Self {
        let listener = TcpListener::bind(&address).unwrap();
        let (answers, goes) = (Arc::new(AtomicU32::new(0)), Arc::new(AtomicBool::new(false)));
        let (shared, until) = (Arc::clone(&answers), Arc::clone(&goes));
        let stands = std::thread::spawn(move || {
            for client in listener.incoming().flatten().take_while(|_| !until.load(SeqCst)) {
                let (target, answers) = (target.clone(), Arc::clone(&shared));
                // A connection that ends is the client's affair.
                std::thread::spawn(move || drop(between(client, &target, &answers)));
            }
        });
        Self { address, answers, goes, stands: Some(stands) }
    }
}

impl Drop for Between {
    fn drop(&mut self) {
        self.goes.store(true, SeqCst);
        // Wakes it; the address is free when it has gone.
        drop(TcpStream::connect(&self.address));
        let _gone = self.stands.take().map(JoinHandle::join);
    }
}

fn between(mut client: TcpStream, target: &str, answers: &AtomicU32) -> std::io::Result<()> {
    let mut server = TcpStream::connect(target)?;
    let (back, mut from) = (Arc::new(Mutex::new(client.try_clone()?)), server.try_clone()?);
    let to_client = Arc::clone(&back);
    let asked = Arc::new(Mutex::new(Vec::new()));
    let versions = Arc::clone(&asked);
    std::thread::spawn(move || {
        while let Ok(mut answer) = frame(&mut from) {
            let id = answer[..4].to_vec();
            if versions.lock().unwrap().contains(&id) {
                bound_fetches(&mut answer);
            }
            if send(&mut to_client.lock().unwrap(), &answer).is_err() {
                break;
            }
        }
        // Also for who waits to read more of the client.
        let _ended = to_client.lock().unwrap().shutdown(std::net::Shutdown::Both);
    });
    while let Ok(request) = frame(&mut client) {
        let number = |at: usize| i16::from_be_bytes([request[at], request[at + 1]]);
        if number(0) == API_VERSIONS {
            asked.lock().unwrap().push(request[4..8].to_vec());
        }
        match (number(0) == FETCH).then(|| too_early(&request)).flatten() {
            Some(answer) if answers.fetch_update(SeqCst, SeqCst, |left| left.checked_sub(1)).is_ok() => {
                send(&mut back.lock().unwrap(), &answer)?;
            }
            _ => send(&mut server, &request)?,
        }
    }
    server.shutdown(std::net::Shutdown::Both)
}

/// A request or an answer, which stand behind their lengths.
fn frame(from: &mut TcpStream) -> std::io::Result<Vec<u8>> {
    let mut length = [0; 4];
    from.read_exact(&mut length)?;
    let mut bytes = vec![0; usize::try_from(i32::from_be_bytes(length)).unwrap()];
    from.read_exact(&mut bytes)?;
    Ok(bytes)
}

fn send(to: &mut TcpStream, bytes: &[u8]) -> std::io::Result<()> {
    to.write_all(&[&i32::try_from(bytes.len()).unwrap().to_be_bytes(), bytes].concat())
}

/// Takes newer fetches out of what a server says that it can: id, error, a count and one more, and then of each
/// request its number, the least and the last version, and a byte.
fn bound_fetches(answer: &mut [u8]) {
    let requests = usize::from(answer[6]) - 1;
    for api in answer[7..].chunks_exact_mut(7).take(requests) {
        if api[..2] == FETCH.to_be_bytes() {
            api[4..6].copy_from_slice(&FIXED.to_be_bytes());
        }
    }
}

/// The answer to a fetch of one partition, that it ends where it is read from.
fn too_early(request: &[u8]) -> Option<Vec<u8>> {
    let short = |at: usize| usize::from(u16::from_be_bytes([request[at], request[at + 1]]));
    assert_eq!(short(2), 11, "a fetch whose numbers all have a fixed size");
    // Number, version, id, client | who, two waits and sizes, level, session | topics | their names.
    let topics = 10 + short(8) + 4 * 4 + 1 + 2 * 4;
    if request[topics..topics + 4] != 1_i32.to_be_bytes() {
        return None;
    }
    let name = topics + 4;
    let partitions = name + 2 + short(name);
    // Partition, epoch, offset.
    let (partition, offset) = (partitions + 4, partitions + 4 + 8);
    let offset = &request[offset..offset + 8];
    let none = [0; 4];
    let parts: [&[u8]; 15] = [
        &request[4..8],
        // No throttling, no error, no session.
        &none,
        &[0; 2],
        &none,
        &1_i32.to_be_bytes(),
        &request[name..partitions],
        &1_i32.to_be_bytes(),
        &request[partition..partition + 4],
        &[0; 2],
        // Both its ends; where it begins; no aborted transactions; no other to ask; no records.
        offset,
        offset,
        &[0; 8],
        &none,
        &(-1_i32).to_be_bytes(),
        &none,
    ];
    Some(parts.concat())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_end_that_a_leader_tells_too_early_is_none() {
    let Some(brokers) = probe::server() else { return };
    let _alone = WAY.lock().await;
    probe::topic(&brokers, "stale", 1, &[]);
    probe::produce(&brokers, "stale", 0, numbered(0..10), None);
    let through = probe::listener(&brokers, 4);
    let between = Between::stand(through.clone(), probe::listener(&brokers, 3));
    let all: Vec<(u64, Vec<u8>)> = (0..10).map(|n: u32| (n.into(), format!("record {n}").into_bytes())).collect();
    for told in [0, 1] {
        let source = source(&with(&through, "stale", &[])).unwrap();
        let ranges = source.plan(&Position::new(), ALL).await.unwrap();
        between.answers.store(told, SeqCst);
        assert_eq!(read(&source, &ranges[0]).await, all, "told {told} times");
        assert_eq!(between.answers.load(SeqCst), 0, "it was told");
    }
}
