//! Connector `stdin`: the lines of standard input.
//!
//! | Option | Meaning |
//! |---|---|
//! | `max_line` | bytes of a line at most (1 MiB); a longer one is refused |
//!
//! Standard input can only be read by blocking, so a thread of its own does
//! that and hands on one piece at a time. A program has one stream over it: of
//! two, each would get some of the lines.
//!
//! Invariant: at most two pieces are under way: while the log is behind, the
//! thread waits, and the writer of the pipe with it. `run` ends at the end of
//! the input. When it is stopped, the thread stays at its blocked read until
//! the process ends; nobody waits for it.

use crate::{
    lines::{self, LineCutter, letter},
    tcp::hand_on,
};
use async_trait::async_trait;
use std::{
    fmt,
    io::{self, Read},
    sync::{Arc, Mutex, PoisonError},
    thread,
};
use tidemill_core::{Claim, Error, Input, Intake, Options, Receiver, Result, Stop};
use tokio::sync::mpsc;

const PIECE: usize = 256 << 10;

/// Lines of something that can only be read by blocking.
pub struct Stdin {
    max_line: usize,
    /// Taken by the first run; what it has read can't be read again.
    reader: Mutex<Option<Box<dyn Read + Send>>>,
}

impl fmt::Debug for Stdin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stdin").field("max_line", &self.max_line).finish_non_exhaustive()
    }
}

impl Stdin {
    /// Lines of at most `max_line` bytes.
    pub fn new(reader: impl Read + Send + 'static, max_line: usize) -> Self {
        Self { max_line, reader: Mutex::new(Some(Box::new(reader))) }
    }

    /// Standard input as a stream's options ask for it.
    ///
    /// # Errors
    /// When one is wrong.
    pub fn input(options: &Options) -> Result<Input> {
        Ok(Input::Receivers(vec![Arc::new(Self::new(io::stdin(), lines::max_line(options)?))]))
    }
}

#[async_trait]
impl Receiver for Stdin {
    fn describe(&self) -> String {
        "stdin".to_string()
    }

    fn claim(&self) -> Option<Claim> {
        Some(Claim::new("standard input"))
    }

    async fn run(&self, intake: Arc<dyn Intake>, stop: Stop) -> Result<()> {
        let reader = self.reader.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(mut reader) = reader else {
            return Err(Error::user("stdin: it can be read by one stream only, once"));
        };
        // Holds one piece; a full channel stops the reading.
        let (pieces, mut read) = mpsc::channel::<io::Result<Vec<u8>>>(1);
        let reading = thread::Builder::new().name("stdin".into()).spawn(move || {
            let mut buffer = vec![0; PIECE];
            loop {
                let piece = match reader.read(&mut buffer) {
                    Ok(0) => return,
                    Ok(n) => Ok(buffer[..n].to_vec()),
                    Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                    Err(e) => Err(e),
                };
                let failed = piece.is_err();
                // Nobody takes it when the stream was stopped.
                if pieces.blocking_send(piece).is_err() || failed {
                    return;
                }
            }
        });
        reading.map_err(|e| Error::external("stdin: no thread can be started to read it").because(e))?;
        intake.report("reading");
        let mut cutter = LineCutter::new(self.max_line);
        loop {
            let piece = tokio::select! {
                biased;
                () = stop.stopped() => break,
                piece = read.recv() => piece,
            };
            match piece {
                Some(Ok(piece)) => hand_on(&intake, cutter.push(&piece)).await?,
                Some(Err(error)) => return Err(Error::external("stdin: can't be read").because(error).fatal()),
                None => {
                    hand_on(&intake, cutter.finish()).await?;
                    intake.report("ended");
                    return Ok(());
                }
            }
        }
        if let Some(begun) = cutter.abandon() {
            intake.refuse(letter("receiving was stopped in the middle of this line".to_string(), begun)).await?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contract::Recorder;
    use std::sync::mpsc;
    use tidemill_core::StopHandle;

    #[tokio::test]
    async fn it_ends_with_its_input() {
        let intake = Arc::new(Recorder::default());
        let (_stop, stopped) = StopHandle::new();
        let stdin = Stdin::new(io::Cursor::new("one\ntwo\r\nlast"), 5);
        stdin.run(Arc::<Recorder>::clone(&intake), stopped.clone()).await.unwrap();
        assert_eq!(intake.heard().records, [b"one".as_slice(), b"two", b"last"]);
        assert!(stdin.run(intake, stopped).await.is_err(), "it can't be read twice");
    }

    /// A pipe whose writer says nothing more.
    struct Silent(Option<Vec<u8>>, mpsc::Receiver<()>);

    impl Read for Silent {
        fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
            match self.0.take() {
                Some(bytes) => {
                    into[..bytes.len()].copy_from_slice(&bytes);
                    Ok(bytes.len())
                }
                None => self.1.recv().map_or(Ok(0), |()| Ok(0)),
            }
        }
    }

    #[tokio::test]
    async fn stopping_does_not_wait_for_a_blocked_read() {
        let (never, blocked) = mpsc::channel();
        let intake = Arc::new(Recorder::default());
        let given: Arc<dyn Intake> = Arc::<Recorder>::clone(&intake);
        let (stop, stopped) = StopHandle::new();
        let stdin = Stdin::new(Silent(Some(b"whole\nbegun".to_vec()), blocked), 80);
        let running = tokio::spawn(async move { stdin.run(given, stopped).await });
        intake.until(|h| h.records.len() == 1).await;
        stop.stop();
        running.await.unwrap().unwrap();
        assert_eq!(intake.heard().refused[0].1, b"begun");
        drop(never);
    }
}
