//! A stream that is sent as it is published, and that fails as it is told to.
//!
//! Invariant: a fault comes after as many records as it says, on this connection
//! alone; keep-alives come only when nothing else does. Called by the networks.

use super::{Fault, Stage};
use bytes::Bytes;
use futures::stream::{self, BoxStream, StreamExt};
use hyper::body::Frame;
use std::{io, sync::Arc, time::Duration};
use tokio::sync::mpsc;

/// Pieces under way to a client.
const PIECES: usize = 16;

/// A body in pieces.
pub(super) type Pieces = BoxStream<'static, Result<Frame<Bytes>, io::Error>>;

/// How a network's stream looks.
pub(super) trait Script: Send + Sync + 'static {
    /// What is sent first.
    fn greeting(&self) -> Option<String> {
        None
    }
    /// Post number `n` as it is sent; `None` when this stream has it not.
    fn render(&self, stage: &Stage, n: usize) -> Option<String>;
    /// A sign of life, and how often.
    fn keep_alive(&self) -> (&'static str, Duration);
    /// A message that says that the stream ends.
    fn disconnect(&self) -> Option<String>;
    /// A message that is none.
    fn garbage(&self) -> String;
}

/// The stream from post `from` on.
pub(super) fn pieces(stage: Arc<Stage>, script: impl Script, from: usize, fault: Fault) -> Pieces {
    let (tx, rx) = mpsc::channel(PIECES);
    tokio::spawn(async move {
        // The client is gone, which is its right.
        let _gone = feed(&stage, &script, from, fault, &tx).await;
    });
    stream::unfold(rx, |mut rx| async move { rx.recv().await.map(|piece| (piece, rx)) }).boxed()
}

type Sender = mpsc::Sender<Result<Frame<Bytes>, io::Error>>;

async fn feed(
    stage: &Stage,
    script: &impl Script,
    from: usize,
    fault: Fault,
    tx: &Sender,
) -> Result<(), mpsc::error::SendError<Result<Frame<Bytes>, io::Error>>> {
    let send = |text: String| tx.send(Ok(Frame::data(Bytes::from(text))));
    if let Some(greeting) = script.greeting() {
        send(greeting).await?;
    }
    let (sign, usual) = script.keep_alive();
    let every = stage.plan.keep_alive.unwrap_or(usual);
    let mut published = stage.published.subscribe();
    let (mut next, mut sent, mut fault) = (from, 0, fault);
    loop {
        match fault {
            Fault::Stall(after) if sent >= after => {
                tx.closed().await;
                return Ok(());
            }
            Fault::HangUp(after) if sent >= after => return Ok(()),
            Fault::Half(after) if sent >= after => {
                let record = stage.plan.posts.get(next).and_then(|_| script.render(stage, next));
                let record = record.unwrap_or_else(|| script.garbage());
                let half = (1..=record.len() / 2).rev().find(|at| record.is_char_boundary(*at)).unwrap_or_default();
                send(record[..half].to_string()).await?;
                // What was sent has to leave before the connection is cut.
                tokio::time::sleep(Duration::from_millis(50)).await;
                return tx.send(Err(io::Error::from(io::ErrorKind::ConnectionAborted))).await;
            }
            Fault::Disconnect(after) if sent >= after => {
                if let Some(message) = script.disconnect() {
                    send(message).await?;
                }
                return Ok(());
            }
            Fault::Garbage(after) if sent >= after => {
                send(script.garbage()).await?;
                fault = Fault::Pass;
            }
            _ => {}
        }
        if next < *published.borrow_and_update() {
            if let Some(record) = script.render(stage, next) {
                send(record).await?;
                sent += 1;
            }
            next += 1;
            continue;
        }
        tokio::select! {
            biased;
            () = tx.closed() => return Ok(()),
            changed = published.changed() => if changed.is_err() { return Ok(()) },
            () = tokio::time::sleep(every) => send(sign.to_string()).await?,
        }
    }
}
