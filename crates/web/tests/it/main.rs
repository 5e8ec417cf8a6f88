//! The server over real loopback sockets, and the page in a real browser.

#![expect(clippy::unwrap_used, reason = "a failed step of a test's own helper fails the test")]

mod access;
mod api;
mod browser;
mod charts;
mod frame;
mod http;
mod live;
mod lock;
mod pages;
mod requests;
mod webdriver;

use arrow_array::{Int64Array, RecordBatch, StringArray};
use std::{net::SocketAddr, sync::Arc};
use tidemill_core::{BatchId, BatchReport, Board, Result, StopHandle, Timestamp, ViewSnapshot};
use tidemill_web::{Access, Server};
use tokio::task::JoinHandle;

/// A server under test with its board.
struct Site {
    board: Arc<Board>,
    address: SocketAddr,
    stop: StopHandle,
    running: JoinHandle<Result<()>>,
}

impl Site {
    async fn open() -> Self {
        Self::open_at("127.0.0.1:0").await
    }

    async fn open_at(address: &str) -> Self {
        Self::open_with(address, |server| server).await
    }

    async fn open_with(address: &str, set: impl FnOnce(Server) -> Server) -> Self {
        let board = Arc::new(Board::default());
        let server = set(Server::bind(address.parse().unwrap(), Arc::clone(&board)).await.unwrap());
        Self::serve(server, board)
    }

    /// A site for those whom `access` lets in.
    async fn open_for(access: Access) -> Self {
        let board = Arc::new(Board::default());
        let server = Server::bind_for("127.0.0.1:0".parse().unwrap(), Arc::clone(&board), access).await.unwrap();
        Self::serve(server, board)
    }

    fn serve(server: Server, board: Arc<Board>) -> Self {
        let address = server.address();
        let (handle, stop) = StopHandle::new();
        Self { board, address, stop: handle, running: tokio::spawn(server.run(stop)) }
    }

    async fn close(self) {
        self.stop.stop();
        self.running.await.unwrap().unwrap();
    }

    /// Publishes a view of one text and one number.
    fn show(&self, name: &str, batch: u64, rows: &[(&str, i64)]) {
        let words = StringArray::from_iter_values(rows.iter().map(|(word, _)| word));
        let counts = Int64Array::from_iter_values(rows.iter().map(|(_, count)| *count));
        let rows = RecordBatch::try_from_iter([("word", Arc::new(words) as _), ("count", Arc::new(counts) as _)]);
        self.publish(name, batch, rows.unwrap());
    }

    fn publish(&self, name: &str, batch: u64, rows: RecordBatch) {
        let time = Timestamp(i64::try_from(batch).unwrap() * 1_000_000);
        self.board.publish_view(ViewSnapshot { name: name.to_string(), batch: BatchId(batch), time, rows });
    }
}

fn report(batch: u64) -> BatchReport {
    BatchReport {
        batch: BatchId(batch),
        time: Timestamp(i64::try_from(batch).unwrap() * 1_000_000),
        records_in: 10,
        refused: 1,
        letters: [("bad_value", 1)].into(),
        late: 2,
        scheduling_delay_us: 2000,
        processing_us: 30_000,
        queued: 4,
        watermark: Some(Timestamp(i64::try_from(batch).unwrap() * 1_000_000 - 2_500_000)),
        ..BatchReport::default()
    }
}
