//! The hands of a test on the clock of a connector.
//!
//! Sockets of the loopback take real time, little of it; what connectors wait for themselves (an answer that does
//! not come, the next try, a silence) passes as the test moves their clock. Between two moves lie some beats
//! of real time, so that what is under way arrives.
//!
//! Invariant: a beat holds up tokio's own clock where a test has paused that: it moves by these hands
//! alone. Called by the suites of this folder.

use futures::future::BoxFuture;
use std::{
    fmt,
    sync::{
        Arc,
        mpsc::{RecvTimeoutError, Sender, channel},
    },
    time::Duration,
};
use tidemill_core::ManualClock;
use tokio::sync::{Mutex, mpsc};

/// A beat of real time.
const BEAT: Duration = Duration::from_millis(5);
/// Beats between two moves.
const BEATS: usize = 4;
/// Moves, after which it is waited in vain.
const MOVES: usize = 1500;

/// Moves a clock.
type Move = Box<dyn Fn(Duration) -> BoxFuture<'static, ()> + Send + Sync>;

/// How time passes for a connector.
pub struct Hands {
    beats: Mutex<mpsc::Receiver<()>>,
    _going: Sender<()>,
    on: Move,
}

impl fmt::Debug for Hands {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Hands")
    }
}

impl Hands {
    /// On a clock that is moved like this. Where that is tokio's own, which the test has paused, it is
    /// `|span| Box::pin(tokio::time::advance(span))`.
    pub fn moving(on: impl Fn(Duration) -> BoxFuture<'static, ()> + Send + Sync + 'static) -> Self {
        let (going, gone) = channel::<()>();
        let (beat, beats) = mpsc::channel(1);
        // As long as a blocking task runs, a paused clock does not run on by itself.
        tokio::task::spawn_blocking(move || {
            while gone.recv_timeout(BEAT) == Err(RecvTimeoutError::Timeout) {
                // One that was not awaited is none.
                let _missed = beat.try_send(());
            }
        });
        Self { beats: Mutex::new(beats), _going: going, on: Box::new(on) }
    }

    /// On a clock that the connector was given.
    pub fn on_clock(clock: Arc<ManualClock>) -> Self {
        Self::moving(move |span| {
            let clock = Arc::clone(&clock);
            Box::pin(async move { clock.advance(span) })
        })
    }

    /// On tokio's own clock, which stands still from now on.
    #[cfg(test)]
    pub(crate) fn on_tokio() -> Self {
        let hands = Self::moving(|span| Box::pin(tokio::time::advance(span)));
        tokio::time::pause();
        hands
    }

    /// Moves the clock.
    pub async fn on(&self, span: Duration) {
        (self.on)(span).await;
    }

    /// Moves the clock, with beats before and behind it in which what is under way arrives.
    pub async fn pass(&self, span: Duration) {
        for _ in 0..BEATS {
            self.beat().await;
        }
        self.on(span).await;
        self.beat().await;
    }

    async fn beat(&self) {
        // The sender lives as long as these hands.
        let _beat = self.beats.lock().await.recv().await;
    }

    /// Until something holds; the clock moves by `step` now and then, or stands still.
    ///
    /// # Panics
    /// When it never does, with what was waited for.
    pub async fn until(&self, step: Duration, what: &str, mut holds: impl FnMut() -> bool) {
        for _ in 0..MOVES {
            for _ in 0..BEATS {
                if holds() {
                    return;
                }
                self.beat().await;
            }
            if !step.is_zero() {
                self.on(step).await;
            }
        }
        panic!("waited in vain until {what}");
    }

    /// What a work gives; the clock moves by what `step` says now and then.
    ///
    /// # Panics
    /// When the work does not end.
    pub async fn during<T>(&self, what: &str, step: impl Fn() -> Duration, work: impl Future<Output = T>) -> T {
        let mut work = std::pin::pin!(work);
        for _ in 0..MOVES {
            for _ in 0..BEATS {
                tokio::select! {
                    biased;
                    done = &mut work => return done,
                    () = self.beat() => {}
                }
            }
            self.on(step()).await;
        }
        panic!("waited in vain for the end: {what}");
    }
}
