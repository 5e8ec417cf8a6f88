//! Receivers that end by an error for good: before they have begun, which ends the
//! program, and later, which is told.

use super::tests::idle;
use crate::{StreamingContext, Trigger};
use async_trait::async_trait;
use parking_lot::Mutex;
use std::{path::Path, sync::Arc};
use tidemill_core::{Block, Duration, Error, Intake, Phase, Receiver, Result, Stop};
use tokio::sync::oneshot;

/// Receives `records` of one line, then waits for a word and ends by an error, or panics.
#[derive(Debug)]
struct Failing {
    records: usize,
    panics: bool,
    end: Mutex<Option<oneshot::Receiver<()>>>,
}

#[async_trait]
impl Receiver for Failing {
    fn describe(&self) -> String {
        "failing".to_string()
    }

    async fn run(&self, intake: Arc<dyn Intake>, _stop: Stop) -> Result<()> {
        for _ in 0..self.records {
            drop(intake.append(Block::from_records(["a"]), None).await?);
        }
        let end = self.end.lock().take();
        if let Some(end) = end {
            end.await.expect("the test says when");
        }
        assert!(!self.panics, "a bug of the receiver's");
        Err(Error::user("the port is taken by somebody"))
    }
}

/// A program that shows what `failing` receives, and another input that is well.
fn program(dir: &Path, trigger: Trigger, failing: Failing) -> StreamingContext {
    let context = StreamingContext::builder("p").trigger(trigger).partitions(2).data_dir(dir).build();
    let (idle, format) = idle();
    for (name, receiver) in [("others", idle), ("lines", Arc::new(failing))] {
        let lines = context.receiver_stream::<String>(name, vec![receiver], Arc::clone(&format)).unwrap();
        lines.foreach_batch(|_, _| Ok(()));
    }
    context.start().unwrap();
    context
}

/// How it ended; it must, and nobody tells it to.
fn ended(program: &StreamingContext) -> Result<()> {
    let waited = program.await_for(Duration::from_secs(120))?;
    waited.ok_or_else(|| Error::internal("it runs on"))
}

#[test]
fn an_input_that_can_not_begin_ends_the_program() {
    for trigger in [Trigger::Asap, Trigger::Every(Duration::from_millis(20)), Trigger::Drain] {
        let dir = tempfile::tempdir().unwrap();
        let program = program(dir.path(), trigger, Failing { records: 0, panics: false, end: Mutex::default() });
        let error = ended(&program).unwrap_err().chain();
        assert!(error.contains("`lines`") && error.contains("the port is taken by somebody"), "{trigger:?}: {error}");
        assert_eq!(program.board().program().phase, Phase::Failed);
    }
    let dir = tempfile::tempdir().unwrap();
    let program = program(dir.path(), Trigger::Asap, Failing { records: 0, panics: true, end: Mutex::default() });
    let error = ended(&program).unwrap_err().chain();
    assert!(error.contains("a receiver panicked"), "{error}");
}

#[test]
fn an_input_that_fails_later_is_told_and_the_others_go_on() {
    let dir = tempfile::tempdir().unwrap();
    let (end, ends) = oneshot::channel();
    let failing = Failing { records: 2, panics: false, end: Mutex::new(Some(ends)) };
    let program = program(dir.path(), Trigger::Asap, failing);
    let board = program.board();
    let lines = || board.inputs().into_iter().find(|input| input.stream == "lines");
    while lines().is_none_or(|input| input.records < 2) {
        std::thread::yield_now();
    }
    assert_eq!(lines().unwrap().failed, None);
    end.send(()).unwrap();
    while lines().unwrap().failed.is_none() {
        std::thread::yield_now();
    }
    assert_eq!(lines().unwrap().failed.as_deref(), Some("the port is taken by somebody"));
    program.stop(true).unwrap();
    assert_eq!(board.program().records_in, 2, "what it had received was read");
    let others = board.inputs().into_iter().find(|input| input.stream == "others").unwrap();
    assert_eq!(others.failed, None, "a stop is no failure");
}
