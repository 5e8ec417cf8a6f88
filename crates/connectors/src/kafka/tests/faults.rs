//! Servers that are away for a while, credentials and topics that are wrong.

use super::*;
use crate::{contract::read, kafka::probe};
use futures::StreamExt;
use std::{net::SocketAddr, sync::Arc};
use tidemill_core::{BatchId, Blame, Budget, Error, Position, Timestamp};
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpSocket, TcpStream},
    task::{JoinHandle, JoinSet},
};

const ALL: Budget = Budget { records: u64::MAX, bytes: u64::MAX, parallelism: 1 };

/// The way to the server, which can be cut: the server tells clients to come here.
struct Way(JoinHandle<()>);

impl Way {
    async fn open(brokers: &str) -> Self {
        let address: SocketAddr = probe::listener(brokers, 4).parse().unwrap();
        let target = probe::listener(brokers, 3);
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_reuseaddr(true).unwrap();
        socket.bind(address).unwrap();
        let listener: TcpListener = socket.listen(64).unwrap();
        Self(tokio::spawn(async move {
            let mut ways = JoinSet::new();
            while let Ok((mut client, _)) = listener.accept().await {
                let target = target.clone();
                ways.spawn(async move {
                    if let Ok(mut server) = TcpStream::connect(target).await {
                        // However it ends: the client sees a connection that is gone.
                        let _ended = copy_bidirectional(&mut client, &mut server).await;
                    }
                });
            }
        }))
    }

    /// Nobody comes through any more, and whoever was connected is not.
    async fn cut(self) {
        self.0.abort();
        let _aborted = self.0.await;
    }
}

/// Tries again what is outside, as the engine does.
async fn until_done<T, F: Future<Output = Result<T>>>(mut act: impl FnMut() -> F) -> T {
    for _ in 0..100 {
        match act().await {
            Ok(done) => return done,
            Err(error) => assert!(error.is_retryable(), "{}", error.chain()),
        }
    }
    panic!("it does not heal");
}

#[tokio::test(flavor = "multi_thread")]
async fn servers_that_come_back_are_gone_on_with() {
    let Some(brokers) = probe::server() else { return };
    let _alone = WAY.lock().await;
    probe::topic(&brokers, "cut-in", 1, &[]);
    probe::topic(&brokers, "cut-out", 1, &[]);
    probe::produce(&brokers, "cut-in", 0, numbered(0..100), None);
    let way = Way::open(&brokers).await;
    let through = probe::listener(&brokers, 4);
    let source = source(&with(&through, "cut-in", &[])).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let exact =
        sink(&with(&through, "cut-out", &[("guarantee", "exactly once"), ("format", "text"), ("key_column", "n")]));
    let exact = Arc::new(exact.unwrap());
    exact.place("test/cut", dir.path());
    exact.open(crate::contract::rows([]).schema()).await.unwrap();
    exact.recover(None).await.unwrap();

    let mut position = Position::new();
    let first = source.plan(&position, Budget { records: 40, ..ALL }).await.unwrap();
    assert_eq!(read(&source, &first[0]).await.len(), 40);
    position.insert(first[0].partition.clone(), first[0].end);
    let rest = source.plan(&position, ALL).await.unwrap();
    let one = crate::contract::stage(&*exact, 1, 0, vec![crate::contract::rows([1])]).await.unwrap();
    exact.commit(BatchId(1), &[one]).await.unwrap();
    let two = crate::contract::stage(&*exact, 2, 0, vec![crate::contract::rows([2, 3])]).await.unwrap();

    way.cut().await;
    let away = |error: &Error| {
        assert!(error.is_retryable() && error.blame() == Blame::External, "{}", error.chain());
        assert!(error.to_string().contains(&through), "{error}");
    };
    away(&source.plan(&position, ALL).await.unwrap_err());
    away(&exact.commit(BatchId(2), std::slice::from_ref(&two)).await.unwrap_err());
    probe::produce(&brokers, "cut-in", 0, numbered(100..120), None);

    let way = Way::open(&brokers).await;
    until_done(|| exact.commit(BatchId(2), std::slice::from_ref(&two))).await;
    let again = until_done(|| async {
        let mut chunks = source.read(&rest[0]);
        let mut records = 0;
        while let Some(chunk) = chunks.next().await {
            let tidemill_core::Chunk::Raw(block) = chunk? else { panic!("raw records") };
            records += block.len();
        }
        Ok(records)
    });
    assert_eq!(again.await, 60, "the range that was planned is read as it was");
    position.insert(rest[0].partition.clone(), rest[0].end);
    let later = until_done(|| source.plan(&position, ALL)).await;
    assert_eq!(later[0].len(), 20);
    assert_eq!(read(&source, &later[0]).await[0].1, b"record 100");
    let seen: Vec<String> = probe::committed(&brokers, "cut-out").into_iter().map(|record| record.3).collect();
    assert_eq!(seen, ["word-1", "word-2", "word-3"]);
    way.cut().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn credentials_are_taken_or_refused_in_words() {
    let Some(brokers) = probe::server() else { return };
    probe::topic(&brokers, "secured", 1, &[]);
    probe::produce(&brokers, "secured", 0, numbered(0..3), None);
    let secured = probe::listener(&brokers, 1);
    let as_user = |variable| [("user", "tidemill"), ("password_env", variable)];
    let taken = source(&with(&secured, "secured", &as_user("TIDEMILL_KAFKA_PASSWORD"))).unwrap();
    assert_eq!(taken.plan(&Position::new(), ALL).await.unwrap()[0].len(), 3);
    // Any variable that holds something else.
    let refused = source(&with(&secured, "secured", &as_user("PATH"))).unwrap();
    let error = refused.plan(&Position::new(), ALL).await.unwrap_err();
    assert!(
        error.to_string().contains("the credentials are refused: see options `user` and `password_env`"),
        "{}",
        error.chain()
    );
    assert!(!error.is_retryable() && !error.chain().contains(&std::env::var("PATH").unwrap()));
    let refused = sink(&with(&secured, "secured", &as_user("PATH"))).unwrap();
    let error = refused.open(crate::contract::rows([]).schema()).await.unwrap_err();
    assert!(error.to_string().contains("the credentials are refused"), "{}", error.chain());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_that_is_not_there_is_told_with_the_way_out() {
    let Some(brokers) = probe::server() else { return };
    let says = format!(
        "there is no topic `nowhere` at {brokers}; make it with tidemill topic --kafka {brokers} create nowhere"
    );
    let error = source(&with(&brokers, "nowhere", &[])).unwrap().plan(&Position::new(), ALL).await.unwrap_err();
    assert!(error.to_string().contains(&says) && !error.is_retryable(), "{}", error.chain());
    let error =
        sink(&with(&brokers, "nowhere", &[])).unwrap().open(crate::contract::rows([]).schema()).await.unwrap_err();
    assert!(error.to_string().contains(&says) && !error.is_retryable(), "{}", error.chain());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_over_the_topics_bound_is_told() {
    let Some(brokers) = probe::server() else { return };
    probe::topic(&brokers, "narrow", 1, &[("max.message.bytes", "1000")]);
    let plain = sink(&with(&brokers, "narrow", &[("format", "text")])).unwrap();
    let large = arrow_array::StringArray::from(vec!["x".repeat(5000)]);
    let rows = arrow_array::RecordBatch::try_from_iter([("word", Arc::new(large) as arrow_array::ArrayRef)]).unwrap();
    plain.open(rows.schema()).await.unwrap();
    let staged = plain.stage(BatchId(1), Timestamp(0), 0, futures::stream::iter([Ok(rows)]).boxed()).await;
    let error = staged.unwrap_err();
    assert!(error.to_string().contains("a record is larger than topic `narrow` takes"), "{}", error.chain());
    assert!(!error.is_retryable());
}
