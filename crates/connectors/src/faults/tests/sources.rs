//! The suite for sources, on one of three words and a server of it; and three that are wrong, each in its own way.
//!
//! Invariant: tokio's clock stands still but for the suite. Run by `cargo test`; `kafka` has tests of its own.

use super::super::*;
use async_trait::async_trait;
use futures::{StreamExt, stream};
use std::{net::SocketAddr, ops::Range, sync::Arc, time::Duration};
use tidemill_core::{
    Block, Budget, Chunk, ChunkStream, Error, Offset, OffsetRange, PartitionId, Position, Result, Shape, Source,
};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
    sync::watch,
};

/// What is wrong with a source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wrong {
    Nothing,
    /// An answer that broke off counts as a whole one.
    Forgets,
    /// What broke is for a human.
    GivesUp,
    /// A try goes on where the one before broke off.
    GoesOn,
}

/// A server of numbered lines: `end` is answered with how many there are, `get 3` with the fourth.
struct Lines {
    address: SocketAddr,
    published: watch::Sender<u64>,
    wrong: Wrong,
    hands: Hands,
}

impl Lines {
    async fn of(wrong: Wrong) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, published) = (listener.local_addr().unwrap(), watch::Sender::new(0));
        let source = published.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(answer(stream, source.clone()));
            }
        });
        Self { address, published, wrong, hands: Hands::on_tokio() }
    }
}

async fn answer(mut stream: TcpStream, published: watch::Sender<u64>) -> Option<()> {
    let (read, mut write) = stream.split();
    let mut asked = BufReader::new(read).lines();
    while let Some(line) = asked.next_line().await.ok()? {
        let answer = match line.strip_prefix("get ") {
            Some(number) => format!("record {number}\n"),
            None => format!("{}\n", *published.borrow()),
        };
        write.write_all(answer.as_bytes()).await.ok()?;
    }
    Some(())
}

#[async_trait]
impl Spring for Lines {
    fn address(&self) -> SocketAddr {
        self.address
    }
    fn source(&self, at: SocketAddr) -> Arc<dyn Source> {
        Arc::new(Asks { at, wrong: self.wrong, read: Arc::default() })
    }
    async fn publish(&self, numbers: Range<u64>) {
        self.published.send_replace(numbers.end);
    }
    fn hands(&self) -> &Hands {
        &self.hands
    }
}

/// Asks for one line at a time, on a connection for each plan and each read.
#[derive(Debug)]
struct Asks {
    at: SocketAddr,
    wrong: Wrong,
    /// How far it has read, which only one that is wrong looks at.
    read: Arc<std::sync::atomic::AtomicU64>,
}

fn failed(wrong: Wrong, why: impl std::fmt::Display) -> Error {
    let text = format!("lines: {why}");
    if wrong == Wrong::GivesUp { Error::user(text) } else { Error::external(text) }
}

async fn connect(at: SocketAddr, wrong: Wrong) -> Result<BufReader<TcpStream>> {
    TcpStream::connect(at).await.map(BufReader::new).map_err(|e| failed(wrong, e))
}

async fn ask(stream: &mut BufReader<TcpStream>, wrong: Wrong, what: String) -> Result<String> {
    let asking = async {
        stream.write_all(what.as_bytes()).await?;
        let mut line = String::new();
        stream.read_line(&mut line).await.map(|_| line)
    };
    let answer = tokio::time::timeout(Duration::from_secs(60), asking).await;
    let line = answer.map_err(|e| failed(wrong, e))?.map_err(|e| failed(wrong, e))?;
    line.strip_suffix('\n').map(str::to_string).ok_or_else(|| failed(wrong, "the answer broke off"))
}

#[async_trait]
impl Source for Asks {
    fn describe(&self) -> String {
        "lines".to_string()
    }
    fn shape(&self) -> Shape {
        Shape::Raw
    }
    async fn plan(&self, position: &Position, _: Budget) -> Result<Vec<OffsetRange>> {
        let partition = PartitionId::from(0);
        let start = position.get(&partition).copied().unwrap_or_default();
        let end = ask(&mut connect(self.at, self.wrong).await?, self.wrong, "end\n".to_string()).await?;
        let end = Offset(end.parse().map_err(|e| failed(self.wrong, e))?);
        Ok(vec![OffsetRange { partition, start, end }])
    }
    fn read(&self, range: &OffsetRange) -> ChunkStream {
        let (at, wrong, read) = (self.at, self.wrong, Arc::clone(&self.read));
        let (mut next, end) = (range.start.0, range.end.0);
        if wrong == Wrong::GoesOn && end > next {
            next = next.max(read.load(std::sync::atomic::Ordering::Relaxed).min(end - 1));
        }
        let step = move |(stream, next): (Option<BufReader<TcpStream>>, u64)| {
            let read = Arc::clone(&read);
            async move {
                if next >= end {
                    return None;
                }
                let asked = async {
                    let mut stream = match stream {
                        Some(stream) => stream,
                        None => connect(at, wrong).await?,
                    };
                    let line = ask(&mut stream, wrong, format!("get {next}\n")).await?;
                    if line.starts_with("record ") {
                        Ok((line, stream))
                    } else {
                        Err(failed(wrong, "that is no record"))
                    }
                };
                match asked.await {
                    Ok((line, stream)) => {
                        read.store(next + 1, std::sync::atomic::Ordering::Relaxed);
                        let mut block = Block::from_records([line]);
                        block.base = Offset(next);
                        Some((Ok(Chunk::Raw(block)), (Some(stream), next + 1)))
                    }
                    Err(_) if wrong == Wrong::Forgets => None,
                    Err(error) => Some((Err(error), (None, end))),
                }
            }
        };
        stream::unfold((None, next), step).boxed()
    }
    async fn is_exhausted(&self, _: &Position) -> Result<bool> {
        Ok(false)
    }
}

#[tokio::test]
async fn a_source_that_asks_stands_each_fault() {
    check_source_faults(&Lines::of(Wrong::Nothing).await).await;
}

/// What the suite says of one that is wrong.
async fn told(wrong: Wrong) -> String {
    let lines = Lines::of(wrong).await;
    let checked = futures::FutureExt::catch_unwind(std::panic::AssertUnwindSafe(check_source_faults(&lines))).await;
    *checked.expect_err("it is wrong").downcast::<String>().unwrap()
}

#[tokio::test]
async fn a_source_that_is_wrong_is_told() {
    for (wrong, why) in [
        (Wrong::Forgets, "are lost"),
        (Wrong::GivesUp, "an error that passes is none for a human"),
        (Wrong::GoesOn, "gave other records"),
    ] {
        let told = told(wrong).await;
        assert!(told.contains(why), "{wrong:?}: {told}");
        tokio::time::resume();
    }
}
