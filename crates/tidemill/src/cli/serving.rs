//! A server that runs until somebody ends it.
//!
//! Invariant: signals are listened to before anything is said, so that who has read
//! the address may end it at once. Called by `replay` and `simulate`.

use tidemill::{
    Error, Result,
    core::{Stop, StopHandle},
};
use tokio::signal::unix::{Signal, SignalKind, signal};

/// Ctrl-C, and the system's wish that the process ends.
pub(super) struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    /// From now on they no longer end the process.
    ///
    /// # Errors
    /// When the system refuses.
    pub(super) fn listen() -> Result<Self> {
        let listening = |kind| signal(kind).map_err(|e| Error::external("can't listen for signals").because(e));
        Ok(Self { interrupt: listening(SignalKind::interrupt())?, terminate: listening(SignalKind::terminate())? })
    }

    /// Runs a server until it ends, or until a signal stops it. Says whether one did.
    ///
    /// # Errors
    /// As the server.
    pub(super) async fn end<F: Future<Output = Result<()>>>(mut self, run: impl FnOnce(Stop) -> F) -> Result<bool> {
        let (handle, stop) = StopHandle::new();
        let mut running = std::pin::pin!(run(stop));
        tokio::select! {
            ended = &mut running => return ended.map(|()| false),
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
        handle.stop();
        running.await.map(|()| true)
    }
}
